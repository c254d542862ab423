//! `serve`: a model over HTTP.

use std::path::PathBuf;

use clap::Args;
use llava_sae_cpp::serve::{ApiKey, ServeOptions, Server, ShownNames};
use llava_sae_cpp::{CancelFlag, HookedModel};

use super::args::ModelArgs;
use super::outcome::{CommandResult, Outcome};
use super::progress::Verbosity;

/// Serve a model over HTTP: a page to look into it, and OpenAI's API with steering and features
/// The page is at `/`, and the API is described at `/openapi.json`. Requests come and go while others run, each with
/// interventions of its own. Ctrl-C answers what has been asked for and ends; a second one ends at once.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ServeArgs {
    /// The address to listen on. Others than those of this machine need `--api-key-file`
    #[arg(
        long,
        value_name = "HOST",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    host: String,
    /// The port; 0 takes one that is free
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 8080,
        help_heading = "Server"
    )]
    port: u16,
    /// Runs that are computed at once, each with a context of `--ctx-size` tokens
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Server")]
    parallel: u16,
    /// Requests that may wait besides; others are told to come again
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Server")]
    queue: u16,
    /// A file whose text is the key that clients have to send
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    api_key_file: Option<PathBuf>,
    /// Let web pages of this address use the server, such as `https://example.org`. Repeatable
    #[arg(long, value_name = "URL", help_heading = "Server")]
    allow_origin: Vec<String>,
    /// Answer under this host name too, besides the server's address. Repeatable
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allow_host: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp serve
      The embedded demo, at http://127.0.0.1:8080
  llava-sae-cpp serve -d llava-gemma-2b --parallel 8
      A published model, for eight requests at once
  llava-sae-cpp serve --host 0.0.0.0 --api-key-file key.txt
      For other machines, which have to send the key";

pub(super) fn run(args: &ServeArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let key = args.api_key_file.as_deref().map(ApiKey::read);
    let server = Server::bind(ServeOptions {
        host: args.host.clone(),
        port: args.port,
        parallel: args.parallel.into(),
        queue: args.queue.into(),
        api_key: key.transpose()?,
        allow_origins: args.allow_origin.clone(),
        allow_hosts: args.allow_host.clone(),
        shown: ShownNames {
            model: args.model.shown_model(),
            sae: args.model.shown_sae(),
            arguments: args.model.arguments(),
        },
    })?;
    // First, for those who wait for it; their requests wait for the model.
    eprintln!("listening on http://{}", server.address()?);
    let files = args.model.announced_files(verbosity, cancel)?;
    let options = args.model.options()?;
    args.model.probe(&files, &options, verbosity, cancel)?;
    let model = HookedModel::open(&files, options)?;
    server.serve(&model, cancel)?;
    Ok(Outcome::Done)
}
