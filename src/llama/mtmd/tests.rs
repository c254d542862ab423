//! What is fed to a model beside what llama.cpp's own `mtmd_helper_eval_chunks` feeds it.

use std::path::Path;
use std::sync::Arc;

use gguf_tools::gguf::Edits;

use super::{Bitmap, Mtmd, Piece};
use crate::Result;
use crate::llama::{
    AddBos, Context, ContextOptions, Edited, Embeddings, FlashAttention, KvType, Model,
    ModelOptions, Output, OutputRow, RowHook, Rows, VisionGraph, VisionOptions,
};
use crate::picture::Picture;

struct Nothing;

impl RowHook for Nothing {
    fn on_rows(&mut self, _: usize, _: &mut [f32]) -> Result<Edited> {
        Ok(Edited::No)
    }
}

fn context(model: &Arc<Model>) -> Context<Nothing> {
    let options = ContextOptions {
        n_tokens: 256,
        kv_type: KvType::F32,
        flash_attention: FlashAttention::Off,
        n_sequences: 1,
        n_ubatch: 512,
        n_together: 0,
        threads: 1,
        eval_callback: true,
    };
    Context::new(Arc::clone(model), options, Vec::new(), Nothing).expect("there is memory")
}

/// Logits behind a prompt with a picture, as we read it.
fn ours(mtmd: &mut Mtmd, rgb: &[u8], size: [usize; 2]) -> Vec<f32> {
    let mut pieces = mtmd.read(rgb, size).expect("it is read");
    let text = |text| {
        mtmd.model
            .tokenize(text, AddBos::No)
            .expect("known characters")
    };
    let begin = mtmd
        .model
        .tokenize("a cat", AddBos::Yes)
        .expect("known characters");
    pieces.insert(0, Piece::Tokens(begin));
    pieces.push(Piece::Tokens(text(" sat")));
    // mtmd has texts that meet in one chunk.
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Tokens(ids)), Piece::Tokens(more)) => ids.extend(more),
            (_, piece) => joined.push(piece),
        }
    }
    let mut context = context(&mtmd.model);
    for piece in &joined {
        let rows = match piece {
            Piece::Tokens(ids) => Rows::Tokens(ids),
            Piece::Image(image) => Rows::Embeddings(Embeddings {
                values: &image.rows,
                width: image.width,
                positions: &image.positions,
                n_positions: image.n_positions,
                is_causal: image.is_causal,
            }),
        };
        context
            .decode(0, rows, Output::LastRow)
            .expect("it is decoded");
    }
    context.logits(OutputRow::Last).to_vec()
}

/// The same, as llama.cpp's own programs read it.
fn theirs(mtmd: &mut Mtmd, rgb: &[u8], size: [usize; 2]) -> Vec<f32> {
    let bitmap = Bitmap::new(rgb, size).expect("as many bytes");
    let chunks = mtmd.chunks(c"a cat<__media__> sat", AddBos::Yes, &bitmap);
    let chunks = chunks.expect("it is tokenised");
    let mut context = context(&mtmd.model);
    let mut n_past = 0;
    // SAFETY: all are alive, and the context has room for the prompt.
    let code = unsafe {
        llama_cpp_sys_2::mtmd_helper_eval_chunks(
            mtmd.ptr.as_ptr(),
            context.as_ptr(),
            chunks.as_ptr(),
            0,
            0,
            512,
            true,
            &raw mut n_past,
        )
    };
    assert_eq!(code, 0);
    context.logits(OutputRow::Last).to_vec()
}

#[test]
fn prompts_are_read_as_llama_cpp_reads_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/others");
    // Images and text between them; whether rows have four positions.
    for (name, n_images, has_mrope) in [("qwen2.5vl", 1, true), ("idefics3", 3, false)] {
        let options = ModelOptions {
            gpu_layers: 0,
            repack: false,
        };
        let model = Model::load(&root.join(name).join("model.gguf"), options);
        let options = VisionOptions {
            use_gpu: false,
            threads: 1,
            flash_attention: FlashAttention::Off,
            vision_graph: VisionGraph::AsLlamaCpp,
        };
        let model = Arc::new(model.expect("a committed file"));
        let mmproj = root.join(name).join("mmproj.gguf");
        let mut mtmd =
            Mtmd::load(&mmproj, &Edits::default(), model, options).expect("a committed file");
        for picture in [&format!("{name}-wide.png"), "odd.png"] {
            let picture = Picture::open(&root.join("pictures").join(picture));
            let picture = picture.expect("a committed file");
            let size = [
                picture.rgb().width() as usize,
                picture.rgb().height() as usize,
            ];
            let rgb = picture.rgb().as_raw();
            let images: Vec<_> = mtmd.read(rgb, size).expect("it is read");
            let images = images.iter().filter_map(|piece| match piece {
                Piece::Image(image) => Some(!image.positions.is_empty()),
                Piece::Tokens(_) => None,
            });
            let images: Vec<bool> = images.collect();
            assert!(images.iter().all(|&has| has == has_mrope) && images.len() >= n_images);
            // To the bit: the same rows in the same graphs.
            assert_eq!(
                ours(&mut mtmd, rgb, size),
                theirs(&mut mtmd, rgb, size),
                "{name}"
            );
        }
    }
}
