//! Compiles the guard that catches C++ exceptions (`src/llama/guard.rs`).

fn main() {
    let source = "src/llama/guard.cpp";
    println!("cargo:rerun-if-changed={source}");
    cc::Build::new()
        .cpp(true)
        .file(source)
        // By default, Microsoft's compiler takes it that functions of C throw nothing.
        .flag_if_supported("/EHs")
        .compile("llava_sae_guard");
}
