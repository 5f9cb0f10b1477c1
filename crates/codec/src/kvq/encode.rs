//! From values to bits.

use std::ops::Range;

use super::bits::{Writer, parameter, zigzag};
use super::options::{Options, Quality};
use super::tables::{Coding, ESCAPE, ROUND, Tables, fold};
use super::transform::FAR;
use super::{COARSE, FORMAT, MEANS_SHIFT, NO_MEANS, TRANSFORMED, UNROTATED, planes};
use crate::CodecError;
use crate::calibration::Transform;
use crate::kv::{Exact, Kind, Layout, Matrix};

/// The step of values against that of keys, both relative to their root mean square: where errors of both cost the model (SmolLM2-135M) as much
/// for a bit.
const VALUES: f32 = 0.7;

/// A step is at least this much of the root mean square with the means, so that constant channels do not take it to zero.
const LEAST_STEP: f64 = 1.0 / 1024.0;

/// Fewer tokens than that have no means taken off: they would take more bits than they save.
const FEW_FOR_MEANS: usize = 8;

/// Fewer tokens than that have classes of half an octave instead of a quarter.
const FEW_FOR_CLASSES: usize = 48;

/// What a bit is worth, in squares of a step: at high rates a bit more a number takes three quarters of the error of step² / 12.
const BIT: f32 = 0.1155;

/// The largest whole number that a value can become: beyond it, floats of 32 bits have no whole steps left.
const MOST: f32 = 16_777_216.0;

/// One head's values, ready to be quantised.
struct Head {
    matrix: Matrix,
    /// Tokens that are not exact, rows of `dim` values.
    values: Vec<f32>,
    /// Mean of each channel, and mean square of the deviations from it.
    channels: Vec<(f64, f64)>,
}

/// What is stored of a channel besides its numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    class: u8,
    /// In units.
    mean: i32,
}

/// Numbers of all channels, one after the other, and where they go.
struct Body {
    channels: Vec<Channel>,
    symbols: Vec<u8>,
    /// What is not in symbols.
    low: Writer,
}

/// How fine everything is.
struct Scale {
    /// One a plane.
    steps: Vec<f32>,
    /// A mean is a multiple of 2^-means steps.
    means: u8,
    /// 2 where classes are even.
    classes: u8,
    /// Whether errors of one size cost the same in all channels, so that bits can be weighed against them.
    weighted: bool,
}

/// Encodes a chunk; `transforms` are those of its matrices.
pub(super) fn encode(
    options: &Options,
    layout: &Layout<'_>,
    transforms: &[Option<Transform<'_>>],
    input: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let transformed = transforms.iter().any(Option::is_some);
    let all: Vec<Vec<f32>> = layout.matrices().zip(transforms).map(|(matrix, of)| rows(layout, &matrix, of.as_ref(), input)).collect();
    let far = if transformed { far(layout, &all) } else { vec![false; layout.tokens] };
    let sinks = u64::from(options.sinks).saturating_sub(layout.first_position());
    let window = layout.all_tokens.saturating_sub(u64::from(options.window)).saturating_sub(layout.first_token);
    let exact = Exact::of(layout, input, |token| (token as u64) < sinks || token as u64 >= window || far[token]);
    let runs = exact.others();
    let heads: Vec<Head> = layout.matrices().zip(all).map(|(matrix, rows)| Head::of(matrix, rows, &runs, layout.tokens)).collect();
    let tokens: usize = runs.iter().map(|run| run.len()).sum();
    let rotation = heads.iter().find_map(|head| layout.rotation(&head.matrix));
    let planes = planes(heads.iter().map(|head| &head.matrix));
    let scale = Scale {
        steps: steps(options, transformed, &heads, &planes),
        means: means(tokens),
        classes: if tokens < FEW_FOR_CLASSES { 2 } else { 1 },
        weighted: transformed,
    };
    let mut out = Vec::with_capacity(input.len() / 4);
    out.push(FORMAT);
    let flag = |of: bool, bit: u8| if of { bit } else { 0 };
    let flags = flag(rotation.is_some(), UNROTATED) | flag(scale.classes == 2, COARSE) | flag(transformed, TRANSFORMED);
    out.push(flags | scale.means << MEANS_SHIFT);
    if let Some(rotation) = rotation {
        out.extend(rotation.fingerprint().to_le_bytes());
    }
    exact.write(layout, input, &mut out);
    if tokens == 0 || heads.is_empty() {
        return Ok(out);
    }
    out.extend(scale.steps.iter().flat_map(|step| step.to_le_bytes()));
    let mut body = Body { channels: Vec::new(), symbols: Vec::new(), low: Writer::default() };
    for (head, plane) in heads.iter().zip(&planes) {
        body.add(head, &scale, scale.steps[*plane], tokens);
    }
    body.write(&heads, &scale, tokens, &mut out)?;
    Ok(out)
}

/// How fine means are, from how many tokens share one: the finer, the more bits they take and the fewer the values do.
fn means(tokens: usize) -> u8 {
    match tokens {
        0..FEW_FOR_MEANS => NO_MEANS,
        FEW_FOR_MEANS..32 => 0,
        32..128 => 1,
        _ => 2,
    }
}

/// The rows of a matrix, all tokens: keys without their rotary embedding; components, where there is a transform.
fn rows(layout: &Layout<'_>, matrix: &Matrix, transform: Option<&Transform<'_>>, input: &[u8]) -> Vec<f32> {
    let mut rows = vec![0.0; layout.tokens * matrix.dim];
    layout.read(input, matrix, 0..layout.tokens, &mut rows);
    if let Some(rotation) = layout.rotation(matrix) {
        rotation.undo(&mut rows, matrix.dim);
    }
    match transform {
        Some(transform) => transform.components(rows),
        None => rows,
    }
}

/// Which tokens have components that are too large, or not numbers.
fn far(layout: &Layout<'_>, all: &[Vec<f32>]) -> Vec<bool> {
    let mut far = vec![false; layout.tokens];
    for rows in all {
        let dim = rows.len() / layout.tokens.max(1);
        for (far, row) in far.iter_mut().zip(rows.chunks_exact(dim.max(1))) {
            // Not a number is in no range.
            *far |= !row.iter().all(|value| (-FAR..FAR).contains(value));
        }
    }
    far
}

impl Head {
    /// Of the tokens of `runs` among all, whose rows are given.
    fn of(matrix: Matrix, all: Vec<f32>, runs: &[Range<usize>], tokens: usize) -> Head {
        let dim = matrix.dim;
        let values: Vec<f32> = match runs {
            [run] if run.len() == tokens => all,
            _ => runs.iter().flat_map(|run| &all[run.start * dim..run.end * dim]).copied().collect(),
        };
        let tokens = (values.len() / dim.max(1)) as f64;
        let mut sums = vec![0.0f64; dim];
        for row in values.chunks_exact(dim.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let means: Vec<f64> = sums.iter().map(|sum| if tokens < FEW_FOR_MEANS as f64 { 0.0 } else { sum / tokens }).collect();
        let mut squares = vec![0.0f64; dim];
        for row in values.chunks_exact(dim.max(1)) {
            let deviations = row.iter().zip(&means).map(|(value, mean)| f64::from(*value) - mean);
            squares.iter_mut().zip(deviations).for_each(|(square, deviation)| *square += deviation * deviation);
        }
        let channels = means.into_iter().zip(squares).map(|(mean, square)| (mean, square / tokens.max(1.0))).collect();
        Head { matrix, values, channels }
    }
}

/// The step of each plane: the same for all where their heads are transformed, since then errors of one size cost the same in all.
fn steps(options: &Options, transformed: bool, heads: &[Head], planes: &[usize]) -> Vec<f32> {
    let count = planes.last().map_or(0, |last| last + 1);
    let mut sums = vec![(0.0, 0.0, 0.0); count];
    for (head, plane) in heads.iter().zip(planes) {
        let sums = &mut sums[*plane];
        sums.0 += head.channels.len() as f64;
        sums.1 += head.channels.iter().map(|(_, square)| square).sum::<f64>();
        sums.2 += head.channels.iter().map(|(mean, square)| square + mean * mean).sum::<f64>();
    }
    let mut kinds = vec![Kind::Other; count];
    heads.iter().zip(planes).for_each(|(head, plane)| kinds[*plane] = head.matrix.kind);
    let of = |relative: f32| -> Vec<f32> {
        let of_plane = |(&(count, square, all), kind): (&(f64, f64, f64), &Kind)| {
            if transformed {
                return f32::from_bits(relative.to_bits() & 0xffff_0000);
            }
            let size = libm::sqrt(square / count).max(libm::sqrt(all / count) * LEAST_STEP);
            let relative = if *kind == Kind::V { relative * VALUES } else { relative };
            // Rounded to eight bits, which costs nothing, and never zero.
            let step = (size * f64::from(relative)).clamp(1e-30, 1e37) as f32;
            f32::from_bits(step.to_bits() & 0xffff_0000)
        };
        sums.iter().zip(&kinds).map(of_plane).collect()
    };
    match options.quality {
        Quality::Rate(rate) => of(search(rate, |relative| estimate(heads, planes, &of(relative)))),
        _ => of(options.step(transformed).unwrap_or(1.0)),
    }
}

/// The least step, of sixteenths of an octave, that takes no more than `rate` bits a value.
fn search(rate: f32, bits: impl Fn(f32) -> f32) -> f32 {
    let step = |sixteenth: i32| libm::exp2(f64::from(sixteenth) / 16.0) as f32;
    let (mut low, mut high) = (-10 * 16, 6 * 16_i32);
    while low < high {
        let middle = (low + high).div_euclid(2);
        if bits(step(middle)) <= rate { high = middle } else { low = middle + 1 }
    }
    step(low)
}

/// About how many bits the number of a value takes with these steps; classes and means of channels take more the fewer tokens share them.
fn estimate(heads: &[Head], planes: &[usize], steps: &[f32]) -> f32 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (head, plane) in heads.iter().zip(planes) {
        let step = f64::from(steps[*plane]);
        for (_, square) in &head.channels {
            // Of a normal distribution: exact where it is wide, and with an end towards zero.
            let relative = square / (step * step);
            sum += libm::log2(1.0 + 17.08 * relative) / 2.0 * (relative / (relative + 0.02));
        }
        count += head.channels.len();
    }
    (sum / count.max(1) as f64) as f32
}

impl Body {
    /// Quantises a head's channels.
    fn add(&mut self, head: &Head, scale: &Scale, step: f32, tokens: usize) {
        let unit = f64::from(step) / f64::from(1u32 << (scale.means % NO_MEANS));
        let mean = |(mean, square): &(f64, f64)| match scale.means {
            NO_MEANS => 0,
            _ => worthwhile(*mean / unit, *square / (unit * unit), f64::from(step) / unit, tokens),
        };
        let means: Vec<i32> = head.channels.iter().map(mean).collect();
        let bases: Vec<f32> = means.iter().map(|mean| (f64::from(*mean) * unit) as f32).collect();
        let numbers = numbers(&head.values, &bases, 1.0 / step, tokens);
        for (at, (numbers, mean)) in numbers.chunks_exact(tokens).zip(means).enumerate() {
            let class = class(numbers, scale.classes);
            let column = || head.values.iter().skip(at).step_by(bases.len()).map(|value| (value - bases[at]) / step);
            let class = if scale.weighted && class > 0 && !pays(numbers, column(), class) { 0 } else { class };
            self.channels.push(Channel { class, mean });
            if class > 0 {
                self.push(numbers, Coding::of(class));
            }
        }
    }

    fn push(&mut self, numbers: &[i32], coding: Coding) {
        let table = &Tables::shared().rans[coding.table];
        for number in numbers {
            let high = number >> coding.shift;
            match fold(high).filter(|symbol| table.frequency(*symbol) > 0) {
                Some(symbol) => self.symbols.push(symbol),
                None => {
                    self.symbols.push(ESCAPE);
                    self.low.bits(high as u32, 32);
                }
            }
            if coding.shift > 0 {
                self.low.bits(*number as u32, coding.shift);
            }
        }
    }

    fn write(self, heads: &[Head], scale: &Scale, tokens: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let side = side(heads, &self.channels, scale);
        let low = self.low.finish();
        for part in [&side, &low] {
            let len = u32::try_from(part.len()).map_err(|_| CodecError::encode(super::NAME, "a chunk of more than 4 GiB"))?;
            out.extend(len.to_le_bytes());
        }
        out.extend(side);
        out.extend(low);
        // Channels of one table follow each other, so that the coder changes tables as seldom as there are any.
        let coded = self.channels.iter().filter(|channel| channel.class > 0).map(|channel| Coding::of(channel.class).table);
        let mut of_table: Vec<Vec<&[u8]>> = vec![Vec::new(); Tables::shared().rans.len()];
        for (table, symbols) in coded.zip(self.symbols.chunks_exact(tokens)) {
            of_table[table].push(symbols);
        }
        let runs: Vec<(usize, usize)> = of_table.iter().enumerate().map(|(table, channels)| (table, channels.len() * tokens)).collect();
        let symbols: Vec<u8> = of_table.concat().concat();
        crate::rans::encode_to(out, &symbols, runs, &Tables::shared().rans)
    }
}

/// Classes and means of all channels, as bits.
fn side(heads: &[Head], channels: &[Channel], scale: &Scale) -> Vec<u8> {
    let mut writer = Writer::default();
    let mut rest = channels;
    let mut last = 0;
    for head in heads {
        let (channels, others) = rest.split_at(head.matrix.dim);
        rest = others;
        let differences: Vec<u32> = channels
            .iter()
            .map(|channel| {
                let class = i32::from(channel.class / scale.classes);
                zigzag(class - std::mem::replace(&mut last, class))
            })
            .collect();
        let means: Vec<u32> = channels.iter().map(|channel| zigzag(channel.mean)).collect();
        let parameters = [parameter(differences.iter().copied()), parameter(means.iter().copied())];
        writer.bits(parameters[0], 4);
        differences.iter().for_each(|&difference| writer.rice(difference, parameters[0]));
        if scale.means != NO_MEANS {
            writer.bits(parameters[1], 4);
            means.iter().for_each(|&mean| writer.rice(mean, parameters[1]));
        }
    }
    writer.finish()
}

/// The mean, a whole number of units, or 0 where it saves no more bits than it takes. `square`: of the deviations from it; `step`: both in
/// units.
fn worthwhile(mean: f64, square: f64, step: f64, tokens: usize) -> i32 {
    let whole = libm::round(mean).clamp(-1e9, 1e9);
    let noise = step * step / 12.0;
    let with = square + (mean - whole) * (mean - whole) + noise;
    let without = square + mean * mean + noise;
    let saved = tokens as f64 / 2.0 * libm::log2(without / with);
    if saved > 2.0 * libm::log2(whole.abs() + 1.0) + 1.0 { whole as i32 } else { 0 }
}

/// The whole number of steps that stands for a value, with the dead zone around zero.
fn quantise(value: f32) -> i32 {
    let size = (value.abs() + ROUND).min(MOST) as i32;
    if value < 0.0 { -size } else { size }
}

/// The whole numbers of all channels, one channel after the other, of rows of values; `bases` are taken off.
fn numbers(values: &[f32], bases: &[f32], inverse: f32, tokens: usize) -> Vec<i32> {
    let mut numbers = vec![0; values.len()];
    let mut whole = vec![0; bases.len()];
    for (token, row) in values.chunks_exact(bases.len().max(1)).enumerate() {
        for ((whole, value), base) in whole.iter_mut().zip(row).zip(bases) {
            *whole = quantise((value - base) * inverse);
        }
        numbers[token..].iter_mut().step_by(tokens).zip(&whole).for_each(|(number, whole)| *number = *whole);
    }
    numbers
}

/// The class in which `numbers` take the fewest bits, a multiple of `unit`; 0 if all are zero.
fn class(numbers: &[i32], unit: u8) -> u8 {
    let most = numbers.iter().fold(0, |most, number| most.max(number.unsigned_abs()));
    if most == 0 {
        return 0;
    }
    let square = numbers.iter().map(|&number| f64::from(number) * f64::from(number)).sum::<f64>();
    let near = Coding::nearest(square / numbers.len() as f64) / unit * unit;
    if most > 127 {
        return near.max(unit); // so wide that its neighbours are as good
    }
    let mut counts = [0u32; 128];
    numbers.iter().for_each(|number| counts[number.unsigned_abs() as usize] += 1);
    let cost = |class: u8| -> f32 {
        let coding = Coding::of(class);
        let bits = &Tables::shared().bits[coding.table];
        // Both signs of a number take the same.
        let of = |(size, count): (usize, &u32)| bits[2 * (size >> coding.shift)] * *count as f32;
        counts[..=most as usize].iter().enumerate().map(of).sum::<f32>() + (coding.shift as usize * numbers.len()) as f32
    };
    // Rounding makes small numbers smaller and others larger, by about as much: the best class is near.
    let candidates = (near.saturating_sub(unit).max(unit)..=near.saturating_add(unit)).step_by(usize::from(unit));
    candidates.map(|class| (cost(class), class)).fold((f32::INFINITY, unit), |best, next| if next.0 < best.0 { next } else { best }).1
}

/// Whether the error that `numbers` of this class save against zeros is worth their bits; `values` are what they stand for, in steps.
fn pays(numbers: &[i32], values: impl Iterator<Item = f32>, class: u8) -> bool {
    let coding = Coding::of(class);
    let (bits, means) = (&Tables::shared().bits[coding.table], &Tables::shared().values[coding.table]);
    let saved = |number: &i32, value: f32| -> Option<f32> {
        let symbol = usize::from(fold(*number).filter(|_| coding.shift == 0)?);
        Some(value * value - (value - means[symbol]) * (value - means[symbol]) - BIT * bits[symbol])
    };
    // Numbers that no table has, or of many steps, are not such that there is doubt.
    numbers.iter().zip(values).try_fold(0.0, |sum, (number, value)| Some(sum + saved(number, value)?)).is_none_or(|saved| saved > 0.0)
}

#[cfg(test)]
mod tests {
    use super::super::tables::MOST_CLASS;
    use super::*;

    #[test]
    fn numbers_have_a_dead_zone() {
        assert_eq!([0.57, 0.59, -0.57, -0.59, 1.57, 1.59, 1e30, -1e30].map(quantise), [0, 1, 0, -1, 1, 2, 1 << 24, -(1 << 24)]);
    }

    #[test]
    fn means_are_kept_where_they_save_bits() {
        assert_eq!(worthwhile(100.3, 50.0, 4.0, 16), 100);
        assert_eq!(worthwhile(0.3, 50.0, 4.0, 16), 0);
        assert_eq!(worthwhile(2.0, 50.0, 4.0, 16), 0);
        assert_eq!(worthwhile(2.0, 50.0, 4.0, 1024), 2);
    }

    #[test]
    fn classes_fit_their_numbers() {
        let normal: Vec<i32> = (0..400).map(|i| (((i * 37 % 400) as f64 - 199.5) / 115.0 * 4.0) as i32).collect();
        assert!((19..=22).contains(&class(&normal, 1)) && class(&normal, 2).is_multiple_of(2));
        assert_eq!(class(&[0; 30], 1), 0);
        assert_eq!(class(&[1 << 24, -(1 << 24)], 1), MOST_CLASS);
        assert!(class(&[1 << 24, -(1 << 24)], 2).is_multiple_of(2));
    }

    #[test]
    fn what_is_nearly_always_zero_is_left_out() {
        let few = |count: usize, value: f32| -> bool {
            let values = (0..256).map(|i| if i < count { value } else { 0.0 });
            let numbers: Vec<i32> = values.clone().map(quantise).collect();
            pays(&numbers, values, class(&numbers, 1))
        };
        assert!(!few(1, 0.6) && !few(3, 0.6) && few(1, 9.0) && few(200, 1.2) && few(256, 2000.0));
    }

    #[test]
    fn numbers_lie_by_channel() {
        assert_eq!(numbers(&[1.0, 20.0, 2.0, 22.0, -3.0, 24.0], &[0.0, 20.0], 1.0, 3), [1, 2, -3, 0, 2, 4]);
    }

    #[test]
    fn a_rate_is_met_by_the_finest_step_that_meets_it() {
        assert_eq!(search(3.0, |step| -libm::log2(f64::from(step)) as f32), 0.125);
        assert_eq!(search(0.0, |_| 1.0), 64.0);
    }
}
