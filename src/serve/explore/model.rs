//! `GET /api/model`: what is served, and what can be asked of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::examples::{self, Example};
use super::request::MAX_TOP;
use super::sweep::MAX_STRENGTHS;
use crate::serve::app::App;
use crate::serve::body::MAX_BYTES;
use crate::serve::sae::MAX_HEAT_MAPS;
use crate::steering::{KINDS, Kind, Number, Targets};
use crate::{Sae, neuronpedia_addresses};

/// What is served, and what can be asked of it.
#[derive(Serialize, ToSchema)]
#[schema(as = ServedModel)]
pub(crate) struct Model {
    model: String,
    sae_name: String,
    /// This program's.
    version: &'static str,
    /// The options that choose the model on the command line, quoted for a shell.
    command: String,
    n_layers: usize,
    /// The tokens that a request has room for, its answer among them.
    context: usize,
    /// Runs that are computed at once.
    parallel: usize,
    has_images: bool,
    saes: Vec<SaeInfo>,
    /// The addresses of the features' pages on Neuronpedia, each of which is `/INDEX` below: by the SAE that features
    /// are named with, or by nothing where there is one, of those that are known there.
    neuronpedia: BTreeMap<String, String>,
    /// The kinds of interventions.
    kinds: Vec<KindInfo>,
    /// Pictures to begin with.
    examples: Vec<Example>,
    limits: Limits,
}

#[derive(Serialize, ToSchema)]
struct SaeInfo {
    /// What its features are named with, where there are several SAEs.
    id: String,
    name: String,
    /// Where it reads.
    hook: String,
    d_sae: usize,
    n_labels: usize,
    /// Whether it is known what its features usually do on pictures, so that there are lifts.
    has_baseline: bool,
    /// Whether numbers can count usual activations.
    has_usual: bool,
}

#[derive(Serialize, ToSchema)]
struct KindInfo {
    name: &'static str,
    /// What its number is: `units`, of decoder rows, directions of length 1 or usual activations; `plain`; or `none`.
    number: &'static str,
    /// What it changes: `features`, `vectors` or `both`.
    targets: &'static str,
    help: &'static str,
}

#[derive(Serialize, ToSchema)]
struct Limits {
    /// A request's body.
    body_bytes: usize,
    /// Requests that wait while others are computed.
    queue: usize,
    /// `top` of labels and of what is known of a feature.
    top: usize,
    /// `top` of features with heat maps.
    heatmaps: usize,
    /// Those of a sweep.
    strengths: usize,
}

/// What is served, and what can be asked of it.
#[utoipa::path(get, path = "/api/model", tag = "ours", responses((status = 200, body = Model)))]
pub(crate) async fn describe(State(app): State<Arc<App>>) -> Json<Model> {
    let model = &app.model;
    let has_images = model.has_projector();
    Json(Model {
        model: app.shown.model.clone(),
        sae_name: app.shown.sae.clone(),
        version: env!("CARGO_PKG_VERSION"),
        command: shell_words(&app.shown.arguments),
        n_layers: model.language_model().n_layers(),
        context: app.runs.capacity(),
        parallel: app.parallel,
        has_images,
        saes: model.saes().iter().map(|sae| SaeInfo::of(sae)).collect(),
        neuronpedia: neuronpedia_addresses(model.saes()),
        kinds: KINDS.into_iter().map(KindInfo::of).collect(),
        examples: match has_images {
            true => examples::all(),
            false => Vec::new(),
        },
        limits: Limits {
            body_bytes: MAX_BYTES,
            queue: app.queue(),
            top: MAX_TOP,
            heatmaps: MAX_HEAT_MAPS,
            strengths: MAX_STRENGTHS,
        },
    })
}

impl SaeInfo {
    fn of(sae: &Sae) -> Self {
        let meta = sae.meta();
        let name = match (&meta.release, &meta.id) {
            (Some(release), Some(id)) => format!("{release}/{id}"),
            _ => sae.id().to_owned(),
        };
        Self {
            id: sae.id().to_owned(),
            name,
            hook: sae.hook_point().to_string(),
            d_sae: meta.d_sae,
            n_labels: sae.labels().count(),
            has_baseline: sae.baseline().is_some(),
            has_usual: sae.usual(0).is_some(),
        }
    }
}

impl KindInfo {
    fn of(kind: &Kind) -> Self {
        Self {
            name: kind.name,
            number: match kind.number {
                Number::None => "none",
                Number::OfUnits => "units",
                Number::Plain => "plain",
            },
            targets: match kind.targets {
                Targets::Features => "features",
                Targets::Vectors => "vectors",
                Targets::Both => "both",
            },
            help: kind.help,
        }
    }
}

/// Words as a POSIX shell reads them.
fn shell_words(words: &[String]) -> String {
    let is_plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '=' | '@');
    let quoted = words.iter().map(|word| match word.chars().all(is_plain) {
        true if !word.is_empty() => word.clone(),
        _ => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::shell_words;

    #[test]
    fn words_are_quoted_where_a_shell_would_part_them() {
        let check = |words: &[&str], expected: &str| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(shell_words(&words), expected);
        };
        check(&[], "");
        check(&["-d", "models/llava-gemma-2b"], "-d models/llava-gemma-2b");
        check(&["-d", "my model"], "-d 'my model'");
        check(&["-d", "it's $HOME"], r"-d 'it'\''s $HOME'");
        check(&["", "~a"], "'' '~a'");
    }
}
