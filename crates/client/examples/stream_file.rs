//! Streams a large tensor from a file to the server and back to another file. A few pieces of 2 to 4 MiB are in memory at any time, however large the
//! tensor is.
//!
//! `cargo run -p sira-client --example stream_file -- [URL]`, with a server at URL (default: grpc://127.0.0.1:9095).

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::Path;

use sira_client::{Client, DEFAULT_URL, DType, GetOptions, PutOptions, TensorSpec};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Rows of the tensor: 64 MiB of float32.
const ROWS: u64 = 4096;
const COLUMNS: u64 = 4096;

/// Writes a file to have something to send.
fn write_sample(path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for row in 0..ROWS as u32 {
        let values = (0..COLUMNS as u32).flat_map(|column| ((row ^ column) as f32).to_le_bytes());
        file.write_all(&values.collect::<Vec<u8>>())?;
    }
    file.flush()
}

/// Whether two files hold the same bytes.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (std::fs::File::open(a)?, std::fs::File::open(b)?);
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    loop {
        of_a.clear();
        of_b.clear();
        let read = (&mut a).take(1 << 20).read_to_end(&mut of_a)?;
        (&mut b).take(1 << 20).read_to_end(&mut of_b)?;
        if of_a != of_b || read == 0 {
            return Ok(of_a == of_b);
        }
    }
}

/// Does it all against the server at `url`.
pub async fn run(url: &str) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (source, target) = (folder.path().join("source.bin"), folder.path().join("target.bin"));
    write_sample(&source)?;

    let client = Client::connect(url).await?;
    let spec = TensorSpec::new(DType::Float32, vec![ROWS, COLUMNS])?.with_axes(vec!["row".into(), "column".into()])?;
    // The file is read as it is sent. Were it shorter or longer than the tensor, nothing would be stored.
    let put = client.put_reader("example/large", &spec, File::open(&source).await?, PutOptions::default()).await?;
    println!("{} has version {}, {} bytes", put.key, put.version, spec.nbytes());

    let mut tensor = client.get("example/large", &GetOptions::default()).await?;
    let mut file = File::create(&target).await?;
    let mut pieces = 0;
    while let Some(piece) = tensor.next().await? {
        file.write_all(&piece).await?;
        pieces += 1;
    }
    file.flush().await?;
    println!("came back in {pieces} pieces");
    assert!(same(&source, &target)?);

    client.delete("example/large", None).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run(&std::env::args().nth(1).unwrap_or_else(|| DEFAULT_URL.to_owned())).await
}
