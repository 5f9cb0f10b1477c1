//! Puts of chunks that are encoded here: the server, shared by all, stores them as they come.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use arrow_flight::FlightData;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use sira_tensor::TensorSpec;
use sira_tensor::kv::KvSpec;
use sira_wire::encoded::{ChunkHead, PutChunks};
use sira_wire::{Code, Key, PutAnswer, PutOptions, WireError};

use crate::calibrations::Calibrations;
use crate::chunks::{Outgoing, chain, workers};
use crate::client::json;
use crate::http2::Pool;
use crate::put::{self, Failure};
use crate::put_from::{Parts, Piece, put_bytes, put_parts};
use crate::{Client, ClientError, message};

impl Client {
    /// Puts a tensor whose chunks are encoded here with `codec` (`planes+zstd`), on the runtime's blocking threads while others are sent: fewer bytes go over
    /// the network, and the server stores them as they come. [`Client::put`] says what else there is to a put. Small tensors go raw.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use sira_client::{DType, PutOptions, TensorSpec};
    ///
    /// let spec = TensorSpec::new(DType::BFloat16, vec![32, 1024, 1024])?;
    /// client.put_encoded("demo/a", &spec, vec![0u8; 64 << 20], "planes+zstd", PutOptions::default()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_encoded(
        &self,
        key: &str,
        spec: &TensorSpec,
        data: impl Into<Bytes>,
        codec: &str,
        options: PutOptions,
    ) -> Result<PutAnswer, ClientError> {
        let (key, data): (Key, Bytes) = (key.parse()?, data.into());
        check_len(spec, data.len())?;
        let kv_spec = match &options.kv_spec {
            Some(hash) => Some(self.kv_spec(hash).await?.spec),
            None => None,
        };
        let chain = chain(codec)?;
        let calibration = match chain.calibration() {
            Some(hash) => Some(self.calibrations.fetch(&self.pool, hash, None).await?),
            None => None,
        };
        let Some(outgoing) = Outgoing::plan(spec, &chain, kv_spec.as_ref(), calibration)? else {
            return self.put(key.as_str(), spec, data, PutOptions { codec: Some(codec.to_owned()), ..options }).await;
        };
        let options = PutOptions { encoded: Some(outgoing.encoding()), codec: None, ..put::describing(options, spec) };
        let first = message::schema(key.as_str(), options.to_metadata());
        let failure = Failure::default();
        let answered = self.send_put(body(first, Arc::new(outgoing), data, failure.clone())).await;
        match failure.lock().take() {
            // The server saw a stream that ended too early; the reason is on this side.
            Some(error) => Err(ClientError::Source(error)),
            None => answered,
        }
    }
}

fn check_len(spec: &TensorSpec, len: usize) -> Result<(), ClientError> {
    if len as u64 == spec.nbytes() {
        return Ok(());
    }
    let reason = format!("the tensor has {} bytes, its source has {len}", spec.nbytes());
    Err(ClientError::Source(io::Error::new(io::ErrorKind::InvalidData, reason)))
}

/// The messages of a put: each chunk is one, encoded while others are sent. It ends early where encoding fails, and `failure` has the reason.
fn body(first: FlightData, outgoing: Arc<Outgoing>, data: Bytes, failure: Failure) -> impl Stream<Item = FlightData> + Send + 'static {
    let chunks = stream::iter(0..outgoing.cells()).map(move |cell| {
        let (outgoing, data) = (outgoing.clone(), data.clone());
        let encode = move || -> Result<FlightData, ClientError> {
            let (head, bytes) = outgoing.encode(&data, cell)?;
            let mut message = message::batch(Bytes::from(bytes.into_owned()));
            message.app_metadata = announced(head)?.into();
            Ok(message)
        };
        async move { tokio::task::spawn_blocking(encode).await.unwrap_or_else(|error| Err(ClientError::protocol(error))) }
    });
    let chunks =
        chunks.buffered(workers()).map(move |message| message.map_err(|error| *failure.lock() = Some(io::Error::other(error))).ok());
    stream::once(async { first })
        .chain(chunks.take_while(|message| futures::future::ready(message.is_some())).filter_map(futures::future::ready))
}

/// What is said of one chunk before its bytes.
fn announced(head: ChunkHead) -> Result<Vec<u8>, ClientError> {
    json(&PutChunks { chunks: vec![head] })
}

/// As [`Client::put_encoded`], from memory that stays the caller's, over a connection that blocks its thread. `metadata` describes the tensor and how to keep
/// it; `kv_spec`: the text of the kv spec that it follows.
pub(crate) async fn put_blocking(
    (pool, calibrations): (&Pool, &Calibrations),
    key: &str,
    metadata: HashMap<String, String>,
    (codec, kv_spec): (&str, Option<&str>),
    data: &[u8],
    end: Option<Instant>,
) -> Result<PutAnswer, ClientError> {
    let options = PutOptions::from_metadata(&metadata)?;
    let (Some(dtype), Some(shape)) = (options.dtype, options.shape.clone()) else {
        return Err(WireError::new(Code::BadRequest, "a put in chunks needs its dtype and shape").into());
    };
    let spec = TensorSpec::new(dtype, shape)?.with_axes(options.axes.clone().unwrap_or_default())?;
    let spec = spec.with_attributes(options.attributes.clone())?;
    check_len(&spec, data.len())?;
    let kv_spec = kv_spec.map(|text| KvSpec::from_json(text.as_bytes())).transpose()?;
    let chain = chain(codec)?;
    let calibration = match chain.calibration() {
        Some(hash) => Some(calibrations.fetch(pool, hash, end).await?),
        None => None,
    };
    let Some(outgoing) = Outgoing::plan(&spec, &chain, kv_spec.as_ref(), calibration)? else {
        let options = PutOptions { codec: Some(codec.to_owned()), ..options };
        return put_bytes(pool, message::schema(key, options.to_metadata()).encode_to_vec(), data, end).await;
    };
    let options = PutOptions { encoded: Some(outgoing.encoding()), codec: None, ..options };
    let first = message::schema(key, options.to_metadata()).encode_to_vec();
    std::thread::scope(|scope| {
        let count = workers().min(usize::try_from(outgoing.cells()).unwrap_or(usize::MAX));
        let (sender, coming) = sync_channel(count);
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..count {
            let (sender, next, outgoing) = (sender.clone(), next.clone(), &outgoing);
            scope.spawn(move || {
                loop {
                    let cell = next.fetch_add(1, Ordering::Relaxed);
                    // An error, or nobody who listens any more, ends it.
                    if cell >= outgoing.cells() || sender.send((cell, outgoing.encode(data, cell))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let chunks = Ordered { coming, ahead: BTreeMap::new(), next: 0, cells: outgoing.cells() };
        // Nothing in it ever waits but for the socket, which blocks.
        futures::FutureExt::now_or_never(put_parts(pool, first, chunks, end))
            .unwrap_or_else(|| Err(ClientError::protocol("a call over a blocking connection did not block")))
    })
}

/// What a thread made of a chunk.
type Chunk<'a> = Result<(ChunkHead, std::borrow::Cow<'a, [u8]>), ClientError>;

/// Chunks of several threads, in their order.
struct Ordered<'a> {
    coming: Receiver<(u64, Chunk<'a>)>,
    ahead: BTreeMap<u64, Chunk<'a>>,
    next: u64,
    cells: u64,
}

impl<'a> Parts<'a> for Ordered<'a> {
    fn next(&mut self) -> Result<Option<Piece<'a>>, ClientError> {
        if self.next == self.cells {
            return Ok(None);
        }
        loop {
            if let Some(made) = self.ahead.remove(&self.next) {
                self.next += 1;
                let (head, bytes) = made?;
                return Ok(Some((announced(head)?, bytes)));
            }
            let (cell, made) = self.coming.recv().map_err(|_| ClientError::protocol("a thread that encodes ended"))?;
            self.ahead.insert(cell, made);
        }
    }
}
