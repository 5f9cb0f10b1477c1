//! The Rust client of Sira: async, over the generated Flight client; it speaks docs/wire.md.
//!
//! ```no_run
//! # async fn example() -> Result<(), sira_client::ClientError> {
//! use sira_client::{Client, DType, GetOptions, PutOptions, TensorSpec};
//!
//! let client = Client::connect("grpc://127.0.0.1:9095").await?;
//! let spec = TensorSpec::new(DType::Float32, vec![2, 3])?;
//! client.put("demo/ones", &spec, vec![0u8; 24], PutOptions::default()).await?;
//! let tensor = client.get("demo/ones", &GetOptions::default()).await?;
//! assert_eq!(tensor.spec().shape(), [2, 3]);
//! let bytes = tensor.into_bytes().await?;
//! assert_eq!(bytes.len(), 24);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is a connection; clones share it, and any number of calls run on it at once. It needs a Tokio runtime.
//!
//! | to | call |
//! |---|---|
//! | connect | [`Client::connect`]; [`Client::connect_lazy`] where the server may be absent |
//! | put one tensor | [`Client::put`] from memory, [`Client::put_reader`] from a file or socket, [`Client::put_stream`] from pieces |
//! | put a key of several parts | [`Client::put_parts`] from memory, [`Client::put_parts_stream`] from pieces |
//! | put many keys | [`Client::put_many`] of [`PutEntry`] |
//! | get a tensor, a slice, a part | [`Client::get`] with [`GetOptions`]: a [`TensorStream`], piece by piece or [whole](TensorStream::into_bytes) |
//! | get a large tensor over several connections | [`Client::get_parallel`], [`Client::get_parallel_into`] |
//! | share memory with a server of the same machine | [`Client::map`]: a [`Mapped`] tensor; [`Client::create`]: a [`Created`] one |
//! | get many keys, or all parts | [`Client::get_many`]: a [`ManyStream`], as [events](ManyStream::next), as [keys](ManyStream::collect) or [into buffers](ManyStream::read_into) |
//! | get into memory that is there already | [`Client::get_into`], [`Client::get_many_into`]: from the socket to where it belongs |
//! | put from memory that stays the caller's | [`Client::put_from`] |
//! | code here what a server would: fewer bytes on the way | [`Client::get_encoded`], [`Client::get_encoded_into`], [`Client::put_encoded`] |
//! | the same without a runtime | [`blocking::Client`] |
//! | look up | [`Client::exists`], [`Client::exists_with`], [`Client::exists_many`], within a [`Deadline`] |
//! | describe | [`Client::info`]; [`Client::list`] a page, [`Client::list_all`] as a stream |
//! | delete | [`Client::delete`], [`Client::delete_many`], [`Client::delete_prefix`], [`Client::delete_prefix_page`] |
//! | say what KV blocks are | [`Client::put_kv_spec`], [`Client::kv_spec`] |
//! | govern namespaces | [`Client::namespaces`], [`Client::set_namespace`], [`Client::reset_namespace`] |
//! | see where a tensor would go | [`Client::route`] |
//! | move tensors between backends, check their copies | [`Client::migrate`], [`Client::check`]: a [`Job`], watched by [`Client::job`] |
//! | watch the server | [`Client::stats`], [`Client::health`] |
//!
//! **Memory.** Tensors move in pieces of a few MiB, so that neither side needs a whole one in memory; bytes are not copied where they lie in one piece
//! (small ones of a [`Client::put_many`] are, once). What a server says of lengths is checked, and nothing is allocated by it.
//!
//! **Errors.** [`ClientError::code`] gives the stable code of a refusal. A call on many keys fails as a whole only when the request does; what happened to
//! each key is in its result, a [`WireError`].
//!
//! **Lookups end in time.** [`LOOKUP_DEADLINE`] (200 ms) holds for lookups when nothing else is said. A server that is wedged or gone is then a miss for
//! namespaces known as caches ([`Client::with_cache_namespaces`], and those that the server's answers called one), and an error for others. Other calls take
//! as long as they take: put `tokio::time::timeout` around those that must not.
//!
//! Examples that run are in `crates/client/examples`: `put_get`, `kv_blocks`, `stream_file`.

mod admin;
mod batches;
pub mod blocking;
mod bottleneck;
mod calibrations;
mod chunks;
mod client;
mod connect;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod get;
mod get_encoded;
mod get_into;
mod get_many;
mod get_parallel;
mod http2;
mod jobs;
mod line;
mod lookup;
mod message;
mod put;
mod put_encoded;
mod put_from;
mod put_many;
mod put_messages;
mod put_parts;
mod same_host;
mod segments;

pub use client::{Client, DEFAULT_URL, Health};
pub use connect::ConnectOptions;
pub use error::ClientError;
pub use get::{GetOptions, TensorStream};
pub use get_many::{FetchedKey, FetchedPart, FilledKey, GetManyOptions, ManyStream};
pub use lookup::{Deadline, LOOKUP_DEADLINE, Lookup, LookupOptions};
pub use put::read_pieces;
pub use put_many::{PartData, PutEntry};
pub use same_host::{Created, Mapped};
pub use segments::ManyEvent;
pub use sira_tensor::kv::{KvField, KvPart, KvSpec, Rope, RopeStyle, StateKind};
pub use sira_tensor::{DType, TensorError, TensorSpec};
pub use sira_wire::job::{CheckRequest, Finding, Job, JobState, MigrateRequest, Problem, Work};
pub use sira_wire::many::{DeleteManyAnswer, DeletePrefixAnswer, FailedKey, PrefixRequest};
pub use sira_wire::namespace::{
    KvSpecAnswer, Mode, NamespaceEntry, NamespaceOperations, Policy, PolicyOrigin, RouteAnswer, RouteCandidate, RouteOptions, RouteStep,
    Tiers,
};
pub use sira_wire::{Code, Condition, Consistency, Entry, ListAnswer, ListRequest, PartEntry, PutAnswer, PutOptions, WireError};
