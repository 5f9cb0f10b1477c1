//! What was read from files, and is read again when they change: certificates and tokens are renewed without a restart.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

type Read<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value that comes from files.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    read: Read<T>,
    latest: Mutex<Latest<T>>,
}

struct Latest<T> {
    value: Arc<T>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

/// What changes when a file does; the inode because a rename within one tick of the clock changes nothing else.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

impl<T> Watched<T> {
    /// Reads it for the first time. `read` says in its error which file is wrong.
    pub fn new(paths: Vec<PathBuf>, read: impl Fn() -> Result<T, String> + Send + Sync + 'static) -> Result<Watched<T>, String> {
        // Before reading: a change meanwhile is seen at the next look.
        let stamps = paths.iter().map(|path| stamp(path)).collect();
        let value = Arc::new(read()?);
        Ok(Watched { paths, read: Box::new(read), latest: Mutex::new(Latest { value, stamps, looked: Instant::now() }) })
    }

    /// The latest value. Files that have become unreadable or wrong leave the one before in use, and say so in the log.
    pub fn get(&self) -> Arc<T> {
        let mut latest = self.latest.lock();
        if latest.looked.elapsed() >= LOOK {
            latest.looked = Instant::now();
            let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
            if stamps != latest.stamps {
                latest.stamps = stamps;
                match (self.read)() {
                    Ok(value) => {
                        tracing::info!(files = ?self.paths, "read again");
                        latest.value = Arc::new(value);
                    }
                    Err(error) => tracing::error!("{error}; what was read before stays in use"),
                }
            }
        }
        latest.value.clone()
    }
}

/// The bytes of a file; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// As [`read`], of a file that only its owner should be able to read.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read(path)?;
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        tracing::warn!("{}: others than its owner may read it; `chmod 600` would keep it secret", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let file = path.clone();
        let number = move || String::from_utf8_lossy(&read(&file)?).parse::<u32>().map_err(|error| error.to_string());
        let watched = Watched::new(vec![path.clone()], number).unwrap();
        let look_again = || watched.latest.lock().looked -= LOOK;
        assert_eq!(*watched.get(), 1);
        fs::write(&path, "22").unwrap();
        assert_eq!(*watched.get(), 1, "it was looked at a moment ago");
        look_again();
        assert_eq!(*watched.get(), 22);
        fs::write(&path, "no number").unwrap();
        look_again();
        assert_eq!(*watched.get(), 22);
        fs::remove_file(&path).unwrap();
        look_again();
        assert_eq!(*watched.get(), 22);
        // As a rotation does it: written beside, then renamed.
        fs::write(folder.path().join("next"), "33").unwrap();
        fs::rename(folder.path().join("next"), &path).unwrap();
        look_again();
        assert_eq!(*watched.get(), 33);
    }
}
