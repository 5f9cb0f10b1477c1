//! Blocks of a KV cache, as an inference engine stores and finds them: one call each to put them, to see how many of a prompt's are there, and to
//! read those into buffers.
//!
//! `cargo run -p sira-client --example kv_blocks -- [URL]`, with a server at URL (default: grpc://127.0.0.1:9095).

use std::error::Error;

use futures::stream;
use sira_client::{Client, DEFAULT_URL, DType, GetManyOptions, KvSpec, LookupOptions, Mode, Policy, PutEntry, TensorSpec};

/// Extents of a block: K and V, 16 tokens, 8 heads of 128 dimensions.
const BLOCK: [u64; 4] = [2, 16, 8, 128];

/// Blocks of the prompt, and how many of them were computed before.
const BLOCKS: usize = 40;
const COMPUTED: usize = 32;

/// What the blocks are. Its hash goes with every block: a reader that means another layout finds nothing, never garbage.
const KV_SPEC: &str = r#"{
    "model": "example/model-8b", "block_hash": "sha256_cbor", "block_tokens": 16, "layers": [0, 1], "heads": [0, 8],
    "parts": [{"dtype": "bfloat16", "axes": ["kv", "token", "head", "dim"], "shape": [2, 16, 8, 128]}]
}"#;

/// The bytes of a block: what the engine's kernels would have written.
fn block(i: usize, nbytes: usize) -> Vec<u8> {
    (0..nbytes).map(|at| (at * 31 + i * 7) as u8).collect()
}

/// Does it all against the server at `url`.
pub async fn run(url: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(url).await?;
    // A cache: full is no error, and a server that does not answer in time is a miss.
    client.set_namespace("example-kv", Policy { mode: Mode::Cache, ..Policy::default() }).await?;
    let hash = client.put_kv_spec(&KvSpec::from_json(KV_SPEC.as_bytes())?).await?.hash;
    println!("kv spec {hash}");

    let spec = TensorSpec::new(DType::BFloat16, BLOCK.to_vec())?;
    let nbytes = usize::try_from(spec.nbytes())?;
    let keys: Vec<String> = (0..BLOCKS).map(|i| format!("example-kv/prompt-1/{i:04}")).collect();

    // A stream: blocks are made as the server takes them.
    let (names, layout, of) = (keys[..COMPUTED].to_vec(), spec.clone(), hash.clone());
    let blocks = names
        .into_iter()
        .enumerate()
        .map(move |(i, key)| PutEntry { kv_spec: Some(of.clone()), ..PutEntry::new(key, layout.clone(), block(i, nbytes)) });
    let put = client.put_many(stream::iter(blocks)).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("{} blocks put", put.len());

    // The next prompt begins with the same tokens: what need not be computed is the run of blocks that are there.
    let options = LookupOptions { kv_spec: Some(hash.clone()), ..LookupOptions::default() };
    let lookup = client.exists_many(&keys, &options).await?;
    println!("{} of {} blocks are there", lookup.leading, keys.len());
    assert_eq!(lookup.leading, COMPUTED);

    let mut buffers = vec![vec![0u8; nbytes]; lookup.leading];
    let options = GetManyOptions { kv_spec: Some(hash), ..GetManyOptions::default() };
    let filled = client.get_many(&keys[..lookup.leading], &options).await?.read_into(&mut buffers).await?;
    for (i, (key, buffer)) in filled.iter().zip(&buffers).enumerate() {
        match key {
            Ok(_) => assert!(*buffer == block(i, nbytes)),
            // It may have been evicted since the lookup: a block that is not there has to be computed.
            Err(error) => println!("block {i}: {error}"),
        }
    }
    println!("{} blocks read", filled.iter().filter(|key| key.is_ok()).count());

    let gone = client.delete_prefix("example-kv/prompt-1/", false).await?;
    println!("{} blocks deleted", gone.keys);
    client.reset_namespace("example-kv").await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(&std::env::args().nth(1).unwrap_or_else(|| DEFAULT_URL.to_owned())).await
}
