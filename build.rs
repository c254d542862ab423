//! Compiles the guard that catches C++ exceptions (`src/llama/guard.rs`), and what sets how OpenMP waits
//! (`src/llama/waiting.rs`).

fn main() {
    let source = "src/llama/guard.cpp";
    println!("cargo:rerun-if-changed={source}");
    cc::Build::new()
        .cpp(true)
        .file(source)
        // By default, Microsoft's compiler takes it that functions of C throw nothing.
        .flag_if_supported("/EHs")
        .compile("llava_sae_guard");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        let source = "src/llama/waiting.c";
        println!("cargo:rerun-if-changed={source}");
        cc::Build::new().file(source).compile("llava_sae_waiting");
    }
}
