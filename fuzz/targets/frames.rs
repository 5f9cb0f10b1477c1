//! The kinds of HTTP/2 frames in what a connection sends: the same however it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let sum = |size| sira_flight::fuzz::frames(bytes, size);
    let whole = sum(bytes.len());
    for size in [1, 7, 9, 100] {
        assert_eq!(sum(size), whole, "in pieces of {size}");
    }
});
