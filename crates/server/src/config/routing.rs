//! `[storage.routing]`: which backend becomes a tensor's home.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use globset::{Glob, GlobBuilder};
use sira_store::{Balance, Price};
use sira_tensor::DType;

use super::reader::{Located, Section, quoted};
use super::units::{exact_duration, exact_size};

/// Settings of what a backend costs.
pub(super) const COSTS: [&str; 3] = ["puts", "gets", "gib_month"];
/// A price that somebody may mean; beyond it is a typing error.
const DEAREST: f64 = 1e9;
/// Backends of one rule, at most.
const MOST_BACKENDS: usize = 64;

/// `[storage.routing]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// `rules`: the first that matches, and has a backend that may be chosen, wins.
    pub rules: Vec<Rule>,
    /// `strategy` and `backends`: what is asked about tensors that no rule takes, before the default backend. Default: nothing, `rules`.
    pub last: Option<Choice>,
    /// `rebalance_interval`: how long what is chosen as fastest stays so. Default: 5 minutes.
    pub rebalance_interval: Duration,
    /// `health_check_interval`: how often backends are asked whether they are well. Default: 10 s.
    pub health_check_interval: Duration,
    /// `recovery_delay`: how long one that was not must have been well again before it gets new tensors. Default: 30 s.
    pub recovery_delay: Duration,
    /// `expected_life`: of tensors that do not expire, for what they cost. Default: 30 days.
    pub expected_life: Duration,
    /// `[storage.routing.costs.NAME]`: what backends cost.
    pub costs: BTreeMap<String, Price>,
}

/// A routing rule: tensors that match everything it says go to one of its backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `pattern`: a glob over `namespace/key` in which `*` matches `/` too; `None` matches every key.
    pub pattern: Option<Glob>,
    /// `min_size`: tensors of this many bytes and more.
    pub min_size: Option<u64>,
    /// `max_size`: tensors of this many bytes and less.
    pub max_size: Option<u64>,
    /// `dtypes`: tensors of one of these element types; empty is any.
    pub dtypes: Vec<DType>,
    /// `axes`: tensors that have all of these.
    pub axes: Vec<String>,
    /// `kv_model`: a glob over the model of the kv spec that a tensor must follow.
    pub kv_model: Option<Glob>,
    /// `backend`, or `backends` and `choose`.
    pub choice: Choice,
}

/// One of several backends; of one, that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Their names; never empty.
    pub backends: Vec<String>,
    /// How one is chosen.
    pub choose: Choose,
}

/// How one of several backends is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choose {
    /// `first`: those behind it stand in for it.
    #[default]
    First,
    /// `key`: each key has its own.
    Key,
    /// `least_loaded`.
    LeastLoaded,
    /// `fastest`: by what was measured lately.
    Fastest,
    /// `cheapest`: by `costs`.
    Cheapest,
}

impl Choose {
    const WORDS: [(&'static str, Choose); 5] = [
        ("first", Choose::First),
        ("key", Choose::Key),
        ("least_loaded", Choose::LeastLoaded),
        ("fastest", Choose::Fastest),
        ("cheapest", Choose::Cheapest),
    ];

    fn word(self) -> &'static str {
        Choose::WORDS.into_iter().find(|(_, choose)| *choose == self).map_or("first", |(word, _)| word)
    }

    /// How the store balances, where that is all there is to it.
    pub fn balance(self) -> Option<Balance> {
        match self {
            Choose::First => Some(Balance::First),
            Choose::Key => Some(Balance::Key),
            Choose::LeastLoaded => Some(Balance::LeastLoaded),
            Choose::Fastest | Choose::Cheapest => None,
        }
    }
}

/// What comes after the rules, by the word for `strategy`; `intelligent` is the same as `performance`.
const STRATEGIES: [(&str, Option<Choose>); 5] = [
    ("rules", None),
    ("performance", Some(Choose::Fastest)),
    ("intelligent", Some(Choose::Fastest)),
    ("cost", Some(Choose::Cheapest)),
    ("load_balanced", Some(Choose::LeastLoaded)),
];

/// Says what is wrong with the name of a backend, if something is: place, name, and the setting that it stands in.
pub(super) type Check<'a> = &'a dyn Fn(&Section<'_>, &Located<String>, &str);

/// Reads the section; `lasting` are the backends whose values outlive the process, `all` every one.
pub(super) fn read(mut section: Section<'_>, check: Check<'_>, lasting: &[&str], all: &[&str]) -> Routing {
    let strategy = section.choice("strategy", &STRATEGIES);
    let named = section.words("backends");
    let mut duration = |key, default| section.duration(key).map_or(Duration::from_secs(default), |duration| duration.value);
    let rebalance_interval = duration("rebalance_interval", 300);
    let health_check_interval = duration("health_check_interval", 10);
    let recovery_delay = duration("recovery_delay", 30);
    let expected_life = duration("expected_life", 30 * 86_400);
    section.refuse("default", "what no rule matches goes to `storage.default_backend`");
    let costs = read_costs(section.section("costs"), check);
    let rules = section.list("rules").unwrap_or_default().into_iter().filter_map(|rule| read_rule(rule, check, &costs)).collect();
    let choose = strategy.as_ref().and_then(|strategy| strategy.value);
    let last = match (choose, named) {
        (None, None) => None,
        (None, Some(names)) => {
            let message = "`storage.routing.backends` needs a `strategy` that chooses among them: `performance`, `cost` or `load_balanced`";
            section.problem(&names.origin, message);
            None
        }
        (Some(choose), named) => {
            let origin = strategy.map_or_else(|| section.origin.clone(), |strategy| strategy.origin);
            let default = || if lasting.is_empty() { all } else { lasting };
            let names = named.unwrap_or_else(|| Located { origin, value: default().iter().copied().map(str::to_owned).collect() });
            check_choice(&section, &names, choose, &costs, check, "storage.routing.backends");
            Some(Choice { backends: names.value, choose })
        }
    };
    section.finish();
    Routing { rules, last, rebalance_interval, health_check_interval, recovery_delay, expected_life, costs }
}

fn read_costs(mut names: Section<'_>, check: Check<'_>) -> BTreeMap<String, Price> {
    let mut costs = BTreeMap::new();
    for (name, mut section) in names.sections() {
        check(&section, &Located { origin: section.origin.clone(), value: name.clone() }, &section.path.clone());
        let mut price = |key| section.fraction(key, 0.0..=DEAREST).map_or(0.0, |price| price.value);
        let price = Price { puts: price("puts"), gets: price("gets"), gib_month: price("gib_month") };
        section.finish();
        costs.insert(name, price);
    }
    names.finish();
    costs
}

/// Holds a choice against the backends and costs that there are.
fn check_choice(
    section: &Section<'_>,
    names: &Located<Vec<String>>,
    choose: Choose,
    costs: &BTreeMap<String, Price>,
    check: Check<'_>,
    key: &str,
) {
    for (i, name) in names.value.iter().enumerate() {
        check(section, &Located { origin: names.origin.clone(), value: name.clone() }, key);
        if names.value[..i].contains(name) {
            section.problem(&names.origin, format!("`{key}` names `{name}` twice"));
        }
    }
    let count = names.value.len();
    if count == 0 || count > MOST_BACKENDS {
        section.problem(&names.origin, format!("`{key}` names {count} backends; 1 to {MOST_BACKENDS} are wanted"));
    }
    let unknown: Vec<&str> = names.value.iter().map(String::as_str).filter(|name| !costs.contains_key(*name)).collect();
    if choose == Choose::Cheapest && !unknown.is_empty() {
        let message = format!("`{key}`: what do {} cost? Each needs a [storage.routing.costs.NAME]", quoted(&unknown));
        section.problem(&names.origin, message);
    }
}

/// Whether there is one, and what it is if it is one.
fn read_glob(section: &mut Section<'_>, key: &'static str) -> (bool, Option<Glob>) {
    let Some(text) = section.text(key) else { return (false, None) };
    let glob = GlobBuilder::new(&text.value).literal_separator(false).build();
    (true, glob.map_err(|error| section.problem(&text.origin, format!("`{}.{key}` is not a glob: {error}", section.path))).ok())
}

fn read_rule(mut section: Section<'_>, check: Check<'_>, costs: &BTreeMap<String, Price>) -> Option<Rule> {
    let (by_key, pattern) = read_glob(&mut section, "pattern");
    let (by_model, kv_model) = read_glob(&mut section, "kv_model");
    let min_size = section.size("min_size");
    let max_size = section.size("max_size").map(|size| size.value);
    if let (Some(min), Some(max)) = (&min_size, max_size)
        && min.value > max
    {
        section.problem(&min.origin, format!("`{}` matches nothing: its min_size is above its max_size", section.path));
    }
    let min_size = min_size.map(|size| size.value);
    let names = section.words("dtypes");
    let by_dtype = names.is_some();
    let dtypes = names.map(|names| read_dtypes(&section, &names)).unwrap_or_default();
    let axes = section.words("axes").map(|axes| axes.value).unwrap_or_default();
    let choice = read_choice(&mut section, check, costs);
    let by_size = min_size.is_some() || max_size.is_some();
    let one = choice.as_ref().is_some_and(|choice| choice.backends.len() == 1);
    if one && !(by_key || by_model || by_size || by_dtype || !axes.is_empty()) {
        let message = format!(
            "`{}` needs a `pattern`, a `min_size` or a `max_size`, `dtypes`, `axes` or a `kv_model`; a rule for all is `storage.default_backend`",
            section.path
        );
        section.problem(&section.origin, message);
    }
    section.finish();
    Some(Rule { pattern, min_size, max_size, dtypes, axes, kv_model, choice: choice? })
}

fn read_dtypes(section: &Section<'_>, names: &Located<Vec<String>>) -> Vec<DType> {
    let known: Vec<&str> = DType::all().map(DType::name).collect();
    let read = |name: &String| {
        let dtype = name.parse::<DType>().ok();
        if dtype.is_none() {
            section.problem(&names.origin, format!("`{}.dtypes`: {name:?} is no element type; there are {}", section.path, quoted(&known)));
        }
        dtype
    };
    names.value.iter().filter_map(read).collect()
}

fn read_choice(section: &mut Section<'_>, check: Check<'_>, costs: &BTreeMap<String, Price>) -> Option<Choice> {
    let (one, several) = (section.text("backend"), section.words("backends"));
    let choose = section.choice("choose", &Choose::WORDS);
    match (one, several) {
        (Some(one), None) => {
            check(section, &one, &format!("{}.backend", section.path));
            if let Some(choose) = choose {
                section.problem(&choose.origin, format!("`{}.choose` chooses among `backends`, of which there is one", section.path));
            }
            Some(Choice { backends: vec![one.value], choose: Choose::First })
        }
        (None, Some(several)) => {
            let choose = choose.map_or(Choose::default(), |choose| choose.value);
            check_choice(section, &several, choose, costs, check, &format!("{}.backends", section.path));
            Some(Choice { backends: several.value, choose })
        }
        (Some(_), Some(several)) => {
            section.problem(&several.origin, format!("`{}` has `backend` and `backends`: write one of the two", section.path));
            None
        }
        (None, None) => {
            section.problem(&section.origin, format!("`{}` needs a `backend`, or `backends`", section.path));
            None
        }
    }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    format!("[{}]", words.into_iter().map(quote).collect::<Vec<_>>().join(", "))
}

fn strings(words: &[String]) -> String {
    list(words.iter().map(String::as_str))
}

/// Writes the section as TOML that reads back as the same.
pub(super) fn write(f: &mut fmt::Formatter<'_>, routing: &Routing) -> fmt::Result {
    let duration = |value| quote(&exact_duration(value));
    let choose = routing.last.as_ref().map(|last| last.choose);
    let word = STRATEGIES.into_iter().find(|(_, of)| *of == choose).map_or("rules", |(word, _)| word);
    writeln!(f, "\n[storage.routing]\nstrategy = {}", quote(word))?;
    if let Some(last) = &routing.last {
        writeln!(f, "backends = {}", strings(&last.backends))?;
    }
    writeln!(f, "rebalance_interval = {}", duration(routing.rebalance_interval))?;
    writeln!(f, "health_check_interval = {}", duration(routing.health_check_interval))?;
    writeln!(f, "recovery_delay = {}", duration(routing.recovery_delay))?;
    writeln!(f, "expected_life = {}", duration(routing.expected_life))?;
    for (name, Price { puts, gets, gib_month }) in &routing.costs {
        writeln!(f, "\n[storage.routing.costs.{name}]\nputs = {puts:?}\ngets = {gets:?}\ngib_month = {gib_month:?}")?;
    }
    routing.rules.iter().try_for_each(|rule| write_rule(f, rule))
}

fn write_rule(f: &mut fmt::Formatter<'_>, rule: &Rule) -> fmt::Result {
    writeln!(f, "\n[[storage.routing.rules]]")?;
    for (key, glob) in [("pattern", &rule.pattern), ("kv_model", &rule.kv_model)] {
        if let Some(glob) = glob {
            writeln!(f, "{key} = {}", quote(glob.glob()))?;
        }
    }
    for (key, bytes) in [("min_size", rule.min_size), ("max_size", rule.max_size)] {
        if let Some(bytes) = bytes {
            writeln!(f, "{key} = {}", quote(&exact_size(bytes)))?;
        }
    }
    if !rule.dtypes.is_empty() {
        writeln!(f, "dtypes = {}", list(rule.dtypes.iter().map(|dtype| dtype.name())))?;
    }
    if !rule.axes.is_empty() {
        writeln!(f, "axes = {}", strings(&rule.axes))?;
    }
    match &rule.choice {
        Choice { backends, choose: Choose::First } if backends.len() == 1 => writeln!(f, "backend = {}", quote(&backends[0])),
        Choice { backends, choose } => writeln!(f, "backends = {}\nchoose = {}", strings(backends), quote(choose.word())),
    }
}
