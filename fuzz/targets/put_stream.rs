//! Whole put streams: the body of a `DoPut`, from the first frame to what is stored.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_fuzz::store::Bench;

thread_local! {
    static BENCH: Bench = Bench::new();
}

fuzz_target!(|bytes: &[u8]| {
    BENCH.with(|bench| {
        if let Err(fault) = bench.try_stream(bytes, 1 + bytes.len() % 7000) {
            panic!("{fault}");
        }
    });
});
