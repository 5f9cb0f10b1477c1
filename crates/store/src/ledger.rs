//! The one ledger of memory: whoever holds tensor bytes holds a [`Reservation`] for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::StoreError;

/// Bytes of one permit: the ledger counts in these, so that 32 bits of permits cover 16 TiB.
pub(crate) const UNIT: u64 = 4096;

/// How often a request that waits asks for room again.
const AGAIN: Duration = Duration::from_millis(100);

/// Memory that tensors may take in all. Fair: who asks first is served first.
#[derive(Clone)]
pub struct Ledger {
    free: Arc<Semaphore>,
    units: u32,
    patience: Duration,
    waiting: Arc<AtomicUsize>,
}

/// Memory set aside; given back when dropped.
#[derive(Debug, Default)]
pub struct Reservation {
    permit: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Takes `other` in: both are given back together.
    pub fn absorb(&mut self, other: Reservation) {
        match (&mut self.permit, other.permit) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, theirs) => *mine = theirs,
            (_, None) => {}
        }
    }
}

/// Counts a request that waits.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ledger {
    /// A ledger of `limit` bytes; a reservation waits up to `patience` for others to be given back.
    pub fn new(limit: u64, patience: Duration) -> Ledger {
        let units = u32::try_from(limit / UNIT).unwrap_or(u32::MAX).min((Semaphore::MAX_PERMITS as u64).min(u32::MAX.into()) as u32);
        Ledger { free: Arc::new(Semaphore::new(units as usize)), units, patience, waiting: Arc::default() }
    }

    /// Bytes in all.
    pub fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT
    }

    /// Bytes set aside right now.
    pub fn used(&self) -> u64 {
        self.limit().saturating_sub(self.free.available_permits() as u64 * UNIT)
    }

    /// Whether requests wait for memory right now.
    pub fn pressed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Sets `bytes` aside if they are free and nobody waits for them.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        if units == 0 {
            return Some(Reservation { permit: None });
        }
        let permit = self.free.clone().try_acquire_many_owned(units).ok()?;
        Some(Reservation { permit: Some(permit) })
    }

    /// Sets `bytes` aside, waiting for their turn. `make_room` is asked to free what can be freed (a cache), again and again while
    /// this waits: what it frees may still be held by others.
    pub async fn reserve(&self, bytes: u64, make_room: impl Fn(u64)) -> Result<Reservation, StoreError> {
        if let Some(reservation) = self.try_reserve(bytes) {
            return Ok(reservation);
        }
        if bytes > self.limit() {
            return Err(StoreError::OutOfSpace(format!(
                "memory: this needs {bytes} bytes at once and memory.limit leaves {}; raise it",
                self.limit()
            )));
        }
        make_room(bytes);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(self.units);
        let mut acquired = std::pin::pin!(self.free.clone().acquire_many_owned(units));
        let give_up = tokio::time::Instant::now() + self.patience;
        loop {
            match tokio::time::timeout(AGAIN, acquired.as_mut()).await {
                Ok(Ok(permit)) => return Ok(Reservation { permit: Some(permit) }),
                Err(_) if tokio::time::Instant::now() < give_up => make_room(bytes),
                _ => return Err(StoreError::Busy(format!("no {bytes} bytes of memory became free within {:?}", self.patience))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_its_turn_and_gives_up_in_time() {
        let ledger = Ledger::new(10 * UNIT, Duration::from_secs(1));
        let held = ledger.try_reserve(8 * UNIT).unwrap();
        assert_eq!(ledger.used(), 8 * UNIT);
        assert!(ledger.try_reserve(3 * UNIT).is_none());
        let asked = std::cell::Cell::new(0);
        assert!(matches!(ledger.reserve(3 * UNIT, |n| asked.set(asked.get() + n)).await, Err(StoreError::Busy(_))));
        assert!(asked.get() > 2 * 3 * UNIT, "asked again while it waited");
        assert!(matches!(ledger.reserve(11 * UNIT, |_| ()).await, Err(StoreError::OutOfSpace(_))));
        let (_later, ()) = tokio::join!(async { ledger.reserve(3 * UNIT, |_| ()).await.unwrap() }, async { drop(held) });
        assert_eq!(ledger.used(), 3 * UNIT);
    }
}
