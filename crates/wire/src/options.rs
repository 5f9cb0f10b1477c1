//! Options of a put: in the schema's metadata, or as the JSON of a command.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sira_tensor::DType;
use sira_tensor::shape::MAX_RANK;

use crate::encoded::Encoding;
use crate::entry::is_false;
use crate::key::shortened;
use crate::limited::{List, option};
use crate::request::{Versioned, parse, versioned};
use crate::{Code, Key, WireError};

/// Names in the schema's metadata.
pub mod metadata {
    /// Extents, a JSON array.
    pub const SHAPE: &str = "sira.shape";
    /// Element type.
    pub const DTYPE: &str = "sira.dtype";
    /// Axis names.
    pub const AXES: &str = "sira.axes";
    /// Codec chain of lower tiers.
    pub const CODEC: &str = "sira.codec";
    /// Seconds to live.
    pub const TTL: &str = "sira.ttl";
    /// Consistency level.
    pub const CONSISTENCY: &str = "sira.consistency";
    /// Condition.
    pub const IF: &str = "sira.if";
    /// Hash of a registered kv spec.
    pub const KV_SPEC: &str = "sira.kv_spec";
    /// Whether it was computed from what a lossy codec gave back: `true` or `false`.
    pub const DERIVED_FROM_LOSSY: &str = "sira.derived_from_lossy";
    /// Of a put, how the chunks that come are cut and encoded; of an answer, those that it sends. JSON.
    pub const ENCODED: &str = "sira.encoded";
    /// What attribute names start with.
    pub const ATTRIBUTE_PREFIX: &str = "sira.attr.";
}

/// When a put is acknowledged; the promises are in docs/architecture.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Durable in the home tier: survives power loss.
    Strong,
    /// In the home tier's log: survives a crash of the process.
    #[default]
    Eventual,
    /// In memory, written behind.
    Weak,
}

impl FromStr for Consistency {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Consistency, WireError> {
        match text.to_ascii_lowercase().as_str() {
            "strong" => Ok(Consistency::Strong),
            "eventual" => Ok(Consistency::Eventual),
            "weak" => Ok(Consistency::Weak),
            _ => Err(refuse(format!("consistency is {text:?}; it may be strong, eventual or weak"))),
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Consistency::Strong => "strong",
            Consistency::Eventual => "eventual",
            Consistency::Weak => "weak",
        })
    }
}

/// What must hold of the key for a put to go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent,
    /// The key has this version.
    Version(u64),
}

impl FromStr for Condition {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Condition, WireError> {
        match text.parse() {
            Ok(version) => Ok(Condition::Version(version)),
            Err(_) if text == "absent" => Ok(Condition::Absent),
            Err(_) => Err(refuse(format!("if is {text:?}; it may be absent, or a version in decimal"))),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Absent => f.write_str("absent"),
            Condition::Version(version) => write!(f, "{version}"),
        }
    }
}

/// Everything a put may say besides its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Extents; the truth when given.
    pub shape: Option<Vec<u64>>,
    /// Element type; the column's when absent.
    pub dtype: Option<DType>,
    /// Axis names.
    pub axes: Option<Vec<String>>,
    /// Codec chain of lower tiers, unparsed.
    pub codec: Option<String>,
    /// Seconds to live, at least 1.
    pub ttl: Option<u64>,
    /// Consistency level.
    pub consistency: Option<Consistency>,
    /// Condition.
    pub condition: Option<Condition>,
    /// Hash of the kv spec that it follows.
    pub kv_spec: Option<String>,
    /// Whether it was computed from what a lossy codec gave back: then it is not exact, however it is kept.
    pub derived_from_lossy: bool,
    /// The bytes come as chunks that are encoded already, cut and encoded like this.
    pub encoded: Option<Encoding>,
    /// The client's own attributes.
    pub attributes: BTreeMap<String, String>,
}

/// The JSON of a put's command.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    v: u32,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "option::<_, _, MAX_RANK>")]
    shape: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "option::<_, _, MAX_RANK>")]
    axes: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consistency: Option<String>,
    #[serde(default, rename = "if", skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kv_spec: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    derived_from_lossy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded: Option<Encoding>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, String>,
}
versioned!(Command);

impl PutOptions {
    /// Reads the options among a schema's metadata. Other names of `sira.` are refused, everything else is not ours.
    pub fn from_metadata<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<PutOptions, WireError> {
        let mut options = PutOptions::default();
        for (name, value) in entries.into_iter().filter(|(name, _)| name.starts_with("sira.")) {
            if let Some(attribute) = name.strip_prefix(metadata::ATTRIBUTE_PREFIX) {
                options.attributes.insert(attribute.to_string(), value.clone());
                continue;
            }
            let json_error = |e: serde_json::Error| refuse(format!("{name} is not a JSON array: {e}"));
            match name.as_str() {
                metadata::SHAPE => options.shape = Some(serde_json::from_str::<List<_, MAX_RANK>>(value).map_err(json_error)?.0),
                metadata::DTYPE => options.dtype = Some(dtype(value)?),
                metadata::AXES if value.trim_start().starts_with('[') => {
                    options.axes = Some(serde_json::from_str::<List<_, MAX_RANK>>(value).map_err(json_error)?.0)
                }
                metadata::AXES if value.split(',').nth(MAX_RANK).is_some() => {
                    return Err(refuse(format!("{name} has more than {MAX_RANK} names")));
                }
                metadata::AXES => options.axes = Some(value.split(',').map(|axis| axis.trim().to_string()).collect()),
                metadata::CODEC => options.codec = Some(value.clone()),
                metadata::TTL => options.ttl = Some(value.parse().map_err(|_| bad_ttl(value))?),
                metadata::CONSISTENCY => options.consistency = Some(value.parse()?),
                metadata::KV_SPEC => options.kv_spec = Some(value.clone()),
                metadata::DERIVED_FROM_LOSSY => {
                    options.derived_from_lossy =
                        value.parse().map_err(|_| refuse(format!("{name} is {value:?}; it may be true or false")))?;
                }
                metadata::ENCODED => options.encoded = Some(Encoding::parse(value)?),
                metadata::IF => options.condition = Some(value.parse()?),
                _ => {
                    return Err(refuse(format!(
                        "{name:?} is no option; there are sira.shape, .dtype, .axes, .codec, .ttl, .consistency, .if, .kv_spec, .derived_from_lossy, .encoded and .attr.NAME"
                    )));
                }
            }
        }
        options.checked()
    }

    /// The entries of a schema's metadata that say the same.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        let mut entries: HashMap<String, String> =
            self.attributes.iter().map(|(name, value)| (format!("{}{name}", metadata::ATTRIBUTE_PREFIX), value.clone())).collect();
        let fields = [
            (metadata::SHAPE, self.shape.clone().map(|v| Value::from(v).to_string())),
            (metadata::DTYPE, self.dtype.map(|v| v.name().to_string())),
            (metadata::AXES, self.axes.clone().map(|v| Value::from(v).to_string())),
            (metadata::CODEC, self.codec.clone()),
            (metadata::TTL, self.ttl.map(|v| v.to_string())),
            (metadata::CONSISTENCY, self.consistency.map(|v| v.to_string())),
            (metadata::IF, self.condition.map(|v| v.to_string())),
            (metadata::KV_SPEC, self.kv_spec.clone()),
            (metadata::DERIVED_FROM_LOSSY, self.derived_from_lossy.then(|| "true".to_owned())),
            (metadata::ENCODED, self.encoded.as_ref().and_then(|encoded| serde_json::to_string(encoded).ok())),
        ];
        entries.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
        entries
    }

    /// Reads the JSON of a command descriptor: the key and the options.
    pub fn from_command(json: &[u8]) -> Result<(Key, PutOptions), WireError> {
        let command: Command = parse("command", json)?;
        let options = PutOptions {
            shape: command.shape,
            dtype: command.dtype.as_deref().map(dtype).transpose()?,
            axes: command.axes,
            codec: command.codec,
            ttl: command.ttl,
            consistency: command.consistency.as_deref().map(str::parse).transpose()?,
            condition: command.condition.as_deref().map(str::parse).transpose()?,
            kv_spec: command.kv_spec,
            derived_from_lossy: command.derived_from_lossy,
            encoded: command.encoded,
            attributes: command.attributes,
        };
        Ok((command.key.parse()?, options.checked()?))
    }

    /// The JSON of a command that says the same of `key`.
    pub fn to_command(&self, key: &Key) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Command {
            v: crate::VERSION,
            key: key.to_string(),
            shape: self.shape.clone(),
            dtype: self.dtype.map(|dtype| dtype.name().to_owned()),
            axes: self.axes.clone(),
            codec: self.codec.clone(),
            ttl: self.ttl,
            consistency: self.consistency.map(|level| level.to_string()),
            condition: self.condition.map(|condition| condition.to_string()),
            kv_spec: self.kv_spec.clone(),
            derived_from_lossy: self.derived_from_lossy,
            encoded: self.encoded.clone(),
            attributes: self.attributes.clone(),
        })
    }

    fn checked(self) -> Result<PutOptions, WireError> {
        check_ttl(self.ttl)?;
        self.kv_spec.as_deref().map_or(Ok(()), check_kv_spec)?;
        if self.encoded.is_some() && (self.shape.is_none() || self.dtype.is_none()) {
            return Err(refuse("encoded chunks say nothing of the tensor: give shape and dtype with them".into()));
        }
        Ok(self)
    }
}

pub(crate) fn check_ttl(ttl: Option<u64>) -> Result<(), WireError> {
    match ttl {
        Some(0) => Err(bad_ttl("0")),
        // Past this, adding it to any clock overflows.
        Some(ttl) if ttl > u64::MAX / 4000 => Err(bad_ttl(&ttl.to_string())),
        _ => Ok(()),
    }
}

pub(crate) fn check_kv_spec(hash: &str) -> Result<(), WireError> {
    match sira_tensor::kv::is_hash(hash) {
        true => Ok(()),
        false => Err(refuse(format!("kv_spec is {:?}; it is the hash that registering one gave: 64 hexadecimal digits", shortened(hash)))),
    }
}

pub(crate) fn dtype(name: &str) -> Result<DType, WireError> {
    name.parse().map_err(|e: sira_tensor::TensorError| WireError::new(Code::BadTensor, e.to_string()))
}

fn bad_ttl(value: &str) -> WireError {
    refuse(format!("ttl is {value}; it is a whole number of seconds, 1 or more"))
}

pub(crate) fn refuse(reason: String) -> WireError {
    WireError::new(Code::BadRequest, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[(&str, &str)]) -> Result<PutOptions, WireError> {
        PutOptions::from_metadata(&entries.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<HashMap<_, _>>())
    }

    #[test]
    fn metadata_and_command_say_the_same() {
        let entries = [
            ("sira.shape", "[2,3]"),
            ("sira.dtype", "BF16"),
            ("sira.axes", "token, dim"),
            ("sira.codec", "zstd:3"),
            ("sira.ttl", "60"),
            ("sira.consistency", "Weak"),
            ("sira.if", "absent"),
            ("sira.attr.model", "m"),
            ("sira.encoded", r#"{"chunk_shape":[1,3],"chains":["none","zstd"]}"#),
            ("pandas", "ignored"),
        ];
        let options = of(&entries).unwrap();
        assert_eq!(PutOptions::from_metadata(&options.to_metadata()).unwrap(), options);
        let json = br#"{"v":1,"key":"ns/k","shape":[2,3],"dtype":"bfloat16","axes":["token","dim"],"codec":"zstd:3","ttl":60,
            "consistency":"weak","if":"absent","attributes":{"model":"m"},"encoded":{"chunk_shape":[1,3],"chains":["none","zstd"]}}"#;
        let (key, from_json) = PutOptions::from_command(json).unwrap();
        assert_eq!(PutOptions::from_command(&options.to_command(&key).unwrap()).unwrap(), (key.clone(), options.clone()));
        assert_eq!((key.as_str(), from_json), ("ns/k", options));
    }

    #[test]
    fn bad_options_are_refused() {
        for bad in [
            ("sira.ttl", "0"),
            ("sira.ttl", "-1"),
            ("sira.ttl", "18446744073709551615"),
            ("sira.if", "present"),
            ("sira.shape", "[2,-3]"),
            ("sira.shape", "2,3"),
            ("sira.shape", &format!("[1{}]", ",1".repeat(MAX_RANK))),
            ("sira.axes", &",".repeat(MAX_RANK)),
            ("sira.axes", &format!("[\"\"{}]", ",\"\"".repeat(MAX_RANK))),
            ("sira.dtype", "float12"),
            ("sira.consistency", "total"),
            ("sira.compression", "zstd"),
            ("sira.encryption", "aes"),
            ("sira.encoded", "zstd"),
            ("sira.encoded", r#"{"chunk_shape":[1],"chains":["none"]}"#), // of what shape and dtype?
        ] {
            assert!(of(&[bad]).is_err(), "{bad:?}");
        }
        assert!(PutOptions::from_command(br#"{"v":1,"key":"ns/k","ttl":0}"#).is_err());
        assert!(PutOptions::from_command(br#"{"v":1,"key":"ns/k","tll":1}"#).is_err());
    }
}
