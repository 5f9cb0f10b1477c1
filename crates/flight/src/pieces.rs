//! Bytes on their way out, as they lie in memory: nothing is put together that the kernel can gather.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use sira_store::Hold;

/// The multiple of which a body's address in pyarrow's memory is, and where in a message a body must lie for that: gRPC C++ gathers a message of
/// several slices in one allocation, behind a count of references of 32 bytes less than a multiple of 64 (`docs/wire.md`, "Get").
const BODY_ALIGN: usize = 64;
const BODY_AT: usize = 32;

static ZEROS: [u8; BODY_ALIGN] = [0; BODY_ALIGN];

/// Bytes of gRPC's prefix of a message.
const PREFIX: usize = 5;

/// FlightData's fields (Flight.proto), each of them bytes: number times 8, plus 2.
const HEADER_TAG: u8 = 2 << 3 | 2;
const METADATA_TAG: u8 = 3 << 3 | 2;
const BODY_TAG: [u8; 2] = [0xc2, 0x3e];

/// What goes out as one frame of HTTP/2: a list of buffers, in order, and what their memory is reserved by.
#[derive(Default)]
pub(crate) struct Pieces {
    front: Bytes,
    rest: VecDeque<Bytes>,
    len: usize,
    holds: Vec<Arc<Hold>>,
}

impl Pieces {
    /// Appends `piece`, which is not copied.
    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        match (self.front.is_empty(), piece.is_empty()) {
            (_, true) => {}
            (true, false) => self.front = piece,
            (false, false) => self.rest.push_back(piece),
        }
    }

    /// Puts `piece` before all others.
    pub fn push_front(&mut self, piece: Bytes) {
        let behind = std::mem::replace(&mut self.front, piece);
        self.len += self.front.len();
        if self.front.is_empty() {
            self.front = behind;
        } else if !behind.is_empty() {
            self.rest.push_front(behind);
        }
    }

    /// Takes the first `count` bytes out, or all. Both parts keep what they are reserved by.
    pub fn split_to(&mut self, count: usize) -> Pieces {
        let mut first = Pieces { holds: self.holds.clone(), ..Pieces::default() };
        while first.len < count && self.len > 0 {
            let piece = self.front.split_to(self.front.len().min(count - first.len));
            self.len -= piece.len();
            if self.front.is_empty() {
                self.front = self.rest.pop_front().unwrap_or_default();
            }
            first.push(piece);
        }
        first
    }

    /// Appends `count` zeros, fewer than [`BODY_ALIGN`].
    pub fn pad(&mut self, count: usize) {
        self.push(Bytes::from_static(&ZEROS[..count]));
    }

    /// Keeps `hold` until the last of the bytes has been sent.
    pub fn hold(&mut self, hold: Arc<Hold>) {
        self.holds.push(hold);
    }

    /// The buffers that are left.
    #[cfg(test)]
    pub fn buffers(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.front).chain(&self.rest)
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Pieces {
        Pieces { len: bytes.len(), front: bytes, ..Pieces::default() }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        &self.front
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let buffers = std::iter::once(&self.front).chain(&self.rest).filter(|buffer| !buffer.is_empty());
        slices.iter_mut().zip(buffers).map(|(slice, buffer)| *slice = IoSlice::new(buffer)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "{count} bytes of {} are to be passed over", self.len);
        self.len -= count;
        while count > 0 && count >= self.front.len() {
            count -= self.front.len();
            self.front = self.rest.pop_front().unwrap_or_default();
        }
        self.front.advance(count);
    }
}

/// Appends a gRPC message of FlightData with this header and metadata, all but the bytes of its body: `body` bytes, which have to follow. The
/// header is padded with zeros, which Arrow's readers pass over, so that the body lies where it is aligned in a client's memory.
pub(crate) fn begin_message(target: &mut BytesMut, header: &[u8], metadata: &[u8], body: usize) {
    let field = |tag: usize, len: usize| if len == 0 { 0 } else { tag + varint_len(len) + len };
    let before = |header: usize| field(1, header) + field(1, metadata.len()) + if body == 0 { 0 } else { 2 + varint_len(body) };
    let padding = match body {
        0 => 0,
        _ => (0..2 * BODY_ALIGN).find(|padding| before(header.len() + padding) % BODY_ALIGN == BODY_AT).unwrap_or(0),
    };
    let (header_len, len) = (header.len() + padding, before(header.len() + padding) + body);
    target.reserve(PREFIX + len - body);
    target.extend_from_slice(&[0]);
    target.extend_from_slice(&(len as u32).to_be_bytes());
    if header_len > 0 {
        target.extend_from_slice(&[HEADER_TAG]);
        put_varint(target, header_len);
        target.extend_from_slice(header);
        target.resize(target.len() + padding, 0);
    }
    if !metadata.is_empty() {
        target.extend_from_slice(&[METADATA_TAG]);
        put_varint(target, metadata.len());
        target.extend_from_slice(metadata);
    }
    if body > 0 {
        target.extend_from_slice(&BODY_TAG);
        put_varint(target, body);
    }
}

fn varint_len(value: usize) -> usize {
    (value.max(1).ilog2() / 7 + 1) as usize
}

fn put_varint(target: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        target.extend_from_slice(&[value as u8 | 0x80]);
        value >>= 7;
    }
    target.extend_from_slice(&[value as u8]);
}

#[cfg(test)]
mod tests {
    use arrow_flight::FlightData;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn a_list_of_buffers_is_read_as_if_it_were_one() {
        let buffers = [vec![], vec![1u8; 3], vec![], vec![2; 5], vec![3; 1]];
        let flat = buffers.concat();
        for step in 1..=flat.len() {
            let mut pieces = Pieces::default();
            buffers.iter().for_each(|buffer| pieces.push(Bytes::from(buffer.clone())));
            let mut read = Vec::new();
            while pieces.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 2];
                let count = pieces.chunks_vectored(&mut slices);
                let seen: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).take(step).collect();
                assert!(!seen.is_empty() && seen.len() <= pieces.remaining());
                pieces.advance(seen.len());
                read.extend(seen);
            }
            assert_eq!(read, flat, "in steps of {step}");
        }
    }

    #[test]
    fn a_list_of_buffers_is_cut_anywhere() {
        let buffers = [vec![1u8; 3], vec![2; 5], vec![3; 1]];
        let whole = || {
            let mut pieces = Pieces::default();
            buffers.iter().for_each(|buffer| pieces.push(Bytes::from(buffer.clone())));
            pieces
        };
        let flat = |pieces: &Pieces| pieces.buffers().map(|buffer| buffer.to_vec()).collect::<Vec<_>>().concat();
        for count in 0..=12 {
            let mut rest = whole();
            let first = rest.split_to(count);
            assert_eq!((first.remaining(), rest.remaining()), (count.min(9), 9 - count.min(9)));
            assert_eq!([flat(&first), flat(&rest)].concat(), buffers.concat(), "cut at {count}");
        }
    }

    proptest! {
        #[test]
        fn messages_are_what_prost_reads(header in 0usize..700, metadata in prop_oneof![Just(0), 0usize..40_000], body in prop_oneof![Just(0), 1usize..100_000]) {
            let (header, metadata, body) = (vec![7u8; header], vec![8u8; metadata], vec![9u8; body]);
            let mut wire = BytesMut::new();
            begin_message(&mut wire, &header, &metadata, body.len());
            let at = wire.len() - PREFIX;
            wire.extend_from_slice(&body);
            prop_assert_eq!(&wire[..PREFIX], &[&[0][..], &((wire.len() - PREFIX) as u32).to_be_bytes()].concat()[..]);
            let data = FlightData::decode(&wire[PREFIX..]).unwrap();
            prop_assert!(data.data_header.starts_with(&header) && data.data_header[header.len()..].iter().all(|&byte| byte == 0));
            prop_assert_eq!((data.app_metadata, data.data_body.len()), (metadata.into(), body.len()));
            prop_assert!(body.is_empty() || at % BODY_ALIGN == BODY_AT);
            prop_assert!(!body.is_empty() || data.data_header.len() == header.len());
        }
    }
}
