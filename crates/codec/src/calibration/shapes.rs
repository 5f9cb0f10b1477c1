//! How quantised coefficients are distributed: shared tables by class, and the means of their bins.

use crate::CodecError;
use crate::rans::Table;

/// The tables are of standard deviations of 2^(i / 4) steps, i from `FINEST` to `FINEST + TABLES - 1`.
pub(crate) const FINEST: i32 = -12;

/// How many tables there are. Wider distributions take the widest tables, their low bits apart.
pub(crate) const TABLES: usize = 29;

/// The highest class; the standard deviation of class c (from 1) is 2^((c - 1 + FINEST) / 4) steps.
pub(crate) const MAX_CLASS: u8 = (TABLES + 4 * MAX_SHIFT as usize) as u8;

/// Low bits that are kept apart, at most.
const MAX_SHIFT: u32 = 8;

/// The symbol after which a number is written elsewhere.
pub(crate) const ESCAPE: u8 = 255;

/// Bins whose means are kept; all wider ones have the last one's.
const MEANS: usize = 4;

/// What numbers of one class look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// Index of the table.
    pub table: usize,
    /// Low bits that are kept apart.
    pub shift: u32,
}

impl Class {
    /// The class of this number, which is from 1 to [`MAX_CLASS`].
    pub(crate) fn of(class: u8) -> Class {
        let index = usize::from(class).saturating_sub(1);
        let above = (index + 1).saturating_sub(TABLES);
        let shift = above.div_ceil(4);
        Class { table: index - 4 * shift, shift: shift as u32 }
    }
}

/// Tables and means of bins for all classes: part of a calibration, so that decoders compute neither.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shapes {
    /// Of symbols 2|q| - (q > 0), and [`ESCAPE`].
    pub tables: Vec<Table>,
    /// How far the mean of the numbers that became 1, 2, 3 and more lies below them, in 256ths of a step.
    means: Vec<[i8; MEANS]>,
}

impl Shapes {
    /// What `number` of this class stands for, in steps.
    pub(crate) fn mean(&self, class: Class, number: i32) -> f32 {
        let below = match number.unsigned_abs() {
            0 => 0,
            // The bins of a distribution this wide are as good as flat.
            _ if class.shift > 0 => 0,
            size => self.means[class.table][(size as usize).min(MEANS) - 1],
        };
        let size = number.unsigned_abs() as f32 - f32::from(below) / 256.0;
        if number < 0 { -size } else { size }
    }

    /// Appends tables and means.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (table, means) in self.tables.iter().zip(&self.means) {
            out.extend(means.map(|mean| mean as u8));
            table.write(out);
        }
    }

    /// Reads what [`Shapes::write`] wrote.
    pub(crate) fn read(input: &mut &[u8]) -> Result<Shapes, CodecError> {
        let (mut tables, mut means) = (Vec::with_capacity(TABLES), Vec::with_capacity(TABLES));
        for _ in 0..TABLES {
            let (head, rest) = input.split_first_chunk::<MEANS>().ok_or_else(|| CodecError::corrupt("calibration", "tables", "the end"))?;
            *input = rest;
            means.push(head.map(|byte| byte as i8));
            let table = Table::read(input)?;
            if table.frequency(0) == 0 || table.frequency(ESCAPE) == 0 {
                return Err(CodecError::corrupt("calibration", "tables with zero and escape", "one without"));
            }
            tables.push(table);
        }
        Ok(Shapes { tables, means })
    }
}

/// The symbol of a small number, or none: `ESCAPE` then.
pub(crate) fn fold(number: i32) -> Option<u8> {
    let folded = number.unsigned_abs().checked_mul(2)? - u32::from(number > 0);
    u8::try_from(folded).ok().filter(|symbol| *symbol < ESCAPE)
}

/// The inverse of [`fold`].
pub(crate) fn unfold(symbol: u8) -> i32 {
    let size = i32::from(symbol).div_euclid(2) + i32::from(symbol % 2);
    if symbol % 2 == 1 { size } else { -size }
}

#[cfg(any(feature = "calibrate", test))]
pub(crate) mod fit {
    //! The shapes of a mixture of normal distributions.

    use super::*;

    /// Where a number begins to be rounded up: .5 would be the nearest; larger costs fewer bits.
    const ROUND_UP: f64 = 0.58;

    /// Spread of the logarithm of the standard deviations that a component's values have from token to token.
    const SPREAD: f64 = 0.3;

    /// Counts that probabilities are turned into.
    const COUNTS: f64 = (1 << 24) as f64;

    /// Symbols rarer than this are written as escapes.
    const RAREST: f64 = 1.0 / 8192.0;

    /// The shapes of coefficients whose standard deviations vary from token to token by a log-normal factor, as those of principal
    /// components of K and V do.
    pub(crate) fn shapes() -> Shapes {
        let (tables, means) = (0..TABLES).map(|i| table(((i as i32 + FINEST) as f64 / 4.0).exp2())).unzip();
        Shapes { tables, means }
    }

    fn table(deviation: f64) -> (Table, [i8; MEANS]) {
        // Sums over a grid; the bins begin at points of it.
        const GRID: usize = 50;
        let mut mass = [0.0; 128];
        let mut first = [0.0; 128];
        // Twelve deviations, and what rounding adds to them.
        let end = ((12.0 * deviation + 2.0).min(128.0) * GRID as f64) as usize;
        for point in 0..end {
            let x = (point as f64 + 0.5) / GRID as f64;
            let bin = (x + 1.0 - ROUND_UP) as usize;
            if bin < 128 {
                let density = density(x, deviation);
                mass[bin] += density;
                first[bin] += density * x;
            }
        }
        let total: f64 = 2.0 * mass.iter().sum::<f64>();
        let mut counts = [0; 256];
        counts[0] = (2.0 * mass[0] / total * COUNTS) as u32;
        for (size, &mass) in mass.iter().enumerate().skip(1).take_while(|(_, mass)| **mass / total > RAREST) {
            counts[2 * size - 1] = (mass / total * COUNTS) as u32;
            counts[2 * size] = counts[2 * size - 1];
        }
        counts[usize::from(ESCAPE)] = 1;
        let below = |size: usize| if mass[size] > 0.0 { size as f64 - first[size] / mass[size] } else { 0.0 };
        let means = [1, 2, 3, 4].map(|size| (below(size) * 256.0).round().clamp(-127.0, 127.0) as i8);
        (Table::from_counts(&counts), means)
    }

    /// Density at `x` of a normal distribution whose standard deviation is log-normal, of mean square `deviation` squared.
    fn density(x: f64, deviation: f64) -> f64 {
        (-8..=8)
            .map(|z| f64::from(z) * 0.4)
            .map(|z| (-z * z / 2.0).exp() * normal(x, deviation * (SPREAD * z - SPREAD * SPREAD).exp()))
            .sum()
    }

    fn normal(x: f64, deviation: f64) -> f64 {
        (-(x / deviation).powi(2) / 2.0).exp() / deviation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_are_folded_and_back() {
        for number in -127..=127 {
            let symbol = fold(number).unwrap();
            assert_eq!(unfold(symbol), number);
        }
        assert_eq!([0, 1, -1, 2].map(|number| fold(number).unwrap()), [0, 1, 2, 3]);
        for number in [128, -128, i32::MAX, i32::MIN] {
            assert_eq!(fold(number), None);
        }
    }

    #[test]
    fn classes_go_on_where_the_tables_end() {
        let last = TABLES as u8;
        assert_eq!(Class::of(1), Class { table: 0, shift: 0 });
        assert_eq!(Class::of(last), Class { table: TABLES - 1, shift: 0 });
        assert_eq!(Class::of(last + 1), Class { table: TABLES - 4, shift: 1 });
        assert_eq!(Class::of(last + 4), Class { table: TABLES - 1, shift: 1 });
        assert_eq!(Class::of(last + 5), Class { table: TABLES - 4, shift: 2 });
        assert_eq!(Class::of(MAX_CLASS), Class { table: TABLES - 1, shift: MAX_SHIFT });
    }
}
