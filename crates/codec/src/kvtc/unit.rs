//! A unit of a calibration over the tokens of a chunk: from vectors to bytes and back.

use super::classes::{self, Costs};
use crate::CodecError;
use crate::calibration::shapes::{Class, ESCAPE, Shapes, fold, unfold};
use crate::calibration::{Unit, flat};
use crate::linear::{self, Vectors};
use crate::rans::{self, Table};

/// How often the coefficients are corrected by what they leave: the rows of a basis are not quite at right angles. After two, what is left is
/// hardly more than what no coefficients can reach.
const CORRECTIONS: usize = 2;

/// The largest product of a factor and an entry, summed over all rows, that a sum can hold.
const MOST_SUM: f32 = (1 << 30) as f32;

/// Coefficients are less than this many steps.
const MOST_STEPS: f32 = (1 << 30) as f32;

/// What all units of a chunk have in common.
#[derive(Clone, Copy)]
pub(super) struct Scale<'a> {
    pub shapes: &'a Shapes,
    /// In weighted units.
    pub step: f32,
    /// The step in quarters of an octave, to the nearest.
    pub level: i16,
}

/// Appends what is stored of `vectors`, `[token][layer][head][dim]`, which are finite; false if they are too large for the step.
pub(super) fn encode(
    unit: &Unit,
    dim: usize,
    scale: Scale<'_>,
    costs: &Costs,
    mut vectors: Vec<f32>,
    out: &mut Vec<u8>,
) -> Result<bool, CodecError> {
    let width = unit.basis.width();
    let tokens = vectors.len() / width;
    for vector in vectors.chunks_exact_mut(width) {
        vector.iter_mut().zip(&unit.mean).for_each(|(value, mean)| *value -= mean);
    }
    if let Some(weights) = &unit.weights {
        vectors = multiply(&weights.forward, dim, &vectors, width);
    }
    let coefficients = project(unit, &vectors, tokens);
    if !coefficients.iter().all(|coefficient| coefficient.abs() < scale.step * MOST_STEPS) {
        return Ok(false);
    }
    let rank = unit.basis.rank();
    let mut coded = Coded::default();
    let mut column = vec![0.0; tokens];
    let mut predicted = classes::Prediction::new(scale.level);
    for (i, &level) in unit.basis.levels().iter().enumerate() {
        for (value, coefficients) in column.iter_mut().zip(coefficients.chunks_exact(rank)) {
            *value = coefficients[i] / scale.step;
        }
        let class = costs.class(&column);
        coded.classes.push(predicted.differ(level, class));
        if class > 0 {
            coded.push(Class::of(class), &column, scale, costs);
        }
    }
    coded.write(&scale.shapes.tables, out)?;
    Ok(true)
}

/// Appends the vectors to `vectors` that [`encode`] was given, as far as they were kept; and moves `input` behind what it wrote.
pub(super) fn decode(unit: &Unit, dim: usize, scale: Scale<'_>, input: &mut &[u8], tokens: usize) -> Result<Vec<f32>, CodecError> {
    let (basis, rank) = (&unit.basis, unit.basis.rank());
    let coded = Coded::read(input, basis.levels(), scale, tokens)?;
    let lengths = basis.lengths();
    // Transposed: a token's factors side by side.
    let mut factors = vec![0.0; tokens * rank];
    coded.for_each(tokens, scale, |i, token, value| factors[token * rank + i] = value * scale.step / lengths[i].0)?;
    let (whole, units) = to_whole(&factors, &lengths, tokens);
    drop(factors);
    let mut sums = vec![0; tokens * basis.stride()];
    basis.inverse(&whole, &mut sums);
    let mut vectors = Vec::with_capacity(tokens * basis.width());
    for (sums, unit) in sums.chunks_exact(basis.stride()).zip(&units) {
        vectors.extend(sums[..basis.width()].iter().map(|&sum| sum as f32 * unit));
    }
    if let Some(weights) = &unit.weights {
        vectors = multiply(&weights.inverse, dim, &vectors, basis.width());
    }
    for vector in vectors.chunks_exact_mut(basis.width()) {
        vector.iter_mut().zip(&unit.mean).for_each(|(value, mean)| *value += mean);
    }
    Ok(vectors)
}

/// Each head of each vector, times its matrix, which is symmetric.
fn multiply(matrices: &[f32], dim: usize, vectors: &[f32], width: usize) -> Vec<f32> {
    let (mut out, zeros) = (vec![0.0; vectors.len()], vec![0.0; dim]);
    let count = vectors.len() / width.max(1);
    if count > 0 {
        for (at, matrix) in (0..).step_by(dim).zip(matrices.chunks_exact(dim * dim)) {
            let numbers = Vectors { numbers: &vectors[at..], vector: width, number: 1 };
            linear::multiply(numbers, count, matrix, &zeros, &mut out[at..], width);
        }
    }
    out
}

/// The coefficients, `rank` a token, whose rows add up to nearly `vectors`.
fn project(unit: &Unit, vectors: &[f32], tokens: usize) -> Vec<f32> {
    let (basis, rank, width) = (&unit.basis, unit.basis.rank(), unit.basis.width());
    let lengths = basis.lengths();
    let longest = lengths.iter().map(|(length, _)| *length).fold(0.0, f32::max);
    let mut products = vec![0; tokens * rank];
    let mut coefficients = vec![0.0; tokens * rank];
    let mut left = vectors.to_vec();
    for pass in 0..=CORRECTIONS {
        let mut whole = vec![0i16; tokens * basis.stride()];
        let mut units = vec![0.0; tokens];
        for ((vector, whole), unit) in left.chunks_exact(width).zip(whole.chunks_exact_mut(basis.stride())).zip(&mut units) {
            let most = vector.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
            let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            // By Cauchy and Schwarz no product is beyond MOST_SUM.
            *unit = (most / 32767.0).max(length * longest / MOST_SUM).max(f32::MIN_POSITIVE);
            whole.iter_mut().zip(vector).for_each(|(whole, value)| *whole = (value / *unit).round() as i16);
        }
        basis.forward(&whole, &mut products);
        for ((products, coefficients), unit) in products.chunks_exact(rank).zip(coefficients.chunks_exact_mut(rank)).zip(&units) {
            for ((product, coefficient), (length, _)) in products.iter().zip(coefficients).zip(&lengths) {
                *coefficient += *product as f32 * unit / length;
            }
        }
        if pass < CORRECTIONS {
            subtract(unit, vectors, &mut coefficients, &lengths, &mut left);
        }
    }
    coefficients
}

/// What `coefficients` leave of `vectors`, exactly: they are rounded to what whole numbers hold.
fn subtract(unit: &Unit, vectors: &[f32], coefficients: &mut [f32], lengths: &[(f32, f32)], left: &mut [f32]) {
    let (basis, rank, width) = (&unit.basis, unit.basis.rank(), unit.basis.width());
    let tokens = vectors.len() / width;
    for coefficients in coefficients.chunks_exact_mut(rank) {
        coefficients.iter_mut().zip(lengths).for_each(|(coefficient, (length, _))| *coefficient /= length);
    }
    let (whole, units) = to_whole(coefficients, lengths, tokens);
    for ((coefficients, whole), unit) in coefficients.chunks_exact_mut(rank).zip(whole.chunks_exact(rank)).zip(&units) {
        for ((coefficient, whole), (length, _)) in coefficients.iter_mut().zip(whole).zip(lengths) {
            *coefficient = f32::from(*whole) * unit * length;
        }
    }
    let mut sums = vec![0; tokens * basis.stride()];
    basis.inverse(&whole, &mut sums);
    for (((left, vector), sums), unit) in
        left.chunks_exact_mut(width).zip(vectors.chunks_exact(width)).zip(sums.chunks_exact(basis.stride())).zip(&units)
    {
        for ((left, value), sum) in left.iter_mut().zip(vector).zip(sums) {
            *left = value - *sum as f32 * unit;
        }
    }
}

/// Factors of rows as whole numbers of a unit, which each token has for itself: as fine as the largest factor and the sums allow.
fn to_whole(factors: &[f32], lengths: &[(f32, f32)], tokens: usize) -> (Vec<i16>, Vec<f32>) {
    let mut whole = vec![0; factors.len()];
    let mut units = vec![0.0; tokens];
    let rank = lengths.len().max(1);
    for ((factors, whole), unit) in factors.chunks_exact(rank).zip(whole.chunks_exact_mut(rank)).zip(&mut units) {
        let (mut most, mut sum) = (0f32, 0f32);
        for (factor, (_, entry)) in factors.iter().zip(lengths) {
            most = most.max(factor.abs());
            sum += factor.abs() * entry;
        }
        *unit = (most / 32767.0).max(sum / MOST_SUM).max(f32::MIN_POSITIVE);
        round(factors, *unit, whole);
    }
    (whole, units)
}

/// Multiples of `unit`, to the nearest, halves away from zero.
fn round(factors: &[f32], unit: f32, whole: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code, reason = "rounding is a call of a function elsewhere, and three instructions here")]
        // SAFETY: AVX2 is there.
        return unsafe { round_avx2(factors, unit, whole) };
    }
    round_any(factors, unit, whole);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn round_avx2(factors: &[f32], unit: f32, whole: &mut [i16]) {
    round_any(factors, unit, whole);
}

#[inline(always)]
fn round_any(factors: &[f32], unit: f32, whole: &mut [i16]) {
    whole.iter_mut().zip(factors).for_each(|(whole, factor)| *whole = (factor / unit).round() as i16);
}

/// The quantised coefficients of a unit: row after row, each of all tokens; without rows of class 0.
#[derive(Default)]
struct Coded {
    /// As read: the classes themselves. As written: their differences from what was predicted, folded.
    classes: Vec<u8>,
    symbols: Vec<u8>,
    runs: Vec<(usize, usize)>,
    low: Vec<u8>,
    low_runs: Vec<(usize, usize)>,
    /// Numbers whose symbol is `ESCAPE`.
    escaped: Vec<i32>,
}

impl Coded {
    fn push(&mut self, class: Class, column: &[f32], scale: Scale<'_>, costs: &Costs) {
        let table = &scale.shapes.tables[class.table];
        for &value in column {
            let number = costs.quantise(class, value);
            let symbol = fold(number >> class.shift).filter(|symbol| table.frequency(*symbol) > 0);
            self.symbols.push(symbol.unwrap_or(ESCAPE));
            if symbol.is_none() {
                self.escaped.push(number);
            }
            if class.shift > 0 {
                self.low.push((number & ((1 << class.shift) - 1)) as u8);
            }
        }
        self.runs.push((class.table, column.len()));
        if class.shift > 0 {
            self.low_runs.push((class.shift as usize, column.len()));
        }
    }

    fn write(self, tables: &[Table], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let mut counts = [0; 256];
        self.classes.iter().for_each(|class| counts[usize::from(*class)] += 1);
        let table = Table::from_counts(&counts);
        table.write(out);
        put(out, &rans::encode(&self.classes, [(0, self.classes.len())], &[table])?);
        put(out, &rans::encode(&self.symbols, self.runs, tables)?);
        put(out, &rans::encode(&self.low, self.low_runs, &flats())?);
        let escaped: Vec<u8> = self.escaped.iter().flat_map(|number| number.to_le_bytes()).collect();
        put(out, &escaped);
        Ok(())
    }

    fn read(input: &mut &[u8], levels: &[i16], scale: Scale<'_>, tokens: usize) -> Result<Coded, CodecError> {
        let mut coded = Coded { classes: vec![0; levels.len()], ..Coded::default() };
        let table = Table::read(input)?;
        rans::decode(take(input)?, [(0, levels.len())], &[table], &mut coded.classes)?;
        let mut predicted = classes::Prediction::new(scale.level);
        for (class, &level) in coded.classes.iter_mut().zip(levels) {
            *class = predicted.resolve(level, *class)?;
            if *class > 0 {
                let Class { table, shift } = Class::of(*class);
                coded.runs.push((table, tokens));
                if shift > 0 {
                    coded.low_runs.push((shift as usize, tokens));
                }
            }
        }
        coded.symbols = vec![0; coded.runs.len() * tokens];
        rans::decode(take(input)?, coded.runs.iter().copied(), &scale.shapes.tables, &mut coded.symbols)?;
        coded.low = vec![0; coded.low_runs.len() * tokens];
        rans::decode(take(input)?, coded.low_runs.iter().copied(), &flats(), &mut coded.low)?;
        let (escaped, rest) = take(input)?.as_chunks();
        let expected = coded.symbols.iter().filter(|symbol| **symbol == ESCAPE).count();
        if escaped.len() != expected || !rest.is_empty() {
            return Err(super::corrupt(format!("{expected} escaped numbers"), format!("{} and {} bytes", escaped.len(), rest.len())));
        }
        coded.escaped = escaped.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect();
        Ok(coded)
    }

    /// Calls `each` with the row, the token and what stands there, in steps, for all but zeros.
    fn for_each(&self, tokens: usize, scale: Scale<'_>, mut each: impl FnMut(usize, usize, f32)) -> Result<(), CodecError> {
        let (mut low, mut escaped) = (self.low.chunks_exact(tokens.max(1)), self.escaped.iter());
        let rows = self.classes.iter().enumerate().filter(|(_, class)| **class > 0);
        for ((i, &class), symbols) in rows.zip(self.symbols.chunks_exact(tokens.max(1))) {
            let class = Class::of(class);
            let low = if class.shift > 0 { low.next().unwrap_or_default() } else { &[] };
            for (token, &symbol) in symbols.iter().enumerate() {
                let number = match symbol {
                    ESCAPE => escaped.next().copied().unwrap_or_default(),
                    _ => unfold(symbol) << class.shift | low.get(token).map_or(0, |&low| i32::from(low)),
                };
                if number != 0 {
                    each(i, token, scale.shapes.mean(class, number));
                }
            }
        }
        Ok(())
    }
}

/// Tables of low bits, by their number.
fn flats() -> Vec<Table> {
    (0..=8).map(flat).collect()
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What [`put`] wrote.
pub(super) fn take<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], CodecError> {
    let (len, rest) = input.split_first_chunk().ok_or_else(|| super::corrupt("a length", "the end"))?;
    let len = u32::from_le_bytes(*len) as usize;
    *input = rest;
    input.split_off(..len).ok_or_else(|| super::corrupt(format!("{len} more bytes"), rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_registers_round_in_the_same_way() {
        let mut factors: Vec<f32> = (-40..40).map(|i| i as f32 * 0.25).collect();
        factors.extend([0.49999997, -0.49999997, 32767.0, -32767.4, 1e-30, -0.0, 8388607.5]);
        let (mut wide, mut portable) = (vec![7; factors.len()], vec![9; factors.len()]);
        for unit in [1.0, 0.3, 1.7] {
            round(&factors, unit, &mut wide);
            round_any(&factors, unit, &mut portable);
            assert_eq!(wide, portable);
        }
        assert_eq!(portable.len(), factors.len());
        round_any(&[0.5, -0.5, 2.5, 0.49999997], 1.0, &mut portable[..4]);
        assert_eq!(portable[..4], [1, -1, 3, 0]);
    }
}
