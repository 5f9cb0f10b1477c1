//! One key of several parts: from memory, or from pieces as they come.

use std::io;

use bytes::Bytes;
use futures::{Stream, stream};
use sira_tensor::TensorSpec;
use sira_wire::many::{PartHeader, PutItem};
use sira_wire::{Key, PutAnswer, PutOptions};

use crate::put::{self, Failure};
use crate::put_many::{Outcome, merge};
use crate::put_messages::announcement;
use crate::{Client, ClientError, PartData, PutEntry, message};

impl Client {
    /// Puts one key of several parts, which are committed together. Of `options`, the codec and the attributes hold for each part that has none of
    /// that name itself; ttl, consistency, condition and kv spec for the key.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use bytes::Bytes;
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let values = TensorSpec::new(DType::Float8E4M3Fn, vec![16, 8, 128])?;
    /// let scales = TensorSpec::new(DType::Float32, vec![8])?;
    /// let parts = vec![
    ///     ("k".to_owned(), values, Bytes::from(vec![0u8; 16384])),
    ///     ("k_scale".to_owned(), scales, Bytes::from(vec![0u8; 32])),
    /// ];
    /// client.put_parts("kv/block-1", parts, PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_parts(
        &self,
        key: &str,
        parts: Vec<(String, TensorSpec, Bytes)>,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        let part = |(name, spec, bytes): (String, TensorSpec, Bytes)| {
            let mut attributes = options.attributes.clone();
            attributes.extend(spec.attributes().clone());
            Ok(PartData { name, spec: spec.with_attributes(attributes)?, codec: options.codec.clone(), bytes })
        };
        let entry = PutEntry {
            key: key.to_owned(),
            parts: parts.into_iter().map(part).collect::<Result<_, ClientError>>()?,
            ttl: options.ttl,
            consistency: options.consistency,
            condition: options.condition,
            kv_spec: options.kv_spec,
            derived_from_lossy: options.derived_from_lossy,
        };
        let result = self.put_many(stream::iter([entry])).await?.pop();
        Ok(result.ok_or_else(|| ClientError::protocol("a put without a result"))??)
    }

    /// As [`Client::put_parts`], with bytes that come in pieces of any length: those of the first part, then those of the next. A part is its name, what it
    /// is, and its codec. A source that fails, or that has another length than the parts together, stores nothing.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use bytes::Bytes;
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let values = TensorSpec::new(DType::UInt8, vec![4096, 1000])?;
    /// let scales = TensorSpec::new(DType::Float32, vec![250])?;
    /// let parts = vec![("k".to_owned(), values, Some("zstd".to_owned())), ("k_scale".to_owned(), scales, None)];
    /// let rows = futures::stream::iter((0..4097).map(|_| Ok(Bytes::from(vec![0u8; 1000]))));
    /// client.put_parts_stream("demo/rows", parts, rows, PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_parts_stream(
        &self,
        key: &str,
        parts: Vec<(String, TensorSpec, Option<String>)>,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        let item = announced(key, parts, options)?;
        let mut first = message::schema_of_many();
        first.app_metadata = announcement(&item)?;
        let failure = Failure::default();
        let answered = self.send_many(put::body(first, Box::pin(pieces), item.nbytes()?, failure.clone())).await;
        // The server saw a stream that ended too early; the reason is on this side.
        if let Some(error) = failure.lock().take() {
            return Err(ClientError::Source(error));
        }
        let mut results = Vec::new();
        merge(vec![Outcome::Sent(item.key)], answered?, &mut results)?;
        Ok(results.pop().ok_or_else(|| ClientError::protocol("a put without a result"))??)
    }
}

/// What is announced of a key whose bytes are to come, once it is sure that a server can take it.
fn announced(key: &str, parts: Vec<(String, TensorSpec, Option<String>)>, options: PutOptions) -> Result<PutItem, ClientError> {
    let key: Key = key.parse()?;
    let part = |(name, spec, codec): (String, TensorSpec, Option<String>)| {
        let mut header = PartHeader::of(&name, &spec, codec.or_else(|| options.codec.clone()));
        for (name, text) in &options.attributes {
            header.attributes.entry(name.clone()).or_insert_with(|| text.clone());
        }
        header
    };
    let item = PutItem {
        key: key.to_string(),
        parts: parts.into_iter().map(part).collect(),
        ttl: options.ttl,
        consistency: options.consistency,
        condition: options.condition.map(|condition| condition.to_string()),
        kv_spec: options.kv_spec,
        derived_from_lossy: options.derived_from_lossy,
    };
    item.specs()?;
    item.condition()?;
    Ok(item)
}

#[cfg(test)]
mod tests {
    use sira_tensor::DType;
    use sira_wire::Code;

    use super::*;

    #[test]
    fn what_holds_for_all_parts_gives_way_to_what_a_part_says() {
        let spec = TensorSpec::new(DType::UInt8, vec![3]).unwrap();
        let own = spec.clone().with_attributes([("a".to_owned(), "own".to_owned())].into()).unwrap();
        let attributes = [("a".to_owned(), "all".to_owned()), ("b".to_owned(), "all".to_owned())].into();
        let options = PutOptions { codec: Some("zstd".into()), attributes, ttl: Some(5), ..PutOptions::default() };
        let parts = vec![("k".into(), own, None), ("v".into(), spec.clone(), Some("none".into()))];
        let item = announced("ns/k", parts, options).unwrap();
        let said =
            |i: usize| (item.parts[i].codec.as_deref(), item.parts[i].attributes["a"].as_str(), item.parts[i].attributes["b"].as_str());
        assert_eq!((said(0), said(1)), ((Some("zstd"), "own", "all"), (Some("none"), "all", "all")));
        assert_eq!((item.ttl, item.nbytes().unwrap()), (Some(5), 6));
        let refused = |key: &str, names: &[&str]| {
            let parts = names.iter().map(|name| ((*name).to_owned(), spec.clone(), None)).collect();
            announced(key, parts, PutOptions::default()).unwrap_err().code()
        };
        assert_eq!(refused("nokey", &["k"]), Some(Code::BadKey));
        assert_eq!((refused("ns/k", &[]), refused("ns/k", &["k", "k"])), (Some(Code::BadRequest), Some(Code::BadRequest)));
    }
}
