//! Single bits, and small whole numbers in few of them.

/// Ones in front of a number that is not written in Rice's code but in 32 bits.
const LONGEST: u32 = 24;

/// The largest parameter of Rice's code.
pub(super) const MOST_PARAMETER: u32 = 15;

/// Bits, the first in the lowest of the first byte.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    word: u64,
    filled: u32,
}

/// Reads what a [`Writer`] wrote.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    word: u64,
    filled: u32,
}

impl Writer {
    /// The lowest `count` bits, 32 at most.
    pub(super) fn bits(&mut self, bits: u32, count: u32) {
        self.word |= (u64::from(bits) & ((1 << count) - 1)) << self.filled;
        self.filled += count;
        while self.filled >= 8 {
            self.bytes.push(self.word as u8);
            self.word >>= 8;
            self.filled -= 8;
        }
    }

    /// A number in Rice's code (1979) with a parameter: its bits above the parameter's as so many ones and a zero, then those below; one
    /// that would take too many ones as the most of them and 32 bits.
    pub(super) fn rice(&mut self, number: u32, parameter: u32) {
        match number >> parameter {
            ones @ 0..LONGEST => {
                self.bits((1 << ones) - 1, ones + 1);
                self.bits(number, parameter);
            }
            _ => {
                self.bits((1 << LONGEST) - 1, LONGEST);
                self.bits(number, 32);
            }
        }
    }

    /// The bytes; the last is filled up with zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bits(0, (8 - self.filled) % 8);
        self.bytes
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, word: 0, filled: 0 }
    }

    /// The next `count` bits, 32 at most; `None` at the end.
    pub(super) fn bits(&mut self, count: u32) -> Option<u32> {
        while self.filled < count {
            self.word |= u64::from(*self.bytes.split_off_first()?) << self.filled;
            self.filled += 8;
        }
        let bits = self.word & ((1 << count) - 1);
        self.word >>= count;
        self.filled -= count;
        Some(bits as u32)
    }

    /// The next number in Rice's code.
    pub(super) fn rice(&mut self, parameter: u32) -> Option<u32> {
        let mut ones = 0;
        while ones < LONGEST && self.bits(1)? == 1 {
            ones += 1;
        }
        match ones {
            LONGEST => self.bits(32),
            _ => Some(ones << parameter | self.bits(parameter)?),
        }
    }

    /// Whether nothing is left but the zeros of the last byte.
    pub(super) fn at_end(&self) -> bool {
        self.bytes.is_empty() && self.filled < 8 && self.word == 0
    }
}

/// Numbers of either sign as those of one: 0, -1, 1, -2, ... become 0, 1, 2, 3.
pub(super) fn zigzag(number: i32) -> u32 {
    (number << 1 ^ number >> 31) as u32
}

/// The inverse of [`zigzag`].
pub(super) fn unzigzag(number: u32) -> i32 {
    (number >> 1) as i32 ^ -((number & 1) as i32)
}

/// The parameter with which numbers take the fewest bits.
pub(super) fn parameter(numbers: impl Iterator<Item = u32> + Clone) -> u32 {
    let cost = |parameter: u32| -> u64 {
        let of = |number: u32| match number >> parameter {
            ones @ 0..LONGEST => ones + 1 + parameter,
            _ => LONGEST + 32,
        };
        numbers.clone().map(|number| u64::from(of(number))).sum()
    };
    (0..=MOST_PARAMETER).min_by_key(|&parameter| cost(parameter)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_few_bits() {
        let numbers = [0, 1, 2, 3, 100, 65_535, 1 << 20, u32::MAX];
        for parameter in 0..=MOST_PARAMETER {
            let mut writer = Writer::default();
            numbers.iter().for_each(|&number| writer.rice(number, parameter));
            writer.bits(5, 3);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes);
            for number in numbers {
                assert_eq!(reader.rice(parameter), Some(number));
            }
            assert_eq!(reader.bits(3), Some(5));
            assert!(reader.at_end());
            assert_eq!(reader.bits(8), None);
        }
        let mut writer = Writer::default();
        writer.rice(2, 1);
        assert_eq!(writer.finish(), [0b001]);
        assert_eq!(parameter([0, 0, 1].into_iter()), 0);
        assert_eq!(parameter([16, 17, 31].into_iter()), 4);
    }

    #[test]
    fn signs_are_folded_and_back() {
        assert_eq!([0, -1, 1, -2, i32::MAX, i32::MIN].map(zigzag), [0, 1, 2, 3, u32::MAX - 1, u32::MAX]);
        assert!([0, -1, 1, -2, 77, i32::MAX, i32::MIN].iter().all(|&number| unzigzag(zigzag(number)) == number));
    }
}
