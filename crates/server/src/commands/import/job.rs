//! One key of the file: what to put, and how.

use std::io;
use std::time::SystemTime;

use bytes::Bytes;
use futures::Stream;
use sira_client::{Client, ClientError, Condition, PartData, PutAnswer, PutEntry, PutOptions, TensorSpec};
use sira_wire::many::DATA;

use crate::Failure;
use crate::cli::ImportArgs;
use crate::formats::avro::{Header, Part, is_artefact};

/// A key to be put.
#[derive(Debug)]
pub struct Job {
    key: String,
    /// Name, description and codec of each part.
    parts: Vec<(String, TensorSpec, Option<String>)>,
    /// What holds for the key.
    options: PutOptions,
}

impl Job {
    /// What to put of a key; `None` when it has expired. `prefix` is what the file's keys begin with.
    pub fn new(header: &Header, prefix: &str, args: &ImportArgs) -> Result<Option<Job>, Failure> {
        let part = |part: &Part| Ok((part.name.clone(), part.spec()?, part.codec.clone()));
        let parts = header.parts.iter().map(part).collect::<Result<Vec<_>, String>>().map_err(Failure::Failed)?;
        let ttl = match header.expires_ms.map(remaining) {
            Some(None) => return Ok(None),
            Some(seconds) => seconds,
            None => None,
        };
        let options = PutOptions {
            ttl,
            consistency: Some(header.consistency),
            // An artefact that is there is the same.
            condition: (args.if_absent || is_artefact(&header.key)).then_some(Condition::Absent),
            derived_from_lossy: header.derived_from_lossy,
            kv_spec: header.kv_spec.as_ref().map(|spec| spec.hash.clone()),
            ..PutOptions::default()
        };
        Ok(Some(Job { key: renamed(&header.key, prefix, args.prefix.as_deref())?, parts, options }))
    }

    /// Bytes of all parts.
    pub fn nbytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum: u64, (_, spec, _)| sum.saturating_add(spec.nbytes()))
    }

    /// Bytes of what is said of them.
    pub fn text(&self) -> usize {
        let texts = |spec: &TensorSpec| spec.attributes().iter().map(|(name, text)| name.len() + text.len()).sum::<usize>();
        self.key.len() + self.parts.iter().map(|(name, spec, _)| name.len() + texts(spec)).sum::<usize>()
    }

    /// The key with its bytes, those of its parts one after another.
    pub fn entry(self, mut bytes: Bytes) -> PutEntry {
        let part = |(name, spec, codec): (String, TensorSpec, Option<String>)| {
            // The reader counted them: as many came as the parts have.
            let len = usize::try_from(spec.nbytes()).unwrap_or(usize::MAX).min(bytes.len());
            PartData { name, codec, bytes: bytes.split_to(len), spec }
        };
        let parts = self.parts.into_iter().map(part).collect();
        let PutOptions { ttl, consistency, condition, kv_spec, derived_from_lossy, .. } = self.options;
        PutEntry { key: self.key, parts, ttl, consistency, condition, kv_spec, derived_from_lossy }
    }

    /// Puts the key from its bytes as they come. One tensor goes by itself: what is refused of it is then refused before its bytes are sent.
    pub async fn put(
        self,
        client: &Client,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<PutAnswer, ClientError> {
        match self.parts.as_slice() {
            [(name, spec, codec)] if name == DATA => {
                client.put_stream(&self.key, spec, pieces, PutOptions { codec: codec.clone(), ..self.options }).await
            }
            _ => client.put_parts_stream(&self.key, self.parts, pieces, self.options).await,
        }
    }
}

/// Whole seconds until a time, rounded up; `None` when it has passed.
fn remaining(expires_ms: i64) -> Option<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let left = u128::try_from(expires_ms).unwrap_or(0).saturating_sub(now);
    u64::try_from(left.div_ceil(1000)).ok().filter(|&seconds| seconds > 0)
}

/// The key with another prefix than it was exported by. Calibration artefacts lie in one place only.
fn renamed(key: &str, from: &str, to: Option<&str>) -> Result<String, Failure> {
    let Some(to) = to.filter(|_| !is_artefact(key)) else { return Ok(key.to_owned()) };
    let rest = key.strip_prefix(from);
    let rest = rest.ok_or_else(|| Failure::Failed(format!("it does not begin with {from:?}, which the file says it exports")))?;
    Ok(format!("{to}{rest}"))
}

#[cfg(test)]
mod tests {
    use sira_client::DType;

    use super::*;

    #[test]
    fn keys_get_another_prefix() {
        assert_eq!(renamed("a/b/c", "a/b", None).unwrap(), "a/b/c");
        assert_eq!(renamed("a/b/c", "a/b", Some("x/y")).unwrap(), "x/y/c");
        assert_eq!(renamed("a/b/c", "", Some("x/")).unwrap(), "x/a/b/c");
        assert!(renamed("a/b", "b/", Some("x/")).is_err());
        assert_eq!(renamed("calibration/5f", "a/", Some("x/")).unwrap(), "calibration/5f");
    }

    #[test]
    fn what_has_expired_has_no_time_left() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        assert_eq!(remaining(now - 1), None);
        assert_eq!(remaining(i64::MIN), None);
        assert_eq!(remaining(now + 59_500), Some(60));
    }

    #[test]
    fn bytes_are_cut_into_parts() {
        let part = |name: &str, len| (name.to_owned(), TensorSpec::new(DType::UInt8, vec![len]).unwrap(), None);
        let parts = vec![part("k", 3), part("none", 0), part("v", 2)];
        let job = Job { key: "ns/k".into(), parts, options: PutOptions { ttl: Some(5), ..PutOptions::default() } };
        assert_eq!((job.nbytes(), job.text()), (5, 10));
        let entry = job.entry(Bytes::from_static(b"abcde"));
        assert_eq!(entry.parts.iter().map(|part| &part.bytes[..]).collect::<Vec<_>>(), [&b"abc"[..], b"", b"de"]);
        assert_eq!(entry.ttl, Some(5));
    }
}
