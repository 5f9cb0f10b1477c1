//! Rules: which tensors another strategy is asked about.

use std::ops::RangeInclusive;

use globset::{Glob, GlobMatcher};
use sira_tensor::DType;

use super::{Candidate, Group, PlacementRequest, RoutingStrategy, View, Why};
use crate::StoreError;

/// What a tensor must be: everything that is said here.
#[derive(Clone, Debug)]
pub struct Match {
    keys: GlobMatcher,
    bytes: RangeInclusive<u64>,
    dtypes: Vec<DType>,
    axes: Vec<String>,
    kv_model: Option<GlobMatcher>,
}

fn glob(pattern: &str) -> Result<GlobMatcher, StoreError> {
    let glob = Glob::new(pattern).map_err(|e| StoreError::Config(format!("pattern {pattern:?}: {e}")))?;
    Ok(glob.compile_matcher())
}

impl Match {
    /// Tensors whose whole key (`namespace/rest`) matches a glob, in which `*` matches any text, `/` included, as in `cache:*`.
    pub fn keys(pattern: &str) -> Result<Match, StoreError> {
        Ok(Match { keys: glob(pattern)?, bytes: 0..=u64::MAX, dtypes: Vec::new(), axes: Vec::new(), kv_model: None })
    }

    /// And that have so many raw bytes, all parts together.
    pub fn bytes(self, bytes: RangeInclusive<u64>) -> Match {
        Match { bytes, ..self }
    }

    /// And whose elements are of one of these types; of several parts, those of the first. None: of any.
    pub fn dtypes(self, dtypes: impl Into<Vec<DType>>) -> Match {
        Match { dtypes: dtypes.into(), ..self }
    }

    /// And that have all these axes, by name.
    pub fn axes(self, axes: impl Into<Vec<String>>) -> Match {
        Match { axes: axes.into(), ..self }
    }

    /// And that follow a kv spec whose model matches a glob; `*` is any kv spec.
    pub fn kv_model(self, pattern: &str) -> Result<Match, StoreError> {
        Ok(Match { kv_model: Some(glob(pattern)?), ..self })
    }

    /// What does not match, if something does not.
    fn misses(&self, request: &PlacementRequest<'_>) -> Option<&'static str> {
        let spec = request.spec;
        if !self.keys.is_match(request.key.as_str()) {
            Some("the key does not match")
        } else if !self.bytes.contains(&request.nbytes) {
            Some("the size is not in the range")
        } else if !self.dtypes.is_empty() && !self.dtypes.contains(&spec.dtype()) {
            Some("the element type is another one")
        } else if !self.axes.iter().all(|axis| spec.axes().contains(axis)) {
            Some("not all axes are there")
        } else {
            let model = request.kv_spec.map(|kv_spec| kv_spec.model.as_str());
            match (&self.kv_model, model) {
                (Some(_), None) => Some("it follows no kv spec"),
                (Some(wanted), Some(model)) if !wanted.is_match(model) => Some("the model is another one"),
                _ => None,
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("keys {}", self.keys.glob().glob());
        match (*self.bytes.start(), *self.bytes.end()) {
            (0, u64::MAX) => {}
            (least, u64::MAX) => text.push_str(&format!(" of {least} bytes and more")),
            (0, most) => text.push_str(&format!(" of {most} bytes and less")),
            (least, most) => text.push_str(&format!(" of {least} to {most} bytes")),
        }
        if !self.dtypes.is_empty() {
            let names: Vec<&str> = self.dtypes.iter().map(|dtype| dtype.name()).collect();
            text.push_str(&format!(", {}", names.join(" or ")));
        }
        if !self.axes.is_empty() {
            text.push_str(&format!(", axes {}", self.axes.join(" and ")));
        }
        if let Some(model) = &self.kv_model {
            text.push_str(&format!(", KV of {}", model.glob().glob()));
        }
        text
    }
}

/// Asks another strategy about the tensors that match.
pub struct Rule {
    matches: Match,
    then: Box<dyn RoutingStrategy>,
}

impl Rule {
    /// A rule for keys (`namespace/rest`) that match `pattern`, with `bytes` raw bytes: they go to `backend`. `*` matches any text, `/` included,
    /// as in `cache:*`.
    pub fn new(pattern: &str, bytes: RangeInclusive<u64>, backend: &str) -> Result<Rule, StoreError> {
        Ok(Rule::asking(Match::keys(pattern)?.bytes(bytes), Group::one(backend)))
    }

    /// `then` is asked about what `matches`; what it leaves goes to the next link of the chain.
    pub fn asking(matches: Match, then: impl RoutingStrategy) -> Rule {
        Rule { matches, then: Box::new(then) }
    }
}

impl RoutingStrategy for Rule {
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
        match self.matches.misses(request) {
            Some(reason) => {
                why.say(|| reason.to_owned());
                None
            }
            None => self.then.select_backend(request, view, why),
        }
    }

    fn describe(&self) -> String {
        format!("{}: {}", self.matches.describe(), self.then.describe())
    }
}
