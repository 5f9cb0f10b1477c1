//! `sira ns`: namespaces and what holds for them.

use std::collections::BTreeMap;

use sira_client::{Mode, NamespaceEntry, Policy, PolicyOrigin};
use sira_wire::namespace::check_namespace;

use super::table::{self, Column};
use super::{Server, print, print_line};
use crate::Failure;
use crate::cli::{ModeName, NamespaceCommand, NamespaceSetArgs};
use crate::config::units::{exact_size, short_size};

/// `sira ns`.
pub(crate) async fn namespace(server: Server<'_>, command: NamespaceCommand) -> Result<(), Failure> {
    match command {
        NamespaceCommand::Ls { json } => {
            let entries = server.connect().await?.namespaces().await?;
            if json { entries.iter().try_for_each(print_line) } else { print(&table(&entries)) }
        }
        NamespaceCommand::Show { namespace, json } => {
            let found = find(server.connect().await?.namespaces().await?, &namespace)?;
            let entry = found.ok_or_else(|| Failure::NotFound(format!("namespace {namespace} has neither keys nor a policy")))?;
            say(&entry, json)
        }
        NamespaceCommand::Set(args) => {
            let client = server.connect().await?;
            let present = find(client.namespaces().await?, &args.namespace)?.map(|entry| entry.policy);
            let policy = changed(present.unwrap_or_default(), &args);
            say(&client.set_namespace(&args.namespace, policy).await?, args.json)
        }
        NamespaceCommand::Reset { namespace, json } => say(&server.connect().await?.reset_namespace(&namespace).await?, json),
    }
}

fn find(entries: Vec<NamespaceEntry>, name: &str) -> Result<Option<NamespaceEntry>, Failure> {
    check_namespace(name).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(entries.into_iter().find(|entry| entry.namespace == name))
}

/// The policy with what was given changed in it.
fn changed(mut policy: Policy, args: &NamespaceSetArgs) -> Policy {
    if let Some(mode) = args.mode {
        policy.mode = match mode {
            ModeName::Cache => Mode::Cache,
            ModeName::Store => Mode::Store,
        };
    }
    policy.read_only = args.read_only.unwrap_or(policy.read_only);
    policy.exact = args.exact.unwrap_or(policy.exact);
    policy.consistency = args.consistency.map_or(policy.consistency, Into::into);
    policy.ttl = args.ttl.map_or(policy.ttl, |ttl| Option::from(ttl).map(|ttl: std::time::Duration| ttl.as_secs()));
    change(&mut policy.limits, &args.limits);
    change(&mut policy.codecs, &args.codecs);
    if let Some(tiers) = &args.tiers {
        policy.tiers = tiers.clone().into();
    }
    if let Some(copies) = &args.copies {
        policy.copies.clone_from(&copies.0);
    }
    policy
}

fn change<T: Clone>(map: &mut BTreeMap<String, T>, changes: &[(String, Option<T>)]) {
    for (tier, value) in changes {
        match value {
            Some(value) => map.insert(tier.clone(), value.clone()),
            None => map.remove(tier),
        };
    }
}

pub(super) fn mode(policy: &Policy) -> &'static str {
    match policy.mode {
        Mode::Cache => "cache",
        Mode::Store => "store",
    }
}

fn origin(entry: &NamespaceEntry) -> &'static str {
    match entry.origin {
        PolicyOrigin::Default => "default",
        PolicyOrigin::Configuration => "configuration",
        PolicyOrigin::Action => "action",
    }
}

fn sizes(map: &BTreeMap<String, u64>, size: fn(u64) -> String) -> String {
    let all: Vec<String> = map.iter().map(|(tier, bytes)| format!("{tier}={}", size(*bytes))).collect();
    if all.is_empty() { "-".into() } else { all.join(", ") }
}

fn table(entries: &[NamespaceEntry]) -> String {
    let columns = [
        Column("NAMESPACE", false),
        Column("MODE", false),
        Column("KEYS", true),
        Column("SIZE", true),
        Column("POLICY OF", false),
        Column("BYTES", false),
        Column("LIMITS", false),
    ];
    let row = |entry: &NamespaceEntry| {
        let mode = if entry.policy.read_only { format!("{}, read-only", mode(&entry.policy)) } else { mode(&entry.policy).to_owned() };
        let (bytes, limits) = (sizes(&entry.bytes, short_size), sizes(&entry.policy.limits, exact_size));
        vec![entry.namespace.clone(), mode, entry.keys.to_string(), short_size(entry.nbytes), origin(entry).to_owned(), bytes, limits]
    };
    table::lay_out(&columns, &entries.iter().map(row).collect::<Vec<_>>(), true)
}

fn say(entry: &NamespaceEntry, json: bool) -> Result<(), Failure> {
    if json { print_line(entry) } else { print(&text(entry)) }
}

/// All that is known of a namespace, one thing a line.
fn text(entry: &NamespaceEntry) -> String {
    let (policy, done) = (&entry.policy, &entry.operations);
    let by_server = "as the server says";
    let usual = if policy.mode == Mode::Cache { "weak, as of every cache" } else { by_server };
    let codecs: Vec<String> = policy.codecs.iter().map(|(tier, chain)| format!("{tier}={chain}")).collect();
    let rows = [
        ("namespace", entry.namespace.clone()),
        ("policy of", origin(entry).to_owned()),
        ("mode", mode(policy).to_owned()),
        ("read-only", policy.read_only.to_string()),
        ("exact", policy.exact.to_string()),
        ("consistency", policy.consistency.map_or_else(|| usual.into(), |level| level.to_string())),
        ("ttl", policy.ttl.map_or_else(|| by_server.into(), |ttl| format!("{ttl}s"))),
        ("limits", sizes(&policy.limits, exact_size)),
        ("codecs", if codecs.is_empty() { "-".into() } else { codecs.join(", ") }),
        ("tiers", policy.tiers.as_ref().map_or_else(|| by_server.into(), |tiers| format!("{} over {}", tiers.warm, tiers.cold))),
        ("copies", if policy.copies.is_empty() { "-".into() } else { policy.copies.join(", ") }),
        ("keys", entry.keys.to_string()),
        ("size", short_size(entry.nbytes)),
        ("bytes", sizes(&entry.bytes, short_size)),
        ("puts", format!("{}, {}", done.puts, short_size(done.put_bytes))),
        ("gets", format!("{}, {}, {} from memory, {} misses", done.gets, short_size(done.get_bytes), done.hits, done.misses)),
        ("deletes", done.deletes.to_string()),
        ("evictions", done.evictions.to_string()),
        ("moves", format!("{} to the cold tier, {} to the warm one", done.demotions, done.promotions)),
    ];
    rows.map(|(name, value)| format!("{name:<12} {value}")).join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use sira_client::Consistency;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: NamespaceSetArgs,
    }

    fn given(arguments: &str) -> NamespaceSetArgs {
        Line::try_parse_from(["set", "kv"].into_iter().chain(arguments.split_whitespace())).unwrap().args
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let limits = BTreeMap::from([("memory".to_owned(), 1 << 30), ("object".to_owned(), 5)]);
        let present =
            Policy { mode: Mode::Cache, exact: true, ttl: Some(60), consistency: Some(Consistency::Strong), limits, ..Policy::default() };
        assert_eq!(changed(present.clone(), &given("--mode cache")), present);
        let args = given(
            "--read-only true --exact false --consistency default --ttl 5 --limit object= --limit rocksdb=7 --codec object=zstd --codec memory=",
        );
        let expected = Policy {
            mode: Mode::Cache,
            read_only: true,
            exact: false,
            consistency: None,
            ttl: Some(5),
            limits: BTreeMap::from([("memory".to_owned(), 1 << 30), ("rocksdb".to_owned(), 7)]),
            codecs: BTreeMap::from([("object".to_owned(), "zstd".to_owned())]),
            ..Policy::default()
        };
        assert_eq!(changed(present.clone(), &args), expected);
        let tiers = sira_client::Tiers { warm: "rocksdb".into(), cold: "object".into() };
        let tiered = changed(present, &given("--tiers rocksdb,object"));
        assert_eq!(tiered.tiers, Some(tiers));
        let copied = changed(tiered, &given("--tiers default --copies rocksdb,object"));
        assert_eq!((copied.tiers.is_none(), copied.copies.len()), (true, 2));
        assert!(changed(copied, &given("--copies none")).copies.is_empty());
    }

    #[test]
    fn something_is_to_be_set() {
        assert!(Line::try_parse_from(["set", "kv"]).is_err());
        assert!(Line::try_parse_from(["set", "kv", "--read-only", "maybe"]).is_err());
    }
}
