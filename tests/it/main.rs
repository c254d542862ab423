//! Integration tests: one binary, so that llama.cpp is linked once.
//!
//! Answers come from transformers (`tests/fixtures/README.md`) or from llama.cpp itself.

#[allow(unsafe_code)] // an allocator that counts
#[path = "../../gguf-tools/tests/broken_files/allocations.rs"]
mod allocations;

mod against;
mod bad_input;
mod baseline;
mod browser;
mod cards;
mod centred;
mod chat;
#[path = "../../gguf-tools/tests/llava/checkpoint.rs"]
#[allow(dead_code)] // that binary makes others of it
mod checkpoint;
mod chunks;
mod command_line;
mod context;
mod control;
mod control_vector;
mod conversion;
mod convert_sae;
mod cross_layer;
mod engine;
mod explain;
mod explain_page;
mod families;
mod feature_lists;
mod fixture;
mod gallery;
mod gallery_numbers;
mod gallery_page;
mod gemma3;
mod gemma3_set;
mod gemma4;
#[path = "../../gguf-tools/tests/llava/gemma4_checkpoint.rs"]
mod gemma4_checkpoint;
mod gemma4_converted;
mod gemma4_picture_files;
mod gemma4_picture_set;
mod gemma4_pictures;
mod heatmap;
mod hook;
mod hook_points;
mod image_cache;
mod intervention_args;
mod interventions;
mod language_models;
#[path = "../../gguf-tools/tests/llava/llama_tokenizer.rs"]
mod llama_tokenizer;
mod metrics;
#[cfg(feature = "pull")]
#[path = "../../hub/tests/mirror/mod.rs"]
mod mirror;
mod next;
mod oracle;
mod other_files;
mod others;
mod page;
mod passes;
mod picture_files;
mod picture_set;
mod pictures;
mod places;
mod preprocessing;
mod probe;
mod projectors;
mod prompt_cache;
mod prompt_log_probs;
mod prompt_store;
#[cfg(feature = "pull")]
mod pull;
#[cfg(feature = "pull")]
mod pull_addresses;
#[cfg(all(feature = "pull", unix))]
mod pull_ended;
#[cfg(feature = "pull")]
mod pull_gguf;
mod qwen;
mod qwen_files;
mod qwen_set;
mod random_sae;
mod reproduce;
mod reproduce_report;
mod rewritten;
mod sae_formats;
mod sampling;
mod scan;
mod scan_corpora;
mod scan_folders;
mod scan_library;
mod scan_lists;
#[cfg(unix)]
mod scan_resume;
mod scan_several;
mod scan_shards;
mod scan_texts;
mod scan_top;
mod scan_worker;
mod screen;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_api;
#[cfg(feature = "serve")]
mod serve_clients;
#[cfg(feature = "serve")]
mod serve_fixture;
#[cfg(feature = "serve")]
mod serve_neuronpedia;
#[cfg(feature = "serve")]
mod serve_page;
#[cfg(feature = "serve")]
mod serve_page_cases;
#[cfg(feature = "serve")]
mod serve_steering;
mod several_images;
mod several_saes;
mod split_models;
mod steps;
mod sweep;
mod sweep_page;
mod tiles;
mod tiles_files;
mod tiles_set;
mod tokenizer;
mod transcoders;
mod views;
mod vision;
mod vocabulary;
