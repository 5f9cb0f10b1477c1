//! Which is slower, the connection or the decoder: where it is the connection, a tensor comes sooner in encoded chunks.
//!
//! # The rule
//! A get asks for encoded chunks where the connection is slower than half of what this machine decodes: below that, decoding goes on while bytes come and is
//! never waited for, and it costs less of the machine than the time that it saves. Both speeds are those of the gets that the client has made, of 1 MiB and
//! more; each counts as much as all before it. Until one was made, a connection within this machine counts as fast and any other as slow, and
//! decoders as good for [`DECODER`] each.

use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

/// Bytes a second that one processor decodes, where nothing was decoded yet: what the slower of the lossless codecs do.
const DECODER: f64 = 500e6;

/// Bytes below which a get says little about a connection: its first ones wait for the server.
const TELLING: u64 = 1 << 20;

/// How much faster than the connection decoders must be.
const MARGIN: f64 = 2.0;

/// What is known of a connection's and the decoders' speeds, in bytes a second.
#[derive(Debug)]
pub(crate) struct Bottleneck {
    /// Whether the server seems to be on this machine.
    near: bool,
    decoders: usize,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    /// Of bytes as they come.
    connection: Option<f64>,
    /// Of raw bytes of all decoders together.
    decoding: Option<f64>,
}

impl Bottleneck {
    /// Of a server at this `host:port`, and so many decoders.
    pub fn new(authority: &str, decoders: usize) -> Bottleneck {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
        let near = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        Bottleneck { near, decoders, seen: Mutex::default() }
    }

    /// Whether encoded chunks are to be asked for.
    pub fn is_the_connection(&self) -> bool {
        let Seen { connection, decoding } = *self.seen.lock();
        let decoding = decoding.unwrap_or(DECODER * self.decoders as f64);
        connection.map_or(!self.near, |connection| connection * MARGIN <= decoding)
    }

    /// So many bytes came in a time in which nothing but the connection was waited for.
    pub fn came(&self, bytes: u64, within: Duration) {
        learn(&mut self.seen.lock().connection, bytes, within);
    }

    /// So many raw bytes were decoded in a time of one decoder.
    pub fn decoded(&self, raw: u64, within: Duration) {
        learn(&mut self.seen.lock().decoding, raw, within / u32::try_from(self.decoders.max(1)).unwrap_or(1));
    }

    /// The speeds that were seen.
    pub fn speeds(&self) -> (Option<f64>, Option<f64>) {
        let Seen { connection, decoding } = *self.seen.lock();
        (connection, decoding)
    }
}

fn learn(known: &mut Option<f64>, bytes: u64, within: Duration) {
    if bytes < TELLING || within.is_zero() {
        return;
    }
    let speed = bytes as f64 / within.as_secs_f64();
    *known = Some(known.map_or(speed, |known| (known + speed) / 2.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn where_nothing_is_known_the_address_decides() {
        for (authority, near) in [
            ("127.0.0.1:9095", true),
            ("127.8.9.1:1", true),
            ("localhost:9095", true),
            ("[::1]:9095", true),
            ("10.0.0.1:9095", false),
            ("kv.example.org:9095", false),
            ("[fe80::1]:9095", false),
            ("localhost.example.org:1", false),
        ] {
            assert_eq!(Bottleneck::new(authority, 2).is_the_connection(), !near, "{authority}");
        }
    }

    #[test]
    fn what_was_seen_decides() {
        let (near, far) = (Bottleneck::new("localhost:1", 2), Bottleneck::new("far:1", 2));
        for bottleneck in [&near, &far] {
            bottleneck.came(400_000_000, SECOND); // below half of what two decoders are good for
            assert!(bottleneck.is_the_connection());
            bottleneck.came(900_000_000, SECOND);
            assert!(!bottleneck.is_the_connection(), "650 MB/s on average");
            // Each decodes 1 GB/s, so that both are three times as fast.
            bottleneck.decoded(2_000_000_000, 2 * SECOND);
            assert!(bottleneck.is_the_connection());
            bottleneck.decoded(200_000_000, SECOND);
            assert_eq!(bottleneck.speeds(), (Some(650e6), Some(1200e6)));
            assert!(!bottleneck.is_the_connection());
        }
    }

    #[test]
    fn small_gets_say_nothing() {
        let near = Bottleneck::new("localhost:1", 2);
        near.came(TELLING - 1, 1000 * SECOND);
        near.came(TELLING, Duration::ZERO);
        near.decoded(TELLING - 1, SECOND);
        assert_eq!((near.speeds(), near.is_the_connection()), ((None, None), false));
    }
}
