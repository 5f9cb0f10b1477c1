//! File systems in images, in memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of an image.
const SIZE: &str = "160M";

/// Runs a program to its end; its words where it fails.
fn run(program: &str, arguments: &[&str], path: &[&Path]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).args(path).output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() { Ok(()) } else { Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())) }
}

/// A tmpfs that holds images; unmounted in the end.
pub struct Ram(tempfile::TempDir);

impl Ram {
    /// Mounts it, and tries an image.
    pub fn mount() -> Result<Ram, String> {
        let folder = tempfile::tempdir().map_err(|error: io::Error| error.to_string())?;
        run("mount", &["-t", "tmpfs", "-o", "size=1G", "sira-power"], &[folder.path()])?;
        let ram = Ram(folder);
        Image::make(&ram, "trial")?.try_mount("trial-folder")?;
        Ok(ram)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        let _ = run("umount", &[], &[self.0.path()]);
    }
}

/// An image of an ext4 file system; removed in the end.
pub struct Image<'a> {
    ram: &'a Ram,
    file: PathBuf,
}

impl<'a> Image<'a> {
    /// A new, empty one.
    pub fn create(ram: &'a Ram, name: &str) -> Image<'a> {
        Image::make(ram, name).unwrap()
    }

    fn make(ram: &'a Ram, name: &str) -> Result<Image<'a>, String> {
        let file = ram.0.path().join(format!("{name}.img"));
        run("truncate", &["--size", SIZE], &[&file])?;
        let image = Image { ram, file };
        run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"], &[&image.file])?;
        Ok(image)
    }

    /// As it is at one moment: whoever writes to it is stopped, but the kernel may write on. Two copies in a row that are equal are what it
    /// was between them.
    pub fn copy(&self, name: &str) -> Image<'a> {
        let [file, again] = [name, "again"].map(|name| self.ram.0.path().join(format!("{name}.img")));
        let copy = |to: &Path| run("cp", &["--sparse=always"], &[&self.file, to]).unwrap();
        loop {
            copy(&file);
            copy(&again);
            let same = run("cmp", &["-s"], &[&file, &again]).is_ok();
            fs::remove_file(&again).unwrap();
            if same {
                return Image { ram: self.ram, file };
            }
        }
    }

    /// Mounts it in a folder beside it.
    pub fn mount(&self, name: &str) -> Mounted {
        self.try_mount(name).unwrap()
    }

    fn try_mount(&self, name: &str) -> Result<Mounted, String> {
        let folder = self.ram.0.path().join(name);
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        run("mount", &["-o", "loop"], &[&self.file, &folder])?;
        Ok(Mounted(folder))
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// A mounted image; unmounted in the end.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A killed process may hold it a moment longer.
        for _ in 0..100 {
            if run("umount", &[], &[&self.0]).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = run("umount", &["--lazy"], &[&self.0]);
    }
}
