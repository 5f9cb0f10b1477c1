//! `sira spec`: kv specs, which say what a block of a KV cache is.

use std::io::Read;
use std::path::Path;

use sira_client::KvSpec;
use sira_tensor::kv::MAX_KV_SPEC;

use super::{Server, print, print_json, print_line};
use crate::Failure;
use crate::cli::SpecCommand;

/// `sira spec`.
pub(crate) async fn spec(server: Server<'_>, command: SpecCommand) -> Result<(), Failure> {
    match command {
        SpecCommand::Put { file, json } => {
            let text = read(&file).map_err(|error| Failure::with(file.display(), error))?;
            let spec = KvSpec::from_json(&text).map_err(|error| Failure::with(file.display(), error))?;
            let answer = server.connect().await?.put_kv_spec(&spec).await?;
            if json { print_line(&answer) } else { print(&answer.hash) }
        }
        SpecCommand::Get { hash } => print_json(&server.connect().await?.kv_spec(&hash).await?.spec),
    }
}

/// A file, or standard input for `-`. What is too long is cut where it is too long already.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let most = MAX_KV_SPEC as u64 + 1;
    match path.to_str() {
        Some("-") => std::io::stdin().take(most).read_to_end(&mut text)?,
        _ => std::fs::File::open(path)?.take(most).read_to_end(&mut text)?,
    };
    Ok(text)
}
