//! The one ledger of memory: whoever holds tensor bytes holds a [`Reservation`] for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::StoreError;

/// Bytes of one permit: the ledger counts in these, so that 32 bits of permits cover 16 TiB.
const UNIT: u64 = 4096;

/// Memory that tensors may take in all. Fair: who asks first is served first.
#[derive(Clone)]
pub struct Ledger {
    free: Arc<Semaphore>,
    units: u32,
    patience: Duration,
}

/// Memory set aside; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Ledger {
    /// A ledger of `limit` bytes; a reservation waits up to `patience` for others to be given back.
    pub fn new(limit: u64, patience: Duration) -> Ledger {
        let units = u32::try_from(limit / UNIT).unwrap_or(u32::MAX).min((Semaphore::MAX_PERMITS as u64).min(u32::MAX.into()) as u32);
        Ledger { free: Arc::new(Semaphore::new(units as usize)), units, patience }
    }

    /// Bytes in all.
    pub fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT
    }

    /// Bytes set aside right now.
    pub fn used(&self) -> u64 {
        self.limit().saturating_sub(self.free.available_permits() as u64 * UNIT)
    }

    /// Sets `bytes` aside if they are free and nobody waits for them.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        if units == 0 {
            return Some(Reservation { _permit: None });
        }
        let permit = self.free.clone().try_acquire_many_owned(units).ok()?;
        Some(Reservation { _permit: Some(permit) })
    }

    /// Sets `bytes` aside, waiting for their turn. `make_room` is asked once to free what can be freed at once (a cache).
    pub async fn reserve(&self, bytes: u64, make_room: impl FnOnce(u64)) -> Result<Reservation, StoreError> {
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
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(self.units);
        match tokio::time::timeout(self.patience, self.free.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Reservation { _permit: Some(permit) }),
            _ => Err(StoreError::Busy(format!("no {bytes} bytes of memory became free within {:?}", self.patience))),
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
        let mut asked = 0;
        assert!(matches!(ledger.reserve(3 * UNIT, |n| asked = n).await, Err(StoreError::Busy(_))));
        assert_eq!(asked, 3 * UNIT);
        assert!(matches!(ledger.reserve(11 * UNIT, |_| ()).await, Err(StoreError::OutOfSpace(_))));
        let (_later, ()) = tokio::join!(async { ledger.reserve(3 * UNIT, |_| ()).await.unwrap() }, async { drop(held) });
        assert_eq!(ledger.used(), 3 * UNIT);
    }
}
