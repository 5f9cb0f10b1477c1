//! What one connection holds, and how much that is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sira_shm::Region;
use sira_store::Shared;
use sira_store::ledger::Reservation;
use sira_wire::Code;
use tonic::Status;

use super::Filling;
use crate::status::refuse;

/// Things that a connection may hold at once.
const HANDLES: usize = 16_384;

/// Bytes that may be held, by one connection or by all.
pub(super) struct Purse {
    free: AtomicU64,
    all: u64,
}

impl Purse {
    pub fn new(bytes: u64) -> Arc<Purse> {
        Arc::new(Purse { free: AtomicU64::new(bytes), all: bytes })
    }

    fn take(self: &Arc<Purse>, bytes: u64, whose: &str) -> Result<Taken, Status> {
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(bytes));
        match taken {
            Ok(_) => Ok(Taken { purse: self.clone(), bytes }),
            Err(free) => Err(refuse(
                Code::Busy,
                format!(
                    "{whose} may have {} bytes mapped or created at once, of which {free} are left; {bytes} more are too many",
                    self.all
                ),
            )),
        }
    }
}

struct Taken {
    purse: Arc<Purse>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.purse.free.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that are charged; given back when dropped.
pub(super) struct Charge {
    _own: Taken,
    _all: Taken,
}

/// What is held.
pub(super) enum Held {
    /// Mapped for reading.
    Shared(Shared),
    /// Being filled.
    Filling(Box<Filling>),
    /// Committed as a copy, since the client goes on to have it mapped.
    Lingering { _region: Arc<Region>, _reservation: Reservation },
}

/// What one connection holds.
pub(super) struct Account {
    own: Arc<Purse>,
    all: Arc<Purse>,
    held: HashMap<u64, (Held, Arc<Charge>)>,
    next: u64,
}

impl Account {
    pub fn new(all: Arc<Purse>, limit: u64) -> Account {
        Account { own: Purse::new(limit), all, held: HashMap::new(), next: 1 }
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Charges `bytes`, unless that is more than may be held.
    pub fn charge(&self, bytes: u64) -> Result<Charge, Status> {
        if self.held.len() >= HANDLES {
            return Err(refuse(Code::Busy, format!("{HANDLES} tensors are mapped or created over this connection; release some")));
        }
        Ok(Charge { _own: self.own.take(bytes, "a connection")?, _all: self.all.take(bytes, "all connections together")? })
    }

    /// Holds what is mapped; memory that is held already is not charged again.
    pub fn hold_shared(&mut self, shared: Shared) -> Result<u64, Status> {
        let same = |(held, charge): &(Held, Arc<Charge>)| match held {
            Held::Shared(other) if other.is(&shared) => Some(charge.clone()),
            _ => None,
        };
        let charge = match self.held.values().find_map(same) {
            Some(charge) if self.held.len() < HANDLES => charge,
            _ => Arc::new(self.charge(shared.nbytes())?),
        };
        Ok(self.insert(Held::Shared(shared), charge))
    }

    /// Holds something else.
    pub fn hold(&mut self, held: Held, charge: Charge) -> u64 {
        self.insert(held, Arc::new(charge))
    }

    fn insert(&mut self, held: Held, charge: Arc<Charge>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.held.insert(id, (held, charge));
        id
    }

    /// Holds something under a number that was just taken out.
    pub fn keep(&mut self, id: u64, held: Held, charge: Charge) {
        self.held.insert(id, (held, Arc::new(charge)));
    }

    /// Gives up `id`. One that is not held is nothing to give up: it may have been given up by what went wrong with it.
    pub fn release(&mut self, id: u64) {
        self.held.remove(&id);
    }

    /// What is being filled under `id`, which is over, however its commit ends.
    pub fn take_filling(&mut self, id: u64) -> Result<(Filling, Charge), Status> {
        let wrong = |what: &str| refuse(Code::BadRequest, format!("{id} is {what}; create answers the number to commit"));
        match self.held.remove(&id) {
            Some((Held::Filling(filling), charge)) => {
                let charge = Arc::into_inner(charge).ok_or_else(|| refuse(Code::Internal, "a charge of two"))?;
                Ok((*filling, charge))
            }
            Some(other) => {
                self.held.insert(id, other);
                Err(wrong("not being filled"))
            }
            None => Err(wrong("nothing that this connection holds")),
        }
    }
}
