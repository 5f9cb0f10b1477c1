//! What a server's own settings let it promise.

use std::collections::HashMap;

use redis::{RedisResult, from_redis_value};

use super::pool::Pool;
use crate::{BackendError, Survives};

/// Settings that no other command shows.
const SETTINGS: [&str; 3] = ["appendfsync", "no-appendfsync-on-rewrite", "proto-max-bulk-len"];

/// What one primary says of itself: the lines of `INFO`, and those [`SETTINGS`] that it tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Server(HashMap<String, String>);

impl Server {
    fn parse(info: &str) -> Server {
        let lines = info.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.trim().split_once(':'));
        Server(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key)?.parse().ok()
    }

    /// Bytes that still fit, where the server has a limit.
    pub(super) fn room(&self) -> Option<u64> {
        let limit = self.number("maxmemory").filter(|limit| *limit > 0)?;
        Some(limit.saturating_sub(self.number("used_memory")?))
    }

    /// What an acknowledged write survives here, and why no more.
    fn survives(&self) -> (Survives, &'static str) {
        if self.text("aof_enabled") != "1" {
            return (Survives::Nothing, "`appendonly` is off");
        }
        match self.text("appendfsync") {
            "" => (Survives::ProcessCrash, "the server does not tell its `appendfsync` (CONFIG GET is refused)"),
            "always" if self.text("no-appendfsync-on-rewrite") == "yes" => {
                (Survives::ProcessCrash, "`no-appendfsync-on-rewrite` leaves writes unsynced at times")
            }
            "always" if self.number("connected_slaves") != Some(0) => {
                (Survives::ProcessCrash, "a replica that takes over lacks the last writes")
            }
            "always" => (Survives::PowerLoss, ""),
            _ => (Survives::ProcessCrash, "`appendfsync` is not `always`"),
        }
    }
}

/// Asks all primaries for what they say of themselves.
pub(super) async fn info(pool: &Pool) -> RedisResult<Vec<Server>> {
    let mut servers = Vec::new();
    for info in pool.everywhere(redis::cmd("INFO")).await? {
        servers.push(Server::parse(&from_redis_value::<String>(info)?));
    }
    Ok(servers)
}

/// The same, with their settings.
pub(super) async fn ask(pool: &Pool) -> RedisResult<Vec<Server>> {
    let mut servers = info(pool).await?;
    for setting in SETTINGS {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg(setting);
        let answers = match pool.everywhere(command).await {
            Ok(answers) => answers,
            // Users without the right to ask, and services that hide it.
            Err(error) if error.clone().into_server_errors().is_some() => continue,
            Err(error) => return Err(error),
        };
        if answers.len() == servers.len() {
            for (server, answer) in servers.iter_mut().zip(answers) {
                server.0.extend(from_redis_value::<HashMap<String, String>>(answer)?);
            }
        }
    }
    Ok(servers)
}

/// What holds on all primaries: what an acknowledged write survives, and why no more.
pub(super) fn weakest(servers: &[Server]) -> (Survives, &'static str) {
    servers.iter().map(Server::survives).min_by_key(|(survives, _)| *survives).unwrap_or((Survives::Nothing, "no primary answered"))
}

/// Refuses servers that this backend cannot use as they are set up.
pub(super) fn check(servers: &[Server], cluster: bool) -> Result<(), BackendError> {
    for server in servers {
        let is_cluster = server.text("cluster_enabled") == "1";
        if is_cluster != cluster {
            let (is, write) = if is_cluster { ("a node of a cluster", "true") } else { ("no cluster", "false") };
            return Err(BackendError::Config(format!("the Redis server is {is}: write `cluster = {write}`")));
        }
        if server.text("role") == "slave" {
            return Err(BackendError::Config("the Redis server is a replica, which takes no writes: name its primary".into()));
        }
        let policy = server.text("maxmemory_policy");
        if server.number("maxmemory").is_some_and(|limit| limit > 0) && policy != "noeviction" {
            return Err(BackendError::Config(format!(
                "the Redis server drops values when it is full (`maxmemory-policy {policy}`), which it acknowledged: set `noeviction`"
            )));
        }
    }
    Ok(())
}

/// What is wrong with the servers right now, if anything; `promised` was found when the backend was opened.
pub(super) fn trouble(servers: &[Server], promised: Survives) -> Option<String> {
    let (survives, why) = weakest(servers);
    if survives < promised {
        return Some(format!("its settings were changed: what it acknowledges survives {survives:?} now, not {promised:?}: {why}"));
    }
    servers.iter().find_map(|server| {
        if server.text("loading") == "1" {
            Some("it is loading its data".to_owned())
        } else if server.text("role") == "slave" {
            Some("it became a replica, which takes no writes".to_owned())
        } else if server.text("aof_enabled") == "1" && server.text("aof_last_write_status") == "err" {
            Some("it cannot write its append-only file".to_owned())
        } else if server.room().is_some_and(|room| room < server.number("maxmemory").unwrap_or(0) / 16) {
            // What a write carries counts before it is refused, so that the last bytes are never used.
            Some("its memory is full (`maxmemory`)".to_owned())
        } else {
            None
        }
    })
}

/// The longest bulk string that all primaries take, where they tell.
pub(super) fn longest(servers: &[Server]) -> Option<u64> {
    servers.iter().filter_map(|server| server.number("proto-max-bulk-len")).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(info: &str, settings: &[(&str, &str)]) -> Server {
        let mut server = Server::parse(&format!("# Server\r\nrole:master\r\nconnected_slaves:0\r\ncluster_enabled:0\r\n{info}"));
        server.0.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        server
    }

    #[test]
    fn no_more_is_promised_than_the_settings_keep() {
        let on = "aof_enabled:1\r\n";
        for (info, settings, survives) in [
            ("aof_enabled:0\r\n", &[("appendfsync", "always")][..], Survives::Nothing),
            (on, &[], Survives::ProcessCrash),
            (on, &[("appendfsync", "everysec")], Survives::ProcessCrash),
            (on, &[("appendfsync", "no")], Survives::ProcessCrash),
            (on, &[("appendfsync", "always")], Survives::PowerLoss),
            (on, &[("appendfsync", "always"), ("no-appendfsync-on-rewrite", "yes")], Survives::ProcessCrash),
            ("aof_enabled:1\r\nconnected_slaves:1\r\n", &[("appendfsync", "always")], Survives::ProcessCrash),
        ] {
            let server = server(info, settings);
            let (found, why) = weakest(std::slice::from_ref(&server));
            assert_eq!(found, survives, "{info} {settings:?}");
            assert_eq!(why.is_empty(), survives == Survives::PowerLoss);
        }
        let [good, bad] = ["always", "everysec"].map(|sync| server(on, &[("appendfsync", sync)]));
        assert_eq!(weakest(&[good.clone(), bad.clone()]).0, Survives::ProcessCrash);
        assert_eq!(weakest(&[]).0, Survives::Nothing);
        assert!(trouble(&[bad], Survives::PowerLoss).unwrap().contains("`appendfsync` is not `always`"));
        assert_eq!(trouble(&[good], Survives::PowerLoss), None);
    }

    #[test]
    fn servers_that_cannot_serve_are_refused() {
        let refused = |info: &str, cluster| match check(&[server(info, &[])], cluster) {
            Err(BackendError::Config(reason)) => reason,
            other => panic!("{info}: {other:?}"),
        };
        check(&[server("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", &[])], false).unwrap();
        check(&[server("maxmemory:5\r\nmaxmemory_policy:noeviction\r\n", &[])], false).unwrap();
        assert!(refused("maxmemory:5\r\nmaxmemory_policy:allkeys-lru\r\n", false).contains("set `noeviction`"));
        assert!(refused("role:slave\r\n", false).contains("replica"));
        assert!(refused("cluster_enabled:1\r\n", false).contains("write `cluster = true`"));
        assert!(refused("", true).contains("write `cluster = false`"));
    }

    #[test]
    fn trouble_is_named() {
        for (info, what) in [
            ("loading:1", "loading"),
            ("role:slave", "replica"),
            ("aof_enabled:1\r\naof_last_write_status:err", "append-only file"),
            ("maxmemory:1000\r\nused_memory:1001", "full"),
            ("maxmemory:1000\r\nused_memory:940", "full"),
        ] {
            assert!(trouble(&[server(info, &[])], Survives::Nothing).unwrap().contains(what), "{info}");
        }
        assert_eq!(trouble(&[server("maxmemory:1000\r\nused_memory:930", &[])], Survives::Nothing), None);
    }
}
