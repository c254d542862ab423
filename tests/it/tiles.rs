//! SmolVLM, Idefics3 and InternVL with pictures beside transformers, in two sets of shapes of each way to cut: token
//! ids, image rows, prompts of one picture and of two, rows at hook points, features, logits, texts.

use llava_sae_cpp::llama::AddBos;
use llava_sae_cpp::{Grid, ImageAttention, TokenKind};

use crate::fixture::exact_options;
use crate::picture_set::{PICTURES, SITES, check_image_rows, check_runs, check_sites};
use crate::tiles_set::{Set, image, open};

#[test]
fn texts_are_tokenised_as_in_transformers() {
    for set in Set::all() {
        let session = open(&set.files_at(1), exact_options());
        for case in set.oracle.json["texts"].as_array().expect("a list") {
            let text = case["text"].as_str().expect("a text");
            let ours = session.language_model().tokenize(text, AddBos::No);
            let ours = serde_json::json!(ours.expect("it is tokenised"));
            assert_eq!(ours, case["ids"], "{}: {text:?}", set.name);
        }
    }
}

#[test]
fn image_rows_are_those_of_transformers() {
    for set in Set::all() {
        check_image_rows(&set, &set.files_at(1), &PICTURES, &|_, _, _| ());
    }
}

/// Tiles in reading order, each in its place, and the overview behind them.
#[test]
fn tiles_lie_where_they_were_cut() {
    for set in Set::all() {
        let session = open(&set.files_at(1), exact_options());
        let side = set.number("rows_of_tile").isqrt();
        // Idefics3's patches of 4 pixels leave out 2 of 26.
        let covered = match set.name {
            "idefics3" => 24.0 / 26.0,
            _ => 1.0,
        };
        for name in PICTURES {
            let shown = format!("{}, {name}", set.name);
            let image = image(&session, name);
            let [n_rows, n_columns] = set.tiles(name);
            let cells = (0..n_rows).flat_map(|row| (0..n_columns).map(move |column| (row, column)));
            let mut expected: Vec<[f32; 4]> = cells
                .map(|(row, column)| {
                    let [row, column] = [row, column].map(|n| n as f32);
                    let [height, width] = [n_rows, n_columns].map(|n| 1.0 / n as f32);
                    [
                        column * width,
                        row * height,
                        covered * width,
                        covered * height,
                    ]
                })
                .collect();
            expected.push([0.0, 0.0, covered, covered]);
            let places = image
                .chunks()
                .map(|chunk| chunk.place.expect("it is known"));
            let places: Vec<[f32; 4]> = places.collect();
            assert_eq!(places.len(), expected.len(), "{shown}");
            for (place, expected) in places.iter().flatten().zip(expected.iter().flatten()) {
                assert!((place - expected).abs() < 1e-6, "{shown}: {places:?}");
            }
            for chunk in image.chunks() {
                assert_eq!(chunk.grid, Some(Grid::of_patches(side, side)), "{shown}");
                assert_eq!(chunk.attention, ImageAttention::Causal, "{shown}");
            }
        }
    }
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for set in Set::all() {
        for n_ubatch in [512, 5] {
            check_runs(&set, &|layer| set.files_at(layer), n_ubatch);
        }
    }
}

#[test]
fn every_site_is_that_of_transformers() {
    for set in Set::all() {
        check_sites(&set, &SITES, &|hook, width| set.files_with(hook, width));
    }
}

/// Rows of the picture are told from the text between its tiles.
#[test]
fn tags_are_text_and_tiles_are_rows_of_one_picture() {
    for set in Set::all() {
        let session = open(&set.files_at(1), exact_options());
        let prompt = set.prompt(&session, "two");
        let n_rows = ["tall", "tiny"].map(|name| image(&session, name).n_rows());
        for (image_idx, n_rows) in n_rows.into_iter().enumerate() {
            let of_image = |token: &&llava_sae_cpp::Token| {
                token.kind == TokenKind::Image && token.image == Some(image_idx)
            };
            let found = prompt.tokens().iter().filter(of_image).count();
            assert_eq!(found, n_rows, "{}", set.name);
        }
        let chunks: Vec<_> = prompt.chunks().collect();
        let is_apart = chunks
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1.n_rows() < pair[1].0);
        assert_eq!(is_apart, set.has_tags(), "{}", set.name);
    }
}
