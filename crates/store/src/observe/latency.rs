//! Latency histograms with fixed buckets: recording is two atomic additions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in nanoseconds; one more bucket has what took longer.
const BOUNDS: [u64; 16] = [
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// How many buckets there are, with the last one, which has no upper bound.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// How long things took: counts by bucket, and the sum.
#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// A histogram as it was at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// How many fell into each bucket, not cumulated.
    pub buckets: [u64; BUCKETS],
    /// Seconds of all together.
    pub seconds: f64,
}

impl Latency {
    /// Upper bound of a bucket in seconds; infinity for the last.
    pub fn bound(bucket: usize) -> f64 {
        BOUNDS.get(bucket).map_or(f64::INFINITY, |nanos| *nanos as f64 / 1e9)
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Seconds of one on average; `None` where there was none.
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.seconds / self.count() as f64)
    }

    /// Seconds that a share `q` (0 to 1) of them did not exceed, straight between the bounds of a bucket; beyond the last bound, that
    /// bound. `None` where there was none.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count() as f64;
        let mut below = 0;
        for (bucket, &count) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            if (below + count) as f64 >= rank {
                let lower = if bucket == 0 { 0.0 } else { Latency::bound(bucket - 1) };
                let upper = Latency::bound(bucket);
                let within = (rank - below as f64) / count as f64;
                return Some(if upper.is_finite() { lower + (upper - lower) * within } else { lower });
            }
            below += count;
        }
        None
    }

    /// Takes `other` in.
    pub fn add(&mut self, other: &Latency) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.seconds += other.seconds;
    }
}

/// A histogram for each of `O` operations and `R` outcomes.
pub(super) struct Table<const O: usize, const R: usize>([[Histogram; R]; O]);

/// How often, and how long, an operation ended in an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// What was done.
    pub operation: &'static str,
    /// How it ended: `ok`, or why it failed.
    pub outcome: &'static str,
    /// How long it took.
    pub latency: Latency,
}

impl<const O: usize, const R: usize> Default for Table<O, R> {
    fn default() -> Table<O, R> {
        Table(std::array::from_fn(|_| std::array::from_fn(|_| Histogram::default())))
    }
}

impl<const O: usize, const R: usize> Table<O, R> {
    pub fn record(&self, operation: usize, outcome: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let histogram = &self.0[operation][outcome];
        histogram.buckets[BOUNDS.partition_point(|bound| *bound < nanos)].fetch_add(1, Ordering::Relaxed);
        histogram.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn read(&self, operations: [&'static str; O], outcomes: [&'static str; R]) -> Vec<Measured> {
        let of = |histogram: &Histogram| Latency {
            buckets: std::array::from_fn(|bucket| histogram.buckets[bucket].load(Ordering::Relaxed)),
            seconds: histogram.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        };
        let rows = self.0.iter().zip(operations).flat_map(|(row, operation)| {
            row.iter().zip(outcomes).map(move |(histogram, outcome)| Measured { operation, outcome, latency: of(histogram) })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = Duration>) -> Latency {
        let table = Table::<1, 1>::default();
        durations.into_iter().for_each(|took| table.record(0, 0, took));
        table.read(["get"], ["ok"])[0].latency
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let micros = |micros| of([Duration::from_micros(micros)]).buckets.iter().position(|&count| count == 1).unwrap();
        assert_eq!((micros(0), micros(100), micros(101), micros(10_000_000), micros(10_000_001)), (0, 0, 1, 15, 16));
        assert_eq!((Latency::bound(0), Latency::bound(15), Latency::bound(16)), (0.0001, 10.0, f64::INFINITY));
        assert!((1..BOUNDS.len()).all(|bucket| BOUNDS[bucket - 1] < BOUNDS[bucket]));
    }

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let none = Latency::default();
        assert_eq!((none.mean(), none.quantile(0.99)), (None, None));
        // 90 within 1 to 2 ms, 10 within 20 to 50 ms.
        let mut latency = of([Duration::from_micros(1500); 90]);
        latency.add(&of([Duration::from_millis(30); 10]));
        let near = |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-9, "{found:?}, not {wanted}");
        near(latency.mean(), (90.0 * 0.0015 + 10.0 * 0.03) / 100.0);
        near(latency.quantile(0.45), 0.0015);
        near(latency.quantile(0.9), 0.002);
        near(latency.quantile(0.95), 0.035);
        near(latency.quantile(0.99), 0.047);
        near(of([Duration::from_secs(60)]).quantile(0.5), 10.0);
    }
}
