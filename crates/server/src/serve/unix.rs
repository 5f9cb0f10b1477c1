//! The Unix socket: a file that only the server's user may open, and that no other server uses.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::Failure;

/// How long a server may take to accept a connection before it is taken for one that lives, and is only busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// What others than its user may do with whatever is made meanwhile: nothing.
const PRIVATE: Mode = Mode::from_raw_mode(0o077);

/// The mode of a socket's file: to connect takes the right to write.
const MODE: u32 = 0o600;

/// The file of a socket that this process listens on; removed when dropped, unless another one has taken its place.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Listens at `path`. The file that a dead server left there is replaced.
pub(super) async fn listen(path: &Path) -> Result<(UnixListener, SocketFile), Failure> {
    let place = format!("cannot listen on the Unix socket {}", path.display());
    let failed = |error: io::Error| Failure::with(&place, error);
    let path = std::path::absolute(path).map_err(failed)?;
    let listener = match bind(&path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if let Some(why) = occupied(&path).await {
                return Err(Failure::Failed(format!("{place}: {why}")));
            }
            fs::remove_file(&path).and_then(|()| bind(&path)).map_err(failed)?
        }
        bound => bound.map_err(failed)?,
    };
    let identity = identity(&path).map_err(failed)?;
    Ok((listener, SocketFile { path, identity }))
}

/// Makes the file, closed to others from the first moment on: one whose mode is only changed afterwards is open until then.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = umask(PRIVATE);
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Why the file at `path` must stay; `None` where it is the socket of a server that is gone.
async fn occupied(path: &Path) -> Option<String> {
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Some("there is a file that is no socket; move it, or name another path".to_owned());
        }
        Ok(_) => {}
        Err(error) => return Some(error.to_string()),
    }
    match timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => None,
        Ok(Err(error)) if error.kind() != ErrorKind::WouldBlock => Some(format!("another server's socket may be there: {error}")),
        _ => Some("another server listens there; stop it, or name another path".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_its_users_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, file) = listen(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(file.path(), path);
        let error = listen(&path).await.err().unwrap().to_string();
        assert!(error.contains("another server listens there") && error.contains(&path.display().to_string()), "{error}");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_server_left_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, file) = listen(&path).await.unwrap();
        // Somebody else's by now: not ours to remove.
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());

        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = listen(&file).await.err().unwrap().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let error = listen(&folder.path().join("x".repeat(200))).await.err().unwrap().to_string();
        assert!(error.contains("cannot listen on the Unix socket"), "{error}");
    }
}
