//! Gets of chunks as the server keeps them, decoded here: fewer bytes on the way, and less work for a server that all share.

use std::sync::Arc;

use bytes::Bytes;
use sira_tensor::TensorSpec;
use tokio::task::{JoinError, JoinSet};

use crate::chunks::{Arriving, Chunked, Decoded, stages, workers};
use crate::client::json;
use crate::get_into::Incoming;
use crate::get_parallel::memory_for;
use crate::{Client, ClientError, GetOptions};

impl Client {
    /// Gets a tensor as the encoded chunks that the server keeps of it, where they are fewer bytes than the tensor and went through codecs that this client
    /// has; otherwise as it is, as [`Client::get`] does. Chunks are decoded on the runtime's blocking threads while others come.
    ///
    /// Worth it where the connection is slower than decoding (docs/wire.md, "Encoded chunks"). A chunk that does not decode is an error of the code
    /// [`Code::Corrupt`](crate::Code::Corrupt).
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetOptions;
    ///
    /// let (spec, bytes) = client.get_encoded("kv/session-1", &GetOptions::default()).await?;
    /// println!("{} {:?}, {} bytes", spec.dtype(), spec.shape(), bytes.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_encoded(&self, key: &str, options: &GetOptions) -> Result<(TensorSpec, Bytes), ClientError> {
        let incoming = self.open_encoded(key, options).await?;
        let spec = incoming.spec.clone();
        let mut out = vec![0; memory_for(&spec)?];
        read_into(incoming, &mut out).await?;
        Ok((spec, out.into()))
    }

    /// As [`Client::get_encoded`], into `out`, which must be exactly as long as the tensor. When this fails, `out` may be partly filled.
    ///
    /// ```no_run
    /// # async fn example(client: sira_client::Client) -> Result<(), sira_client::ClientError> {
    /// use sira_client::GetOptions;
    ///
    /// let mut buffer = vec![0u8; 64 << 20];
    /// client.get_encoded_into("kv/session-1", &GetOptions::default(), &mut buffer).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_encoded_into(&self, key: &str, options: &GetOptions, out: &mut [u8]) -> Result<TensorSpec, ClientError> {
        let incoming = self.open_encoded(key, options).await?;
        let spec = incoming.spec.clone();
        read_into(incoming, out).await?;
        Ok(spec)
    }

    async fn open_encoded(&self, key: &str, options: &GetOptions) -> Result<Incoming, ClientError> {
        let mut ticket = options.ticket(key)?;
        ticket.encoded = Some(stages());
        Incoming::open(&self.pool, &json(&ticket)?, None, &self.calibrations).await
    }
}

async fn read_into(mut incoming: Incoming, out: &mut [u8]) -> Result<(), ClientError> {
    incoming.check_room(out)?;
    match incoming.chunked.take() {
        Some(chunked) => decode_into(incoming.into_chunks(&chunked), chunked.into(), out).await,
        None => incoming.read_into(out).await,
    }
}

/// Decodes chunks as they come, a few at once; what is decoded is put where it belongs.
async fn decode_into(mut arriving: Arriving, chunked: Arc<Chunked>, out: &mut [u8]) -> Result<(), ClientError> {
    let (most, mut decoding) = (workers(), JoinSet::new());
    let mut place = |decoded: Result<Result<Decoded, ClientError>, JoinError>| {
        let decoded = decoded.map_err(|error| ClientError::protocol(format!("a thread that decodes ended: {error}")))??;
        chunked.place(&decoded, out);
        Ok::<_, ClientError>(())
    };
    while let Some(chunk) = arriving.next(&chunked).await? {
        let of = chunked.clone();
        decoding.spawn_blocking(move || of.decode(chunk));
        while let Some(decoded) = decoding.try_join_next() {
            place(decoded)?;
        }
        if decoding.len() >= most
            && let Some(decoded) = decoding.join_next().await
        {
            place(decoded)?;
        }
    }
    while let Some(decoded) = decoding.join_next().await {
        place(decoded)?;
    }
    arriving.finish();
    Ok(())
}
