//! From stored bytes back to the chunk.

use std::ops::Range;

use super::layout::{Block, Layout, ROWS};
use super::{Float, Header, MAX_TABLES, Mode, brain, pairs, planes};
use crate::CodecError;
use crate::rans::{self, LANES, Table};

/// Rows whose symbols are decoded at a time: the table that takes lies in the first cache meanwhile, and pays for coming there.
const STRIP: usize = 16 * ROWS;

/// Decodes one chunk.
pub(super) struct Decoder<'a> {
    stage: Float,
    layout: Layout,
    header: Header,
    elements: usize,
    /// Of all blocks, then the tail.
    rests: &'a [u8],
    symbols: rans::Decoder<'a>,
    side: &'a [u8],
    tables: Vec<Table>,
    scratch: Scratch,
}

/// Where decoded bytes go.
pub(super) enum Target<'a> {
    /// To memory that the caller has: what is left of it.
    Given(&'a mut [u8]),
    /// Behind what there is, `left` bytes more. A block's part is taken when it is due, so that the zeros put there first are still in
    /// the cache when the block overwrites them.
    New { out: &'a mut Vec<u8>, left: usize },
}

impl Target<'_> {
    pub(super) fn left(&self) -> usize {
        match self {
            Target::Given(rest) => rest.len(),
            Target::New { left, .. } => *left,
        }
    }

    /// The next `bytes` bytes; `None` if fewer are left.
    pub(super) fn take(&mut self, bytes: usize) -> Option<&mut [u8]> {
        match self {
            Target::Given(rest) => rest.split_off_mut(..bytes),
            Target::New { out, left } => {
                *left = left.checked_sub(bytes)?;
                let start = out.len();
                out.resize(start + bytes, 0);
                Some(&mut out[start..])
            }
        }
    }
}

/// Memory for the symbols of a strip, and the exponents of eight rows.
#[derive(Default)]
struct Scratch {
    symbols: Vec<u8>,
    exponents: Vec<u8>,
}

/// What the side says of a block.
struct Record {
    mode: Mode,
    table: usize,
    /// Where they lie in the side, as they are stored.
    bases: Range<usize>,
}

impl<'a> Decoder<'a> {
    /// For `stored`, the first byte taken off, that decodes to `len` bytes.
    pub(super) fn new(stage: Float, layout: Layout, stored: &'a [u8], len: usize) -> Result<Decoder<'a>, CodecError> {
        let (header, body) = stored.split_first_chunk().ok_or_else(|| stage.corrupt("a header", "its beginning"))?;
        let header = Header::read(*header);
        if !header.cut.is_sound() {
            return Err(stage.corrupt("rows of 32 to 768, blocks of 8 rows or a multiple", format!("{:?}", header.cut)));
        }
        let too_long = || stage.corrupt("a part within the chunk", format!("{header:?} for {} bytes", body.len()));
        let (body, side) = body.split_at_checked(body.len().wrapping_sub(header.side)).ok_or_else(too_long)?;
        let (rests, symbols) = body.split_at_checked(body.len().wrapping_sub(header.symbols)).ok_or_else(too_long)?;
        // Not even one lane is used if there is nothing to decode.
        let symbols = rans::Decoder::new(symbols, if symbols.is_empty() { 0 } else { LANES })?;
        let (tables, scratch) = Default::default();
        Ok(Decoder { stage, layout, header, elements: len / layout.item, rests, symbols, side, tables, scratch })
    }

    /// All of it.
    pub(super) fn decode(self, out: &mut Target<'_>) -> Result<(), CodecError> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[allow(unsafe_code, reason = "calls the same code compiled for AVX2; measured: twice as fast and more")]
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.decode_avx2(out) };
        }
        self.decode_inlined(out)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn decode_avx2(self, out: &mut Target<'_>) -> Result<(), CodecError> {
        self.decode_inlined(out)
    }

    #[inline(always)]
    pub(super) fn decode_inlined(mut self, out: &mut Target<'_>) -> Result<(), CodecError> {
        self.read_tables()?;
        let all = self.side;
        let records = self.header.cut.blocks(self.elements).map(|block| self.read_record(all, block)).collect::<Result<Vec<_>, _>>()?;
        let mut bases = Vec::new();
        for (block, record) in self.header.cut.blocks(self.elements).zip(records) {
            let bytes = block.elements() * self.layout.item;
            let elements = out.take(bytes).ok_or_else(|| self.too_few("elements"))?;
            if record.mode == Mode::AsItIs {
                elements.copy_from_slice(self.take_rests(bytes)?);
                continue;
            }
            read_bases(record.mode, &all[record.bases], block.width, &mut bases);
            self.block(block, record.mode, record.table, &bases, elements)?;
        }
        let tail = self.take_rests(out.left())?;
        out.take(tail.len()).unwrap_or_default().copy_from_slice(tail);
        self.end()
    }

    #[inline(always)]
    fn block(&mut self, block: Block, mode: Mode, table: usize, bases: &[u8], elements: &mut [u8]) -> Result<(), CodecError> {
        let rests = self.take_rests(self.layout.rest_bytes(block.elements()))?;
        let plain = if self.stage == Float::Nibble { self.take_rests(block.elements() / 2)? } else { &[] };
        let mut strips = plain.chunks(STRIP * block.width / 2);
        let (stage, scratch) = (self.stage, &mut self.scratch);
        let mut coded = |out: &mut [u8]| {
            let table = self.tables.get(table).ok_or_else(|| stage.corrupt("a table that there is", table))?;
            self.symbols.run(table, out)
        };
        let eight = ROWS * block.width;
        scratch.symbols.resize(STRIP * block.width, 0);
        scratch.exponents.resize(eight, 0);
        for (row, elements) in (0..).step_by(STRIP).zip(elements.chunks_mut(STRIP * block.width * self.layout.item)) {
            let count = elements.len() / self.layout.item;
            let rows = (row..).step_by(ROWS).zip(elements.chunks_exact_mut(eight * self.layout.item));
            if mode == Mode::Exponents {
                let exponents = &mut scratch.symbols[..count];
                coded(exponents)?;
                for ((row, elements), exponents) in rows.zip(exponents.chunks_exact(eight)) {
                    planes::merge(self.layout, block, row, exponents, rests, elements);
                }
                continue;
            }
            let symbols = match strips.next() {
                Some(plain) => plain,
                None => {
                    let symbols = &mut scratch.symbols[..count / 2];
                    coded(symbols)?;
                    symbols
                }
            };
            if self.layout.is_brain() {
                let done = brain::unpair(symbols, bases, &rests[row * block.width..], &mut self.side, elements);
                done.ok_or_else(|| stage.corrupt("another escape", "the end"))?;
                continue;
            }
            for ((row, elements), symbols) in rows.zip(symbols.chunks_exact(eight / 2)) {
                let done = pairs::unpair(symbols, bases, &mut self.side, &mut scratch.exponents);
                done.ok_or_else(|| stage.corrupt("another escape", "the end"))?;
                planes::merge(self.layout, block, row, &scratch.exponents, rests, elements);
            }
        }
        Ok(())
    }

    fn read_tables(&mut self) -> Result<(), CodecError> {
        let count = *self.side.split_off_first().ok_or_else(|| self.too_few("tables"))?;
        if usize::from(count) > MAX_TABLES {
            return Err(self.stage.corrupt(format!("{MAX_TABLES} tables at most"), count));
        }
        self.tables = (0..count).map(|_| Table::read(&mut self.side)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The record at the front of the side, taken off it; `all` of the side behind the tables.
    fn read_record(&mut self, all: &[u8], block: Block) -> Result<Record, CodecError> {
        let mut next = || self.side.split_off_first().copied().ok_or_else(|| self.stage.corrupt("a record of each block", "fewer"));
        let mode = next()?;
        let known =
            Mode::ALL.into_iter().find(|known| *known as u8 == mode).filter(|mode| self.stage == Float::Rans || *mode != Mode::Exponents);
        let mode = known.ok_or_else(|| self.stage.corrupt("a mode of this stage", mode))?;
        let table = if mode == Mode::AsItIs || self.stage == Float::Nibble { 0 } else { usize::from(next()?) };
        let bases = match mode {
            Mode::AsItIs | Mode::Exponents => 0,
            Mode::OneBase => 1,
            Mode::NearBases => 1 + block.width.div_ceil(2),
            Mode::FarBases => block.width,
        };
        let start = all.len() - self.side.len();
        self.side.split_off(..bases).ok_or_else(|| self.too_few("bases"))?;
        Ok(Record { mode, table, bases: start..start + bases })
    }

    fn take_rests(&mut self, bytes: usize) -> Result<&'a [u8], CodecError> {
        self.rests.split_off(..bytes).ok_or_else(|| self.too_few("rests"))
    }

    /// Checks that all parts were used up.
    fn end(self) -> Result<(), CodecError> {
        let left = self.rests.len() + self.side.len();
        self.symbols.end()?;
        if left > 0 { Err(self.stage.corrupt("an end after the last block", format!("{left} bytes more"))) } else { Ok(()) }
    }

    fn too_few(&self, what: &str) -> CodecError {
        self.stage.corrupt(format!("more {what}"), "the end")
    }
}

/// One base a column.
fn read_bases(mode: Mode, stored: &[u8], width: usize, bases: &mut Vec<u8>) {
    bases.clear();
    match (mode, stored) {
        (Mode::OneBase, [base]) => bases.resize(width, *base),
        (Mode::NearBases, [most, below @ ..]) => {
            bases.extend(below.iter().flat_map(|pair| [most.wrapping_sub(pair & 15), most.wrapping_sub(pair >> 4)]));
            bases.truncate(width);
        }
        _ => bases.extend(stored),
    }
}
