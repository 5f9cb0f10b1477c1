//! KV caches, as codecs see them.

mod facts;
mod layout;
mod rope;

pub use facts::KvFacts;
pub(crate) use layout::{Kind, Layout, Matrix};
