//! Which blocks of a chunk share a table of frequencies.

use crate::rans::Table;

pub(super) type Counts = [u32; 256];

/// The most tables of a chunk.
pub(super) const MAX_TABLES: usize = 8;

/// Bits are counted in 256ths.
pub(super) const BIT: u64 = 256;

/// Bytes of a stored table for each symbol that occurs, nearly.
const TABLE_SYMBOL: u64 = 10 * BIT;

/// Symbols of the blocks so far, sorted into groups that get a table each.
#[derive(Default)]
pub(super) struct Groups {
    counts: Vec<Counts>,
    costs: Vec<Counts>,
}

impl Groups {
    /// Puts a block with these symbols into the group whose table fits it best, or into a new one if that saves more than its table
    /// takes; and says which.
    #[inline(always)]
    pub(super) fn add(&mut self, counts: &Counts) -> usize {
        let own = entropy(counts) + TABLE_SYMBOL * counts.iter().filter(|count| **count > 0).count() as u64;
        let costs = self.costs.iter().map(|costs| counts.iter().zip(costs).map(|(&count, &cost)| u64::from(count) * u64::from(cost)).sum());
        let best = costs.enumerate().min_by_key(|(i, cost): &(usize, u64)| (*cost, *i));
        let group = match best {
            Some((group, cost)) if cost <= own || self.counts.len() == MAX_TABLES => group,
            _ => {
                self.counts.push([0; 256]);
                self.costs.push([0; 256]);
                self.counts.len() - 1
            }
        };
        let sums = &mut self.counts[group];
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
        // As if each symbol had occurred a sixteenth of a time more, so that those that have not yet cost something finite.
        let total = log2(sums.iter().map(|&count| u64::from(count) * 16 + 1).sum());
        self.costs[group] = sums.map(|count| (total - log2(u64::from(count) * 16 + 1)) as u32);
        group
    }

    pub(super) fn tables(&self) -> Vec<Table> {
        self.counts.iter().map(|counts| Table::from_counts(counts)).collect()
    }
}

/// What the best code for these symbols takes, without its table.
#[inline(always)]
pub(super) fn entropy(counts: &Counts) -> u64 {
    let total = log2(counts.iter().map(|&count| u64::from(count)).sum());
    counts.iter().filter(|count| **count > 0).map(|&count| u64::from(count) * (total - log2(u64::from(count)))).sum()
}

/// log2, within a hundredth, in whole numbers so that every machine decides alike. Of 0 it is 0.
#[inline(always)]
fn log2(x: u64) -> u64 {
    let whole = x.checked_ilog2().unwrap_or(0);
    // The eight bits behind the leading one; log2(1 + t) is about t + .344 t (1 - t).
    let t = if whole < 8 { x << (8 - whole) } else { x >> (whole - 8) } & 255;
    u64::from(whole) * BIT + t + ((t * (256 - t) * 88) >> 16)
}

/// How often each symbol occurs, added to `counts`.
#[inline(always)]
pub(super) fn count(symbols: &[u8], counts: &mut Counts) {
    // In turns, since counting the same symbol twice in a row waits for the memory.
    let mut turns = [[0u32; 256]; 8];
    let (eights, rest) = symbols.as_chunks::<8>();
    for eight in eights {
        let word = u64::from_le_bytes(*eight);
        for (i, turn) in turns.iter_mut().enumerate() {
            turn[usize::from((word >> (8 * i)) as u8)] += 1;
        }
    }
    for symbol in rest {
        turns[0][usize::from(*symbol)] += 1;
    }
    for turn in turns {
        counts.iter_mut().zip(turn).for_each(|(count, more)| *count += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_near() {
        for x in (1..5000).chain([1 << 20, (1 << 40) + 12345, u64::MAX]) {
            let exact = (x as f64).log2();
            assert!((log2(x) as f64 / 256.0 - exact).abs() < 0.02, "{x}: {} for {exact}", log2(x) as f64 / 256.0);
        }
    }

    #[test]
    fn like_blocks_share_a_table() {
        let block = |of: u8| {
            let symbols: Vec<u8> = (0..20_000u32).map(|i| of + (i % 7).min(i % 5) as u8).collect();
            let mut counts = [0; 256];
            count(&symbols, &mut counts);
            assert_eq!(counts.iter().sum::<u32>(), 20_000);
            counts
        };
        let mut groups = Groups::default();
        assert_eq!([0, 0, 100, 0, 100].map(|of| groups.add(&block(of))), [0, 0, 1, 0, 1]);
        assert_eq!((10..20).map(|of| groups.add(&block(of * 10))).max(), Some(MAX_TABLES - 1));
        assert_eq!(groups.tables().len(), MAX_TABLES);
    }
}
