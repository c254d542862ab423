//! SAELens' list of published SAEs: what a release and an id mean, with norm factors and Neuronpedia's labels.
//!
//! `releases.tsv` is made by `make-releases.py`, which also says what the conversion cannot read and why.

use gguf_tools::{Error, ErrorKind, Result};

use crate::address::{LabelsAddress, MAIN, Published, SaeAddress};

const TABLE: &str = include_str!("releases.tsv");
/// Names that an error lists.
const SHOWN: usize = 12;

/// An SAE of the list.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedSae {
    /// Where it is.
    pub address: SaeAddress,
    /// The language model that it was trained on, in SAELens' words.
    pub model: &'static str,
    /// Neuronpedia's labels of it, where it has some.
    pub labels: Option<LabelsAddress>,
}

/// A release: its first line, in its fields, and the lines of its SAEs.
struct Release {
    name: &'static str,
    repo: &'static str,
    model: &'static str,
    /// Why it cannot be converted.
    refused: Option<&'static str>,
    /// Whether its SAEs were trained on rows less their mean.
    is_centred: bool,
    saes: Vec<&'static str>,
}

fn releases() -> impl Iterator<Item = Release> {
    let mut lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .peekable();
    std::iter::from_fn(move || {
        let mut fields = lines.next()?.split('\t');
        let mut field = || fields.next().unwrap_or_default();
        let (name, repo, model, more) = (field(), field(), field(), field());
        let mut release = Release {
            name: &name[1..],
            repo,
            model,
            refused: name.starts_with('!').then_some(more),
            is_centred: name.starts_with('>') && more == "centred",
            saes: Vec::new(),
        };
        let is_release = |line: &&str| {
            line.starts_with('>') || line.matches('\t').count() == 3 && line.starts_with('!')
        };
        while let Some(line) = lines.next_if(|line| !is_release(line)) {
            release.saes.push(line);
        }
        Some(release)
    })
}

/// The SAE called `id` in the release `release`.
///
/// # Errors
/// Names that the list does not have, and SAEs that cannot be converted, with the reason.
pub fn find(release: &str, id: &str) -> Result<ListedSae> {
    let found = releases()
        .find(|known| known.name == release)
        .ok_or_else(|| {
            let what = format!("SAELens' list has no release `{release}`");
            let known: Vec<_> = releases().map(|known| known.name).collect();
            Error::new(ErrorKind::NotPublished, what).with_hint(format!(
                "{}; an SAE that is not in the list is given by its repository and folder",
                nearest(release, &known)
            ))
        })?;
    let refused = |reason: &str| {
        let what = format!("`{release}`, `{id}` cannot be converted");
        Error::new(ErrorKind::Unsupported, format!("{what}: {reason}"))
    };
    if let Some(reason) = found.refused {
        return Err(refused(reason));
    }
    let id_of = |line: &'static str| {
        line.trim_start_matches('!')
            .split('\t')
            .next()
            .unwrap_or_default()
    };
    let Some(line) = found.saes.iter().find(|line| id_of(line) == id) else {
        let what = format!("the release `{release}` has no SAE `{id}`");
        let known: Vec<_> = found.saes.iter().map(|line| id_of(line)).collect();
        return Err(Error::new(ErrorKind::NotPublished, what).with_hint(nearest(id, &known)));
    };
    let mut fields = line.split('\t').skip(1);
    let mut field = || fields.next().unwrap_or_default();
    if line.starts_with('!') {
        return Err(refused(field()));
    }
    let (folder, labels, norm_factor) = (field(), field(), field());
    Ok(ListedSae {
        address: SaeAddress {
            repo: found.repo.parse()?,
            revision: MAIN.to_owned(),
            folder: folder.replace('*', id),
            published: Some(Published {
                release: release.to_owned(),
                id: id.to_owned(),
                norm_factor: norm_factor.parse().ok(),
                is_centred: found.is_centred,
            }),
        },
        model: found.model,
        labels: format!("neuronpedia:{labels}").parse().ok(),
    })
}

/// Whether Neuronpedia has an SAE of the list under these names.
pub fn has_labels(model: &str, source: &str) -> bool {
    let mut saes = releases().flat_map(|release| release.saes);
    let is_there = |labels: &str| labels.split_once('/') == Some((model, source));
    saes.any(|line| !line.starts_with('!') && line.split('\t').nth(2).is_some_and(is_there))
}

/// The known names that share most with the one that was given.
fn nearest(given: &str, known: &[&str]) -> String {
    let words = |name: &str| -> Vec<String> {
        let parts = name.split(|c: char| !c.is_ascii_alphanumeric());
        parts.map(str::to_lowercase).collect()
    };
    let wanted = words(given);
    let n_shared = |name: &str| {
        words(name)
            .iter()
            .filter(|word| wanted.contains(word))
            .count()
    };
    let mut sorted = known.to_vec();
    sorted.sort_by_key(|name| std::cmp::Reverse(n_shared(name)));
    let shown: Vec<_> = sorted
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    format!(
        "it has {} of them, such as {}",
        known.len(),
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By SAELens 6.54.12's `pretrained_saes.yaml`.
    #[test]
    fn saes_are_where_saelens_says() {
        let sae = find("gemma-2b-res-jb", "blocks.12.hook_resid_post").expect("listed");
        assert_eq!(
            sae.address.to_string(),
            "jbloom/Gemma-2b-Residual-Stream-SAEs/gemma_2b_blocks.12.hook_resid_post_16384"
        );
        let published = sae.address.published.expect("it is of the list");
        assert_eq!(published.norm_factor, Some(0.213_819_38));
        assert_eq!(
            sae.labels.expect("it has some").to_string(),
            "neuronpedia:gemma-2b/12-res-jb"
        );

        let sae = find(
            "gemma-scope-2b-pt-res-canonical",
            "layer_20/width_16k/canonical",
        );
        let sae = sae.expect("listed");
        assert_eq!(sae.address.folder, "layer_20/width_16k/average_l0_71");
        assert_eq!(
            sae.address
                .published
                .expect("it is of the list")
                .norm_factor,
            None
        );

        let sae = find("gemma-2b-res-jb", "blocks.17.hook_resid_post").expect("listed");
        assert_eq!(sae.labels, None);
        assert!(
            has_labels("gemma-2b", "12-res-jb")
                && has_labels("gemma-3-4b-it", "17-gemmascope-2-res-16k")
        );
        assert!(!has_labels("gemma-2b", "17-res-jb") && !has_labels("gemma-2b", ""));
    }

    #[test]
    fn transcoders_are_listed() {
        let folder = |release: &str, id: &str| find(release, id).expect("listed").address.folder;
        let id = "layer_0/width_16k/average_l0_76";
        assert_eq!(folder("gemma-scope-2b-pt-transcoders", id), id);
        let id = "layer_0_width_16k_l0_big_affine";
        assert_eq!(
            folder("gemma-scope-2-4b-it-transcoders-all", id),
            format!("transcoder_all/{id}")
        );
        assert_eq!(
            folder("mwhanna-qwen3-4b-transcoders", "layer_7"),
            "layer_7.safetensors"
        );
        assert_eq!(
            folder("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_7"),
            "W_enc_7.safetensors"
        );
    }

    #[test]
    fn what_cannot_be_converted_is_refused_with_the_reason() {
        let check = |release: &str, id: &str, reason: &str| {
            let error = find(release, id).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        };
        check(
            "llama-3.1-8b-instruct-andyrdt",
            "resid_post_layer_3_trainer_1",
            "pickles",
        );
        check(
            "gemma-scope-2b-pt-res",
            "embedding/width_4k/average_l0_6",
            "embeddings",
        );
        check(
            "mistral-7b-res-wg",
            "blocks.8.hook_resid_pre",
            "normalize_activations",
        );
    }

    #[test]
    fn unknown_names_bring_their_like() {
        let hint = |release: &str, id: &str| {
            let error = find(release, id).expect_err("unknown");
            error.hint().expect("a way out").to_owned()
        };
        assert!(hint("gemma-2b-res-jbloom", "x").contains("`gemma-2b-res-jb`"));
        assert!(
            hint("gemma-2b-res-jb", "blocks.13.hook_resid_post")
                .contains("`blocks.12.hook_resid_post`")
        );
    }

    #[test]
    fn saes_of_centred_rows_are_known() {
        let check = |release: &str, id: &str, is_centred: bool| {
            let address = find(release, id).expect("listed").address;
            let published = address.published.expect("it is of the list");
            assert_eq!(published.is_centred, is_centred, "{release}");
        };
        check("gpt2-small-res-jb", "blocks.8.hook_resid_pre", true);
        check("gpt2-small-mlp-tm", "blocks.8.hook_mlp_out", true);
        check(
            "gpt2-small-resid-post-v5-32k",
            "blocks.8.hook_resid_post",
            false,
        );
        check(
            "pythia-70m-deduped-res-sm",
            "blocks.3.hook_resid_post",
            false,
        );
    }

    /// Every line is one of an SAE that can be looked up, or of what is refused.
    #[test]
    fn the_whole_table_is_well_formed() {
        let (mut n_saes, mut n_factors) = (0, 0);
        for release in releases() {
            assert!(!release.name.is_empty() && !release.model.is_empty());
            assert_eq!(
                release.refused.is_some(),
                release.saes.is_empty(),
                "{}",
                release.name
            );
            for line in &release.saes {
                let id = line.split('\t').next().expect("a first field");
                match id.strip_prefix('!') {
                    Some(id) => assert!(find(release.name, id).is_err(), "{line}"),
                    // Of the long ones, looking up each takes the square of their number.
                    None if n_saes % 20 == 0 => {
                        let sae = find(release.name, id).expect(line);
                        assert!(!sae.address.folder.contains('*'));
                        n_factors += usize::from(line.matches('\t').count() == 3);
                    }
                    None => assert!(!id.is_empty() && line.matches('\t').count() <= 3, "{line}"),
                }
                n_saes += 1;
            }
        }
        assert!(n_saes > 8000 && n_factors > 5, "{n_saes} {n_factors}");
    }
}
