//! Published pairs of a model and an SAE that was trained on it, by name.
//!
//! To add one: a [`Pair`] in [`PAIRS`], once its family runs. The compiler checks what can be known without the
//! hub; the test below, that SAELens' list has the SAE.
//!
//! No machine that this was made on could reach the hub. A revision is pinned where several independent public
//! projects name the same one; elsewhere it is `main`, and the commit that a model was made from stands in
//! `sources.json` beside it. What arrives is checked against the hashes that the hub gives for that commit.

use crate::address::{LabelsAddress, ModelAddress, SaeAddress};
use crate::releases;

/// A model and an SAE that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// What it is called.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The repository of the language model, and of what sees.
    pub model_repo: &'static str,
    /// A branch, a tag or a commit of it.
    pub model_revision: &'static str,
    /// The GGUF file that is taken as it is; nothing for a checkpoint that is converted.
    pub model_file: Option<&'static str>,
    /// Under which terms the model is published.
    pub model_licence: &'static str,
    /// What is downloaded of the model, in megabytes, about.
    pub model_megabytes: u32,
    /// SAELens' release of the SAE.
    pub sae_release: &'static str,
    /// SAELens' id of it in there.
    pub sae_id: &'static str,
    /// Under which terms the SAE is published.
    pub sae_licence: &'static str,
    /// What is downloaded of the SAE, in megabytes, about.
    pub sae_megabytes: u32,
    /// Neuronpedia's labels, `MODEL/SOURCE`.
    pub labels: &'static str,
    /// Whether it takes pictures.
    pub sees: bool,
}

/// The published pairs.
pub const PAIRS: &[Pair] = &[
    Pair {
        name: "llava-gemma-2b",
        about: "LLaVA-Gemma 2B, which sees, and an SAE of Gemma 2B's text: the original experiment",
        model_repo: "Intel/llava-gemma-2b",
        model_revision: "main",
        model_file: None,
        model_licence: "gemma",
        // 2.5 and 0.3 billion weights of 16 bits.
        model_megabytes: 5_700,
        sae_release: "gemma-2b-res-jb",
        sae_id: "blocks.12.hook_resid_post",
        sae_licence: "see the repository",
        sae_megabytes: 270,
        labels: "gemma-2b/12-res-jb",
        sees: true,
    },
    Pair {
        name: "gemma-2-2b",
        about: "Gemma 2 2B, tuned for instructions, with Gemma Scope, block 20; text",
        model_repo: "bartowski/gemma-2-2b-it-GGUF",
        model_revision: "855f67caed130e1befc571b52bd181be2e858883",
        model_file: Some("gemma-2-2b-it-Q8_0.gguf"),
        model_licence: "gemma",
        model_megabytes: 2_784,
        sae_release: "gemma-scope-2b-pt-res-canonical",
        sae_id: "layer_20/width_16k/canonical",
        sae_licence: "cc-by-4.0",
        sae_megabytes: 302,
        labels: "gemma-2-2b/20-gemmascope-res-16k",
        sees: false,
    },
    Pair {
        name: "llama-3.1-8b",
        about: "Llama 3.1 8B, the base model, with Llama Scope, block 15; text",
        model_repo: "QuantFactory/Meta-Llama-3.1-8B-GGUF",
        model_revision: "main",
        model_file: Some("Meta-Llama-3.1-8B.Q8_0.gguf"),
        model_licence: "llama3.1",
        model_megabytes: 8_540,
        sae_release: "llama_scope_lxr_8x",
        sae_id: "l15r_8x",
        sae_licence: "see the repository",
        // 2 matrices of 4096 by 32768, 16 bits.
        sae_megabytes: 540,
        labels: "llama3.1-8b/15-llamascope-res-32k",
        sees: false,
    },
];

// A table with a wrong entry does not compile.
const _: () = check(PAIRS);

const fn check(pairs: &[Pair]) {
    let mut i = 0;
    while i < pairs.len() {
        let pair = &pairs[i];
        assert!(
            is_name(pair.name),
            "a name is in small letters, digits, `-` and `.`"
        );
        assert!(
            !pair.about.is_empty()
                && !pair.model_licence.is_empty()
                && !pair.sae_licence.is_empty()
        );
        assert!(
            count(pair.model_repo, b'/') == 1,
            "a repository is `ORG/REPO`"
        );
        assert!(count(pair.labels, b'/') == 1, "labels are `MODEL/SOURCE`");
        assert!(
            is_revision(pair.model_revision),
            "a revision is `main` or a whole commit"
        );
        assert!(!pair.sae_release.is_empty() && !pair.sae_id.is_empty());
        assert!(pair.model_megabytes > 0 && pair.sae_megabytes > 0);
        if let Some(file) = pair.model_file {
            assert!(ends_with(file, ".gguf"), "a file is one in GGUF");
        }
        let mut j = 0;
        while j < i {
            assert!(
                !is_equal(pair.name, pairs[j].name),
                "two pairs have the same name"
            );
            j += 1;
        }
        i += 1;
    }
}

const fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !matches!(bytes[i], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.') {
            return false;
        }
        i += 1;
    }
    !bytes.is_empty() && bytes[0].is_ascii_lowercase()
}

const fn is_revision(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !matches!(bytes[i], b'a'..=b'f' | b'0'..=b'9') {
            return is_equal(text, "main");
        }
        i += 1;
    }
    bytes.len() == 40
}

const fn count(text: &str, byte: u8) -> usize {
    let bytes = text.as_bytes();
    let (mut i, mut n_found) = (0, 0);
    while i < bytes.len() {
        n_found += (bytes[i] == byte) as usize;
        i += 1;
    }
    n_found
}

const fn ends_with(text: &str, ending: &str) -> bool {
    match text.len().checked_sub(ending.len()) {
        Some(start) => is_equal(text.split_at(start).1, ending),
        None => false,
    }
}

const fn is_equal(text: &str, other: &str) -> bool {
    let (text, other) = (text.as_bytes(), other.as_bytes());
    if text.len() != other.len() {
        return false;
    }
    let mut i = 0;
    while i < text.len() {
        if text[i] != other[i] {
            return false;
        }
        i += 1;
    }
    true
}

impl Pair {
    /// The pair of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        PAIRS.iter().find(|pair| pair.name == name)
    }

    /// Where its model is.
    pub fn model(&self) -> ModelAddress {
        ModelAddress {
            repo: self.model_repo.parse().expect("the table is checked"),
            revision: self.model_revision.to_owned(),
            file: self.model_file.map(str::to_owned),
        }
    }

    /// Where its SAE is.
    pub fn sae(&self) -> SaeAddress {
        let listed = releases::find(self.sae_release, self.sae_id);
        listed.expect("a test looks up each").address
    }

    /// Where its labels are.
    pub fn labels(&self) -> LabelsAddress {
        let address = format!("neuronpedia:{}", self.labels).parse();
        address.expect("the table is checked")
    }

    /// What is downloaded in all, in megabytes, about.
    pub fn megabytes(&self) -> u32 {
        self.model_megabytes + self.sae_megabytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saelens_knows_each_sae_and_its_labels() {
        for pair in PAIRS {
            let listed = releases::find(pair.sae_release, pair.sae_id).expect(pair.name);
            assert_eq!(
                listed.labels.as_ref(),
                Some(&pair.labels()),
                "{}",
                pair.name
            );
            assert_eq!(listed.address, pair.sae());
            assert_eq!(pair.model().file.as_deref(), pair.model_file);
        }
    }

    /// The check that is made while compiling refuses what it is for.
    #[test]
    fn wrong_entries_are_found() {
        let refuses = |wrong: Pair| std::panic::catch_unwind(|| check(&[wrong])).is_err();
        let right = PAIRS[1];
        assert!(!refuses(right));
        assert!(refuses(Pair {
            name: "Gemma 2",
            ..right
        }));
        assert!(refuses(Pair {
            model_revision: "855f67c",
            ..right
        }));
        assert!(refuses(Pair {
            model_repo: "gemma",
            ..right
        }));
        assert!(refuses(Pair {
            model_file: Some("model.bin"),
            ..right
        }));
        assert!(refuses(Pair {
            labels: "gemma",
            ..right
        }));
        assert!(std::panic::catch_unwind(|| check(&[right, right])).is_err());
    }
}
