//! Operations of our own in ggml's graphs, which its threads compute together.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use llama_cpp_sys_2 as sys;

use super::node::Node;

/// Looks at whether the other threads are done before others of the machine get the processor.
const LOOKS_BEFORE_YIELDING: u32 = 1000;

/// What a node computes in place of ggml: first all of one kind of parts, then, with what these gave, all of another.
pub(super) trait SharedWork: Sync {
    /// How far it is.
    fn progress(&self) -> &Progress;

    /// How many parts come first.
    fn n_preparations(&self) -> usize;

    /// Computes one of them; no other thread does.
    fn prepare(&self, part: usize);

    /// How many parts come then.
    fn n_parts(&self) -> usize;

    /// Computes one of them, when all was prepared; no other thread does.
    fn compute(&self, part: usize);
}

/// How far threads have come with their work.
#[derive(Default)]
pub(super) struct Progress {
    next_preparation: AtomicUsize,
    n_prepared: AtomicUsize,
    next_part: AtomicUsize,
    has_failed: AtomicBool,
}

impl Progress {
    /// Whether a part panicked.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }
}

/// Has a node computed by this work, which has to live until the graph has ended.
pub(super) fn put_in<W: SharedWork>(node: Node, work: *const W) {
    node.set_function(call::<W>, work.cast_mut().cast());
}

/// What ggml calls on each of its threads.
unsafe extern "C" fn call<W: SharedWork>(
    _: *mut sys::ggml_tensor,
    _: c_int,
    _: c_int,
    work: *mut c_void,
) {
    // SAFETY: it is what `put_in` was given.
    let work = unsafe { &*work.cast::<W>() };
    if catch_unwind(AssertUnwindSafe(|| take_part(work))).is_err() {
        let has_failed = &work.progress().has_failed;
        has_failed.store(true, Ordering::Relaxed); // and no other thread waits for this one
    }
}

fn take_part<W: SharedWork>(work: &W) {
    let progress = work.progress();
    let n_preparations = work.n_preparations();
    for part in taken(&progress.next_preparation, n_preparations) {
        work.prepare(part);
        progress.n_prepared.fetch_add(1, Ordering::Release);
    }
    let mut n_looks = 0;
    while progress.n_prepared.load(Ordering::Acquire) < n_preparations {
        if progress.has_failed() {
            return;
        }
        n_looks += 1;
        match n_looks % LOOKS_BEFORE_YIELDING {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
    for part in taken(&progress.next_part, work.n_parts()) {
        work.compute(part);
    }
}

/// The parts that this thread gets.
fn taken(next: &AtomicUsize, n_parts: usize) -> impl Iterator<Item = usize> {
    std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed))
        .take_while(move |&part| part < n_parts)
}
