//! Where the hub is, who asks, and where downloads are kept: the environment variables of Hugging Face's
//! own clients.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use directories::{BaseDirs, ProjectDirs};
use gguf_tools::{Error, Result};

/// Where things are fetched from and kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hub's address, without a slash at its end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The folder with a folder for each repository (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Who asks (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<Token>,
    /// Whether nothing may be fetched (`HF_HUB_OFFLINE`).
    pub is_offline: bool,
    /// The address of Neuronpedia's bucket, without a slash at its end (`NEURONPEDIA_DATASETS`).
    pub neuronpedia: String,
    /// The folder for Neuronpedia's files.
    pub labels_cache: PathBuf,
    /// How long a server may be silent (`HF_HUB_DOWNLOAD_TIMEOUT`, in seconds).
    pub silence: Duration,
    /// The pause before the first of several tries; each further one is twice as long.
    pub first_pause: Duration,
    /// The longest pause that a server may ask for.
    pub longest_pause: Duration,
}

/// A secret: it is shown nowhere, and sent to the hub alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token without the white space around it, if it is one.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

const ENDPOINT: &str = "https://huggingface.co";
const NEURONPEDIA: &str = "https://neuronpedia-datasets.s3.amazonaws.com";

impl Settings {
    /// As the environment says, by the names and defaults of `huggingface_hub` 1.x (`constants.py`).
    ///
    /// # Errors
    /// No home folder, and an address that is none.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = match path("HF_HOME") {
            Some(home) => home,
            None => match path("XDG_CACHE_HOME") {
                Some(caches) => caches,
                None => BaseDirs::new()
                    .ok_or_else(|| {
                        Error::invalid("there is no home folder to keep downloads in")
                            .with_hint("set `HF_HOME` to a folder for them")
                    })?
                    .home_dir()
                    .join(".cache"),
            }
            .join("huggingface"),
        };
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| std::fs::read_to_string(token_file).ok());
        let own_cache = ProjectDirs::from("", "", "llava-sae-cpp");
        let own_cache = own_cache.map_or_else(std::env::temp_dir, |dirs| dirs.cache_dir().into());
        let silence = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        let is_yes = |name| {
            let value = variable(name).unwrap_or_default().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        Ok(Self {
            endpoint: address("HF_ENDPOINT", variable("HF_ENDPOINT"), ENDPOINT)?,
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            token: token.as_deref().and_then(Token::new),
            is_offline: is_yes("HF_HUB_OFFLINE") || is_yes("TRANSFORMERS_OFFLINE"),
            neuronpedia: address(
                "NEURONPEDIA_DATASETS",
                variable("NEURONPEDIA_DATASETS"),
                NEURONPEDIA,
            )?,
            labels_cache: own_cache.join("neuronpedia"),
            silence: Duration::from_secs(silence.filter(|&seconds| seconds > 0).unwrap_or(10)),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        })
    }
}

fn address(name: &str, given: Option<String>, default: &str) -> Result<String> {
    let text = given.unwrap_or_else(|| default.to_owned());
    let text = text.trim().trim_end_matches('/');
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(text.to_owned());
    }
    Err(
        Error::invalid(format!("`{name}` is `{text}`, which is no address")).with_hint(format!(
            "an address begins with `https://`, such as `{default}`"
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_hubs_variables_are_read_as_its_own_clients_do() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("token"), "hf_of_the_file\n").expect("writable");
        let home_text = home.path().to_str().expect("UTF-8");
        let read = settings(&[("HF_HOME", home_text)]).expect("defaults");
        assert_eq!(read.cache, home.path().join("hub"));
        assert_eq!(read.endpoint, "https://huggingface.co");
        assert_eq!(read.token, Token::new("hf_of_the_file"));
        assert!(!read.is_offline);

        let given = [
            ("HF_HOME", home_text),
            ("HF_TOKEN", "hf_given"),
            ("HF_HUB_CACHE", "/elsewhere"),
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
            ("HF_HUB_OFFLINE", "true"),
        ];
        let read = settings(&given).expect("right values");
        assert_eq!(read.cache, PathBuf::from("/elsewhere"));
        assert_eq!(read.endpoint, "http://127.0.0.1:1");
        assert_eq!(read.token, Token::new("hf_given"));
        assert!(read.is_offline);

        let error = settings(&[("HF_HOME", home_text), ("HF_ENDPOINT", "huggingface.co")]);
        assert!(
            error
                .expect_err("no scheme")
                .to_string()
                .contains("`HF_ENDPOINT`")
        );
        assert!(!format!("{read:?}").contains("hf_given"));
    }
}
