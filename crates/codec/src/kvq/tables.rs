//! How quantised channels are distributed: tables for all, by the channel's standard deviation, so that no chunk carries any.
//!
//! A channel's values are normal, with a standard deviation that wavers a little from token to token. Everything is calculated in `f64`
//! from the `libm` crate's exponential, so tables are the same on every machine.

use std::sync::OnceLock;

use crate::rans::Table;

/// How many tables there are: of standard deviations of 2^(-3) to 2^4 steps, a quarter of an octave apart.
const TABLES: usize = 29;

/// The binary logarithm of the least standard deviation, in quarters.
const FINEST: i32 = -12;

/// Low bits that are kept apart from wider distributions, at most.
const MOST_SHIFT: u32 = 12;

/// The highest class.
pub(super) const MOST_CLASS: u8 = (TABLES + 4 * MOST_SHIFT as usize) as u8;

/// The symbol of a number that no table has; it is written elsewhere.
pub(super) const ESCAPE: u8 = 255;

/// What is added to a size in steps before it is cut to a whole number: less than a half is a dead zone around zero, which saves more bits
/// than it costs in error.
pub(super) const ROUND: f32 = 0.42;

/// Spread of the logarithm of a channel's standard deviation over its tokens.
const SPREAD: f64 = 0.25;

/// Numbers less frequent than this are escaped.
const RAREST: f64 = 1.0 / 8192.0;

/// How a channel is coded, by its class: 0 has no symbols, its numbers are all zero; class c from 1 on is of a standard deviation of
/// 2^((c - 13) / 4) steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    /// Index into [`Tables::rans`].
    pub(super) table: usize,
    /// Low bits that are kept apart.
    pub(super) shift: u32,
}

/// The shared tables.
pub(super) struct Tables {
    /// For the coder.
    pub(super) rans: Vec<Table>,
    /// What each symbol stands for, in steps: the mean of the values that become it.
    pub(super) values: Vec<[f32; 256]>,
    /// Bits that each symbol takes; those of an escape where it has no symbol.
    pub(super) bits: Vec<[f32; 256]>,
}

impl Coding {
    /// Of a class from 1 to [`MOST_CLASS`].
    pub(super) fn of(class: u8) -> Coding {
        let index = usize::from(class.max(1) - 1);
        let shift = (index + 1).saturating_sub(TABLES).div_ceil(4);
        Coding { table: index - 4 * shift, shift: shift as u32 }
    }

    /// The class of numbers of this mean square.
    pub(super) fn nearest(square: f64) -> u8 {
        let quarters = libm::round(2.0 * libm::log2(square.max(1e-12))) as i32;
        (quarters - FINEST + 1).clamp(1, i32::from(MOST_CLASS)) as u8
    }
}

impl Tables {
    /// The tables, calculated once.
    pub(super) fn shared() -> &'static Tables {
        static SHARED: OnceLock<Tables> = OnceLock::new();
        SHARED.get_or_init(Tables::new)
    }

    fn new() -> Tables {
        let mut tables = Tables { rans: Vec::new(), values: Vec::new(), bits: Vec::new() };
        for index in 0..TABLES as i32 {
            let bins = Bins::of(libm::exp2(f64::from(index + FINEST) / 4.0));
            let rans = Table::from_counts(&bins.counts());
            tables.values.push(std::array::from_fn(|symbol| bins.mean(unfold(symbol as u8))));
            tables.bits.push(std::array::from_fn(|symbol| match rans.frequency(symbol as u8) {
                0 => 32.0 + 12.0,
                frequency => (12.0 - libm::log2(f64::from(frequency))) as f32 + if symbol == usize::from(ESCAPE) { 32.0 } else { 0.0 },
            }));
            tables.rans.push(rans);
        }
        tables
    }
}

/// A distribution, cut into the intervals that become 0, 1, 2, ...; of one sign.
struct Bins {
    /// Of all values, so many.
    mass: [f64; 128],
    /// And their sum.
    first: [f64; 128],
}

impl Bins {
    /// The bins of values of this standard deviation, in steps.
    fn of(deviation: f64) -> Bins {
        /// Points of the numeric integral in a step; bins begin between them.
        const POINTS: u32 = 50;
        let mut bins = Bins { mass: [0.0; 128], first: [0.0; 128] };
        for point in 0..128 * POINTS {
            let x = (f64::from(point) + 0.5) / f64::from(POINTS);
            if let Some(mass) = bins.mass.get_mut((x + f64::from(ROUND)) as usize) {
                let density = density(x, deviation);
                *mass += density;
                bins.first[(x + f64::from(ROUND)) as usize] += density * x;
            }
        }
        let total: f64 = bins.mass.iter().sum();
        bins.mass.iter_mut().chain(&mut bins.first).for_each(|sum| *sum /= total);
        bins
    }

    /// How often each symbol occurs, of about 2^24; the two signs alike.
    fn counts(&self) -> [u32; 256] {
        let mut counts = [0; 256];
        counts[usize::from(ESCAPE)] = 1;
        counts[0] = (self.mass[0] * 16_777_216.0) as u32;
        for (size, mass) in self.mass.iter().enumerate().skip(1).take_while(|(_, mass)| **mass / 2.0 > RAREST) {
            let count = (mass / 2.0 * 16_777_216.0) as u32;
            (counts[2 * size - 1], counts[2 * size]) = (count, count);
        }
        counts
    }

    /// The mean of the values that become `number`: nearer to zero than it is, since smaller ones are more frequent. As far as there are
    /// enough of them to tell.
    fn mean(&self, number: i32) -> f32 {
        let size = number.unsigned_abs() as usize;
        let mean = match self.mass.get(size) {
            Some(mass) if size > 0 && mass / 2.0 > RAREST => self.first[size] / mass,
            _ => size as f64,
        };
        // To 256ths, which is fine enough and leaves the last bits of sums out.
        let mean = (libm::round(mean * 256.0) / 256.0) as f32;
        if number < 0 { -mean } else { mean }
    }
}

/// Density at `x` of a normal distribution whose standard deviation is log-normal and has the mean square `deviation` squared.
fn density(x: f64, deviation: f64) -> f64 {
    let normal = |deviation: f64| libm::exp(-(x / deviation) * (x / deviation) / 2.0) / deviation;
    let of = |z: f64| libm::exp(-z * z / 2.0) * normal(deviation * libm::exp(SPREAD * z - SPREAD * SPREAD));
    (-8..=8).map(|z| of(f64::from(z) * 0.4)).sum()
}

/// The symbol of a small number: 0, 1, -1, 2, -2, ... are 0, 1, 2, 3, 4.
pub(super) fn fold(number: i32) -> Option<u8> {
    let folded = number.unsigned_abs().checked_mul(2)? - u32::from(number > 0);
    u8::try_from(folded).ok().filter(|symbol| *symbol < ESCAPE)
}

/// The inverse of [`fold`].
pub(super) fn unfold(symbol: u8) -> i32 {
    let size = i32::from(symbol.div_ceil(2));
    if symbol % 2 == 1 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_are_folded_and_back() {
        assert!((-127..=127).all(|number| fold(number).map(unfold) == Some(number)));
        assert_eq!([0, 1, -1, 2].map(fold), [0, 1, 2, 3].map(Some));
        assert_eq!([128, -128, i32::MAX, i32::MIN].map(fold), [None; 4]);
    }

    #[test]
    fn classes_go_on_where_the_tables_end() {
        let last = TABLES as u8;
        for (class, table, shift) in
            [(1, 0, 0), (last, 28, 0), (last + 1, 25, 1), (last + 4, 28, 1), (last + 5, 25, 2), (MOST_CLASS, 28, 12)]
        {
            assert_eq!(Coding::of(class), Coding { table, shift });
        }
        assert_eq!([1.0, 2.0, 0.0, 1e30].map(Coding::nearest), [13, 15, 1, MOST_CLASS]);
    }

    /// The tables are part of the format: what they are now they stay.
    #[test]
    fn the_tables_stay_as_they_are() {
        let tables = Tables::shared();
        let mut bytes = Vec::new();
        tables.rans.iter().for_each(|table| table.write(&mut bytes));
        bytes.extend(tables.values.iter().flatten().flat_map(|value| value.to_le_bytes()));
        assert_eq!(sira_tensor::kv::hash(&bytes), "380eb456266cd1d4c91831e88ddb4496fa68731b48bae2940674f6a2ab1b9b0d");
    }

    #[test]
    fn a_tables_bits_are_those_of_its_distribution() {
        let tables = Tables::shared();
        for (index, (rans, bits)) in tables.rans.iter().zip(&tables.bits).enumerate() {
            let entropy: f64 =
                (0..=255u8).map(|symbol| f64::from(rans.frequency(symbol)) / 4096.0 * f64::from(bits[usize::from(symbol)])).sum();
            let deviation = libm::exp2(f64::from(index as i32 + FINEST) / 4.0);
            // Of a normal distribution as wide, in steps; what is narrow has less, by its dead zone.
            let normal = libm::log2(deviation) + 2.047;
            assert!(
                entropy < normal.max(0.2) + 0.2 && (index < 16 || entropy > normal - 0.1),
                "{index}: {entropy} bits, {normal} of a normal one"
            );
        }
    }
}
