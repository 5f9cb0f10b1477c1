//! The checksums of a slab, taken as its bytes come, while they are in the processor's cache.

use xxhash_rust::xxh3::Xxh3;

use crate::hot::BLOCK;

/// XXH3-64 of each [`BLOCK`] of a slab, by which memory is verified, and of all of it, which is that of a chunk stored as it is.
pub(crate) struct Digest {
    block: Box<Xxh3>,
    /// Bytes of the block that have come.
    filled: usize,
    blocks: Vec<u64>,
    /// Of a slab of one block, this is the block's.
    whole: Option<Box<Xxh3>>,
}

impl Digest {
    /// Of a slab of `bytes`; `as_one`: whether the checksum of all of it is wanted.
    pub fn new(bytes: u64, as_one: bool) -> Digest {
        Digest { block: Box::default(), filled: 0, blocks: Vec::new(), whole: (as_one && bytes > BLOCK as u64).then(Box::default) }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.block.update(now);
            if let Some(whole) = &mut self.whole {
                whole.update(now);
            }
            self.filled += now.len();
            if self.filled == BLOCK {
                self.end_block();
            }
            bytes = later;
        }
    }

    fn end_block(&mut self) {
        self.blocks.push(self.block.digest());
        self.block.reset();
        self.filled = 0;
    }

    /// The checksums of all blocks, and that of the slab where it is known.
    pub fn finish(mut self) -> (Vec<u64>, Option<u64>) {
        if self.filled > 0 {
            self.end_block();
        }
        let whole = match (&self.whole, &self.blocks[..]) {
            (Some(whole), _) => Some(whole.digest()),
            (None, &[block]) => Some(block),
            _ => None,
        };
        (self.blocks, whole)
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn checksums_are_those_of_blocks_and_of_all_however_the_bytes_come() {
        let bytes: Vec<u8> = (0..2 * BLOCK + 1000).map(|i| ((i * i) >> 5) as u8).collect();
        for len in [1, BLOCK - 1, BLOCK, BLOCK + 1, bytes.len()] {
            let slab = &bytes[..len];
            let blocks: Vec<u64> = slab.chunks(BLOCK).map(xxh3_64).collect();
            for piece in [len, 1000, BLOCK - 7] {
                for as_one in [true, false] {
                    let mut digest = Digest::new(len as u64, as_one);
                    slab.chunks(piece).for_each(|piece| digest.update(piece));
                    let whole = (as_one || len <= BLOCK).then(|| xxh3_64(slab));
                    assert_eq!(digest.finish(), (blocks.clone(), whole), "{len} bytes in pieces of {piece}");
                }
            }
        }
    }
}
