//! From a chunk to its stored bytes.

use super::groups::{BIT, Counts, Groups, count, entropy};
use super::layout::{Block, Cut, Layout, NARROW, ROWS};
use super::{CODED, Float, Header, Mode, pairs, planes};
use crate::{Codec, CodecError, rans};

/// Elements of a sample that a cut is tried on.
const SAMPLE: usize = 6 << 10;

/// One escape in so many elements is no reason to look for another way.
const FEW: usize = 32;

/// Encodes one chunk.
pub(super) struct Encoder<'a> {
    stage: Float,
    layout: Layout,
    input: &'a [u8],
    /// First byte, header and rests; what else there is comes last.
    out: Vec<u8>,
    symbols: Vec<u8>,
    /// Records of the blocks.
    records: Vec<u8>,
    escapes: Vec<u8>,
    groups: Groups,
    /// Table and symbols of each coded block.
    runs: Vec<(usize, usize)>,
    /// Of the block at hand.
    exponents: Vec<u8>,
    bases: Vec<u8>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(stage: Float, layout: Layout, input: &'a [u8]) -> Encoder<'a> {
        let (out, symbols) = (Vec::with_capacity(input.len()), Vec::with_capacity(input.len() / layout.item / 2));
        let (records, escapes, runs, exponents, bases) = Default::default();
        Encoder { stage, layout, input, out, symbols, records, escapes, groups: Groups::default(), runs, exponents, bases }
    }

    /// The whole chunk; longer than the input where nothing was gained.
    pub(super) fn encode(self, shape: &[u64]) -> Result<Vec<u8>, CodecError> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code, reason = "calls the same code compiled for AVX2; measured: twice as fast and more")]
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.encode_avx2(shape) };
        }
        self.encode_inlined(shape)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn encode_avx2(self, shape: &[u64]) -> Result<Vec<u8>, CodecError> {
        self.encode_inlined(shape)
    }

    #[inline(always)]
    pub(super) fn encode_inlined(mut self, shape: &[u64]) -> Result<Vec<u8>, CodecError> {
        let elements = self.input.len() / self.layout.item;
        let cut = self.choose(shape, elements);
        self.out.resize(1 + Header::BYTES, CODED);
        let mut end = 0;
        for block in cut.blocks(elements) {
            self.block(block);
            end = (block.start + block.elements()) * self.layout.item;
        }
        self.out.extend(&self.input[end..]);
        self.finish(cut)
    }

    /// Puts symbols and side behind the rests.
    fn finish(self, cut: Cut) -> Result<Vec<u8>, CodecError> {
        let mut out = self.out;
        let start = out.len();
        let tables = self.groups.tables();
        rans::encode_to(&mut out, &self.symbols, self.runs, &tables)?;
        let symbols = out.len() - start;
        let start = out.len();
        out.push(tables.len() as u8);
        tables.iter().for_each(|table| table.write(&mut out));
        out.extend(&self.records);
        out.extend(&self.escapes);
        let header = Header { cut, symbols, side: out.len() - start };
        let header = header.write().ok_or_else(|| CodecError::encode(self.stage.name(), "4 GiB and more in a chunk"))?;
        out[1..=Header::BYTES].copy_from_slice(&header);
        // Room for all of the input was taken.
        out.shrink_to_fit();
        Ok(out)
    }

    /// The cut under which a sample from the middle of the chunk takes the fewest bits.
    #[inline(always)]
    fn choose(&mut self, shape: &[u64], elements: usize) -> Cut {
        let mut best = (u64::MAX, Cut::FLAT);
        for cut in Cut::candidates(shape) {
            let blocks = cut.blocks(elements).count();
            let Some(block) = cut.blocks(elements).nth(blocks / 2) else { continue };
            let sample = Block { rows: (SAMPLE / block.width / ROWS * ROWS).clamp(ROWS, block.rows), ..block };
            self.split(sample);
            self.pair(sample);
            let mut counts = [0; 256];
            count(&self.symbols, &mut counts);
            let bits = entropy(&counts) + self.escapes.len() as u64 * 8 * BIT;
            let bits = bits / sample.elements() as u64 + self.bases_bits() / block.elements() as u64;
            if bits < best.0 {
                best = (bits, cut);
            }
            self.out.clear();
            self.symbols.clear();
            self.escapes.clear();
        }
        best.1
    }

    /// Writes a block in the way that takes the fewest bits.
    #[inline(always)]
    fn block(&mut self, block: Block) {
        let (rests, symbols, escapes) = (self.out.len(), self.symbols.len(), self.escapes.len());
        self.split(block);
        // What is not coded any further stands behind its block's rests.
        let plain = self.stage == Float::Nibble;
        if plain {
            std::mem::swap(&mut self.out, &mut self.symbols);
        }
        let mut mode = self.pair(block);
        if plain {
            std::mem::swap(&mut self.out, &mut self.symbols);
        }
        let mut counts = [0; 256];
        let escaped = self.escapes.len() - escapes;
        let mut bits = escaped as u64 * 8 * BIT + self.bases_bits();
        if self.stage == Float::Rans {
            count(&self.symbols[symbols..], &mut counts);
            bits += entropy(&counts);
            if escaped > block.elements() / FEW {
                bits = self.by_exponents(symbols, escapes, bits, &mut mode, &mut counts);
            }
        } else {
            bits += block.elements() as u64 * 4 * BIT;
        }
        let exponent_bits = (self.layout.item - self.layout.low) as u64 * 8 - u64::from(self.layout.rest);
        if bits >= block.elements() as u64 * exponent_bits * BIT {
            mode = Mode::AsItIs;
            self.out.truncate(rests);
            self.symbols.truncate(symbols);
            self.escapes.truncate(escapes);
            self.out.extend(&self.input[block.bytes(self.layout)]);
        }
        self.record(mode, &counts, self.symbols.len() - symbols);
    }

    /// Puts exponents in the place of a block's pairs if that takes less than `bits`.
    #[inline(always)]
    fn by_exponents(&mut self, symbols: usize, escapes: usize, bits: u64, mode: &mut Mode, counts: &mut Counts) -> u64 {
        let mut single = [0; 256];
        count(&self.exponents, &mut single);
        let single_bits = entropy(&single);
        if single_bits >= bits {
            return bits;
        }
        self.symbols.truncate(symbols);
        self.symbols.extend(&self.exponents);
        self.escapes.truncate(escapes);
        (*mode, *counts) = (Mode::Exponents, single);
        single_bits
    }

    /// Appends the record of a block that has so many symbols.
    #[inline(always)]
    fn record(&mut self, mode: Mode, counts: &Counts, symbols: usize) {
        self.records.push(mode as u8);
        if mode != Mode::AsItIs && self.stage == Float::Rans {
            let table = self.groups.add(counts);
            self.records.push(table as u8);
            self.runs.push((table, symbols));
        }
        match mode {
            Mode::AsItIs | Mode::Exponents => {}
            Mode::OneBase => self.records.extend(self.bases.first()),
            Mode::NearBases => {
                let most = self.bases.iter().copied().max().unwrap_or(0);
                self.records.push(most);
                let below = |base: Option<&u8>| base.map_or(0, |base| most - base);
                self.records.extend(self.bases.chunks(2).map(|pair| below(pair.first()) | below(pair.get(1)) << 4));
            }
            Mode::FarBases => self.records.extend(&self.bases),
        }
    }

    /// Exponents of a block, and its rests appended.
    #[inline(always)]
    fn split(&mut self, block: Block) {
        self.exponents.resize(block.elements(), 0);
        planes::split(self.layout, block, &self.input[block.bytes(self.layout)], &mut self.exponents, &mut self.out);
    }

    /// Bases of a block, and its pairs and escapes appended.
    #[inline(always)]
    fn pair(&mut self, block: Block) -> Mode {
        pairs::bases(block, &self.exponents, &mut self.bases);
        let mode = if block.width == NARROW {
            pairs::one_base(&mut self.bases);
            Mode::OneBase
        } else if spread(&self.bases) < 16 {
            Mode::NearBases
        } else {
            Mode::FarBases
        };
        let behind = &self.input[block.bytes(self.layout).end..];
        let next = &behind[..behind.len().min(block.bytes(self.layout).len())];
        pairs::pair(block, &self.exponents, &self.bases, next, &mut self.symbols, &mut self.escapes);
        mode
    }

    /// What the bases of the block at hand take.
    fn bases_bits(&self) -> u64 {
        let bits = match self.bases.len() {
            NARROW => 8,
            width if spread(&self.bases) < 16 => 8 + 4 * width,
            width => 8 * width,
        };
        bits as u64 * BIT
    }
}

fn spread(bases: &[u8]) -> u8 {
    let least = bases.iter().copied().min().unwrap_or(0);
    bases.iter().copied().max().unwrap_or(0) - least
}
