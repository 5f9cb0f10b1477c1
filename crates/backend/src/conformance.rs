//! What every backend must do, as tests to run over it: the ones here, and a user's own.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use sira_backend::{StorageBackend, conformance::{self, Fixture}, memory::MemoryBackend};
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl Fixture for Memory {
//!     async fn fresh(&mut self) -> Arc<dyn StorageBackend> {
//!         Arc::new(MemoryBackend::new(1 << 30))
//!     }
//! }
//!
//! # async fn test() {
//! conformance::check(&mut Memory).await;
//! # }
//! ```
//!
//! Run it on a runtime of several threads: half of the suite is races.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test suite reports by panicking")]

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::{
    BackendError, BatchOperation, BatchResult, Capabilities, Durability, HealthStatus, Payload, PutMode, PutOptions, PutOutcome,
    StorageBackend, Survives, name, probe,
};

/// The seed of the random operations where `SIRA_CONFORMANCE_SEED` sets none; a failure repeats.
const SEED: u64 = 0x51_2A;

/// How many of them where `SIRA_CONFORMANCE_OPERATIONS` does not say.
const OPERATIONS: u64 = 2000;

/// A number from the environment.
fn setting(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// Where the suite gets backends from.
#[async_trait]
pub trait Fixture: Send {
    /// An empty backend in a new place, with room for 256 MiB.
    async fn fresh(&mut self) -> Arc<dyn StorageBackend>;

    /// The last place opened again, its backend dropped; `None` where there is no such thing.
    async fn reopen(&mut self) -> Option<Arc<dyn StorageBackend>> {
        None
    }

    /// An empty backend in a new place that takes exactly this many bytes of values; `None` where limits are not exact.
    async fn limited(&mut self, _bytes: u64) -> Option<Arc<dyn StorageBackend>> {
        None
    }
}

/// What the suite tries, in this order; each on a backend of its own.
pub const CASES: [(&str, &str); 13] = [
    ("values", "put, create, overwrite, get and delete of single values, empty ones and ones in pieces; counts that are right"),
    ("ranges", "parts of values to the byte; ranges that leave the value are refused"),
    ("64 MiB", "a value of 64 MiB whole and in part"),
    ("names", "every character and length that a name may have; names that differ in case only; bad names are refused"),
    ("pages", "listings by prefix, start and limit, in the order of bytes"),
    ("batches", "operations in their order, each with its answer"),
    ("probe", "16 creates of each of 20 names at once: the probe of the start"),
    ("creates", "32 creates of one name at once: one wins, and its value is there"),
    ("writes", "16 overwrites of one name at once, and a reader: never a mixture, never nothing"),
    ("deletes", "reads and listings while a value comes and goes"),
    ("random", "2,000 random operations (100,000 in `make soak`) against a model"),
    ("reopened", "opened again, everything is there"),
    ("limit", "a limit of bytes that is exact"),
];

/// What the suite found; where a backend does not keep the contract, there is none.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What the backend says of itself.
    pub capabilities: Capabilities,
    /// Whether the backend offers what each of [`CASES`] tries, and so passed it: what survives nothing is not opened again, and not all have
    /// exact limits.
    pub passed: [bool; CASES.len()],
}

/// Runs the whole suite; panics where the backend does not keep the contract.
///
/// `SIRA_CONFORMANCE_OPERATIONS` is how many random operations it compares with a model (2,000), `SIRA_CONFORMANCE_SEED` their seed.
pub async fn check(fixture: &mut dyn Fixture) -> Report {
    let backend = fixture.fresh().await;
    let capabilities = backend.capabilities();
    single_values(&*backend).await;
    // Some places have one owner at a time, or little room.
    drop(backend);
    ranges(&*fixture.fresh().await).await;
    large_values(&*fixture.fresh().await).await;
    odd_names(&*fixture.fresh().await).await;
    paging(&*fixture.fresh().await).await;
    batches(&*fixture.fresh().await).await;
    probe::probe_create_if_absent(&*fixture.fresh().await).await.unwrap();
    create_race(fixture.fresh().await).await;
    writer_race(fixture.fresh().await).await;
    delete_race(fixture.fresh().await).await;
    random_operations(&*fixture.fresh().await).await;
    let mut passed = [true; CASES.len()];
    let [.., reopened, limited] = &mut passed;
    *reopened = restart(fixture).await;
    *limited = match fixture.limited(1000).await {
        Some(backend) => {
            limit(&*backend).await;
            true
        }
        None => false,
    };
    Report { capabilities, passed }
}

const CREATE: PutOptions = PutOptions { mode: PutMode::Create, durability: Durability::Logged, expires_in: None };
const OVERWRITE: PutOptions = PutOptions { mode: PutMode::Overwrite, durability: Durability::Logged, expires_in: None };
const DURABLE: PutOptions = PutOptions { mode: PutMode::Overwrite, durability: Durability::Durable, expires_in: None };

fn bytes(bytes: &[u8]) -> Payload {
    Payload::from(bytes.to_vec())
}

async fn put(backend: &dyn StorageBackend, name: &str, value: &[u8]) {
    assert_eq!(backend.put(name, bytes(value), OVERWRITE).await.unwrap(), PutOutcome::Written, "{name}");
}

async fn get(backend: &dyn StorageBackend, name: &str) -> Option<Bytes> {
    backend.get(name, None).await.unwrap()
}

async fn single_values(backend: &dyn StorageBackend) {
    assert_eq!(get(backend, "a").await, None);
    assert_eq!(backend.get("a", Some(0..1)).await.unwrap(), None);
    assert!(!backend.exists("a").await.unwrap());
    assert!(!backend.delete("a").await.unwrap());

    assert_eq!(backend.put("a", bytes(b"first"), CREATE).await.unwrap(), PutOutcome::Written);
    assert_eq!(backend.put("a", bytes(b"second"), CREATE).await.unwrap(), PutOutcome::Exists);
    assert_eq!(get(backend, "a").await.unwrap(), "first");
    assert!(backend.exists("a").await.unwrap());
    assert_eq!(backend.put("a", bytes(b"third"), DURABLE).await.unwrap(), PutOutcome::Written);
    assert_eq!(get(backend, "a").await.unwrap(), "third");

    let pieces: Payload = ["several ", "", "pieces"].into_iter().map(Bytes::from).collect();
    backend.put("b/c", pieces, OVERWRITE).await.unwrap();
    assert_eq!(get(backend, "b/c").await.unwrap(), "several pieces");
    put(backend, "empty", b"").await;
    assert_eq!(get(backend, "empty").await.unwrap(), "");
    assert_eq!(backend.put("empty", bytes(b"x"), CREATE).await.unwrap(), PutOutcome::Exists, "an empty value is a value");

    let stats = backend.stats().await.unwrap();
    assert!(stats.values.is_none_or(|values| values == 3), "{stats:?}");
    assert!(stats.used_bytes.is_none_or(|used| used == 19), "{stats:?}");
    assert_eq!(backend.health_check().await.unwrap(), HealthStatus::Healthy);
    let capabilities = backend.capabilities();
    assert!(capabilities.logged_survives <= capabilities.durable_survives && capabilities.max_value >= 64 << 20);

    for name in ["a", "b/c", "empty"] {
        assert!(backend.delete(name).await.unwrap(), "{name}");
        assert!(!backend.delete(name).await.unwrap(), "{name}");
        assert_eq!(get(backend, name).await, None);
    }
    assert_eq!(backend.put("a", bytes(b"again"), CREATE).await.unwrap(), PutOutcome::Written);
    assert!(backend.delete("a").await.unwrap());
    let stats = backend.stats().await.unwrap();
    assert!(stats.values.unwrap_or(0) == 0 && stats.used_bytes.unwrap_or(0) == 0, "{stats:?}");
}

async fn ranges(backend: &dyn StorageBackend) {
    let value: Vec<u8> = (0..100_000_u32).map(|place| (place % 251) as u8).collect();
    put(backend, "v", &value).await;
    put(backend, "empty", b"").await;
    for Range { start, end } in [0..1, 0..100_000, 17..4711, 50_000..50_001, 99_999..100_000, 0..0, 5..5, 100_000..100_000] {
        let read = backend.get("v", Some(start as u64..end as u64)).await.unwrap().unwrap();
        assert_eq!(read, value[start..end], "{start}..{end}");
    }
    assert_eq!(backend.get("empty", Some(0..0)).await.unwrap().unwrap(), "");
    #[allow(clippy::reversed_empty_ranges, reason = "must be refused")]
    let outside = [99_999..100_001, 100_000..100_001, 200_000..200_001, 100_001..100_001, 7..3, 0..u64::MAX, u64::MAX - 1..u64::MAX];
    for range in outside {
        let result = backend.get("v", Some(range.clone())).await;
        let told =
            matches!(&result, Err(BackendError::BadRange { start, end, len: 100_000 }) if (start..end) == (&range.start..&range.end));
        assert!(told, "{range:?}: {result:?}");
    }
    assert!(matches!(backend.get("empty", Some(0..1)).await, Err(BackendError::BadRange { len: 0, .. })));
}

async fn large_values(backend: &dyn StorageBackend) {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut piece = vec![0_u8; 4 << 20];
    random.fill(&mut piece[..]);
    let piece = Bytes::from(piece);
    let value: Payload = std::iter::repeat_n(piece.clone(), 16).collect();
    backend.put("large", value.clone(), DURABLE).await.unwrap();
    let read = get(backend, "large").await.unwrap();
    assert!(read.len() == 64 << 20 && read.chunks(4 << 20).all(|chunk| chunk == piece));
    let middle = backend.get("large", Some((30 << 20) + 1..34 << 20)).await.unwrap().unwrap();
    assert!(middle[..(2 << 20) - 1] == piece[(2 << 20) + 1..] && middle[(2 << 20) - 1..] == piece[..2 << 20]);
    assert_eq!(backend.put("large", value, CREATE).await.unwrap(), PutOutcome::Exists);
    assert!(backend.delete("large").await.unwrap());
}

async fn odd_names(backend: &dyn StorageBackend) {
    let alphabet: String = (0..=127).filter(|byte| *byte != b'/' && name::allowed(*byte)).map(char::from).collect();
    let component = "c".repeat(name::MAX_COMPONENT);
    let mut longest = ["l".repeat(name::MAX_COMPONENT).as_str(); 8].join("/");
    longest.truncate(backend.capabilities().max_name);
    let names = ["...", ".a", "-", "--help", "=", "!", "@", ":", "_", "a.b", "x/.y/..z/!", "CON", &alphabet, &component, &longest];
    for name in names {
        put(backend, name, name.as_bytes()).await;
    }
    for name in names {
        assert_eq!(get(backend, name).await.unwrap(), name.as_bytes(), "{name}");
        assert!(backend.exists(name).await.unwrap(), "{name}");
    }
    // Names that differ in case only are different names.
    put(backend, "con", b"lower").await;
    assert_eq!(get(backend, "CON").await.unwrap(), "CON");
    let mut listed = backend.list_keys("", None, 100).await.unwrap();
    let mut expected: Vec<&str> = names.into_iter().chain(["con"]).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);

    listed.reverse();
    for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a b", "ä", "a\0", "a~", &"c".repeat(name::MAX_COMPONENT + 1)] {
        let refused = |error: BackendError| assert!(matches!(error, BackendError::BadName { .. }), "{bad:?}: {error}");
        refused(backend.put(bad, bytes(b"x"), OVERWRITE).await.unwrap_err());
        refused(backend.get(bad, None).await.unwrap_err());
        refused(backend.exists(bad).await.unwrap_err());
        refused(backend.delete(bad).await.unwrap_err());
    }
    for name in listed {
        assert!(backend.delete(&name).await.unwrap(), "{name}");
    }
    assert_eq!(backend.list_keys("", None, 100).await.unwrap(), Vec::<String>::new());
}

/// Names whose folders sort between other names, and no name a folder of another.
fn tree() -> Vec<String> {
    let mut names: Vec<String> =
        ["a", "a!", "a-b", "a.b", "a0", "aa", "b/0", "b/a/x", "b/a/y", "b/a!", "b/a.x", "b/b", "b!/c", "b0/c", "c/d/e/f/g"]
            .map(str::to_owned)
            .into();
    names.extend((0..60).map(|index| format!("many/{:02}/{}", index % 20, index)));
    names.sort_unstable();
    names
}

/// What a listing must answer.
fn page(names: &[String], prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let wanted = names.iter().filter(|name| name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after));
    wanted.take(limit).cloned().collect()
}

async fn paging(backend: &dyn StorageBackend) {
    assert_eq!(backend.list_keys("", None, 10).await.unwrap(), Vec::<String>::new());
    let names = tree();
    for name in names.iter().rev() {
        put(backend, name, b"x").await;
    }
    let prefixes =
        ["", "a", "b", "b/", "b/a", "b/a/", "b/a!", "b/a.", "c/d/e", "c/d/e/f/g", "c/d/e/f/g/", "many", "many/0", "many/1", "z", "!"];
    let none = ["/", "//", "a//", "../", "b/../a", "b/./", " ", "~", "ä", "A", "many/99"];
    let afters =
        ["", "!", "a", "a/", "a.", "b", "b/", "b/a", "b/a/", "b/a/x", "b/a0", "b0", "c/d", "many/05", "many/05/", "/x", "~", "ä", "zz"];
    // In turn: each with each other would be thousands of listings.
    let mut limits = [0, 1, 1000, 3].into_iter().cycle();
    for prefix in prefixes.into_iter().chain(none) {
        for (after, limit) in std::iter::once(None).chain(afters.map(Some)).zip(&mut limits) {
            let listed = backend.list_keys(prefix, after, limit).await.unwrap();
            assert_eq!(listed, page(&names, prefix, after, limit), "prefix {prefix:?} after {after:?} limit {limit}");
        }
    }
    for limit in [1, 7] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let listed = backend.list_keys("", after.as_deref(), limit).await.unwrap();
            let Some(last) = listed.last() else { break };
            after = Some(last.clone());
            all.extend(listed);
        }
        assert_eq!(all, names, "pages of {limit}");
    }
}

async fn batches(backend: &dyn StorageBackend) {
    let put = |name: &str, options| BatchOperation::Put { name: name.into(), value: bytes(name.as_bytes()), options };
    let get = |name: &str, range| BatchOperation::Get { name: name.into(), range };
    let delete = |name: &str| BatchOperation::Delete { name: name.into() };
    let operations = vec![
        put("a", CREATE),
        put("a", CREATE),
        get("a", None),
        get("a", Some(0..9)),
        put("..", OVERWRITE),
        delete("a"),
        delete("a"),
        get("a", None),
    ];
    let results = backend.batch(operations).await.unwrap();
    assert!(
        matches!(
            &results[..],
            [
                BatchResult::Put(Ok(PutOutcome::Written)),
                BatchResult::Put(Ok(PutOutcome::Exists)),
                BatchResult::Get(Ok(Some(read))),
                BatchResult::Get(Err(BackendError::BadRange { .. })),
                BatchResult::Put(Err(BackendError::BadName { .. })),
                BatchResult::Delete(Ok(true)),
                BatchResult::Delete(Ok(false)),
                BatchResult::Get(Ok(None)),
            ] if read == "a"
        ),
        "{results:?}"
    );
    assert!(backend.batch(Vec::new()).await.unwrap().is_empty());
}

async fn create_race(backend: Arc<dyn StorageBackend>) {
    const RACERS: usize = 32;
    for round in 0..10 {
        let name = format!("race/{round}/name");
        let (mut racers, barrier) = (JoinSet::new(), Arc::new(Barrier::new(RACERS)));
        for racer in 0..RACERS {
            let (backend, name, barrier) = (backend.clone(), name.clone(), barrier.clone());
            racers.spawn(async move {
                barrier.wait().await;
                (racer, backend.put(&name, bytes(&[racer as u8; 1000]), CREATE).await.unwrap())
            });
        }
        let outcomes = racers.join_all().await;
        let winners: Vec<usize> = outcomes.iter().filter(|(_, outcome)| *outcome == PutOutcome::Written).map(|(racer, _)| *racer).collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?} were told that they won");
        assert_eq!(get(&*backend, &name).await.unwrap(), [winners[0] as u8; 1000].as_slice(), "round {round}");
    }
}

/// Values of different lengths, each of one repeated byte: a mixture shows.
fn uniform(writer: u8) -> Payload {
    [Bytes::from(vec![writer; 30_000]), Bytes::from(vec![writer; usize::from(writer) * 1000])].into_iter().collect()
}

fn assert_whole(read: &Bytes) {
    let writer = read[0];
    assert!(read.len() == 30_000 + usize::from(writer) * 1000 && read.iter().all(|byte| *byte == writer), "a mixture was read");
}

async fn writer_race(backend: Arc<dyn StorageBackend>) {
    let (mut writers, done) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
    backend.put("same", uniform(0), OVERWRITE).await.unwrap();
    let reader = tokio::spawn({
        let (backend, done) = (backend.clone(), done.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                assert_whole(&get(&*backend, "same").await.expect("an overwritten value never vanishes"));
                // A backend in memory may never wait for anything.
                tokio::task::yield_now().await;
            }
        }
    });
    for writer in 0..16 {
        let backend = backend.clone();
        writers.spawn(async move {
            for _ in 0..10 {
                backend.put("same", uniform(writer), OVERWRITE).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    done.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    let last = get(&*backend, "same").await.unwrap();
    assert_whole(&last);
    let stats = backend.stats().await.unwrap();
    assert!(stats.used_bytes.is_none_or(|used| used == last.len() as u64), "{stats:?}");
    assert!(stats.values.is_none_or(|values| values == 1), "{stats:?}");
}

async fn delete_race(backend: Arc<dyn StorageBackend>) {
    let (mut readers, done) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
    for _ in 0..4 {
        let (backend, done) = (backend.clone(), done.clone());
        readers.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                if let Some(read) = get(&*backend, "deep/er/value").await {
                    assert_whole(&read);
                }
                match backend.get("deep/er/value", Some(29_999..30_001)).await {
                    Ok(Some(read)) => assert!(read.len() == 2 && read[0] == read[1]),
                    result => assert_eq!(result.unwrap(), None),
                }
                backend.list_keys("deep/", None, 10).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
    }
    for round in 1..=50 {
        backend.put("deep/er/value", uniform(round), OVERWRITE).await.unwrap();
        assert!(backend.delete("deep/er/value").await.unwrap());
    }
    done.store(true, Ordering::Relaxed);
    readers.join_all().await;
}

async fn random_operations(backend: &dyn StorageBackend) {
    let mut random = StdRng::seed_from_u64(setting("SIRA_CONFORMANCE_SEED", SEED));
    let (names, mut model) = (tree(), BTreeMap::<String, Bytes>::new());
    for step in 0..setting("SIRA_CONFORMANCE_OPERATIONS", OPERATIONS) {
        let name = names.choose(&mut random).unwrap().as_str();
        let there = model.get(name).cloned();
        match random.random_range(0..10) {
            0..=2 => {
                let mut value = vec![0; random.random_range(0..if step % 100 == 0 { 100_000 } else { 2000 })];
                random.fill(&mut value[..]);
                let create = random.random_bool(0.3);
                let exists = create && there.is_some();
                let outcome = backend.put(name, bytes(&value), if create { CREATE } else { OVERWRITE }).await.unwrap();
                assert_eq!(outcome, if exists { PutOutcome::Exists } else { PutOutcome::Written }, "step {step}");
                if !exists {
                    model.insert(name.to_owned(), value.into());
                }
            }
            3..=4 => {
                assert_eq!(backend.delete(name).await.unwrap(), model.remove(name).is_some(), "step {step}");
            }
            5..=6 => assert_eq!(get(backend, name).await, there, "step {step}"),
            7 => {
                let len = there.as_ref().map_or(10, Bytes::len);
                let start = random.random_range(0..=len);
                let end = random.random_range(start..=len);
                let read = backend.get(name, Some(start as u64..end as u64)).await.unwrap();
                assert_eq!(read, there.map(|value| value.slice(start..end)), "step {step}");
            }
            8 => assert_eq!(backend.exists(name).await.unwrap(), there.is_some(), "step {step}"),
            _ => {
                let prefix = &name[..random.random_range(0..=name.len())];
                let after = names.choose(&mut random).unwrap().as_str();
                let limit = random.random_range(0..20);
                let listed = backend.list_keys(prefix, Some(after), limit).await.unwrap();
                let behind = model.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).map(|(name, _)| name.clone());
                let expected: Vec<String> = behind.filter(|name| name.starts_with(prefix)).take(limit).collect();
                assert_eq!(listed, expected, "step {step}");
            }
        }
    }
    let stats = backend.stats().await.unwrap();
    assert!(stats.values.is_none_or(|values| values == model.len() as u64), "{stats:?}");
    let used: usize = model.values().map(Bytes::len).sum();
    assert!(stats.used_bytes.is_none_or(|counted| counted == used as u64), "{stats:?}, not {used}");
}

/// Whether it could be opened again.
async fn restart(fixture: &mut dyn Fixture) -> bool {
    let backend = fixture.fresh().await;
    let survives = backend.capabilities().logged_survives;
    put(&*backend, "logged/a", b"logged").await;
    put(&*backend, "logged/large", &vec![7; 100_000]).await;
    put(&*backend, "gone", b"gone").await;
    backend.put("durable", bytes(b"durable"), DURABLE).await.unwrap();
    assert!(backend.delete("gone").await.unwrap());
    let before = backend.stats().await.unwrap();
    drop(backend);
    let Some(backend) = fixture.reopen().await else {
        assert_eq!(survives, Survives::Nothing, "what survives must be opened again");
        return false;
    };
    assert_eq!(backend.list_keys("", None, 10).await.unwrap(), ["durable", "logged/a", "logged/large"]);
    assert_eq!(get(&*backend, "logged/a").await.unwrap(), "logged");
    assert_eq!(get(&*backend, "logged/large").await.unwrap(), vec![7; 100_000]);
    assert_eq!(get(&*backend, "durable").await.unwrap(), "durable");
    let after = backend.stats().await.unwrap();
    assert_eq!((before.values, before.used_bytes), (after.values, after.used_bytes));
    assert_eq!(backend.put("durable", bytes(b"x"), CREATE).await.unwrap(), PutOutcome::Exists);
    true
}

async fn limit(backend: &dyn StorageBackend) {
    let full = |result: Result<PutOutcome, BackendError>| assert!(matches!(result, Err(BackendError::OutOfSpace(_))), "{result:?}");
    put(backend, "a", &[1; 600]).await;
    put(backend, "b", &[2; 400]).await;
    full(backend.put("c", bytes(b"x"), OVERWRITE).await);
    full(backend.put("c", bytes(b"x"), CREATE).await);
    full(backend.put("a", bytes(&[3; 601]), OVERWRITE).await);
    assert_eq!(get(backend, "a").await.unwrap(), vec![1; 600], "a refused put leaves the old value");
    assert_eq!(backend.put("a", bytes(&[3; 2000]), CREATE).await.unwrap(), PutOutcome::Exists, "which needs no room");
    put(backend, "a", &[4; 600]).await;
    put(backend, "c", b"").await;
    put(backend, "a", &[5; 599]).await;
    put(backend, "c", b"x").await;
    let stats = backend.stats().await.unwrap();
    assert!(stats.available_bytes == Some(0) && stats.used_bytes == Some(1000), "{stats:?}");
    assert!(backend.delete("b").await.unwrap());
    put(backend, "d", &[6; 400]).await;
    full(backend.put("e", bytes(b"x"), OVERWRITE).await);
    assert_eq!(backend.list_keys("", None, 10).await.unwrap(), ["a", "c", "d"]);
}
