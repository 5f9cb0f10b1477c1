//! From `[storage.routing]` to the chain of strategies.

use sira_store::{Balance, Cheapest, Fastest, Group, Match, RoutingStrategy, Rule, StoreError};

use crate::config::{self, Choice, Choose, Routing};

/// The chain, without the default at its end.
pub(super) fn strategies(routing: &Routing) -> Result<Vec<Box<dyn RoutingStrategy>>, StoreError> {
    let mut chain: Vec<Box<dyn RoutingStrategy>> = Vec::new();
    for rule in &routing.rules {
        let (matches, choice) = (matches(rule)?, &rule.choice);
        chain.push(match choice.choose {
            Choose::Fastest => Box::new(Rule::asking(matches, fastest(routing, choice))),
            Choose::Cheapest => Box::new(Rule::asking(matches, cheapest(routing, choice))),
            choose => Box::new(Rule::asking(matches, group(choice, choose.balance()))),
        });
    }
    if let Some(choice) = &routing.last {
        chain.push(match choice.choose {
            Choose::Fastest => Box::new(fastest(routing, choice)),
            Choose::Cheapest => Box::new(cheapest(routing, choice)),
            choose => Box::new(group(choice, choose.balance())),
        });
    }
    Ok(chain)
}

fn matches(rule: &config::Rule) -> Result<Match, StoreError> {
    let matches = Match::keys(rule.pattern.as_ref().map_or("*", |glob| glob.glob()))?
        .bytes(rule.min_size.unwrap_or(0)..=rule.max_size.unwrap_or(u64::MAX))
        .dtypes(rule.dtypes.clone())
        .axes(rule.axes.clone());
    match &rule.kv_model {
        Some(model) => matches.kv_model(model.glob()),
        None => Ok(matches),
    }
}

fn fastest(routing: &Routing, choice: &Choice) -> Fastest {
    Fastest::new(choice.backends.iter(), routing.rebalance_interval)
}

fn cheapest(routing: &Routing, choice: &Choice) -> Cheapest {
    let prices = routing.costs.iter().filter(|(name, _)| choice.backends.contains(name));
    Cheapest::new(prices.map(|(name, price)| (name.clone(), *price)).collect(), routing.expected_life)
}

fn group(choice: &Choice, balance: Option<Balance>) -> Group {
    Group::new(choice.backends.iter(), balance.unwrap_or_default())
}
