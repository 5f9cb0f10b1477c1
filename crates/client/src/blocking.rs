//! Gets and puts that block their thread and need no runtime: what an extension of another language is made of.
//!
//! Requests are given in the wire's own words (docs/wire.md), and bytes go straight between socket and memory, as with
//! [`Client::get_into`](crate::Client::get_into). A client may be shared by threads, each of whose calls has a connection to itself. In a child process that
//! its process forks, it opens connections of its own.

use std::collections::HashMap;
use std::future::Future;
use std::time::Instant;

use futures::FutureExt;
use prost::Message;
use sira_tensor::TensorSpec;
use sira_wire::PutAnswer;

use crate::get_into::{Incoming, IncomingMany};
use crate::http2::Pool;
use crate::{ClientError, ConnectOptions, message, put_from};

/// A server, as a thread sees it that waits for each answer.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool,
}

/// A tensor on its way: what it is has come, its bytes have not. Dropped, it ends the get.
#[derive(Debug)]
pub struct Tensor(Incoming);

/// Many keys on their way, message by message. Dropped, they end the get.
#[derive(Debug)]
pub struct Many(IncomingMany);

impl Client {
    /// A client of the server at `url`, which is not asked for anything yet.
    ///
    /// A signal that breaks into a call asks `go_on` whether to wait further; without, the call ends with an error.
    pub fn new(url: &str, options: &ConnectOptions, go_on: fn() -> bool) -> Result<Client, ClientError> {
        Ok(Client { pool: Pool::new(url, options, Some(go_on))? })
    }

    /// Opens the one tensor that a ticket names. `end` is when it gives up, here and while the bytes are read.
    pub fn get(&self, ticket: &[u8], end: Option<Instant>) -> Result<Tensor, ClientError> {
        run(Incoming::open(&self.pool, ticket, end)).map(Tensor)
    }

    /// Opens the keys that a ticket for many names.
    pub fn get_many(&self, ticket: &[u8], end: Option<Instant>) -> Result<Many, ClientError> {
        run(IncomingMany::open(&self.pool, ticket, end)).map(Many)
    }

    /// Puts `data` under `key`; the metadata says what it is and how to keep it, its shape included.
    pub fn put(&self, key: &str, metadata: HashMap<String, String>, data: &[u8], end: Option<Instant>) -> Result<PutAnswer, ClientError> {
        run(put_from::put_bytes(&self.pool, message::schema(key, metadata).encode_to_vec(), data, end))
    }
}

impl Tensor {
    /// Dtype, shape and axes of what comes.
    pub fn spec(&self) -> &TensorSpec {
        &self.0.spec
    }

    /// Fills `out`, which must be exactly as long as the tensor.
    pub fn read_into(self, out: &mut [u8]) -> Result<(), ClientError> {
        run(self.0.read_into(out))
    }
}

impl Many {
    /// The next message: the JSON that says what its bytes are, and how many there are. `None` once all have come.
    #[allow(clippy::should_implement_trait, reason = "what it gives borrows nothing, but an error ends it")]
    pub fn next(&mut self) -> Result<Option<(Vec<u8>, usize)>, ClientError> {
        Ok(run(self.0.next())?.map(|message| (message.metadata, message.rows)))
    }

    /// Fills `out` with the message's bytes from `offset` on; those before are passed over, and cannot be read later.
    pub fn read_into(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ClientError> {
        run(async {
            self.0.pass(offset).await?;
            self.0.read(out).await
        })
    }

    /// Ends a get of which all has come, so that its connection can serve another.
    pub fn finish(self) {
        self.0.messages.finish();
    }
}

/// Runs what waits in its socket, and therefore never is pending.
fn run<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    call.now_or_never().unwrap_or_else(|| Err(ClientError::protocol("a call over a blocking connection did not block")))
}
