//! What a library that Python loads has to be linked with.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
    println!("cargo:rerun-if-changed=src/openmp.c");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // GCC's archive of its OpenMP runtime is for programs only: the thread-local variables in it have places
        // that no shared library can know. So its shared library is taken, which the linker has to see needed before
        // it comes to llama.cpp's objects and the archive that follows them.
        cc::Build::new()
            .file("src/openmp.c")
            .cargo_metadata(false)
            .compile("llava_sae_openmp");
        let dir = std::env::var("OUT_DIR").expect("cargo sets it");
        println!("cargo:rustc-link-search=native={dir}");
        println!("cargo:rustc-link-lib=static:+whole-archive=llava_sae_openmp");
        println!("cargo:rustc-link-lib=dylib=gomp");
    }
}
