//! A put whose bytes are there already, in memory that was shared with whoever filled it: what stays of it in memory stays there.

use std::sync::Arc;

use sira_shm::Sealed;
use sira_tensor::grid::Grid;
use sira_wire::PutAnswer;
use tokio::sync::oneshot;

use super::{Course, Writer};
use crate::StoreError;
use crate::coding::Awaited;
use crate::hot::HotPart;
use crate::ledger::Reservation;
use crate::record::Part;
use crate::sink::{ChunkSink, chunk_options, durability};

impl Writer {
    /// Puts the bytes of `region`, whose memory is `reservation`, and commits; of a key that is one tensor. A caller that goes away
    /// meanwhile does not stop it half-way.
    pub async fn adopt(self, region: Sealed, reservation: Reservation) -> Result<PutAnswer, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let spawner = self.inner.seams.spawner.clone();
        spawner.spawn(Box::pin(async move { drop(sender.send(self.adopt_now(Arc::new(region), reservation).await)) }));
        receiver.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that commits has died".into())))
    }

    async fn adopt_now(mut self, region: Arc<Sealed>, reservation: Reservation) -> Result<PutAnswer, StoreError> {
        let bytes = region.as_ref().as_ref().len() as u64;
        if self.plans.len() != 1 || bytes != self.nbytes {
            return Err(StoreError::Incomplete(format!("{}; the memory that was shared has {bytes}", self.described())));
        }
        self.filled = self.nbytes;
        if let Some(artefact) = &mut self.artefact {
            artefact.write(region.as_ref().as_ref());
        }
        self.adopted = Some(reservation);
        self.settle().await?;
        if matches!(self.course, Some(Course::Inline)) {
            self.fill(region.as_ref().as_ref()).await?;
            return self.finish().await;
        }
        let plan = self.plans[0].clone();
        let part = plan.part.clone();
        let mut record = Part { name: part.name, spec: part.spec, inline: None, copies: Vec::new(), codec: part.codec };
        let (inner, grid) = (self.inner.clone(), plan.grid.clone());
        let hot = inner.hot(&self.namespace);
        let kept = match &mut self.course {
            Some(Course::Behind(_, memory)) => Some(memory.pop().unwrap_or_default()),
            _ => {
                let (home, options) = (self.home.clone(), chunk_options(&inner, durability(self.level), self.ttl));
                let sink = ChunkSink::new(&inner, home, (&self.write_id, 0), plan.clone(), options, Awaited::ByClient);
                record.copies.push(sink.store_all(&slabs(region.clone(), &grid)).await?);
                // As in `PartWriter::new`.
                self.adopted.take().filter(|_| plan.chain.lossless() && hot.welcomes(bytes))
            }
        };
        let kept = match kept {
            // The checksums take a while.
            Some(reservation) => inner.seams.work(move || HotPart::in_region(region, &grid, reservation)).await,
            None => None,
        };
        self.done.push((record, kept));
        self.finish().await
    }
}

/// The bytes of a region, cut as the slabs of a part are.
pub(crate) fn slabs(region: Arc<Sealed>, grid: &Grid) -> sira_backend::Payload {
    let mut whole = bytes::Bytes::from_owner(Owned(region));
    grid.slabs().map(|slab| whole.split_to((slab.bytes(grid) as usize).min(whole.len()))).collect()
}

struct Owned(Arc<Sealed>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().as_ref()
    }
}
