//! One server to a data folder, and only one that knows its format.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::Failure;

/// Makes the data folder if it is missing and takes its lock, which ends with the file or the process. The file says who has it.
pub(super) fn lock_data(folder: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::with(format_args!("data folder {}", folder.display()), error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if read { format!(" (process {})", holder.trim()) } else { String::new() };
            let folder = folder.display();
            return Err(Failure::Failed(format!(
                "data folder {folder} is in use by another server{holder}; stop it or give another --data"
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// The format of data folders that this version reads and writes (docs/format.md).
const FORMAT: u32 = 1;

/// Refuses a data folder of another format before anything in it is opened; marks a new one. The caller holds its lock.
pub(super) fn check_format(folder: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::with(format_args!("data folder {}", folder.display()), error);
    let path = folder.join("format");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
    };
    match text.trim() {
        // A new folder, or one whose first start was cut off.
        "" => {
            let mut file = File::create(&path).map_err(failed)?;
            writeln!(file, "{FORMAT}").and_then(|()| file.sync_all()).map_err(failed)
        }
        text if text.parse() == Ok(FORMAT) => Ok(()),
        text => Err(Failure::Failed(format!(
            "data folder {} has format {text:?}; this version of Sira reads {FORMAT}. Run the version that wrote it; nothing in it was changed",
            folder.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        let held = lock_data(&data).unwrap();
        let error = lock_data(&data).unwrap_err().to_string();
        assert!(error.contains("in use by another server") && error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        lock_data(&data).unwrap();
    }

    #[test]
    fn a_folder_of_a_newer_format_is_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        check_format(folder.path()).unwrap();
        check_format(folder.path()).unwrap();
        std::fs::write(folder.path().join("format"), "2\n").unwrap();
        let error = check_format(folder.path()).unwrap_err().to_string();
        assert!(error.contains("format \"2\"; this version of Sira reads 1"), "{error}");
        assert_eq!(std::fs::read_to_string(folder.path().join("format")).unwrap(), "2\n");
    }
}
