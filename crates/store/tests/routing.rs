//! Placement through the store: a strategy of one's own, levels that limit the choice, and backends that fail and come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{World, bytes, key, payload, spec};
use sira_backend::memory::MemoryBackend;
use sira_store::{
    Balance, Candidate, Group, Match, PlacementRequest, RoutingStrategy, Rule, Seams, StorageClient, StoreError, View, Why, WriteOptions,
};
use sira_wire::namespace::{RouteAnswer, RouteOptions};
use sira_wire::{Code, Consistency};

/// More than lies in a record.
const N: u64 = 100_000;

async fn put(store: &StorageClient, name: &str, consistency: Option<Consistency>) -> Result<(), StoreError> {
    let options = WriteOptions { consistency, ..WriteOptions::default() };
    store.store(key(name), spec(N), &payload(N, 7), options).await.map(drop)
}

/// Where a tensor lies.
fn home(store: &StorageClient, name: &str) -> String {
    store.info(&key(name)).unwrap().backend
}

async fn route(store: &StorageClient, name: &str, consistency: Option<Consistency>) -> RouteAnswer {
    store.route(&key(name), N, &RouteOptions { consistency, ..RouteOptions::default() }).await.unwrap()
}

/// Keys of the namespace `pair` go to `large`, for which `small` stands in.
async fn pair(world: &World) -> StorageClient {
    let store = world.open(Seams::system(), |options| options.hot_limit = 0).await;
    let group = Group::new(["large", "small"], Balance::First);
    store.add_strategy(Box::new(Rule::asking(Match::keys("pair/*").unwrap(), group)));
    store
}

/// By the length of the key, and what has the least to do.
struct ByLength;

impl RoutingStrategy for ByLength {
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
        let length = request.key.as_str().len();
        why.say(|| format!("the key has {length} bytes"));
        match length {
            6 => view.find("large"),
            7 => view.candidates.iter().min_by_key(|candidate| candidate.load).copied(),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        "by the length of the key".into()
    }
}

#[tokio::test]
async fn a_strategy_of_ones_own_is_a_link_of_the_chain() {
    let world = World::new(64 << 20);
    let store = world.open(Seams::system(), |_| ()).await;
    store.add_strategy(Box::new(ByLength));
    for (name, place) in [("big/x", "large"), ("my/six", "large"), ("my/eight", "small")] {
        put(&store, name, None).await.unwrap();
        assert_eq!((home(&store, name).as_str(), route(&store, name, None).await.backend.as_str()), (place, place), "{name}");
    }
    let steps = route(&store, "my/eight", None).await.steps;
    let steps: Vec<_> = steps.iter().map(|step| (step.strategy.as_str(), step.reason.as_str())).collect();
    let own = ("by the length of the key", "the key has 8 bytes");
    assert_eq!(steps, [("keys big/*: large", "the key does not match"), own, ("default", "")]);
    // A put under way is load.
    let writer = store.begin(key("my/six"), spec(N), WriteOptions::default()).await.unwrap();
    let answer = route(&store, "my/seve", None).await;
    let load = |backend: &str| answer.candidates.iter().find(|candidate| candidate.backend == backend).unwrap().put_bytes_under_way;
    assert_eq!((load("large"), load("small"), answer.backend.as_str()), (N, 0, "small"));
    drop(writer);
    assert_eq!(route(&store, "my/seve", None).await.candidates[0].put_bytes_under_way, 0);
}

#[tokio::test]
async fn what_cannot_keep_the_level_is_never_chosen_where_it_is_demanded() {
    let world = World::new(64 << 20);
    let store = world.prepare(Seams::system(), |_| ());
    store.register_backend("fleeting", Arc::new(MemoryBackend::new(64 << 20)));
    store.add_strategy(Box::new(Rule::new("scratch/*", 0..=u64::MAX, "fleeting").unwrap()));
    let group = Group::new(["fleeting", "large"], Balance::First);
    store.add_strategy(Box::new(Rule::asking(Match::keys("both/*").unwrap(), group)));
    store.start().await.unwrap();
    for (name, level, place) in [
        // The rule's own backend falls short of the default; who wrote the rule knows.
        ("scratch/x", None, "fleeting"),
        ("scratch/x", Some(Consistency::Weak), "fleeting"),
        ("scratch/x", Some(Consistency::Eventual), "small"),
        ("scratch/x", Some(Consistency::Strong), "small"),
        // Of several, one that keeps the default is better than one that does not.
        ("both/x", None, "large"),
        ("both/x", Some(Consistency::Strong), "large"),
    ] {
        put(&store, name, level).await.unwrap();
        let answer = route(&store, name, level).await;
        assert_eq!((home(&store, name).as_str(), answer.backend.as_str()), (place, place), "{name} {level:?}");
    }
    let answer = route(&store, "scratch/x", Some(Consistency::Strong)).await;
    assert_eq!(answer.steps[1].reason, "fleeting may not be chosen");
    let fleeting = answer.candidates.iter().find(|candidate| candidate.backend == "fleeting").unwrap();
    assert_eq!((fleeting.keeps, fleeting.against.as_deref()), (Consistency::Weak, Some("it cannot keep strong")));
    assert_eq!(answer.consistency, Consistency::Strong);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_fails_is_replaced_and_is_back_when_it_was_well_for_a_while() {
    let world = World::new(64 << 20);
    let store = pair(&world).await;
    put(&store, "pair/before", None).await.unwrap();
    assert_eq!(home(&store, "pair/before"), "large");
    world.large.fail_after(0);
    for _ in 0..5 {
        assert_eq!(put(&store, "pair/x", None).await.unwrap_err().code(), Code::Backend);
    }
    put(&store, "pair/x", None).await.unwrap();
    assert_eq!(home(&store, "pair/x"), "small");
    let answer = route(&store, "pair/x", None).await;
    let large = answer.candidates.iter().find(|candidate| candidate.backend == "large").unwrap();
    assert!(large.state.starts_with("out: 5 writes in a row have failed") && large.state.contains("told to fail"), "{}", large.state);
    assert_eq!(answer.steps[1].reason, "large may not be chosen");
    // What lies there is still read.
    assert_eq!(store.retrieve(&key("pair/before")).await.unwrap().1.into_bytes(), bytes(N, 7));
    // Even a rule for it alone does not send it anything.
    put(&store, "big/x", None).await.unwrap();
    assert_eq!(home(&store, "big/x"), "small");

    world.large.fail_after(u32::MAX);
    tokio::time::sleep(Duration::from_secs(20)).await;
    put(&store, "pair/y", None).await.unwrap();
    assert_eq!(home(&store, "pair/y"), "small", "not yet");
    tokio::time::sleep(Duration::from_secs(30)).await;
    put(&store, "pair/z", None).await.unwrap();
    assert_eq!(home(&store, "pair/z"), "large");
    let stats = store.stats().await;
    assert!(!stats.backends["large"].out && stats.backends["large"].state == "fit", "{}", stats.backends["large"].state);
}

#[tokio::test(start_paused = true)]
async fn where_all_are_out_the_put_itself_says_what_is_wrong() {
    let world = World::new(64 << 20);
    let store = pair(&world).await;
    world.large.fail_after(0);
    world.small.fail_after(0);
    let mut reasons = Vec::new();
    for _ in 0..20 {
        reasons.push(put(&store, "pair/x", None).await.unwrap_err().to_string());
    }
    assert!(reasons.iter().all(|reason| reason.contains("told to fail")), "{reasons:?}");
    // Both work again long before they are trusted again.
    world.large.fail_after(u32::MAX);
    world.small.fail_after(u32::MAX);
    put(&store, "pair/x", None).await.unwrap();
    assert_eq!(home(&store, "pair/x"), "large");
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_be_written_goes_elsewhere_when_its_home_is_out() {
    let world = World::new(64 << 20);
    let store = pair(&world).await;
    world.large.fail_after(0);
    put(&store, "pair/x", Some(Consistency::Weak)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(home(&store, "pair/x"), "small");
    assert_eq!(store.retrieve(&key("pair/x")).await.unwrap().1.into_bytes(), bytes(N, 7));
    assert!(world.large.names("c/").await.is_empty(), "nothing of it is left behind");
}
