//! Walking the folders of values: always from an open handle, one component at a time, never through a symbolic link.

use std::collections::{BinaryHeap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::ledger::Ledger;
use crate::name;

/// How a folder is opened.
pub(super) const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Folders that are being made, by how many; one whose sync failed stays for ever, so that later puts sync it again.
///
/// A folder is entered before it is made and taken out once its parent is synced. So a put that finds a folder either finds it
/// here, and syncs the parent itself, or can trust it.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<HashMap<String, usize>>);

impl Fresh {
    fn enter(&self, folder: &str) {
        *self.0.lock().entry(folder.to_owned()).or_default() += 1;
    }

    fn leave(&self, folder: &str) {
        let mut fresh = self.0.lock();
        if let Some(count) = fresh.get_mut(folder) {
            *count -= 1;
            if *count == 0 {
                fresh.remove(folder);
            }
        }
    }
}

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// The folder of a name, or `None` where it, or a folder above it, is missing or a value.
pub(super) fn folder_of<'a>(root: &OwnedFd, name: &'a str) -> Result<Option<(OwnedFd, &'a str)>, Errno> {
    let (folder, leaf) = split(name);
    Ok(open(root, folder)?.map(|folder| (folder, leaf)))
}

fn open(root: &OwnedFd, folder: &str) -> Result<Option<OwnedFd>, Errno> {
    let mut at = rustix::fs::openat(root, ".", FOLDER, Mode::empty())?;
    for component in folder.split_terminator('/') {
        at = match rustix::fs::openat(&at, component, FOLDER, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            next => next?,
        };
    }
    Ok(Some(at))
}

/// Bytes of a value, `None` for what is no regular file.
pub(super) fn file_len(stat: &Stat) -> Option<u64> {
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    u64::try_from(stat.st_size).ok().filter(|_| regular)
}

/// Bytes of the value `leaf` in a folder, if there is one.
pub(super) fn len(folder: impl AsFd, leaf: &str) -> Result<Option<u64>, Errno> {
    match rustix::fs::statat(folder, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => Ok(file_len(&stat?)),
    }
}

/// Where a name lies: handles of all its folders, from the root's.
pub(super) struct Place<'a> {
    root: &'a OwnedFd,
    chain: Vec<OwnedFd>,
    pub(super) name: &'a str,
    pub(super) leaf: &'a str,
}

impl<'a> Place<'a> {
    /// The place of a name, where its folder exists.
    pub(super) fn find(root: &'a OwnedFd, name: &'a str) -> Result<Option<Place<'a>>, Errno> {
        let (folder, leaf) = split(name);
        let mut place = Place { root, chain: Vec::new(), name, leaf };
        for component in folder.split_terminator('/') {
            match rustix::fs::openat(place.folder(), component, FOLDER, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                next => place.chain.push(next?),
            }
        }
        Ok(Some(place))
    }

    /// The place of a name, with the folders that were missing. NOENT means that a racing delete removed one: try again.
    pub(super) fn make(root: &'a OwnedFd, name: &'a str, fresh: &Fresh) -> Result<Place<'a>, Errno> {
        let (folder, leaf) = split(name);
        let mut place = Place { root, chain: Vec::new(), name, leaf };
        let mut end = 0;
        for component in folder.split_terminator('/') {
            end += component.len();
            let next = match rustix::fs::openat(place.folder(), component, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => make_folder(place.folder(), component, &folder[..end], fresh)?,
                next => next?,
            };
            place.chain.push(next);
            end += 1;
        }
        Ok(place)
    }

    /// The folder that holds the value.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.above(self.chain.len())
    }

    fn above(&self, depth: usize) -> BorrowedFd<'_> {
        depth.checked_sub(1).and_then(|index| self.chain.get(index)).unwrap_or(self.root).as_fd()
    }

    /// Bytes of the value, if there is one. A folder in its place is ISDIR, unless it is empty: then it is removed.
    pub(super) fn len(&self) -> Result<Option<u64>, Errno> {
        match rustix::fs::statat(self.folder(), self.leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                match rustix::fs::unlinkat(self.folder(), self.leaf, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => Ok(None),
                    Err(_) => Err(Errno::ISDIR),
                }
            }
            stat => Ok(file_len(&stat?)),
        }
    }

    /// Makes the value's name durable: its folder's, and that of every folder which is just being made.
    pub(super) fn sync(&self, fresh: &Fresh) -> Result<(), Errno> {
        rustix::fs::fsync(self.folder())?;
        let unsure: Vec<usize> = {
            let fresh = fresh.0.lock();
            let ends = self.name.match_indices('/').map(|(end, _)| end).enumerate();
            if fresh.is_empty() {
                Vec::new()
            } else {
                ends.filter(|(_, end)| fresh.contains_key(&self.name[..*end])).map(|(depth, _)| depth).collect()
            }
        };
        unsure.into_iter().try_for_each(|depth| rustix::fs::fsync(self.above(depth)))
    }

    /// Removes the folders that are now empty. A put that raced in keeps its folder; one that comes late makes it again.
    pub(super) fn prune(&self) {
        let components: Vec<&str> = split(self.name).0.split_terminator('/').collect();
        for (depth, component) in components.iter().enumerate().rev() {
            if rustix::fs::unlinkat(self.above(depth), *component, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
    }
}

fn make_folder(parent: BorrowedFd<'_>, component: &str, path: &str, fresh: &Fresh) -> Result<OwnedFd, Errno> {
    fresh.enter(path);
    let made = match rustix::fs::mkdirat(parent, component, Mode::RWXU) {
        // Whoever made it has it entered, or synced.
        Err(Errno::EXIST) => Ok(()),
        Err(error) => {
            fresh.leave(path);
            return Err(error);
        }
        Ok(()) => rustix::fs::fsync(parent),
    };
    made?;
    fresh.leave(path);
    rustix::fs::openat(parent, component, FOLDER, Mode::empty())
}

/// An entry of a folder, its name with a `/` behind a folder's: so entries sort as the full names do.
fn entries(folder: impl AsFd, mut each: impl FnMut(String) -> Result<(), Errno>) -> Result<(), Errno> {
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let Ok(entry_name) = entry.file_name().to_str() else { continue };
        if name::check(entry_name).is_err() {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            kind = match rustix::fs::statat(&folder, entry_name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => FileType::from_raw_mode(stat?.st_mode),
            };
        }
        match kind {
            FileType::RegularFile => each(entry_name.to_owned())?,
            FileType::Directory => each(format!("{entry_name}/"))?,
            _ => {}
        }
    }
    Ok(())
}

/// Counts all values, and removes empty folders, which only a crash leaves.
pub(super) fn count(folder: &OwnedFd, ledger: &Ledger) -> Result<(), Errno> {
    let mut folders = Vec::new();
    entries(folder, |entry| {
        if entry.ends_with('/') {
            folders.push(entry);
        } else if let Some(len) = len(folder, &entry)? {
            ledger.found(len);
        }
        Ok(())
    })?;
    for inner in folders {
        let inner = inner.trim_end_matches('/');
        count(&rustix::fs::openat(folder, inner, FOLDER, Mode::empty())?, ledger)?;
        // One that is not empty stays.
        let _ = rustix::fs::unlinkat(folder, inner, AtFlags::REMOVEDIR);
    }
    Ok(())
}

/// Up to `limit` names that start with `prefix` and come after `after`, in byte order.
pub(super) fn list(root: &OwnedFd, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, Errno> {
    // What the prefix says of folders is walked, not searched.
    let folder = prefix.rfind('/').map_or("", |end| &prefix[..=end]);
    let mut names = Vec::new();
    let possible = limit > 0 && folder.split_terminator('/').all(|component| name::check(component).is_ok());
    if possible && let Some(at) = open(root, folder)? {
        Search { prefix, after, limit, names: &mut names }.folder(&at, folder)?;
    }
    Ok(names)
}

struct Search<'a> {
    prefix: &'a str,
    after: &'a str,
    limit: usize,
    names: &'a mut Vec<String>,
}

impl Search<'_> {
    /// Whether a value with this name, or one in the folder with this name, may be wanted.
    fn wants(&self, full: &str) -> bool {
        let folder = full.ends_with('/');
        let within = full.starts_with(self.prefix) || folder && self.prefix.starts_with(full);
        within && (full > self.after || folder && self.after.starts_with(full))
    }

    /// Adds the wanted names of a folder. Holds as many entries at once as names are still wanted, however large the folder is,
    /// and reads it again in the rare case that this was not enough: folders may turn out to hold nothing.
    fn folder(&mut self, at: &OwnedFd, path: &str) -> Result<(), Errno> {
        let mut done = String::new();
        loop {
            let most = (self.limit - self.names.len()).max(64);
            let (mut smallest, mut dropped) = (BinaryHeap::new(), false);
            entries(at, |entry| {
                if entry > done && self.wants(&format!("{path}{entry}")) {
                    smallest.push(entry);
                    if smallest.len() > most {
                        smallest.pop();
                        dropped = true;
                    }
                }
                Ok(())
            })?;
            for entry in smallest.into_sorted_vec() {
                let full = format!("{path}{entry}");
                match entry.strip_suffix('/') {
                    None => self.names.push(full),
                    Some(inner) => match rustix::fs::openat(at, inner, FOLDER, Mode::empty()) {
                        Err(Errno::NOENT | Errno::NOTDIR) => {}
                        inner => self.folder(&inner?, &full)?,
                    },
                }
                if self.names.len() == self.limit {
                    return Ok(());
                }
                done = entry;
            }
            if !dropped {
                return Ok(());
            }
        }
    }
}
