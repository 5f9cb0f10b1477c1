//! Gzip: slow, but everything can read it.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use crate::{ChunkContext, Codec, CodecError};

#[derive(Debug)]
pub(crate) struct Gzip {
    pub(crate) level: u8,
}

impl Codec for Gzip {
    fn name(&self) -> &'static str {
        "gzip"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn encode(&self, input: &[u8], _: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let mut encoder = GzEncoder::new(Vec::with_capacity(input.len() / 2), Compression::new(self.level.into()));
        encoder.write_all(input).and_then(|()| encoder.finish()).map_err(|error| CodecError::encode("gzip", error))
    }

    fn decode(&self, input: &[u8], decoded_len: usize, _: ChunkContext<'_>) -> Result<Vec<u8>, CodecError> {
        let corrupt = |found: &dyn ToString| CodecError::corrupt("gzip", format!("one member of {decoded_len} bytes"), found.to_string());
        let mut decoder = GzDecoder::new(input);
        let mut output = vec![0; decoded_len];
        decoder.read_exact(&mut output).map_err(|error| corrupt(&error))?;
        // Reading past the end is also what checks the length and the CRC in the trailer.
        if decoder.read(&mut [0]).map_err(|error| corrupt(&error))? != 0 {
            return Err(corrupt(&"more"));
        }
        match decoder.into_inner() {
            [] => Ok(output),
            rest => Err(corrupt(&format!("{} bytes after it", rest.len()))),
        }
    }

    fn encoded_len(&self, _: usize) -> Option<usize> {
        None
    }
}
