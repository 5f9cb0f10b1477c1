//! How fast a backend has been lately, by the bytes of a call. Old calls fade: see docs/decisions/0013-routing-goes-by-faded-measurements.md.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this time a call counts half.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// Upper bounds, in bytes, of the sizes that are measured apart; one more class has what is larger.
const BOUNDS: [u64; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// Calls, faded ones as the part that is left of them, below which nothing is said of a size.
const ENOUGH: f64 = 3.0;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the backend.
    Put,
    /// Out of it.
    Get,
}

/// Calls of about one size, on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Seconds that a call takes.
    pub seconds: f64,
    /// Bytes that one call moves in a second.
    pub bytes_per_second: f64,
}

/// Sums over calls, each times what is left of it at `at`.
#[derive(Clone, Copy, Debug)]
struct Faded {
    at: Instant,
    calls: f64,
    seconds: f64,
    bytes: f64,
}

impl Faded {
    /// What is left of it later.
    fn at(self, now: Instant) -> Faded {
        let left = (-now.saturating_duration_since(self.at).div_duration_f64(HALF_LIFE)).exp2();
        Faded { at: self.at.max(now), calls: self.calls * left, seconds: self.seconds * left, bytes: self.bytes * left }
    }
}

/// What is measured of one backend, by direction and size.
#[derive(Debug, Default)]
pub struct Speeds([[Mutex<Option<Faded>>; BOUNDS.len() + 1]; 2]);

/// The class of a size.
pub(crate) fn class(bytes: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < bytes)
}

impl Speeds {
    /// Counts a call that went well.
    pub fn record(&self, direction: Direction, bytes: u64, took: Duration, now: Instant) {
        let mut faded = self.0[direction as usize][class(bytes)].lock();
        let old = faded.unwrap_or(Faded { at: now, calls: 0.0, seconds: 0.0, bytes: 0.0 }).at(now);
        *faded =
            Some(Faded { at: old.at, calls: old.calls + 1.0, seconds: old.seconds + took.as_secs_f64(), bytes: old.bytes + bytes as f64 });
    }

    /// How fast calls of about `bytes` bytes are; `None` where too few were made lately. What a codec makes smaller is measured one class below
    /// what is asked for, which is why that counts as well, at the speed for each byte.
    pub fn of(&self, direction: Direction, bytes: u64, now: Instant) -> Option<Speed> {
        let classes = &self.0[direction as usize];
        let measured = |class: usize| classes[class].lock().map(|faded| faded.at(now)).filter(|faded| faded.calls >= ENOUGH);
        let class = class(bytes);
        if let Some(found) = measured(class) {
            return Some(found.speed(1.0));
        }
        let below = measured(class.checked_sub(1)?).filter(|below| below.bytes > 0.0)?;
        Some(below.speed((bytes as f64 * below.calls / below.bytes).max(1.0)))
    }

    /// Bytes a second that go this way, of all calls together.
    pub fn rate(&self, direction: Direction, now: Instant) -> f64 {
        let left = self.0[direction as usize].iter().filter_map(|class| Some(class.lock().as_ref()?.at(now).bytes));
        // A steady stream of this many bytes a second would have left that.
        left.sum::<f64>() * std::f64::consts::LN_2 / HALF_LIFE.as_secs_f64()
    }
}

impl Faded {
    /// Of one call of `times` as many bytes.
    fn speed(&self, times: f64) -> Speed {
        let per_second = if self.seconds > 0.0 { self.bytes / self.seconds } else { 0.0 };
        Speed { seconds: self.seconds / self.calls * times, bytes_per_second: per_second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() <= wanted.abs() * 1e-9, "{found}, not {wanted}");
    }

    #[test]
    fn old_calls_fade_and_new_ones_count_more() {
        let (speeds, begun) = (Speeds::default(), Instant::now());
        let put = |millis: u64, now| speeds.record(Direction::Put, 2 * MIB, Duration::from_millis(millis), now);
        let of = |now| speeds.of(Direction::Put, 2 * MIB, now);
        put(10, begun);
        put(10, begun);
        assert_eq!(of(begun), None, "two calls say nothing");
        (0..14).for_each(|_| put(10, begun));
        near(of(begun).unwrap().seconds, 0.010);
        near(of(begun).unwrap().bytes_per_second, 200.0 * MIB as f64);
        // A minute later 16 calls are worth 8: 8 new ones of 30 ms weigh as much.
        let later = begun + HALF_LIFE;
        (0..8).for_each(|_| put(30, later));
        near(of(later).unwrap().seconds, 0.020);
        // 16 are worth less than 3 after two and a half half-lives.
        assert!(of(later + HALF_LIFE * 2).is_some());
        assert_eq!(of(later + HALF_LIFE * 5 / 2), None);
        assert_eq!(speeds.of(Direction::Get, 2 * MIB, later), None, "gets are another matter");
    }

    #[test]
    fn sizes_are_measured_apart_and_one_below_stands_in() {
        let (speeds, now) = (Speeds::default(), Instant::now());
        (0..4).for_each(|_| speeds.record(Direction::Get, MIB, Duration::from_millis(4), now));
        near(speeds.of(Direction::Get, MIB, now).unwrap().seconds, 0.004);
        // As 2 MiB are when a codec halves them.
        near(speeds.of(Direction::Get, 2 * MIB, now).unwrap().seconds, 0.008);
        assert_eq!(speeds.of(Direction::Get, 5 * MIB, now), None);
        assert_eq!(speeds.of(Direction::Get, 100_000, now), None);
        assert_eq!((class(0), class(4096), class(4097), class(u64::MAX)), (0, 0, 1, BOUNDS.len()));
    }

    #[test]
    fn a_steady_stream_has_its_rate() {
        let (speeds, begun) = (Speeds::default(), Instant::now());
        assert_eq!(speeds.rate(Direction::Put, begun), 0.0);
        let mut now = begun;
        for _ in 0..3600 {
            now += Duration::from_millis(500);
            speeds.record(Direction::Put, 1000, Duration::from_micros(1), now);
        }
        let rate = speeds.rate(Direction::Put, now);
        assert!((rate - 2000.0).abs() < 20.0, "{rate}");
        let later = speeds.rate(Direction::Put, now + HALF_LIFE);
        near(later, rate / 2.0);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_divides_by_nothing() {
        let (speeds, now) = (Speeds::default(), Instant::now() + HALF_LIFE);
        (0..4).for_each(|_| speeds.record(Direction::Put, 0, Duration::ZERO, now));
        speeds.record(Direction::Put, 0, Duration::ZERO, now - HALF_LIFE);
        let speed = speeds.of(Direction::Put, 0, now).unwrap();
        assert_eq!((speed.seconds, speed.bytes_per_second), (0.0, 0.0));
        assert_eq!(speeds.of(Direction::Put, 5000, now), None, "of calls without bytes nothing follows for larger ones");
    }
}
