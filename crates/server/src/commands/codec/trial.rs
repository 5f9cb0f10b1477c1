//! One chain over one tensor, chunk by chunk on one core, timed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sira_codec::{Calibration, Chain, ChunkContext, CodecError, Encoded, KvFacts, Quality, TensorContext};
use sira_tensor::TensorSpec;
use sira_tensor::grid::{Grid, Region};

/// What is tried: a tensor, all of it in memory.
pub(super) struct Subject<'a> {
    pub spec: &'a TensorSpec,
    pub facts: Option<&'a KvFacts>,
    pub calibration: Option<&'a Calibration>,
    pub bytes: &'a [u8],
}

/// What a chain made of it.
pub(super) struct Trial {
    pub chain: Chain,
    pub spec: TensorSpec,
    /// Bytes of all chunks as they would be stored.
    pub stored: u64,
    /// Raw bytes a second, of one core.
    pub encode: f64,
    pub decode: f64,
    pub exact: bool,
    pub quality: Quality,
    /// What came back, row-major.
    pub decoded: Vec<u8>,
}

/// A chunk: its box, and its bytes, row-major.
struct Cell {
    region: Region,
    origin: Vec<u64>,
    shape: Vec<u64>,
    raw: Vec<u8>,
}

impl Subject<'_> {
    /// Encodes and decodes every chunk, over and over for about `seconds` each; times are medians over the rounds.
    pub fn run(&self, chain: &Chain, seconds: f64) -> Result<Trial, CodecError> {
        let corrupt = |error: sira_tensor::TensorError| CodecError::corrupt("grid", "chunks that divide the tensor", error);
        let grid = Grid::new(self.spec, &chain.chunk_shape(self.spec)).map_err(corrupt)?;
        let cells = self.cut(&grid);
        let (encode, encoded) = timed(seconds, || cells.iter().map(|cell| chain.encode(&cell.raw, self.context(cell))).collect())?;
        let decode_all = || {
            let pairs = cells.iter().zip(&encoded);
            pairs
                .map(|(cell, encoded)| match encoded {
                    Encoded::Raw => Ok(cell.raw.clone()),
                    Encoded::Bytes(stored) => chain.decode(stored, cell.raw.len(), self.context(cell)),
                })
                .collect()
        };
        let (decode, decoded) = timed(seconds, decode_all)?;
        let mut quality = Quality::default();
        let whole: Region = grid.shape().iter().map(|&extent| 0..extent).collect();
        let mut target = vec![0; self.bytes.len()];
        for (cell, decoded) in cells.iter().zip(&decoded) {
            quality.add(&cell.raw, decoded, self.context(cell));
            grid.copy(&cell.region, decoded, &cell.region, &mut target, &whole);
        }
        let stored = cells.iter().zip(&encoded).map(|(cell, encoded)| match encoded {
            Encoded::Raw => cell.raw.len() as u64,
            Encoded::Bytes(bytes) => bytes.len() as u64,
        });
        let speed = |time: Duration| self.bytes.len() as f64 / time.as_secs_f64().max(1e-9);
        Ok(Trial {
            chain: chain.clone(),
            spec: self.spec.clone(),
            stored: stored.sum(),
            encode: speed(encode),
            decode: speed(decode),
            exact: target == self.bytes,
            quality,
            decoded: target,
        })
    }

    fn cut(&self, grid: &Grid) -> Vec<Cell> {
        let whole: Region = grid.shape().iter().map(|&extent| 0..extent).collect();
        let cell = |index| {
            let region = grid.cell(index);
            let mut raw = vec![0; grid.region_bytes(&region) as usize];
            grid.copy(&region, self.bytes, &whole, &mut raw, &region);
            let (origin, shape) = region.iter().map(|range| (range.start, range.end - range.start)).unzip();
            Cell { region, origin, shape, raw }
        };
        (0..grid.cells()).map(cell).collect()
    }

    fn context<'a>(&'a self, cell: &'a Cell) -> ChunkContext<'a> {
        let tensor = TensorContext { shape: self.spec.shape(), axes: self.spec.axes(), kv: self.facts, calibration: self.calibration };
        ChunkContext { tensor, ..ChunkContext::new(self.spec.dtype(), &cell.shape, &cell.origin) }
    }
}

/// Rounds of `work` until `seconds` are over, three at least after one that does not count: their median time, and what the last one gave. What a
/// round gave is freed before the next begins, so that the allocator has warm memory for it. No seconds: one round, which counts.
fn timed<T>(seconds: f64, mut work: impl FnMut() -> Result<Vec<T>, CodecError>) -> Result<(Duration, Vec<T>), CodecError> {
    let begin = Instant::now();
    let mut last = work()?;
    if seconds <= 0.0 {
        return Ok((begin.elapsed(), last));
    }
    let mut times = Vec::new();
    while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
        drop(std::mem::take(&mut last));
        let round = Instant::now();
        last = work()?;
        times.push(round.elapsed());
    }
    times.sort_unstable();
    Ok((times[times.len() / 2], last))
}

impl Trial {
    /// How many times smaller.
    pub fn ratio(&self) -> f64 {
        if self.stored == 0 { 1.0 } else { self.spec.nbytes() as f64 / self.stored as f64 }
    }

    /// Stored bits of an element.
    pub fn bits(&self) -> f64 {
        f64::from(self.spec.dtype().bits()) / self.ratio()
    }

    /// Bits a second of a link below which reading encoded chunks takes less time than reading raw ones, when `cores` decode: over the
    /// link and then through the decoder, one after the other, which is the worst case (docs/codecs.md).
    pub fn pays_below(&self, speed: f64, cores: usize) -> f64 {
        8.0 * cores as f64 * speed * (1.0 - 1.0 / self.ratio()).max(0.0)
    }

    pub fn json(&self, cores: usize) -> Value {
        json!({
            "codec": self.chain.as_str(), "lossless": self.chain.lossless(), "raw_bytes": self.spec.nbytes(), "stored_bytes": self.stored,
            "ratio": self.ratio(), "bits_per_value": self.bits(), "encode_gb_s": self.encode / 1e9, "decode_gb_s": self.decode / 1e9,
            "exact": self.exact, "error": self.quality.all(), "error_k": self.quality.keys(), "error_v": self.quality.values(),
            "calibration": self.chain.calibration(), "cores": cores, "put_pays_below_gbit_s": self.pays_below(self.encode, cores) / 1e9,
            "get_pays_below_gbit_s": self.pays_below(self.decode, cores) / 1e9,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sira_tensor::DType;

    #[test]
    fn every_chunk_comes_back_to_its_place() {
        let axes = ["layer", "kv", "token", "head", "dim"].map(String::from).to_vec();
        let spec = TensorSpec::new(DType::BFloat16, vec![3, 2, 600, 2, 8]).unwrap().with_axes(axes).unwrap();
        let bytes: Vec<u8> = (0..spec.nbytes()).map(|i| (i / 5 % 256) as u8).collect();
        let subject = Subject { spec: &spec, facts: None, calibration: None, bytes: &bytes };
        let trial = subject.run(&"planes+zstd".parse().unwrap(), 0.0).unwrap();
        assert!(trial.exact && trial.decoded == bytes && trial.ratio() > 1.5, "{}", trial.ratio());
        assert_eq!((trial.quality.keys(), trial.quality.values()), (Some(0.0), Some(0.0)));
        assert!((trial.bits() - 16.0 / trial.ratio()).abs() < 1e-9);
        let raw = subject.run(&Chain::none(), 0.0).unwrap();
        assert_eq!((raw.stored, raw.ratio(), raw.pays_below(1e9, 2)), (spec.nbytes(), 1.0, 0.0));
    }
}
