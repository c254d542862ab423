//! Settings of the image processor: each key that changes pixels is honoured or refused by name.

use gguf_tools::gguf::{Gguf, TensorType};
use serde_json::{Value, json};

use super::bad_input::check;
use super::checkpoint::{Checkpoint, IMAGE_SIZE};
use super::convert_quietly;

/// Settings as transformers writes them, for the fixture's size.
fn settings() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": { "height": IMAGE_SIZE, "width": IMAGE_SIZE },
        "size": { "shortest_edge": IMAGE_SIZE },
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
    })
}

/// The settings with one of them replaced, or removed for null.
fn with(key: &str, value: Value) -> Value {
    let mut settings = settings();
    settings[key] = value;
    if settings[key].is_null() {
        settings.as_object_mut().unwrap().remove(key);
    }
    settings
}

fn write_settings(file: &'static str, settings: Value) -> impl FnOnce(&mut Checkpoint) {
    move |c| drop(c.files.insert(file, settings))
}

/// Mean and deviation in the projector's file.
fn colours(file: &'static str, settings: Value) -> [Value; 2] {
    let mut checkpoint = Checkpoint::new();
    write_settings(file, settings)(&mut checkpoint);
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    let files = convert_quietly(dir.path(), &dir.path().join("out"), TensorType::F32).unwrap();
    let mmproj = Gguf::open(&files.mmproj.unwrap()).unwrap();
    ["clip.vision.image_mean", "clip.vision.image_std"]
        .map(|key| serde_json::to_value(mmproj.get(key).unwrap()).unwrap())
}

#[test]
fn what_is_honoured() {
    let file = "preprocessor_config.json";
    let expected = colours(file, settings());
    assert_eq!(expected[0], json!([0.1_f32, 0.2_f32, 0.3_f32]));
    assert_eq!(expected[1], json!([0.4_f32, 0.5_f32, 0.6_f32]));
    let nested = json!({ "image_processor": settings() });
    assert_eq!(colours("processor_config.json", nested), expected);
    for (key, value) in [
        ("size", json!(IMAGE_SIZE)),
        ("crop_size", json!(IMAGE_SIZE)),
        ("crop_size", json!({ "shortest_edge": IMAGE_SIZE })),
        ("image_processor_type", json!("CLIPImageProcessorFast")),
        ("image_processor_type", json!("LlavaImageProcessor")),
        ("feature_extractor_type", json!("CLIPFeatureExtractor")),
        // Its pictures are RGB in any case.
        ("do_convert_rgb", json!(false)),
        ("do_pad", json!(false)),
        ("pad_size", Value::Null),
        ("rescale_factor", json!(1.0 / 255.0)),
        // Keys that say nothing of pixels.
        ("processor_class", json!("LlavaProcessor")),
        ("data_format", json!("channels_first")),
        // Missing: the class's own defaults.
        ("resample", Value::Null),
        ("do_resize", Value::Null),
        ("do_center_crop", Value::Null),
        ("do_rescale", Value::Null),
        ("rescale_factor", Value::Null),
        ("image_processor_type", Value::Null),
    ] {
        assert_eq!(colours(file, with(key, value)), expected, "{key}");
    }
    let [mean, std] = colours(file, with("do_normalize", json!(false)));
    assert_eq!(
        [mean, std],
        [json!([0.0, 0.0, 0.0]), json!([1.0, 1.0, 1.0])]
    );
    let [mean, _] = colours(file, with("image_mean", json!(0.5)));
    assert_eq!(mean, json!([0.5, 0.5, 0.5]));
    let [mean, _] = colours(file, with("image_mean", Value::Null));
    assert_eq!(mean[0], json!(0.481_454_66_f32));
}

#[test]
fn what_is_refused_by_name() {
    let refused = |key: &str, value: Value, words: &[&str]| {
        let shown = format!("`{key}` is {value}");
        let words = [&["preprocessor_config.json", &*shown], words].concat();
        let settings = with(key, value);
        check(write_settings("preprocessor_config.json", settings), &words);
    };
    refused("do_pad", json!(true), &["padded at run time"]);
    for step in ["do_center_crop", "do_resize", "do_rescale"] {
        refused(step, json!(false), &["supported: true"]);
    }
    for step in [
        "do_thumbnail",
        "do_flip_channel_order",
        "do_image_splitting",
    ] {
        refused(step, json!(true), &["supported: false"]);
    }
    for size in [
        json!({ "height": IMAGE_SIZE, "width": IMAGE_SIZE }),
        json!({ "shortest_edge": 2 * IMAGE_SIZE }),
        json!({ "shortest_edge": IMAGE_SIZE, "longest_edge": 2 * IMAGE_SIZE }),
        json!([IMAGE_SIZE, IMAGE_SIZE]),
        json!("large"),
    ] {
        refused("size", size, &["expected {\"shortest_edge\":12}"]);
    }
    for size in [
        json!(24),
        json!({ "height": 24, "width": 24 }),
        json!({ "height": IMAGE_SIZE, "width": 24 }),
        json!({ "shortest_edge": 24 }),
    ] {
        refused("crop_size", size, &["`image_size`"]);
    }
    refused("resample", json!(2), &["bicubic"]);
    refused("rescale_factor", json!(0.007_843_137), &["1/255"]);
    refused("do_normalize", json!("yes"), &["true and false"]);
    for class in ["SiglipImageProcessor", "LlavaNextImageProcessor"] {
        refused(
            "image_processor_type",
            json!(class),
            &["CLIPImageProcessor"],
        );
    }
    refused("image_grid_pinpoints", json!([[336, 672]]), &["none"]);
    refused("image_mean", json!([0.5, 0.5]), &["three"]);
    refused("image_std", json!("0.5"), &["three"]);

    // What is missing has the class's default, 224, which this model cannot take.
    for key in ["size", "crop_size"] {
        let settings = with(key, Value::Null);
        let words = [&*format!("`{key}` is"), "224", "where it is missing"];
        check(write_settings("preprocessor_config.json", settings), &words);
    }
    let nested = json!({ "image_processor": with("do_pad", json!(true)) });
    check(
        write_settings("processor_config.json", nested),
        &["`do_pad` is true", "processor_config.json"],
    );
}
