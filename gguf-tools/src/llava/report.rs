//! What was read and decided, in lines for people.

use super::checkpoint::Checkpoint;
use super::config::{Config, Projector, Sight, Tower};
use super::{LanguageModel, LlavaOptions, type_of};

pub(super) fn report(
    config: &Config,
    model: Option<&LanguageModel>,
    checkpoint: &Checkpoint,
    options: &LlavaOptions,
) -> Vec<String> {
    let model_line = match model {
        Some(LanguageModel {
            config: text,
            tokenizer,
            ..
        }) => format!(
            "`{}` of {} blocks of width {}, {} rows of vocabulary, tokens from `{}`",
            text.architecture.name(),
            text.n_layers,
            text.d_model,
            text.vocab_size,
            tokenizer.source
        ),
        None => "without its language model".to_owned(),
    };
    let mut types = Vec::new();
    if model.is_some() {
        types.push(format!("{} (language model)", options.model_type.name()));
    }
    if config.sight.is_some() {
        let name = options.mmproj_type.name();
        types.push(format!("{name} (vision tower and projector)"));
    }
    let mut lines = vec![format!("read {}: {model_line}", config.one())];
    lines.extend(config.sight.iter().flat_map(Sight::report));
    lines.push(format!(
        "weights: {}, written as {}",
        type_of(checkpoint).name(),
        types.join(" and ")
    ));
    lines
}

impl Sight {
    /// What was decided of it, in lines for people.
    fn report(&self) -> [String; 2] {
        let vision = &self.vision;
        let [mean, std] = [vision.image_mean, vision.image_std].map(|colours| {
            let [red, green, blue] = colours;
            format!("({red:.4}, {green:.4}, {blue:.4})")
        });
        let run = match vision.tower {
            Tower::Clip { feature_layer } => format!(
                "{} run, since `vision_feature_layer` is {feature_layer}",
                vision.n_feature_layers
            ),
            Tower::Siglip | Tower::InternVit | Tower::Gemma4 => "all run".to_owned(),
        };
        [
            format!(
                "vision tower: {} of {} blocks of width {}, of which {run}",
                vision.tower.name(),
                vision.n_layers,
                vision.d_model
            ),
            match self.projector {
                Projector::Gemma4(pooler) => format!(
                    "pictures: up to {} image rows of {1} × {1} patches of {2} pixels a side",
                    pooler.max_rows, pooler.pool, vision.patch_size
                ),
                _ => format!(
                    "pictures: {0} × {0} pixels in patches of {1}; mean {mean}, deviation {std}",
                    vision.image_size, vision.patch_size
                ),
            },
        ]
    }
}
