//! The client commands. Each talks to a server; none touches its data.

mod calibrate;
mod codec;
mod collect;
mod export;
mod get;
mod health;
mod import;
mod jobs;
mod list;
mod namespace;
mod output;
mod put;
mod put_many;
mod remove;
mod route;
mod spec;
mod stats;
mod table;
mod top;

use std::io::{self, Write};

use serde::Serialize;
use sira_client::{Client, ClientError, ConnectOptions};

use crate::Failure;
use crate::cli::TrustArgs;
pub(crate) use calibrate::calibrate;
pub(crate) use codec::codec;
pub(crate) use export::export;
pub(crate) use get::get;
pub(crate) use health::health;
pub(crate) use import::import;
pub(crate) use jobs::{check, jobs, migrate};
pub(crate) use list::list;
pub(crate) use namespace::namespace;
pub(crate) use put::put;
pub(crate) use remove::remove;
pub(crate) use route::route;
pub(crate) use spec::spec;
pub(crate) use stats::stats;
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
    pub trust: &'a TrustArgs,
}

impl Server<'_> {
    async fn connect(self) -> Result<Client, Failure> {
        let options = options(self.trust, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
        Client::connect_with(self.url, options).await.map_err(|error| match error {
            ClientError::BadUrl { .. } | ClientError::BadCredentials(_) => Failure::Usage(error.to_string()),
            other => other.into(),
        })
    }
}

/// What the flags say, and where they say nothing the environment.
fn options(trust: &TrustArgs, environment: impl Fn(&str) -> Option<String>) -> Result<ConnectOptions, Failure> {
    let read = |path: &str| std::fs::read(path).map_err(|error| Failure::Usage(format!("{path}: {error}")));
    let file = |flag: &Option<String>, name: &str| flag.clone().or_else(|| environment(name)).map(|path| read(&path)).transpose();
    let token = match (&trust.token_file, environment("SIRA_TOKEN")) {
        (None, Some(token)) => Some(token),
        (flag, _) => match flag.clone().or_else(|| environment("SIRA_TOKEN_FILE")) {
            Some(path) => Some(first_token(&path, &String::from_utf8_lossy(&read(&path)?))?),
            None => None,
        },
    };
    Ok(ConnectOptions {
        token,
        ca_pem: file(&trust.ca, "SIRA_CA")?,
        cert_pem: file(&trust.client_cert, "SIRA_CERT")?,
        key_pem: file(&trust.client_key, "SIRA_KEY")?,
        ..ConnectOptions::default()
    })
}

/// A server's own file of tokens serves its clients too.
fn first_token(path: &str, text: &str) -> Result<String, Failure> {
    let token = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    token.map(str::to_owned).ok_or_else(|| Failure::Usage(format!("{path}: holds no token")))
}

/// `sira info`.
pub(crate) async fn info(server: Server<'_>, key: &str) -> Result<(), Failure> {
    print_json(&server.connect().await?.info(key).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_environment_and_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (tokens, ca, none) = (path("tokens", "# mine\n\n token-one \ntoken-two\n"), path("ca", "pem"), path("none", "# empty\n"));
        let trust =
            |token_file: Option<&String>| TrustArgs { token_file: token_file.cloned(), ca: None, client_cert: None, client_key: None };
        let of = |trust: &TrustArgs, variables: &[(&str, &str)]| {
            options(trust, |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&trust(None), &[]).unwrap(), ConnectOptions::default());
        let variables = [("SIRA_TOKEN", "from-environment"), ("SIRA_CA", ca.as_str())];
        let options = of(&trust(Some(&tokens)), &variables).unwrap();
        assert_eq!((options.token.as_deref(), options.ca_pem.as_deref()), (Some("token-one"), Some(&b"pem"[..])));
        assert_eq!(of(&trust(None), &variables).unwrap().token.as_deref(), Some("from-environment"));
        assert_eq!(of(&trust(None), &[("SIRA_TOKEN_FILE", &tokens)]).unwrap().token.as_deref(), Some("token-one"));
        assert!(of(&trust(Some(&none)), &[]).unwrap_err().to_string().ends_with("none: holds no token"));
        assert!(of(&trust(None), &[("SIRA_KEY", "nowhere")]).unwrap_err().to_string().starts_with("nowhere: "));
    }
}
