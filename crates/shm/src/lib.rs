//! Memory that processes of one machine share: a [`Region`] is made by a server, filled by it or by a client, and sealed; a [`Sealed`] one never
//! changes again, and everybody who has its descriptor maps the same pages. Descriptors travel over Unix sockets ([`send`], [`receive`]).
//!
//! No side has to trust the other: a region cannot shrink from its first moment on (whoever maps a file that shrinks is killed when it
//! reads beyond the end), and [`Sealed`] means that the kernel refuses to write to it, through whatever descriptor or mapping.
//!
//! This is Linux's; elsewhere making a region is refused as unsupported.

mod passing;
mod sys;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Mmap, MmapMut, MmapOptions};

pub use passing::{receive, send};

/// Bytes copied at once where a region cannot be sealed.
const COPY: usize = 1 << 20;

/// Regions that a process has at most, whatever it may open: so many are more than enough, and each takes a descriptor.
const MOST: usize = 8192;

/// Of the descriptors that a process may open, one in so many may be a region's: connections and files need the others.
const SHARE: u64 = 4;

/// Regions of this process, sealed or not.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Regions that this process may have at once.
fn most() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    let files = || rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    *LIMIT.get_or_init(|| files().map_or(MOST, |files| MOST.min((files / SHARE) as usize)))
}

/// One of the regions, as long as it lives.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> io::Result<Counted> {
        let more = |open: usize| (open < most()).then_some(open + 1);
        match OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Counted),
            Err(open) => {
                Err(io::Error::other(format!("{open} tensors are in such memory, as many as this process may hold descriptors for")))
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that is being filled. Its length never changes.
#[derive(Debug)]
pub struct Region {
    file: OwnedFd,
    len: usize,
    counted: Counted,
}

impl Region {
    /// A region of `len` bytes, all zero, 1 or more. Pages are taken as they are written. Refused where the process has as many of them as its
    /// limit of open files allows: a quarter of that, and 8,192 at most.
    pub fn create(len: usize) -> io::Result<Region> {
        let counted = Counted::new()?;
        let file = sys::create()?;
        rustix::fs::ftruncate(&file, len as u64)?;
        sys::fix_length(&file)?;
        Ok(Region { file, len, counted })
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a region has a byte at least")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The descriptor to pass to whoever fills it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes `bytes` at `offset`.
    pub fn write_at(&self, mut offset: usize, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = rustix::io::pwrite(&self.file, bytes, offset as u64)?;
            (bytes, offset) = (&bytes[written..], offset + written);
        }
        Ok(())
    }

    /// Seals it: nobody changes it any more. Refused, with the region back, while somebody has it mapped for writing.
    pub fn seal(self) -> Result<Sealed, (Region, io::Error)> {
        // A descriptor for reading alone: mapped through one that may write, it would count as writable.
        let sealed = sys::seal(&self.file).and_then(|()| sys::reopen(&self.file));
        match sealed.and_then(|file| Ok((map_sealed(&file, self.len)?, file))) {
            Ok((map, file)) => Ok(Sealed { file, map, _counted: self.counted }),
            Err(error) => Err((self, error)),
        }
    }

    /// A sealed region with the bytes that are here now, whoever may still change them here.
    pub fn sealed_copy(&self) -> io::Result<Sealed> {
        let copy = Region::create(self.len)?;
        let mut buffer = vec![0; COPY.min(self.len)];
        let mut offset = 0;
        // Through the kernel, and not a mapping: memory that changes while it is read is nothing that Rust can name.
        while offset < self.len {
            let read = rustix::io::pread(&self.file, &mut buffer, offset as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            copy.write_at(offset, &buffer[..read])?;
            offset += read;
        }
        copy.seal().map_err(|(_, error)| error)
    }
}

/// Memory that nobody changes any more.
#[derive(Debug)]
pub struct Sealed {
    file: OwnedFd,
    map: Mmap,
    _counted: Counted,
}

impl Sealed {
    /// The descriptor to pass to whoever maps it; it can only be read from.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// A sealed region that another process passed, mapped here.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the first `len` bytes of what `file` names; refused unless it is a region of that length or more that is sealed.
    pub fn new(file: &OwnedFd, len: usize) -> io::Result<Mapped> {
        map_sealed(file, len).map(Mapped)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Checks that nothing of what is mapped can change or go away, then maps it.
fn map_sealed(file: &OwnedFd, len: usize) -> io::Result<Mmap> {
    if !sys::is_sealed(file)? {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the memory that was passed may still change: it is not sealed"));
    }
    check_length(file, len)?;
    // SAFETY: sealed against writing and shrinking, the file stays what it is for as long as it is mapped, whoever else has it.
    #[allow(unsafe_code, reason = "the one way to map a file for reading")]
    unsafe {
        MmapOptions::new().len(len).map(file)
    }
}

/// A region that another process passed to be filled, mapped here.
#[derive(Debug)]
pub struct Filling(MmapMut);

impl Filling {
    /// Maps `len` bytes of what `file` names, for writing; refused unless it is a region of that length or more that cannot shrink.
    pub fn new(file: &OwnedFd, len: usize) -> io::Result<Filling> {
        if !sys::is_fixed(file)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the memory that was passed may shrink: it is not sealed"));
        }
        check_length(file, len)?;
        // SAFETY: it cannot shrink. The server that made it does not touch it until it is sealed, which takes the end of this mapping.
        #[allow(unsafe_code, reason = "the one way to map a file for writing")]
        let map = unsafe { MmapOptions::new().len(len).map_mut(file) }?;
        Ok(Filling(map))
    }
}

impl Deref for Filling {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Filling {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn check_length(file: &OwnedFd, len: usize) -> io::Result<()> {
    match rustix::fs::fstat(file)?.st_size {
        has if has >= len as i64 => Ok(()),
        has => Err(io::Error::new(io::ErrorKind::InvalidData, format!("the memory that was passed has {has} bytes, not {len}"))),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_sealed_is_the_same_memory_for_all_and_changes_for_none() {
        let region = Region::create(100_000).unwrap();
        let writer = rustix::io::dup(region.descriptor()).unwrap();
        region.write_at(99_998, b"ab").unwrap();
        let here = region.seal().unwrap();
        assert_eq!(&here.as_ref()[99_997..], b"\0ab");
        assert!(rustix::io::pwrite(&writer, b"x", 0).is_err());
        assert!(rustix::io::pwrite(here.descriptor(), b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&writer, 10).is_err());
        assert!(Filling::new(&writer, 100_000).is_err());

        let passed = rustix::io::dup(here.descriptor()).unwrap();
        let there = Mapped::new(&passed, 100_000).unwrap();
        drop((here, passed));
        assert_eq!(&there[99_997..], b"\0ab", "a mapping outlives whoever made it");
        assert!(Mapped::new(&writer, 100_001).is_err());
    }

    #[test]
    fn a_region_that_somebody_may_write_to_is_copied_and_never_shrinks() {
        let region = Region::create(3 << 20).unwrap();
        let passed = rustix::io::dup(region.descriptor()).unwrap();
        assert!(rustix::fs::ftruncate(&passed, 10).is_err() && rustix::fs::ftruncate(&passed, 4 << 20).is_err());
        assert!(Mapped::new(&passed, 3 << 20).is_err(), "it may still change");
        let mut filling = Filling::new(&passed, 3 << 20).unwrap();
        filling.fill(7);
        let (region, error) = region.seal().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::BUSY.raw_os_error()));
        let copy = region.sealed_copy().unwrap();
        filling.fill(8);
        assert!(copy.as_ref().iter().all(|&byte| byte == 7));
        drop(filling);
        assert!(region.seal().unwrap().as_ref().iter().all(|&byte| byte == 8));
    }

    #[test]
    fn descriptors_travel_with_the_bytes_they_were_sent_with() {
        let (one, other) = UnixStream::pair().unwrap();
        let region = Region::create(10).unwrap();
        assert_eq!(send(&one, b"with", Some(region.descriptor())).unwrap(), 4);
        assert_eq!(send(&one, b"without", None).unwrap(), 7);
        let mut buffer = [0; 64];
        let (read, passed) = receive(&other, &mut buffer).unwrap();
        assert!(buffer[..read].starts_with(b"with") && passed.is_some());
        assert!(Filling::new(&passed.unwrap(), 10).is_ok());
    }
}
