//! What only stores across a network need: opening by URL, and creates whose answer is in doubt.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, Error, GetOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions,
    PutPayload, RetryConfig,
};
use url::Url;

use super::{CREATE_TRIES, Inner, ObjectBackend, WRITE_ID, failed};
use crate::{BackendError, Payload, PutOutcome, Survives};

pub(super) fn open(url: &str, options: Vec<(String, String)>) -> Result<ObjectBackend, BackendError> {
    let bad = |reason: String| BackendError::Config(format!("cannot open {url}: {reason}"));
    let parsed = Url::parse(url).map_err(|error| bad(error.to_string()))?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|error| bad(error.to_string()))?;
    let (environment, known): (&str, fn(&str) -> bool) = match &scheme {
        ObjectStoreScheme::AmazonS3 => ("AWS_", |key| AmazonS3ConfigKey::from_str(key).is_ok()),
        ObjectStoreScheme::GoogleCloudStorage => ("GOOGLE_", |key| GoogleConfigKey::from_str(key).is_ok()),
        ObjectStoreScheme::MicrosoftAzure => ("AZURE_", |key| AzureConfigKey::from_str(key).is_ok()),
        ObjectStoreScheme::Local => {
            if let Some((key, _)) = options.first() {
                return Err(bad(format!("a local folder has no option {key}")));
            }
            let path = parsed.to_file_path().map_err(|()| bad("it names no folder".into()))?;
            return ObjectBackend::open_local(path);
        }
        ObjectStoreScheme::Memory => ("", |_| false),
        _ => return Err(bad("this kind of store can neither list nor create-if-absent".into())),
    };
    if let Some((key, _)) = options.iter().find(|(key, _)| !known(&key.to_ascii_lowercase())) {
        return Err(bad(format!("there is no option {key}")));
    }
    // Later ones win. Deleting one by one is what every server that speaks S3 knows.
    let defaults = [("disable_bulk_delete".to_owned(), "true".to_owned())].into_iter().filter(|_| scheme == ObjectStoreScheme::AmazonS3);
    // Variables that are not UTF-8 are none of ours.
    let variables = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| !environment.is_empty() && key.starts_with(environment))
        .map(|(key, value)| (key.to_ascii_lowercase(), value));
    let all: Vec<(String, String)> = defaults.chain(variables).chain(options).collect();
    let prefix = Path::parse(path).map_err(|error| bad(error.to_string()))?;
    let store = store(&scheme, parsed.as_str(), all).map_err(|error| bad(error.to_string()))?;
    let survives = if scheme == ObjectStoreScheme::Memory { Survives::Nothing } else { Survives::PowerLoss };
    // Directory buckets of S3 Express are listed in no order.
    let ordered = !parsed.host_str().is_some_and(|bucket| bucket.ends_with("--x-s3"));
    Ok(ObjectBackend::new(store, prefix, ordered, true, survives, None))
}

/// The store, which tries again by itself what a repetition cannot harm: a few times, so that whoever waits for it hears of trouble
/// within a minute or two.
fn store(scheme: &ObjectStoreScheme, url: &str, options: Vec<(String, String)>) -> Result<Arc<dyn ObjectStore>, Error> {
    let retry = RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
    // Variables of the environment that mean nothing to it are skipped; options of the configuration were looked at before.
    macro_rules! build {
        ($builder:ty) => {{
            let known = options.into_iter().filter_map(|(key, value)| Some((key.to_ascii_lowercase().parse().ok()?, value)));
            let builder = known.fold(<$builder>::new().with_url(url), |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.with_retry(retry).build()?) as Arc<dyn ObjectStore>
        }};
    }
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
        ObjectStoreScheme::GoogleCloudStorage => build!(GoogleCloudStorageBuilder),
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
        _ => Arc::new(InMemory::new()),
    })
}

/// A place just before all names with this prefix, where it ends within a component: stores can skip to a place, but filter by
/// whole components only. `~` sorts behind every character of names.
pub(super) fn before(prefix: &str) -> Option<String> {
    let last = prefix.bytes().last().filter(|last| last.is_ascii_graphic() && *last != b'/')?;
    Some(format!("{}{}~", &prefix[..prefix.len() - 1], char::from(last - 1)))
}

/// What became of a create.
enum Found {
    Ours,
    Theirs,
    Nothing,
}

/// A random id of a put.
pub(super) fn write_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Inner {
    /// Every put carries an id, an overwrite too: a create that meets an object without one would have to compare bytes.
    pub(super) fn put_options(&self, mode: PutMode, id: &str) -> PutOptions {
        let mut options = PutOptions::from(mode);
        if self.remote {
            options.attributes = Attributes::from_iter([(Attribute::Metadata(WRITE_ID.into()), AttributeValue::from(id.to_owned()))]);
        }
        options
    }

    pub(super) async fn create(&self, location: &Path, value: &Payload) -> Result<PutOutcome, BackendError> {
        let context = || format!("cannot create {location}");
        let payload = PutPayload::from_iter(value.pieces().iter().cloned());
        // One id for all tries: whichever of them wrote the object, it is ours.
        let id = write_id();
        let mut last = None;
        for _ in 0..CREATE_TRIES {
            let error = match self.store.put_opts(location, payload.clone(), self.put_options(PutMode::Create, &id)).await {
                Ok(_) => return Ok(PutOutcome::Written),
                Err(Error::AlreadyExists { .. }) if !self.remote => return Ok(PutOutcome::Exists),
                Err(error) if !self.remote || surely_nothing(&error) => return Err(failed(&context(), error)),
                Err(error) => error,
            };
            match self.find(location, &id, value).await {
                Ok(Found::Ours) => return Ok(PutOutcome::Written),
                Ok(Found::Theirs) => return Ok(PutOutcome::Exists),
                // Lost to a create that lost as well, or to one deleted since.
                Ok(Found::Nothing) if matches!(error, Error::AlreadyExists { .. }) => last = Some(error),
                // The write may still arrive.
                Ok(Found::Nothing) | Err(_) => return Err(failed(&context(), error)),
            }
        }
        let never = || BackendError::Unavailable { context: context(), source: "it was not tried".into() };
        Err(last.map_or_else(never, |error| failed(&context(), error)))
    }

    async fn find(&self, location: &Path, id: &str, value: &Payload) -> Result<Found, Error> {
        let object = match self.store.get_opts(location, GetOptions { head: true, ..GetOptions::default() }).await {
            Err(Error::NotFound { .. }) => return Ok(Found::Nothing),
            object => object?,
        };
        if let Some(theirs) = object.attributes.get(&Attribute::Metadata(WRITE_ID.into())) {
            return Ok(if theirs.as_ref() == id { Found::Ours } else { Found::Theirs });
        }
        // Not written by this code, or by way of a server that drops metadata: then the bytes must tell.
        if object.meta.size != value.len() {
            return Ok(Found::Theirs);
        }
        match self.store.get(location).await {
            Err(Error::NotFound { .. }) => Ok(Found::Nothing),
            object => {
                let mut rest = &object?.bytes().await?[..];
                let same = value.pieces().iter().all(|piece| match rest.split_at_checked(piece.len()) {
                    Some((start, end)) if start == piece => {
                        rest = end;
                        true
                    }
                    _ => false,
                });
                Ok(if same && rest.is_empty() { Found::Ours } else { Found::Theirs })
            }
        }
    }
}

/// Errors which say that nothing was written.
fn surely_nothing(error: &Error) -> bool {
    matches!(
        error,
        Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::UnknownConfigurationKey { .. }
    )
}
