//! Copies that change their codec with their place: what lies in a tier is encoded as its namespace wants it there.

use std::sync::Arc;

use futures::TryStreamExt;
use sira_codec::Chain;
use xxhash_rust::xxh3::Xxh3;

use crate::StoreError;
use crate::client::{Inner, Tier};
use crate::coding::{Awaited, PartFacts};
use crate::moves::Move;
use crate::part::PartPlan;
use crate::read::ChunkSource;
use crate::record::{PartCopy, TensorRecord};
use crate::sink::{ChunkSink, lasting};

impl Inner {
    /// The codec that part number `index` gets when its copy moves to `target`; none where it stays as it is: it is wanted so there, its writer chose
    /// the codec, one of the two is lossy, others have the same copy, or the chunks would be cut anew.
    pub fn recodes(&self, record: &TensorRecord, index: usize, target: &Tier) -> Result<Option<Chain>, StoreError> {
        let part = &record.parts[index];
        let [copy] = &part.copies[..] else { return Ok(None) };
        if part.codec.is_some() {
            return Ok(None);
        }
        let namespace = self.namespaces.of(record.key.namespace());
        let wanted = self.chain(&namespace, &target.name, None, None, part.spec.dtype())?;
        let lies = copy.chains.iter().map(|text| text.parse()).collect::<Result<Vec<Chain>, _>>()?;
        let differs = copy.chains.last() != Some(&wanted.to_string());
        let lossless = wanted.lossless() && lies.iter().all(Chain::lossless);
        Ok((differs && lossless && wanted.chunk_shape(&part.spec) == copy.chunk_shape).then_some(wanted))
    }

    /// Copies a part and encodes it anew. `None` where that cannot be right now, for want of memory or of what the codec needs: then it is copied as
    /// it is.
    pub async fn recode(
        self: &Arc<Self>,
        record: &Arc<TensorRecord>,
        index: usize,
        chain: Chain,
        target: &Arc<Tier>,
        write_id: &str,
        how: Move<'_>,
    ) -> Result<Option<PartCopy>, StoreError> {
        let part = &record.parts[index];
        let source = ChunkSource::first(self, record, index)?;
        let facts = PartFacts::of(self, &part.name, &part.spec, record.kv_spec.as_deref(), std::slice::from_ref(&chain)).await;
        let facts = match facts {
            Err(StoreError::UnknownCalibration(_)) => return Ok(None),
            facts => facts?,
        };
        let plan = Arc::new(PartPlan::new(self, part.declared(), chain, facts)?);
        let needs = plan.working_bytes().saturating_add(source.working_bytes(part.spec.nbytes()));
        // It does not wait for memory: a put may wait for it.
        let Some(_memory) = self.ledger.try_reserve(needs) else { return Ok(None) };
        let sink = ChunkSink::new(self, target.clone(), (write_id, index), plan, lasting(), Awaited::ByNobody);
        match self.recode_slabs(source, &sink, how).await {
            Ok((made, raw)) if how.verify && self.raw_digest(record, index, &made).await? != raw => {
                let place = format!("tensor {} in backend {}", record.key, target.name);
                Err(StoreError::Corrupt(format!("{place}: what codec {} made does not decode to what it was", sink.plan.chain)))
            }
            Ok((made, _)) => Ok(Some(made)),
            // A codec for other tensors than this one: its chunks are written over, as they have the same names.
            Err(StoreError::Codec(error)) => {
                tracing::warn!(%error, key = %record.key, "it moves as it is");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The copy that is made, and a digest of the raw bytes.
    async fn recode_slabs(&self, source: ChunkSource, sink: &Arc<ChunkSink>, how: Move<'_>) -> Result<(PartCopy, u64), StoreError> {
        let (grid, mut stored, mut digest) = (&sink.plan.grid, Vec::new(), Xxh3::new());
        let mut raw = source.whole();
        for slab in grid.slabs() {
            let bytes = raw.try_next().await?.ok_or_else(|| StoreError::Internal("a move read less than a part has".into()))?;
            digest.update(&bytes);
            if how.throttled {
                self.throttle.take(bytes.len() as u64).await;
            }
            let chunks = sink.store(&slab, bytes, None).await?;
            stored.extend(grid.touched(&slab.region).into_iter().zip(chunks));
        }
        Ok((sink.copy(&stored), digest.digest()))
    }

    /// A digest of the raw bytes of a copy, read back.
    async fn raw_digest(self: &Arc<Self>, record: &Arc<TensorRecord>, index: usize, copy: &PartCopy) -> Result<u64, StoreError> {
        let mut raw = ChunkSource::only(self, record, index, copy.clone())?.whole();
        let mut digest = Xxh3::new();
        while let Some(bytes) = raw.try_next().await? {
            digest.update(&bytes);
        }
        Ok(digest.digest())
    }
}
