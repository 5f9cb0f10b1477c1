//! Progress of a long command, shown to a person: on standard error, and only where that is a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of bytes with rate and remaining time. It disappears when dropped; where nobody looks, it does nothing.
#[derive(Debug)]
pub struct Progress(ProgressBar);

/// Whether somebody looks at standard error, so that a total is worth finding out.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

impl Progress {
    /// A bar up to `total` bytes; without a total, it shows bytes and rate. With `show` false, as of a command whose output is for programs,
    /// nothing is shown even on a terminal.
    pub fn bytes(total: Option<u64>, show: bool) -> Progress {
        let target = if show && is_watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = match total {
            Some(_) => "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left  {wide_msg}",
            None => "{spinner} {bytes}, {bytes_per_sec}  {wide_msg}",
        };
        let bar = ProgressBar::with_draw_target(total, target);
        // A template that is not understood would only cost the looks.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress(bar)
    }

    /// This many more bytes are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// This many bytes are done in all.
    pub fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// What is being done: a key, a file.
    pub fn message(&self, text: &str) {
        // A key may hold anything but control characters, so it needs no escape.
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
