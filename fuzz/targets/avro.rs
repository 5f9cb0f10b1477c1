//! Exports, as `sira import` reads them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira::formats::avro::{MAX_BLOCK, Reader};

fuzz_target!(|bytes: &[u8]| {
    // A block may come to so many bytes, and what is decoded of it to several times as much.
    sira_fuzz::bounded(bytes.len() + 3 * MAX_BLOCK, || {
        let Ok(mut reader) = Reader::new(bytes) else { return };
        while let Ok(Some(_)) = reader.read() {}
    });
});
