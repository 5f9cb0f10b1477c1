//! The checksums of a slab, taken as its bytes come, while they are in the processor's cache.

use xxhash_rust::xxh3::Xxh3;

/// XXH3-64 of each block of a slab, by which memory is verified. Where the slab is one block, that is the checksum of a chunk stored as it is, too.
pub(crate) struct Digest {
    block: Box<Xxh3>,
    /// Bytes of a block.
    bytes: usize,
    /// Bytes of the block that have come.
    filled: usize,
    blocks: Vec<u64>,
}

impl Digest {
    /// Of a slab that is verified by blocks of `bytes`.
    pub fn new(bytes: usize) -> Digest {
        Digest { block: Box::default(), bytes: bytes.max(1), filled: 0, blocks: Vec::new() }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.bytes - self.filled));
            self.block.update(now);
            self.filled += now.len();
            if self.filled == self.bytes {
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

    /// The checksums of all blocks.
    pub fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.end_block();
        }
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn checksums_are_those_of_blocks_however_the_bytes_come() {
        const BLOCK: usize = 100_000;
        let bytes: Vec<u8> = (0..2 * BLOCK + 1000).map(|i| ((i * i) >> 5) as u8).collect();
        for len in [1, BLOCK - 1, BLOCK, BLOCK + 1, bytes.len()] {
            let slab = &bytes[..len];
            for (block, piece) in [(BLOCK, len), (BLOCK, 1000), (BLOCK, BLOCK - 7), (usize::MAX, 1000), (len, len)] {
                let mut digest = Digest::new(block);
                slab.chunks(piece).for_each(|piece| digest.update(piece));
                let blocks: Vec<u64> = slab.chunks(block.min(len)).map(xxh3_64).collect();
                assert_eq!(digest.finish(), blocks, "{len} bytes in pieces of {piece}, blocks of {block}");
            }
        }
    }
}
