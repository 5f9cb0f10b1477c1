//! What the system says of this process.

/// Of Linux's /proc; other systems do not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Seconds of processor time.
    pub cpu_seconds: f64,
    /// Bytes of memory that are not swapped out.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// File descriptors that may be open; `None` where there is no limit.
    pub max_fds: Option<u64>,
    /// Threads.
    pub threads: u64,
}

#[cfg(target_os = "linux")]
impl Process {
    pub(super) fn read() -> Option<Process> {
        use procfs::WithCurrentSystemInfo;
        use procfs::process::LimitValue;
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        Some(Process {
            cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
            resident_bytes: stat.rss_bytes().get(),
            open_fds: process.fd_count().ok()? as u64,
            max_fds: match process.limits().ok()?.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit),
                LimitValue::Unlimited => None,
            },
            threads: u64::try_from(stat.num_threads).ok()?,
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Process {
    pub(super) fn read() -> Option<Process> {
        None
    }
}
