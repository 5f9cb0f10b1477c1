//! What `make compare` needs besides the servers it compares: the fastest responders that one can write, and Rust clients.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is the result")]

mod canned;
mod client;
mod raw;

use sira_benches::Failure;

const USAGE: &str = "usage: wirebench canned | raw | client sira URL KEY | client raw|redis HOST:PORT KEY";

fn run(arguments: &[&str]) -> Result<(), Failure> {
    match arguments {
        ["canned"] => canned::serve(),
        ["raw"] => raw::serve(),
        ["client", peer, address, key] => client::run(peer, address, key),
        _ => Err(USAGE.into()),
    }
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wirebench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
