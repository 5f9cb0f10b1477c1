//! `sira put`: a file's tensor to the server, streamed.

use sira_client::PutOptions;

use super::{Server, print};
use crate::cli::PutArgs;
use crate::config::units::short_size;
use crate::{Failure, formats};

/// `sira put`.
pub(crate) async fn put(server: Server<'_>, args: PutArgs) -> Result<(), Failure> {
    let source = formats::open(&args.file, args.tensor.as_deref()).await?;
    let usage = |error: sira_tensor::TensorError| Failure::Usage(error.to_string());
    let spec = source.spec.with_axes(args.axes).map_err(usage)?;
    let spec = spec.with_attributes(args.attributes.into_iter().collect()).map_err(usage)?;
    let options = PutOptions {
        codec: args.codec,
        ttl: args.ttl.map(|ttl| ttl.as_secs()),
        consistency: args.consistency,
        condition: args.condition,
        ..PutOptions::default()
    };
    let answer = server.connect().await?.put_stream(&args.key, &spec, source.pieces, options).await?;
    let created = if answer.created { "created" } else { "replaced" };
    print(&format!("{}: version {}, {created}, {}", answer.key, answer.version, short_size(spec.nbytes())))
}
