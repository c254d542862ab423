//! `preprocessor_config.json`: what the family's image processor in transformers does with a picture.
//!
//! A key that is missing takes that class's default (`image_processing_clip.py` and its like).
//! llava-sae-cpp prepares pictures as the defaults do, for any side; a setting that makes other pixels is
//! refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::checks::{in_range, positive};
use super::gemma4_vision::{MAX_ROWS, Pooler};
use super::tiles::DEFAULT_PINPOINTS;
use super::{Family, Projector, Sight, VisionConfig};
use crate::json_file::read_optional_json;
use crate::{Error, Result};

/// `processor_config.json`, where transformers 5 keeps the image processor's settings.
#[derive(Deserialize)]
struct RawProcessor {
    image_processor: Option<Map<String, Value>>,
}

/// What a family's image processor is called and does.
struct Rules {
    /// Without the ending `Fast`.
    classes: &'static [&'static str],
    /// Pillow's number, and its name.
    resample: (i64, &'static str),
    /// Besides those of all families.
    steps: &'static [Step],
    /// The side of its defaults.
    default_side: usize,
    /// Settings with sizes, with the ways to write the model's side and the default.
    sizes: &'static [(&'static str, &'static [Form], Form)],
}

/// A step that some families' processors have.
struct Step {
    key: &'static str,
    supported: &'static [bool],
    hint: &'static str,
}

const CENTER_CROP: Step = Step {
    key: "do_center_crop",
    supported: &[true],
    hint: OTHER_PIXELS,
};

const OTHER_PIXELS: &str = "the model was trained on pixels that llava-sae-cpp does not make";

/// How a size is written.
#[derive(Clone, Copy)]
enum Form {
    ShortestEdge,
    Square,
    Number,
    LongestEdge,
}

impl Form {
    fn of(self, side: usize) -> Value {
        match self {
            Self::ShortestEdge => json!({ "shortest_edge": side }),
            Self::Square => json!({ "height": side, "width": side }),
            Self::Number => json!(side),
            Self::LongestEdge => json!({ "longest_edge": side }),
        }
    }
}

/// The shortest side is scaled to the model's, and a square of it cut out; where pictures are cut into
/// tiles, that is so for each.
const CROPPED: &[(&str, &[Form], Form)] = &[
    (
        "size",
        &[Form::ShortestEdge, Form::Number],
        Form::ShortestEdge,
    ),
    (
        "crop_size",
        &[Form::Square, Form::ShortestEdge, Form::Number],
        Form::Square,
    ),
];

impl Rules {
    fn of(family: Family) -> Self {
        let bicubic = (3, "bicubic");
        match family {
            Family::Llava => Self {
                // LLaVA's pads besides.
                classes: &[
                    "CLIPImageProcessor",
                    "CLIPFeatureExtractor",
                    "LlavaImageProcessor",
                ],
                resample: bicubic,
                steps: &[
                    CENTER_CROP,
                    Step {
                        key: "do_pad",
                        supported: &[false],
                        hint: "set it to false and have pictures padded at run time, which does the same",
                    },
                ],
                default_side: 224,
                sizes: CROPPED,
            },
            Family::LlavaNext => Self {
                classes: &["LlavaNextImageProcessor"],
                resample: bicubic,
                steps: &[
                    CENTER_CROP,
                    // It makes up the number of tiles where several pictures are in one batch.
                    Step {
                        key: "do_pad",
                        supported: &[true, false],
                        hint: OTHER_PIXELS,
                    },
                ],
                default_side: 224,
                sizes: CROPPED,
            },
            Family::Gemma3 => Self {
                classes: &["Gemma3ImageProcessor"],
                resample: (2, "bilinear"),
                steps: &[Step {
                    key: "do_pan_and_scan",
                    supported: &[false],
                    hint: "set it to false: Gemma 3 is published without it",
                }],
                default_side: 224,
                sizes: &[("size", &[Form::Square, Form::Number], Form::Square)],
            },
            Family::Idefics3 | Family::SmolVlm => Self {
                classes: &["Idefics3ImageProcessor", "SmolVLMImageProcessor"],
                resample: (1, "Lanczos"),
                steps: &[
                    Step {
                        key: "do_image_splitting",
                        supported: &[true],
                        hint: OTHER_PIXELS,
                    },
                    // It makes up sides and number of tiles where several pictures are in one batch.
                    Step {
                        key: "do_pad",
                        supported: &[true, false],
                        hint: OTHER_PIXELS,
                    },
                ],
                default_side: 364,
                sizes: &[("max_image_size", &[Form::LongestEdge], Form::LongestEdge)],
            },
            Family::InternVl => Self {
                classes: &["GotOcr2ImageProcessor"],
                resample: bicubic,
                steps: &[],
                default_side: 384,
                sizes: &[("size", &[Form::Square, Form::Number], Form::Square)],
            },
            Family::Gemma4 => Self {
                classes: &["Gemma4ImageProcessor", "Gemma4ImageProcessorPil"],
                resample: bicubic,
                steps: &[],
                default_side: 224,
                sizes: &[],
            },
        }
    }
}

/// Checks the settings and takes their mean and deviation; without a file, the vision tower keeps what it has.
pub(super) fn read_preprocessor(dir: &Path, family: Family, sight: &mut Sight) -> Result<()> {
    let mut path = dir.join("preprocessor_config.json");
    let mut settings: Option<Map<String, Value>> = read_optional_json(&path)?;
    if settings.is_none() {
        path = dir.join("processor_config.json");
        let processor: Option<RawProcessor> = read_optional_json(&path)?;
        settings = processor.and_then(|processor| processor.image_processor);
    }
    let Some(mut settings) = settings else {
        return Ok(());
    };
    settings.retain(|_, value| !value.is_null());
    let rules = Rules::of(family);
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    take_colours(&settings, &mut sight.vision).map_err(refuse)?;
    check_steps(&settings, &rules).map_err(|(what, hint)| refuse(what).with_hint(hint))?;
    check_sizes(&settings, &rules, sight.vision.image_size).map_err(refuse)?;
    take_tiles(&settings, sight).map_err(refuse)?;
    if let Projector::Gemma4(pooler) = &mut sight.projector {
        return take_rows(&settings, sight.vision.patch_size, pooler).map_err(refuse);
    }
    check_pinpoints(&settings, &sight.projector).map_err(refuse)
}

/// How many image rows Gemma 4 makes of a picture, at most.
fn take_rows(
    settings: &Map<String, Value>,
    patch_size: usize,
    pooler: &mut Pooler,
) -> std::result::Result<(), String> {
    for (key, expected) in [
        ("patch_size", patch_size),
        ("pooling_kernel_size", pooler.pool),
    ] {
        if let Some(value) = settings.get(key)
            && *value != expected
        {
            return Err(format!(
                "`{key}` is {value}, and {expected} in `config.json`"
            ));
        }
    }
    if let Some(value) = settings.get("max_soft_tokens") {
        let known = MAX_ROWS.into_iter().find(|&n| *value == n);
        pooler.max_rows = known
            .ok_or_else(|| format!("`max_soft_tokens` is {value}, expected one of {MAX_ROWS:?}"))?;
    }
    Ok(())
}

/// What is subtracted from the colours, and what they are divided by.
fn take_colours(
    settings: &Map<String, Value>,
    vision: &mut VisionConfig,
) -> std::result::Result<(), String> {
    if settings.get("do_normalize") == Some(&Value::Bool(false)) {
        (vision.image_mean, vision.image_std) = ([0.0; 3], [1.0; 3]);
        return Ok(());
    }
    let colours = |key: &str, default| match settings.get(key) {
        None => Ok(default),
        Some(value) => three_numbers(value)
            .ok_or_else(|| format!("`{key}` is {value}, expected a number or three")),
    };
    vision.image_mean = colours("image_mean", vision.image_mean)?;
    vision.image_std = colours("image_std", vision.image_std)?;
    for std in vision.image_std {
        positive("image_std", std)?;
    }
    if vision.image_mean.iter().any(|mean| !mean.is_finite()) {
        return Err(format!(
            "`image_mean` is {:?}, expected finite numbers",
            vision.image_mean
        ));
    }
    Ok(())
}

/// A number for each colour, or one for all.
fn three_numbers(value: &Value) -> Option<[f32; 3]> {
    if let Some(number) = value.as_f64() {
        return Some([number as f32; 3]);
    }
    let [red, green, blue] = value.as_array()?.as_slice() else {
        return None;
    };
    Some([
        red.as_f64()? as f32,
        green.as_f64()? as f32,
        blue.as_f64()? as f32,
    ])
}

/// Steps that llava-sae-cpp takes, or whose setting makes no difference to it: a picture is RGB in any
/// case, and whether colours are normalised is a question of mean and deviation.
const STEPS: [&str; 4] = ["do_convert_rgb", "do_normalize", "do_rescale", "do_resize"];

/// Checks every step but the sizes; an error comes with a hint.
fn check_steps(
    settings: &Map<String, Value>,
    rules: &Rules,
) -> std::result::Result<(), (String, &'static str)> {
    for (key, value) in settings {
        let step = rules.steps.iter().find(|step| step.key == key);
        let supported = match key.as_str() {
            "image_processor_type" | "feature_extractor_type" if !rules.is_class(value) => {
                format!("`{}`", rules.classes.join("`, `"))
            }
            "do_resize" | "do_rescale" if *value != true => "true".to_owned(),
            "do_normalize" if !value.is_boolean() => "true and false".to_owned(),
            "rescale_factor" if !is_a_255th(value) => "1/255".to_owned(),
            "resample" if *value != rules.resample.0 => {
                let (number, name) = rules.resample;
                format!("{number}, which is {name}")
            }
            "size_divisor" | "crop_pct" => "none".to_owned(),
            other if other.starts_with("do_") && !STEPS.contains(&other) => {
                let supported = step.map_or(&[false][..], |step| step.supported);
                if supported.iter().any(|supported| *value == *supported) {
                    continue;
                }
                supported[0].to_string()
            }
            _ => continue,
        };
        let hint = step.map_or(OTHER_PIXELS, |step| step.hint);
        return Err((format!("`{key}` is {value}, supported: {supported}"), hint));
    }
    Ok(())
}

impl Rules {
    fn is_class(&self, class: &Value) -> bool {
        let name = class.as_str().unwrap_or_default();
        self.classes.contains(&name.trim_end_matches("Fast"))
    }
}

fn is_a_255th(factor: &Value) -> bool {
    let factor = factor.as_f64().unwrap_or_default();
    (factor * 255.0 - 1.0).abs() < 1e-6
}

/// Checks that pictures are scaled to the model's `side`.
fn check_sizes(
    settings: &Map<String, Value>,
    rules: &Rules,
    side: usize,
) -> std::result::Result<(), String> {
    for (key, forms, default) in rules.sizes {
        let default = default.of(rules.default_side);
        let (value, absent) = match settings.get(*key) {
            Some(value) => (value, ""),
            None => (&default, " where it is missing"),
        };
        if !forms.iter().any(|form| form.of(side) == *value) {
            return Err(format!(
                "`{key}` is {value}{absent}, expected {} by `image_size` in `config.json`",
                forms[0].of(side)
            ));
        }
    }
    Ok(())
}

/// The most tiles of a picture of InternVL's: 12 in published checkpoints.
const MAX_TILES: usize = 64;
/// The most tiles along a side of Idefics3's: 4 in published checkpoints.
const MAX_TILES_A_SIDE: usize = 8;

/// Takes what Idefics3's and InternVL's tiles follow from.
fn take_tiles(settings: &Map<String, Value>, sight: &mut Sight) -> std::result::Result<(), String> {
    let number = |key: &str, value: Option<&Value>, default| match value {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| format!("`{key}` is {value}, expected a number")),
    };
    match &mut sight.projector {
        Projector::Idefics3 { longest_edge, .. } => {
            const KEY: &str = "size";
            let size = settings.get(KEY);
            let edge = size.and_then(|size| size.get("longest_edge"));
            if let (Some(size), None) = (size, edge) {
                return Err(format!(
                    "`{KEY}` is {size}, expected the longest edge: {}",
                    Form::LongestEdge.of(*longest_edge)
                ));
            }
            *longest_edge = number("size.longest_edge", edge, 4 * 364)?;
            let most = (MAX_TILES_A_SIDE * sight.vision.image_size).min(4096);
            in_range("size.longest_edge", *longest_edge, most)
        }
        Projector::InternVl { n_tiles, .. } => {
            for (key, n) in ["min_patches", "max_patches"]
                .into_iter()
                .zip(n_tiles.iter_mut())
            {
                *n = number(key, settings.get(key), *n)?;
                in_range(key, *n, MAX_TILES)?;
            }
            let [least, most] = *n_tiles;
            if least <= most {
                return Ok(());
            }
            Err(format!(
                "`min_patches` is {least}, more than `max_patches`, {most}"
            ))
        }
        _ => Ok(()),
    }
}

/// Checks that pictures are cut into the tiles that the model expects.
fn check_pinpoints(
    settings: &Map<String, Value>,
    projector: &Projector,
) -> std::result::Result<(), String> {
    const KEY: &str = "image_grid_pinpoints";
    let tiles = match projector {
        Projector::Mlp { tiles, .. } => tiles.as_ref(),
        _ => None,
    };
    let (expected, default) = match tiles {
        Some(tiles) => (json!(tiles.sizes()), json!(DEFAULT_PINPOINTS)),
        None => (Value::Null, Value::Null),
    };
    let value = settings.get(KEY).unwrap_or(&default);
    if *value == expected {
        return Ok(());
    }
    Err(match tiles {
        Some(_) => format!("`{KEY}` is {value}, and {expected} in `config.json`"),
        None => format!("`{KEY}` is {value}, supported: none"),
    })
}
