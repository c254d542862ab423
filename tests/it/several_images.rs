//! Prompts of several images.

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    ImageEmbeddings, Keep, Kinds, Prompt, PromptForm, RunOptions, Session, TokenKind,
};

use crate::fixture::{Fixture, steering};

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
        (
            "a <image>",
            "holds `<image>` 1 times, and there are 2 images",
        ),
        ("<image><image><image>", "3 times, and there are 2 images"),
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
