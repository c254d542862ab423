//! `preprocessor_config.json`: what transformers' `CLIPImageProcessor` does with a picture.
//!
//! A key that is missing takes that class's default (`image_processing_clip.py`). llava-sae-cpp makes
//! pictures square as its defaults do, for any side; a setting that makes other pixels is refused.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::checks::positive;
use super::vision::VisionConfig;
use crate::json_file::read_optional_json;
use crate::{Error, Result};

/// `processor_config.json`, where transformers 5 keeps the image processor's settings.
#[derive(Deserialize)]
struct RawProcessor {
    image_processor: Option<Map<String, Value>>,
}

/// Checks the settings and takes their mean and deviation; without a file, `vision` keeps what it has.
pub(super) fn read_preprocessor(dir: &Path, vision: &mut VisionConfig) -> Result<()> {
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
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    take_colours(&settings, vision).map_err(refuse)?;
    check_steps(&settings).map_err(|(what, hint)| refuse(what).with_hint(hint))?;
    check_sizes(&settings, vision.image_size).map_err(refuse)
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
const STEPS: [&str; 5] = [
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
];

/// Checks every step but the sizes; an error comes with a hint.
fn check_steps(settings: &Map<String, Value>) -> std::result::Result<(), (String, &'static str)> {
    for (key, value) in settings {
        let supported = match key.as_str() {
            "image_processor_type" | "feature_extractor_type" if !is_clips(value) => {
                "`CLIPImageProcessor`, `LlavaImageProcessor`"
            }
            "do_resize" | "do_center_crop" | "do_rescale" if *value != true => "true",
            "do_normalize" if !value.is_boolean() => "true and false",
            "rescale_factor" if !is_a_255th(value) => "1/255",
            // Pillow's number.
            "resample" if *value != 3 => "3, which is bicubic",
            "image_grid_pinpoints" | "size_divisor" | "crop_pct" => "none",
            step if step.starts_with("do_") && !STEPS.contains(&step) && *value != false => "false",
            _ => continue,
        };
        let hint = match key.as_str() {
            "do_pad" => "set it to false and have pictures padded at run time, which does the same",
            _ => "the model was trained on pixels that llava-sae-cpp does not make",
        };
        return Err((format!("`{key}` is {value}, supported: {supported}"), hint));
    }
    Ok(())
}

/// Whether a class is CLIP's, under one of its names, or LLaVA's, which pads besides.
fn is_clips(class: &Value) -> bool {
    let name = class.as_str().unwrap_or_default();
    let names = [
        "CLIPImageProcessor",
        "CLIPFeatureExtractor",
        "LlavaImageProcessor",
    ];
    names.contains(&name.trim_end_matches("Fast"))
}

fn is_a_255th(factor: &Value) -> bool {
    let factor = factor.as_f64().unwrap_or_default();
    (factor * 255.0 - 1.0).abs() < 1e-6
}

/// Checks that the shortest side is scaled to the model's `side`, and a square of it cut out.
fn check_sizes(settings: &Map<String, Value>, side: usize) -> std::result::Result<(), String> {
    let shortest_edge = json!({ "shortest_edge": side });
    let square = json!({ "height": side, "width": side });
    for (key, expected, default) in [
        ("size", &shortest_edge, json!({ "shortest_edge": 224 })),
        ("crop_size", &square, json!({ "height": 224, "width": 224 })),
    ] {
        let (value, absent) = match settings.get(key) {
            Some(value) => (value, ""),
            None => (&default, " where it is missing"),
        };
        if ![expected, &shortest_edge, &json!(side)].contains(&value) {
            return Err(format!(
                "`{key}` is {value}{absent}, expected {expected} by `image_size` in `config.json`"
            ));
        }
    }
    Ok(())
}
