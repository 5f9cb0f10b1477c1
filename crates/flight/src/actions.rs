//! Actions: JSON in (or, of many keys, their binary list), JSON out.

use std::collections::BTreeMap;

use arrow_flight::{Action, ActionType, CancelFlightInfoResult, CancelStatus};
use prost::Message;
use serde::Serialize;
use sira_backend::HealthStatus;
use sira_store::{Operation, StorageClient};
use sira_wire::job::{CheckRequest, JobRequest, JobsAnswer, MigrateRequest};
use sira_wire::many::{ExistsManyAnswer, KeysRequest, PrefixRequest};
use sira_wire::namespace::{KvSpecRequest, NamespaceRequest, NamespacesAnswer, RouteRequest};
use sira_wire::{Code, DeleteAnswer, DeleteRequest, EmptyRequest, ExistsAnswer, KeyRequest, ListAnswer, ListRequest, WireError};
use tonic::Status;

use crate::status::{of_store, of_wire, refuse, unsupported};

/// Keys of a page of `list`.
const PAGE: usize = 1000;
/// And at most.
const MAX_PAGE: usize = 10_000;

/// Each action, and what it does.
const ACTIONS: [(&str, &str); 22] = [
    ("info", "What is known of a key: {\"v\":1,\"key\":\"ns/key\"}"),
    ("exists", "Whether a key exists, and its version: {\"v\":1,\"key\":\"ns/key\"}"),
    ("delete", "Removes a key: {\"v\":1,\"key\":\"ns/key\",\"if\":\"3\"}, if optional"),
    ("list", "A page of keys in byte order: {\"v\":1,\"prefix\":\"ns/\",\"after\":\"ns/k\",\"limit\":1000}"),
    ("exists_many", "Which of many keys exist: {\"v\":1,\"keys\":[\"ns/a\",\"ns/b\"]}"),
    ("delete_many", "Removes many keys: {\"v\":1,\"keys\":[\"ns/a\",\"ns/b\"]}"),
    ("delete_prefix", "Removes a page of keys: {\"v\":1,\"prefix\":\"ns/a\",\"dry_run\":true}"),
    ("kv_spec_put", "Registers a kv spec: {\"v\":1,\"spec\":{...}}"),
    ("kv_spec_get", "A registered kv spec: {\"v\":1,\"hash\":\"...\"}"),
    ("namespaces", "The namespaces, their policies and what they take"),
    ("namespace_set", "Sets a namespace's policy: {\"v\":1,\"namespace\":\"ns\",\"policy\":{\"mode\":\"cache\"}}"),
    ("namespace_reset", "Forgets a namespace's policy: {\"v\":1,\"namespace\":\"ns\"}"),
    ("route", "Where a tensor would go: {\"v\":1,\"key\":\"ns/key\",\"nbytes\":1048576}"),
    ("migrate", "Starts to move tensors: {\"v\":1,\"source\":\"rocksdb\",\"target\":\"object\",\"pattern\":\"kv/*\",\"dry_run\":true}"),
    ("check", "Starts to check copies: {\"v\":1,\"prefix\":\"kv/\",\"mend\":true}"),
    ("jobs", "The jobs that run, and the last ones that ended"),
    ("job", "One job: {\"v\":1,\"id\":\"...\"}"),
    ("job_stop", "Stops a job: {\"v\":1,\"id\":\"...\"}"),
    ("stats", "Counts, bytes and limits"),
    ("health", "Whether the server and its backends work"),
    ("CancelFlightInfo", "Of the Flight specification; answers NOT_CANCELLABLE"),
    ("RenewFlightEndpoint", "Of the Flight specification; tickets here do not expire"),
];

pub(crate) fn types() -> impl Iterator<Item = Result<ActionType, Status>> {
    ACTIONS.iter().map(|(name, what)| Ok(ActionType { r#type: (*name).into(), description: (*what).into() }))
}

#[derive(Serialize)]
struct Health {
    status: String,
    version: &'static str,
    backends: BTreeMap<String, String>,
}

/// The kind of request that an action is, of those that are counted.
pub(crate) fn operation(action: &Action) -> Option<Operation> {
    match action.r#type.as_str() {
        "info" | "exists" | "exists_many" => Some(Operation::Lookup),
        "delete" | "delete_many" | "delete_prefix" => Some(Operation::Delete),
        "list" => Some(Operation::List),
        _ => None,
    }
}

/// Runs an action; the answer is the body of its one result.
pub(crate) async fn run(store: &StorageClient, action: &Action) -> Result<Vec<u8>, Status> {
    let body = &action.body;
    let wire = |e: WireError| of_wire(&e);
    match action.r#type.as_str() {
        "info" => {
            let (key, kv_spec) = KeyRequest::parse(body).map_err(wire)?;
            let entry = store.info(&key).map_err(of_store)?;
            if kv_spec.is_some() && entry.kv_spec != kv_spec {
                return Err(refuse(Code::NotFound, format!("no tensor {key} of this kv spec")));
            }
            json(&entry)
        }
        "exists" => {
            let (key, kv_spec) = KeyRequest::parse(body).map_err(wire)?;
            let version = store.exists(&key, kv_spec.as_deref()).map_err(of_store)?;
            json(&ExistsAnswer { exists: version.is_some(), version, cache: store.are_caches([key.namespace()]) })
        }
        "exists_many" => {
            let (keys, kv_spec) = KeysRequest::parse(body).map_err(wire)?;
            let cache = store.are_caches(keys.namespaces());
            let exists = store.exists_many(&keys, kv_spec.as_deref()).await.map_err(of_store)?;
            json(&ExistsManyAnswer::of(&exists, cache))
        }
        "delete_many" => {
            let (keys, kv_spec) = KeysRequest::parse(body).map_err(wire)?;
            if kv_spec.is_some() {
                return Err(refuse(Code::BadRequest, "kv_spec: a delete takes none"));
            }
            json(&store.delete_many(keys.to_keys()).await)
        }
        "delete_prefix" => {
            let request = PrefixRequest::parse(body).map_err(wire)?;
            let answer = store.delete_prefix(&request.prefix, request.after.as_deref(), request.dry_run).await;
            json(&answer.map_err(of_store)?)
        }
        "delete" => {
            let (key, version) = DeleteRequest::parse(body).map_err(wire)?;
            json(&DeleteAnswer { deleted: store.delete(&key, version).await.map_err(of_store)? })
        }
        "list" => {
            let request = ListRequest::parse(body).map_err(wire)?;
            let limit = request.limit.unwrap_or(PAGE);
            if limit == 0 || limit > MAX_PAGE {
                return Err(refuse(Code::BadRequest, format!("limit is {limit}; it may be 1 to {MAX_PAGE}")));
            }
            let (entries, next) = store.list(&request.prefix, request.after.as_deref(), limit).map_err(of_store)?;
            json(&ListAnswer { entries, next })
        }
        "stats" => {
            EmptyRequest::parse(body).map_err(wire)?;
            json(&store.stats().await)
        }
        "health" => {
            EmptyRequest::parse(body).map_err(wire)?;
            json(&health(store).await)
        }
        "kv_spec_put" => json(&store.put_kv_spec(KvSpecRequest::parse_put(body).map_err(wire)?).await.map_err(of_store)?),
        "kv_spec_get" => json(&store.kv_spec(&KvSpecRequest::parse_get(body).map_err(wire)?).await.map_err(of_store)?),
        "namespaces" => {
            EmptyRequest::parse(body).map_err(wire)?;
            json(&NamespacesAnswer { namespaces: store.namespaces() })
        }
        "namespace_set" => {
            let request = NamespaceRequest::parse(body).map_err(wire)?;
            let policy = request.policy.ok_or_else(|| refuse(Code::BadRequest, "`policy` is missing"))?;
            json(&store.set_namespace(&request.namespace, policy).await.map_err(of_store)?)
        }
        "namespace_reset" => {
            let request = NamespaceRequest::parse(body).map_err(wire)?;
            if request.policy.is_some() {
                return Err(refuse(Code::BadRequest, "`policy` is for namespace_set"));
            }
            json(&store.reset_namespace(&request.namespace).await.map_err(of_store)?)
        }
        "route" => {
            let (key, nbytes, options) = RouteRequest::parse(body).map_err(wire)?;
            json(&store.route(&key, nbytes, &options).await.map_err(of_store)?)
        }
        "migrate" => json(&store.start_migrate(&MigrateRequest::parse(body).map_err(wire)?).map_err(of_store)?),
        "check" => json(&store.start_check(&CheckRequest::parse(body).map_err(wire)?).map_err(of_store)?),
        "jobs" => {
            EmptyRequest::parse(body).map_err(wire)?;
            json(&JobsAnswer { jobs: store.jobs() })
        }
        "job" => json(&store.job(&JobRequest::parse(body).map_err(wire)?).map_err(of_store)?),
        "job_stop" => json(&store.stop_job(&JobRequest::parse(body).map_err(wire)?).await.map_err(of_store)?),
        "CancelFlightInfo" => Ok(CancelFlightInfoResult { status: CancelStatus::NotCancellable as i32 }.encode_to_vec()),
        "RenewFlightEndpoint" => Err(unsupported("tickets do not expire; there is nothing to renew")),
        other => {
            let known: Vec<_> = ACTIONS.iter().map(|row| row.0).collect();
            Err(refuse(
                Code::BadRequest,
                format!("no action {:?}; there are {}", other.chars().take(80).collect::<String>(), known.join(", ")),
            ))
        }
    }
}

async fn health(store: &StorageClient) -> Health {
    let backends = store.health().await;
    let status = if backends.values().all(|status| *status == HealthStatus::Healthy) { "healthy" } else { "degraded" };
    let backends = backends.into_iter().map(|(name, status)| (name, status.to_string())).collect();
    Health { status: status.into(), version: env!("CARGO_PKG_VERSION"), backends }
}

fn json<T: Serialize>(answer: &T) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(answer).map_err(|e| refuse(Code::Internal, e.to_string()))
}
