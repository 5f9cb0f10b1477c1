//! An ordered list of buffers, passed on without copying.

use bytes::{Bytes, BytesMut};

/// A value as an ordered list of [`Bytes`]: cloned by reference count, flattened only where a library insists.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pieces: Vec<Bytes>,
    len: u64,
}

impl Payload {
    /// Appends a piece; an empty one is dropped.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len() as u64;
            self.pieces.push(piece);
        }
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The bytes in one buffer: free for one piece, a copy for several.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop().unwrap_or_default();
        }
        let mut flat = BytesMut::with_capacity(self.pieces.iter().map(Bytes::len).sum());
        for piece in &self.pieces {
            flat.extend_from_slice(piece);
        }
        flat.freeze()
    }
}

impl From<Bytes> for Payload {
    fn from(piece: Bytes) -> Payload {
        Payload::from_iter([piece])
    }
}

impl From<Vec<u8>> for Payload {
    fn from(piece: Vec<u8>) -> Payload {
        Payload::from(Bytes::from(piece))
    }
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Payload {
        let mut payload = Payload::default();
        for piece in pieces {
            payload.push(piece);
        }
        payload
    }
}
