//! Header blocks of answers, one after another through the same table: two bytes of length before each.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sira_fuzz::bounded(bytes.len(), || sira_client::fuzz::headers(bytes));
});
