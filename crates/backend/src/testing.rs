//! Helpers of this crate's own tests.

use std::path::Path;
use std::process::Command;

/// A file system of its own, unmounted in the end.
pub(crate) struct Mount(tempfile::TempDir);

impl Mount {
    /// A tmpfs of this size, or `None`, with the reason printed, where it cannot be mounted.
    pub(crate) fn tmpfs(size: &str) -> Option<Mount> {
        let folder = tempfile::tempdir().ok()?;
        let options = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "sira-test"]).arg(folder.path()).output();
        match mount {
            Ok(done) if done.status.success() => Some(Mount(folder)),
            why => {
                eprintln!("skipped: a tmpfs cannot be mounted here: {why:?}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
