//! Over the wire: the Rust client and a server in this process, on loopback, beside a plain TCP connection that carries the same bytes.

#![allow(missing_docs, clippy::panic, reason = "criterion writes functions without docs; a benchmark that cannot start ends")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sira_benches::{Failure, Served};
use sira_client::{Client, DType, GetOptions, PutOptions, TensorSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A peer that answers each byte it gets with `answer`.
async fn tcp_peer(answer: Bytes) -> Result<TcpStream, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stream = TcpStream::connect(listener.local_addr()?).await?;
    stream.set_nodelay(true)?;
    let (mut peer, _) = listener.accept().await?;
    tokio::spawn(async move {
        let mut ask = [0; 1];
        while peer.read_exact(&mut ask).await.is_ok() && peer.write_all(&answer).await.is_ok() {}
    });
    Ok(stream)
}

async fn tcp_get(stream: &mut TcpStream, into: &mut [u8]) -> Result<(), Failure> {
    stream.write_all(&[1]).await?;
    stream.read_exact(into).await?;
    Ok(())
}

async fn get(client: &Client) -> Result<usize, Failure> {
    let mut tensor = client.get("bench/k", &GetOptions::default()).await?;
    let mut bytes = 0;
    while let Some(piece) = tensor.next().await? {
        bytes += piece.len();
    }
    Ok(bytes)
}

fn flight(c: &mut Criterion) {
    let served = Served::start(1 << 30).unwrap_or_else(|e| panic!("a server: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("a runtime: {e}"));
    let client = runtime.block_on(Client::connect(served.url())).unwrap_or_else(|e| panic!("{e}"));
    for (size, label) in [(64 << 10, "wire, 64 KiB"), (1 << 20, "wire, 1 MiB"), (16 << 20, "wire, 16 MiB")] {
        let raw = Bytes::from(sira_benches::kv_cache(size).unwrap_or_else(|e| panic!("the sample: {e}")));
        let spec = TensorSpec::new(DType::BFloat16, vec![size as u64 / 2]).unwrap_or_else(|e| panic!("{e}"));
        let put = |options: PutOptions| runtime.block_on(client.put("bench/k", &spec, raw.clone(), options));
        let weak = || PutOptions { consistency: Some(sira_client::Consistency::Weak), ..PutOptions::default() };
        put(PutOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        let mut group = c.benchmark_group(label);
        group.throughput(Throughput::Bytes(size as u64)).sample_size(10);
        let mut peer = runtime.block_on(tcp_peer(raw.clone())).unwrap_or_else(|e| panic!("{e}"));
        let mut buffer = vec![0; size];
        group.bench_function("get, plain TCP", |b| b.iter(|| runtime.block_on(tcp_get(&mut peer, &mut buffer)).is_ok()));
        group.bench_function("get, hot", |b| b.iter(|| runtime.block_on(get(&client)).is_ok_and(|got| got == size)));
        group.bench_function("put, weak", |b| b.iter(|| put(weak()).is_ok()));
        group.bench_function("put", |b| b.iter(|| put(PutOptions::default()).is_ok()));
        group.finish();
    }
}

criterion_group!(benches, flight);
criterion_main!(benches);
