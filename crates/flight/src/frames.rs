//! How many frames a client sends that cost it nothing and the server work: pings, resets, settings, priorities. A client that behaves sends
//! a few in a second. One that sends more is read more slowly, so that no flood of them takes the processors from others.

use std::time::{Duration, Instant};

/// Frames of these kinds a second that are read without delay, and as many at once.
const PER_SECOND: u32 = 500;

/// HTTP/2's numbers of PRIORITY, RST_STREAM, SETTINGS and PING.
const COUNTED: [u8; 4] = [2, 3, 4, 6];

const HEADER: usize = 9;

/// The frames of one connection, as its bytes pass.
pub(crate) struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that have passed.
    have: usize,
    /// Bytes of the frame's payload that have not.
    payload: usize,
    /// Frames that have begun, of any kind.
    begun: u64,
    /// When what was counted so far is paid for.
    paid: Instant,
}

impl Frames {
    pub fn new(now: Instant) -> Frames {
        Frames { header: [0; HEADER], have: 0, payload: 0, begun: 0, paid: now }
    }

    /// How many frames of any kind have begun so far.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Counts the frames that begin in `bytes`. Gives how long to wait before reading on.
    pub fn passed(&mut self, mut bytes: &[u8], now: Instant) -> Option<Duration> {
        let mut counted = 0;
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                let [a, b, c, kind, ..] = self.header;
                (self.have, self.payload) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
                self.begun += 1;
                counted += u32::from(COUNTED.contains(&kind));
            }
        }
        if counted == 0 {
            return None;
        }
        self.paid = self.paid.max(now) + Duration::from_secs(1) * counted / PER_SECOND;
        (self.paid - now).checked_sub(Duration::from_secs(1)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], &vec![6; payload]].concat()
    }

    #[test]
    fn floods_wait_and_data_does_not() {
        let now = Instant::now();
        let (ping, data) = (frame(6, 8), frame(0, 100_000));
        let mut frames = Frames::new(now);
        for _ in 0..10_000 {
            assert_eq!(frames.passed(&data, now), None, "what is in a payload is no frame");
        }
        assert_eq!(frames.passed(&ping.repeat(PER_SECOND as usize), now), None);
        assert_eq!(frames.passed(&ping.repeat(PER_SECOND as usize), now), Some(Duration::from_secs(1)));
        assert_eq!(frames.passed(&data, now + Duration::from_secs(1)), None);
        assert_eq!(frames.passed(&ping, now + Duration::from_secs(60)), None, "it has been paid");
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let now = Instant::now();
        let stream: Vec<u8> = (0..2000).flat_map(|i| [frame(3, 4), frame(1, i % 300)].concat()).collect();
        for size in [1, 7, 9, 10, 1000, stream.len()] {
            let mut frames = Frames::new(now);
            let wait = stream.chunks(size).filter_map(|piece| frames.passed(piece, now)).last();
            assert_eq!((wait, frames.begun()), (Some(Duration::from_secs(3)), 4000), "in pieces of {size}");
        }
    }
}
