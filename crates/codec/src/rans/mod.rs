//! Interleaved rANS: an entropy coder of byte symbols with given frequencies.
//!
//! rANS (Duda, arXiv 1311.2540) keeps one integer, the state, from which the decoder takes symbol after symbol, last in first out.
//! Here 32 states take turns (Giesen, arXiv 1402.3392): symbol i belongs to state i mod 32, so that a vector unit works on many at
//! once. The format is the same whatever the machine: states of 32 bits kept at 2^16 or more, refilled by 16 bits.
//!
//! # Bytes
//! The states the decoder starts with, one u32 each of as many as there are symbols, 32 at most; then the u16 words that refill them,
//! in the order in which the encoder put them out, so that the decoder takes them from the end. All little-endian. When all symbols
//! are decoded every state is 2^16 again and no word is left.
//!
//! Symbols come in runs; each run has its table, and neither is part of the bytes.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod table;

pub(crate) use table::Table;

use crate::CodecError;
use table::{Entry, PRECISION, TOTAL, corrupt};

/// States that take turns.
pub(crate) const LANES: usize = 32;

/// The least value of a state between two symbols, and what each begins with.
const LEAST: u32 = 1 << 16;

type States = [u32; LANES];

/// Encodes `symbols`, which are the runs one after the other: each an index into `tables` and a number of symbols.
///
/// # Errors
/// A symbol whose frequency is zero in its table; runs that are not as long as the symbols or name no table.
pub(crate) fn encode(symbols: &[u8], runs: impl IntoIterator<Item = (usize, usize)>, tables: &[Table]) -> Result<Vec<u8>, CodecError> {
    let mut stored = Vec::new();
    encode_to(&mut stored, symbols, runs, tables)?;
    Ok(stored)
}

/// [`encode`], appended to `out`.
pub(crate) fn encode_to(
    out: &mut Vec<u8>,
    symbols: &[u8],
    runs: impl IntoIterator<Item = (usize, usize)>,
    tables: &[Table],
) -> Result<(), CodecError> {
    let runs: Vec<(usize, usize)> = runs.into_iter().collect();
    let mut states = [LEAST; LANES];
    let used = symbols.len().min(LANES);
    let head = out.len();
    out.resize(head + used * 4, 0);
    // Backwards: what is encoded last is decoded first.
    let mut rest = symbols;
    for &(table, len) in runs.iter().rev() {
        let table = tables.get(table).ok_or_else(|| no_table(table, tables))?;
        let start = rest.len().checked_sub(len).ok_or_else(|| wrong_runs(&runs, symbols.len()))?;
        let (before, run) = rest.split_at(start);
        encode_run(run, start, table, &mut states, out)?;
        rest = before;
    }
    if !rest.is_empty() {
        return Err(wrong_runs(&runs, symbols.len()));
    }
    for (bytes, state) in out[head..].as_chunks_mut().0.iter_mut().zip(&states[..used]) {
        *bytes = state.to_le_bytes();
    }
    Ok(())
}

/// Encodes the symbols of one run, last first; `start` is the index of its first symbol.
fn encode_run(run: &[u8], start: usize, table: &Table, states: &mut States, words: &mut Vec<u8>) -> Result<(), CodecError> {
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        // Whole turns of the lanes, and what stands before and behind them.
        let (head, turns) = whole_turns(run.len(), start);
        encode_symbols(&run[head + turns..], start + head + turns, table, states, words)?;
        avx2::encode_turns(&run[head..head + turns], table, states, words)?;
        return encode_symbols(&run[..head], start, table, states, words);
    }
    encode_symbols(run, start, table, states, words)
}

/// For a run that begins with the symbol `start`: how many symbols of it stand before a whole turn of the lanes, and how many make up
/// whole turns.
fn whole_turns(len: usize, start: usize) -> (usize, usize) {
    let head = (start.next_multiple_of(LANES) - start).min(len);
    (head, (len - head) / LANES * LANES)
}

fn encode_symbols(run: &[u8], start: usize, table: &Table, states: &mut States, words: &mut Vec<u8>) -> Result<(), CodecError> {
    for (i, &symbol) in run.iter().enumerate().rev() {
        let entry = table.entries[usize::from(symbol)];
        if entry.frequency() == 0 {
            return Err(CodecError::encode("rans", format!("symbol {symbol} has no frequency")));
        }
        let state = &mut states[(start + i) % LANES];
        if *state >> 20 >= u32::from(entry.frequency()) {
            words.extend((*state as u16).to_le_bytes());
            *state >>= 16;
        }
        *state = push(*state, entry);
    }
    Ok(())
}

/// The state with one more symbol in it: `state / frequency * TOTAL + start + state % frequency`.
fn push(state: u32, entry: Entry) -> u32 {
    let frequency = u32::from(entry.frequency());
    // The reciprocal is rounded down, so the quotient is right or one too small.
    let mut quotient = ((u64::from(state) * u64::from(entry.reciprocal())) >> 32) as u32;
    let mut rest = state - quotient * frequency;
    if rest >= frequency {
        quotient += 1;
        rest -= frequency;
    }
    (quotient << PRECISION) + rest + u32::from(entry.start())
}

/// Decodes `stored`, all of it, into `out`, which the runs fill one after the other.
///
/// # Errors
/// `stored` is not what [`encode`] made of as many symbols with these tables (damage that by chance leads to the same end is not
/// noticed); runs that are not as long as `out` or name no table. What has been written to `out` then means nothing.
pub(crate) fn decode(
    stored: &[u8],
    runs: impl IntoIterator<Item = (usize, usize)>,
    tables: &[Table],
    out: &mut [u8],
) -> Result<(), CodecError> {
    let len = out.len();
    let mut decoder = Decoder::new(stored, len)?;
    let mut rest = out;
    for (table, count) in runs {
        let table = tables.get(table).ok_or_else(|| no_table(table, tables))?;
        let run = rest.split_off_mut(..count).ok_or_else(|| corrupt(format!("runs of {len} symbols"), "more"))?;
        decoder.run(table, run)?;
    }
    if !rest.is_empty() {
        return Err(corrupt(format!("runs of {len} symbols"), len - rest.len()));
    }
    decoder.end()
}

/// Decodes run after run, for callers that do something with each before the next.
pub(crate) struct Decoder<'a> {
    /// What is left of the words.
    words: &'a [u8],
    states: States,
    /// Symbols decoded.
    done: usize,
}

impl<'a> Decoder<'a> {
    /// Begins to decode `stored`, which holds `len` symbols.
    pub(crate) fn new(stored: &'a [u8], len: usize) -> Result<Decoder<'a>, CodecError> {
        let used = len.min(LANES);
        let (head, words) = stored.split_at_checked(used * 4).ok_or_else(|| corrupt(format!("{used} states"), "fewer"))?;
        let mut states = [LEAST; LANES];
        for (state, bytes) in states.iter_mut().zip(head.as_chunks().0) {
            *state = u32::from_le_bytes(*bytes);
        }
        Ok(Decoder { words, states, done: 0 })
    }

    /// Decodes the next symbols, as many as `out` has room for.
    pub(crate) fn run(&mut self, table: &Table, out: &mut [u8]) -> Result<(), CodecError> {
        #[cfg(target_arch = "x86_64")]
        if avx2::available() {
            let (head, turns) = whole_turns(out.len(), self.done);
            let (head, out) = out.split_at_mut(head);
            self.symbols(table, head)?;
            let fast = avx2::decode_turns(&mut self.words, table, &mut self.states, &mut out[..turns]);
            self.done += fast;
            return self.symbols(table, &mut out[fast..]);
        }
        self.symbols(table, out)
    }

    fn symbols(&mut self, table: &Table, out: &mut [u8]) -> Result<(), CodecError> {
        for symbol in out {
            let state = &mut self.states[self.done % LANES];
            let slot = table.slots[(*state % TOTAL) as usize];
            *symbol = slot as u8;
            // Cannot overflow: 4096 * (2^20 - 1) + 4095 < 2^32.
            *state = ((slot >> 20) + 1) * (*state >> PRECISION) + (slot >> 8 & (TOTAL - 1));
            if *state < LEAST {
                let (rest, word) = self.words.split_last_chunk().ok_or_else(|| corrupt("another word", "the end"))?;
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
                self.words = rest;
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), CodecError> {
        if !self.words.is_empty() || self.states != [LEAST; LANES] {
            return Err(corrupt("an end after the last symbol", "more"));
        }
        Ok(())
    }
}

fn no_table(table: usize, tables: &[Table]) -> CodecError {
    corrupt(format!("a table below {}", tables.len()), table)
}

fn wrong_runs(runs: &[(usize, usize)], symbols: usize) -> CodecError {
    let sum = runs.iter().fold(0usize, |sum, (_, len)| sum.saturating_add(*len));
    CodecError::encode("rans", format!("runs of {sum} symbols for {symbols}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn counts(symbols: &[u8]) -> [u32; 256] {
        let mut counts = [0; 256];
        symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
        counts
    }

    /// Symbols with a falling distribution over up to `most + 1` values.
    fn symbols(len: usize, most: u8, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as u32
        };
        (0..len).map(|_| (next() >> 15 & next() >> 15 & 0xffff).min(u32::from(most)).min(next() & 0xff) as u8).collect()
    }

    fn round_trip(symbols: &[u8], lens: &[usize]) {
        let mut tables = Vec::new();
        let mut at = 0;
        for len in lens {
            tables.push(Table::from_counts(&counts(&symbols[at..at + len])));
            at += len;
        }
        let stored = encode(symbols, lens.iter().copied().enumerate(), &tables).unwrap();
        let mut out = vec![0xee; symbols.len()];
        decode(&stored, lens.iter().copied().enumerate(), &tables, &mut out).unwrap();
        assert!(out == symbols, "{lens:?}");
    }

    #[test]
    fn runs_of_any_length_come_back() {
        for most in [0, 1, 12, 255] {
            let symbols = symbols(10_000, most, 7);
            for lens in [&[10_000][..], &[32, 9968], &[0, 1, 31, 33, 64, 8, 9863, 0], &[9_999, 1]] {
                round_trip(&symbols, lens);
            }
            for len in (0..130).chain([1023, 1024, 1025]) {
                round_trip(&symbols[..len], &[len]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors_write_and_read_the_same_bytes() {
        if !avx2::available() {
            return;
        }
        for (most, len) in [(12, 32 * 150), (255, 32 * 1000)] {
            let symbols = symbols(len, most, 11);
            let table = Table::from_counts(&counts(&symbols));
            let (mut plain, mut vectors) = ((Vec::new(), [LEAST; LANES]), (Vec::new(), [LEAST; LANES]));
            encode_symbols(&symbols, 0, &table, &mut plain.1, &mut plain.0).unwrap();
            avx2::encode_turns(&symbols, &table, &mut vectors.1, &mut vectors.0).unwrap();
            assert!(plain == vectors, "{most}");

            let (words, states) = plain;
            let mut decoder = Decoder { words: &words, states, done: 0 };
            let mut out = vec![0xee; len];
            decoder.symbols(&table, &mut out).unwrap();
            assert!(out == symbols && decoder.end().is_ok(), "{most}");

            let (mut words, mut states) = (&words[..], states);
            out.fill(0xee);
            let done = avx2::decode_turns(&mut words, &table, &mut states, &mut out);
            assert!(out[..done] == symbols[..done] && done > len / 2, "{most}: {done}");
        }
    }

    #[test]
    fn the_quotient_is_exact() {
        for frequency in 1..=4096u32 {
            let counts = [frequency, 4096 - frequency];
            let table = Table::from_counts(&counts);
            let entry = table.entries[0];
            assert_eq!(u32::from(entry.frequency()), frequency);
            // From the least state to the last before a word would be put out.
            let end = u64::from(frequency) << 20;
            for state in [1 << 16, (1 << 16) + 1, end / 3, end / 2 - 1, end - u64::from(frequency), end - 2, end - 1] {
                let state = state.clamp(u64::from(frequency) << 4, end - 1) as u32;
                assert_eq!(push(state, entry), ((state / frequency) << 12) + state % frequency, "{state} by {frequency}");
            }
        }
    }

    #[test]
    fn a_certain_symbol_takes_no_bytes() {
        let table = [Table::from_counts(&[0, 3])];
        let stored = encode(&[1; 5000], [(0, 5000)], &table).unwrap();
        assert_eq!(stored, [0, 0, 1, 0].repeat(32));
    }

    #[test]
    fn the_size_is_that_of_the_entropy() {
        let symbols = symbols(100_000, 12, 3);
        let counts = counts(&symbols);
        let bits: f64 = counts.iter().filter(|c| **c > 0).map(|&c| -f64::from(c) * (f64::from(c) / 1e5).log2()).sum();
        let stored = encode(&symbols, [(0, symbols.len())], &[Table::from_counts(&counts)]).unwrap();
        assert!((stored.len() as f64) < bits / 8.0 * 1.001 + 128.0, "{} bytes for {} bits", stored.len(), bits);
    }

    #[test]
    fn what_cannot_be_encoded_is_an_error() {
        let tables = [Table::from_counts(&[1, 1])];
        assert!(encode(&[0, 1, 2], [(0, 3)], &tables).unwrap_err().to_string().contains("symbol 2"));
        assert!(encode(&[0, 1], [(1, 2)], &tables).is_err());
        assert!(encode(&[0, 1], [(0, 1)], &tables).is_err());
        assert!(encode(&[0, 1], [(0, 1), (0, 2)], &tables).is_err());
        assert!(encode(&[0, 1], [(0, 1), (0, usize::MAX)], &tables).is_err());
    }

    #[test]
    fn damage_is_an_error_or_wrong_symbols() {
        let symbols = symbols(2_000, 12, 5);
        let tables = [Table::from_counts(&counts(&symbols))];
        let stored = encode(&symbols, [(0, 2_000)], &tables).unwrap();
        let mut out = vec![0; 2_000];
        for cut in 0..stored.len() {
            assert!(decode(&stored[..cut], [(0, 2_000)], &tables, &mut out).is_err(), "{cut}");
        }
        assert!(decode(&[&stored[..], &[0, 0]].concat(), [(0, 2_000)], &tables, &mut out).is_err());
        assert!(decode(&stored, [(0, 1_999)], &tables, &mut out).is_err());
        assert!(decode(&stored, [(0, 2_001)], &tables, &mut out).is_err());
        assert!(decode(&stored, [(0, 1_999), (1, 1)], &tables, &mut out).is_err());
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged, [(0, 2_000)], &tables, &mut out).is_err() || out != symbols);
        }
    }

    proptest! {
        #[test]
        fn any_symbols_come_back(symbols in vec(any::<u8>(), 0..3000), cuts in vec(any::<prop::sample::Index>(), 0..6)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(symbols.len() + 1)).collect();
            cuts.extend([0, symbols.len()]);
            cuts.sort_unstable();
            let lens: Vec<usize> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            round_trip(&symbols, &lens);
        }

        #[test]
        fn foreign_bytes_never_panic(stored in vec(any::<u8>(), 0..400), head in vec(any::<u8>(), 0..40), len in 0..500usize) {
            let table = Table::read(&mut &head[..]).unwrap_or(Table::from_counts(&[1, 2, 3, 4000]));
            let _ = decode(&stored, [(0, len)], &[table], &mut vec![0; len]);
        }
    }
}
