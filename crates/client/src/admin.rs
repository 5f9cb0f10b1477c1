//! Calls on many keys that move no tensor, and on what holds for keys: listing, deleting, kv specs, namespaces, routes.

use futures::{Stream, TryStreamExt, stream};
use sira_tensor::kv::KvSpec;
use sira_wire::many::{DeleteManyAnswer, DeletePrefixAnswer, PrefixRequest};
use sira_wire::namespace::{
    KvSpecAnswer, KvSpecRequest, NamespaceEntry, NamespaceRequest, NamespacesAnswer, Policy, RouteAnswer, RouteOptions, RouteRequest,
};
use sira_wire::{EmptyRequest, Entry, Key, ListRequest, VERSION};

use crate::client::answer;
use crate::{Client, ClientError, batches};

impl Client {
    /// All keys that start with `prefix`, in byte order; they are asked for page by page as the stream is read. An empty prefix lists everything.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use futures::TryStreamExt;
    ///
    /// let mut entries = std::pin::pin!(client.list_all("demo/"));
    /// while let Some(entry) = entries.try_next().await? {
    ///     println!("{} has {} bytes", entry.key, entry.nbytes);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_all(&self, prefix: &str) -> impl Stream<Item = Result<Entry, ClientError>> + Send + use<> {
        let (client, first) = (self.clone(), ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() });
        let pages = stream::try_unfold(Some(first), move |request| {
            let client = client.clone();
            async move {
                let Some(mut request) = request else { return Ok::<_, ClientError>(None) };
                let page = client.list(&request).await?;
                let next = onward(request.after.take(), page.next)?;
                let entries = stream::iter(page.entries.into_iter().map(Ok));
                Ok(Some((entries, next.map(|after| ListRequest { after: Some(after), ..request }))))
            }
        });
        pages.try_flatten()
    }

    /// Deletes keys; the answer counts those deleted and names those that were not there or could not be deleted. More keys than one request
    /// takes (65,536) are sent in several, of which the first may have been done when a later one fails.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let answer = client.delete_many(["kv/a", "kv/b"]).await?;
    /// println!("{} deleted, {} not there", answer.deleted, answer.missing.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_many(&self, keys: impl IntoIterator<Item = impl AsRef<str>>) -> Result<DeleteManyAnswer, ClientError> {
        let batches = batches::pack(keys, None)?;
        let mut sum = DeleteManyAnswer::default();
        for batch in batches {
            let answer: DeleteManyAnswer = answer("delete_many", self.ask("delete_many", batch.body).await?)?;
            sum.deleted += answer.deleted;
            sum.missing.extend(answer.missing);
            sum.failed.extend(answer.failed);
        }
        Ok(sum)
    }

    /// Deletes, or with `dry_run` counts, keys that start with a prefix: `ns/` or `ns/session-1/`. All pages are asked for, and summed up.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let would = client.delete_prefix("kv/session-1/", true).await?;
    /// println!("{} keys of {} bytes would go", would.keys, would.bytes);
    /// let done = client.delete_prefix("kv/session-1/", false).await?;
    /// assert!(done.failed.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_prefix(&self, prefix: &str, dry_run: bool) -> Result<DeletePrefixAnswer, ClientError> {
        let mut request = PrefixRequest { v: VERSION, prefix: prefix.to_owned(), after: None, dry_run };
        let mut sum = DeletePrefixAnswer::default();
        loop {
            let page = self.delete_prefix_page(&request).await?;
            sum.keys = sum.keys.saturating_add(page.keys);
            sum.bytes = sum.bytes.saturating_add(page.bytes);
            sum.failed.extend(page.failed);
            match onward(request.after.take(), page.next)? {
                Some(next) => request.after = Some(next),
                None => return Ok(sum),
            }
        }
    }

    /// One page of [`Client::delete_prefix`], for those who show progress: the answer's `next` is the `after` of the next request.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::PrefixRequest;
    ///
    /// let mut request = PrefixRequest { v: 1, prefix: "kv/session-1/".into(), after: None, dry_run: false };
    /// loop {
    ///     let page = client.delete_prefix_page(&request).await?;
    ///     println!("{} more keys are gone", page.keys);
    ///     request.after = page.next;
    ///     if request.after.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_prefix_page(&self, request: &PrefixRequest) -> Result<DeletePrefixAnswer, ClientError> {
        self.action("delete_prefix", request).await
    }

    /// Registers what blocks of a KV cache are; the answer's hash is what puts and gets name it by. The same spec again is no error.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::KvSpec;
    ///
    /// let spec = KvSpec::from_json(br#"{"model": "m", "block_tokens": 16, "parts": [{"dtype": "bfloat16", "axes": ["token", "head", "dim"]}]}"#)?;
    /// let answer = client.put_kv_spec(&spec).await?;
    /// assert_eq!(answer.hash, spec.hash());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_kv_spec(&self, spec: &KvSpec) -> Result<KvSpecAnswer, ClientError> {
        self.action("kv_spec_put", &KvSpecRequest { v: VERSION, spec: Some(spec.clone()), hash: None }).await
    }

    /// The kv spec of this hash; [`Code::UnknownKvSpec`](crate::Code::UnknownKvSpec) where there is none.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// if let Some(hash) = client.info("kv/block-1").await?.kv_spec {
    ///     println!("it is a block of {}", client.kv_spec(&hash).await?.spec.model);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn kv_spec(&self, hash: &str) -> Result<KvSpecAnswer, ClientError> {
        self.action("kv_spec_get", &KvSpecRequest { v: VERSION, spec: None, hash: Some(hash.to_owned()) }).await
    }

    /// The namespaces that have keys or a policy, with what is in them.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// for entry in client.namespaces().await? {
    ///     println!("{}: {:?}, {} keys", entry.namespace, entry.policy.mode, entry.keys);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn namespaces(&self) -> Result<Vec<NamespaceEntry>, ClientError> {
        Ok(self.action::<NamespacesAnswer>("namespaces", &EmptyRequest { v: VERSION }).await?.namespaces)
    }

    /// Sets what holds for a namespace, all of it. One that the server's configuration sets is refused.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::{Mode, Policy};
    ///
    /// let policy = Policy { mode: Mode::Cache, limits: [("memory".into(), 1 << 30)].into(), ..Policy::default() };
    /// client.set_namespace("kv", policy).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_namespace(&self, name: &str, policy: Policy) -> Result<NamespaceEntry, ClientError> {
        self.action("namespace_set", &NamespaceRequest { v: VERSION, namespace: name.to_owned(), policy: Some(policy) }).await
    }

    /// Gives a namespace its default policy back.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// let entry = client.reset_namespace("kv").await?;
    /// assert_eq!(entry.policy, sira_client::Policy::default());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reset_namespace(&self, name: &str) -> Result<NamespaceEntry, ClientError> {
        self.action("namespace_reset", &NamespaceRequest { v: VERSION, namespace: name.to_owned(), policy: None }).await
    }

    /// Where a tensor of `nbytes` under `key` would go, and why; nothing is put.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::{DType, RouteOptions};
    ///
    /// let options = RouteOptions { dtype: Some(DType::BFloat16), ..RouteOptions::default() };
    /// let route = client.route("kv/block-1", 1 << 20, &options).await?;
    /// println!("to {} as {}", route.backend, route.codec);
    /// for step in &route.steps {
    ///     println!("{}: {:?}, {}", step.strategy, step.backend, step.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn route(&self, key: &str, nbytes: u64, options: &RouteOptions) -> Result<RouteAnswer, ClientError> {
        let key: Key = key.parse()?;
        self.action("route", &RouteRequest::new(VERSION, &key, nbytes, options)).await
    }
}

/// Where the next page begins. One that does not come after the last would be asked for without end.
fn onward(after: Option<String>, next: Option<String>) -> Result<Option<String>, ClientError> {
    match (&after, &next) {
        (Some(after), Some(next)) if next <= after => {
            Err(ClientError::protocol(format!("a page after {after:?} that goes on at {next:?}")))
        }
        _ => Ok(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_onward_or_end() {
        let of = |after: Option<&str>, next: Option<&str>| onward(after.map(String::from), next.map(String::from));
        assert_eq!(of(None, Some("a")).unwrap().as_deref(), Some("a"));
        assert_eq!(of(Some("a"), Some("b")).unwrap().as_deref(), Some("b"));
        assert_eq!(of(Some("b"), None).unwrap(), None);
        assert!(of(Some("b"), Some("b")).is_err() && of(Some("b"), Some("a")).is_err());
    }
}
