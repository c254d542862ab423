// A use of GNU's OpenMP; see build.rs.
extern int omp_get_max_threads(void);
int (*const llava_sae_openmp)(void) = omp_get_max_threads;
