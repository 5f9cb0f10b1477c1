//! Chunks, as a backend gives them back: the text of a chain up to the first zero byte, a dtype, a length of two bytes, what was stored.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sira_codec::{Chain, ChunkContext};
use sira_tensor::DType;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    let (text, rest) = (&bytes[..end], &bytes[end + 1..]);
    let (Ok(text), Some((head, stored))) = (std::str::from_utf8(text), rest.split_first_chunk::<3>()) else { return };
    let Some(dtype) = DType::from_number(head[0]) else { return };
    let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
    sira_fuzz::bounded(bytes.len() + len, || {
        let Ok(chain) = text.parse::<Chain>() else { return };
        let context = ChunkContext::new(dtype, &[len as u64], &[0]);
        if let Ok(raw) = chain.decode(stored, len, context) {
            assert_eq!(raw.len(), len);
        }
    });
});
