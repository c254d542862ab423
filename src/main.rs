//! `llava-sae-cpp`: describe an image, see the features it fires, and steer by them.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
