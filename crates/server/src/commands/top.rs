//! `sira top`: what a server does right now, by tier and namespace.

mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use sira_client::Client;
use tokio::signal::unix::{SignalKind, signal};

use self::screen::Screen;
use self::view::{Snapshot, View};
use super::{Server, print_open};
use crate::Failure;
use crate::cli::TopArgs;

/// `sira top`: redraws in place on a terminal, and writes one picture an interval elsewhere.
pub(crate) async fn top(server: Server<'_>, args: &TopArgs) -> Result<(), Failure> {
    let client = server.connect().await?;
    if io::stdout().is_terminal() && !args.json && !args.once {
        watch(&client, server.url, args.interval).await
    } else {
        write(&client, server.url, args).await
    }
}

async fn look(client: &Client) -> Result<Snapshot, Failure> {
    let (stats, namespaces) = tokio::try_join!(client.stats(), client.namespaces())?;
    let stats = serde_json::from_value(stats).map_err(|error| Failure::with("the server's stats are not understood", error))?;
    Ok(Snapshot { at: Instant::now(), stats, namespaces })
}

async fn write(client: &Client, url: &str, args: &TopArgs) -> Result<(), Failure> {
    let mut before = look(client).await?;
    loop {
        tokio::time::sleep(args.interval).await;
        let now = look(client).await?;
        let view = View::of(Some(&before), &now);
        let text = if args.json {
            serde_json::to_string(&view).map_err(|error| Failure::Failed(error.to_string()))?
        } else {
            let blank = if args.once { "" } else { "\n" };
            format!("{}{blank}", view.lines(url, usize::MAX).join("\n"))
        };
        // Whoever reads may have seen enough: nothing else ends this.
        if !print_open(&text)? || args.once {
            return Ok(());
        }
        before = now;
    }
}

/// Until `q`, Ctrl-C or a signal; the terminal is as before afterwards, however this ends.
async fn watch(client: &Client, url: &str, interval: Duration) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::with("the terminal", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let first = look(client).await?;
    let screen = Screen::enter().map_err(failed)?;
    let mut view = View::of(None, &first);
    let mut before = first;
    loop {
        screen.draw(|rows| view.lines(url, rows)).map_err(failed)?;
        let left = interval.saturating_sub(before.at.elapsed());
        tokio::select! {
            event = screen::wait(left) => match event.map_err(failed)? {
                screen::Event::Quit => return Ok(()),
                screen::Event::Resized => continue,
                screen::Event::Elapsed => {}
            },
            _ = terminate.recv() => return Ok(()),
        }
        let now = look(client).await?;
        view = View::of(Some(&before), &now);
        before = now;
    }
}
