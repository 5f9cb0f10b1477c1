//! The client's side of HTTP/2.
//!
//! Calls about small things share one connection of tonic's. Bytes of tensors that go into a caller's buffer, or come from one, go over connections
//! of their own, one call at a time on each: what arrives is read from the socket to where it belongs, without a buffer, a task or a window between.
//! HTTP/2 asks no more of such a client than what stands here: it sends a request's headers and data, and reads headers, data and the frames
//! that steer the connection.
//!
//! | | shared connection | connection for bytes |
//! |---|---|---|
//! | frames taken, at most | [`FRAME`] | [`FRAME`] |
//! | window of a stream | [`SHARED_WINDOW`]: what may wait in memory for its reader | [`WINDOW`]: TCP itself holds the server back |
//! | window of the connection | twice that | the same |
//! | frames sent, at most | the server's limit | the server's limit |
//! | open at once | one | one a call that runs; [`IDLE`] stay open for [`IDLE_TIME`] |

pub(crate) mod block;
mod call;
mod connection;
mod link;
mod pool;
mod receive;
mod tls;

use std::time::Duration;

pub(crate) use connection::Connection;
pub(crate) use pool::{Lease, Pool};
pub(crate) use receive::{MAX_METADATA, Message, Messages, put_varint};

/// Bytes of a frame, at most: large, so that an answer comes in few.
pub(crate) const FRAME: u32 = 4 << 20;

/// How much of an answer may come over the shared connection before it is read.
pub(crate) const SHARED_WINDOW: u32 = 8 << 20;

/// The window of a connection for bytes and of its one stream: the largest there is, because nothing is kept that its reader did not ask for.
pub(crate) const WINDOW: u32 = (1 << 31) - 1;

/// How many connections for bytes stay open without a call.
pub(crate) const IDLE: usize = 16;

/// How long they do. Servers ask less often than this whether a connection lives, and nobody would answer.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(15);

/// Time to connect, greetings included.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(10);
