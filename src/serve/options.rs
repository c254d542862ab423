//! What a server is told.

use std::path::Path;

use subtle::ConstantTimeEq;

use crate::{Error, Result};

/// How a server serves.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The address to listen on: a name or a number.
    pub host: String,
    /// The port; 0 is any that is free.
    pub port: u16,
    /// Runs that are computed at once.
    pub parallel: usize,
    /// Requests that may wait besides.
    pub queue: usize,
    /// What clients have to know; none is only for addresses of this machine.
    pub api_key: Option<ApiKey>,
    /// Web pages of other addresses that may use it, each as `https://host:port`.
    pub allow_origins: Vec<String>,
    /// Names under which clients reach it, besides its address.
    pub allow_hosts: Vec<String>,
    /// What answers call the model.
    pub shown: ShownNames,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            parallel: 4,
            queue: 16,
            api_key: None,
            allow_origins: Vec::new(),
            allow_hosts: Vec::new(),
            shown: ShownNames::default(),
        }
    }
}

/// What answers call the model.
#[derive(Clone, Debug, Default)]
pub struct ShownNames {
    /// The model.
    pub model: String,
    /// Its SAEs.
    pub sae: String,
    /// The options that choose the model on the command line.
    pub arguments: Vec<String>,
}

/// A key that clients send.
#[derive(Clone)]
pub struct ApiKey(String);

/// A longer file is none with a key.
const MAX_KEY_BYTES: u64 = 4096;

impl ApiKey {
    /// The key in a file: its text, without white space around it.
    ///
    /// # Errors
    /// A file that cannot be read, or whose text is no key.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let size = path.metadata().map_err(Error::io("read", path))?.len();
        let text = match size <= MAX_KEY_BYTES {
            true => std::fs::read_to_string(path).map_err(Error::io("read", path))?,
            false => String::new(),
        };
        let key = text.trim();
        // Other characters cannot stand in a header.
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid(format!("`{shown}` holds no key")).with_hint(
                "one line of letters, digits and signs, such as `openssl rand -hex 32` prints",
            ));
        }
        Ok(Self(key.to_owned()))
    }

    /// Whether it is `given`, in a time that does not depend on where they differ.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}
