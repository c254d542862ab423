//! The files of the demo model that is embedded in `llava-sae-cpp`, which `README.md` describes.

#![forbid(unsafe_code)]

/// The language model, a GGUF file.
pub const MODEL: &[u8] = include_bytes!("../model-f16.gguf");

/// Its projector, a GGUF file.
pub const MMPROJ: &[u8] = include_bytes!("../mmproj-f16.gguf");

/// Its SAE, a GGUF file.
pub const SAE: &[u8] = include_bytes!("../sae-f16.gguf");

macro_rules! pictures {
    ($($name:literal),+) => {
        &[$(($name, include_bytes!(concat!("../pictures/", $name, ".png")))),+]
    };
}

/// Names and contents of pictures, PNG files; the most telling one is the first.
pub static PICTURES: &[(&str, &[u8])] = pictures!(
    "carrot-mushroom",
    "apple",
    "boat",
    "carrot-cow",
    "elephant-carrot",
    "frog"
);
