//! `gguf-tools`: convert LLaVA-Gemma checkpoints and sparse autoencoders to GGUF, and look into
//! GGUF files.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
