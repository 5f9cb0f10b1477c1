//! What a record says of a tensor.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_tensor::TensorSpec;

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || {
        if let Ok(spec) = TensorSpec::from_bytes(bytes) {
            assert_eq!(TensorSpec::from_bytes(&spec.to_bytes()), Ok(spec));
        }
    });
});
