//! The client commands. Each talks to a server; none touches its data.

mod export;
mod get;
mod import;
mod list;
mod put;

use std::io::{self, Write};

use serde::Serialize;
use sira_client::{Client, ClientError, Code};

use crate::Failure;
pub(crate) use export::export;
pub(crate) use get::get;
pub(crate) use import::import;
pub(crate) use list::list;
pub(crate) use put::put;

/// Writes text and a line end to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::with("standard output", error)),
        _ => Ok(()),
    }
}

/// `1 tensor`, `2 tensors`.
fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    print(&text)
}

async fn connect(url: &str) -> Result<Client, Failure> {
    Client::connect(url).await.map_err(|error| match error {
        ClientError::BadUrl { .. } => Failure::Usage(error.to_string()),
        other => other.into(),
    })
}

/// `sira info`.
pub(crate) async fn info(url: &str, key: &str) -> Result<(), Failure> {
    print_json(&connect(url).await?.info(key).await?)
}

/// `sira stats`.
pub(crate) async fn stats(url: &str) -> Result<(), Failure> {
    print_json(&connect(url).await?.stats().await?)
}

/// `sira rm`: tries every key, then says which were not there.
pub(crate) async fn remove(url: &str, keys: &[String]) -> Result<(), Failure> {
    let client = connect(url).await?;
    let mut absent = Vec::new();
    for key in keys {
        if !client.delete(key, None).await? {
            absent.push(key.as_str());
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    Err(Failure::NotFound(format!("{}: no such key: {}", Code::NotFound, absent.join(", "))))
}
