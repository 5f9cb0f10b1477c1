//! What several test binaries share.

pub mod matrix;
pub mod proxy;
pub mod rough;
pub mod servers;
