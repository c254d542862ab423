//! An HTTP server on a model: OpenAI's endpoints with steering and features, and Neuronpedia's, for any number of
//! clients.
//!
//! ```text
//! connection ─► guard: host, origin, key ─► a place in the queue ─► handler
//!     ─► prepare (pictures to image rows, texts to a prompt) ─► Runs: one engine, on a thread of its own
//!     ─► events: features behind the prompt, text as it comes ─► JSON, or server-sent events
//! ```
//!
//! What computes is synchronous and knows nothing of HTTP; what serves holds no model's state.

mod app;
mod body;
mod explore;
mod generation;
mod guard;
mod neuronpedia;
mod openai;
mod openapi;
mod options;
mod page;
mod prepare;
mod refusal;
mod runs;
mod sae;
mod server;
mod stream;
mod studies;

pub use options::{ApiKey, ServeOptions, ShownNames};
pub use server::Server;
