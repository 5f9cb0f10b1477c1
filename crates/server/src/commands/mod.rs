//! The client commands. Each talks to a server; none touches its data.

mod collect;
mod export;
mod get;
mod health;
mod import;
mod list;
mod namespace;
mod output;
mod put;
mod put_many;
mod remove;
mod route;
mod spec;
mod table;
mod top;

use std::io::{self, Write};

use serde::Serialize;
use sira_client::{Client, ClientError};

use crate::Failure;
pub(crate) use export::export;
pub(crate) use get::get;
pub(crate) use health::health;
pub(crate) use import::import;
pub(crate) use list::list;
pub(crate) use namespace::namespace;
pub(crate) use put::put;
pub(crate) use remove::remove;
pub(crate) use route::route;
pub(crate) use spec::spec;
pub(crate) use top::top;

/// Writes text and a line end to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_open(text).map(drop)
}

/// As [`print`]; says whether somebody still reads.
fn print_open(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::with("standard output", error)),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Failed(error.to_string()))?;
    print(&text)
}

/// One line of JSON.
fn print_line(value: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(value).map_err(|error| Failure::Failed(error.to_string()))?)
}

/// Says something to a person beside the command's output.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "sira: {}", text.replace(['\n', '\r'], " "));
}

/// `1 tensor`, `2 tensors`.
fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The server that a client command talks to.
#[derive(Clone, Copy)]
pub(crate) struct Server<'a> {
    pub url: &'a str,
}

impl Server<'_> {
    async fn connect(self) -> Result<Client, Failure> {
        Client::connect(self.url).await.map_err(|error| match error {
            ClientError::BadUrl { .. } => Failure::Usage(error.to_string()),
            other => other.into(),
        })
    }
}

/// `sira info`.
pub(crate) async fn info(server: Server<'_>, key: &str) -> Result<(), Failure> {
    print_json(&server.connect().await?.info(key).await?)
}

/// `sira stats`.
pub(crate) async fn stats(server: Server<'_>) -> Result<(), Failure> {
    print_json(&server.connect().await?.stats().await?)
}
