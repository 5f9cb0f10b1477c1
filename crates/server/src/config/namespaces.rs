//! `[namespaces.NAME]`: what holds for the keys of a namespace.

use std::collections::BTreeMap;
use std::fmt;

use sira_codec::Chain;
use sira_wire::Consistency;
use sira_wire::namespace::{Mode, Policy, Tiers, check_namespace};

use super::reader::{Section, nearest, quoted};
use super::schema;
use super::units::{exact_duration, exact_size, parse_size};

/// Every setting of a namespace that is one value.
const SETTINGS: [&str; 6] = ["mode", "read_only", "exact", "consistency", "ttl", "copies"];

/// The path of the setting that a variable means whose parts have one underscore between them, such as `kv_read_only`.
pub(super) fn meant(given: &str) -> Option<String> {
    let of_tier = |table: &str| {
        let (name, tier) = given.split_once(&format!("_{table}_"))?;
        Some(format!("namespaces.{name}.{table}.{tier}"))
    };
    let value = |key: &&str| {
        let name = given.strip_suffix(key)?.strip_suffix('_').filter(|name| !name.is_empty())?;
        Some(format!("namespaces.{name}.{key}"))
    };
    of_tier("limits").or_else(|| of_tier("codecs")).or_else(|| of_tier("tiers")).or_else(|| SETTINGS.iter().find_map(value))
}

/// The tier that is not a backend.
const MEMORY: &str = "memory";

/// Reads all namespaces; `backends` are the names that limits and codecs may use.
pub(super) fn read(mut names: Section<'_>, backends: &[&str]) -> BTreeMap<String, Policy> {
    let mut policies = BTreeMap::new();
    for (name, mut section) in names.sections() {
        if let Err(error) = check_namespace(&name) {
            section.problem(&section.origin, error.message);
        }
        let modes = [("store", Mode::Store), ("cache", Mode::Cache)];
        let levels = [("strong", Consistency::Strong), ("eventual", Consistency::Eventual), ("weak", Consistency::Weak)];
        let ttl = section.duration("ttl").map(|duration| {
            if duration.value.subsec_nanos() > 0 {
                section.problem(&duration.origin, format!("`{}.ttl` must be whole seconds", section.path));
            }
            duration.value.as_secs()
        });
        let exact = section.boolean("exact").is_some_and(|yes| yes.value);
        let policy = Policy {
            mode: section.choice("mode", &modes).map_or(Mode::default(), |mode| mode.value),
            read_only: section.boolean("read_only").is_some_and(|yes| yes.value),
            exact,
            consistency: section.choice("consistency", &levels).map(|level| level.value),
            ttl,
            limits: read_limits(section.section("limits"), backends),
            codecs: read_codecs(section.section("codecs"), backends, exact),
            tiers: read_tiers(section.section("tiers"), backends),
            copies: read_copies(&mut section, backends),
        };
        // What is wrong with one of them was said.
        if let Err(error) = policy.check()
            && !policy.copies.is_empty()
        {
            section.problem(&section.origin, format!("`{}`: {}", section.path, error.message));
        }
        section.finish();
        policies.insert(name, policy);
    }
    names.finish();
    policies
}

fn read_limits(mut section: Section<'_>, backends: &[&str]) -> BTreeMap<String, u64> {
    let tiers: Vec<&str> = std::iter::once(MEMORY).chain(backends.iter().copied()).collect();
    let mut limits = BTreeMap::new();
    for (tier, text) in section.texts() {
        check_tier(&section, &text.origin, &tier, &tiers);
        match parse_size(&text.value).filter(|&bytes| bytes > 0) {
            Some(bytes) => drop(limits.insert(tier, bytes)),
            None => {
                section.problem(&text.origin, format!("`{}.{tier}` must be a size such as \"512 MiB\", not {:?}", section.path, text.value))
            }
        }
    }
    section.finish();
    limits
}

fn read_codecs(mut section: Section<'_>, backends: &[&str], exact: bool) -> BTreeMap<String, String> {
    let mut codecs = BTreeMap::new();
    for (tier, text) in section.texts() {
        check_tier(&section, &text.origin, &tier, backends);
        match text.value.parse::<Chain>() {
            Ok(chain) if exact && !chain.lossless() => {
                section.problem(&text.origin, format!("`{}.{tier}`: {chain} is lossy, and the namespace is to be exact", section.path));
            }
            Ok(chain) => drop(codecs.insert(tier, chain.to_string())),
            Err(error) => section.problem(&text.origin, format!("`{}.{tier}`: {error}", section.path)),
        }
    }
    section.finish();
    codecs
}

fn read_tiers(mut section: Section<'_>, backends: &[&str]) -> Option<Tiers> {
    let tiers = schema::read_tiers(&mut section, &|section, text, key| {
        check_backend(section, &text.origin, &format!("{}.{key}", section.path), &text.value, backends);
    });
    section.finish();
    tiers
}

fn read_copies(section: &mut Section<'_>, backends: &[&str]) -> Vec<String> {
    let names = section.strings("copies").unwrap_or_default();
    for name in &names {
        check_backend(section, &name.origin, &format!("{}.copies", section.path), &name.value, backends);
    }
    names.into_iter().map(|name| name.value).collect()
}

fn check_backend(section: &Section<'_>, origin: &super::source::Origin, path: &str, name: &str, known: &[&str]) {
    if !known.contains(&name) {
        let hint = nearest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        section.problem(origin, format!("`{path}` names no backend: `{name}`{hint}; there are {}", quoted(known)));
    }
}

fn check_tier(section: &Section<'_>, origin: &super::source::Origin, tier: &str, known: &[&str]) {
    if !known.contains(&tier) {
        let hint = nearest(tier, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        section.problem(origin, format!("`{}.{tier}`: there is no such tier{hint}; there are {}", section.path, quoted(known)));
    }
}

/// Writes a namespace as TOML that reads back as the same.
pub(super) fn write(f: &mut fmt::Formatter<'_>, name: &str, policy: &Policy) -> fmt::Result {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    writeln!(f, "\n[namespaces.{}]", quote(name))?;
    writeln!(f, "mode = \"{}\"", if policy.mode == Mode::Cache { "cache" } else { "store" })?;
    writeln!(f, "read_only = {}\nexact = {}", policy.read_only, policy.exact)?;
    if let Some(level) = policy.consistency {
        writeln!(f, "consistency = \"{level}\"")?;
    }
    if let Some(ttl) = policy.ttl {
        writeln!(f, "ttl = \"{}\"", exact_duration(std::time::Duration::from_secs(ttl)))?;
    }
    let table = |entries: Vec<String>| format!("{{ {} }}", entries.join(", "));
    if !policy.limits.is_empty() {
        let entries = policy.limits.iter().map(|(tier, bytes)| format!("{} = \"{}\"", quote(tier), exact_size(*bytes)));
        writeln!(f, "limits = {}", table(entries.collect()))?;
    }
    if !policy.codecs.is_empty() {
        let entries = policy.codecs.iter().map(|(tier, chain)| format!("{} = {}", quote(tier), quote(chain)));
        writeln!(f, "codecs = {}", table(entries.collect()))?;
    }
    if let Some(tiers) = &policy.tiers {
        writeln!(f, "tiers = {{ warm = {}, cold = {} }}", quote(&tiers.warm), quote(&tiers.cold))?;
    }
    if !policy.copies.is_empty() {
        writeln!(f, "copies = [{}]", policy.copies.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}
