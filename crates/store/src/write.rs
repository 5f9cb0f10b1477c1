//! A put in progress: the bytes of its parts come one after another, row-major; the commit writes the record.

mod adopt;
mod encoded;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use sira_backend::Survives;
use sira_codec::{Chain, KvFacts};
use sira_tensor::{DType, TensorSpec};
use sira_wire::{Code, Condition, Consistency, Key, PutAnswer};
use tokio::sync::oneshot;

use crate::calibrations::{Artefact, MODEL, Use};
use crate::client::{Inner, Tier, WriteOptions, needs};
use crate::coding::{Awaited, PartFacts};
use crate::commit::Commit;
use crate::hot::HotPart;
use crate::ledger::Reservation;
use crate::namespaces::{Namespace, Promise, count};
use crate::part::{PartPlan, PartSpec, PartWriter, Target};
use crate::placement::{UnderWay, Wanted};
use crate::record::{Part, TensorRecord};
use crate::region::Region;
use crate::sink::{ChunkSink, chunk_options, durability};
use crate::{StoreError, upkeep};

pub(crate) use adopt::slabs;
pub use encoded::EncodedWriter;

/// Puts of at most this many bytes lie inside their record: one write, one sync.
pub(crate) const INLINE_BYTES: u64 = 32 << 10;

/// Bytes of a put that are taken before its working memory is reserved: a client that declares a large tensor and stalls holds this much.
const EARLY_BYTES: u64 = 64 << 10;

/// Where the bytes of a put go.
enum Course {
    /// Into the record.
    Inline,
    /// Into memory, written behind; the memory of each part.
    Behind(tokio::sync::OwnedSemaphorePermit, Vec<Reservation>),
    /// Into the home tier, chunk by chunk.
    Chunks,
}

/// A put in progress. Dropped before its commit, it leaves nothing behind.
pub struct Writer {
    inner: Arc<Inner>,
    namespace: Arc<Namespace>,
    key: Key,
    kv_spec: Option<String>,
    write_id: String,
    level: Consistency,
    ttl: Option<u64>,
    condition: Option<Condition>,
    /// Whether a get will give what is put.
    lossless: bool,
    derived_from_lossy: bool,
    home: Arc<Tier>,
    _under_way: UnderWay,
    plans: Vec<Arc<PartPlan>>,
    /// Keeps the calibration artefacts that its codecs need.
    _calibrations: Vec<Use>,
    /// The calibration artefact that is put.
    artefact: Option<Artefact>,
    nbytes: u64,
    filled: u64,
    /// The first bytes, until it is decided where they go.
    early: Option<Region>,
    /// Decided when [`EARLY_BYTES`] have come.
    course: Option<Course>,
    /// The part being filled, its index, and the bytes it still misses.
    current: Option<(usize, PartWriter, u64)>,
    /// Parts that are whole.
    done: Vec<(Part, Option<HotPart>)>,
    working: Reservation,
    all_reserved: bool,
    /// Memory of the bytes, where they are there already.
    adopted: Option<Reservation>,
    promise: Option<Promise>,
    committed: bool,
    _leave: Leave,
}

impl Writer {
    pub(crate) async fn begin(inner: Arc<Inner>, key: Key, mut parts: Vec<PartSpec>, options: WriteOptions) -> Result<Writer, StoreError> {
        inner.writers.fetch_add(1, Ordering::SeqCst);
        let leave = Leave(inner.clone());
        if inner.stopping.load(Ordering::SeqCst) {
            return Err(StoreError::ShuttingDown);
        }
        let namespace = inner.namespaces.of(key.namespace());
        let policy = namespace.policy();
        crate::client::writable(&key, &policy)?;
        let mut followed = None;
        if let Some(hash) = &options.kv_spec {
            let spec = followed.insert(inner.kv_specs.get(&inner, hash).await?);
            let mut described: Vec<_> = parts.iter().map(|part| (part.name.clone(), part.spec.clone())).collect();
            spec.admit(&mut described)?;
            parts.iter_mut().zip(described).for_each(|(part, (_, spec))| part.spec = spec);
        }
        let nbytes = total(&parts)?;
        let artefact = Artefact::of(&inner, &key, &parts).await?;
        let exact = policy.exact || artefact.is_some();
        // What others need to be read must not be lost before they are.
        let asked = options.consistency.filter(|_| artefact.is_none());
        let default = if artefact.is_some() { Some(Consistency::Strong) } else { policy.consistency };
        let default = default.unwrap_or(if namespace.is_cache() { Consistency::Weak } else { inner.options.consistency });
        let ttl = options.ttl.or(policy.ttl).or(inner.options.ttl).filter(|_| artefact.is_none());
        let (kv_spec, consistency) = (followed.as_deref(), asked.unwrap_or(default));
        let home = inner.place(&key, &parts, &Wanted { kv_spec, nbytes, consistency, demanded: asked.is_some(), ttl })?;
        let home = inner.fitting(&namespace, home, nbytes)?;
        let level = level(&inner, &home, asked, default)?;
        let (mut plans, mut calibrations) = (Vec::with_capacity(parts.len()), Vec::new());
        for part in parts {
            let model = followed.as_ref().map(|spec| spec.model.as_str()).or_else(|| KvFacts::model_of(&part.spec));
            let chain = inner.chain(&namespace, &home.name, part.codec.as_deref(), model, part.spec.dtype())?;
            if exact && (!chain.lossless() || options.derived_from_lossy) {
                let what = if chain.lossless() { "what is derived from lossy data".to_owned() } else { format!("codec {chain}") };
                return Err(StoreError::Unsupported(format!("namespace {} is exact, and takes no lossy data: {what}", namespace.name)));
            }
            if let Some(hash) = chain.calibration() {
                calibrations.push(inner.calibrations.hold(&inner, hash).await?);
            }
            let facts = PartFacts::of(&inner, &part.name, &part.spec, options.kv_spec.as_deref(), std::slice::from_ref(&chain)).await?;
            let plan = PartPlan::new(&inner, part, chain, facts)?;
            plan.check_memory(inner.ledger.limit())?;
            plans.push(Arc::new(plan));
        }
        // A small part lies in the record as it is.
        let lossless = (0..plans.len()).all(|index| plans[index].chain.lossless() || is_small(&plans, index));
        if options.condition.is_some() {
            let exact = lossless && !options.derived_from_lossy;
            crate::commit::check(&key, inner.alive(&key)?.as_ref(), options.condition, exact)?;
        }
        let working = match options.scratch {
            0 => inner.reserve(nbytes.min(EARLY_BYTES)).await?,
            // Who holds that much waits for no more: all of it at once.
            scratch => inner.reserve(scratch + working_bytes(&plans)).await?,
        };
        Ok(Writer {
            kv_spec: options.kv_spec,
            write_id: inner.seams.write_id(),
            level,
            ttl,
            condition: options.condition,
            lossless,
            derived_from_lossy: options.derived_from_lossy,
            _under_way: UnderWay::begin(&home, nbytes),
            home,
            plans,
            _calibrations: calibrations,
            artefact,
            nbytes,
            filled: 0,
            early: None,
            course: None,
            current: None,
            done: Vec::new(),
            working,
            all_reserved: options.scratch > 0,
            adopted: None,
            promise: None,
            committed: false,
            _leave: leave,
            namespace,
            key,
            inner,
        })
    }

    /// Decides where the bytes go and reserves what that takes, once bytes have come and not only a promise of them.
    async fn settle(&mut self) -> Result<(), StoreError> {
        let (inner, nbytes) = (self.inner.clone(), self.nbytes);
        inner.record_tier()?.headroom().await?;
        let tier = if nbytes <= INLINE_BYTES { inner.options.record_backend.clone() } else { self.home.name.clone() };
        self.promise = Some(inner.promise(&self.namespace, &self.key, &tier, nbytes).await?);
        // What waits in memory is what was put, and a get must not give one thing before it is written and another after.
        let weak = self.level == Consistency::Weak && self.home.keeps() > Survives::Nothing && nbytes > 0 && self.lossless;
        if let Some(permit) = weak.then(|| inner.behind.budget(nbytes)).flatten() {
            // Without memory to keep it in, it is written at once, which keeps more than was asked.
            let adopted = self.adopted.take().map(|memory| vec![memory]);
            if let Some(memory) = adopted.or_else(|| self.memory_of_parts()) {
                self.course = Some(Course::Behind(permit, memory));
                return Ok(());
            }
        }
        if nbytes <= INLINE_BYTES {
            self.course = Some(Course::Inline);
            return Ok(());
        }
        if !self.all_reserved {
            self.working.absorb(inner.reserve(working_bytes(&self.plans)).await?);
        }
        // What a backend loses with the process leaves no orphans for the next start to find.
        if self.home.keeps() > Survives::Nothing {
            ChunkSink::announce(&inner, &self.home, &self.key, &self.write_id)?;
        }
        self.course = Some(Course::Chunks);
        Ok(())
    }

    /// Memory for each part, if there is enough for all of them.
    fn memory_of_parts(&self) -> Option<Vec<Reservation>> {
        self.plans.iter().map(|plan| self.inner.reserve_now(plan.kept_bytes()).ok()).collect()
    }

    /// What is being put, of a key that is one tensor; of another, its first part.
    pub fn spec(&self) -> &TensorSpec {
        &self.plans[0].part.spec
    }

    /// Bytes still to come.
    pub fn missing(&self) -> u64 {
        self.nbytes - self.filled
    }

    /// Takes the next bytes, row-major, part after part. More than the parts have is refused.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() as u64 > self.missing() {
            let more = bytes.len() as u64 - self.missing();
            return Err(StoreError::Incomplete(format!("{}; {more} more came", self.described())));
        }
        self.filled += bytes.len() as u64;
        if let Some(artefact) = &mut self.artefact {
            artefact.write(bytes);
        }
        if self.course.is_none() {
            if self.filled <= EARLY_BYTES {
                let early = match &mut self.early {
                    Some(early) => early,
                    none => none.insert(self.inner.regions.region(self.nbytes.min(EARLY_BYTES))?),
                };
                early.append(bytes);
                return Ok(());
            }
            self.settle().await?;
            self.fill_early().await?;
        }
        self.fill(bytes).await
    }

    /// Passes on what came before it was decided where it goes. If that is all of a small tensor, it becomes its stored payload as it lies.
    async fn fill_early(&mut self) -> Result<(), StoreError> {
        let Some(early) = self.early.take() else { return self.fill(&[]).await };
        let whole = |plan: &Arc<PartPlan>| plan.grid.slab_bytes() == self.nbytes && early.bytes().len() as u64 == self.nbytes;
        if !matches!(&self.plans[..], [only] if whole(only)) {
            return self.fill(early.bytes()).await;
        }
        self.next_part()?;
        if let Some((_, part, missing)) = &mut self.current {
            part.adopt(&self.inner, early).await?;
            *missing = 0;
        }
        self.fill(&[]).await
    }

    async fn fill(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        loop {
            if self.current.is_none() && !self.next_part()? {
                return match bytes {
                    [] => Ok(()),
                    _ => Err(StoreError::Internal("a put longer than its parts".into())),
                };
            }
            let Some((_, part, missing)) = &mut self.current else { continue };
            let take = (bytes.len() as u64).min(*missing) as usize;
            part.write(&self.inner, &bytes[..take]).await?;
            *missing -= take as u64;
            bytes = &bytes[take..];
            if *missing > 0 {
                return Ok(());
            }
            if let Some((index, part, _)) = self.current.take() {
                let inline = self.is_inline(index);
                let finished = part.finish(self.plans[index].part.clone(), inline).await?;
                self.done.push(finished);
            }
        }
    }

    /// Begins the next part; false after the last.
    fn next_part(&mut self) -> Result<bool, StoreError> {
        let index = self.done.len();
        let Some(plan) = self.plans.get(index) else { return Ok(false) };
        let inline = self.is_inline(index);
        let (target, reservation) = match &mut self.course {
            Some(Course::Behind(_, memory)) => (Target::Kept, std::mem::take(&mut memory[index])),
            Some(Course::Chunks) if !inline => {
                let (home, options) = (self.home.clone(), chunk_options(&self.inner, durability(self.level), self.ttl));
                let sink = ChunkSink::new(&self.inner, home, (&self.write_id, index), plan.clone(), options, Awaited::ByClient);
                (Target::Chunks(sink), Reservation::default())
            }
            _ => (Target::Kept, Reservation::default()),
        };
        let nbytes = plan.part.spec.nbytes();
        self.current = Some((index, PartWriter::new(plan, target, self.inner.hot(&self.namespace), reservation), nbytes));
        Ok(true)
    }

    /// Whether a part lies inside the record: small ones do, beside large ones too, as long as all of them together are small.
    fn is_inline(&self, index: usize) -> bool {
        !matches!(self.course, Some(Course::Behind(..))) && is_small(&self.plans, index)
    }

    fn described(&self) -> String {
        match &self.plans[..] {
            [one] => format!("{} of shape {:?} has {} bytes", one.part.spec.dtype(), one.part.spec.shape(), self.nbytes),
            several => format!("the {} parts of {} have {} bytes", several.len(), self.key, self.nbytes),
        }
    }

    /// Makes the put visible, all of it at once. When this returns, it survives what its level promises. A caller that goes away
    /// meanwhile does not stop it half-way: it runs from this call on, whether or not its answer is waited for.
    pub fn commit(self) -> impl Future<Output = Result<PutAnswer, StoreError>> + Send + 'static {
        let spawner = self.inner.seams.spawner.clone();
        let mut finish = Box::pin(self.finish());
        // One that waits for nothing, as weak puts mostly, is done here and now; any other goes on in a task of its own.
        let waits = match finish.as_mut().now_or_never() {
            Some(done) => Err(done),
            None => {
                let (sender, receiver) = oneshot::channel();
                spawner.spawn(Box::pin(async move { drop(sender.send(finish.await)) }));
                Ok(receiver)
            }
        };
        async move {
            match waits {
                Err(done) => done,
                Ok(receiver) => receiver.await.unwrap_or_else(|_| Err(StoreError::Internal("a task that commits has died".into()))),
            }
        }
    }

    async fn finish(mut self) -> Result<PutAnswer, StoreError> {
        if self.missing() > 0 {
            return Err(StoreError::Incomplete(format!(
                "{}; the stream ended after {}. Nothing was stored",
                self.described(),
                self.filled
            )));
        }
        let model = match self.artefact.take() {
            Some(artefact) => Some(artefact.check(&self.inner).await?).filter(|model| !model.is_empty()),
            None => None,
        };
        if self.course.is_none() {
            self.settle().await?;
        }
        self.fill_early().await?;
        let (mut parts, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.done).into_iter().unzip();
        if let (Some(model), Some(part)) = (model, parts.first_mut()) {
            // As the artefact says, whatever its writer did.
            let mut attributes = part.spec.attributes().clone();
            attributes.insert(MODEL.to_owned(), model);
            part.spec = part.spec.clone().with_attributes(attributes)?;
        }
        let now = self.inner.now();
        let record = TensorRecord {
            key: self.key.clone(),
            version: 0,
            generation: 0,
            tombstone: false,
            created_ms: now,
            expires_ms: self.ttl.map(|ttl| now + ttl * 1000),
            consistency: self.level,
            write_id: self.write_id.clone(),
            parts,
            kv_spec: self.kv_spec.clone(),
            derived_from_lossy: self.derived_from_lossy,
        };
        let kept: Vec<_> = kept.into_iter().map(|part| part.map(|part| Arc::new(part.counted(&self.namespace.memory)))).collect();
        let exact = self.lossless && !self.derived_from_lossy;
        let mut commit = Commit { record, condition: self.condition, exact, durability: durability(self.level) };
        let created = match self.course.take() {
            Some(Course::Behind(permit, _)) => {
                let kept = kept.into_iter().collect::<Option<Vec<_>>>();
                let kept = kept.ok_or_else(|| StoreError::Internal("a put that waits without its bytes".into()))?;
                self.inner.commit_behind(&mut commit, &self.home.name, kept, permit, self.promise.take()).await?
            }
            course => {
                self.course = course;
                let committed = self.inner.commit(&mut commit).await;
                // Whether the record was written is not known: the next start decides by its intent, so the chunks stay.
                self.committed = matches!(&committed, Err(error) if error.code() == Code::Backend);
                let created = committed?;
                let hot = self.inner.hot(&self.namespace);
                for (index, part) in kept.into_iter().enumerate() {
                    if let Some(part) = part {
                        self.inner.keep_hot(&hot, &self.key, &self.write_id, index, part);
                    }
                }
                created
            }
        };
        self.committed = true;
        count(&self.inner.counters.puts, 1);
        count(&self.inner.counters.put_bytes, self.nbytes);
        count(&self.namespace.counters.puts, 1);
        count(&self.namespace.counters.put_bytes, self.nbytes);
        Ok(PutAnswer { key: self.key.to_string(), version: commit.record.version, created })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.committed || !matches!(self.course, Some(Course::Chunks)) {
            return;
        }
        // What the task that stores chunks still writes is swept after it; its memory is in use until then.
        let storing = self.current.as_mut().map(|(_, part, _)| part.storing()).unwrap_or_default();
        let (inner, home, write_id) = (self.inner.clone(), self.home.clone(), self.write_id.clone());
        let working = std::mem::take(&mut self.working);
        self.inner.seams.spawner.spawn(Box::pin(async move {
            for slab in storing {
                drop(slab.await);
            }
            drop(working);
            if let Err(error) = upkeep::sweep(&inner, &home, &write_id).await {
                tracing::warn!(%error, write_id, "chunks of an abandoned put stay until the next start");
            }
        }));
    }
}

/// Whether a part is small, together with the small ones before it.
fn is_small(plans: &[Arc<PartPlan>], index: usize) -> bool {
    let before = |plan: &Arc<PartPlan>| Some(plan.part.spec.nbytes()).filter(|&nbytes| nbytes <= INLINE_BYTES).unwrap_or(0);
    let sum: u64 = plans[..index].iter().map(before).sum();
    sum.saturating_add(plans[index].part.spec.nbytes()) <= INLINE_BYTES
}

/// Memory that the largest part takes while it is filled; parts come one after another.
fn working_bytes(plans: &[Arc<PartPlan>]) -> u64 {
    plans.iter().map(|plan| plan.working_bytes()).max().unwrap_or(0)
}

/// Bytes of all parts.
fn total(parts: &[PartSpec]) -> Result<u64, StoreError> {
    if parts.is_empty() {
        return Err(StoreError::Internal("a put without parts".into()));
    }
    let total = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.spec.nbytes()));
    total
        .filter(|total| i64::try_from(*total).is_ok())
        .ok_or_else(|| StoreError::OutOfSpace("parts of more bytes than any machine has".into()))
}

/// Counts a writer out.
struct Leave(Arc<Inner>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The level of a put: what was asked, if the home tier keeps it. What was not asked is the default, or the best the home tier keeps.
pub(crate) fn level(inner: &Inner, home: &Tier, asked: Option<Consistency>, default: Consistency) -> Result<Consistency, StoreError> {
    let keeps = home.keeps().min(inner.record_tier()?.keeps());
    let kept = |level: &Consistency| needs(*level) <= keeps;
    match asked {
        Some(level) if !kept(&level) => {
            Err(StoreError::Unsupported(format!("backend {} cannot keep {level}: what it acknowledges survives {keeps:?}", home.name)))
        }
        Some(level) => Ok(level),
        None => {
            let levels = [default, Consistency::Eventual, Consistency::Weak];
            Ok(levels.into_iter().find(kept).unwrap_or(Consistency::Weak))
        }
    }
}

impl Inner {
    /// The chain of a part of `model`, where that is known: its writer's, the namespace's for its home where that is for such elements, the
    /// configured one.
    pub fn chain(
        &self,
        namespace: &Namespace,
        home: &str,
        asked: Option<&str>,
        model: Option<&str>,
        dtype: DType,
    ) -> Result<Chain, StoreError> {
        match asked {
            Some(text) => self.calibrated(text, model),
            None => {
                let own = namespace.codec(home)?.filter(|chain| chain.suits(dtype));
                Ok(own.unwrap_or_else(|| self.options.codec.of(dtype).clone()))
            }
        }
    }
}
