//! What only Linux has.

#[cfg(target_os = "linux")]
pub(crate) use linux::*;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::*;

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};

    use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, open};
    use rustix::io::Errno;
    use rustix::net::RecvFlags;

    /// Descriptors that are received belong to this process alone, not to programs it starts.
    pub(crate) const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;

    const FIXED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

    /// A file in memory, without a byte yet.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        match memfd_create("sira", flags | MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3.
            Err(Errno::INVAL) => Ok(memfd_create("sira", flags)?),
            made => Ok(made?),
        }
    }

    pub(crate) fn fix_length(file: &OwnedFd) -> io::Result<()> {
        Ok(fcntl_add_seals(file, FIXED)?)
    }

    pub(crate) fn is_fixed(file: &OwnedFd) -> io::Result<bool> {
        Ok(fcntl_get_seals(file)?.contains(SealFlags::SHRINK))
    }

    pub(crate) fn seal(file: &OwnedFd) -> io::Result<()> {
        match fcntl_add_seals(file, FIXED | SealFlags::WRITE | SealFlags::SEAL) {
            // Somebody else may have set the last seal, with all that is needed or without.
            Err(Errno::PERM) if is_sealed(file)? => Ok(()),
            sealed => Ok(sealed?),
        }
    }

    pub(crate) fn is_sealed(file: &OwnedFd) -> io::Result<bool> {
        Ok(fcntl_get_seals(file)?.contains(SealFlags::SHRINK | SealFlags::WRITE))
    }

    /// The same file, for reading alone.
    pub(crate) fn reopen(file: &OwnedFd) -> io::Result<OwnedFd> {
        Ok(open(format!("/proc/self/fd/{}", file.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::net::RecvFlags;

    pub(crate) const RECEIVE: RecvFlags = RecvFlags::empty();

    pub(crate) fn create() -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn fix_length(_: &OwnedFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_fixed(_: &OwnedFd) -> io::Result<bool> {
        Ok(false)
    }

    pub(crate) fn seal(_: &OwnedFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn is_sealed(_: &OwnedFd) -> io::Result<bool> {
        Ok(false)
    }

    pub(crate) fn reopen(_: &OwnedFd) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
