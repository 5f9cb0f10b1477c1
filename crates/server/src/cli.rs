//! The command line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use sira_client::{Condition, Consistency};

use crate::config::{Config, ConfigError, Flags, units};
use crate::formats::avro::Codec;
use crate::{Failure, commands, serve};

/// Exit codes, shown at the end of the help.
const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key.";

/// A tensor store for inference, over Arrow Flight.
#[derive(Debug, Parser)]
#[command(name = "sira", version, about, after_help = AFTER_HELP)]
struct Cli {
    /// The server that the client commands talk to.
    #[arg(long, env = "SIRA_URL", default_value = sira_client::DEFAULT_URL, global = true, value_name = "URL")]
    url: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server until it is told to stop.
    Serve(ServeArgs),
    /// Store a tensor from a .npy or .safetensors file.
    Put(PutArgs),
    /// Write a tensor to a .npy or .safetensors file.
    Get(GetArgs),
    /// Write all tensors below a prefix to an Avro file.
    Export(ExportArgs),
    /// Store the tensors of an Avro file that was exported.
    Import(ImportArgs),
    /// List tensors, in the byte order of their keys.
    Ls(ListArgs),
    /// Show what the server knows of a tensor, as JSON.
    Info {
        /// namespace/name
        key: String,
    },
    /// Delete tensors; all are tried, even when one is not there.
    Rm {
        /// namespace/name
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Show the server's counts, bytes and limits, as JSON.
    Stats,
    /// Look at configurations.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:9095]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Folder of the data [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Address and port of health and metrics over HTTP, or off [default: 127.0.0.1, one above the server's port]
    #[arg(long, value_name = "ADDRESS|off")]
    admin: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with a configuration, or show what it comes to: the file, the environment over it.
    Check {
        /// Configuration file (TOML); without one, the defaults and the environment
        file: Option<PathBuf>,
    },
}

/// `sira put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// .npy or .safetensors
    pub file: PathBuf,
    /// namespace/name
    pub key: String,
    /// Which tensor of a .safetensors file that holds several
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Names of the axes, joined by commas: layer,kv,token,head,dim
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub axes: Vec<String>,
    /// How lower tiers keep it: none, lz4, zstd, zstd:9, gzip, planes+zstd
    #[arg(long)]
    pub codec: Option<String>,
    /// How long it is kept: seconds, or text such as 90m or 7d
    #[arg(long, value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    /// When the put is acknowledged: strong, eventual or weak
    #[arg(long)]
    pub consistency: Option<Consistency>,
    /// Put only if the key is absent, or has this version
    #[arg(long = "if", value_name = "absent|VERSION")]
    pub condition: Option<Condition>,
    /// A text kept with the tensor; may be given several times
    #[arg(long = "attr", value_name = "NAME=TEXT", value_parser = parse_attribute)]
    pub attributes: Vec<(String, String)>,
}

/// `sira get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// namespace/name
    pub key: String,
    /// .npy or .safetensors; written beside it first, so that it is there whole or not at all
    pub file: PathBuf,
    /// A part of an axis, by its name or position; may be given several times
    #[arg(long = "slice", value_name = "AXIS=START:END", value_parser = parse_slice)]
    pub slices: Vec<(String, [u64; 2])>,
    /// Refuse any other version
    #[arg(long)]
    pub version: Option<u64>,
    /// Name of the tensor in a .safetensors file
    #[arg(long, value_name = "NAME", default_value = "tensor")]
    pub tensor: String,
}

/// `sira export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Keys that start with this; all with ""
    pub prefix: String,
    /// Written as FILE.partial first, so that it is there whole or not at all
    pub file: PathBuf,
    /// How its blocks are compressed [default: null]
    #[arg(long)]
    pub codec: Option<Codec>,
    /// Go on with an export that was interrupted
    #[arg(long)]
    pub resume: bool,
}

/// `sira import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file that sira export or another writer of its schema made
    pub file: PathBuf,
    /// What keys begin with instead of the prefix that was exported
    #[arg(long)]
    pub prefix: Option<String>,
    /// Leave keys as they are that are there already
    #[arg(long)]
    pub if_absent: bool,
    /// Go on with an import that was interrupted
    #[arg(long)]
    pub resume: bool,
}

/// `sira ls`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Keys that start with this
    #[arg(default_value = "")]
    pub prefix: String,
    /// How many at most
    #[arg(long)]
    pub limit: Option<usize>,
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = units::parse_duration(text).filter(|ttl| ttl.as_secs() > 0 && ttl.subsec_millis() == 0);
    ttl.ok_or_else(|| "whole seconds, 1 or more, or text such as 90m or 7d".to_owned())
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("an attribute is NAME=TEXT")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_slice(text: &str) -> Result<(String, [u64; 2]), String> {
    let wrong = || "a slice is AXIS=START:END, such as token=512:1024".to_owned();
    let (axis, range) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (start, end) = range.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    Ok((axis.to_owned(), [number(start)?, number(end)?]))
}

/// Runs the program; gives its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // One line, whatever a library had to say.
            let text = failure.to_string().replace(['\n', '\r'], " ");
            let _ = writeln!(io::stderr(), "sira: {text}");
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => {
            let flags = Flags { listen: args.listen, data: args.data, admin: args.admin };
            let config = Config::from_process(args.config.as_deref(), flags).map_err(|error| refused(&error))?;
            runtime(true)?.block_on(serve::run(config))
        }
        Command::Config(ConfigCommand::Check { file }) => {
            let config = Config::from_process(file.as_deref(), Flags::default()).map_err(|error| refused(&error))?;
            commands::print(&config.to_string())
        }
        Command::Put(args) => runtime(false)?.block_on(commands::put(&cli.url, args)),
        Command::Get(args) => runtime(false)?.block_on(commands::get(&cli.url, args)),
        Command::Export(args) => runtime(false)?.block_on(commands::export(&cli.url, &args)),
        Command::Import(args) => runtime(false)?.block_on(commands::import(&cli.url, &args)),
        Command::Ls(args) => runtime(false)?.block_on(commands::list(&cli.url, &args)),
        Command::Info { key } => runtime(false)?.block_on(commands::info(&cli.url, &key)),
        Command::Rm { keys } => runtime(false)?.block_on(commands::remove(&cli.url, &keys)),
        Command::Stats => runtime(false)?.block_on(commands::stats(&cli.url)),
    }
}

/// A server gets a thread for each processor, a client command one: it does one thing at a time.
fn runtime(server: bool) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = if server { tokio::runtime::Builder::new_multi_thread() } else { tokio::runtime::Builder::new_current_thread() };
    builder.enable_all().build().map_err(|error| Failure::with("the async runtime does not start", error))
}

/// Prints what is wrong with a configuration as compilers do, place first, and gives the summary.
fn refused(error: &ConfigError) -> Failure {
    let mut stderr = io::stderr().lock();
    for line in error.lines() {
        let _ = writeln!(stderr, "{line}");
    }
    let count = error.lines().count();
    Failure::Failed(format!("the configuration has {count} error{}", if count == 1 { "" } else { "s" }))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_parsed_or_refused_with_what_would_be_right() {
        assert_eq!(parse_slice("token=512:1024"), Ok(("token".into(), [512, 1024])));
        assert_eq!(parse_slice("a=b=0:1"), Ok(("a=b".into(), [0, 1])));
        assert!(parse_slice("token=512").unwrap_err().contains("token=512:1024"));
        assert!(parse_slice("token=-1:2").is_err());
        assert_eq!(parse_ttl("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_ttl("0").is_err() && parse_ttl("500ms").is_err());
        assert_eq!(parse_attribute("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_attribute("a").is_err());
    }
}
