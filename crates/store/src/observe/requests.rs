//! Requests of clients, by what they ask and how they end.

use std::sync::Arc;
use std::time::Duration;

use sira_wire::Code;
use tokio::time::Instant;

use super::latency::{Measured, Table};
use crate::StorageClient;
use crate::client::Inner;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A tensor in: timed until it is acknowledged.
    Put,
    /// A tensor out: timed until its first bytes are there, counted at its end.
    Get,
    /// A key removed.
    Delete,
    /// What is known of a key.
    Lookup,
    /// Keys of a prefix.
    List,
}

/// In the order of [`Operation`].
const OPERATIONS: [&str; 5] = ["put", "get", "delete", "lookup", "list"];

/// `ok`, the stable codes, and `cancelled`: the client has gone before the end.
const OUTCOMES: [&str; Code::ALL.len() + 2] = {
    let mut outcomes = ["ok"; Code::ALL.len() + 2];
    let mut at = 0;
    while at < Code::ALL.len() {
        outcomes[at + 1] = Code::ALL[at].as_str();
        at += 1;
    }
    outcomes[at + 1] = "cancelled";
    outcomes
};

/// What is counted of requests.
#[derive(Default)]
pub(crate) struct Requests(Table<{ OPERATIONS.len() }, { OUTCOMES.len() }>);

impl Requests {
    pub fn read(&self) -> Vec<Measured> {
        self.0.read(OPERATIONS, OUTCOMES)
    }
}

/// A request under way. Dropped without an end, it counts as cancelled.
pub struct Request {
    inner: Arc<Inner>,
    operation: Operation,
    begun: Instant,
    latency: Option<Duration>,
    ended: bool,
}

impl Request {
    /// The first bytes of the answer are there: this is what its latency counts to.
    pub fn first_byte(&mut self) {
        self.latency.get_or_insert_with(|| self.begun.elapsed());
    }

    /// How it ended; what comes after the first end does not count.
    pub fn end(&mut self, outcome: Result<(), Code>) {
        self.record(outcome.map_or_else(|code| 1 + code as usize, |()| 0));
    }

    fn record(&mut self, outcome: usize) {
        if !std::mem::replace(&mut self.ended, true) {
            let took = self.latency.unwrap_or_else(|| self.begun.elapsed());
            self.inner.counters.requests.0.record(self.operation as usize, outcome, took);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.record(OUTCOMES.len() - 1);
    }
}

impl StorageClient {
    /// Counts and times a request of a client that begins now.
    pub fn request(&self, operation: Operation) -> Request {
        Request { inner: self.inner.clone(), operation, begun: Instant::now(), latency: None, ended: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Seams, StoreOptions};

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_once_by_how_they_end() {
        let catalog = Arc::new(crate::catalog::MemoryKv::default());
        let store = StorageClient::new(StoreOptions::default(), Seams::system(), catalog).unwrap();
        let mut get = store.request(Operation::Get);
        tokio::time::advance(Duration::from_millis(3)).await;
        get.first_byte();
        tokio::time::advance(Duration::from_secs(3)).await;
        get.first_byte();
        get.end(Ok(()));
        get.end(Err(Code::Busy));
        drop(get);
        store.request(Operation::Put).end(Err(Code::Internal));
        drop(store.request(Operation::List));
        let rows = store.inner.counters.requests.read();
        let counted = rows.iter().filter(|row| row.latency.count() > 0);
        let counted: Vec<_> = counted.map(|row| (row.operation, row.outcome, row.latency.count(), row.latency.seconds)).collect();
        assert_eq!(counted, [("put", "SIRA_INTERNAL", 1, 0.0), ("get", "ok", 1, 0.003), ("list", "cancelled", 1, 0.0)]);
    }
}
