//! Codecs of blocks, as Avro defines them.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use clap::ValueEnum;

use super::MAX_BLOCK;

/// Effort of zstd: its own default.
const ZSTD_LEVEL: i32 = 3;
/// Power of two of the largest window that a zstd frame may ask for: no block is larger.
const ZSTD_WINDOW: u32 = MAX_BLOCK.ilog2();

/// How the blocks of a file are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Codec {
    /// Not at all.
    Null,
    /// Raw deflate, which every reader of Avro knows.
    Deflate,
    /// One Zstandard frame a block.
    Zstandard,
}

impl Codec {
    /// The codec that a file's metadata names; none there means null.
    pub fn of_name(name: Option<&[u8]>) -> Result<Codec, String> {
        match name {
            None | Some(b"null") => Ok(Codec::Null),
            Some(b"deflate") => Ok(Codec::Deflate),
            Some(b"zstandard") => Ok(Codec::Zstandard),
            Some(other) => {
                let name: String = String::from_utf8_lossy(other).chars().take(40).collect();
                Err(format!("its codec is {name:?}; null, deflate and zstandard are read"))
            }
        }
    }

    /// The name in a file's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Null => "null",
            Codec::Deflate => "deflate",
            Codec::Zstandard => "zstandard",
        }
    }

    /// Compresses a block.
    pub fn encode(self, block: &[u8]) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Codec::Null => Ok(Cow::Borrowed(block)),
            Codec::Deflate => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(block)?;
                encoder.finish().map(Cow::Owned)
            }
            Codec::Zstandard => zstd::bulk::compress(block, ZSTD_LEVEL).map(Cow::Owned),
        }
    }

    /// Gives a block back; one that comes to more than [`MAX_BLOCK`] is refused before it does.
    pub fn decode(self, stored: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Codec::Null => Ok(stored),
            Codec::Deflate => bounded(flate2::read::DeflateDecoder::new(stored.as_slice())),
            Codec::Zstandard => {
                let mut decoder = zstd::Decoder::with_buffer(stored.as_slice())?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                bounded(decoder)
            }
        }
    }
}

fn bounded(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    decoder.take(MAX_BLOCK as u64 + 1).read_to_end(&mut block)?;
    if block.len() > MAX_BLOCK {
        return Err(io::Error::other(format!("a block that comes to more than {MAX_BLOCK} bytes")));
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_bombs_are_refused() {
        let block: Vec<u8> = (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        for codec in [Codec::Null, Codec::Deflate, Codec::Zstandard] {
            assert_eq!(Codec::of_name(Some(codec.name().as_bytes())), Ok(codec));
            let stored = codec.encode(&block).unwrap().into_owned();
            assert_eq!(codec.decode(stored.clone()).unwrap(), block);
            if codec != Codec::Null {
                assert!(stored.len() < block.len());
                assert!(codec.decode(stored[..stored.len() / 2].to_vec()).is_err());
                let whole = codec.encode(&vec![0; MAX_BLOCK]).unwrap().into_owned();
                assert_eq!(codec.decode(whole).unwrap().len(), MAX_BLOCK);
                let bomb = codec.encode(&vec![0; MAX_BLOCK + 1]).unwrap().into_owned();
                assert!(codec.decode(bomb).unwrap_err().to_string().contains("more than"));
            }
        }
        assert!(Codec::of_name(Some(b"snappy")).is_err());
    }
}
