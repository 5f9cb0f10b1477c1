//! From bits to values.

use std::ops::Range;

use super::bits::{Reader, unzigzag};
use super::tables::{Coding, ESCAPE, MOST_CLASS, Tables, unfold};
use super::transform::Components;
use super::{COARSE, FORMAT, MEANS_SHIFT, NO_MEANS, TRANSFORMED, UNROTATED, corrupt, planes};
use crate::CodecError;
use crate::calibration::Transform;
use crate::kv::{Exact, Layout, Matrix};
use crate::rans;

/// What is known of a channel before its symbols.
#[derive(Clone, Copy, Debug)]
struct Channel {
    class: u8,
    /// What its numbers are added to, in steps.
    mean: f32,
}

/// What the second byte says.
struct Flags {
    unrotated: bool,
    transformed: bool,
    classes: i32,
    means: u8,
}

/// Decodes a chunk into `out`, all of it; `transforms` are those of its matrices.
pub(super) fn decode(layout: &Layout<'_>, transforms: &[Option<Transform<'_>>], input: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let mut input = input;
    let flags = header(layout, &mut input)?;
    if flags.transformed != transforms.iter().any(Option::is_some) && layout.count() > 0 {
        return Err(corrupt("components of heads where the codec has a calibration, and only there", "otherwise"));
    }
    let runs = Exact::read(super::NAME, layout, &mut input, out)?.others();
    let tokens: usize = runs.iter().map(|run| run.len()).sum();
    if tokens == 0 || layout.count() == 0 {
        return end(input);
    }
    let matrices: Vec<Matrix> = layout.matrices().collect();
    let planes = planes(&matrices);
    let steps = steps(&mut input, planes.last().map_or(0, |last| last + 1))?;
    let (side, low) = (length(&mut input)?, length(&mut input)?);
    let channels = channels(take(&mut input, side)?, &matrices, &flags)?;
    let mut low = Reader::new(take(&mut input, low)?);
    let symbols = symbols(input, &channels, tokens)?;
    let mut rows = Vec::new();
    let mut components = Components::default();
    let mut at = 0;
    for ((matrix, plane), transform) in matrices.iter().zip(planes).zip(transforms) {
        rows.resize(layout.tokens * matrix.dim, 0.0);
        if let Some(transform) = transform {
            components.begin(transform);
        }
        for (column, channel) in channels[at..at + matrix.dim].iter().enumerate() {
            let symbols = symbols.of(at + column);
            match transform {
                Some(transform) if channel.class == 0 => components.constant(transform, column, channel.mean * steps[plane]),
                Some(transform) => {
                    let room = components.room(transform, column, tokens);
                    expand(channel, symbols, &mut low, steps[plane], (std::slice::from_ref(&(0..tokens)), 0, 1), room)?;
                }
                None => expand(channel, symbols, &mut low, steps[plane], (&runs, column, matrix.dim), &mut rows)?,
            }
        }
        if transform.is_some() {
            let mut first = 0;
            for run in &runs {
                components.values(tokens, first, run.len(), &mut rows[run.start * matrix.dim..run.end * matrix.dim]);
                first += run.len();
            }
        }
        at += matrix.dim;
        if let Some(rotation) = layout.rotation(matrix) {
            rotation.apply(&mut rows, matrix.dim);
        }
        for run in &runs {
            layout.write(out, matrix, run.clone(), &rows[run.start * matrix.dim..run.end * matrix.dim]);
        }
    }
    if low.at_end() { Ok(()) } else { Err(corrupt("an end of low bits after the last channel", "more")) }
}

fn header(layout: &Layout<'_>, input: &mut &[u8]) -> Result<Flags, CodecError> {
    let [format, flags] = *take(input, 2)? else { return Err(corrupt("a header", "another")) };
    if format != FORMAT {
        return Err(corrupt(format!("format {FORMAT}"), format));
    }
    let flags = Flags {
        unrotated: flags & UNROTATED != 0,
        transformed: flags & TRANSFORMED != 0,
        classes: if flags & COARSE != 0 { 2 } else { 1 },
        means: flags >> MEANS_SHIFT,
    };
    let rotation = layout.matrices().find_map(|matrix| layout.rotation(&matrix));
    if rotation.is_some() != flags.unrotated {
        let (expected, found) = if flags.unrotated { ("a known", "none") } else { ("no", "one") };
        return Err(corrupt(format!("{expected} rotary embedding of the tensor's keys, as when it was encoded"), found));
    }
    if let Some(rotation) = rotation
        && *take(input, 4)? != rotation.fingerprint().to_le_bytes()
    {
        return Err(corrupt("the rotary embedding and first position that the keys were encoded with", "others"));
    }
    Ok(flags)
}

fn steps(input: &mut &[u8], count: usize) -> Result<Vec<f32>, CodecError> {
    let bytes = take(input, count.saturating_mul(4))?;
    let steps: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match steps.iter().find(|step| !(step.is_finite() && **step > 0.0)) {
        Some(step) => Err(corrupt("steps above 0", step)),
        None => Ok(steps),
    }
}

/// Classes and means of all channels of all matrices.
fn channels(side: &[u8], matrices: &[Matrix], flags: &Flags) -> Result<Vec<Channel>, CodecError> {
    let short = || corrupt("classes and means of all channels", "the end");
    let mut reader = Reader::new(side);
    let mut channels = Vec::with_capacity(matrices.iter().map(|matrix| matrix.dim).sum());
    let mut last = 0;
    for matrix in matrices {
        let parameter = reader.bits(4).ok_or_else(short)?;
        let first = channels.len();
        for _ in 0..matrix.dim {
            let difference = unzigzag(reader.rice(parameter).ok_or_else(short)?);
            last = i32::checked_add(last, difference)
                .filter(|class| (0..=i32::from(MOST_CLASS) / flags.classes).contains(class))
                .ok_or_else(|| corrupt(format!("classes of 0 to {MOST_CLASS}"), "another"))?;
            channels.push(Channel { class: (last * flags.classes) as u8, mean: 0.0 });
        }
        if flags.means != NO_MEANS {
            let unit = 1.0 / (1u32 << flags.means) as f32;
            let parameter = reader.bits(4).ok_or_else(short)?;
            for channel in &mut channels[first..] {
                channel.mean = unzigzag(reader.rice(parameter).ok_or_else(short)?) as f32 * unit;
            }
        }
    }
    if reader.at_end() { Ok(channels) } else { Err(corrupt("an end after the last channel", "more")) }
}

/// The symbols of all channels, those of one table after the other.
struct Symbols {
    all: Vec<u8>,
    /// Where each channel's begin.
    starts: Vec<usize>,
    tokens: usize,
}

fn symbols(input: &[u8], channels: &[Channel], tokens: usize) -> Result<Symbols, CodecError> {
    let tables = Tables::shared();
    let table = |channel: &Channel| (channel.class > 0).then(|| Coding::of(channel.class).table);
    let mut counts = vec![0; tables.rans.len()];
    channels.iter().filter_map(table).for_each(|table| counts[table] += tokens);
    let mut next: Vec<usize> = counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect();
    let mut start = |channel: &Channel| match table(channel) {
        Some(table) => {
            next[table] += tokens;
            next[table] - tokens
        }
        None => usize::MAX,
    };
    let starts = channels.iter().map(&mut start).collect();
    let mut all = vec![0; counts.iter().sum()];
    rans::decode(input, counts.iter().copied().enumerate(), &tables.rans, &mut all)?;
    Ok(Symbols { all, starts, tokens })
}

impl Symbols {
    /// Of one channel; none if its class has none.
    fn of(&self, channel: usize) -> &[u8] {
        match self.starts[channel] {
            usize::MAX => &[],
            start => &self.all[start..start + self.tokens],
        }
    }
}

/// Writes the values of a channel into its column of `rows`, for the tokens of `runs`.
fn expand(
    channel: &Channel,
    symbols: &[u8],
    low: &mut Reader<'_>,
    step: f32,
    (runs, column, dim): (&[Range<usize>], usize, usize),
    rows: &mut [f32],
) -> Result<(), CodecError> {
    if channel.class == 0 {
        let value = channel.mean * step;
        runs.iter().for_each(|run| rows[run.start * dim..run.end * dim].iter_mut().skip(column).step_by(dim).for_each(|at| *at = value));
        return Ok(());
    }
    let coding = Coding::of(channel.class);
    let values = &Tables::shared().values[coding.table];
    let simple = coding.shift == 0 && !symbols.contains(&ESCAPE);
    let mut symbols = symbols.iter();
    for run in runs {
        let column = rows[run.start * dim..run.end * dim].iter_mut().skip(column).step_by(dim);
        for (at, symbol) in column.zip(&mut symbols) {
            let value = if simple { values[usize::from(*symbol)] } else { exceptional(*symbol, coding, values, low)? };
            *at = (value + channel.mean) * step;
        }
    }
    Ok(())
}

/// The value of a symbol, in steps, of a channel with low bits or escapes.
fn exceptional(symbol: u8, coding: Coding, values: &[f32; 256], low: &mut Reader<'_>) -> Result<f32, CodecError> {
    let short = || corrupt("low bits and escaped numbers of all channels", "the end");
    if coding.shift == 0 && symbol != ESCAPE {
        return Ok(values[usize::from(symbol)]);
    }
    let high = match symbol {
        ESCAPE => low.bits(32).ok_or_else(short)? as i32,
        _ => unfold(symbol),
    };
    Ok((high.wrapping_shl(coding.shift) | low.bits(coding.shift).ok_or_else(short)? as i32) as f32)
}

fn length(input: &mut &[u8]) -> Result<usize, CodecError> {
    let bytes = take(input, 4)?.first_chunk().copied().unwrap_or_default();
    Ok(u32::from_le_bytes(bytes) as usize)
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], CodecError> {
    let found = input.len();
    input.split_off(..len).ok_or_else(|| corrupt(format!("{len} more bytes"), found))
}

fn end(input: &[u8]) -> Result<(), CodecError> {
    if input.is_empty() { Ok(()) } else { Err(corrupt("the end", format!("{} more bytes", input.len()))) }
}
