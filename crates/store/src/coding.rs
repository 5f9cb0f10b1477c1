//! Chunks through codecs: what a codec is told of the tensor, and how many chunks are at work at once.
//!
//! # Contract
//! - Encoding and decoding a chunk get the same [`PartFacts`], made from what the record says of the part and nothing else.
//! - Coding runs off the runtime's threads, one job a processor at most. Jobs that nobody waits for (writes behind) leave one processor to
//!   requests, where there are several.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sira_codec::{Chain, ChunkContext, KvFacts, TensorContext};
use sira_tensor::TensorSpec;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::StoreError;
use crate::calibrations::Loaded;
use crate::client::Inner;
use crate::observe::{CodecMeasurements, CodecMeter};

/// Families of chains that are measured apart; chains come from clients, and could be many.
const FAMILIES: usize = 64;

/// Chunks of a part that are coded at once, at most: each takes memory.
const WIDEST: usize = 8;

/// What codecs are told of a part.
#[derive(Debug)]
pub(crate) struct PartFacts {
    pub spec: TensorSpec,
    pub kv: Option<KvFacts>,
    pub calibration: Option<Arc<Loaded>>,
}

impl PartFacts {
    /// Of the part `name` of a record that follows the kv spec of the hash `kv_spec`, as far as `chains` look at it.
    pub async fn of(
        inner: &Arc<Inner>,
        name: &str,
        spec: &TensorSpec,
        kv_spec: Option<&str>,
        chains: &[Chain],
    ) -> Result<Arc<PartFacts>, StoreError> {
        let spec = spec.clone();
        if chains.iter().all(Chain::is_none) {
            return Ok(Arc::new(PartFacts { spec, kv: None, calibration: None }));
        }
        let kv_spec = match kv_spec {
            Some(hash) => Some(inner.kv_specs.get(inner, hash).await?),
            None => None,
        };
        let kv = KvFacts::of(name, &spec, kv_spec.as_deref());
        let calibration = match chains.iter().find_map(Chain::calibration) {
            Some(hash) => Some(inner.calibrations.get(inner, hash).await?),
            None => None,
        };
        Ok(Arc::new(PartFacts { spec, kv, calibration }))
    }

    /// The context of the chunk of extents `shape` at `origin`.
    pub fn chunk<'a>(&'a self, shape: &'a [u64], origin: &'a [u64]) -> ChunkContext<'a> {
        let calibration = self.calibration.as_ref().map(|loaded| &loaded.calibration);
        let tensor = TensorContext { shape: self.spec.shape(), axes: self.spec.axes(), kv: self.kv.as_ref(), calibration };
        ChunkContext { dtype: self.spec.dtype(), shape, origin, tensor }
    }
}

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A request of a client.
    ByClient,
    /// Nobody: it is done when there is time.
    ByNobody,
}

/// Which way a chunk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Encode,
    Decode,
}

/// The processors that code chunks.
pub(crate) struct Coders {
    count: usize,
    free: Arc<Semaphore>,
    free_for_background: Arc<Semaphore>,
    waiting: AtomicU64,
    families: Mutex<BTreeMap<String, Arc<CodecMeter>>>,
}

/// Counts a job that waits for a processor.
struct Waits<'a>(&'a AtomicU64);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Coders {
    /// `count` jobs at once, at least one.
    pub fn new(count: usize) -> Coders {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits));
        let (free, free_for_background) = (semaphore(count), semaphore((count - 1).max(1)));
        Coders { count, free, free_for_background, waiting: AtomicU64::new(0), families: Mutex::default() }
    }

    /// Jobs at once.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Chunks of one slab that are coded at once.
    pub fn chunks_at_once(&self) -> usize {
        (self.count / 2).clamp(2, WIDEST)
    }

    /// Slabs of `cells` chunks each that are coded at once while one more fills or goes out.
    pub fn slabs_at_once(&self, cells: usize) -> usize {
        ((self.count / 2).min(WIDEST) / cells.max(1)).max(1)
    }

    /// Runs `work`, which codes a chunk of `raw` bytes by `chain`, when a processor is free; `None` if it dies. It gives the stored bytes beside
    /// its answer, for the count.
    pub async fn run<T: Send + 'static>(
        &self,
        inner: &Inner,
        (chain, way, awaited): (&Chain, Way, Awaited),
        raw: u64,
        work: impl FnOnce() -> (T, u64) + Send + 'static,
    ) -> Option<T> {
        let meter = self.family(chain);
        let waits = self.wait();
        let second = match awaited {
            Awaited::ByClient => None,
            Awaited::ByNobody => Some(self.free_for_background.clone().acquire_owned().await.ok()?),
        };
        let permit = self.free.clone().acquire_owned().await.ok()?;
        drop(waits);
        // The permits go with the work: it goes on if its caller does not.
        let timed = move || {
            let _permits = (permit, second);
            let begun = Instant::now();
            let (answer, stored) = work();
            meter.coded(way, begun.elapsed(), raw, stored);
            answer
        };
        inner.seams.work(timed).await
    }

    fn wait(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(&self.waiting)
    }

    /// Jobs that wait for a processor.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn family(&self, chain: &Chain) -> Arc<CodecMeter> {
        let mut families = self.families.lock();
        let name = family(chain.as_str());
        let name = if families.len() < FAMILIES || families.contains_key(&name) { name } else { "other".to_owned() };
        families.entry(name).or_default().clone()
    }

    /// What was measured of each family of chains.
    pub fn read(&self) -> BTreeMap<String, CodecMeasurements> {
        self.families.lock().iter().map(|(name, meter)| (name.clone(), meter.read())).collect()
    }
}

/// The names of a chain's stages, without what they were given.
fn family(chain: &str) -> String {
    let stages: Vec<&str> = chain.split('+').map(|stage| stage.split([':', '@']).next().unwrap_or(stage)).collect();
    stages.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chains_without_arguments() {
        let hash = "5f".repeat(32);
        for (chain, name) in [("none", "none"), ("planes+zstd:9", "planes+zstd"), (&format!("x:a:b=1@{hash}+y"), "x+y")] {
            assert_eq!(family(chain), name);
        }
    }

    #[test]
    fn many_families_are_counted_together() {
        let coders = Coders::new(2);
        for level in 1..=22 {
            coders.family(&format!("zstd:{level}").parse().unwrap()).coded(Way::Encode, Default::default(), 10, 5);
        }
        let read = coders.read();
        assert_eq!(read.keys().collect::<Vec<_>>(), ["zstd"]);
        assert_eq!((read["zstd"].encode.count(), read["zstd"].raw_in, read["zstd"].stored_out), (22, 220, 110));
    }

    #[test]
    fn a_machine_of_few_processors_keeps_to_what_its_memory_is_planned_for() {
        for (count, chunks, slabs) in [(1, 2, 1), (2, 2, 1), (4, 2, 2), (16, 8, 8), (128, 8, 8)] {
            let coders = Coders::new(count);
            assert_eq!((coders.chunks_at_once(), coders.slabs_at_once(1)), (chunks, slabs), "{count}");
        }
        assert_eq!(Coders::new(16).slabs_at_once(3), 2);
    }
}
