//! `sira get`: a tensor to a file, which appears whole or not at all.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sira_client::GetOptions;
use tokio::io::AsyncWriteExt;

use super::{connect, print};
use crate::cli::GetArgs;
use crate::config::units::short_size;
use crate::formats::Format;
use crate::{Failure, formats};

/// `sira get`.
pub(crate) async fn get(url: &str, args: GetArgs) -> Result<(), Failure> {
    let format = Format::of(&args.file)?;
    let options = GetOptions { version: args.version, slice: args.slices.iter().cloned().collect(), ..GetOptions::default() };
    if options.slice.len() < args.slices.len() {
        return Err(Failure::Usage("two slices of one axis".into()));
    }
    let mut tensor = connect(url).await?.get(&args.key, &options).await?;
    let spec = tensor.spec().clone();
    let header = formats::header(format, &args.file, &spec, &args.tensor)?;

    let failed = |error: std::io::Error| Failure::with(args.file.display(), error);
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // In the same folder, so that the last step is a rename; the process's umask takes from these permissions as it does from any file's.
    let mut builder = tempfile::Builder::new();
    let temporary = builder.prefix(".sira-").permissions(Permissions::from_mode(0o666)).tempfile_in(folder).map_err(failed)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(failed)?);
    file.write_all(&header).await.map_err(failed)?;
    while let Some(piece) = tensor.next().await? {
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    temporary.persist(&args.file).map_err(|error| failed(error.error))?;
    print(&format!("{}: {} {:?}, {}", args.file.display(), spec.dtype(), spec.shape(), short_size(spec.nbytes())))
}
