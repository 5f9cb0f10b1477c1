//! Memory that payloads are gathered in: aligned, written once, shared without a copy, used again.
//!
//! # Contract
//! - A region begins at a multiple of [`ALIGN`]; one of a page or more at a page, one of [`HUGE`] bytes or more at a huge page, which the
//!   kernel is asked to use.
//! - Memory is not cleared: a new region holds whatever was there, be it another client's tensor. Only bytes that were appended can be read,
//!   by any means that this module offers; [`Region::freeze`] gives out those and no others.
//! - A region takes [`taken`] bytes, which is more than what lies in it where that is between two sizes. Whoever holds one has set that much
//!   aside in the ledger.
//! - When the last reader of a region is gone, its pool keeps its memory for the next one of the same size: touching fresh memory costs
//!   several times what copying into it does. What a pool keeps is bounded, and no part of what the ledger gives out: the store takes the
//!   bound off the memory limit at its start. So a pool stands in nobody's way, and what it keeps for long without need ([`Pool::tidy`])
//!   goes back to the system only because the machine may need it.

#![allow(unsafe_code, reason = "memory that is not cleared before it is written; each use says why it is sound")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, VecDeque};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::StoreError;

/// Where every region begins: what Arrow recommends, and a line of the processor's cache.
pub(crate) const ALIGN: usize = 64;

const PAGE: usize = 4 << 10;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Regions of fewer bytes come from the allocator and go back to it: it has them at hand as fast as a pool would.
const POOLED: usize = 64 << 10;

/// Sizes of pooled regions between a power of two and the next, none less than a page apart: little is lost, and tensors of one shape, which
/// come again and again, find each other's regions.
const STEPS: u64 = 64;

/// Bytes that a region for `bytes` takes.
pub(crate) fn taken(bytes: u64) -> u64 {
    if !(POOLED as u64..1 << 62).contains(&bytes) {
        return bytes;
    }
    bytes.next_multiple_of((bytes.next_power_of_two() / 2 / STEPS).max(PAGE as u64))
}

/// Memory of its own, given back when dropped.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    mapped: bool,
}

// SAFETY: it owns what it points to, and hands out no references by itself.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` of memory, which are not cleared; `None` where the system has none.
    fn new(bytes: usize) -> Option<Memory> {
        // The kernel limits how many maps a process has: beyond that the allocator has to do, and its alignment.
        (bytes >= HUGE).then(|| Memory::map(bytes)).flatten().or_else(|| Memory::allocate(bytes))
    }

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, if bytes < PAGE { ALIGN } else { PAGE }).ok()
    }

    fn allocate(bytes: usize) -> Option<Memory> {
        let layout = Memory::layout(bytes).filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        Some(Memory { start, bytes, mapped: false })
    }

    fn map(bytes: usize) -> Option<Memory> {
        let whole = bytes.checked_add(HUGE)?;
        // SAFETY: a new map at a place that the kernel chooses.
        let map =
            unsafe { mmap_anonymous(ptr::null_mut(), whole, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?.cast::<u8>();
        let before = map.addr().next_multiple_of(HUGE) - map.addr();
        // SAFETY: both lie within the new map, which nobody else knows, and beside what is kept of it. That fails only where the number of
        // maps does; the rest then stays, untouched: addresses, not memory.
        let start = unsafe {
            let start = map.add(before);
            if before > 0 {
                let _ = munmap(map.cast(), before);
            }
            let _ = munmap(start.add(bytes).cast(), whole - before - bytes);
            // Where the kernel has no huge pages, small ones do.
            let _ = madvise(start.cast(), bytes, Advice::LinuxHugepage);
            start
        };
        Some(Memory { start: NonNull::new(start)?, bytes, mapped: true })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.mapped {
            // SAFETY: it is a whole map of its own, and no reference into it outlives its owner. Where the kernel cannot take the addresses
            // back, it takes the memory.
            unsafe {
                if munmap(self.start.as_ptr().cast(), self.bytes).is_err() {
                    let _ = madvise(self.start.as_ptr().cast(), self.bytes, Advice::LinuxDontNeed);
                }
            }
        } else if let Some(layout) = Memory::layout(self.bytes) {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Regions that nobody uses, for the next ones of their sizes. Clones are one pool.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    idle: Mutex<Idle>,
    limit: usize,
}

#[derive(Default)]
struct Idle {
    /// By size; the one that was used last comes last.
    regions: BTreeMap<usize, VecDeque<(Memory, u64)>>,
    bytes: usize,
    /// Counts [`Pool::tidy`].
    round: u64,
}

impl Pool {
    /// A pool that keeps at most `limit` bytes of idle regions.
    pub fn new(limit: u64) -> Pool {
        Pool { shared: Arc::new(Shared { idle: Mutex::default(), limit: usize::try_from(limit).unwrap_or(usize::MAX) }) }
    }

    /// A region that takes in `capacity` bytes, for which its holder has [`taken`] set aside.
    pub fn region(&self, capacity: u64) -> Result<Region, StoreError> {
        let bytes = usize::try_from(taken(capacity)).unwrap_or(usize::MAX);
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        if capacity == 0 {
            return Ok(Region { memory: None, capacity, len: 0, pool: self.shared.clone() });
        }
        let idle = if bytes < POOLED { None } else { self.shared.idle.lock().take(bytes) };
        let memory = idle.or_else(|| Memory::new(bytes));
        let memory = memory.ok_or_else(|| StoreError::OutOfSpace(format!("memory: the system has no {bytes} bytes for this server")))?;
        Ok(Region { memory: Some(memory), capacity, len: 0, pool: self.shared.clone() })
    }

    /// Frees the regions that have not been used since the call before the last one.
    pub fn tidy(&self) {
        let mut freed = Vec::new();
        let mut idle = self.shared.idle.lock();
        idle.round += 1;
        let Idle { regions, bytes, round } = &mut *idle;
        regions.retain(|size, same| {
            while same.front().is_some_and(|(_, since)| since + 1 < *round) {
                *bytes -= size;
                freed.extend(same.pop_front());
            }
            !same.is_empty()
        });
        drop(idle);
    }

    /// Bytes of idle regions.
    #[cfg(test)]
    pub fn idle_bytes(&self) -> u64 {
        self.shared.idle.lock().bytes as u64
    }
}

impl Idle {
    fn take(&mut self, bytes: usize) -> Option<Memory> {
        let (memory, _) = self.regions.get_mut(&bytes)?.pop_back()?;
        self.bytes -= bytes;
        Some(memory)
    }

    /// The region that was used before all others.
    fn oldest(&mut self) -> Option<Memory> {
        let first = |same: &VecDeque<(Memory, u64)>| same.front().map_or(u64::MAX, |(_, since)| *since);
        let (bytes, same) = self.regions.iter_mut().min_by_key(|(_, same)| first(same))?;
        self.bytes -= bytes;
        let (bytes, oldest) = (*bytes, same.pop_front());
        if same.is_empty() {
            self.regions.remove(&bytes);
        }
        oldest.map(|(memory, _)| memory)
    }
}

impl Shared {
    fn give_back(&self, memory: Memory) {
        if memory.bytes < POOLED || memory.bytes > self.limit {
            return;
        }
        // Freed after the lock.
        let mut freed = Vec::new();
        let mut idle = self.idle.lock();
        while idle.bytes + memory.bytes > self.limit {
            let Some(oldest) = idle.oldest() else { return };
            freed.push(oldest);
        }
        let round = idle.round;
        idle.bytes += memory.bytes;
        idle.regions.entry(memory.bytes).or_default().push_back((memory, round));
        drop(idle);
    }
}

/// Bytes that come one after another into one run of memory.
pub(crate) struct Region {
    memory: Option<Memory>,
    capacity: usize,
    /// Bytes from the start that have been written.
    len: usize,
    pool: Arc<Shared>,
}

impl Region {
    /// Appends as many of `bytes` as there is room for, and says how many.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let Some(memory) = &self.memory else { return 0 };
        let count = bytes.len().min(self.capacity - self.len);
        // SAFETY: `len + count` is within the capacity, which is within the memory; a borrowed slice cannot lie in memory that only this
        // region refers to, beyond what it has given out.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), memory.start.as_ptr().add(self.len), count) };
        self.len += count;
        count
    }

    /// What was appended.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: this many bytes were written.
            Some(memory) => unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), self.len) },
            None => &[],
        }
    }

    /// Whether it has taken in as much as was asked for.
    pub fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// What was appended, to be shared. The memory goes back to the pool with the last clone and slice of it.
    pub fn freeze(self) -> Bytes {
        if self.len == 0 { Bytes::new() } else { Bytes::from_owner(self) }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(pool: &Pool, bytes: usize, with: u8) -> Region {
        let mut region = pool.region(bytes as u64).unwrap();
        assert_eq!(region.append(&vec![with; bytes]), bytes);
        region
    }

    #[test]
    fn regions_are_aligned_and_the_large_ones_at_huge_pages() {
        let pool = Pool::new(0);
        for (bytes, align) in [(1, ALIGN), (100, ALIGN), (PAGE, PAGE), (70_000, PAGE), (HUGE - 1, PAGE), (HUGE, HUGE), (5 * HUGE + 7, HUGE)]
        {
            let frozen = filled(&pool, bytes, 7).freeze();
            assert_eq!(frozen.as_ptr() as usize % align, 0, "{bytes}");
            assert_eq!(frozen, vec![7; bytes]);
        }
        assert!(pool.region(0).unwrap().freeze().is_empty());
    }

    #[test]
    fn only_what_was_appended_can_be_read() {
        let pool = Pool::new(1 << 20);
        drop(filled(&pool, 100_000, 0xaa).freeze());
        let mut region = pool.region(100_000).unwrap();
        assert_eq!(region.append(b"abc"), 3);
        assert_eq!(region.bytes(), b"abc");
        assert!(!region.is_full());
        assert_eq!(region.freeze(), b"abc"[..], "and nothing of what was there before");
        let mut full = filled(&pool, 100_000, 1);
        assert_eq!(full.append(b"more"), 0, "not even where the memory has room");
        assert!(full.is_full());
    }

    #[test]
    fn memory_comes_back_with_the_last_reader_and_is_used_again() {
        let pool = Pool::new(8 << 20);
        let first = filled(&pool, HUGE, 1).freeze();
        let (at, slice) = (first.as_ptr(), first.slice(5..9));
        drop(first);
        assert_eq!(pool.idle_bytes(), 0, "a slice of it is still read");
        assert_eq!(slice, [1; 4][..]);
        drop(slice);
        assert_eq!(pool.idle_bytes(), HUGE as u64);
        let second = filled(&pool, HUGE, 2).freeze();
        assert_eq!((second.as_ptr(), pool.idle_bytes()), (at, 0));
    }

    #[test]
    fn what_is_idle_is_bounded_and_goes_after_a_while() {
        let pool = Pool::new(4 * POOLED as u64);
        let many: Vec<_> = (0..10).map(|_| filled(&pool, POOLED, 3)).collect();
        drop(many);
        assert_eq!(pool.idle_bytes(), 4 * POOLED as u64);
        drop(filled(&pool, 2 * POOLED, 4));
        assert_eq!(pool.idle_bytes(), 4 * POOLED as u64, "the new comes, the old goes");
        drop(filled(&pool, 5 * POOLED, 4));
        assert_eq!(pool.idle_bytes(), 4 * POOLED as u64, "too large to be kept");
        pool.tidy();
        drop(filled(&pool, 2 * POOLED, 4));
        pool.tidy();
        assert_eq!(pool.idle_bytes(), 2 * POOLED as u64, "used since");
        pool.tidy();
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn readers_on_many_threads_give_back_what_they_read() {
        let pool = Pool::new(64 << 20);
        std::thread::scope(|scope| {
            for number in 0..8u8 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for size in [POOLED, 3 * POOLED, HUGE] {
                        let bytes = filled(&pool, size, number).freeze();
                        let reader = std::thread::spawn(move || bytes.iter().all(|&byte| byte == number));
                        assert!(reader.join().unwrap());
                    }
                });
            }
        });
        assert!(pool.idle_bytes() > 0);
    }

    proptest! {
        #[test]
        fn a_region_takes_little_more_than_what_lies_in_it(bytes in 0u64..1 << 40) {
            let takes = taken(bytes);
            prop_assert!(takes >= bytes && takes <= bytes + (bytes / STEPS).max(PAGE as u64));
            prop_assert_eq!(taken(takes), takes);
        }
    }
}
