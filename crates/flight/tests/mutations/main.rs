//! Hostile put streams: valid ones, changed, through all of `DoPut` into a store. Whatever comes: no panic, no memory beyond twice what was sent
//! and what the ledger counts, nothing half-written that shows, nothing left behind (docs/fuzzing.md).
//!
//! `SIRA_MUTATIONS=10000000 cargo test --release -p sira-flight --test mutations` runs as many; a failure names its number, and
//! `SIRA_MUTATION=NUMBER` runs that one alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod memory;
mod mutate;
mod seeds;
mod store;

use std::time::Instant;

use prost::Message;

use mutate::Dice;
use seeds::Seed;
use store::{Bench, Outcome};

/// Mutations where nobody says how many: a few seconds of an unoptimised build.
const MUTATIONS: u64 = 4000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn whole(seed: &Seed) -> Vec<u8> {
    seed.messages.iter().flat_map(|message| seeds::framed(&message.encode_to_vec())).collect()
}

#[test]
fn every_seed_is_stored() {
    let bench = Bench::new();
    for seed in seeds::all() {
        for size in [1, 100, 1 << 20] {
            // `if=absent` holds for the first one only.
            let outcome = bench.try_stream(&whole(&seed), size).unwrap_or_else(|fault| panic!("{}: {fault}", seed.name));
            assert!(outcome == Outcome::Stored || size > 1, "{}", seed.name);
        }
    }
}

/// One mutation: the same for the same number, whatever ran before it.
fn one(seeds: &[Seed], bench: &Bench, number: u64) -> Outcome {
    let mut dice = Dice::new(number);
    let stream = mutate::stream(seeds, &mut dice);
    let size = [1 << 20, 16 << 10, 100, 1 + dice.below(50)][dice.below(4)];
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.try_stream(&stream, size)));
    match done {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(fault)) => panic!("SIRA_MUTATION={number}: {fault}"),
        Err(_) => panic!("SIRA_MUTATION={number}: it panicked"),
    }
}

#[test]
fn mutated_streams_do_no_harm() {
    let (seeds, bench) = (seeds::all(), Bench::new());
    if let Some(number) = number("SIRA_MUTATION") {
        println!("{:?}", one(&seeds, &bench, number));
        return;
    }
    let (count, begun, mut stored) = (number("SIRA_MUTATIONS").unwrap_or(MUTATIONS), Instant::now(), 0);
    let from = number("SIRA_MUTATIONS_FROM").unwrap_or(0);
    for number in from..from + count {
        stored += u64::from(one(&seeds, &bench, number) == Outcome::Stored);
        if (number + 1).is_multiple_of(100_000) {
            println!(
                "{} mutations, {stored} stored, {:.0} a second",
                number + 1,
                (number + 1 - from) as f64 / begun.elapsed().as_secs_f64()
            );
        }
    }
    assert!(stored > 0 && stored < count, "{stored} of {count} were stored: the mutations are too weak or too strong");
}
