//! LLaVA-NeXT and LLaVA-1.5 on Llama and Mistral beside transformers: image rows, prompts, rows at every layer, logits,
//! texts (`tests/fixtures/make_next.py`).

use std::path::{Path, PathBuf};

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    Grid, ImageCache, ImageEmbeddings, ModelFiles, Picture, PromptForm, Run, RunOptions, Session,
    SessionOptions,
};

use crate::fixture::{
    F32, IMAGE_EMBEDDINGS, Oracle, everything, exact_options, largest_error, relative_error,
    steering, temporary_root,
};
use crate::hook_points::{sae_at, with_ubatch, worst_row};
use crate::rewritten::{Parts, Tensor, rewritten};

const PINPOINTS: &str = "clip.vision.image_grid_pinpoints";
const MERGE_TYPE: &str = "clip.vision.mm_patch_merge_type";
const ASPECT_RATIO: &str = "clip.vision.image_aspect_ratio";
const NEWLINE: &str = "v.image_newline";

/// A model of the fixtures: `next`, whose numbers the code was written beside, or `next_other`, which has other shapes
/// and the projector's file of 2024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Next,
    NextOther,
    /// `next` as LLaVA-1.5.
    Llava,
}

const MODELS: [Model; 3] = [Model::Next, Model::NextOther, Model::Llava];
const PICTURES: [&str; 5] = ["square", "wide", "tall", "tiny", "exact"];

/// The pictures of a prompt of the fixtures, by its name there.
fn pictures_of(name: &str) -> Vec<&str> {
    match name {
        "pair" => vec!["wide", "tiny"],
        name => vec![name],
    }
}

impl Model {
    fn dir(self) -> PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        fixtures.join(match self {
            Self::Next | Self::Llava => "next",
            Self::NextOther => "next_other",
        })
    }

    fn d_model(self) -> usize {
        match self {
            Self::Next | Self::Llava => 32,
            Self::NextOther => 48,
        }
    }

    /// Its layers but the last one, where llama.cpp computes the last row alone.
    fn n_layers(self) -> usize {
        match self {
            Self::Next | Self::Llava => 2,
            Self::NextOther => 1,
        }
    }

    fn steered_layer(self) -> usize {
        match self {
            Self::Next | Self::Llava => 1,
            Self::NextOther => 0,
        }
    }

    /// Its name in front of a picture's in the oracle.
    fn key(self, picture: &str) -> String {
        match self {
            Self::Next | Self::NextOther => format!("next/{picture}"),
            Self::Llava => format!("llava/{picture}"),
        }
    }

    fn mmproj(self) -> PathBuf {
        let path = self.dir().join("mmproj.gguf");
        match self {
            Self::Next | Self::NextOther => path,
            Self::Llava => rewritten(&path, &|parts| {
                parts.remove(PINPOINTS);
                parts.remove(MERGE_TYPE);
                parts.take(NEWLINE);
            }),
        }
    }

    fn files(self, layer: usize) -> ModelFiles {
        let hook = format!("blocks.{layer}.hook_resid_post");
        ModelFiles {
            model: self.dir().join("model.gguf"),
            mmproj: Some(self.mmproj()),
            saes: vec![sae_at(&hook, self.d_model())],
        }
    }

    fn session(self, layer: usize, options: SessionOptions) -> Session {
        Session::open(&self.files(layer), options).expect("it loads")
    }

    fn picture(self, name: &str) -> Picture {
        let path = self.dir().join("pictures").join(format!("{name}.png"));
        Picture::open(&path).expect("a committed file")
    }

    fn image(self, session: &Session, name: &str) -> ImageEmbeddings {
        let image = session.encode_image(&self.picture(name));
        image.expect("the picture is encoded")
    }
}

fn rows(image: &ImageEmbeddings) -> Vec<f32> {
    let chunks = image.chunks();
    chunks.flat_map(|chunk| chunk.rows.to_vec()).collect()
}

/// The grids of an image's chunks, each with its part of the picture.
fn grids(image: &ImageEmbeddings) -> Vec<(Grid, [f32; 4])> {
    let grid = |chunk: &llava_sae_cpp::ImageChunk| {
        (chunk.grid.expect("a grid"), chunk.place.expect("a place"))
    };
    image.chunks().map(grid).collect()
}

const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];

#[test]
fn image_rows_are_those_of_transformers() {
    for model in MODELS {
        let oracle = Oracle::read(&model.dir());
        let session = model.session(0, exact_options());
        for name in PICTURES {
            let ours = rows(&model.image(&session, name));
            let theirs = oracle.f32(&format!("{}/image_embeddings", model.key(name)));
            assert_eq!(ours.len(), theirs.len(), "{model:?}, {name}");
            let error = relative_error(&ours, &theirs);
            let worst = worst_row(&ours, &theirs, model.d_model());
            println!("{model:?}, {name}: {error:.1e}, worst row {worst:.1e}");
            assert!(error < IMAGE_EMBEDDINGS, "{model:?}, {name}: {error:.2e}");
        }
    }
}

/// An overview, then the tiles' grid without rows of padding, with a row behind each of its rows. Padding that is no
/// whole number of patches stays, or takes parts of the picture with it.
#[test]
fn tiles_are_one_grid() {
    let check = |model: Model, name: &str, [n_rows, n_columns]: [usize; 2], place: [f32; 4]| {
        let overview = match model {
            Model::NextOther => 3,
            _ => 4,
        };
        let session = model.session(0, exact_options());
        let tiles = Grid {
            n_rows,
            n_columns,
            has_newlines: true,
        };
        let expected = [
            (Grid::of_patches(overview, overview), WHOLE),
            (tiles, place),
        ];
        let image = model.image(&session, name);
        assert_eq!(grids(&image), expected, "{model:?}, {name}");
        let n_patches = image
            .chunks()
            .flat_map(llava_sae_cpp::ImageChunk::patches)
            .flatten();
        let expected = overview * overview + n_rows * n_columns;
        assert_eq!(n_patches.count(), expected, "{model:?}, {name}");
    };
    check(Model::Next, "square", [8, 8], WHOLE);
    check(Model::Next, "wide", [4, 10], WHOLE);
    check(
        Model::Next,
        "tall",
        [10, 4],
        [0.0, 4.0 / 77.0, 1.0, 70.0 / 77.0],
    );
    check(
        Model::Next,
        "tiny",
        [4, 6],
        [-3.0 / 36.0, 0.0, 42.0 / 36.0, 1.0],
    );
    check(Model::Next, "exact", [8, 4], WHOLE);
    check(
        Model::NextOther,
        "square",
        [6, 7],
        [-5.0 / 60.0, 0.0, 70.0 / 60.0, 1.0],
    );
    check(
        Model::NextOther,
        "wide",
        [3, 10],
        [-1.0 / 97.0, 0.0, 100.0 / 97.0, 1.0],
    );
    check(
        Model::NextOther,
        "tall",
        [9, 3],
        [-2.0 / 26.0, 0.0, 30.0 / 26.0, 1.0],
    );
    check(
        Model::NextOther,
        "tiny",
        [3, 2],
        [2.0 / 24.0, 0.0, 20.0 / 24.0, 1.0],
    );
    check(Model::NextOther, "exact", [6, 9], WHOLE);
}

fn check_run(run: &Run, oracle: &Oracle, shown: &str, logits: &str, ids: &str) {
    let error = relative_error(&run.logits, &oracle.f32(logits));
    assert!(error < F32, "{shown}: logits {error:.2e}");
    assert_eq!(run.token_ids, oracle.ids(ids), "{shown}");
}

/// The ids of a prompt's text tokens, beside transformers', which put image tokens in the image's place.
fn check_ids(run: &Run, oracle: &Oracle, shown: &str, ids: &str) {
    let image_token = oracle.json["image_token"].as_i64().expect("an id") as i32;
    let expected = oracle.ids(ids);
    let ours = run.trace.tokens.iter().take(expected.len());
    let ours: Vec<i32> = ours.map(|token| token.id.unwrap_or(image_token)).collect();
    assert_eq!(ours, expected, "{shown}");
}

/// A raw prompt with texts in front of images, between them and behind them.
fn texts_around(oracle: &Oracle, n_images: usize) -> String {
    let texts = oracle.json["around"].as_array().expect("a list");
    let texts = texts[..=n_images]
        .iter()
        .map(|text| text.as_str().expect("a text"));
    Vec::from_iter(texts).join("<image>")
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for model in MODELS {
        let oracle = Oracle::read(&model.dir());
        let text = |name: &str| oracle.json[name].as_str().expect("a text");
        let number = |name: &str| oracle.json[name].as_u64().expect("a number") as usize;
        for (layer, n_ubatch) in (0..model.n_layers()).zip([512, 7]) {
            let mut session = model.session(layer, with_ubatch(n_ubatch));
            for name in PICTURES.into_iter().chain(["pair"]) {
                let key = model.key(name);
                let shown = format!("{key} at layer {layer}, ubatches of {n_ubatch}");
                let named = |part: &str| format!("{key}/{part}");
                let images = pictures_of(name);
                let images = images.iter().map(|name| model.image(&session, name));
                let images = Vec::from_iter(images);
                let images = Vec::from_iter(&images);
                let prompt = session.prompt(text("prompt"), PromptForm::Chat, &images);
                let prompt = prompt.expect("it is tokenised");
                let plain = everything(number("max_tokens"));
                let run = session.run(&prompt, plain.clone()).expect("it runs");
                check_ids(&run, &oracle, &shown, &named("prompt_ids"));
                let theirs = oracle.f32(&named(&format!("blocks.{layer}.hook_resid_post/rows")));
                let ours = &run.trace.saes[0].residuals[..theirs.len()];
                let error = worst_row(ours, &theirs, model.d_model());
                println!("{shown}: {error:.1e}");
                assert!(error < F32, "{shown}: rows {error:.2e}");
                check_run(
                    &run,
                    &oracle,
                    &shown,
                    &named("logits"),
                    &named("greedy_ids"),
                );

                let between = texts_around(&oracle, images.len());
                let between = session.prompt(&between, PromptForm::Raw, &images);
                let between = between.expect("it is tokenised");
                let run = session.run(&between, plain.clone()).expect("it runs");
                check_ids(&run, &oracle, &shown, &named("between_ids"));
                let [logits, ids] = ["between_logits", "between_greedy_ids"].map(named);
                check_run(&run, &oracle, &shown, &logits, &ids);
                if layer != model.steered_layer() {
                    continue;
                }
                let strength = oracle.json["strengths"][&key].as_f64().expect("a number");
                let feature = number("feature");
                let steering = steering(&mut session, feature, strength as f32, Positions::IMAGE);
                let steered = RunOptions {
                    steering: Some(steering),
                    ..plain
                };
                let run = session.run(&prompt, steered).expect("it runs");
                let [logits, ids] = ["steered_logits", "steered_ids"].map(named);
                check_run(&run, &oracle, &shown, &logits, &ids);
            }
        }
    }
}

/// Files of f16: their matrices, and what the projector convolves with.
fn in_f16(model: Model) -> ModelFiles {
    let files = model.files(0);
    let matrices = |parts: &mut Parts| {
        parts.convert(&|tensor| {
            let is_matrix = tensor.dims.len() > 1 && tensor.name != "v.position_embd.weight";
            is_matrix.then_some(TensorType::F16)
        });
    };
    let mmproj = files.mmproj.expect("given");
    ModelFiles {
        model: rewritten(&files.model, &matrices),
        mmproj: Some(rewritten(&mmproj, &matrices)),
        saes: files.saes,
    }
}

/// Weights, and what meets them, are rounded by 2⁻¹² on average; random layers make it ten times as much. Texts are
/// compared where the two best logits are further apart at every step than twice the largest error of a logit.
#[test]
fn f16_is_near_transformers() {
    for model in MODELS {
        let oracle = Oracle::read(&model.dir());
        let mut session = Session::open(&in_f16(model), exact_options()).expect("it loads");
        let text = oracle.json["prompt"].as_str().expect("a text");
        let mut n_compared = 0;
        for name in PICTURES {
            let key = model.key(name);
            let image = model.image(&session, name);
            let theirs = oracle.f32(&format!("{key}/image_embeddings"));
            let image_error = relative_error(&rows(&image), &theirs);
            let prompt = session.prompt(text, PromptForm::Chat, &[&image]);
            let max_tokens = oracle.json["max_tokens"].as_u64().expect("a number") as usize;
            let run = session.run(&prompt.expect("it is tokenised"), everything(max_tokens));
            let run = run.expect("it runs");
            let theirs = oracle.f32(&format!("{key}/logits"));
            let error = relative_error(&run.logits, &theirs);
            println!("{key} of {model:?} in f16: {image_error:.1e}, logits {error:.1e}");
            assert!(image_error < 2e-3, "{key}: image rows {image_error:.2e}");
            assert!(error < 1e-2, "{key}: logits {error:.2e}");
            let margin = oracle.json["margins"][&key].as_f64().expect("a number");
            if margin > 2.0 * largest_error(&run.logits, &theirs) {
                n_compared += 1;
                let expected = oracle.ids(&format!("{key}/greedy_ids"));
                assert_eq!(run.token_ids, expected, "{key}");
            }
        }
        assert!(n_compared > 3, "{model:?}: {n_compared} texts compared");
    }
}

/// A session on a changed projector.
fn changed(model: Model, change: &dyn Fn(&mut Parts)) -> llava_sae_cpp::Result<Session> {
    let files = ModelFiles {
        mmproj: Some(rewritten(&model.dir().join("mmproj.gguf"), change)),
        ..model.files(0)
    };
    Session::open(&files, exact_options())
}

/// The other ways in which LLaVA puts tiles together, and what stands for the key where it is missing.
#[test]
fn tiles_are_merged_as_the_file_says() {
    for model in [Model::Next, Model::NextOther] {
        let oracle = Oracle::read(&model.dir());
        let newline = match model {
            Model::NextOther => "model.image_newline",
            _ => NEWLINE,
        };
        let check = |change: &dyn Fn(&mut Parts), expected: &str| {
            let session = changed(model, change).expect("it loads");
            let image = model.image(&session, "wide");
            let theirs = oracle.f32(&format!("next/wide/{expected}"));
            let error = relative_error(&rows(&image), &theirs);
            assert!(
                error < IMAGE_EMBEDDINGS,
                "{model:?}, {expected}: {error:.2e}"
            );
            image
        };
        let flat = check(&|parts| parts.set(MERGE_TYPE, "flat"), "flat_rows");
        let spatial = check(&|parts| parts.set(MERGE_TYPE, "spatial"), "spatial_rows");
        check(&|parts| parts.remove(MERGE_TYPE), "image_embeddings");
        let without_newline = |parts: &mut Parts| {
            parts.remove(MERGE_TYPE);
            parts.take(newline);
        };
        check(&without_newline, "flat_rows");
        if model == Model::NextOther {
            continue;
        }
        // 150 × 60 pixels in 84 × 28: 70 × 28, 7 of padding at each side.
        let tile = |left: f32| {
            (
                Grid::of_patches(4, 4),
                [(28.0 * left - 7.0) / 70.0, 0.0, 28.0 / 70.0, 1.0],
            )
        };
        let overview = (Grid::of_patches(4, 4), WHOLE);
        assert_eq!(grids(&flat), [overview, tile(0.0), tile(1.0), tile(2.0)]);
        let together = (
            Grid::of_patches(4, 12),
            [-7.0 / 70.0, 0.0, 84.0 / 70.0, 1.0],
        );
        assert_eq!(grids(&spatial), [overview, together]);
    }
}

/// Nothing but padding is left of a strip whose patches are thinner than half a patch, as in transformers.
#[test]
fn of_a_long_strip_the_overview_is_left() {
    let session = Model::Next.session(0, exact_options());
    let strip = image::RgbImage::from_fn(120, 2, |x, _| image::Rgb([x as u8; 3]));
    let image = session.encode_image(&Picture::from_rgb(strip));
    let image = image.expect("it is not too long");
    assert_eq!(grids(&image), [(Grid::of_patches(4, 4), WHOLE)]);
}

#[test]
fn what_cannot_be_run_as_it_was_trained_is_refused() {
    let refused = |change: &dyn Fn(&mut Parts), words: &[&str]| {
        let error = changed(Model::Next, change).err();
        let said = error.unwrap_or_else(|| panic!("{words:?}")).to_string();
        for words in words {
            assert!(said.contains(words), "`{said}` should say `{words}`");
        }
    };
    // What the file lacks.
    refused(&|parts| drop(parts.take(NEWLINE)), &[NEWLINE, MERGE_TYPE]);
    refused(&|parts| parts.remove(PINPOINTS), &[PINPOINTS, MERGE_TYPE]);
    let newline_alone = |parts: &mut Parts| {
        parts.remove(PINPOINTS);
        parts.remove(MERGE_TYPE);
    };
    refused(&newline_alone, &[PINPOINTS, NEWLINE]);
    // Other ways.
    let words = [MERGE_TYPE, "`spatial_maxpool`"];
    refused(&|parts| parts.set(MERGE_TYPE, "spatial_maxpool"), &words);
    let words = [ASPECT_RATIO, "`anyres_max_9`"];
    refused(&|parts| parts.set(ASPECT_RATIO, "anyres_max_9"), &words);
    let words = [ASPECT_RATIO, "`pad`"];
    refused(&|parts| parts.set(ASPECT_RATIO, "pad"), &words);
    // Sizes.
    for pinpoints in [
        vec![],
        vec![28],
        vec![28, 56, 56],
        vec![28; 514],
        vec![28, 0],
        vec![28, -28],
        vec![28, 57],
        vec![14, 28],
        vec![28, 65 * 28],
        vec![9 * 28, 8 * 28],
        vec![28 << 20, 28 << 20],
        vec![i32::MAX, i32::MIN],
    ] {
        refused(
            &|parts| parts.set(PINPOINTS, pinpoints.clone()),
            &[PINPOINTS],
        );
    }
    // The newline.
    for dims in [&[31][..], &[32, 2]] {
        let of_these = |parts: &mut Parts| {
            parts.take(NEWLINE);
            parts.add(Tensor::ones(NEWLINE, dims));
        };
        refused(&of_these, &[NEWLINE]);
    }
}

/// As many tiles as are allowed: a picture takes seconds, and no more than its rows.
#[test]
fn the_largest_tilings_run() {
    let most = vec![8 * 28, 8 * 28];
    let session = changed(Model::Next, &|parts| parts.set(PINPOINTS, most.clone()));
    let image = Model::Next.image(&session.expect("it loads"), "square");
    assert_eq!(image.n_rows(), 16 + 32 * 33);
}

#[test]
fn an_image_that_does_not_fit_the_context_is_refused() {
    let options = SessionOptions {
        context_size: 100,
        ..exact_options()
    };
    let mut session = Model::Next.session(0, options);
    let image = Model::Next.image(&session, "square");
    let prompt = session.prompt("what", PromptForm::Chat, &[&image]);
    let run = session.run(&prompt.expect("it is tokenised"), everything(1));
    let error = run.expect_err("88 rows and a text are too many");
    let said = error.to_string();
    assert!(said.contains("context"), "{said}");
    // Another one fits.
    let image = Model::Next.image(&session, "tiny");
    let prompt = session.prompt("what", PromptForm::Chat, &[&image]);
    let run = session.run(&prompt.expect("it is tokenised"), everything(1));
    run.expect("44 rows and a text fit");
}

/// Each view is kept by itself: of two pictures with a tile in common, it is encoded once.
#[test]
fn tiles_are_kept_one_by_one() {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let n_files = || {
        let entries = std::fs::read_dir(dir.path()).expect("our own folder");
        let paths = entries.map(|entry| entry.expect("readable").path());
        let is_kept = |path: &PathBuf| path.extension().is_some_and(|name| name == "image-rows");
        paths.filter(is_kept).count()
    };
    let options = SessionOptions {
        image_cache: Some(ImageCache::new(dir.path().to_owned(), 100 << 20)),
        ..exact_options()
    };
    let session = Model::Next.session(0, options);
    let exact = Model::Next.picture("exact");
    let first = session.encode_image(&exact).expect("it is encoded");
    let n_before = n_files();
    let again = session.encode_image(&exact).expect("it is there");
    assert_eq!(rows(&first), rows(&again));
    assert_eq!(n_files(), n_before);
    // Its lower tile is another one: so are its overview and that tile, and no other view.
    let mut changed = exact.rgb().clone();
    for (_, y, pixel) in changed.enumerate_pixels_mut() {
        if y >= 28 {
            pixel[0] = !pixel[0];
        }
    }
    let changed = session.encode_image(&Picture::from_rgb(changed));
    changed.expect("it is encoded");
    assert_eq!(n_files(), n_before + 2);
}
