//! Connections to a database across a network: so many, and no more.
//!
//! The pool of sqlx asks the server for a sign of life after each statement, which a small read notices. Here a connection is asked
//! when it has rested, and one whose statement did not come to its end is not used again.

use std::io;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{Connection, Database};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{DatabaseOptions, SHRINK};

/// A connection that rested longer is tried before it is used: the server, or a firewall on the way, may have closed it.
const RESTED: Duration = Duration::from_secs(1);

/// A connection that is older is replaced: the name of the server may mean another machine by now.
const AGED: Duration = Duration::from_secs(30 * 60);

/// Connections made at once: a burst of calls must not be a burst of handshakes, whose passwords cost both sides so much work that none is
/// done in time.
const CONNECTING: usize = 2;

/// Makes the settings of a new connection.
pub type Prepare<DB> = Box<dyn for<'c> Fn(&'c mut <DB as Database>::Connection) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send + Sync>;

/// The connections of one backend.
pub struct Connections<DB: Database> {
    options: <DB::Connection as Connection>::Options,
    prepare: Prepare<DB>,
    patience: Duration,
    permits: Semaphore,
    /// Held while connecting.
    connecting: Semaphore,
    idle: Mutex<Vec<Idle<DB>>>,
}

struct Idle<DB: Database> {
    connection: DB::Connection,
    born: Instant,
    since: Instant,
}

/// A connection lent for one statement. Dropped before that ended, it is closed: nobody else may read the rest of the answer.
pub struct Lent<'a, DB: Database> {
    pub connection: DB::Connection,
    born: Instant,
    lender: &'a Connections<DB>,
    _permit: SemaphorePermit<'a>,
}

impl<DB: Database> Connections<DB> {
    /// None is made before it is needed.
    pub fn new(options: &DatabaseOptions, connect: <DB::Connection as Connection>::Options, prepare: Prepare<DB>) -> Connections<DB> {
        Connections {
            options: connect,
            prepare,
            patience: options.connect_timeout,
            permits: Semaphore::new(options.max_connections as usize),
            connecting: Semaphore::new(CONNECTING),
            idle: Mutex::default(),
        }
    }

    /// Waits for a connection, free or new.
    pub async fn lend(&self) -> Result<Lent<'_, DB>, sqlx::Error> {
        let permit = self.turn(&self.permits).await?;
        let lend = |connection, born| Lent { connection, born, lender: self, _permit: permit };
        if let Some(idle) = self.rested().await {
            return Ok(lend(idle.connection, idle.born));
        }
        let _turn = self.turn(&self.connecting).await?;
        // Others may be done with theirs by now.
        if let Some(idle) = self.rested().await {
            return Ok(lend(idle.connection, idle.born));
        }
        let connection = timed(self.patience, async {
            let mut connection = DB::Connection::connect_with(&self.options).await?;
            (self.prepare)(&mut connection).await?;
            Ok(connection)
        });
        Ok(lend(connection.await?, Instant::now()))
    }

    async fn turn<'a>(&self, permits: &'a Semaphore) -> Result<SemaphorePermit<'a>, sqlx::Error> {
        let permit = tokio::time::timeout(self.patience, permits.acquire()).await.map_err(|_| sqlx::Error::PoolTimedOut)?;
        permit.map_err(|_| sqlx::Error::PoolClosed)
    }

    /// A connection that nobody uses, and that works.
    async fn rested(&self) -> Option<Idle<DB>> {
        loop {
            // The lock is let go before anything is waited for.
            let mut idle = self.idle.lock().pop()?;
            let usable = idle.since.elapsed() < RESTED || matches!(timed(self.patience, idle.connection.ping()).await, Ok(()));
            if usable && idle.born.elapsed() < AGED {
                return Some(idle);
            }
        }
    }
}

impl<DB: Database> Lent<'_, DB> {
    /// Gives the connection back, if the statement ended with an answer; `moved` is how many bytes that or the question had.
    pub fn ended<T>(mut self, result: Result<T, sqlx::Error>, moved: usize) -> Result<T, sqlx::Error> {
        // An error that the server reports is an answer, too.
        if matches!(result, Ok(_) | Err(sqlx::Error::Database(_))) {
            if moved >= SHRINK {
                self.connection.shrink_buffers();
            }
            let idle = Idle { connection: self.connection, born: self.born, since: Instant::now() };
            self.lender.idle.lock().push(idle);
        }
        result
    }
}

/// Waits for an answer, but not forever.
pub async fn timed<T>(patience: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} seconds", patience.as_secs_f32()));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(late().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_forever() {
        let error = timed(Duration::from_millis(10), std::future::pending::<Result<(), _>>()).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 0.01 seconds"), "{error}");
    }
}
