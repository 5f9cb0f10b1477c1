//! Encoded chunks: what a put says of them, and what a server answers to the Rust client: a schema, what a message says, its body. Three pieces, each with
//! two bytes of length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_tensor::{DType, TensorSpec};
use sira_wire::encoded::{Encoding, GetChunks, Layout, PutChunks};

fn piece<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return &[] };
    let (piece, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
    *bytes = rest;
    piece
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let (first, second, body) = (piece(&mut rest), piece(&mut rest), piece(&mut rest));
    let spec = TensorSpec::new(DType::BFloat16, vec![30, 2, 1536, 192]).unwrap();
    sira_fuzz::bounded(bytes.len(), || {
        if let Ok(put) = PutChunks::parse(second) {
            assert_eq!(PutChunks::parse(&serde_json::to_vec(&put).unwrap()).unwrap(), put);
        }
        let _ = GetChunks::parse(second);
        if let Ok(text) = std::str::from_utf8(first) {
            if let Ok(grid) = Encoding::parse(text).and_then(|encoding| encoding.grid(&spec)) {
                assert!(grid.cells() <= sira_wire::encoded::MAX_CHUNKS);
            }
            if let Ok((grid, wanted)) = Layout::parse(text).and_then(|layout| layout.grid(&spec)) {
                assert!(grid.region_bytes(&wanted) <= spec.nbytes());
            }
        }
    });
    // A chunk is no larger than its tensor, of which no more than 64 KiB are read here; what codecs take on the way is a few times that.
    sira_fuzz::bounded(bytes.len(), || {
        let _ = sira_client::fuzz::chunks(first, second, body);
    });
});
