//! `llava-sae-cpp`: describe an image, see the features it activates, and steer by them.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    llava_sae_cpp::probe::child_main().unwrap_or_else(cli::main)
}
