//! Calls run in a runtime of their own, because a connection's tasks outlive the server that accepted it: ending the runtime is what ends
//! them all.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::Failure;

/// How long a call that is being cut off may finish what cannot be interrupted, such as a write to a disk.
const LAST_STEP: Duration = Duration::from_secs(5);

/// The server with everything its calls have started.
pub(super) struct Calls {
    /// Taken only when it ends.
    runtime: Option<Runtime>,
    server: JoinHandle<Result<(), String>>,
}

impl Calls {
    /// Starts the server in a runtime of its own.
    pub(super) fn run(server: impl Future<Output = Result<(), String>> + Send + 'static) -> Result<Calls, Failure> {
        let runtime = Builder::new_multi_thread()
            .thread_name("sira-calls")
            .enable_all()
            .build()
            .map_err(|error| Failure::with("the async runtime of the calls does not start", error))?;
        Ok(Calls { server: runtime.spawn(server), runtime: Some(runtime) })
    }

    /// Waits until the server has ended by itself, all its calls done. To be waited for once.
    pub(super) async fn ended(&mut self) -> Result<(), String> {
        (&mut self.server).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Drops whatever still runs, and waits until it is gone: then no put runs, and nothing of the store is held here.
    pub(super) async fn cut_off(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It waits for its threads, which may not be done on a thread that runs async tasks.
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(LAST_STEP)).await;
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Dropping a runtime within another one panics.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
