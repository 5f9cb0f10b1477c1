//! Records, as a backend gives them back.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || {
        if let Ok(again) = sira_store::fuzz::record(bytes) {
            assert!(sira_store::fuzz::record(&again).is_ok(), "a record that was read, and cannot be read again");
        }
    });
});
