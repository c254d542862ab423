//! `llava-sae-cpp`: describe an image, see the features it activates, and steer by them.

#![forbid(unsafe_code)]

use llava_sae_cpp::{cli, probe};

fn main() -> std::process::ExitCode {
    probe::child_main().unwrap_or_else(|| cli::main(std::env::args_os()).into())
}
