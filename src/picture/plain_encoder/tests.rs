//! What llama.cpp makes of a picture that it cuts into tiles, of a type whose files tests have; such a type's own way is
//! another.

use std::path::Path;
use std::sync::Arc;

use gguf_tools::gguf::{Array, Edits, Gguf, Value};

use super::PlainEncoder;
use crate::llama::{FlashAttention, Model, ModelOptions, VisionGraph, VisionOptions};
use crate::picture::Picture;
use crate::prompt::{ImageEmbeddings, Segment};
use crate::{ErrorKind, Result};

const TOKENS: &str = "tokenizer.ggml.tokens";

/// A wide picture, as a model with these tokens sees it.
fn encode(change: impl Fn(&mut Vec<String>)) -> Result<ImageEmbeddings> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/others");
    let file = Gguf::open(&root.join("idefics3/model.gguf")).expect("a committed file");
    let Some(Value::Array(Array::String(mut tokens))) = file.get(TOKENS).cloned() else {
        panic!("an array of strings");
    };
    change(&mut tokens);
    let mut edits = Edits::default();
    edits.set(TOKENS, tokens);
    let copy = file.edited_copy(&edits).expect("there is room");
    let options = ModelOptions {
        gpu_layers: 0,
        repack: false,
    };
    let model = Model::load(&copy, options).expect("it loads");
    let options = VisionOptions {
        use_gpu: false,
        threads: 1,
        flash_attention: FlashAttention::Off,
        vision_graph: VisionGraph::AsLlamaCpp,
    };
    let mmproj = root.join("idefics3/mmproj.gguf");
    let encoder = PlainEncoder::new(mmproj, Edits::default(), Arc::new(model), options);
    let picture = root.join("pictures/idefics3-wide.png");
    encoder.encode(&Picture::open(&picture).expect("a committed file"))
}

/// Of several parts, llama.cpp does not say where they lie.
#[test]
fn tiles_are_parts_with_text_between_and_without_places() {
    let image = encode(|_| {}).expect("it is encoded");
    let chunks: Vec<_> = image.chunks().collect();
    assert!(chunks.len() > 2);
    assert!(chunks.iter().all(|chunk| chunk.place.is_none()));
    let is_text = |segment: &Segment| matches!(segment, Segment::Text(ids) if !ids.is_empty());
    assert!(
        image
            .segments
            .iter()
            .filter(|segment| is_text(segment))
            .count()
            > 2
    );
    assert_eq!(image.markers, Some([""; 2]));
}

#[test]
fn a_token_that_the_vocabulary_has_not_is_refused() {
    let renamed = |tokens: &mut Vec<String>| {
        for token in tokens {
            if token == "<global-img>" {
                "<another>".clone_into(token);
            }
        }
    };
    let error = encode(renamed).err().expect("there is no such token");
    let said = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{said}");
    assert!(said.contains("has not all the tokens"), "{said}");
    assert!(error.hint().is_some());
}
