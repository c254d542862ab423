//! `gguf-tools`: convert checkpoints of LLaVA and Gemma 3 and sparse autoencoders to GGUF, and look
//! into GGUF files.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
