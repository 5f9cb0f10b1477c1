//! Parts in memory that processes of the same machine map.

use std::sync::Arc;

use sira_shm::{Region, Sealed};
use sira_tensor::grid::{Grid, chunk_shape};

use crate::StoreError;
use crate::client::Inner;
use crate::hot::HotPart;
use crate::namespaces::count;
use crate::snapshot::Snapshot;

/// A part in memory that others may map. Its memory stays reserved for as long as this lives.
#[derive(Clone, Debug)]
pub struct Shared {
    part: Arc<HotPart>,
    region: Arc<Sealed>,
}

impl Shared {
    fn of(part: Arc<HotPart>) -> Option<Shared> {
        let region = part.region()?.clone();
        Some(Shared { part, region })
    }

    /// The memory to pass.
    pub fn region(&self) -> &Sealed {
        &self.region
    }

    /// Whether both are the same memory.
    pub fn is(&self, other: &Shared) -> bool {
        Arc::ptr_eq(&self.region, &other.region)
    }

    /// Bytes.
    pub fn nbytes(&self) -> u64 {
        self.part.len()
    }
}

impl Snapshot {
    /// Part number `index`, if it lies in memory that can be shared as it is. Its bytes were verified when they came there; nobody can have
    /// changed them, so that they are not verified again.
    pub fn shared(&self, index: usize) -> Option<Shared> {
        let shared = Shared::of(self.in_memory(index)?)?;
        let (inner, nbytes) = (self.inner(), shared.nbytes());
        let namespace = self.namespace().map(|namespace| &namespace.counters);
        count(&inner.counters.gets, 1);
        count(&inner.counters.get_bytes, nbytes);
        inner.looked_up(self.home(index), true);
        if let Some(counters) = namespace {
            count(&counters.gets, 1);
            count(&counters.hits, 1);
            count(&counters.get_bytes, nbytes);
        }
        Some(shared)
    }

    /// Part number `index` in memory that can be shared: it is read into it, once. The memory replaces the one where it lay; where it lay in
    /// none and there is room, it stays for the next one who reads it.
    pub async fn share(&self, index: usize) -> Result<Shared, StoreError> {
        let (inner, place) = (self.inner().clone(), self.place(index)?);
        let _turn = inner.sharing(&place.record.write_id).await;
        // Whoever had the turn before may have done it.
        if let Some(shared) = self.shared(index) {
            return Ok(shared);
        }
        let spec = place.part().spec.clone();
        let reservation = inner.reserve_now(spec.nbytes())?;
        let region = self.gathered(&inner, index).await?;
        let grid = Grid::new(&spec, &chunk_shape(&spec))?;
        let kept = self.waits() || place.hot.welcomes(spec.nbytes());
        let part = inner.seams.work(move || HotPart::in_region(Arc::new(region), &grid, reservation)).await;
        let part = place.counted(part.ok_or_else(|| StoreError::Internal("a task that takes checksums has died".into()))?, kept);
        let waits = self.waits() && inner.behind.replace(&place.record.key, &place.record.write_id, index, &part);
        if kept && !waits {
            inner.keep_hot(&place.hot, &place.record.key, &place.record.write_id, index, part.clone());
        }
        Shared::of(part).ok_or_else(|| StoreError::Internal("a region that is none".into()))
    }

    /// The bytes of a part in a new region.
    async fn gathered(&self, inner: &Arc<Inner>, index: usize) -> Result<Sealed, StoreError> {
        if let Some(part) = self.in_memory(index) {
            part.doubt();
        }
        let mut reader = self.read_once(index).await?;
        let len = usize::try_from(reader.spec().nbytes()).map_err(|error| StoreError::Internal(error.to_string()))?;
        let mut region = Region::create(len).map_err(refused)?;
        let mut offset = 0;
        while let Some(piece) = reader.next().await? {
            let end = offset + piece.len();
            let written = inner.seams.work(move || region.write_at(offset, &piece).map(|()| region)).await;
            region = written.ok_or_else(|| StoreError::Internal("a task that copies has died".into()))?.map_err(refused)?;
            offset = end;
        }
        let sealed = inner.seams.work(move || region.seal().map_err(|(_, error)| error)).await;
        sealed.ok_or_else(|| StoreError::Internal("a task that seals has died".into()))?.map_err(refused)
    }
}

/// What the system says where it gives no memory to share.
pub(crate) fn refused(error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::Unsupported => StoreError::Unsupported("this system has no memory that can be sealed and shared".into()),
        _ => StoreError::Busy(format!("no memory that can be shared: {error}")),
    }
}
