//! Counts what the current thread has allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { current: 0, peak: 0 }) };
}

/// Bytes; what another thread frees may make the first negative.
#[derive(Clone, Copy)]
struct Count {
    current: isize,
    peak: isize,
}

/// Runs `run`, and returns the most bytes that it had allocated at once.
pub(crate) fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    COUNT.set(Count {
        current: 0,
        peak: 0,
    });
    let result = run();
    (result, COUNT.get().peak.unsigned_abs())
}

fn add(n_bytes: isize) {
    // The thread may be ending.
    let _ = COUNT.try_with(|count| {
        let current = count.get().current + n_bytes;
        let peak = count.get().peak.max(current);
        count.set(Count { current, peak });
    });
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        add(n_bytes as isize - layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(memory, layout, n_bytes) }
    }
}
