//! Prompts of several images.

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    ImageEmbeddings, ImagePrep, Keep, Kinds, Picture, Prompt, PromptForm, RunOptions, Session,
    TokenKind,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::bad_input;
use crate::command_line::stdout;
use crate::fixture::{Fixture, steering, temporary_root};

const FEATURE: usize = 5;

fn images(session: &Session) -> [ImageEmbeddings; 2] {
    ["00.png", "01.png"].map(|name| {
        let picture = Fixture::Tiny.open_picture(name);
        session.encode_image(&picture).expect("it is encoded")
    })
}

fn prompt(session: &Session, text: &str, form: PromptForm) -> Prompt {
    let [first, second] = images(session);
    let prompt = session.prompt(text, form, &[&first, &second]);
    prompt.expect("it is tokenised")
}

/// The rows of the prompt's images, counted from 1.
fn rows_of(prompt: &Prompt, number: usize) -> Vec<usize> {
    let tokens = prompt.tokens().iter().enumerate();
    let rows = tokens.filter(|(_, token)| token.image == Some(number - 1));
    rows.map(|(i, _)| i).collect()
}

#[test]
fn images_stand_where_their_marks_do() {
    let session = Fixture::Tiny.exact_session();
    let [first, second] = images(&session);
    let raw = prompt(&session, "a <image> cat <image> sat", PromptForm::Raw);
    let kinds: Vec<_> = raw.tokens().iter().map(|token| token.kind).collect();
    let mut pieces: Vec<_> = kinds
        .chunk_by(|a, b| a == b)
        .map(|piece| piece[0])
        .collect();
    let (text, image) = (TokenKind::Text, TokenKind::Image);
    assert_eq!(pieces, [text, image, text, image, text]);
    assert_eq!(rows_of(&raw, 1).len(), first.n_rows());
    assert_eq!(rows_of(&raw, 2).len(), second.n_rows());
    assert!(rows_of(&raw, 1).last() < rows_of(&raw, 2).first());

    // In a chat, each has a newline behind it.
    let chat = prompt(&session, "a cat", PromptForm::Chat);
    pieces = chat.tokens().iter().map(|token| token.kind).collect();
    pieces.dedup();
    assert_eq!(pieces, [text, image, text, image, text]);

    for (text, said) in [
        ("a <image>", "holds `<image>` 1 times, expected 2"),
        ("<image><image><image>", "3 times, expected 2"),
    ] {
        let error = session.prompt(text, PromptForm::Raw, &[&first, &second]);
        let error = error.err().expect("it is refused");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn one_image_is_steered_and_not_the_other() {
    let mut session = Fixture::Tiny.exact_session();
    let prompt = prompt(&session, "a <image> cat <image> sat", PromptForm::Raw);
    let d_model = session.language_model().d_model();
    let at = Positions::parse("image:2").expect("a position");
    let options = RunOptions {
        steering: Some(steering(&mut session, FEATURE, 3.0, at)),
        keep: Keep {
            features: Kinds::NONE,
            residuals: true,
            logits: false,
        },
        max_tokens: 0,
        ..RunOptions::default()
    };
    let run = session.run(&prompt, options).expect("it runs");
    let seen = &run.trace.saes[0];
    let before = seen.residuals.chunks(d_model);
    let after = seen.steered_residuals.chunks(d_model);
    let differ = before.zip(after).map(|(before, after)| before != after);
    let changed: Vec<usize> = (0..)
        .zip(differ)
        .filter_map(|(i, is)| is.then_some(i))
        .collect();
    assert_eq!(changed, rows_of(&prompt, 2));
}

const PICTURES: [&str; 2] = [
    "assets/pictures/carrot-mushroom.png",
    "assets/pictures/boat.png",
];

#[test]
fn pictures_of_a_command_make_one_prompt() {
    let args = [
        "-q",
        "--json",
        "-n",
        "1",
        "--top",
        "3",
        "--steer",
        "carrot:-4",
        "--at",
        "image:2",
    ];
    let report = |pictures: &[&str]| -> Value {
        let out = stdout(&[&args[..], pictures].concat());
        serde_json::from_str(&out).expect("JSON")
    };
    let both = report(&PICTURES);
    assert_eq!(both["image"], PICTURES[0]);
    assert_eq!(both["images"], json!(PICTURES));
    assert_eq!(both["n_image_tokens"], 128);
    assert_eq!(both["interventions"][0]["at"], "image:2");
    let error = [
        "--steer",
        "carrot:-4",
        "--at",
        "image:3",
        PICTURES[0],
        PICTURES[1],
    ];
    bad_input::check(
        &error,
        1,
        &[
            "no image 3 in the prompt: it has 2",
            "`image:1` to `image:2`",
        ],
    );
}

#[test]
fn capture_says_where_each_row_belongs() {
    let file = temporary_root().join("two-pictures.safetensors");
    let path = file.to_str().expect("a plain path");
    let args = ["capture", "-q", "-n", "2", "--force", "-o", path];
    stdout(&[&args[..], &PICTURES].concat());
    let bytes = std::fs::read(&file).expect("it was written");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let numbers = |name: &str| -> Vec<i32> {
        let tensor = tensors.tensor(name).expect(name);
        let (values, _) = tensor.data().as_chunks();
        values
            .iter()
            .map(|value| i32::from_le_bytes(*value))
            .collect()
    };
    let n_rows = numbers("token_ids").len();
    let shape = |name| tensors.tensor(name).expect("it is there").shape().to_vec();
    assert_eq!(shape("positions"), [n_rows, 1]);
    assert_eq!(numbers("positions"), Vec::from_iter(0..n_rows as i32));
    assert_eq!(shape("image_embeddings")[0], 128);
    let kinds = tensors
        .tensor("kinds")
        .expect("it is there")
        .data()
        .to_vec();
    let images = numbers("images");
    assert_eq!(numbers("chunks"), images, "each picture is one chunk");
    for (kind, image) in kinds.iter().zip(&images) {
        assert_eq!(*kind == 1, *image >= 0);
    }
    let runs: Vec<_> = images
        .chunk_by(|a, b| a == b)
        .map(|run| (run[0], run.len()))
        .collect();
    let [(-1, _), (0, 64), (-1, _), (1, 64), (-1, _)] = runs[..] else {
        panic!("{runs:?}");
    };
}

#[test]
fn a_part_of_a_picture_lies_where_it_is() {
    let pixel = |x, y| image::Rgb([x as u8, y as u8, 7]);
    let picture = Picture::from_rgb(image::RgbImage::from_fn(40, 20, pixel));
    let part = picture.part([0.25, 0.5, 0.5, 0.25], 100);
    assert_eq!(part.dimensions(), (20, 5));
    assert_eq!(*part.get_pixel(0, 0), pixel(10, 10));
    assert_eq!(*part.get_pixel(19, 4), pixel(29, 14));
    // Padding reaches beyond it.
    let place = picture.kept(ImagePrep::Pad);
    assert_eq!(place, [0.0, -0.5, 1.0, 2.0]);
    let padded = picture.part(place, 100);
    assert_eq!(padded.dimensions(), (40, 40));
    assert_eq!(*padded.get_pixel(0, 9), image::Rgb([122, 116, 104]));
    assert_eq!(*padded.get_pixel(3, 10), pixel(3, 0));
    assert_eq!(picture.part(place, 10).dimensions(), (10, 10));
}
