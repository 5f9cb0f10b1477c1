//! The backend that costs the least for a tensor of this size and life.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Candidate, PlacementRequest, RoutingStrategy, View, Why};

/// A month, as prices mean it.
const MONTH: f64 = 30.0 * 86_400.0;

/// What a backend costs, in any currency, the same for all. Numbers of 0 and more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// A million puts.
    pub puts: f64,
    /// A million gets.
    pub gets: f64,
    /// A GiB for a month of 30 days.
    pub gib_month: f64,
}

impl Price {
    /// Of a tensor: its chunks are put once, read so often, and kept so long.
    fn of(&self, request: &PlacementRequest<'_>, reads: f64, life: Duration) -> f64 {
        let (chunks, gib) = (request.chunks() as f64, request.nbytes as f64 / (1u64 << 30) as f64);
        let calls = chunks * (self.puts + reads * self.gets) / 1e6;
        calls + gib * self.gib_month * life.as_secs_f64() / MONTH
    }
}

/// The one of several that costs the least over a tensor's life: to put it, to read it as often as tensors were read from their homes so far, and
/// to keep it until it expires.
#[derive(Clone, Debug)]
pub struct Cheapest {
    prices: BTreeMap<String, Price>,
    expected_life: Duration,
}

impl Cheapest {
    /// The cheapest of these backends; `expected_life` is that of tensors that do not expire.
    pub fn new(prices: BTreeMap<String, Price>, expected_life: Duration) -> Cheapest {
        Cheapest { prices, expected_life }
    }
}

impl RoutingStrategy for Cheapest {
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
        let life = request.ttl.map_or(self.expected_life, Duration::from_secs);
        let mut costs = Vec::new();
        for candidate in view.best(self.prices.keys().map(String::as_str), why) {
            let Some(price) = self.prices.get(candidate.name) else { continue };
            let cost = price.of(request, view.reads_per_put, life);
            why.say(|| format!("{}: {cost:.3e}", candidate.name));
            costs.push((candidate, cost));
        }
        why.say(|| format!("for {} puts, {:.2} reads of each and {} s", request.chunks(), view.reads_per_put, life.as_secs()));
        let least = costs.iter().map(|(_, cost)| *cost).min_by(f64::total_cmp)?;
        request.own(costs.into_iter().filter(|(_, cost)| *cost <= least).map(|(candidate, _)| candidate))
    }

    fn describe(&self) -> String {
        format!("the cheapest of {}", self.prices.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
    }
}
