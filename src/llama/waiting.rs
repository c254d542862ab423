//! How OpenMP's threads wait for each other.
//!
//! ggml's threads meet behind every node of a graph. GNU's OpenMP lets them spin there for some
//! milliseconds, which is right where nothing else runs; beside another process the thread that they
//! wait for does not get a processor before they have given up, at every node. Two copies of this
//! program on two processors were fifty times slower than one after the other. The other extreme,
//! sleeping at once (`OMP_WAIT_POLICY=passive`), doubles the time of a small model's step. Spinning for
//! some microseconds costs neither: `scripts/check-neighbours.sh` measures it.

/// Turns that a thread spins before it sleeps. On an EPYC of 2023, 300 made tokens of a model of 2 billion
/// parameters a tenth slower, and with 700 two copies of the demo took 1.4 times their share.
const SPIN_COUNT: &str = "500";

/// Runs before OpenMP's own constructor, which reads the environment: the linker sorts constructors
/// with a number in front of those without, and OpenMP's runtime is linked into the same file
/// (`static-openmp` in `Cargo.toml`).
#[used]
#[unsafe(link_section = ".init_array.00200")]
static BEFORE_OPENMP: extern "C" fn() = set_spin_count;

/// Sets what the user has not set.
extern "C" fn set_spin_count() {
    let names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
    if names.iter().all(|name| std::env::var_os(name).is_none()) {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("GOMP_SPINCOUNT", SPIN_COUNT) };
    }
}
