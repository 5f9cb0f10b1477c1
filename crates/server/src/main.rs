//! The program `sira`.

use std::process::ExitCode;

/// Returns freed memory to the system, which the promise about resident memory needs; glibc's allocator keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sira::cli::main()
}
