//! What a server says to the Rust client: a schema, a batch and its body, or the segments of many keys. Three pieces, each with two bytes of length.

#![no_main]

use libfuzzer_sys::fuzz_target;

fn piece<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return &[] };
    let (piece, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
    *bytes = rest;
    piece
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let (schema, batch, body) = (piece(&mut rest), piece(&mut rest), piece(&mut rest).to_vec().into());
    sira_fuzz::bounded(bytes.len(), || {
        let _ = sira_client::fuzz::tensor(schema, batch.to_vec(), bytes::Bytes::clone(&body));
        let _ = sira_client::fuzz::segments(3, schema, &body);
    });
});
