// What `waiting.rs` asks of GNU's OpenMP.

// How often a thread that waits looks again before it sleeps (libgomp's `libgomp.h`); null where another
// runtime is linked.
extern unsigned long long gomp_spin_count_var __attribute__((weak));

int llava_sae_set_spin_count(unsigned long long count) {
    if (&gomp_spin_count_var == 0) {
        return 0;
    }
    gomp_spin_count_var = count;
    return 1;
}
