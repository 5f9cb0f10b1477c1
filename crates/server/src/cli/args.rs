//! The arguments of the client commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use sira_client::{Condition, Consistency, DType, Tiers};

use crate::config::units;
use crate::formats::avro::Codec;

/// `sira put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// .npy or .safetensors; or .calib, with the key calibration/
    pub file: PathBuf,
    /// namespace/name; one that ends with / takes a key for each tensor of a .safetensors file
    pub key: String,
    /// Which tensor of a .safetensors file that holds several
    #[arg(long, value_name = "NAME", conflicts_with = "parts")]
    pub tensor: Option<String>,
    /// Put all tensors of a .safetensors file under this one key, as its parts, committed together
    #[arg(long)]
    pub parts: bool,
    /// Names of the axes, joined by commas: layer,kv,token,head,dim
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub axes: Vec<String>,
    /// How lower tiers keep it: none, zstd:9, float-rans, kvq:high, ...; `sira codec list` has all
    #[arg(long)]
    pub codec: Option<String>,
    /// How long it is kept: seconds, or text such as 90m or 7d
    #[arg(long, value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    /// When the put is acknowledged: strong, eventual or weak
    #[arg(long, value_name = "LEVEL")]
    pub consistency: Option<Consistency>,
    /// It was computed from what a lossy codec gave back: gets that want exact bytes do not find it
    #[arg(long)]
    pub derived_from_lossy: bool,
    /// Hash of a registered kv spec that the tensor must follow, as `sira spec put` gives it
    #[arg(long, value_name = "HASH")]
    pub spec: Option<String>,
    /// Put only if the key is absent, or has this version
    #[arg(long = "if", value_name = "absent|VERSION")]
    pub condition: Option<Condition>,
    /// A text kept with the tensor; may be given several times
    #[arg(long = "attr", value_name = "NAME=TEXT", value_parser = parse_attribute)]
    pub attributes: Vec<(String, String)>,
    /// One line of JSON for each key
    #[arg(long)]
    pub json: bool,
}

/// `sira get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// namespace/name; one that ends with / collects all keys below it in a .safetensors file
    pub key: String,
    /// .npy or .safetensors; written beside it first, so that it is there whole or not at all
    pub file: PathBuf,
    /// A part of an axis, by its name or position; may be given several times
    #[arg(long = "slice", value_name = "AXIS=START:END", value_parser = parse_slice)]
    pub slices: Vec<(String, [u64; 2])>,
    /// Refuse any other version
    #[arg(long)]
    pub version: Option<u64>,
    /// Hash of the kv spec that it must follow: anything else is no such key
    #[arg(long, value_name = "HASH")]
    pub spec: Option<String>,
    /// Which part of a key that has several; without it, a .safetensors file gets all of them
    #[arg(long, value_name = "NAME")]
    pub part: Option<String>,
    /// Name of the one tensor in a .safetensors file [default: the part's, or tensor]
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// One line of JSON for each tensor
    #[arg(long)]
    pub json: bool,
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
    /// Say what was done as one line of JSON
    #[arg(long)]
    pub json: bool,
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
    /// Say what was done as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `sira ls`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Keys that start with this
    #[arg(default_value = "")]
    pub prefix: String,
    /// All that there is to say: version, bytes stored, codec, level, age, expiry, kv spec, parts
    #[arg(short, long)]
    pub long: bool,
    /// How many at most
    #[arg(long)]
    pub limit: Option<usize>,
    /// One line of JSON for each key
    #[arg(long)]
    pub json: bool,
}

/// `sira rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// namespace/name; with -r what keys start with, such as namespace/ or namespace/session-1/
    #[arg(required = true)]
    pub keys: Vec<String>,
    /// Delete all keys that start with these texts
    #[arg(short, long)]
    pub recursive: bool,
    /// Only say how many keys -r would delete, and of how many bytes
    #[arg(long, requires = "recursive")]
    pub dry_run: bool,
    /// Do not ask before -r deletes
    #[arg(short, long, requires = "recursive")]
    pub yes: bool,
    /// One line of JSON for each key or prefix
    #[arg(long)]
    pub json: bool,
}

/// `sira top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Time between two looks, 100ms or more
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = parse_interval)]
    pub interval: Duration,
    /// Show one interval and end
    #[arg(long)]
    pub once: bool,
    /// One line of JSON for each interval
    #[arg(long)]
    pub json: bool,
}

/// `sira route`.
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// namespace/name
    pub key: String,
    /// Bytes of the tensor, or text such as 16MiB
    #[arg(long, value_parser = parse_size)]
    pub size: u64,
    /// Element type, such as bfloat16
    #[arg(long)]
    pub dtype: Option<DType>,
    /// Names of the axes, joined by commas: layer,kv,token,head,dim
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub axes: Vec<String>,
    /// Hash of a registered kv spec that it would follow
    #[arg(long, value_name = "HASH")]
    pub spec: Option<String>,
    /// How long it would be kept: seconds, or text such as 90m or 7d
    #[arg(long, value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    /// When the put would be acknowledged: strong, eventual or weak
    #[arg(long, value_name = "LEVEL")]
    pub consistency: Option<Consistency>,
    /// The server's answer, as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `sira migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The backend that the tensors leave
    pub source: String,
    /// The backend that they go to
    pub target: String,
    /// Which: a glob over namespace/name in which * matches / too, such as 'kv/*'
    pub pattern: String,
    /// Only say how many would move, and of how many bytes
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait for the end: say the job's id, for `sira jobs`
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,
    /// The job, as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `sira check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Keys that start with this; without it all, and chunks that no record names as well
    #[arg(default_value = "")]
    pub prefix: String,
    /// Mend what can be, from copies that are good, and remove what no record names
    #[arg(long)]
    pub mend: bool,
    /// Do not wait for the end: say the job's id, for `sira jobs`
    #[arg(long)]
    pub detach: bool,
    /// The job, as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `sira jobs`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List the jobs that run, and the last ones that ended.
    Ls {
        /// One line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Follow a job until it ends; Ctrl-C leaves it running.
    Watch {
        /// Its id
        id: String,
        /// The job as it ended, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop a job. Started again with the same words, it goes on where it was.
    Stop {
        /// Its id
        id: String,
        /// The job, as one line of JSON
        #[arg(long)]
        json: bool,
    },
}

/// `sira ns`.
#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// List the namespaces that have a policy or keys.
    Ls {
        /// One line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Show a namespace: its policy, what lies in it, what was done in it.
    Show {
        /// Name of the namespace
        namespace: String,
        /// The server's answer, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the policy of a namespace; what is not given stays as it is.
    Set(NamespaceSetArgs),
    /// Take the policy away: the server's defaults hold again. No key is touched.
    Reset {
        /// Name of the namespace
        namespace: String,
        /// The server's answer, as one line of JSON
        #[arg(long)]
        json: bool,
    },
}

/// `sira ns set`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("changes").required(true).multiple(true).args(["mode", "read_only", "exact", "consistency", "ttl", "limits", "codecs", "tiers", "copies"])))]
pub(crate) struct NamespaceSetArgs {
    /// Name of the namespace
    pub namespace: String,
    /// cache: full means that the least recently used is evicted; store: full is an error
    #[arg(long)]
    pub mode: Option<ModeName>,
    /// Refuse puts and deletes
    #[arg(long, value_name = "BOOL")]
    pub read_only: Option<bool>,
    /// Take and give only bytes that are exactly those that were put
    #[arg(long, value_name = "BOOL")]
    pub exact: Option<bool>,
    /// Level of puts that do not say; `default` is the server's
    #[arg(long, value_name = "LEVEL", value_parser = or_default::<Consistency>)]
    pub consistency: Option<Setting<Consistency>>,
    /// How long puts that do not say are kept; `default` is the server's
    #[arg(long, value_parser = parse_ttl_setting)]
    pub ttl: Option<Setting<Duration>>,
    /// Bytes in a tier, `memory` or a backend: object=10GiB; nothing after the = takes the limit away
    #[arg(long = "limit", value_name = "TIER=SIZE", value_parser = parse_limit)]
    pub limits: Vec<(String, Option<u64>)>,
    /// Codec of puts that do not say, by backend: object=planes+zstd; nothing after the = takes it away
    #[arg(long = "codec", value_name = "TIER=CHAIN", value_parser = parse_codec)]
    pub codecs: Vec<(String, Option<String>)>,
    /// What is used least moves from the first backend to the second: rocksdb,object; `default` is the server's
    #[arg(long, value_name = "WARM,COLD", value_parser = parse_tiers)]
    pub tiers: Option<Setting<Tiers>>,
    /// Backends that have a copy of every tensor: rocksdb,bucket; `none` for one copy where routing says
    #[arg(long, value_name = "BACKENDS", value_parser = parse_copies)]
    pub copies: Option<Copies>,
    /// The server's answer, as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// What a namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    /// Evicts.
    Cache,
    /// Keeps.
    Store,
}

/// Backends that have a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copies(pub Vec<String>);

/// A value, or the server's default in place of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    /// As the server is configured.
    Default,
    /// This.
    Value(T),
}

impl<T> From<Setting<T>> for Option<T> {
    fn from(setting: Setting<T>) -> Option<T> {
        match setting {
            Setting::Default => None,
            Setting::Value(value) => Some(value),
        }
    }
}

/// `sira spec`.
#[derive(Debug, Subcommand)]
pub(crate) enum SpecCommand {
    /// Register a kv spec from a JSON file; prints its hash. The same spec again is no error.
    Put {
        /// JSON; - reads standard input
        file: PathBuf,
        /// Hash and spec as the server keeps it, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a registered kv spec, as JSON.
    Get {
        /// 64 hexadecimal digits
        hash: String,
    },
}

/// `sira calibrate`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("sources").required(true).multiple(true).args(["files", "keys"])))]
pub(crate) struct CalibrateArgs {
    /// .safetensors files with KV caches of one model: a tensor each, or parts k and v; documents of the kinds that will be stored
    pub files: Vec<PathBuf>,
    /// Besides or instead, the tensors of the server whose keys start with this; may be given several times
    #[arg(long, value_name = "PREFIX")]
    pub keys: Vec<String>,
    /// Written whole or not at all
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What errors cost the model: a .safetensors file with k_metric, v_metric and residual. Without, all heads count the same
    #[arg(long, value_name = "FILE")]
    pub moments: Option<PathBuf>,
    /// The finest step that it is to be good for, as in kvtc:step=; finer ones make it larger [default: 0.0035]
    #[arg(long, value_name = "STEP")]
    pub finest_step: Option<f32>,
    /// Say what was done as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// `sira codec`.
#[derive(Debug, Subcommand)]
pub(crate) enum CodecCommand {
    /// List the stages that codec chains are made of.
    List {
        /// One line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Show what codecs make of a tensor in a .safetensors file: size, speed, error. No server is asked.
    Try(CodecTryArgs),
}

/// `sira codec try`.
#[derive(Debug, Args)]
pub(crate) struct CodecTryArgs {
    /// .safetensors; its metadata may name the axes (axes) and the rotary embedding (rope, rope_theta, rope_dim, first_position)
    pub file: PathBuf,
    /// Chains joined by commas, or all
    #[arg(long = "codec", value_name = "CHAINS", value_delimiter = ',')]
    pub codecs: Vec<String>,
    /// A calibration, as `sira calibrate` made it: kvq and kvtc take it where they name none
    #[arg(long = "calib", value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Which tensor of a file that holds several
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Names of the axes, joined by commas, instead of the file's own
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub axes: Vec<String>,
    /// Write what the one codec gives back
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Seconds to time each codec for, encoding and decoding apart; 0: once
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// Cores that would work at it, for the link speeds [default: all of this machine]
    #[arg(long)]
    pub cores: Option<std::num::NonZero<usize>>,
    /// One line of JSON for each codec
    #[arg(long)]
    pub json: bool,
}

impl CodecTryArgs {
    /// The cores that are asked about.
    pub fn cores(&self) -> usize {
        self.cores.or_else(|| std::thread::available_parallelism().ok()).map_or(1, std::num::NonZero::get)
    }
}

fn or_default<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Setting<T>, String> {
    match text {
        "default" => Ok(Setting::Default),
        text => text.parse().map(Setting::Value).map_err(|error: T::Err| error.to_string()),
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = units::parse_duration(text).filter(|ttl| ttl.as_secs() > 0 && ttl.subsec_millis() == 0);
    ttl.ok_or_else(|| "whole seconds, 1 or more, or text such as 90m or 7d".to_owned())
}

fn parse_ttl_setting(text: &str) -> Result<Setting<Duration>, String> {
    if text == "default" { Ok(Setting::Default) } else { parse_ttl(text).map(Setting::Value) }
}

fn parse_tiers(text: &str) -> Result<Setting<Tiers>, String> {
    match (text, text.split_once(',')) {
        ("default", _) => Ok(Setting::Default),
        (_, Some((warm, cold))) => Ok(Setting::Value(Tiers { warm: warm.to_owned(), cold: cold.to_owned() })),
        _ => Err("two backends, the warm one first: rocksdb,object; or default".to_owned()),
    }
}

fn parse_copies(text: &str) -> Result<Copies, String> {
    match text {
        "" => Err("backends joined by commas: rocksdb,bucket; or none".to_owned()),
        "none" => Ok(Copies(Vec::new())),
        names => Ok(Copies(names.split(',').map(str::to_owned).collect())),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval =
        units::parse_duration(text).filter(|interval| (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(interval));
    interval.ok_or_else(|| "seconds, or text such as 500ms or 5s; 100ms to 1h".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds)).ok_or_else(|| "seconds, 0 to 3600".to_owned())
}

fn parse_size(text: &str) -> Result<u64, String> {
    units::parse_size(text).ok_or_else(|| "bytes, or text such as 512KiB or 16MiB".to_owned())
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("an attribute is NAME=TEXT")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_limit(text: &str) -> Result<(String, Option<u64>), String> {
    let wrong = || "a limit is TIER=SIZE, such as memory=512MiB, of 1 byte or more".to_owned();
    let (tier, size) = text.split_once('=').filter(|(tier, _)| !tier.is_empty()).ok_or_else(wrong)?;
    let size = match size {
        "" => None,
        size => Some(units::parse_size(size).filter(|&bytes| bytes > 0).ok_or_else(wrong)?),
    };
    Ok((tier.to_owned(), size))
}

fn parse_codec(text: &str) -> Result<(String, Option<String>), String> {
    let named = text.split_once('=').filter(|(tier, _)| !tier.is_empty());
    let (tier, chain) = named.ok_or("a codec is TIER=CHAIN, such as object=planes+zstd")?;
    Ok((tier.to_owned(), (!chain.is_empty()).then(|| chain.to_owned())))
}

fn parse_slice(text: &str) -> Result<(String, [u64; 2]), String> {
    let wrong = || "a slice is AXIS=START:END, such as token=512:1024".to_owned();
    let (axis, range) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (start, end) = range.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    Ok((axis.to_owned(), [number(start)?, number(end)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn settings_of_a_namespace_are_values_or_their_absence() {
        assert_eq!(parse_limit("memory=1GiB"), Ok(("memory".into(), Some(1 << 30))));
        assert_eq!(parse_limit("memory="), Ok(("memory".into(), None)));
        for wrong in ["memory", "=1", "memory=0", "memory=lots"] {
            assert!(parse_limit(wrong).unwrap_err().contains("memory=512MiB"), "{wrong}");
        }
        assert_eq!(parse_codec("object=planes+zstd"), Ok(("object".into(), Some("planes+zstd".into()))));
        assert_eq!(parse_codec("object="), Ok(("object".into(), None)));
        assert!(parse_codec("zstd").is_err());
        assert_eq!(or_default::<Consistency>("default"), Ok(Setting::Default));
        assert_eq!(or_default::<Consistency>("weak"), Ok(Setting::Value(Consistency::Weak)));
        assert_eq!(parse_ttl_setting("1m"), Ok(Setting::Value(Duration::from_secs(60))));
        assert!(parse_ttl_setting("0").is_err() && parse_interval("50ms").is_err() && parse_interval("250ms").is_ok());
    }
}
