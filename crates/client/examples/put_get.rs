//! Puts a tensor, gets it back whole and in part, and deletes it.
//!
//! `cargo run -p sira-client --example put_get -- [URL]`, with a server at URL (default: grpc://127.0.0.1:9095).

use std::error::Error;

use sira_client::{Client, Code, DEFAULT_URL, DType, GetOptions, PutOptions, TensorSpec};

/// Does it all against the server at `url`.
pub async fn run(url: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(url).await?;

    // 1000 embeddings of 256 float32 each, which expire after an hour.
    let values: Vec<f32> = (0..1000 * 256).map(|i| i as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let spec = TensorSpec::new(DType::Float32, vec![1000, 256])?.with_axes(vec!["item".into(), "dim".into()])?;
    let options = PutOptions { ttl: Some(3600), attributes: [("model".to_owned(), "example".to_owned())].into(), ..PutOptions::default() };
    let put = client.put("example/embeddings", &spec, bytes.clone(), options).await?;
    println!("{} has version {}", put.key, put.version);

    let entry = client.info("example/embeddings").await?;
    println!("{} {:?}, {} bytes, in {:?}", entry.dtype, entry.shape, entry.nbytes, entry.tiers);

    let whole = client.get("example/embeddings", &GetOptions::default()).await?.into_bytes().await?;
    assert_eq!(whole, bytes);

    // Items 10 to 19, and only their first 64 values: only what is asked for is read and sent.
    let slice = [("item".to_owned(), [10, 20]), ("dim".to_owned(), [0, 64])].into();
    let mut part = client.get("example/embeddings", &GetOptions { slice, version: Some(put.version), ..GetOptions::default() }).await?;
    assert_eq!(part.spec().shape(), [10, 64]);
    let mut received = Vec::new();
    while let Some(piece) = part.next().await? {
        received.extend_from_slice(&piece);
    }
    let expected = values.chunks(256).skip(10).take(10).flat_map(|item| &item[..64]);
    assert!(received == expected.flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    println!("a slice of {} bytes", received.len());

    assert!(client.delete("example/embeddings", None).await?);
    let gone = client.get("example/embeddings", &GetOptions::default()).await.err().and_then(|error| error.code());
    assert_eq!(gone, Some(Code::NotFound));
    println!("deleted");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(&std::env::args().nth(1).unwrap_or_else(|| DEFAULT_URL.to_owned())).await
}
