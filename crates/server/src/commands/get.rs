//! `sira get`: a tensor to a file, or all tensors of a key or below a prefix.

use serde_json::json;
use sira_client::{Code, GetOptions, TensorStream};
use tokio::signal::unix::{SignalKind, signal};

use super::output::Output;
use super::{Server, collect, print, print_line};
use crate::cli::GetArgs;
use crate::config::units::short_size;
use crate::formats::Format;
use crate::progress::Progress;
use crate::{Failure, formats};

/// What a tensor is called in a .safetensors file when nothing else is said.
const DEFAULT_NAME: &str = "tensor";

/// `sira get`. Interrupted, it leaves nothing: a process that a signal ends would leave what it has written so far, under a name that nobody looks for.
pub(crate) async fn get(server: Server<'_>, args: GetArgs) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Failure::with("signals", error))?;
    tokio::select! {
        done = fetch(server, args) => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::Failed("interrupted; nothing is written".into())),
        _ = terminate.recv() => Err(Failure::Failed("told to stop; nothing is written".into())),
    }
}

async fn fetch(server: Server<'_>, args: GetArgs) -> Result<(), Failure> {
    let format = Format::of(&args.file)?;
    let options = GetOptions {
        version: args.version,
        slice: args.slices.iter().cloned().collect(),
        part: args.part.clone(),
        kv_spec: args.spec.clone(),
        ..GetOptions::default()
    };
    if options.slice.len() < args.slices.len() {
        return Err(Failure::Usage("two slices of one axis".into()));
    }
    let one = !args.slices.is_empty() || args.part.is_some() || args.tensor.is_some();
    if args.key.ends_with('/') {
        if format == Format::Npy || one || args.version.is_some() {
            let reason = "collects what is below it, in a .safetensors file, without --slice, --part, --tensor and --version";
            return Err(Failure::Usage(format!("a key that ends with / {reason}")));
        }
        return collect::prefix(&server.connect().await?, &args).await;
    }
    let client = server.connect().await?;
    match client.get(&args.key, &options).await {
        Ok(tensor) => write(tensor, format, &args).await,
        Err(error) if error.code() == Some(Code::HasParts) && format == Format::Safetensors && !one => collect::parts(&client, &args).await,
        Err(error) if error.code() == Some(Code::HasParts) => Err(Failure::Usage(format!("{error}; --part NAME chooses one"))),
        Err(error) => Err(error.into()),
    }
}

async fn write(mut tensor: TensorStream, format: Format, args: &GetArgs) -> Result<(), Failure> {
    let spec = tensor.spec().clone();
    let name = args.tensor.as_deref().or(args.part.as_deref()).unwrap_or(DEFAULT_NAME);
    let mut output = Output::create(&args.file)?;
    output.write(&formats::header(format, &args.file, &spec, name)?).await?;
    let progress = Progress::bytes(Some(spec.nbytes()), !args.json);
    while let Some(piece) = tensor.next().await? {
        output.write(&piece).await?;
        progress.advance(piece.len() as u64);
    }
    output.finish().await?;
    drop(progress);
    if args.json {
        let (dtype, shape, nbytes) = (spec.dtype().name(), spec.shape(), spec.nbytes());
        return print_line(&json!({ "key": args.key, "part": args.part, "dtype": dtype, "shape": shape, "nbytes": nbytes }));
    }
    print(&format!("{}: {} {:?}, {}", args.file.display(), spec.dtype(), spec.shape(), short_size(spec.nbytes())))
}
