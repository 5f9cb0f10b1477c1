//! The Rust client and a server that share memory over a Unix socket.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // clippy.toml allows it within #[test] functions, not in their helpers

use sira_client::{Client, ClientError, Code, Condition, DType, GetOptions, PutOptions, TensorSpec};

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod common;

use common::Server;

const LEN: usize = 4 << 20;

/// A server with a Unix socket, its URL there, and the folder of both.
fn server() -> (Server, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), |command| {
        command.arg("--unix-socket").arg(folder.path().join("socket")).env("SIRA_MEMORY__LIMIT", "256MiB");
    });
    let unix = server.said.iter().find_map(|line| line.strip_prefix("sira: socket on ")).unwrap().to_owned();
    (server, unix, folder)
}

fn spec(len: usize) -> TensorSpec {
    TensorSpec::new(DType::UInt8, vec![len as u64]).unwrap().with_axes(vec!["byte".into()]).unwrap()
}

fn all() -> GetOptions {
    GetOptions::default()
}

#[tokio::test]
async fn tensors_are_mapped_and_made_in_place_near_the_server_and_sent_elsewhere() {
    let (server, unix, _folder) = server();
    let (near, far) = (Client::connect(&unix).await.unwrap(), Client::connect(&server.url).await.unwrap());
    for (client, shared) in [(&near, true), (&far, false)] {
        let attributes = [("of".to_owned(), "me".to_owned())].into();
        let options = PutOptions { attributes, condition: Some(Condition::Absent), ttl: Some(60), ..PutOptions::default() };
        let mut made = client.create("ns/a", &spec(LEN), options.clone()).await.unwrap();
        assert_eq!((made.is_shared(), made.len()), (shared, LEN));
        made[1..].fill(7);
        assert_eq!(made.commit().await.unwrap().version, if shared { 1 } else { 2 });
        let again = client.create("ns/a", &spec(LEN), options).await;
        let refused = match again {
            Ok(made) => made.commit().await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(refused.unwrap_err().code(), Some(Code::Exists));

        let mapped = client.map("ns/a", &all()).await.unwrap();
        assert_eq!((mapped.is_shared(), mapped.spec().axes()[0].as_str()), (shared, "byte"));
        assert!(mapped[0] == 0 && mapped[1..].iter().all(|&byte| byte == 7));
        assert!(client.get("ns/a", &all()).await.unwrap().into_bytes().await.unwrap() == mapped[..]);
        assert!(client.delete("ns/a", None).await.unwrap());
        assert!(mapped[LEN - 1] == 7);
        assert_eq!(client.map("ns/a", &all()).await.unwrap_err().code(), Some(Code::NotFound));
    }
    let made = near.create("ns/small", &spec(10), PutOptions::default()).await.unwrap();
    assert!(!made.is_shared());
    made.commit().await.unwrap();
    assert_eq!(near.map("ns/small", &all()).await.unwrap()[..], [0; 10]);
    assert_eq!(near.map("ns/small", &all()).await.unwrap().version(), Some(near.info("ns/small").await.unwrap().version));
    drop(near.create("ns/none", &spec(LEN), PutOptions::default()).await.unwrap());
    assert_eq!(near.exists("ns/none").await.unwrap(), None);
}

#[tokio::test]
async fn what_is_held_has_a_cap_and_makes_room_when_it_is_dropped() {
    let (_server, unix, _folder) = server();
    let client = Client::connect(&unix).await.unwrap();
    let keys: Vec<String> = (0..24).map(|i| format!("ns/{i}")).collect();
    for key in &keys {
        client.put(key, &spec(LEN), vec![1; LEN], PutOptions::default()).await.unwrap();
    }
    let mut held = Vec::new();
    for key in &keys {
        held.push(client.map(key, &all()).await.unwrap());
    }
    assert!(held[0].is_shared() && !held[23].is_shared());
    assert!(held.iter().all(|mapped| mapped.iter().all(|&byte| byte == 1)));
    held.clear();
    // Releases go ahead of what is asked after them.
    assert!(client.map(&keys[23], &all()).await.unwrap().is_shared());
}

#[tokio::test]
async fn a_server_that_dies_is_an_error_and_what_is_mapped_stays() {
    let (mut server, unix, _folder) = server();
    let client = Client::connect(&unix).await.unwrap();
    client.put("ns/a", &spec(LEN), vec![1; LEN], PutOptions::default()).await.unwrap();
    let mapped = client.map("ns/a", &all()).await.unwrap();
    let made = client.create("ns/b", &spec(LEN), PutOptions::default()).await.unwrap();
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    assert!(mapped.is_shared() && mapped.iter().all(|&byte| byte == 1));
    let error = made.commit().await.unwrap_err();
    assert!(matches!(error, ClientError::Transport { .. }), "{error}");
    assert!(matches!(client.map("ns/a", &all()).await.unwrap_err(), ClientError::Transport { .. }));
}
