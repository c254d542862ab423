//! Where everything is fetched from.

use crate::http::{Cancelled, Client};
use crate::settings::Settings;

/// Hugging Face's hub, or a mirror of it, and Neuronpedia's bucket.
pub struct Hub {
    pub(crate) settings: Settings,
    pub(crate) client: Client,
}

impl Hub {
    /// A hub as `settings` say; `is_cancelled` is asked between pieces of work, and ends them with
    /// [`ErrorKind::Interrupted`](gguf_tools::ErrorKind::Interrupted).
    pub fn new(settings: Settings, is_cancelled: Cancelled) -> Self {
        let client = Client::new(&settings, is_cancelled);
        Self { settings, client }
    }

    /// Where it is, and where downloads are kept.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
