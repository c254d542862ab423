//! What SAELens' table says of SAEs whose files lack it: the factor that activations were multiplied with in training,
//! and whether rows had their mean subtracted.

use std::path::Path;

use super::meta::NormalizeActivations;
use super::source::{Format, Source};
use crate::{Error, ErrorKind, Result};

/// What SAELens' table (`pretrained_saes.yaml`) says about an SAE.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// The release, such as `gemma-2b-res-jb`.
    pub release: &'a str,
    /// The SAE in it, such as `blocks.12.hook_resid_post`.
    pub id: &'a str,
    /// The norm factor, where it stands there: it is used if the SAE's configuration asks for one that its
    /// files lack.
    pub norm_factor: Option<f32>,
    /// Whether it was trained on rows less their mean, whatever its configuration says.
    pub is_centred: bool,
}

/// An SAE whose norm factor stands in SAELens' table (6.54), not in its download, and how it is known.
#[derive(Debug)]
struct Known {
    release: &'static str,
    model_name: &'static str,
    /// Also its id within the release.
    hook_name: &'static str,
    d_in: usize,
    d_sae: usize,
    norm_factor: f32,
}

/// Its sibling `gemma-2b-it-res-jb` has the same shape and hook point, but was trained on
/// `gemma-2b-it` without normalisation.
const KNOWN: [Known; 1] = [Known {
    release: "gemma-2b-res-jb",
    model_name: "gemma-2b",
    hook_name: "blocks.12.hook_resid_post",
    d_in: 2048,
    d_sae: 16384,
    norm_factor: 0.213_819_38,
}];

/// The release whose configurations do not say that GPT-2's rows were centred, as SAELens' table does.
const CENTRED_RELEASE: &str = "gpt2-small-res-jb";

impl<'a> Published<'a> {
    /// What is known of this SAE, judged by what its configuration says.
    pub(super) fn find(sae: &'a Source) -> Option<Self> {
        if sae.format == Format::SaeLens
            && sae.model_name.as_deref() == Some("gpt2-small")
            && sae.is_centred.is_none()
            && (sae.d_in, sae.d_sae) == (768, 24576)
            && (sae.hook_name.ends_with(".hook_resid_pre")
                || sae.hook_name == "blocks.11.hook_resid_post")
        {
            return Some(Self {
                release: CENTRED_RELEASE,
                id: &sae.hook_name,
                norm_factor: None,
                is_centred: true,
            });
        }
        let known = KNOWN.iter().find(|known| {
            sae.format == Format::SaeLens
                && sae.normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn
                && sae.model_name.as_deref() == Some(known.model_name)
                && sae.hook_name == known.hook_name
                && (sae.d_in, sae.d_sae) == (known.d_in, known.d_sae)
        })?;
        Some(Self {
            release: known.release,
            id: known.hook_name,
            norm_factor: Some(known.norm_factor),
            is_centred: false,
        })
    }
}

/// Whether an SAE reads rows less their mean, and who says so. What is not written to the residual stream, such as
/// the heads' outputs, is never centred.
pub(super) fn choose_centring(sae: &Source, published: Option<Published>) -> (bool, &'static str) {
    let (is_centred, said) = match published {
        Some(Published {
            is_centred: true, ..
        }) => (true, "as SAELens' table says"),
        _ => match sae.is_centred {
            Some(is_centred) => (is_centred, "as `center_writing_weights` says"),
            None => (false, "as nothing says otherwise"),
        },
    };
    (is_centred && !sae.hook_name.ends_with("hook_z"), said)
}

/// A factor to fold, and where it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NormFactor {
    pub(super) value: f32,
    pub(super) source: &'static str,
}

/// The factor to fold: the one given, or else the one of the files, or else the published one.
///
/// # Errors
/// A factor that is not positive, one where the SAE asks for none, and none where it asks for one.
pub(super) fn choose_norm_factor(
    sae: &Source,
    path: &Path,
    given: Option<f32>,
    published: Option<Published>,
) -> Result<Option<NormFactor>> {
    let shown = path.display();
    if let Some(factor) = given.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
        return Err(Error::invalid(format!(
            "the norm factor must be finite and above 0, got {factor}"
        )));
    }
    if sae.normalize_activations != NormalizeActivations::ExpectedAverageOnlyIn {
        return match given {
            None => Ok(None),
            Some(_) => Err(Error::invalid(format!(
                "a norm factor is given, but `{shown}` asks for none: its `normalize_activations` is `{}`",
                sae.normalize_activations.name()
            ))
            .with_hint("leave it out")),
        };
    }
    let from = |source| move |value| NormFactor { value, source };
    given
        .map(from("as given"))
        .or(sae.norm_factor.map(from("from the SAE's files")))
        .or(published.and_then(|sae| sae.norm_factor).map(from("from SAELens' table")))
        .map(Some)
        .ok_or_else(|| {
            Error::invalid(format!(
                "`{shown}`: `normalize_activations` asks for a factor that the files do not contain"
            ))
            .of_kind(ErrorKind::NormFactorMissing)
            .with_hint(
                "give it: `norm_scaling_factor` in SAELens' `pretrained_saes.yaml`, or sqrt(d_in) / the mean norm of the activations",
            )
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sae::saelens::{self, CONFIG_FILE, WEIGHTS_FILE};

    /// A folder of the published shape, whose weights are never read.
    fn folder(config: &serde_json::Value) -> tempfile::TempDir {
        let shapes = [
            ("W_enc", vec![2048, 16384]),
            ("b_enc", vec![16384]),
            ("W_dec", vec![16384, 2048]),
            ("b_dec", vec![2048]),
        ];
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in shapes {
            let start = end;
            end += 2 * shape.iter().product::<u64>();
            let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.to_owned(), tensor);
        }
        let header = serde_json::to_vec(&header).expect("serialisable");
        let dir = tempfile::tempdir().expect("a temporary folder");
        let weights = dir.path().join(WEIGHTS_FILE);
        let start = [&(header.len() as u64).to_le_bytes(), &header[..]].concat();
        std::fs::write(&weights, &start).expect("writable");
        let file = std::fs::File::options()
            .write(true)
            .open(&weights)
            .expect("there");
        file.set_len(start.len() as u64 + end)
            .expect("a sparse file");
        std::fs::write(dir.path().join(CONFIG_FILE), config.to_string()).expect("writable");
        dir
    }

    fn choose(config: &serde_json::Value, given: Option<f32>) -> Result<Option<f32>> {
        let dir = folder(config);
        let sae = saelens::open(dir.path(), None).expect("a right folder");
        let chosen = choose_norm_factor(&sae, dir.path(), given, Published::find(&sae))?;
        Ok(chosen.map(|factor| factor.value))
    }

    #[test]
    fn rows_are_centred_where_something_says_so() {
        let known = |is_centred| Published {
            release: "a-release",
            id: "an-id",
            norm_factor: None,
            is_centred,
        };
        let dir = folder(&json!({"hook_name": "blocks.1.hook_mlp_out"}));
        let mut sae = saelens::open(dir.path(), None).expect("a right folder");
        let mut check = |said, published, expected| {
            sae.is_centred = said;
            assert_eq!(
                choose_centring(&sae, published).0,
                expected,
                "{said:?}, {published:?}"
            );
        };
        check(None, None, false);
        check(Some(true), None, true);
        check(Some(true), Some(known(false)), true);
        check(Some(false), Some(known(false)), false);
        // SAELens' table stands above the file.
        check(Some(false), Some(known(true)), true);
        sae.hook_name = "blocks.1.attn.hook_z".to_owned();
        sae.is_centred = Some(true);
        assert!(!choose_centring(&sae, None).0);
    }

    /// The files of `gpt2-small-res-jb` do not say it; others of the same width are told apart by their size.
    #[test]
    fn the_release_of_gpt2_is_known_by_its_shape() {
        let dir =
            folder(&json!({"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"}));
        let mut sae = saelens::open(dir.path(), None).expect("a right folder");
        assert!(Published::find(&sae).is_none());
        (sae.d_in, sae.d_sae) = (768, 24576);
        let found = Published::find(&sae).expect("it is known");
        assert_eq!(
            (found.release, found.id),
            ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
        );
        assert!(choose_centring(&sae, Some(found)).0);
        sae.is_centred = Some(false);
        assert!(Published::find(&sae).is_none());
    }

    #[test]
    fn the_published_factor_goes_to_its_own_sae_alone() {
        let check = |model: &str, hook: &str, normalization: serde_json::Value, given, expected| {
            let config = json!({
                "model_name": model, "hook_name": hook, "normalize_activations": normalization,
            });
            assert_eq!(choose(&config, given).ok(), expected, "{config}, {given:?}");
        };
        let (hook, word) = ("blocks.12.hook_resid_post", "expected_average_only_in");
        check(
            "gemma-2b",
            hook,
            json!(true),
            None,
            Some(Some(0.213_819_38)),
        );
        check(
            "gemma-2b",
            hook,
            json!(word),
            None,
            Some(Some(0.213_819_38)),
        );
        check("gemma-2b", hook, json!(true), Some(0.5), Some(Some(0.5)));
        check("gemma-2b", hook, json!("none"), None, Some(None));
        check("gemma-2b-it", hook, json!("none"), None, Some(None));
        check("gemma-2b-it", hook, json!(true), None, None);
        check(
            "gemma-2b",
            "blocks.10.hook_resid_post",
            json!(true),
            None,
            None,
        );
        check(
            "gemma-2b",
            "blocks.10.hook_resid_post",
            json!(false),
            None,
            Some(None),
        );
    }
}
