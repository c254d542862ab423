// Runs a function and catches what C++ throws in it, which must not reach Rust.

#include <cstddef>
#include <cstdio>
#include <exception>

extern "C" bool llava_sae_guard(void (*work)(void *), void * data, char * what, std::size_t capacity) {
    try {
        work(data);
        return true;
    } catch (const std::exception & error) {
        std::snprintf(what, capacity, "%s", error.what());
    } catch (...) {
        std::snprintf(what, capacity, "an exception of an unknown type");
    }
    return false;
}
