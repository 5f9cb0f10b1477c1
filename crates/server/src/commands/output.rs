//! A file that appears whole or not at all.

use std::fs::Permissions;
use std::io::{self, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::Failure;

/// A file being written beside the place where it is to be; gone when dropped before [`Output::finish`].
pub(crate) struct Output {
    path: PathBuf,
    temporary: NamedTempFile,
    file: File,
    at: u64,
}

impl Output {
    /// Begins a file that will be at `path`.
    pub(crate) fn create(path: &Path) -> Result<Output, Failure> {
        let failed = |error: io::Error| Failure::with(path.display(), error);
        // In the same folder, so that the last step is a rename.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // The process's umask takes from these permissions as it does from any file's.
        builder.prefix(".sira-").permissions(Permissions::from_mode(0o666));
        let temporary = builder.tempfile_in(folder).map_err(failed)?;
        let file = File::from_std(temporary.reopen().map_err(failed)?);
        Ok(Output { path: path.to_owned(), temporary, file, at: 0 })
    }

    /// Writes on.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.at += bytes.len() as u64;
        self.file.write_all(bytes).await.map_err(|error| Failure::with(self.path.display(), error))
    }

    /// Writes at a place in the file.
    pub(crate) async fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        if at != self.at {
            self.file.seek(SeekFrom::Start(at)).await.map_err(|error| Failure::with(self.path.display(), error))?;
            self.at = at;
        }
        self.write(bytes).await
    }

    /// Puts the file in its place, once the system has it on its disk.
    pub(crate) async fn finish(mut self) -> Result<(), Failure> {
        let path = self.path;
        let failed = |error: io::Error| Failure::with(path.display(), error);
        self.file.flush().await.map_err(failed)?;
        self.file.sync_all().await.map_err(failed)?;
        self.temporary.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}
