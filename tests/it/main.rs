//! Integration tests: one binary, so that llama.cpp is linked once.
//!
//! Answers come from transformers (`tests/fixtures/README.md`) or from llama.cpp itself.

mod bad_input;
mod baseline;
mod command_line;
mod conversion;
mod fixture;
mod hook;
mod intervention_args;
mod interventions;
mod oracle;
mod preprocessing;
mod sae_formats;
mod sweep;
mod vision;
