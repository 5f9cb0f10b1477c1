//! Lookups of a server that does not answer: they end in time, as a miss in caches and as an error elsewhere.

#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use std::time::{Duration, Instant};

use sira_client::{Client, ClientError, Deadline, LOOKUP_DEADLINE, LookupOptions};
use tokio::net::TcpListener;

/// Far more than a deadline, even on a busy machine, and less than the time a connection may take.
const LATE: Duration = Duration::from_secs(5);

/// Looks one key and many up, in a cache and elsewhere: the errors of the latter.
async fn misses_and_errors(client: &Client, options: &LookupOptions) -> [ClientError; 2] {
    assert_eq!(client.exists_with("kv/a", options).await.unwrap(), None);
    let lookup = client.exists_many(["kv/a", "kv/b"], options).await.unwrap();
    assert_eq!((lookup.exists.as_slice(), lookup.leading), (&[false, false][..], 0));
    [client.exists_with("ns/a", options).await.unwrap_err(), client.exists_many(["kv/a", "ns/a"], options).await.unwrap_err()]
}

#[tokio::test]
async fn a_wedged_server_costs_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    let wedged = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    let eager = Client::connect(&url).await.unwrap().with_cache_namespaces(["kv"]);
    let lazy = Client::connect_lazy(&url).unwrap().with_cache_namespaces(["kv"]).with_lookup_deadline(Duration::from_millis(30));
    let of_call = LookupOptions { deadline: Deadline::After(Duration::from_millis(10)), ..LookupOptions::default() };
    for (client, options, deadline) in [
        (&eager, LookupOptions::default(), LOOKUP_DEADLINE),
        (&lazy, LookupOptions::default(), Duration::from_millis(30)),
        (&lazy, of_call, Duration::from_millis(10)),
    ] {
        let begun = Instant::now();
        for error in misses_and_errors(client, &options).await {
            assert!(matches!(error, ClientError::DeadlineExceeded { deadline: of, .. } if of == deadline), "{error}");
        }
        assert!(begun.elapsed() >= 4 * deadline && begun.elapsed() < LATE, "{:?}", begun.elapsed());
    }
    for endless in [Deadline::Never, None.into()] {
        let options = LookupOptions { deadline: endless, ..LookupOptions::default() };
        assert!(
            tokio::time::timeout(Duration::from_millis(400), lazy.exists_with("kv/a", &options)).await.is_err(),
            "no deadline was asked for"
        );
    }
    wedged.abort();
}

#[tokio::test]
async fn an_absent_server_is_a_miss_or_said_with_the_systems_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::connect_lazy(&url).unwrap().with_cache_namespaces(["kv"]);
    let begun = Instant::now();
    for deadline in [Deadline::OfClient, Deadline::Never] {
        for error in misses_and_errors(&client, &LookupOptions { deadline, ..LookupOptions::default() }).await {
            assert!(matches!(&error, ClientError::Transport { .. }) && error.to_string().contains("refused"), "{error}");
        }
    }
    assert!(begun.elapsed() < LATE);
    // Other calls of such a client fail with the same words, caches or not.
    assert!(client.info("kv/a").await.unwrap_err().to_string().contains("refused"));
    assert_eq!(client.exists("nokey").await.unwrap_err().code(), Some(sira_client::Code::BadKey));
}
