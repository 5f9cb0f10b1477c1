//! The memory that the running thread has allocated, and the most it had at once.

#![allow(unsafe_code, reason = "an allocator is unsafe; this one only counts and hands on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn took(bytes: usize) {
    // A thread that ends allocates after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes as isize);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn gave(bytes: usize) {
    let _ = HELD.try_with(|held| held.set(held.get() - bytes as isize));
}

// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while the bytes are moved.
        took(size);
        let moved = unsafe { System.realloc(pointer, layout, size) };
        gave(layout.size());
        moved
    }
}

/// Bytes that this thread holds.
pub fn held() -> isize {
    HELD.get()
}

/// Begins to look for a peak: give the answer to [`peak_since`].
pub fn mark() -> isize {
    PEAK.set(held());
    held()
}

/// Bytes that this thread held at most, beyond those at the mark that was set last.
pub fn peak_since(mark: isize) -> usize {
    (PEAK.get() - mark).max(0) as usize
}
