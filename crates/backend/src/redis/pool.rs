//! Connections to one server, or to a cluster.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisError, RedisResult, ServerErrorKind, Value,
};

/// How often the cluster's client follows a redirect or repeats a call by itself, and the longest pause before, in milliseconds.
const CLUSTER_TRIES: u32 = 3;
const CLUSTER_WAIT: u64 = 200;

/// Where connections lead.
#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Target {
    Single(Client),
    /// With the nodes at which new connections begin.
    Cluster(ClusterClient, Vec<ConnectionInfo>),
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A fixed number of connections, each shared by many calls at once, opened when first needed and again after they broke.
pub(super) struct Pool {
    target: Target,
    timeout: Duration,
    slots: Vec<Slot>,
    next: AtomicUsize,
}

/// The place of one connection.
#[derive(Default)]
struct Slot {
    current: Mutex<Option<(u64, Connection)>>,
    /// Held by whoever connects, so that only one does.
    connecting: tokio::sync::Mutex<()>,
    ids: AtomicU64,
}

impl Slot {
    /// Takes the connection out of use, if it is still this one; calls under way on it go on.
    fn retire(&self, id: u64) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|(now, _)| *now == id) {
            *current = None;
        }
    }
}

impl Pool {
    /// Connects nowhere yet. `urls` are several only for a cluster.
    pub(super) fn new(urls: &[&str], cluster: bool, connections: usize, timeout: Duration) -> RedisResult<Pool> {
        let target = match urls {
            [url] if !cluster => Target::Single(Client::open(*url)?),
            urls => {
                let nodes = urls.iter().map(|url| url.into_connection_info()).collect::<RedisResult<Vec<_>>>()?;
                Target::Cluster(cluster_client(&nodes, timeout)?, nodes)
            }
        };
        let slots = std::iter::repeat_with(Slot::default).take(connections.max(1)).collect();
        Ok(Pool { target, timeout, slots, next: AtomicUsize::new(0) })
    }

    /// Lets new connections of a cluster begin at any of its nodes: those that were named may be the ones that die.
    pub(super) async fn with_all_nodes(mut self) -> RedisResult<Pool> {
        let mut lease = self.lease().await?;
        let answers = match &mut lease.connection {
            Connection::Single(_) => Value::Nil,
            Connection::Cluster(connection) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllNodes, None));
                connection.route_command(redis::cmd("PING"), all).await?
            }
        };
        lease.end(Ok(()))?;
        if let (Target::Cluster(client, nodes), Value::Map(answers)) = (&mut self.target, answers) {
            let names = answers.into_iter().filter_map(|(name, _)| redis::from_redis_value::<String>(name).ok());
            let Some(first) = nodes.first().cloned() else { return Ok(self) };
            nodes.extend(names.filter_map(|name| at(&first, &name)));
            *client = cluster_client(nodes, self.timeout)?;
        }
        Ok(self)
    }

    async fn connect(&self) -> RedisResult<Connection> {
        Ok(match &self.target {
            // How long an answer may take is decided above: it depends on the bytes.
            Target::Single(client) => {
                let config = AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(None);
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Target::Cluster(client, _) => Connection::Cluster(client.get_async_connection().await?),
        })
    }

    async fn lease(&self) -> RedisResult<Lease<'_>> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len()];
        let current = || slot.current.lock().clone();
        if let Some((id, connection)) = current() {
            return Ok(Lease { slot, id, connection, ended: false });
        }
        let _turn = slot.connecting.lock().await;
        if let Some((id, connection)) = current() {
            return Ok(Lease { slot, id, connection, ended: false });
        }
        let (connection, id) = (self.connect().await?, slot.ids.fetch_add(1, Ordering::Relaxed));
        *slot.current.lock() = Some((id, connection.clone()));
        Ok(Lease { slot, id, connection, ended: false })
    }

    /// Runs one command.
    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let mut lease = self.lease().await?;
        let answer = lease.command(command).await;
        lease.end(answer)
    }

    /// Runs the commands of a transaction, all of one hash slot: that of `key`.
    pub(super) async fn transaction<T: FromRedisValue>(&self, key: &str, commands: &Pipeline) -> RedisResult<T> {
        let mut lease = self.lease().await?;
        let mut answer = lease.commands(commands).await;
        if let (Connection::Cluster(_), Err(error)) = (&lease.connection, &answer)
            && redirected(error)
        {
            // The cluster's client follows redirects of single commands only, and learns from them where slots are now.
            answer = match lease.command::<Value>(redis::cmd("EXISTS").arg(key)).await {
                Ok(_) => lease.commands(commands).await,
                Err(error) => Err(error),
            };
        }
        lease.end(answer)
    }

    /// Runs a command on every primary.
    pub(super) async fn everywhere(&self, command: Cmd) -> RedisResult<Vec<Value>> {
        let mut lease = self.lease().await?;
        let answer = match &mut lease.connection {
            Connection::Single(connection) => command.query_async(connection).await.map(|answer| vec![answer]),
            Connection::Cluster(connection) => {
                let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                connection.route_command(command, primaries).await.and_then(Value::extract_error).and_then(|answers| match answers {
                    Value::Map(answers) => Ok(answers.into_iter().map(|(_, answer)| answer).collect()),
                    _ => Err((ErrorKind::UnexpectedReturnType, "no answers by node").into()),
                })
            }
        };
        lease.end(answer)
    }
}

fn cluster_client(nodes: &[ConnectionInfo], timeout: Duration) -> RedisResult<ClusterClient> {
    ClusterClientBuilder::new(nodes.iter().cloned())
        .connection_timeout(timeout)
        .retries(CLUSTER_TRIES)
        .min_retry_wait(CLUSTER_WAIT / 10)
        .max_retry_wait(CLUSTER_WAIT)
        .build()
}

/// Another node of the same cluster, `HOST:PORT`.
fn at(known: &ConnectionInfo, name: &str) -> Option<ConnectionInfo> {
    let (host, port) = name.rsplit_once(':')?;
    let (host, port) = (host.to_owned(), port.parse().ok()?);
    let address = match known.addr() {
        ConnectionAddr::Tcp(..) => ConnectionAddr::Tcp(host, port),
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => return None,
    };
    Some(known.clone().set_addr(address))
}

/// Whether a transaction was refused because the slot lies elsewhere by now.
fn redirected(error: &RedisError) -> bool {
    let moved = |kind| matches!(kind, Some(ServerErrorKind::Moved | ServerErrorKind::Ask));
    error.clone().into_server_errors().is_some_and(|errors| errors.iter().any(|(_, error)| moved(error.kind())))
}

/// Whether the connection is of no use any more.
fn broken(error: &RedisError) -> bool {
    error.is_io_error()
        || matches!(
            error.kind(),
            ErrorKind::Parse
                | ErrorKind::AuthenticationFailed
                | ErrorKind::ClusterConnectionNotFound
                // A primary became a replica: the name may lead to another one now.
                | ErrorKind::Server(ServerErrorKind::ReadOnly)
        )
}

/// A connection in use. If its call is given up, as it is when no answer comes in time, nobody knows whether the connection still lives,
/// and what follows takes a new one.
struct Lease<'a> {
    slot: &'a Slot,
    id: u64,
    connection: Connection,
    ended: bool,
}

impl Lease<'_> {
    async fn command<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match &mut self.connection {
            Connection::Single(connection) => command.query_async(connection).await,
            Connection::Cluster(connection) => command.query_async(connection).await,
        }
    }

    async fn commands<T: FromRedisValue>(&mut self, commands: &Pipeline) -> RedisResult<T> {
        match &mut self.connection {
            Connection::Single(connection) => commands.query_async(connection).await,
            Connection::Cluster(connection) => commands.query_async(connection).await,
        }
    }

    fn end<T>(mut self, answer: RedisResult<T>) -> RedisResult<T> {
        self.ended = !answer.as_ref().is_err_and(broken);
        answer
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.slot.retire(self.id);
        }
    }
}
