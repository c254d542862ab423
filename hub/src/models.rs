//! Published pairs of a model and an SAE that was trained on it, by name.
//!
//! To add one: a [`Pair`] in [`PAIRS`], once its family runs. The compiler checks what can be known without the
//! hub; the test below, that SAELens' list has the SAE.
//!
//! No machine that this was made on could reach the hub. A revision is pinned where several independent public
//! projects name the same one; elsewhere it is `main`, and the commit that a model was made from stands in
//! `sources.json` beside it. Names of files of `gemma-3-4b`, `llava-next-llama3-8b`, `gpt2-small` and `pythia-70m` are
//! from public listings and programs that use them, and nobody has seen them arrive here. What arrives is checked
//! against the hashes that the hub gives for that commit.

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
    /// The GGUF file of the projector beside it, if that model sees.
    pub mmproj_file: Option<&'static str>,
    /// Under which terms the model is published.
    pub model_licence: &'static str,
    /// What is downloaded of the model, in megabytes, about.
    pub model_megabytes: u32,
    /// The SAE.
    pub sae: PairSae,
    /// Under which terms the SAE is published.
    pub sae_licence: &'static str,
    /// What is downloaded of the SAE, in megabytes, about.
    pub sae_megabytes: u32,
    /// Neuronpedia's labels, `MODEL/SOURCE`, where it has some.
    pub labels: Option<&'static str>,
}

/// Where the SAE of a pair is.
#[derive(Clone, Copy, Debug)]
pub enum PairSae {
    /// In SAELens' list.
    Listed {
        /// The release.
        release: &'static str,
        /// The id of the SAE in there.
        id: &'static str,
    },
    /// `ORG/REPO/FOLDER` on the hub.
    At(&'static str),
}

/// The published pairs.
pub const PAIRS: &[Pair] = &[
    Pair {
        name: "llava-gemma-2b",
        about: "LLaVA-Gemma 2B, which sees, and an SAE of Gemma 2B's text: the original experiment",
        model_repo: "Intel/llava-gemma-2b",
        model_revision: "main",
        model_file: None,
        mmproj_file: None,
        model_licence: "gemma",
        // 2.5 and 0.3 billion weights of 16 bits.
        model_megabytes: 5_700,
        sae: PairSae::Listed {
            release: "gemma-2b-res-jb",
            id: "blocks.12.hook_resid_post",
        },
        sae_licence: "see the repository",
        sae_megabytes: 270,
        labels: Some("gemma-2b/12-res-jb"),
    },
    Pair {
        name: "gemma-2-2b",
        about: "Gemma 2 2B, tuned for instructions, with Gemma Scope, block 20; text",
        model_repo: "bartowski/gemma-2-2b-it-GGUF",
        model_revision: "855f67caed130e1befc571b52bd181be2e858883",
        model_file: Some("gemma-2-2b-it-Q8_0.gguf"),
        mmproj_file: None,
        model_licence: "gemma",
        model_megabytes: 2_784,
        sae: PairSae::Listed {
            release: "gemma-scope-2b-pt-res-canonical",
            id: "layer_20/width_16k/canonical",
        },
        sae_licence: "cc-by-4.0",
        sae_megabytes: 302,
        labels: Some("gemma-2-2b/20-gemmascope-res-16k"),
    },
    Pair {
        name: "llama-3.1-8b",
        about: "Llama 3.1 8B, the base model, with Llama Scope, block 15; text",
        model_repo: "QuantFactory/Meta-Llama-3.1-8B-GGUF",
        model_revision: "main",
        model_file: Some("Meta-Llama-3.1-8B.Q8_0.gguf"),
        mmproj_file: None,
        model_licence: "llama3.1",
        model_megabytes: 8_540,
        sae: PairSae::Listed {
            release: "llama_scope_lxr_8x",
            id: "l15r_8x",
        },
        sae_licence: "see the repository",
        // 2 matrices of 4096 by 32768, 16 bits.
        sae_megabytes: 540,
        labels: Some("llama3.1-8b/15-llamascope-res-32k"),
    },
    Pair {
        name: "gemma-3-4b",
        about: "Gemma 3 4B, tuned for instructions, which sees, with Gemma Scope 2, block 17",
        model_repo: "ggml-org/gemma-3-4b-it-GGUF",
        model_revision: "main",
        model_file: Some("gemma-3-4b-it-Q8_0.gguf"),
        mmproj_file: Some("mmproj-model-f16.gguf"),
        model_licence: "gemma",
        // As listed: 4.13 and 0.85 GB.
        model_megabytes: 4_981,
        sae: PairSae::Listed {
            release: "gemma-scope-2-4b-it-res",
            id: "layer_17_width_16k_l0_medium",
        },
        sae_licence: "see the repository",
        // 2 matrices of 2560 by 16384, 32 bits.
        sae_megabytes: 336,
        labels: Some("gemma-3-4b-it/17-gemmascope-2-res-16k"),
    },
    Pair {
        name: "llava-next-llama3-8b",
        about: "LLaVA-NeXT with Llama 3 8B, which sees, with LMMs-Lab's SAE, block 24, trained on pictures too",
        model_repo: "llava-hf/llama3-llava-next-8b-hf",
        model_revision: "main",
        model_file: None,
        mmproj_file: None,
        model_licence: "llama3",
        // 8.4 billion weights of 16 bits.
        model_megabytes: 16_720,
        sae: PairSae::At("lmms-lab/llama3-llava-next-8b-hf-sae-131k/model.layers.24"),
        sae_licence: "see the repository",
        // 2 matrices of 4096 by 131072, 32 bits.
        sae_megabytes: 4_300,
        labels: None,
    },
    Pair {
        name: "gpt2-small",
        about: "GPT-2 small with the SAE of its residual stream before block 8; text, in raw prompts",
        model_repo: "QuantFactory/gpt2-GGUF",
        model_revision: "main",
        model_file: Some("gpt2.Q8_0.gguf"),
        mmproj_file: None,
        model_licence: "see the repository",
        // 124 million weights of 8.5 bits, and the embedding perhaps twice.
        model_megabytes: 178,
        sae: PairSae::Listed {
            release: "gpt2-small-res-jb",
            id: "blocks.8.hook_resid_pre",
        },
        sae_licence: "see the repository",
        // 2 matrices of 768 by 24576, 32 bits.
        sae_megabytes: 151,
        labels: Some("gpt2-small/8-res-jb"),
    },
    Pair {
        name: "pythia-70m",
        about: "Pythia 70M, deduplicated, with the SAE of its residual stream after block 3; text, in raw prompts",
        model_repo: "mradermacher/pythia-70m-deduped-GGUF",
        model_revision: "main",
        model_file: Some("pythia-70m-deduped.Q8_0.gguf"),
        mmproj_file: None,
        model_licence: "apache-2.0",
        // As a program that downloads it says: 76.7 MB.
        model_megabytes: 77,
        sae: PairSae::Listed {
            release: "pythia-70m-deduped-res-sm",
            id: "blocks.3.hook_resid_post",
        },
        sae_licence: "see the repository",
        // 2 matrices of 512 by 32768, 32 bits.
        sae_megabytes: 134,
        labels: Some("pythia-70m-deduped/3-res-sm"),
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
        if let Some(labels) = pair.labels {
            assert!(count(labels, b'/') == 1, "labels are `MODEL/SOURCE`");
        }
        assert!(
            is_revision(pair.model_revision),
            "a revision is `main` or a whole commit"
        );
        match pair.sae {
            PairSae::Listed { release, id } => assert!(!release.is_empty() && !id.is_empty()),
            PairSae::At(address) => {
                assert!(count(address, b'/') >= 2, "an SAE is at `ORG/REPO/FOLDER`");
            }
        }
        assert!(pair.model_megabytes > 0 && pair.sae_megabytes > 0);
        if let Some(file) = pair.model_file {
            assert!(ends_with(file, ".gguf"), "a file is one in GGUF");
        }
        if let Some(file) = pair.mmproj_file {
            assert!(
                pair.model_file.is_some()
                    && starts_with(file, "mmproj")
                    && ends_with(file, ".gguf"),
                "a projector is a file `mmproj….gguf` beside a model's"
            );
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

const fn starts_with(text: &str, start: &str) -> bool {
    text.len() >= start.len() && is_equal(text.split_at(start.len()).0, start)
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
            mmproj: self.mmproj_file.map(str::to_owned),
        }
    }

    /// Where its SAE is.
    pub fn sae(&self) -> SaeAddress {
        match self.sae {
            PairSae::Listed { release, id } => {
                releases::find(release, id).map(|listed| listed.address)
            }
            PairSae::At(address) => address.parse(),
        }
        .expect("a test looks up each")
    }

    /// Where its labels are, if it has some.
    pub fn labels(&self) -> Option<LabelsAddress> {
        let address = |labels| format!("neuronpedia:{labels}").parse();
        self.labels
            .map(|labels| address(labels).expect("the table is checked"))
    }

    /// Whether it takes pictures: checkpoints do, and GGUF files with a projector beside them.
    pub fn sees(&self) -> bool {
        self.model_file.is_none() || self.mmproj_file.is_some()
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
            if let PairSae::Listed { release, id } = pair.sae {
                let listed = releases::find(release, id).expect(pair.name);
                assert_eq!(listed.labels, pair.labels(), "{}", pair.name);
                assert_eq!(listed.address, pair.sae());
            } else {
                assert_eq!(pair.sae().published, None);
            }
            assert_eq!(pair.model().file.as_deref(), pair.model_file);
        }
    }

    /// The check that is made while compiling refuses what it is for.
    #[test]
    fn wrong_entries_are_found() {
        let refuses = |wrong: Pair| std::panic::catch_unwind(|| check(&[wrong])).is_err();
        let right = *Pair::find("gemma-3-4b").expect("it is in the table");
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
            labels: Some("gemma"),
            ..right
        }));
        assert!(refuses(Pair {
            mmproj_file: Some("projector.gguf"),
            ..right
        }));
        assert!(refuses(Pair {
            model_file: None,
            ..right
        }));
        assert!(refuses(Pair {
            sae: PairSae::At("lmms-lab/sae"),
            ..right
        }));
        assert!(std::panic::catch_unwind(|| check(&[right, right])).is_err());
    }
}
