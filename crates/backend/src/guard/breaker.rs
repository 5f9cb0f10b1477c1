//! A circuit breaker: a backend that fails again and again is left alone for a while, then tried with one call.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::HealthStatus;

/// The longest pause, after calls on trial that failed as well.
const LONGEST: Duration = Duration::from_secs(30);

/// Counts failures that come one after another, and says whether a call may go through.
#[derive(Debug)]
pub(super) struct Breaker {
    name: String,
    /// So many failures in a row open it.
    after: u32,
    /// The first pause.
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Calls go through; so many have failed since the last that was answered.
    Closed { failures: u32 },
    /// None goes through before `until`; then one, on trial, decides.
    Open { until: Instant, pause: Duration, failures: u32, reason: String, trial: bool },
}

impl Breaker {
    pub(super) fn new(name: &str, after: u32, pause: Duration) -> Breaker {
        Breaker { name: name.to_owned(), after: after.max(1), pause, state: Mutex::new(State::Closed { failures: 0 }) }
    }

    /// Lets a call through, or says why not. Whoever gets a pass reports the end of its call to it.
    pub(super) fn enter(&self) -> Result<Pass<'_>, String> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Closed { .. } => Ok(Pass { breaker: self, trial: false }),
            State::Open { until, trial, .. } if !*trial && Instant::now() >= *until => {
                *trial = true;
                Ok(Pass { breaker: self, trial: true })
            }
            State::Open { until, failures, reason, .. } => Err(left_alone(*until, *failures, reason)),
        }
    }

    /// What is known without asking: unhealthy while it is left alone, degraded once it may be tried.
    pub(super) fn status(&self) -> HealthStatus {
        match &*self.state.lock() {
            State::Closed { .. } => HealthStatus::Healthy,
            State::Open { until, failures, reason, trial, .. } if *trial || Instant::now() >= *until => {
                HealthStatus::Degraded(format!("{failures} calls in a row failed, and it is tried again; the last: {reason}"))
            }
            State::Open { until, failures, reason, .. } => HealthStatus::Unhealthy(left_alone(*until, *failures, reason)),
        }
    }

    fn answered(&self) {
        let mut state = self.state.lock();
        if let State::Open { failures, .. } = &*state {
            tracing::info!(backend = self.name, failures, "it answers again: calls go through");
        }
        *state = State::Closed { failures: 0 };
    }

    fn failed(&self, was_trial: bool, why: String) {
        let mut state = self.state.lock();
        match &mut *state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures >= self.after {
                    let failures = *failures;
                    tracing::warn!(backend = self.name, failures, error = why, "it is left alone for a while: its calls fail at once");
                    *state = State::Open { until: Instant::now() + self.pause, pause: self.pause, failures, reason: why, trial: false };
                }
            }
            State::Open { until, pause, failures, reason, trial } if was_trial => {
                *pause = pause.saturating_mul(2).min(LONGEST.max(self.pause));
                *until = Instant::now() + *pause;
                *failures = failures.saturating_add(1);
                (*reason, *trial) = (why, false);
            }
            // A call from before it opened says nothing new.
            State::Open { .. } => {}
        }
    }
}

fn left_alone(until: Instant, failures: u32, reason: &str) -> String {
    let wait = until.saturating_duration_since(Instant::now());
    format!("{failures} calls in a row failed, so it is left alone for another {:.1} s; the last: {reason}", wait.as_secs_f64())
}

/// A call that was let through. One that is given up counts for nothing, but lets the next be the one on trial.
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    trial: bool,
}

impl Pass<'_> {
    /// The backend answered, whatever the answer.
    pub(super) fn answered(self) {
        self.breaker.answered();
    }

    /// It did not, or in a way that says it does not work.
    pub(super) fn failed(self, why: String) {
        self.breaker.failed(self.trial, why);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // After its end was reported, another state is there, or the pause has begun anew.
        if self.trial
            && let State::Open { trial, .. } = &mut *self.breaker.state.lock()
        {
            *trial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    fn fail(breaker: &Breaker) {
        breaker.enter().ok().unwrap().failed("refused".into());
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_closes_after_one_answer() {
        let breaker = Breaker::new("b", 3, PAUSE);
        fail(&breaker);
        fail(&breaker);
        breaker.enter().ok().unwrap().answered();
        fail(&breaker);
        fail(&breaker);
        assert_eq!(breaker.status(), HealthStatus::Healthy);
        fail(&breaker);
        assert!(matches!(breaker.status(), HealthStatus::Unhealthy(why) if why.contains("3 calls in a row") && why.contains("refused")));
        assert!(breaker.enter().err().unwrap().contains("another 1.0 s"));

        tokio::time::advance(PAUSE).await;
        assert!(matches!(breaker.status(), HealthStatus::Degraded(_)));
        let trial = breaker.enter().ok().unwrap();
        assert!(breaker.enter().is_err(), "one call on trial, not two");
        trial.answered();
        assert_eq!(breaker.status(), HealthStatus::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn each_failed_trial_doubles_the_pause_up_to_a_bound() {
        let breaker = Breaker::new("b", 1, PAUSE);
        fail(&breaker);
        let mut pause = PAUSE;
        for _ in 0..8 {
            tokio::time::advance(pause - Duration::from_millis(1)).await;
            assert!(breaker.enter().is_err(), "{pause:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
            // One that is given up lets the next be tried at once.
            drop(breaker.enter().ok().unwrap());
            fail(&breaker);
            pause = (pause * 2).min(LONGEST);
        }
        assert_eq!(pause, LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn late_failures_do_not_prolong_the_pause_and_a_late_answer_ends_it() {
        let breaker = Breaker::new("b", 1, PAUSE);
        let (early, late, good) = (breaker.enter().ok().unwrap(), breaker.enter().ok().unwrap(), breaker.enter().ok().unwrap());
        early.failed("first".into());
        tokio::time::advance(PAUSE / 2).await;
        late.failed("second".into());
        assert!(breaker.enter().err().unwrap().ends_with("first"));
        good.answered();
        assert!(breaker.enter().is_ok());
    }
}
