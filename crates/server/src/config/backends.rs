//! `[storage.backends.NAME]`: one reader a kind.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use sira_backend::guard::GuardOptions;

use super::databases::{self, Kind};
use super::reader::{Section, nearest, quoted};
use super::schema::Refused;
use super::source::Origin;
use super::{Backend, OBJECT_GUARD, ObjectPlace, RocksCompression, SecretUrl};

/// Kinds of this version.
const KINDS: [&str; 9] = ["memory", "file", "rocksdb", "object", "redis", "sled", "postgres", "mysql", "sqlite"];
/// Settings of any kind of backend.
pub(super) const SETTINGS: [&str; 19] = [
    "kind",
    "path",
    "url",
    "max_size",
    "compression",
    "cache_size",
    "write_buffer_size",
    "options",
    "prefix",
    "cluster",
    "connection_pool_size",
    "table_name",
    "max_connections",
    "statement_timeout",
    "guard.timeout",
    "guard.retries",
    "guard.in_flight",
    "guard.break_after",
    "guard.break_for",
];
/// What people call an object store.
const OBJECT_STORES: [&str; 7] = ["s3", "minio", "gcs", "gs", "azure", "az", "object_store"];
/// Schemes of an object backend's URL.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"];
/// What an option is called that holds a secret: these stay in the environment.
const SECRET: [&str; 6] = ["secret", "access_key", "account_key", "password", "token", "service_account"];
/// Folders in the data folder that are Sira's own.
const OWN_FOLDERS: [&str; 2] = ["catalog", "lock"];

/// Reads all backends; also gives the names of those whose kind is not known.
pub(super) fn read(mut names: Section<'_>, data_dir: &Path, memory_limit: u64) -> (BTreeMap<String, Backend>, Refused) {
    let mut backends = BTreeMap::new();
    let mut refused = Refused::new();
    let mut folders: Vec<(PathBuf, String)> = Vec::new();
    for (name, mut section) in names.sections() {
        check_name(&name, &section);
        let (kind, origin) = match section.text("kind") {
            Some(kind) => (kind.value, kind.origin),
            None => (name.clone(), section.origin.clone()),
        };
        let folder = data_dir.join(&name);
        let backend = match kind.as_str() {
            "memory" => read_memory(&mut section, memory_limit),
            "file" => read_file(&mut section, folder),
            "rocksdb" => read_rocksdb(&mut section, folder, memory_limit),
            "object" => read_object(&mut section, folder),
            "redis" => read_redis(&mut section),
            "sled" => read_sled(&mut section, folder, memory_limit),
            "postgres" => Backend::Postgres(databases::read(&mut section, Kind::Postgres)),
            "mysql" => Backend::MySql(databases::read(&mut section, Kind::MySql)),
            "sqlite" => Backend::Sqlite { path: path(&mut section, folder), max_size: max_size(&mut section) },
            _ => {
                section.problem(&origin, unknown_kind(&name, &kind));
                section.discard();
                refused.insert(name);
                continue;
            }
        };
        check_folder(&name, &backend, &section, data_dir, &mut folders);
        section.finish();
        backends.insert(name, backend);
    }
    names.finish();
    (backends, refused)
}

fn unknown_kind(name: &str, kind: &str) -> String {
    let kinds = quoted(&KINDS);
    if OBJECT_STORES.contains(&kind) {
        format!("backend `{name}`: write kind = \"object\" with a `url`, such as \"s3://bucket/prefix\"")
    } else if kind == "mariadb" {
        format!("backend `{name}`: write kind = \"mysql\"")
    } else if kind == name {
        format!("backend `{name}` needs a `kind`: one of {kinds}")
    } else {
        let hint = nearest(kind, &KINDS).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
        format!("backend `{name}`: unknown kind `{kind}`; {hint}there are {kinds}")
    }
}

fn check_name(name: &str, section: &Section<'_>) {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'));
    if name.len() > 32 || !letters || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        section.problem(&section.origin, format!("backend name {name:?}: a lower-case letter, then up to 31 of a-z 0-9 _ -"));
    }
}

/// Two users of one folder would destroy each other's data.
fn check_folder(name: &str, backend: &Backend, section: &Section<'_>, data_dir: &Path, folders: &mut Vec<(PathBuf, String)>) {
    let Some(folder) = backend.folder().map(plain) else { return };
    let data_dir = plain(data_dir);
    if let Some((_, other)) = folders.iter().find(|(there, _)| there.starts_with(&folder) || folder.starts_with(there)) {
        section.problem(&section.origin, format!("backend `{name}` and backend `{other}` share the folder {}", folder.display()));
    } else if data_dir.starts_with(&folder) || OWN_FOLDERS.iter().any(|own| folder.starts_with(data_dir.join(own))) {
        section.problem(
            &section.origin,
            format!("backend `{name}`: {} holds Sira's own files; give it a folder of its own", folder.display()),
        );
    }
    folders.push((folder, name.to_owned()));
}

/// A path without `.` components, so that `./data` and `data` are the same.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|component| !matches!(component, Component::CurDir)).collect()
}

fn path(section: &mut Section<'_>, default: PathBuf) -> PathBuf {
    section.text("path").map_or(default, |text| PathBuf::from(text.value))
}

pub(super) fn max_size(section: &mut Section<'_>) -> Option<u64> {
    section.size("max_size").map(|size| size.value)
}

fn read_memory(section: &mut Section<'_>, memory_limit: u64) -> Backend {
    Backend::Memory { max_size: max_size(section).unwrap_or(memory_limit / 4) }
}

fn read_file(section: &mut Section<'_>, folder: PathBuf) -> Backend {
    Backend::File { path: path(section, folder), max_size: max_size(section) }
}

fn read_rocksdb(section: &mut Section<'_>, folder: PathBuf, memory_limit: u64) -> Backend {
    let words = [RocksCompression::None, RocksCompression::Lz4, RocksCompression::Zstd].map(|kind| (kind.name(), kind));
    Backend::RocksDb {
        path: path(section, folder),
        max_size: max_size(section),
        compression: section.choice("compression", &words).map_or(RocksCompression::default(), |kind| kind.value),
        cache_size: section.size("cache_size").map_or((memory_limit / 8).min(64 << 20), |size| size.value),
        write_buffer_size: section.size("write_buffer_size").map_or((memory_limit / 8).min(64 << 20), |size| size.value),
    }
}

fn read_object(section: &mut Section<'_>, folder: PathBuf) -> Backend {
    let url = section.text("url");
    let path = section.text("path");
    if let (Some(url), Some(_)) = (&url, &path) {
        section.problem(&url.origin, format!("`{0}.url` and `{0}.path`: write one of the two", section.path));
    }
    let place = match url {
        Some(url) => {
            check_url(section, &url.origin, &url.value);
            ObjectPlace::Url(url.value)
        }
        None => ObjectPlace::Folder(path.map_or(folder, |text| PathBuf::from(text.value))),
    };
    let max_size = max_size(section);
    let mut table = section.section("options");
    let mut options = BTreeMap::new();
    for (name, text) in table.texts() {
        let lower = name.to_ascii_lowercase();
        if SECRET.iter().any(|word| lower.contains(word)) {
            let message = format!(
                "`{}.{name}` looks like a secret: credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY, ...)",
                table.path
            );
            table.problem(&text.origin, message);
        } else if matches!(place, ObjectPlace::Folder(_)) {
            table.problem(&text.origin, format!("`{}.{name}`: a local folder has no options; they belong to a `url`", table.path));
        }
        options.insert(name, text.value);
    }
    let guard = match place {
        ObjectPlace::Url(_) => read_guard(section, OBJECT_GUARD),
        ObjectPlace::Folder(_) => OBJECT_GUARD,
    };
    Backend::Object { place, max_size, options, guard }
}

fn read_redis(section: &mut Section<'_>) -> Backend {
    let (origin, url) = section.text("url").map_or_else(|| (section.origin.clone(), String::new()), |text| (text.origin, text.value));
    let url = SecretUrl::new(url);
    let cluster = section.boolean("cluster").is_some_and(|yes| yes.value);
    let prefix = section.text("prefix");
    if let Some(prefix) = &prefix
        && (prefix.value.len() > 64 || !prefix.value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')))
    {
        section.problem(&prefix.origin, format!("`{}.prefix`: up to 64 of a-z A-Z 0-9 . _ -", section.path));
    }
    let connections = section.integer("connection_pool_size", 1..=256).and_then(|number| usize::try_from(number.value).ok()).unwrap_or(4);
    let guard = read_guard(section, GuardOptions::default());
    let example = if cluster { "redis://HOST:7000,redis://HOST:7001" } else { "redis://HOST:6379" };
    let schemes = ["redis://", "rediss://"];
    if url.parts().any(|part| !schemes.iter().any(|scheme| part.len() > scheme.len() && part.starts_with(scheme))) {
        let more = if cluster { "" } else { "; with TLS, rediss://" };
        section.problem(&origin, format!("`{}.url` must name a Redis server, such as \"{example}\"{more}", section.path));
    } else if !cluster && url.parts().count() > 1 {
        section.problem(&origin, format!("`{}.url`: several servers are the nodes of a cluster: write `cluster = true`", section.path));
    }
    Backend::Redis { url, prefix: prefix.map_or_else(|| "sira".to_owned(), |text| text.value), cluster, connections, guard }
}

fn read_sled(section: &mut Section<'_>, folder: PathBuf, memory_limit: u64) -> Backend {
    Backend::Sled {
        path: path(section, folder),
        max_size: max_size(section),
        cache_size: section.size("cache_size").map_or((memory_limit / 8).min(64 << 20), |size| size.value),
    }
}

/// `[storage.backends.NAME.guard]`: of every backend behind a network.
pub(super) fn read_guard(section: &mut Section<'_>, default: GuardOptions) -> GuardOptions {
    let mut guard = section.section("guard");
    let mut number = |key, range| guard.integer(key, range).and_then(|number| u32::try_from(number.value).ok());
    let options = GuardOptions {
        retries: number("retries", 0..=100).unwrap_or(default.retries),
        in_flight: number("in_flight", 1..=100_000).map_or(default.in_flight, |number| number as usize),
        break_after: number("break_after", 1..=1_000_000).unwrap_or(default.break_after),
        timeout: guard.duration("timeout").map_or(default.timeout, |duration| duration.value),
        break_for: guard.duration("break_for").map_or(default.break_for, |duration| duration.value),
    };
    guard.finish();
    options
}

fn check_url(section: &Section<'_>, origin: &Origin, url: &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    if scheme == "file" {
        section.problem(origin, format!("`{}.url`: for a local folder write `path`", section.path));
    } else if !SCHEMES.contains(&scheme) || rest.is_empty() {
        let schemes = SCHEMES.map(|scheme| format!("{scheme}://")).join(", ");
        section.problem(origin, format!("`{}.url` must name a bucket, such as \"s3://bucket/prefix\"; schemes: {schemes}", section.path));
    }
}
