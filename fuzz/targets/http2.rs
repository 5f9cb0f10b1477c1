//! What a server says over HTTP/2 to the Rust client, which reads frames, headers and messages by itself.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sira_fuzz::bounded(bytes.len(), || sira_client::fuzz::http2(bytes));
});
