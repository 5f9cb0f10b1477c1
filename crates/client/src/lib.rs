//! The Rust client of Sira.
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
//! It speaks docs/wire.md over the generated Flight client and moves tensors in pieces, so that neither side needs a whole one in memory.

mod client;
mod connect;
mod error;
mod get;
mod message;
mod put;

pub use client::{Client, DEFAULT_URL, Health};
pub use connect::ConnectOptions;
pub use error::ClientError;
pub use get::{GetOptions, TensorStream};
pub use put::read_pieces;
pub use sira_tensor::{DType, TensorError, TensorSpec};
pub use sira_wire::{Code, Condition, Consistency, Entry, ListAnswer, ListRequest, PutAnswer, PutOptions, WireError};
