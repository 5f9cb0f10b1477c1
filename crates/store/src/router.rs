//! Placement: which backend becomes a tensor's home.

use globset::{Glob, GlobMatcher};
use sira_tensor::TensorSpec;
use sira_wire::namespace::RouteStep;
use sira_wire::{Consistency, Key};

use crate::StoreError;

/// What a strategy may look at: never the payload.
#[derive(Debug)]
pub struct PlacementRequest<'a> {
    /// The key.
    pub key: &'a Key,
    /// What was declared; of several parts, the first.
    pub spec: &'a TensorSpec,
    /// Raw bytes, of all parts together.
    pub nbytes: u64,
    /// The level asked for.
    pub consistency: Consistency,
}

/// One link of the chain.
pub trait RoutingStrategy: Send + Sync + 'static {
    /// The name of a registered backend, or `None` to leave it to the next strategy.
    fn select_backend(&self, request: &PlacementRequest<'_>) -> Option<String>;

    /// What it goes by, for a person who asks why a tensor lies where it lies.
    fn describe(&self) -> String;
}

/// Sends keys that match a glob, and tensors within a range of sizes, to one backend.
#[derive(Clone, Debug)]
pub struct Rule {
    glob: GlobMatcher,
    bytes: std::ops::RangeInclusive<u64>,
    backend: String,
}

impl Rule {
    /// A rule for keys (`namespace/rest`) that match `pattern`, with `bytes` raw bytes. `*` matches any text, `/` included, as in `cache:*`.
    pub fn new(pattern: &str, bytes: std::ops::RangeInclusive<u64>, backend: &str) -> Result<Rule, StoreError> {
        let glob = Glob::new(pattern).map_err(|e| StoreError::Config(format!("pattern {pattern:?}: {e}")))?;
        Ok(Rule { glob: glob.compile_matcher(), bytes, backend: backend.to_string() })
    }

    /// The backend it sends to.
    pub fn backend(&self) -> &str {
        &self.backend
    }
}

impl RoutingStrategy for Rule {
    fn select_backend(&self, request: &PlacementRequest<'_>) -> Option<String> {
        let fits = self.bytes.contains(&request.nbytes) && self.glob.is_match(request.key.as_str());
        fits.then(|| self.backend.clone())
    }

    fn describe(&self) -> String {
        let glob = self.glob.glob().glob();
        match (*self.bytes.start(), *self.bytes.end()) {
            (0, u64::MAX) => format!("keys {glob}"),
            (least, u64::MAX) => format!("keys {glob} of {least} bytes and more"),
            (0, most) => format!("keys {glob} of {most} bytes and less"),
            (least, most) => format!("keys {glob} of {least} to {most} bytes"),
        }
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

    /// The backend for a tensor.
    pub fn select_backend(&self, request: &PlacementRequest<'_>) -> String {
        self.strategies.iter().find_map(|s| s.select_backend(request)).unwrap_or_else(|| self.default.clone())
    }

    /// Every strategy that is asked about a tensor, and its answer; the last one decides.
    pub fn explain(&self, request: &PlacementRequest<'_>) -> Vec<RouteStep> {
        let mut steps = Vec::new();
        for strategy in &self.strategies {
            let backend = strategy.select_backend(request);
            let decided = backend.is_some();
            steps.push(RouteStep { strategy: strategy.describe(), backend });
            if decided {
                return steps;
            }
        }
        steps.push(RouteStep { strategy: "default".into(), backend: Some(self.default.clone()) });
        steps
    }
}

#[cfg(test)]
mod tests {
    use sira_tensor::DType;

    use super::*;

    #[test]
    fn the_first_rule_that_matches_wins() {
        let mut router = Router::new("rocksdb");
        router.add_strategy(Box::new(Rule::new("cache:*", 0..=u64::MAX, "memory").unwrap()));
        router.add_strategy(Box::new(Rule::new("*", 1000..=u64::MAX, "object").unwrap()));
        let place = |key: &str, n| {
            let (key, spec) = (key.parse().unwrap(), TensorSpec::new(DType::UInt8, vec![n]).unwrap());
            let request = PlacementRequest { key: &key, spec: &spec, nbytes: n, consistency: Consistency::Eventual };
            let chosen = router.select_backend(&request);
            assert_eq!(router.explain(&request).last().unwrap().backend.as_ref(), Some(&chosen));
            chosen
        };
        assert_eq!(place("cache:a/x/y", 2000), "memory");
        assert_eq!(place("data/x", 2000), "object");
        assert_eq!(place("data/cache:x", 10), "rocksdb");
        assert!(Rule::new("a[", 0..=1, "x").is_err());
    }
}
