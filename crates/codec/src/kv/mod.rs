//! KV caches, as codecs see them.

mod exact;
mod facts;
mod layout;
mod rope;

pub(crate) use exact::Exact;
pub use facts::KvFacts;
pub(crate) use layout::{Float, Kind, Layout, Matrix};
