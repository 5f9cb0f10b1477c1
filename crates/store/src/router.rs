//! Placement: which backend becomes a tensor's home.

mod cheapest;
mod fastest;
mod group;
mod rule;
#[cfg(test)]
mod tests;

use sira_tensor::TensorSpec;
use sira_tensor::grid::CHUNK_BYTES;
use sira_tensor::kv::KvSpec;
use sira_wire::namespace::RouteStep;
use sira_wire::{Consistency, Key};
use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use cheapest::{Cheapest, Price};
pub use fastest::Fastest;
pub use group::{Balance, Group};
pub use rule::{Match, Rule};

use crate::fitness::Standing;
use crate::observe::Speeds;

/// One link of the chain: the first that answers wins, and the default comes last.
///
/// # Contract
/// - It sees the key, what was declared, the options and live statistics; never a payload.
/// - It answers with one of the view's candidates, or leaves the tensor to the next link. The view has only those that can keep what was
///   demanded, and none that is out while another is not: there is nothing to check again.
/// - It answers at once, from many threads at a time: every put waits for it. It asks nobody and waits for nothing.
/// - It is also asked to explain itself, for a tensor that is not put: what it says to [`Why`] is for a person, and is not made for a put.
///
/// ```
/// use sira_store::{Candidate, PlacementRequest, RoutingStrategy, View, Why};
///
/// /// Tensors of many axes go to the backend with the least to do.
/// struct Wide;
///
/// impl RoutingStrategy for Wide {
///     fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
///         let axes = request.spec.shape().len();
///         why.say(|| format!("it has {axes} axes"));
///         view.candidates.iter().min_by_key(|candidate| candidate.load).copied().filter(|_| axes > 4)
///     }
///
///     fn describe(&self) -> String {
///         "more than 4 axes: the least loaded".into()
///     }
/// }
/// // store.add_strategy(Box::new(Wide));
/// ```
pub trait RoutingStrategy: Send + Sync + 'static {
    /// Its choice, or `None` to leave it to the next strategy.
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>>;

    /// What it goes by, for a person who asks why a tensor lies where it lies.
    fn describe(&self) -> String;
}

/// What a strategy may know of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct PlacementRequest<'a> {
    /// The key.
    pub key: &'a Key,
    /// What was declared; of several parts, the first.
    pub spec: &'a TensorSpec,
    /// The kv spec that it follows, if it follows one.
    pub kv_spec: Option<&'a KvSpec>,
    /// Raw bytes, of all parts together.
    pub nbytes: u64,
    /// The level that is wanted.
    pub consistency: Consistency,
    /// Whether the writer asked for that level. If not, it is a default, of which a home may fall short.
    pub demanded: bool,
    /// Seconds that it is to live; `None` is for ever.
    pub ttl: Option<u64>,
}

impl PlacementRequest<'_> {
    /// Raw bytes of one value that its home gets: about those of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.nbytes.min(CHUNK_BYTES)
    }

    /// How many values its home gets, about.
    pub fn chunks(&self) -> u64 {
        self.nbytes.div_ceil(CHUNK_BYTES).max(1)
    }

    /// How much a backend is this key's own: of several, the one with the most. The same for ever, and when a backend comes or goes, only the
    /// keys move that were or will be its own (rendezvous hashing).
    fn affinity(&self, backend: &str) -> u64 {
        xxh3_64_with_seed(backend.as_bytes(), xxh3_64(self.key.as_str().as_bytes()))
    }

    /// The one of these that is the key's own.
    fn own<'a>(&self, candidates: impl IntoIterator<Item = Candidate<'a>>) -> Option<Candidate<'a>> {
        candidates.into_iter().max_by_key(|candidate| self.affinity(candidate.name))
    }
}

/// A backend, as far as placement looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it keeps the level that is wanted.
    pub keeps: bool,
    /// Whether it takes values as large as the tensor's chunks.
    pub takes: bool,
    /// Whether it is well.
    pub standing: Standing,
    /// What it has to do right now.
    pub load: Load,
    /// How fast it has been lately.
    pub speeds: &'a Speeds,
}

/// What a backend has to do right now. More bytes are more load, then more calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Raw bytes of the puts under way whose home it is.
    pub put_bytes: u64,
    /// Calls of any kind under way.
    pub calls: u64,
}

/// What a strategy chooses from, and what is known of it.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The backends that may be chosen, in the order of their names.
    pub candidates: Vec<Candidate<'a>>,
    /// The time.
    pub now: Instant,
    /// How often a tensor is read from its home, on average, by what was counted so far.
    pub reads_per_put: f64,
}

impl<'a> View<'a> {
    /// The candidate of this name.
    pub fn find(&self, name: &str) -> Option<Candidate<'a>> {
        self.candidates.iter().find(|candidate| candidate.name == name).copied()
    }

    /// The best of these backends: those that may be chosen; of them, where there are such, those that keep the level that is wanted; and of
    /// these those that are not degraded. In the order of `names`.
    pub fn best<'n>(&self, names: impl IntoIterator<Item = &'n str>, why: &mut Why) -> Vec<Candidate<'a>> {
        let mut best = Vec::new();
        for name in names {
            match self.find(name) {
                Some(candidate) => best.push(candidate),
                None => why.say(|| format!("{name} may not be chosen")),
            }
        }
        let keeps: fn(&Candidate<'_>) -> bool = |candidate| candidate.keeps;
        let fine: fn(&Candidate<'_>) -> bool = |candidate| candidate.standing != Standing::Degraded;
        for (good, what) in [(keeps, "does not keep the level that is wanted"), (fine, "is degraded")] {
            if best.iter().any(good) {
                best.iter().filter(|candidate| !good(candidate)).for_each(|candidate| why.say(|| format!("{} {what}", candidate.name)));
                best.retain(good);
            }
        }
        best
    }
}

/// Takes down why a strategy answers as it does, where somebody asks.
#[derive(Debug)]
pub struct Why(Option<Vec<String>>);

impl Why {
    /// `asked`: whether somebody wants to know.
    pub fn new(asked: bool) -> Why {
        Why(asked.then(Vec::new))
    }

    /// One reason, made only if it is wanted.
    pub fn say(&mut self, reason: impl FnOnce() -> String) {
        if let Some(reasons) = &mut self.0 {
            reasons.push(reason());
        }
    }

    /// All of them.
    pub fn text(self) -> String {
        self.0.unwrap_or_default().join("; ")
    }
}

/// The chain: the first strategy that answers wins, the default is last.
pub struct Router {
    strategies: Vec<Box<dyn RoutingStrategy>>,
    default: String,
}

impl Router {
    /// A router that sends everything to `default`.
    pub fn new(default: &str) -> Router {
        Router { strategies: Vec::new(), default: default.to_string() }
    }

    /// Appends a strategy before the default.
    pub fn add_strategy(&mut self, strategy: Box<dyn RoutingStrategy>) {
        self.strategies.push(strategy);
    }

    /// The backend for a tensor, out of all that there are; `None` where there is none at all.
    pub fn select_backend<'a>(&self, request: &PlacementRequest<'_>, all: &View<'a>) -> Option<Candidate<'a>> {
        self.decide(request, all, &mut None)
    }

    /// Every strategy that is asked about a tensor, and its answer; the last one decides.
    pub fn explain(&self, request: &PlacementRequest<'_>, all: &View<'_>) -> Vec<RouteStep> {
        let mut steps = Some(Vec::new());
        self.decide(request, all, &mut steps);
        steps.unwrap_or_default()
    }

    fn decide<'a>(&self, request: &PlacementRequest<'_>, all: &View<'a>, steps: &mut Option<Vec<RouteStep>>) -> Option<Candidate<'a>> {
        let asked = steps.is_some();
        let mut tell = |strategy: &dyn Fn() -> String, answer: Option<Candidate<'a>>, why: Why| {
            if let Some(steps) = steps.as_mut() {
                let backend = answer.map(|candidate| candidate.name.to_owned());
                steps.push(RouteStep { strategy: strategy(), backend, reason: why.text() });
            }
        };
        let view = allowed(request, all);
        for strategy in &self.strategies {
            let mut why = Why::new(asked);
            let answer = strategy.select_backend(request, &view, &mut why);
            // Somebody's own strategy may answer what was not in its view.
            let known = answer.and_then(|answer| view.find(answer.name));
            if let (Some(answer), None) = (answer, known) {
                why.say(|| format!("it answers {}, which may not be chosen", answer.name));
            }
            tell(&|| strategy.describe(), known, why);
            if known.is_some() {
                return known;
            }
        }
        let (mut why, default) = (Why::new(asked), view.find(&self.default));
        if default.is_none() {
            why.say(|| format!("{} may not be chosen", self.default));
        }
        tell(&|| "default".to_owned(), default, why);
        if default.is_some() {
            return default;
        }
        let mut why = Why::new(asked);
        let best = view.best(view.candidates.iter().map(|candidate| candidate.name), &mut why);
        let last = request.own(best);
        tell(&|| "any that may be chosen".to_owned(), last, why);
        last
    }
}

/// Those that may be chosen: that can take the tensor and keep what was demanded, and of them those that are not out. Where none can, or all are
/// out, the narrowest choice that leaves one: then the put itself says what is wrong.
fn allowed<'a>(request: &PlacementRequest<'_>, all: &View<'a>) -> View<'a> {
    let mut view = all.clone();
    let able = |candidate: &Candidate<'_>| candidate.takes && (candidate.keeps || !request.demanded);
    let well = |candidate: &Candidate<'_>| candidate.standing != Standing::Out;
    if view.candidates.iter().any(able) {
        view.candidates.retain(able);
    }
    if view.candidates.iter().any(well) {
        view.candidates.retain(well);
    }
    view
}
