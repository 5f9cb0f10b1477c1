//! Which backends are fit for new tensors: by what they say of their health, asked in the background, and by how their calls end.
//!
//! # Contract
//! - A backend is out at once when a check finds it unhealthy or silent, or when [`FAILURES`] calls in a row fail for reasons that may pass.
//!   Writes are counted apart from the rest: a disk that can be read but not written takes no tensors either.
//! - It is back when it has been well for the delay: all checks in that time said so, and none of its calls failed. Until a call has gone well,
//!   one that fails is enough to be out again. Whoever is out again soon waits twice as long, then four and eight times, so that it does not flap.
//! - One that is out is still read and deleted from, and still written to where no other backend can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sira_backend::HealthStatus;
use tokio::time::Instant;

use crate::client::Inner;

/// Calls in a row that fail before their backend is out.
const FAILURES: u32 = 5;

/// The delay is doubled this often at most.
const DOUBLINGS: u32 = 3;

/// Whether a backend takes new tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Fit,
    /// It answers, but not as it should: it takes what no equal that is fit can take.
    Degraded,
    /// It does not, as long as another can.
    Out,
}

/// What is known of one backend.
#[derive(Debug)]
pub(crate) struct Fitness {
    delay: Duration,
    /// Failures in a row, of writes and of other calls.
    failures: [AtomicU32; 2],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    degraded: Option<String>,
    out: Option<Out>,
    /// When it came back, and how often its delay was doubled then.
    back: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Out {
    reason: String,
    /// Since when nothing has spoken against it.
    well_since: Option<Instant>,
    doublings: u32,
}

/// What changed, for the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Out(String),
    Back,
}

impl Default for Fitness {
    fn default() -> Fitness {
        Fitness::new(Duration::from_secs(30))
    }
}

impl Fitness {
    /// Of a backend that nothing is known of yet: it is fit. `delay`: how long it must have been well to be back.
    pub fn new(delay: Duration) -> Fitness {
        Fitness { delay, failures: Default::default(), state: Mutex::default() }
    }

    pub fn standing(&self) -> Standing {
        match &*self.state.lock() {
            State { out: Some(_), .. } => Standing::Out,
            State { degraded: Some(_), .. } => Standing::Degraded,
            _ => Standing::Fit,
        }
    }

    /// Its standing in words.
    pub fn describe(&self, now: Instant) -> String {
        match &*self.state.lock() {
            State { out: Some(out), .. } => match out.well_since {
                Some(since) => {
                    let (well, delay) = (now.saturating_duration_since(since), self.delay * 2u32.pow(out.doublings));
                    format!("out: {}; well for {} s, back after {} s", out.reason, well.as_secs(), delay.as_secs_f64())
                }
                None => format!("out: {}", out.reason),
            },
            State { degraded: Some(reason), .. } => format!("degraded: {reason}"),
            _ => "fit".to_owned(),
        }
    }

    /// A call has ended: well, or with a failure that is the backend's own.
    pub fn ended(&self, writes: bool, failure: Option<&dyn std::fmt::Display>, now: Instant) -> Option<Change> {
        let failures = &self.failures[usize::from(writes)];
        let Some(failure) = failure else {
            // Most calls go well: they share a read of one number.
            if failures.load(Ordering::Relaxed) > 0 {
                failures.store(0, Ordering::Relaxed);
            }
            return None;
        };
        let in_a_row = failures.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state.lock();
        if let Some(out) = &mut state.out {
            out.well_since = None;
            return None;
        }
        (in_a_row >= FAILURES).then(|| {
            let what = if writes { "writes" } else { "calls" };
            state.leave(format!("{in_a_row} {what} in a row have failed, the last with: {failure}"), self.delay, now)
        })
    }

    /// A check has answered.
    pub fn checked(&self, status: &HealthStatus, now: Instant) -> Option<Change> {
        let mut state = self.state.lock();
        state.degraded = if let HealthStatus::Degraded(reason) = status { Some(reason.clone()) } else { None };
        match (&mut state.out, status) {
            (Some(out), HealthStatus::Unhealthy(reason)) => {
                out.reason.clone_from(reason);
                out.well_since = None;
                None
            }
            (None, HealthStatus::Unhealthy(reason)) => Some(state.leave(reason.clone(), self.delay, now)),
            (None, _) => None,
            (Some(out), _) => {
                let (since, doublings) = (*out.well_since.get_or_insert(now), out.doublings);
                (now.saturating_duration_since(since) >= self.delay * 2u32.pow(doublings)).then(|| {
                    self.failures.iter().for_each(|failures| failures.store(FAILURES - 1, Ordering::Relaxed));
                    state.out = None;
                    state.back = Some((now, doublings));
                    Change::Back
                })
            }
        }
    }
}

impl State {
    fn leave(&mut self, reason: String, delay: Duration, now: Instant) -> Change {
        // Ten delays are enough to be trusted again.
        let soon = self.back.filter(|(back, _)| now.saturating_duration_since(*back) < delay * 10);
        let doublings = soon.map_or(0, |(_, doublings)| (doublings + 1).min(DOUBLINGS));
        self.out = Some(Out { reason: reason.clone(), well_since: None, doublings });
        Change::Out(reason)
    }
}

/// Says in the log what changed.
pub(crate) fn log(backend: &str, change: Option<Change>) {
    match change {
        Some(Change::Out(reason)) => tracing::warn!(backend, reason, "gets no new tensors for now, where another backend can take them"),
        Some(Change::Back) => tracing::info!(backend, "is well again and gets new tensors"),
        None => {}
    }
}

/// Asks all backends how they are, again and again, until the store ends.
pub(crate) fn watch(inner: &Arc<Inner>) {
    let (weak, every) = (Arc::downgrade(inner), inner.options.health_check_interval);
    inner.seams.spawner.spawn(Box::pin(async move {
        loop {
            // Held while waiting, the store would never end.
            let Some(inner) = weak.upgrade() else { return };
            if inner.stopping.load(Ordering::SeqCst) {
                return;
            }
            for (name, status) in inner.health().await {
                if let Ok(tier) = inner.tier(&name) {
                    log(&name, tier.meter.fitness.checked(&status, Instant::now()));
                }
            }
            drop(inner);
            tokio::time::sleep(every).await;
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(30);

    fn unhealthy() -> HealthStatus {
        HealthStatus::Unhealthy("no route to it".into())
    }

    #[test]
    fn a_check_takes_it_out_and_it_is_back_when_it_was_well_for_long_enough() {
        let (fitness, begun) = (Fitness::new(DELAY), Instant::now());
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, begun), None);
        assert_eq!(fitness.checked(&unhealthy(), after(10)), Some(Change::Out("no route to it".into())));
        assert_eq!((fitness.standing(), fitness.describe(after(10)).as_str()), (Standing::Out, "out: no route to it"));
        assert_eq!(fitness.checked(&HealthStatus::Healthy, after(20)), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, after(40)), None);
        assert_eq!(fitness.describe(after(45)), "out: no route to it; well for 25 s, back after 30 s");
        // A relapse begins anew.
        assert_eq!(fitness.checked(&unhealthy(), after(49)), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, after(60)), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, after(89)), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, after(90)), Some(Change::Back));
        assert_eq!((fitness.standing(), fitness.describe(after(90)).as_str()), (Standing::Fit, "fit"));
    }

    #[test]
    fn failures_in_a_row_take_it_out_whatever_it_says_of_itself() {
        let (fitness, now) = (Fitness::new(DELAY), Instant::now());
        let fails = |writes| fitness.ended(writes, Some(&"read-only file system"), now);
        for _ in 0..3 {
            (1..FAILURES).for_each(|_| assert_eq!(fails(true), None));
            assert_eq!(fitness.ended(true, None, now), None, "one that goes well begins the row anew");
        }
        for _ in 1..FAILURES {
            assert_eq!(fails(true), None);
            assert_eq!(fitness.ended(false, None, now), None, "reads that go well say nothing of writes");
        }
        let change = fails(true);
        assert!(matches!(&change, Some(Change::Out(reason)) if reason.contains("5 writes in a row") && reason.contains("read-only")));
        assert_eq!((fails(true), fitness.standing()), (None, Standing::Out));
        // A failing read while it is out begins its time anew.
        assert_eq!(fitness.checked(&HealthStatus::Healthy, now), None);
        assert_eq!(fails(false), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, now + DELAY), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, now + DELAY * 2), Some(Change::Back));
        // It has to prove itself first: its checks said all the time that it was well.
        assert!(matches!(fails(true), Some(Change::Out(_))));
        assert_eq!(fitness.checked(&HealthStatus::Healthy, now + DELAY * 3), None);
        assert_eq!(fitness.checked(&HealthStatus::Healthy, now + DELAY * 5), Some(Change::Back));
        assert_eq!(fitness.ended(true, None, now), None);
        assert_eq!((fails(true), fitness.standing()), (None, Standing::Fit));
    }

    #[test]
    fn whoever_relapses_waits_longer_each_time_and_is_forgiven_in_the_end() {
        let (fitness, mut now) = (Fitness::new(DELAY), Instant::now());
        let mut out_for = |calm: Duration| {
            now += calm;
            assert!(matches!(fitness.checked(&unhealthy(), now), Some(Change::Out(_))));
            let gone = now;
            loop {
                now += Duration::from_secs(1);
                if fitness.checked(&HealthStatus::Healthy, now) == Some(Change::Back) {
                    return (now - gone).as_secs() - 1;
                }
            }
        };
        let soon = Duration::from_secs(5);
        assert_eq!([soon, soon, soon, soon, soon].map(&mut out_for), [30, 60, 120, 240, 240]);
        assert_eq!(out_for(DELAY * 10), 30);
    }

    #[test]
    fn a_degraded_one_says_why_until_it_no_longer_is() {
        let (fitness, now) = (Fitness::default(), Instant::now());
        assert_eq!(fitness.checked(&HealthStatus::Degraded("the disk is full".into()), now), None);
        assert_eq!((fitness.standing(), fitness.describe(now).as_str()), (Standing::Degraded, "degraded: the disk is full"));
        assert_eq!((fitness.checked(&HealthStatus::Healthy, now), fitness.standing()), (None, Standing::Fit));
    }
}
