//! The command line.

mod args;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use self::args::{
    CalibrateArgs, CheckArgs, CodecCommand, CodecTryArgs, ExportArgs, GetArgs, ImportArgs, JobsCommand, ListArgs, MigrateArgs, ModeName,
    NamespaceCommand, NamespaceSetArgs, PutArgs, RemoveArgs, RouteArgs, SpecCommand, TopArgs,
};
use crate::commands::Server;
use crate::config::{Config, ConfigError, Flags};
use crate::{Failure, commands, serve};

/// Exit codes, shown at the end of the help.
const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such key.";

/// A tensor store for inference, over Arrow Flight.
#[derive(Debug, Parser)]
#[command(name = "sira", version, after_help = AFTER_HELP)]
struct Cli {
    /// The server that the client commands talk to.
    #[arg(long, env = "SIRA_URL", default_value = sira_client::DEFAULT_URL, global = true, value_name = "URL", help_heading = "Connection")]
    url: String,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(subcommand)]
    command: Command,
}

/// Whom the client commands trust, and how they say who they are. Never a token itself: others see a command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct TrustArgs {
    /// File whose first token is sent with every call [env: SIRA_TOKEN_FILE=, or the token in SIRA_TOKEN]; of `serve`, the tokens that are accepted
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<String>,
    /// The server's authority, where it is not one of the system's; PEM [env: SIRA_CA=]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<String>,
    /// Certificate of the client, where the server asks for one; PEM [env: SIRA_CERT=]
    #[arg(long = "cert", global = true, value_name = "FILE")]
    pub client_cert: Option<String>,
    /// Its private key; PEM [env: SIRA_KEY=]
    #[arg(long = "key", global = true, value_name = "FILE")]
    pub client_key: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server until it is told to stop.
    Serve(ServeArgs),
    /// Store a tensor from a .npy file, or one or all of a .safetensors file.
    Put(PutArgs),
    /// Write a tensor to a .npy or .safetensors file, or all below a prefix to one .safetensors file.
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
        /// Changes nothing: the answer is JSON anyway
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Delete tensors; all are tried, even when one is not there.
    Rm(RemoveArgs),
    /// Show what a server has done, and how each of its backends does: counts, times, bytes, limits.
    Stats {
        /// All that the server says, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Watch a server: rates and bytes of each tier and namespace, and memory.
    Top(TopArgs),
    /// Show where a tensor would be kept, and why; nothing is stored.
    Route(RouteArgs),
    /// Move tensors from one backend to another, while the server runs.
    Migrate(MigrateArgs),
    /// Read every copy of tensors, say which are damaged or missing, and mend them.
    Check(CheckArgs),
    /// Watch and stop what runs on the server: migrations and checks.
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Look at namespaces and their policies, and change them.
    #[command(subcommand)]
    Ns(NamespaceCommand),
    /// Register and look up kv specs: what a block of a KV cache is.
    #[command(subcommand)]
    Spec(SpecCommand),
    /// Learn once what a model's KV caches look like, for the codec kvtc.
    Calibrate(CalibrateArgs),
    /// List codecs, and try them on a file.
    #[command(subcommand)]
    Codec(CodecCommand),
    /// Ask whether the server works: exit code 0 when it is healthy or degraded, 1 when it is not or does not answer within 5 seconds.
    Health {
        /// The server's answer, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a script that completes sira's commands in a shell.
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Look at configurations.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:9095]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Path of a Unix socket besides, which only the user of the server may use [default: none]
    #[arg(long, value_name = "PATH")]
    unix_socket: Option<String>,
    /// Folder of the data [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Address and port of health and metrics over HTTP, or off [default: 127.0.0.1, one above the server's port]
    #[arg(long, value_name = "ADDRESS|off")]
    admin: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Certificate of the server; PEM. With it, connections are TLS
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// Its private key; PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Authority of clients: those without a certificate of it are refused; PEM
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<String>,
    /// Listen beyond loopback without TLS, or without knowing who calls
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with a configuration, or show what it comes to: the file, the environment over it.
    Check {
        /// Configuration file (TOML); without one, the defaults and the environment
        file: Option<PathBuf>,
    },
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
    let server = Server { url: &cli.url, trust: &cli.trust };
    match cli.command {
        Command::Serve(args) => serve(args, &cli.trust),
        Command::Config(ConfigCommand::Check { file }) => {
            let config = Config::from_process(file.as_deref(), Flags::default()).map_err(|error| refused(&error))?;
            commands::print(&config.to_string())
        }
        Command::Put(args) => runtime(false)?.block_on(commands::put(server, args)),
        Command::Get(args) => runtime(false)?.block_on(commands::get(server, args)),
        Command::Export(args) => runtime(false)?.block_on(commands::export(server, &args)),
        Command::Import(args) => runtime(false)?.block_on(commands::import(server, &args)),
        Command::Ls(args) => runtime(false)?.block_on(commands::list(server, &args)),
        Command::Info { key, json: _ } => runtime(false)?.block_on(commands::info(server, &key)),
        Command::Rm(args) => runtime(false)?.block_on(commands::remove(server, &args)),
        Command::Stats { json } => runtime(false)?.block_on(commands::stats(server, json)),
        Command::Top(args) => runtime(false)?.block_on(commands::top(server, &args)),
        Command::Route(args) => runtime(false)?.block_on(commands::route(server, &args)),
        Command::Migrate(args) => runtime(false)?.block_on(commands::migrate(server, args)),
        Command::Check(args) => runtime(false)?.block_on(commands::check(server, args)),
        Command::Jobs(command) => runtime(false)?.block_on(commands::jobs(server, command)),
        Command::Ns(command) => runtime(false)?.block_on(commands::namespace(server, command)),
        Command::Spec(command) => runtime(false)?.block_on(commands::spec(server, command)),
        Command::Calibrate(args) => runtime(false)?.block_on(commands::calibrate(server, &args)),
        Command::Codec(command) => runtime(false)?.block_on(commands::codec(command)),
        Command::Health { json } => runtime(false)?.block_on(commands::health(server, json)),
        Command::Completions { shell } => completions(shell),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sira", &mut script);
    commands::print(&String::from_utf8_lossy(&script))
}

fn serve(args: ServeArgs, trust: &TrustArgs) -> Result<(), Failure> {
    if let Some(flag) =
        [(&trust.ca, "--ca"), (&trust.client_cert, "--cert"), (&trust.client_key, "--key")].iter().find(|(file, _)| file.is_some())
    {
        let flag = flag.1;
        return Err(Failure::Usage(format!("{flag} is for client commands; a server takes --tls-cert, --tls-key and --tls-client-ca")));
    }
    let flags = Flags {
        listen: args.listen,
        unix_socket: args.unix_socket,
        data: args.data,
        admin: args.admin,
        token_file: trust.token_file.clone(),
        tls_cert: args.tls_cert,
        tls_key: args.tls_key,
        tls_client_ca: args.tls_client_ca,
        insecure: args.insecure,
    };
    let config = Config::from_process(args.config.as_deref(), flags).map_err(|error| refused(&error))?;
    runtime(true)?.block_on(serve::run(config))
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
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_the_manual() {
        let manual = include_str!("../../../docs/cli.md");
        for command in Cli::command().get_subcommands() {
            assert!(manual.contains(&format!("\n### `sira {}", command.get_name())), "docs/cli.md lacks sira {}", command.get_name());
        }
    }
}
