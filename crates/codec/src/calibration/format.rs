//! The bytes of a calibration; `docs/format.md` has them in words.

use sha2::{Digest, Sha256};
use sira_tensor::kv::RopeStyle;

use super::shapes::{Shapes, fold, unfold};
use super::{Basis, Calibration, Heads, Kind, Model, RopeFacts, Unit, Weights, inverse};
use crate::CodecError;
use crate::calibration::basis::MAX_ENTRY;
use crate::rans::{self, Table};

/// What an artefact begins with: of the first version, and of the one that has bases of heads besides.
const MAGIC: [&[u8; 8]; 2] = [b"SIRACAL1", b"SIRACAL2"];

/// Rows of a basis that share a table.
const BLOCK: usize = 32;

/// Values of a unit's vectors, at most.
const MAX_WIDTH: usize = 1 << 17;

/// Values of a head, at most.
const MAX_DIM: u32 = 1024;

/// Units, at most.
const MAX_UNITS: usize = 4096;

/// Bytes of a name, at most.
const MAX_NAME: usize = 1024;

/// Entries of bases that a byte of the artefact may stand for: an honest one has two or three, and memory is taken for them.
const ENTRIES_A_BYTE: usize = 16;

/// Entries of bases whose memory an entry of a head's basis takes, with what is calculated from it on the way.
const HEAD_ENTRY: usize = 32;

/// What a calibration is made of.
#[cfg(any(feature = "calibrate", test))]
pub(super) struct Content {
    pub model: Model,
    pub tokens: u64,
    pub moments: Option<[u8; 32]>,
    pub shapes: Shapes,
    pub units: Vec<Unit>,
}

impl Calibration {
    /// The calibration of this content.
    #[cfg(any(feature = "calibrate", test))]
    pub(super) fn of(content: Content) -> Result<Calibration, CodecError> {
        let Content { model, tokens, moments, shapes, units } = content;
        let mut calibration = Calibration { model, tokens, moments, shapes, units, hash: String::new() };
        calibration.hash = hash(&calibration.to_bytes()?);
        Ok(calibration)
    }

    /// The artefact.
    ///
    /// # Errors
    /// It is larger than [`Calibration::MAX_LEN`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let with_heads = self.units.iter().all(|unit| unit.heads.is_some());
        let mut out = MAGIC[usize::from(with_heads)].to_vec();
        write_model(&self.model, &mut out);
        out.extend(self.tokens.to_le_bytes());
        out.push(u8::from(self.moments.is_some()));
        out.extend(self.moments.iter().flatten());
        self.shapes.write(&mut out);
        out.extend((self.units.len() as u16).to_le_bytes());
        for unit in &self.units {
            write_unit(unit, self.model.dim as usize, &mut out)?;
            let rows = unit.heads.as_ref().filter(|_| with_heads).map_or(&[][..], Heads::rows);
            rows.chunks_exact((self.model.dim as usize).pow(2)).try_for_each(|head| write_block(head, &mut out))?;
        }
        if out.len() > Calibration::MAX_LEN {
            return Err(CodecError::encode("calibration", format!("{} bytes; at most {} are read", out.len(), Calibration::MAX_LEN)));
        }
        Ok(out)
    }

    /// Reads an artefact.
    ///
    /// Takes no more memory than thirty-two times its length and a little.
    ///
    /// # Errors
    /// `bytes` are not what [`Calibration::to_bytes`] writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Calibration, CodecError> {
        if bytes.len() > Calibration::MAX_LEN {
            return Err(corrupt(format!("at most {} bytes", Calibration::MAX_LEN), bytes.len()));
        }
        let mut input = Input { bytes, budget: bytes.len() * ENTRIES_A_BYTE };
        let magic = input.array::<8>()?;
        let version = MAGIC.iter().position(|known| **known == magic).ok_or_else(|| corrupt("SIRACAL1 or SIRACAL2", "other bytes"))?;
        let model = read_model(&mut input)?;
        let tokens = u64::from_le_bytes(input.array()?);
        let moments = if input.flag()? { Some(input.array()?) } else { None };
        let shapes = Shapes::read(&mut input.bytes)?;
        let count = usize::from(u16::from_le_bytes(input.array()?));
        if count > MAX_UNITS {
            return Err(corrupt(format!("at most {MAX_UNITS} units"), count));
        }
        let units = (0..count).map(|_| read_unit(&mut input, &model, version > 0)).collect::<Result<Vec<_>, _>>()?;
        if !input.bytes.is_empty() {
            return Err(corrupt("the end", format!("{} more bytes", input.bytes.len())));
        }
        complete(&units, &model)?;
        Ok(Calibration { model, tokens, moments, shapes, units, hash: hash(bytes) })
    }
}

/// Each layer's keys and values are in one unit; units are in order.
fn complete(units: &[Unit], model: &Model) -> Result<(), CodecError> {
    let mut next = [0, 0];
    for unit in units {
        let next = &mut next[unit.kind as usize];
        if unit.layers.start != *next {
            return Err(corrupt(format!("a unit from layer {next}"), format!("one from {}", unit.layers.start)));
        }
        *next = unit.layers.end;
    }
    if next != [model.layers; 2] || !units.is_sorted_by_key(|unit| (unit.kind, unit.layers.start)) {
        return Err(corrupt(format!("units of {} layers of keys, then of values", model.layers), format!("{next:?}")));
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn corrupt(expected: impl Into<String>, found: impl ToString) -> CodecError {
    CodecError::corrupt("calibration", expected, found)
}

/// What has not been read yet, and how many entries may still be taken memory for.
struct Input<'a> {
    bytes: &'a [u8],
    budget: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        self.bytes.split_off(..len).ok_or_else(|| corrupt(format!("{len} more bytes"), self.bytes.len()))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or_else(|| corrupt(format!("{N} more bytes"), self.bytes.len()))?;
        self.bytes = rest;
        Ok(*head)
    }

    fn flag(&mut self) -> Result<bool, CodecError> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(corrupt("0 or 1", other)),
        }
    }

    fn number(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > MAX_NAME {
            return Err(corrupt(format!("a name of at most {MAX_NAME} bytes"), len));
        }
        let text = std::str::from_utf8(self.take(len)?).map_err(|error| corrupt("UTF-8", error))?;
        Ok(text.to_owned())
    }

    /// Finite `f32`s.
    fn floats(&mut self, count: usize) -> Result<Vec<f32>, CodecError> {
        let bytes = self.take(count.saturating_mul(4))?;
        let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match floats.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(corrupt("finite numbers", value)),
            None => Ok(floats),
        }
    }

    /// As many bytes as a number before them says.
    fn counted(&mut self) -> Result<&'a [u8], CodecError> {
        let len = self.number()? as usize;
        self.take(len)
    }
}

fn write_model(model: &Model, out: &mut Vec<u8>) {
    for text in [&model.name, &model.revision] {
        let text = &text[..text.floor_char_boundary(MAX_NAME)];
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.bytes());
    }
    out.extend([model.layers, model.heads, model.dim].map(u32::to_le_bytes).concat());
    let style = match model.rope.map(|rope| rope.style) {
        None => 0,
        Some(RopeStyle::Half) => 1,
        Some(RopeStyle::Interleaved) => 2,
    };
    out.push(style);
    if let Some(rope) = model.rope {
        out.extend(rope.theta.to_le_bytes());
        out.extend(rope.dim.to_le_bytes());
    }
}

fn read_model(input: &mut Input<'_>) -> Result<Model, CodecError> {
    let (name, revision) = (input.text()?, input.text()?);
    let [layers, heads, dim] = [input.number()?, input.number()?, input.number()?];
    if dim == 0 || dim > MAX_DIM || layers == 0 || heads == 0 {
        return Err(corrupt(format!("layers, heads and 1 to {MAX_DIM} values a head"), format!("{layers}, {heads}, {dim}")));
    }
    let style = match input.array::<1>()? {
        [0] => None,
        [1] => Some(RopeStyle::Half),
        [2] => Some(RopeStyle::Interleaved),
        [other] => return Err(corrupt("a style of rotary embedding of 0 to 2", other)),
    };
    let rope = match style {
        None => None,
        Some(style) => {
            let theta = f64::from_le_bytes(input.array()?);
            let rotated = input.number()?;
            if !(theta.is_finite() && theta > 0.0) || rotated % 2 == 1 || !(2..=dim).contains(&rotated) {
                return Err(corrupt(format!("a rotary embedding of {dim} values"), format!("theta {theta}, {rotated} values")));
            }
            Some(RopeFacts { theta, dim: rotated, style })
        }
    };
    Ok(Model { name, revision, layers, heads, dim, rope })
}

fn write_unit(unit: &Unit, dim: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    out.push(unit.kind as u8);
    out.extend([unit.layers.start, unit.layers.end].map(u32::to_le_bytes).concat());
    out.extend(unit.mean.iter().flat_map(|value| value.to_le_bytes()));
    out.push(u8::from(unit.weights.is_some()));
    let matrices = unit.weights.iter().flat_map(|weights| weights.inverse.chunks_exact(dim * dim));
    for matrix in matrices {
        // Symmetric: each row up to the diagonal.
        out.extend(matrix.chunks_exact(dim).enumerate().flat_map(|(i, row)| &row[..=i]).flat_map(|value| value.to_le_bytes()));
    }
    write_basis(&unit.basis, out)
}

fn read_unit(input: &mut Input<'_>, model: &Model, with_heads: bool) -> Result<Unit, CodecError> {
    let kind = match input.array::<1>()? {
        [0] => Kind::Key,
        [1] => Kind::Value,
        [other] => return Err(corrupt("keys (0) or values (1)", other)),
    };
    let layers = input.number()?..input.number()?;
    if layers.is_empty() || layers.end > model.layers {
        return Err(corrupt(format!("some of {} layers", model.layers), format!("{layers:?}")));
    }
    let heads = u64::from(layers.end - layers.start) * u64::from(model.heads);
    let width = heads.saturating_mul(u64::from(model.dim));
    if width > MAX_WIDTH as u64 {
        return Err(corrupt(format!("vectors of at most {MAX_WIDTH} values"), format!("{heads} heads of {}", model.dim)));
    }
    let (heads, width, dim) = (heads as usize, width as usize, model.dim as usize);
    let mean = input.floats(width)?;
    let weights = if input.flag()? { Some(read_weights(input, heads, dim)?) } else { None };
    let basis = read_basis(input, width)?;
    let heads = if with_heads { Some(read_heads(input, heads, dim, weights.as_ref())?) } else { None };
    Ok(Unit { kind, layers, mean, weights, basis, heads })
}

fn read_heads(input: &mut Input<'_>, heads: usize, dim: usize, weights: Option<&Weights>) -> Result<Heads, CodecError> {
    let mut rows = Vec::new();
    for _ in 0..heads {
        let left = input.budget.checked_sub(HEAD_ENTRY * dim * dim);
        input.budget = left.ok_or_else(|| corrupt("bases of heads that their bytes can hold", format!("{heads} heads of {dim} values")))?;
        rows.extend(read_block(input, dim * dim)?);
    }
    Heads::new(rows, weights, dim).ok_or_else(|| corrupt("different directions in a head's basis", "others"))
}

fn read_weights(input: &mut Input<'_>, heads: usize, dim: usize) -> Result<Weights, CodecError> {
    let packed = input.floats(heads * (dim * (dim + 1) / 2))?;
    let mut weights = Weights { forward: Vec::new(), inverse: Vec::with_capacity(heads * dim * dim) };
    for packed in packed.chunks_exact(dim * (dim + 1) / 2) {
        let entry = |row: usize, column: usize| packed[row.max(column) * (row.max(column) + 1) / 2 + row.min(column)];
        let matrix: Vec<f32> = (0..dim * dim).map(|at| entry(at / dim, at % dim)).collect();
        let forward = inverse(&matrix, dim).ok_or_else(|| corrupt("positive definite weights", "others"))?;
        weights.forward.extend(forward);
        weights.inverse.extend(matrix);
    }
    Ok(weights)
}

fn write_basis(basis: &Basis, out: &mut Vec<u8>) -> Result<(), CodecError> {
    out.extend((basis.rank() as u32).to_le_bytes());
    out.extend(basis.levels().iter().flat_map(|level| level.to_le_bytes()));
    for first in (0..basis.rank()).step_by(BLOCK) {
        let rows = (first..basis.rank().min(first + BLOCK)).map(|i| basis.row(i));
        let entries: Vec<i16> = rows.flatten().copied().collect();
        write_block(&entries, out)?;
    }
    Ok(())
}

fn write_block(entries: &[i16], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let most = entries.iter().map(|entry| i32::from(entry.unsigned_abs())).max().unwrap_or(0);
    let shift = (0..4).find(|shift| most >> shift < 127).unwrap_or(4);
    let symbols: Vec<u8> = entries.iter().map(|&entry| fold(i32::from(entry) >> shift).unwrap_or_default()).collect();
    let mut counts = [0; 256];
    symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
    let table = Table::from_counts(&counts);
    out.push(shift);
    table.write(out);
    let mut put = |symbols: &[u8], table: Table| {
        let coded = rans::encode(symbols, [(0, symbols.len())], &[table])?;
        out.extend((coded.len() as u32).to_le_bytes());
        out.extend(coded);
        Ok::<_, CodecError>(())
    };
    put(&symbols, table)?;
    if shift > 0 {
        let low: Vec<u8> = entries.iter().map(|&entry| (entry & ((1 << shift) - 1)) as u8).collect();
        put(&low, flat(shift))?;
    }
    Ok(())
}

/// The table of numbers of `bits` bits that are all as likely.
pub(crate) fn flat(bits: u8) -> Table {
    Table::from_counts(&vec![1; 1 << bits])
}

fn read_basis(input: &mut Input<'_>, width: usize) -> Result<Basis, CodecError> {
    let rank = input.number()? as usize;
    let mut basis = Basis::new(width);
    let entries = rank.saturating_mul(basis.stride());
    if rank > width || entries > input.budget {
        return Err(corrupt(format!("at most {} rows of {width} values", (input.budget / basis.stride()).min(width)), rank));
    }
    input.budget -= entries;
    let levels: Vec<i16> = input.take(rank * 2)?.as_chunks().0.iter().map(|bytes| i16::from_le_bytes(*bytes)).collect();
    basis.reserve(rank)?;
    for levels in levels.chunks(BLOCK) {
        let block = read_block(input, levels.len() * width)?;
        for (row, &level) in block.chunks_exact(width).zip(levels) {
            if row.iter().all(|entry| *entry == 0) || row.iter().any(|entry| entry.unsigned_abs() > MAX_ENTRY.unsigned_abs()) {
                return Err(corrupt(format!("a row of entries up to {MAX_ENTRY}, not all zero"), "another"));
            }
            basis.push(row, level);
        }
    }
    Ok(basis)
}

fn read_block(input: &mut Input<'_>, len: usize) -> Result<Vec<i16>, CodecError> {
    let [shift] = input.array()?;
    if shift > 4 {
        return Err(corrupt("at most 4 low bits", shift));
    }
    let table = Table::read(&mut input.bytes)?;
    let mut symbols = vec![0; len];
    rans::decode(input.counted()?, [(0, len)], &[table], &mut symbols)?;
    let mut entries: Vec<i16> = symbols.iter().map(|&symbol| (unfold(symbol) << shift) as i16).collect();
    if shift > 0 {
        rans::decode(input.counted()?, [(0, len)], &[flat(shift)], &mut symbols)?;
        entries.iter_mut().zip(&symbols).for_each(|(entry, &low)| *entry |= i16::from(low));
    }
    Ok(entries)
}
