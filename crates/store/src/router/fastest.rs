//! The backend that has been fastest lately, for tensors of about this size.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{Candidate, PlacementRequest, RoutingStrategy, View, Why};
use crate::observe::{Direction, class};

/// Another one must take less than this part of the time of the one that is used.
const BETTER: f64 = 0.8;

/// One key in this many goes to a backend that was not measured lately, if there is one.
const EXPLORES: u64 = 32;

/// Backends that it chooses among, at most.
const MOST: usize = 64;

/// The one of several that takes the least time for a put and a get, by what was measured lately.
///
/// What is chosen for a size stays chosen for the rebalance interval; then another one takes its place if it takes less than four fifths of the
/// time. One key in 32 goes to a backend that was not measured lately; which keys are so is the key's own, so that the answer to
/// the same question is the same.
#[derive(Debug)]
pub struct Fastest {
    names: Vec<String>,
    every: Duration,
    /// By size and by those that may be chosen, so that one that was out is back in its place when it is well.
    chosen: Mutex<HashMap<(usize, u64), Chosen>>,
}

#[derive(Clone, Copy, Debug)]
struct Chosen {
    /// Index of its name.
    index: usize,
    /// When it was last held against the others.
    at: Instant,
}

/// A candidate with the index of its name and what a put takes, and a get where all were measured; `None` where it was not measured lately.
struct Runner<'a> {
    candidate: Candidate<'a>,
    index: usize,
    seconds: Option<f64>,
}

impl Fastest {
    /// The fastest of these backends, 64 of them at most; looked at again after `rebalance_interval`.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>, rebalance_interval: Duration) -> Fastest {
        let names = names.into_iter().take(MOST).map(Into::into).collect();
        Fastest { names, every: rebalance_interval, chosen: Mutex::default() }
    }

    fn runners<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Vec<Runner<'a>> {
        let best = view.best(self.names.iter().map(String::as_str), why);
        let bytes = request.chunk_bytes();
        let speed = |candidate: &Candidate<'_>, direction| candidate.speeds.of(direction, bytes, view.now);
        let measured = best.iter().map(|candidate| [speed(candidate, Direction::Put), speed(candidate, Direction::Get)]);
        let measured: Vec<_> = measured.collect();
        // Gets count where all can be compared by them: what memory answers is never read from a home.
        let gets = measured.iter().all(|[put, get]| put.is_none() || get.is_some());
        let runner = |(candidate, [put, get]): (Candidate<'a>, [Option<crate::observe::Speed>; 2])| {
            let seconds = put.map(|put| put.seconds + get.filter(|_| gets).map_or(0.0, |get| get.seconds));
            let index = self.names.iter().position(|name| name == candidate.name)?;
            why.say(|| match seconds {
                Some(seconds) => {
                    let what = if gets { "a put and a get" } else { "a put" };
                    format!("{}: {:.3} ms for {what} of {bytes} bytes", candidate.name, seconds * 1e3)
                }
                None => format!("{}: not measured lately for {bytes} bytes", candidate.name),
            });
            Some(Runner { candidate, index, seconds })
        };
        best.into_iter().zip(measured).filter_map(runner).collect()
    }
}

impl RoutingStrategy for Fastest {
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
        let runners = self.runners(request, view, why);
        let new = || runners.iter().filter(|runner| runner.seconds.is_none()).map(|runner| runner.candidate);
        let time = |runner: &Runner<'_>| runner.seconds.unwrap_or(f64::INFINITY);
        let situation = (class(request.chunk_bytes()), runners.iter().fold(0, |mask, runner| mask | 1 << runner.index));
        let fastest = runners.iter().filter(|runner| runner.seconds.is_some()).min_by(|a, b| time(a).total_cmp(&time(b)));
        let mut chosen = self.chosen.lock();
        let before = chosen.get(&situation).copied();
        let used = before.and_then(|before| runners.iter().find(|runner| runner.index == before.index));
        let Some(fastest) = fastest else {
            why.say(|| "nothing to compare: the one used before, or by key".to_owned());
            return used.map(|used| used.candidate).or_else(|| request.own(new()));
        };
        if xxh3_64(request.key.as_str().as_bytes()).is_multiple_of(EXPLORES)
            && let Some(unknown) = request.own(new())
        {
            why.say(|| format!("this key is one in {EXPLORES} that try what was not measured lately"));
            return Some(unknown);
        }
        let recent = before.is_some_and(|before| view.now.saturating_duration_since(before.at) < self.every);
        if let Some(used) = used.filter(|_| recent) {
            why.say(|| format!("{} stays until the next rebalance", used.candidate.name));
            return Some(used.candidate);
        }
        let winner = match used {
            Some(used) if time(fastest) >= time(used) * BETTER => {
                why.say(|| format!("{} stays: none is faster by a fifth", used.candidate.name));
                used
            }
            _ => fastest,
        };
        chosen.insert(situation, Chosen { index: winner.index, at: view.now });
        Some(winner.candidate)
    }

    fn describe(&self) -> String {
        format!("the fastest of {}", self.names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use sira_tensor::{DType, TensorSpec};
    use sira_wire::{Consistency, Key};

    use super::*;
    use crate::fitness::Standing;
    use crate::observe::Speeds;
    use crate::router::Load;

    const MIB: u64 = 1 << 20;
    const EVERY: Duration = Duration::from_secs(300);

    /// Backends `a`, `b`, `c` with a clock of their own.
    struct Track {
        speeds: [Speeds; 3],
        standing: [Standing; 3],
        now: Instant,
        strategy: Fastest,
    }

    impl Track {
        fn new() -> Track {
            let strategy = Fastest::new(["a", "b", "c"], EVERY);
            Track { speeds: Default::default(), standing: [Standing::Fit; 3], now: Instant::now(), strategy }
        }

        /// Milliseconds that puts take from now on; 0 where there are none.
        fn puts(&mut self, millis: [u64; 3]) {
            for (speeds, millis) in self.speeds.iter_mut().zip(millis).filter(|(_, millis)| *millis > 0) {
                *speeds = Speeds::default();
                (0..1000).for_each(|_| speeds.record(Direction::Put, 2 * MIB, Duration::from_millis(millis), self.now));
            }
        }

        fn gets(&self, millis: [u64; 3]) {
            for (speeds, millis) in self.speeds.iter().zip(millis).filter(|(_, millis)| *millis > 0) {
                (0..1000).for_each(|_| speeds.record(Direction::Get, 2 * MIB, Duration::from_millis(millis), self.now));
            }
        }

        fn place(&self, key: &str) -> String {
            let candidate = |(i, name)| Candidate {
                name,
                keeps: true,
                takes: true,
                standing: self.standing[i],
                load: Load::default(),
                speeds: &self.speeds[i],
            };
            let candidates = ["a", "b", "c"].into_iter().enumerate().map(candidate);
            let candidates = candidates.filter(|candidate| candidate.standing != Standing::Out).collect();
            let view = View { candidates, now: self.now, reads_per_put: 1.0 };
            let (key, spec): (Key, _) = (key.parse().unwrap(), TensorSpec::new(DType::UInt8, vec![16 * MIB]).unwrap());
            let request = PlacementRequest {
                key: &key,
                spec: &spec,
                kv_spec: None,
                nbytes: 16 * MIB,
                consistency: Consistency::Eventual,
                demanded: false,
                ttl: None,
            };
            let answers = [false, true].map(|asked| self.strategy.select_backend(&request, &view, &mut Why::new(asked)).unwrap().name);
            assert_eq!(answers[0], answers[1], "what is explained is what is done");
            answers[0].to_owned()
        }

        /// Where each of many keys goes: how many to `a`, `b` and `c`.
        fn spread(&self) -> [usize; 3] {
            let places: Vec<String> = (0..640).map(|i| self.place(&format!("ns/{i}"))).collect();
            ["a", "b", "c"].map(|name| places.iter().filter(|place| *place == name).count())
        }
    }

    #[test]
    fn the_fastest_for_puts_and_gets_together_wins() {
        let mut track = Track::new();
        track.puts([3, 2, 5]);
        assert_eq!(track.spread(), [0, 640, 0]);
        let mut track = Track::new();
        track.puts([3, 2, 5]);
        track.gets([1, 9, 1]);
        assert_eq!(track.spread(), [640, 0, 0]);
        // Where one was never read, only puts can be compared.
        let mut track = Track::new();
        track.puts([3, 2, 5]);
        track.gets([1, 9, 0]);
        assert_eq!(track.spread(), [0, 640, 0]);
    }

    #[test]
    fn it_changes_only_at_a_rebalance_and_only_for_a_fifth() {
        let mut track = Track::new();
        track.puts([100, 120, 130]);
        assert_eq!(track.place("ns/x"), "a");
        track.now += EVERY / 2;
        track.puts([900, 100, 130]);
        assert_eq!(track.place("ns/x"), "a", "not before the interval is over");
        track.now += EVERY / 2;
        track.puts([100, 85, 130]);
        assert_eq!(track.place("ns/x"), "a", "not for a sixth");
        track.now += EVERY;
        track.puts([100, 70, 130]);
        assert_eq!(track.place("ns/x"), "b");
        // Back and forth by less than a fifth moves nothing.
        for round in 0..10 {
            track.now += EVERY;
            track.puts(if round % 2 == 0 { [75, 80, 130] } else { [80, 75, 130] });
            assert_eq!(track.place("ns/x"), "b");
        }
    }

    #[test]
    fn what_was_not_measured_gets_one_key_in_thirty_two() {
        let mut track = Track::new();
        let spread = track.spread();
        assert!(spread.iter().all(|&keys| keys > 150), "at first all get their share: {spread:?}");
        track.puts([10, 20, 0]);
        let [fastest, slower, unknown] = track.spread();
        assert!(slower == 0 && (5..40).contains(&unknown) && fastest + unknown == 640, "{fastest} {slower} {unknown}");
        // Measurements fade, and then the others are tried again.
        track.now += EVERY * 2;
        track.puts([10, 0, 0]);
        let [_, slower, unknown] = track.spread();
        assert!(slower > 0 && unknown > 0 && slower + unknown < 40, "{slower} {unknown}");
        // After a silence, what was used before is used on.
        track.now += EVERY * 2;
        assert_eq!(track.spread(), [640, 0, 0]);
    }

    #[test]
    fn one_that_is_out_is_replaced_and_comes_back_to_its_place() {
        let mut track = Track::new();
        track.puts([10, 20, 30]);
        assert_eq!(track.place("ns/x"), "a");
        track.standing[0] = Standing::Out;
        assert_eq!(track.place("ns/x"), "b");
        track.standing = [Standing::Degraded, Standing::Degraded, Standing::Fit];
        assert_eq!(track.place("ns/x"), "c");
        track.standing = [Standing::Fit; 3];
        assert_eq!(track.place("ns/x"), "a");
    }
}
