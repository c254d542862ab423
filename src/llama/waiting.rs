//! How OpenMP's threads wait for each other.
//!
//! ggml's threads meet behind every node of a graph. GNU's OpenMP lets them spin there for some
//! milliseconds, which is right where nothing else runs; beside another process the thread that they
//! wait for does not get a processor before they have given up, at every node. Two copies of this
//! program on two processors were fifty times slower than one after the other. The other extreme,
//! sleeping at once (`OMP_WAIT_POLICY=passive`), doubles the time of a small model's step.
//!
//! So threads spin for long while this process gets the processors that it wants, and for microseconds
//! while it has to wait for them, which Linux counts (`/proc/self/task/*/schedstat`). The longer it has not
//! waited, the longer they spin: a short process never gets where a neighbour would cost it much.
//! `scripts/check-neighbours.sh` measures both.

use std::ffi::{c_int, c_ulonglong};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Turns that a thread spins before it sleeps while others are beside: a few microseconds.
const SPINS_BESIDE_OTHERS: c_ulonglong = 400;
/// The same by how long this process has not waited: some microseconds, some dozens, half a millisecond.
const SPINS_ALONE: [(Duration, c_ulonglong); 3] = [
    (Duration::ZERO, 500),
    (Duration::from_millis(5), 2_000),
    (Duration::from_millis(60), 20_000),
];
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(5);
/// The share of its time that a thread waits for a processor, from which on others are beside.
const MUCH_WAITING: f64 = 0.15;
/// How long it takes to believe that they are gone.
const CALM: Duration = Duration::from_millis(100);

unsafe extern "C" {
    fn llava_sae_set_spin_count(count: c_ulonglong) -> c_int;
}

static STATE: Mutex<State> = Mutex::new(State::Unknown);

enum State {
    Unknown,
    /// There is nothing to set, or the user has set it.
    Fixed,
    Followed(Followed),
}

struct Followed {
    looked_at: Instant,
    times: Times,
    calm_from: Instant, // may lie ahead
}

/// What this process's threads spent together, in nanoseconds.
#[derive(Clone, Copy)]
struct Times {
    running: u64,
    waiting: u64,
}

/// Looks whether others want the processors too; called before each graph.
pub(super) fn adapt() {
    let Ok(mut state) = STATE.try_lock() else {
        return; // another thread of this process does
    };
    match &mut *state {
        State::Fixed => {}
        State::Unknown => *state = begin(),
        State::Followed(followed) => followed.look(),
    }
}

fn begin() -> State {
    let names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
    let is_set = names.iter().any(|name| std::env::var_os(name).is_some());
    if is_set || !spin(SPINS_ALONE[0].1) {
        return State::Fixed;
    }
    let now = Instant::now();
    match Times::now() {
        None => State::Fixed,
        Some(times) => State::Followed(Followed {
            looked_at: now,
            times,
            calm_from: now,
        }),
    }
}

impl Followed {
    fn look(&mut self) {
        let now = Instant::now();
        if now - self.looked_at < INTERVAL {
            return;
        }
        let Some(times) = Times::now() else { return };
        // A thread that has ended takes its times with it.
        let running = times.running.saturating_sub(self.times.running) as f64;
        let waiting = times.waiting.saturating_sub(self.times.waiting) as f64;
        if waiting > MUCH_WAITING * (running + waiting) {
            self.calm_from = now + CALM;
        }
        let calm = now.checked_duration_since(self.calm_from);
        let reached = SPINS_ALONE.iter().rfind(|(least, _)| calm >= Some(*least));
        spin(reached.map_or(SPINS_BESIDE_OTHERS, |(_, spins)| *spins));
        (self.looked_at, self.times) = (now, times);
    }
}

impl Times {
    /// None where the system does not count (`Documentation/scheduler/sched-stats.rst` in Linux).
    fn now() -> Option<Self> {
        let mut sums = Self {
            running: 0,
            waiting: 0,
        };
        for task in std::fs::read_dir("/proc/self/task").ok()? {
            // A thread may end meanwhile.
            let Ok(text) = std::fs::read_to_string(task.ok()?.path().join("schedstat")) else {
                continue;
            };
            let mut numbers = text
                .split_whitespace()
                .map_while(|word| word.parse::<u64>().ok());
            sums.running += numbers.next()?;
            sums.waiting += numbers.next()?;
        }
        (sums.running > 0).then_some(sums)
    }
}

/// Sets how long threads spin; false where another runtime than GNU's is linked.
fn spin(count: c_ulonglong) -> bool {
    // SAFETY: it sets a number that threads only read.
    unsafe { llava_sae_set_spin_count(count) != 0 }
}
