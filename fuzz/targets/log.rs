//! The look at RocksDB's log before it is opened.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    sira_fuzz::bounded(bytes.len(), || {
        let damage = sira_backend::fuzz::log_damage(bytes);
        assert!(damage.is_none_or(|at| at < bytes.len() as u64));
    });
});
