//! Prompts: a text and an image become token ids and image rows.

use std::sync::Arc;
use std::time::Duration;

use crate::llama::{AddBos, Model, no_template};
use crate::{CancelFlag, Error, ErrorKind, Kinds, Result, Token, TokenKind};

/// Stands for the image in a prompt's text until it is cut there: Unicode's object replacement
/// character.
const IMAGE_MARK: char = '\u{fffc}';
/// How a raw prompt says where the image goes, as in transformers.
const IMAGE_TOKEN: &str = "<image>";

/// An image as the projector gives it, encoded once for any number of runs.
#[derive(Clone)]
pub struct ImageEmbeddings {
    /// `[n_image_tokens, d_model]`, not scaled.
    pub rows: Arc<[f32]>,
    /// Patches in a column and in a row.
    pub grid: [usize; 2],
    /// The time that it took.
    pub time: Duration,
}

/// How a prompt's text is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// The user's turn of the model's chat template: the image, a newline, the text.
    Chat,
    /// The text as it stands, `<image>` where the image goes. The vocabulary's beginning-of-sequence
    /// token is added, if it asks for one, unless the text starts with that token's text.
    Raw,
}

/// A prompt, cut into token ids and image rows.
#[derive(Clone)]
pub struct Prompt {
    segments: Vec<Segment>,
    tokens: Vec<Token>,
}

/// Rows of one kind.
#[derive(Clone)]
pub(crate) enum Segment {
    Text(Vec<i32>),
    Image(Arc<[f32]>),
}

impl Prompt {
    /// Builds a prompt of a text and at most one image.
    pub(crate) fn new(
        model: &Model,
        text: &str,
        form: PromptForm,
        image: Option<&ImageEmbeddings>,
        cancel: &CancelFlag,
    ) -> Result<Self> {
        let n_marks = text.matches(IMAGE_TOKEN).count();
        let (full_text, mark) = match form {
            PromptForm::Chat if n_marks > 0 => {
                let what = format!("the prompt holds `{IMAGE_TOKEN}`");
                return Err(Error::new(ErrorKind::ChatTemplate, what)
                    .with_hint("leave it out: the image goes first; or use a raw prompt"));
            }
            PromptForm::Chat => {
                let mark = image.map(|_| format!("{IMAGE_MARK}\n")).unwrap_or_default();
                let full_text = model.apply_chat_template(&format!("{mark}{text}"))?;
                (full_text, IMAGE_MARK.to_string())
            }
            PromptForm::Raw if n_marks != usize::from(image.is_some()) => {
                let expected = if image.is_some() { "one" } else { "none" };
                return Err(Error::invalid(format!(
                    "the raw prompt holds `{IMAGE_TOKEN}` {n_marks} times, and {expected} was expected"
                ))
                .with_hint(format!("put `{IMAGE_TOKEN}` where the image goes, once for an image")));
            }
            PromptForm::Raw => (text.to_owned(), IMAGE_TOKEN.to_owned()),
        };
        let add_bos = match model.begins_with_bos(&full_text) {
            true => AddBos::No,
            false => AddBos::Yes,
        };
        let tokenize = |text: &str, add_bos| model.tokenize_until(text, add_bos, cancel);
        let mut segments = Vec::new();
        match (image, full_text.split_once(&mark)) {
            (Some(image), Some((before, after))) => {
                segments.push(Segment::Text(tokenize(before, add_bos)?));
                segments.push(Segment::Image(Arc::clone(&image.rows)));
                segments.push(Segment::Text(tokenize(after, AddBos::No)?));
            }
            (Some(_), None) => {
                return Err(no_template("the model's chat template drops the image"));
            }
            (None, _) => segments.push(Segment::Text(tokenize(&full_text, add_bos)?)),
        }
        let mut prompt = Self::of_segments(model, segments);
        if let Some(image) = image {
            prompt.place_patches(image.grid);
        }
        match prompt.tokens.last().map(|token| token.kind) {
            Some(TokenKind::Text) => Ok(prompt),
            _ => Err(Error::invalid("the prompt has no text after the image")
                .with_hint("the model needs a token to answer: add some text, or a newline")),
        }
    }

    /// A prompt of these text tokens, as they stand.
    pub(crate) fn of_text(model: &Model, ids: Vec<i32>) -> Self {
        Self::of_segments(model, vec![Segment::Text(ids)])
    }

    fn of_segments(model: &Model, segments: Vec<Segment>) -> Self {
        let token = |&id: &i32| match model.is_special(id) {
            true => Token::special(id),
            false => Token::text(id),
        };
        let tokens = segments.iter().flat_map(|segment| match segment {
            Segment::Text(ids) => ids.iter().map(token).collect(),
            Segment::Image(rows) => vec![Token::image(); rows.len() / model.d_model()],
        });
        Self {
            tokens: tokens.collect(),
            segments,
        }
    }

    /// Says of each image row which patch of a grid of rows and columns it is, where they are as many.
    fn place_patches(&mut self, [n_rows, n_columns]: [usize; 2]) {
        let is_image = |token: &&mut Token| token.kind == TokenKind::Image;
        let rows: Vec<&mut Token> = self.tokens.iter_mut().filter(is_image).collect();
        if rows.len() == n_rows * n_columns {
            for (i, token) in rows.into_iter().enumerate() {
                *token = Token::patch(i / n_columns, i % n_columns);
            }
        }
    }

    /// A prompt of its first `n_tokens` text tokens, if there are any.
    pub(crate) fn beginning(&self, n_tokens: usize) -> Option<Self> {
        let texts = self.tokens.iter().filter(|token| token.id.is_some());
        let tokens: Vec<Token> = texts.take(n_tokens).copied().collect();
        let ids: Vec<i32> = tokens.iter().filter_map(|token| token.id).collect();
        let segments = vec![Segment::Text(ids)];
        (!tokens.is_empty()).then_some(Self { segments, tokens })
    }

    /// Whether both are the same rows.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let mut pairs = self.segments.iter().zip(&other.segments);
        let is_same = |(a, b): (&Segment, &Segment)| match (a, b) {
            (Segment::Text(a), Segment::Text(b)) => a == b,
            (Segment::Image(a), Segment::Image(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        };
        self.segments.len() == other.segments.len() && pairs.all(is_same)
    }

    /// Its pieces, in order.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Its pieces up to the last one whose rows are of these kinds.
    pub(crate) fn segments_to(&self, kinds: Kinds) -> &[Segment] {
        let is_last = |segment: &Segment| match segment {
            Segment::Text(_) => kinds.contain_some(TokenKind::Text),
            Segment::Image(_) => kinds.image,
        };
        let last = self.segments.iter().rposition(is_last);
        &self.segments[..last.map_or(0, |last| last + 1)]
    }

    /// What each row is.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}
