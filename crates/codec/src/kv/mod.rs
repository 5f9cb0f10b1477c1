//! KV caches, as codecs see them.

mod facts;

pub use facts::KvFacts;
