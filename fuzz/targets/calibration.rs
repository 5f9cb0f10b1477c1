//! Calibrations, as anybody may send them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_codec::Calibration;

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || {
        if let Ok(read) = Calibration::from_bytes(bytes) {
            // Not the same bytes: entropy coders may be given other tables than their own.
            assert_eq!(read.model(), Calibration::from_bytes(&read.to_bytes().unwrap()).unwrap().model());
        }
    });
});
