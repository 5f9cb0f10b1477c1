//! The chain, beside a model of it that is as plain as can be.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sira_tensor::DType;

use super::*;

fn candidate<'a>(name: &'a str, speeds: &'a Speeds) -> Candidate<'a> {
    Candidate { name, keeps: true, takes: true, standing: Standing::Fit, load: Load::default(), speeds }
}

fn view<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>) -> View<'a> {
    View { candidates: candidates.into_iter().collect(), now: Instant::now(), reads_per_put: 1.0 }
}

/// A tensor of bytes.
struct Tensor {
    key: Key,
    spec: TensorSpec,
}

impl Tensor {
    fn new(key: &str, nbytes: u64) -> Tensor {
        Tensor { key: key.parse().unwrap(), spec: TensorSpec::new(DType::UInt8, vec![nbytes]).unwrap() }
    }

    fn request(&self) -> PlacementRequest<'_> {
        let (key, spec) = (&self.key, &self.spec);
        PlacementRequest { key, spec, kv_spec: None, nbytes: spec.nbytes(), consistency: Consistency::Eventual, demanded: false, ttl: None }
    }
}

fn chosen(router: &Router, request: &PlacementRequest<'_>, view: &View<'_>) -> String {
    let chosen = router.select_backend(request, view).unwrap().name.to_owned();
    let steps = router.explain(request, view);
    assert_eq!(steps.last().unwrap().backend.as_ref(), Some(&chosen), "what is explained is what is done");
    assert!(steps[..steps.len() - 1].iter().all(|step| step.backend.is_none()), "{steps:?}");
    chosen
}

#[test]
fn the_first_rule_that_matches_wins() {
    let mut router = Router::new("rocksdb");
    router.add_strategy(Box::new(Rule::new("cache:*", 0..=u64::MAX, "memory").unwrap()));
    router.add_strategy(Box::new(Rule::new("*", 1000..=u64::MAX, "object").unwrap()));
    let speeds = Speeds::default();
    let view = view(["memory", "object", "rocksdb"].map(|name| candidate(name, &speeds)));
    let place = |key: &str, n| chosen(&router, &Tensor::new(key, n).request(), &view);
    assert_eq!(place("cache:a/x/y", 2000), "memory");
    assert_eq!(place("data/x", 2000), "object");
    assert_eq!(place("data/cache:x", 10), "rocksdb");
    assert!(Rule::new("a[", 0..=1, "x").is_err());
    let steps = router.explain(&Tensor::new("data/x", 2000).request(), &view);
    let steps: Vec<_> = steps.iter().map(|step| (step.strategy.as_str(), step.backend.as_deref(), step.reason.as_str())).collect();
    let first = ("keys cache:*: memory", None, "the key does not match");
    assert_eq!(steps, [first, ("keys * of 1000 bytes and more: object", Some("object"), "")]);
}

#[test]
fn rules_match_by_all_that_is_declared() {
    let kv_spec = |model: &str| {
        let text = format!(r#"{{"model":"{model}","block_tokens":16,"parts":[{{"dtype":"BF16","axes":["token","dim"]}}]}}"#);
        KvSpec::from_json(text.as_bytes()).unwrap()
    };
    let (llama, qwen) = (kv_spec("meta-llama/Llama-3.1-8B"), kv_spec("Qwen/Qwen3-8B"));
    let spec = |dtype, axes: [&str; 2]| TensorSpec::new(dtype, vec![4, 8]).unwrap().with_axes(axes.map(String::from).to_vec()).unwrap();
    let tensor = spec(DType::BFloat16, ["token", "dim"]);
    let key: Key = "kv/a/b".parse().unwrap();
    let base = PlacementRequest {
        key: &key,
        spec: &tensor,
        kv_spec: Some(&llama),
        nbytes: tensor.nbytes(),
        consistency: Consistency::Eventual,
        demanded: false,
        ttl: None,
    };
    let matches = Match::keys("kv/*").unwrap().bytes(64..=64).dtypes([DType::Float16, DType::BFloat16]);
    let matches = matches.axes(["token".to_owned()]).kv_model("meta-llama/*").unwrap();
    let rule = Rule::asking(matches, Group::one("x"));
    assert_eq!(rule.describe(), "keys kv/* of 64 to 64 bytes, float16 or bfloat16, axes token, KV of meta-llama/*: x");
    let (float, other_axes, other_key) =
        (spec(DType::Float32, ["token", "dim"]), spec(DType::BFloat16, ["head", "dim"]), "ns/a".parse().unwrap());
    let speeds = Speeds::default();
    let view = view([candidate("x", &speeds)]);
    let mut asked = Why::new(true);
    assert_eq!(rule.select_backend(&base, &view, &mut asked).unwrap().name, "x");
    for (request, reason) in [
        (PlacementRequest { key: &other_key, ..base }, "the key does not match"),
        (PlacementRequest { nbytes: 65, ..base }, "the size is not in the range"),
        (PlacementRequest { spec: &float, ..base }, "the element type is another one"),
        (PlacementRequest { spec: &other_axes, ..base }, "not all axes are there"),
        (PlacementRequest { kv_spec: Some(&qwen), ..base }, "the model is another one"),
        (PlacementRequest { kv_spec: None, ..base }, "it follows no kv spec"),
    ] {
        let mut why = Why::new(true);
        assert!(rule.select_backend(&request, &view, &mut why).is_none());
        assert_eq!(why.text(), reason);
    }
}

#[test]
fn keys_have_their_own_backend_which_others_coming_and_going_do_not_change() {
    let speeds = Speeds::default();
    let group = Group::new(["a", "b", "c", "d"], Balance::Key);
    let place = |i: u32, names: &[&'static str]| {
        let (tensor, view) = (Tensor::new(&format!("ns/{i}"), 1), view(names.iter().map(|name| candidate(name, &speeds))));
        group.select_backend(&tensor.request(), &view, &mut Why::new(false)).unwrap().name
    };
    let mut shares = BTreeMap::<&str, u32>::new();
    for i in 0..4000 {
        let own = place(i, &["a", "b", "c", "d"]);
        *shares.entry(own).or_default() += 1;
        let without = place(i, &["a", "b", "d"]);
        assert!(own == "c" || own == without, "only the keys of c move");
    }
    assert!(shares.values().all(|&share| (850..1150).contains(&share)), "{shares:?}");
}

#[test]
fn the_least_loaded_gets_it_and_the_key_decides_between_equals() {
    let speeds = Speeds::default();
    let loaded = |name, put_bytes, calls| Candidate { load: Load { put_bytes, calls }, ..candidate(name, &speeds) };
    let group = Group::new(["a", "b", "c"], Balance::LeastLoaded);
    let one = |candidates: [Candidate<'_>; 3], key: &str| {
        let tensor = Tensor::new(key, 1);
        let view = view(candidates);
        group.select_backend(&tensor.request(), &view, &mut Why::new(false)).unwrap().name.to_owned()
    };
    assert_eq!(one([loaded("a", 5, 0), loaded("b", 4, 9), loaded("c", 6, 0)], "ns/x"), "b");
    assert_eq!(one([loaded("a", 4, 3), loaded("b", 4, 9), loaded("c", 6, 0)], "ns/x"), "a");
    let equal = || [loaded("a", 4, 3), loaded("b", 4, 3), loaded("c", 6, 0)];
    let places: Vec<String> = (0..100).map(|i| one(equal(), &format!("ns/{i}"))).collect();
    assert!(places.iter().any(|place| place == "a") && places.iter().any(|place| place == "b") && !places.contains(&"c".to_owned()));
    assert_eq!(one(equal(), "ns/7"), one(equal(), "ns/7"));
}

#[test]
fn the_cheapest_depends_on_size_and_life_and_reads() {
    // Prices of the kind that object stores and disks have.
    let bucket = Price { puts: 5.0, gets: 0.4, gib_month: 0.023 };
    let disk = Price { puts: 0.0, gets: 0.0, gib_month: 0.10 };
    let cheapest = Cheapest::new([("bucket".to_owned(), bucket), ("disk".to_owned(), disk)].into(), Duration::from_secs(30 * 86_400));
    let speeds = Speeds::default();
    let place = |nbytes: u64, ttl: Option<u64>, reads_per_put: f64| {
        let view = View { reads_per_put, ..view([candidate("bucket", &speeds), candidate("disk", &speeds)]) };
        let tensor = Tensor::new("ns/x", nbytes);
        let mut why = Why::new(true);
        let name = cheapest.select_backend(&PlacementRequest { ttl, ..tensor.request() }, &view, &mut why).unwrap().name.to_owned();
        (name, why.text())
    };
    // 1 GiB for a month: 512 puts for .00256, 512 gets for .0002, .023 to keep it, or .10 on the disk.
    let (name, why) = place(1 << 30, None, 1.0);
    assert_eq!(name, "bucket");
    assert_eq!(why, "bucket: 2.576e-2; disk: 1.000e-1; for 512 puts, 1.00 reads of each and 2592000 s");
    assert_eq!(place(1 << 30, Some(3600), 1.0).0, "disk", "an hour is not worth the puts");
    assert_eq!(place(1000, None, 1.0).0, "disk", "nor is a small tensor");
    assert_eq!(place(1 << 30, None, 1000.0).0, "disk", "nor one that is read all the time");
}

/// Takes what it is told, allowed or not.
struct Stubborn(Candidate<'static>);

impl RoutingStrategy for Stubborn {
    fn select_backend<'a>(&self, _: &PlacementRequest<'_>, _: &View<'a>, _: &mut Why) -> Option<Candidate<'a>> {
        Some(self.0)
    }

    fn describe(&self) -> String {
        "stubborn".into()
    }
}

#[test]
fn what_may_not_be_chosen_is_not_whoever_answers_it() {
    static SPEEDS: std::sync::LazyLock<Speeds> = std::sync::LazyLock::new(Speeds::default);
    let out = Candidate { standing: Standing::Out, ..candidate("a", &SPEEDS) };
    let weak = Candidate { keeps: false, ..candidate("b", &SPEEDS) };
    let mut router = Router::new("c");
    router.add_strategy(Box::new(Stubborn(out)));
    router.add_strategy(Box::new(Stubborn(weak)));
    let (tensor, view) = (Tensor::new("ns/x", 1), view([out, weak, candidate("c", &SPEEDS)]));
    let request = PlacementRequest { demanded: true, ..tensor.request() };
    assert_eq!(chosen(&router, &request, &view), "c");
    assert_eq!(router.explain(&request, &view)[0].reason, "it answers a, which may not be chosen");
    // Not demanded, a home may fall short.
    assert_eq!(chosen(&router, &tensor.request(), &view), "b");
}

/// A link of a chain that the model understands, too.
#[derive(Clone, Debug)]
struct Link {
    /// Keys with this digit at their end, if given.
    digit: Option<u8>,
    least: u64,
    names: Vec<&'static str>,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

type Facts = (bool, bool, Standing);

/// What the chain should answer: said again without any of its code.
fn model(chain: &[Link], facts: &BTreeMap<&'static str, Facts>, digit: u8, nbytes: u64, demanded: bool) -> Option<&'static str> {
    let able = |name: &str| facts[name].1 && (facts[name].0 || !demanded);
    let any_able = NAMES.iter().any(|name| able(name));
    let possible = |name: &str| able(name) || !any_able;
    let any_well = NAMES.iter().any(|name| possible(name) && facts[name].2 != Standing::Out);
    let may = |name: &str| possible(name) && (facts[name].2 != Standing::Out || !any_well);
    for link in chain {
        if link.digit.is_some_and(|wanted| wanted != digit) || nbytes < link.least {
            continue;
        }
        let members = || link.names.iter().copied().filter(|name| may(name));
        let good = |name: &&str| facts[*name].0;
        let best = |name: &&str| facts[*name].2 != Standing::Degraded;
        let first = members().filter(good).find(|name| best(name)).or_else(|| members().find(|name| good(name)));
        if let Some(name) = first.or_else(|| members().find(|name| best(name))).or_else(|| members().next()) {
            return Some(name);
        }
    }
    may("d").then_some("d")
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![3 => Just(Standing::Fit), 1 => Just(Standing::Degraded), 1 => Just(Standing::Out)]
}

fn link() -> impl Strategy<Value = Link> {
    let names = proptest::sample::subsequence(NAMES.to_vec(), 1..=4).prop_shuffle();
    (proptest::option::of(0u8..3), prop_oneof![Just(0u64), Just(1000)], names).prop_map(|(digit, least, names)| Link {
        digit,
        least,
        names,
    })
}

proptest! {
    #[test]
    fn the_chain_answers_as_the_model(
        chain in proptest::collection::vec(link(), 0..5),
        facts in proptest::array::uniform4((any::<bool>(), proptest::bool::weighted(0.9), standing())),
        digit in 0u8..3,
        nbytes in prop_oneof![Just(10u64), Just(5000)],
        demanded in any::<bool>(),
        balance in prop_oneof![Just(Balance::First), Just(Balance::Key), Just(Balance::LeastLoaded)],
    ) {
        let facts: BTreeMap<&'static str, Facts> = NAMES.into_iter().zip(facts).collect();
        let speeds = Speeds::default();
        let view = view(facts.iter().map(|(name, (keeps, takes, standing))| {
            Candidate { keeps: *keeps, takes: *takes, standing: *standing, ..candidate(name, &speeds) }
        }));
        let router = |balance| {
            let mut router = Router::new("d");
            for link in &chain {
                let keys = link.digit.map_or_else(|| "*".to_owned(), |digit| format!("*{digit}"));
                let matches = Match::keys(&keys).unwrap().bytes(link.least..=u64::MAX);
                router.add_strategy(Box::new(Rule::asking(matches, Group::new(link.names.clone(), balance))));
            }
            router
        };
        let tensor = Tensor::new(&format!("ns/key{digit}"), nbytes);
        let request = PlacementRequest { demanded, ..tensor.request() };
        // In order, the answer is the model's, unless that has none and any that may be chosen does.
        let found = chosen(&router(Balance::First), &request, &view);
        if let Some(expected) = model(&chain, &facts, digit, nbytes, demanded) {
            prop_assert_eq!(&found, expected);
        }
        // However it is balanced, never one that is out or cannot while another is well and can.
        let found = chosen(&router(balance), &request, &view);
        let (keeps, takes, standing) = facts[found.as_str()];
        let able = |(keeps, takes, _): &Facts| *takes && (*keeps || !demanded);
        if facts.values().any(|facts| able(facts) && facts.2 != Standing::Out) {
            prop_assert!(able(&(keeps, takes, standing)) && standing != Standing::Out, "{} of {:?}", found, facts);
        } else if facts.values().any(able) {
            prop_assert!(able(&(keeps, takes, standing)));
        }
    }
}
