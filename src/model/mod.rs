//! A language model with its projector and SAEs, loaded once and shared; and sessions on it.

mod card;
mod encoders;
mod engine;
pub(crate) mod files;
pub(crate) mod fingerprint;
mod hooked_model;
mod memory;
mod neuronpedia;
mod options;
mod session;

pub use self::card::{FeatureCard, Neighbour, TokenEffect, TokenEffects};
pub use self::encoders::{EncoderOptions, EncoderWeights};
pub use self::engine::EngineSize;
pub use self::files::ModelFiles;
pub use self::hooked_model::HookedModel;
pub use self::neuronpedia::{NeuronpediaSource, addresses as neuronpedia_addresses};
pub use self::options::SessionOptions;
pub use self::session::Session;
