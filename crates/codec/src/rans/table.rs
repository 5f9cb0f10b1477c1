//! Frequencies of byte symbols, and what the coder looks up in them.

use std::fmt;

use crate::CodecError;

/// Frequencies are out of `1 << PRECISION`.
pub(crate) const PRECISION: u32 = 12;

/// The sum of a table's frequencies.
pub(crate) const TOTAL: u32 = 1 << PRECISION;

/// The most bytes that [`Table::write`] appends.
#[cfg(test)]
pub(crate) const MAX_STORED: usize = 2 + 2 * 255;

/// How often each byte symbol is to be expected, as frequencies that add up to [`TOTAL`].
///
/// Made by integer arithmetic alone, so equal counts give equal tables on every machine: a table may be stored beside the symbols
/// ([`Table::write`]) or be computed on both sides from the same counts, of a formula in whole numbers for example.
#[derive(Clone)]
pub(crate) struct Table {
    pub(super) entries: Box<[Entry; 256]>,
    /// For each of `TOTAL` slots the symbol that owns it, the symbol's frequency less one in the upper 12 bits, and the slot's
    /// distance from the symbol's first slot in the 12 bits between.
    pub(super) slots: Box<[u32; TOTAL as usize]>,
}

/// What the encoder needs to know of a symbol, in one word: from the lowest bit on 32 bits of [`Entry::reciprocal`], 16 of
/// [`Entry::frequency`], 16 of [`Entry::start`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    fn new(frequency: u16, start: u16) -> Entry {
        let reciprocal = ((1 << 32) / u64::from(frequency)).min(u64::from(u32::MAX));
        Entry(reciprocal | u64::from(frequency) << 32 | u64::from(start) << 48)
    }

    /// 2^32 / `frequency`, rounded down, or 2^32 - 1.
    pub(super) fn reciprocal(self) -> u32 {
        self.0 as u32
    }

    /// Zero for a symbol that cannot be encoded.
    pub(super) fn frequency(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The sum of the frequencies of all smaller symbols.
    pub(super) fn start(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

impl Table {
    /// Normalises counts of symbols 0, 1, ... (up to 256; more are left out). A symbol that occurs keeps a frequency of at least one;
    /// with no counts at all, symbol 0 is certain.
    pub(crate) fn from_counts(counts: &[u32]) -> Table {
        let counts = &counts[..counts.len().min(256)];
        let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        let mut frequencies = [0; 256];
        if total == 0 {
            frequencies[0] = TOTAL as u16;
            return Table::from_frequencies(&frequencies);
        }
        for (frequency, &count) in frequencies.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
            *frequency = ((u64::from(count) * u64::from(TOTAL) + total / 2) / total).max(1) as u16;
        }
        balance(&mut frequencies, counts);
        Table::from_frequencies(&frequencies)
    }

    /// Of frequencies that add up to `TOTAL`.
    fn from_frequencies(frequencies: &[u16; 256]) -> Table {
        let mut entries = Box::new([Entry::default(); 256]);
        let mut slots = Box::new([0; TOTAL as usize]);
        let mut start = 0;
        for (symbol, (entry, &frequency)) in entries.iter_mut().zip(frequencies).enumerate().filter(|(_, (_, frequency))| **frequency > 0) {
            *entry = Entry::new(frequency, start);
            let head = (u32::from(frequency) - 1) << 20 | symbol as u32;
            let first = usize::from(start);
            for (distance, slot) in slots[first..first + usize::from(frequency)].iter_mut().enumerate() {
                *slot = head | (distance as u32) << 8;
            }
            start += frequency;
        }
        Table { entries, slots }
    }

    /// The frequency of `symbol` out of [`TOTAL`]; zero if it cannot be encoded.
    pub(crate) fn frequency(&self, symbol: u8) -> u16 {
        self.entries[usize::from(symbol)].frequency()
    }

    /// Appends the table: its first and last symbol, then the frequencies from the first up to, not including, the last, each as one
    /// byte below 128, otherwise two (the low seven bits with the top bit set, then the rest). The last has what is left of `TOTAL`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let occurs = |entry: &Entry| entry.frequency() > 0;
        let first = self.entries.iter().position(occurs).unwrap_or(0);
        let last = self.entries.iter().rposition(occurs).unwrap_or(0);
        out.extend([first as u8, last as u8]);
        for entry in &self.entries[first..last] {
            match entry.frequency() {
                small @ 0..128 => out.push(small as u8),
                large => out.extend([large as u8 | 0x80, (large >> 7) as u8]),
            }
        }
    }

    /// Reads what [`Table::write`] wrote from the front of `input`, and moves `input` on.
    ///
    /// Anything that it would not have written is an error: first and last symbol out of order or of zero frequency, a sum that is not
    /// `TOTAL`, the long form of a short number.
    pub(crate) fn read(input: &mut &[u8]) -> Result<Table, CodecError> {
        let mut next = || input.split_off_first().copied().ok_or_else(|| corrupt("a whole table", "its beginning"));
        let (first, last) = (usize::from(next()?), usize::from(next()?));
        if first > last {
            return Err(corrupt("symbols in order", format!("{first} to {last}")));
        }
        let mut frequencies = [0; 256];
        let mut left = TOTAL as u16;
        for frequency in &mut frequencies[first..last] {
            *frequency = match next()? {
                small @ 0..128 => u16::from(small),
                low => match u16::from(next()?) {
                    0 => return Err(corrupt("a frequency in its shortest form", "a longer one")),
                    high => high << 7 | u16::from(low & 0x7f),
                },
            };
            left = left.checked_sub(*frequency).ok_or_else(|| corrupt(format!("frequencies of {TOTAL} in sum"), "more"))?;
        }
        frequencies[last] = left;
        if frequencies[first] == 0 || left == 0 {
            return Err(corrupt("first and last symbols that occur", format!("{} and {left}", frequencies[first])));
        }
        Ok(Table::from_frequencies(&frequencies))
    }
}

/// Changes the frequencies of symbols that occur, where it costs the fewest bits, until they add up to `TOTAL`.
fn balance(frequencies: &mut [u16; 256], counts: &[u32]) {
    let mut sum: u32 = frequencies.iter().map(|&frequency| u32::from(frequency)).sum();
    // A step of one changes the bits by about count / frequency: give where that is most, take where it is least.
    let weight = |frequency: u16, count: u32| (u64::from(count) << 32) / u64::from(frequency.max(1));
    let mut weights = [0; 256];
    for ((weight_of, &frequency), &count) in weights.iter_mut().zip(&*frequencies).zip(counts) {
        *weight_of = weight(frequency, count);
    }
    while sum != TOTAL {
        let all = || weights.iter().zip(&*frequencies).enumerate();
        let found = if sum < TOTAL {
            all().filter(|(_, (_, frequency))| **frequency > 0).max_by_key(|(_, (weight, _))| **weight)
        } else {
            all().filter(|(_, (_, frequency))| **frequency > 1).min_by_key(|(_, (weight, _))| **weight)
        };
        let Some((symbol, _)) = found else { return };
        if sum < TOTAL {
            frequencies[symbol] += 1;
            sum += 1;
        } else {
            frequencies[symbol] -= 1;
            sum -= 1;
        }
        weights[symbol] = weight(frequencies[symbol], counts[symbol]);
    }
}

pub(super) fn corrupt(expected: impl Into<String>, found: impl ToString) -> CodecError {
    CodecError::corrupt("rans", expected, found)
}

impl PartialEq for Table {
    fn eq(&self, other: &Table) -> bool {
        self.entries == other.entries
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let occurring = self.entries.iter().enumerate().filter(|(_, entry)| entry.frequency() > 0);
        f.debug_map().entries(occurring.map(|(symbol, entry)| (symbol, entry.frequency()))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(table: &Table) -> u32 {
        (0..=255).map(|symbol| u32::from(table.frequency(symbol))).sum()
    }

    #[test]
    fn counts_become_frequencies_that_add_up() {
        let mut ramp = [0; 256];
        ramp.iter_mut().enumerate().for_each(|(i, count)| *count = (i * i) as u32);
        let mut one_of_many = [1; 256];
        one_of_many[7] = u32::MAX;
        for counts in [&[][..], &[0, 0], &[5], &[0, 0, 1], &[1, 1, 1], &[u32::MAX; 256], &ramp, &one_of_many, &[1; 300]] {
            let table = Table::from_counts(counts);
            assert_eq!(sum(&table), TOTAL, "{counts:?}");
            for (symbol, count) in counts.iter().take(256).enumerate() {
                assert!(*count == 0 || table.frequency(symbol as u8) > 0, "{symbol} of {counts:?}");
            }
        }
        let table = Table::from_counts(&[2, 1, 0, 1]);
        assert_eq!([0, 1, 2, 3].map(|symbol| table.frequency(symbol)), [2048, 1024, 0, 1024]);
    }

    #[test]
    fn each_slot_belongs_to_its_symbol() {
        let table = Table::from_counts(&[3, 0, 1, 4000, 92]);
        for (slot, entry) in table.slots.iter().enumerate() {
            let symbol = table.entries[(entry & 255) as usize];
            assert_eq!(entry >> 20, u32::from(symbol.frequency()) - 1);
            assert_eq!((entry >> 8 & 4095) + u32::from(symbol.start()), slot as u32);
        }
    }

    #[test]
    fn tables_come_back_and_leave_what_follows() {
        let mut ramp = [0; 256];
        ramp.iter_mut().enumerate().for_each(|(i, count)| *count = i as u32);
        for counts in [&[0, 0, 9][..], &[1, 2], &[0, 5, 0, 0, 1000, 3], &[1; 256], &ramp] {
            let table = Table::from_counts(counts);
            let mut stored = Vec::new();
            table.write(&mut stored);
            assert!(stored.len() <= MAX_STORED);
            for cut in 0..stored.len() {
                assert!(Table::read(&mut &stored[..cut]).is_err(), "{cut} bytes of {table:?}");
            }
            stored.extend([1, 2, 3]);
            let mut input = &stored[..];
            assert_eq!(Table::read(&mut input), Ok(table));
            assert_eq!(input, [1, 2, 3]);
        }
        let mut stored = Vec::new();
        Table::from_counts(&[0, 1, 0, 3]).write(&mut stored);
        assert_eq!(stored, [1, 3, 0x80, 8, 0]);
    }

    #[test]
    fn what_no_table_writes_is_refused() {
        for stored in [
            &[2, 1][..],                // out of order
            &[0, 1, 0],                 // the first does not occur
            &[0, 1, 0x80, 32],          // nothing left for the last
            &[0, 1, 0xff, 0xff],        // more than all
            &[0, 2, 0x80, 31, 0x80, 2], // more than all, in two
            &[0, 1, 0x81, 0],           // a long 1
        ] {
            assert!(Table::read(&mut &stored[..]).is_err(), "{stored:?}");
        }
    }
}
