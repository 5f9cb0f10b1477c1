//! The program `sira`: command line, configuration, start-up and drain.

mod admin;
pub mod cli;
mod commands;
pub mod config;
mod failure;
pub mod formats;
pub mod progress;
pub mod serve;

pub use failure::Failure;
