//! Clients that hold memory and neither send nor read.

use std::time::Duration;

/// A client that does nothing for this long is taken for dead.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// While others wait for memory, a client must move [`LEAST_BYTES`] in each of these.
pub(crate) const PRESSED: Duration = Duration::from_secs(5);

/// Bytes that count as progress while others wait.
pub(crate) const LEAST_BYTES: u64 = 64 << 10;

/// How often a client that is waited for is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// The time a server has waited for its client since it last made progress.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since_any: Duration,
    since_enough: Duration,
    bytes: u64,
}

impl Patience {
    /// `bytes` have moved.
    pub fn moved(&mut self, bytes: u64) {
        self.since_any = Duration::ZERO;
        self.bytes += bytes;
        if self.bytes >= LEAST_BYTES {
            (self.bytes, self.since_enough) = (0, Duration::ZERO);
        }
    }

    /// The client was waited for; `Some` with the reason if it is to be cut off. `pressed`: others wait for memory.
    pub fn waited(&mut self, time: Duration, pressed: bool) -> Option<String> {
        self.since_any += time;
        self.since_enough += time;
        if self.since_any >= IDLE {
            return Some(format!("the client did nothing for {} seconds", IDLE.as_secs()));
        }
        let slow = pressed && self.since_enough >= PRESSED;
        slow.then(|| {
            format!("the client moved less than {LEAST_BYTES} bytes in {} seconds while others wait for memory", PRESSED.as_secs())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_are_cut_off_only_while_others_wait() {
        let mut trickle = Patience::default();
        for _ in 0..100 {
            trickle.moved(1);
            assert_eq!(trickle.waited(LOOK, false), None);
        }
        assert!(trickle.waited(LOOK, true).is_some());
        let mut steady = Patience::default();
        for _ in 0..1000 {
            steady.moved(LEAST_BYTES);
            assert_eq!(steady.waited(LOOK, true), None);
        }
        let mut dead = Patience::default();
        assert!((0..120).any(|_| dead.waited(LOOK, false).is_some()));
    }
}
