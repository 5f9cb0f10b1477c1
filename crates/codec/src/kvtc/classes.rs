//! Which class the coefficients of a row are of, and which whole numbers they become.

use crate::CodecError;
use crate::calibration::shapes::{Class, ESCAPE, FINEST, MAX_CLASS, Shapes, fold};

/// What a bit is worth, in squares of a step: at high rates a bit more a coefficient takes three quarters of the error of step² / 12.
const BIT: f32 = 0.1155;

/// Bits of what follows an escape.
const ESCAPED: f32 = 32.0;

/// Classes on either side of the one of the same deviation that are tried.
const NEIGHBOURS: u8 = 2;

/// What symbols cost, and where one number ends and the next begins.
pub(super) struct Costs {
    tables: Vec<Cost>,
}

struct Cost {
    /// Bits of the numbers 0, 1, ... and of an escape, at the end.
    bits: Vec<f32>,
    /// How far the mean of the sizes 0, 1, ... is below them; all larger ones have the last one's.
    below: Vec<f32>,
    /// The size from which on a coefficient becomes at least 1, 2, ...
    thresholds: Vec<f32>,
}

impl Costs {
    /// Costs under `shapes`.
    pub(super) fn new(shapes: &Shapes) -> Costs {
        Costs { tables: (0..shapes.tables.len()).map(|table| Cost::new(shapes, table)).collect() }
    }

    /// The class under which errors and bits of `column`, in steps, together cost least; 0 if that is to leave it out.
    pub(super) fn class(&self, column: &[f32]) -> u8 {
        let square = column.iter().map(|value| value * value).sum::<f32>() / column.len().max(1) as f32;
        let nearest = (2.0 * square.max(1e-12).log2()).round() as i32 - FINEST + 1;
        let nearest = nearest.clamp(1, i32::from(MAX_CLASS)) as u8;
        let mut best = (square * column.len() as f32, 0);
        for class in nearest.saturating_sub(NEIGHBOURS).max(1)..=(nearest + NEIGHBOURS).min(MAX_CLASS) {
            let of = Class::of(class);
            let cost = column.iter().map(|&value| self.cost(of, value)).sum::<f32>();
            if cost < best.0 {
                best = (cost, class);
            }
        }
        best.1
    }

    /// Squared error and bits of a coefficient under a class.
    fn cost(&self, class: Class, value: f32) -> f32 {
        let number = self.quantise(class, value);
        let table = &self.tables[class.table];
        let mean = number.unsigned_abs() as f32
            - if class.shift > 0 { 0.0 } else { table.below[(number.unsigned_abs() as usize).min(table.below.len() - 1)] };
        let symbol = (number >> class.shift).unsigned_abs() as usize;
        let bits = class.shift as f32 + table.bits[symbol.min(table.bits.len() - 1)];
        (value.abs() - mean).powi(2) + BIT * bits
    }

    /// The number whose error and bits together cost least.
    pub(super) fn quantise(&self, class: Class, value: f32) -> i32 {
        let size = value.abs();
        let thresholds = &self.tables[class.table].thresholds;
        let number = if class.shift > 0 || size >= thresholds.len() as f32 {
            (size + 0.5) as i32
        } else {
            // Thresholds lie between half a step below and above the middle of two numbers, or a little beyond.
            let mut number = size as i32;
            while (number as usize) < thresholds.len() && size >= thresholds[number as usize] {
                number += 1;
            }
            while number > 0 && size < thresholds[number as usize - 1] {
                number -= 1;
            }
            number
        };
        if value < 0.0 { -number } else { number }
    }
}

impl Cost {
    fn new(shapes: &Shapes, table: usize) -> Cost {
        let of = |symbol: u8| 12.0 - f32::from(shapes.tables[table].frequency(symbol).max(1)).log2();
        let known = |number: &i32| fold(*number).is_some_and(|symbol| shapes.tables[table].frequency(symbol) > 0);
        let mut bits: Vec<f32> = (0..).take_while(known).map(|number| of(fold(number).unwrap_or(ESCAPE))).collect();
        bits.push(of(ESCAPE) + ESCAPED);
        let class = Class { table, shift: 0 };
        let thresholds = (1..bits.len() - 1).map(|number| {
            let (below, above) = (shapes.mean(class, number as i32 - 1), shapes.mean(class, number as i32));
            let errors = above * above - below * below;
            ((errors + BIT * (bits[number] - bits[number - 1])) / (2.0 * (above - below))).clamp(number as f32 - 0.75, number as f32 + 0.25)
        });
        let below = (0..5).map(|number| number as f32 - shapes.mean(class, number)).collect();
        Cost { thresholds: thresholds.collect(), below, bits }
    }
}

/// Classes as differences from what the calibration says and what the rows before were.
pub(super) struct Prediction {
    step: i16,
    /// How much higher than the calibration says the classes are, on average of late, in sixteenths.
    bias: i32,
}

impl Prediction {
    /// For a step of this level.
    pub(super) fn new(step: i16) -> Prediction {
        Prediction { step, bias: 0 }
    }

    fn predict(&self, level: i16) -> i32 {
        (self.plain(level) + (self.bias + 8).div_euclid(16)).clamp(0, i32::from(MAX_CLASS))
    }

    fn plain(&self, level: i16) -> i32 {
        i32::from(level) - i32::from(self.step) - FINEST + 1
    }

    fn learn(&mut self, level: i16, class: u8) {
        let error = 16 * (i32::from(class) - self.plain(level).max(0)) - self.bias;
        self.bias += error.div_euclid(8);
    }

    /// What is stored of `class`.
    pub(super) fn differ(&mut self, level: i16, class: u8) -> u8 {
        let predicted = self.predict(level);
        self.learn(level, class);
        fold(i32::from(class) - predicted).unwrap_or_default()
    }

    /// The inverse of [`Prediction::differ`].
    pub(super) fn resolve(&mut self, level: i16, stored: u8) -> Result<u8, CodecError> {
        let class = self.predict(level) + crate::calibration::shapes::unfold(stored);
        let class = u8::try_from(class).ok().filter(|class| *class <= MAX_CLASS && stored != ESCAPE);
        let class = class.ok_or_else(|| super::corrupt(format!("a class of at most {MAX_CLASS}"), "another"))?;
        self.learn(level, class);
        Ok(class)
    }
}
