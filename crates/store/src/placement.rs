//! What the router is asked, and what it is told of the backends: the home of a put, and why it is that one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sira_backend::Survives;
use sira_tensor::kv::KvSpec;
use sira_tensor::{DType, TensorSpec};
use sira_wire::namespace::{Mode, Policy, RouteAnswer, RouteCandidate, RouteOptions, RouteStep};
use sira_wire::{Code, Consistency, Key, WireError};
use tokio::time::Instant;

use crate::client::{Inner, Tier, needs};
use crate::fitness::Standing;
use crate::observe::{Direction, Speed};
use crate::router::{Candidate, Load, PlacementRequest, View};
use crate::write::{INLINE_BYTES, level};
use crate::{PartSpec, StorageClient, StoreError};

/// What is wanted of the home of a put.
pub(crate) struct Wanted<'a> {
    pub kv_spec: Option<&'a KvSpec>,
    pub nbytes: u64,
    pub consistency: Consistency,
    /// Whether the writer asked for that level.
    pub demanded: bool,
    pub ttl: Option<u64>,
}

/// Bytes of a put under way, as its home's load; counted until it ends.
pub(crate) struct UnderWay {
    tier: Arc<Tier>,
    bytes: u64,
}

impl UnderWay {
    pub fn begin(tier: &Arc<Tier>, bytes: u64) -> UnderWay {
        tier.meter.puts_under_way.fetch_add(bytes, Ordering::Relaxed);
        UnderWay { tier: tier.clone(), bytes }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.tier.meter.puts_under_way.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Tier {
    fn candidate(&self, request: &PlacementRequest<'_>) -> Candidate<'_> {
        let (capabilities, meter) = (self.backend.capabilities(), &self.meter);
        Candidate {
            name: &self.name,
            keeps: needs(request.consistency) <= capabilities.durable_survives,
            takes: request.chunk_bytes() <= capabilities.max_value,
            standing: meter.fitness.standing(),
            load: Load { put_bytes: meter.puts_under_way.load(Ordering::Relaxed), calls: meter.calls_under_way.load(Ordering::Relaxed) },
            speeds: &meter.speeds,
        }
    }
}

impl Inner {
    fn view<'a>(&self, tiers: &'a [Arc<Tier>], request: &PlacementRequest<'_>) -> View<'a> {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
        // Before the first put, once.
        let reads_per_put = (count(&self.counters.misses) + 1.0) / (count(&self.counters.puts) + 1.0);
        let candidates = tiers.iter().map(|tier| tier.candidate(request)).collect();
        View { candidates, now: Instant::now(), reads_per_put }
    }

    /// The home of a put of these parts.
    pub fn place(&self, key: &Key, parts: &[PartSpec], wanted: &Wanted<'_>) -> Result<Arc<Tier>, StoreError> {
        let first = parts.first().ok_or_else(|| StoreError::Internal("a put without parts".into()))?;
        let &Wanted { kv_spec, nbytes, consistency, demanded, ttl } = wanted;
        let request = PlacementRequest { key, spec: &first.spec, kv_spec, nbytes, consistency, demanded, ttl };
        let tiers = self.all_tiers();
        let view = self.view(&tiers, &request);
        let home = self.router.read().select_backend(&request, &view).map_or(self.options.default_backend.as_str(), |home| home.name);
        self.tier(home)
    }
}

impl StorageClient {
    /// Where a tensor of `nbytes` would go, and why.
    pub async fn route(&self, key: &Key, nbytes: u64, options: &RouteOptions) -> Result<RouteAnswer, StoreError> {
        let inner = &self.inner;
        let kv_spec = match &options.kv_spec {
            Some(hash) => Some(inner.kv_specs.get(inner, hash).await?),
            None => None,
        };
        // As for a put, what was never heard of included: the tiers may be all namespaces'.
        let namespace = inner.namespaces.of(key.namespace());
        let policy = namespace.policy();
        let cache = policy.mode == Mode::Cache;
        let default = policy.consistency.unwrap_or(if cache { Consistency::Weak } else { inner.options.consistency });
        let spec = spec_of(nbytes, options)?;
        let request = PlacementRequest {
            key,
            spec: &spec,
            kv_spec: kv_spec.as_deref(),
            nbytes,
            consistency: options.consistency.unwrap_or(default),
            demanded: options.consistency.is_some(),
            ttl: options.ttl.or(policy.ttl).or(inner.options.ttl),
        };
        let tiers = inner.all_tiers();
        let view = inner.view(&tiers, &request);
        let mut steps = inner.router.read().explain(&request, &view);
        let mut backend = steps.last().and_then(|step| step.backend.clone()).unwrap_or_default();
        let home = inner.tier(&backend)?;
        let home = inner.fitting(&namespace, home, nbytes)?;
        if home.name != backend {
            backend.clone_from(&home.name);
            steps.push(moved_on(&policy, &backend));
        }
        let codec = namespace.codec(&backend)?.filter(|chain| options.dtype.is_none_or(|dtype| chain.suits(dtype)));
        let configured = || match options.dtype {
            Some(dtype) => inner.options.codec.of(dtype).to_string(),
            None => inner.options.codec.to_string(),
        };
        Ok(RouteAnswer {
            steps,
            candidates: tiers.iter().map(|tier| described(tier, &request, view.now)).collect(),
            inline: nbytes <= INLINE_BYTES,
            memory: inner.hot(&namespace).takes(nbytes),
            codec: codec.map_or_else(configured, |chain| chain.to_string()),
            consistency: level(inner, &home, options.consistency, default)?,
            backend,
        })
    }
}

/// What a namespace makes of the chain's answer.
fn moved_on(policy: &Policy, backend: &str) -> RouteStep {
    let (strategy, reason) = match policy.copies.is_empty() {
        true => ("tiers of the namespace", "it can never find room in the tier above"),
        false => ("copies of the namespace", "the first copy is made where one is wanted"),
    };
    RouteStep { strategy: strategy.to_owned(), backend: Some(backend.to_owned()), reason: reason.to_owned() }
}

/// A tensor of so many bytes, of one axis unless more are named.
fn spec_of(nbytes: u64, options: &RouteOptions) -> Result<TensorSpec, StoreError> {
    let dtype = options.dtype.unwrap_or(DType::UInt8);
    let (bits, size) = (u128::from(nbytes) * 8, u128::from(dtype.bits()));
    let elements = u64::try_from(bits / size).ok().filter(|_| bits.is_multiple_of(size));
    let elements = elements.ok_or_else(|| WireError::new(Code::BadRequest, format!("{nbytes} bytes are no whole number of {dtype}")))?;
    let mut shape = vec![1; options.axes.len().saturating_sub(1)];
    shape.push(elements);
    Ok(TensorSpec::new(dtype, shape)?.with_axes(options.axes.clone())?)
}

/// A backend as the router sees it, for a person.
fn described(tier: &Tier, request: &PlacementRequest<'_>, now: Instant) -> RouteCandidate {
    let candidate = tier.candidate(request);
    let speed = |direction| candidate.speeds.of(direction, request.chunk_bytes(), now);
    let (put, get) = (speed(Direction::Put), speed(Direction::Get));
    let millis = |speed: Option<Speed>| speed.map(|speed| (speed.seconds * 1e6).round() / 1e3);
    let rate = |speed: Option<Speed>| speed.map(|speed| speed.bytes_per_second.round());
    let against = if !candidate.takes {
        Some(format!("its largest value has {} bytes", tier.backend.capabilities().max_value))
    } else if !candidate.keeps && request.demanded {
        Some(format!("it cannot keep {}", request.consistency))
    } else if candidate.standing == Standing::Out {
        Some("it is out".to_owned())
    } else {
        None
    };
    let keeps = match tier.keeps() {
        Survives::PowerLoss => Consistency::Strong,
        Survives::ProcessCrash => Consistency::Eventual,
        Survives::Nothing => Consistency::Weak,
    };
    RouteCandidate {
        backend: tier.name.clone(),
        state: tier.meter.fitness.describe(now),
        keeps,
        against,
        put_ms: millis(put),
        put_bytes_per_second: rate(put),
        get_ms: millis(get),
        get_bytes_per_second: rate(get),
        calls_under_way: candidate.load.calls,
        put_bytes_under_way: candidate.load.put_bytes,
    }
}
