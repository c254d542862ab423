//! Prompts: texts and images become token ids and image rows.

pub mod chat;
mod chunk;

use std::time::Duration;

use crate::llama::{AddBos, Extent, Model, MropePosition, Rows};
use crate::{CancelFlag, Error, Kinds, Result, Token, TokenKind};

pub use chunk::{Grid, ImageAttention, ImageChunk, RowPositions};

/// How a raw prompt says where the image goes, as in transformers.
const IMAGE_TOKEN: &str = "<image>";

/// An image as the projector gives it, encoded once for any number of runs.
#[derive(Clone)]
pub struct ImageEmbeddings {
    /// What stands for it in a prompt: one chunk, or several with the tokens that the model wants between them.
    pub segments: Vec<Segment>,
    /// The text before it and behind it, where the model was trained with words of its own there.
    pub markers: Option<[&'static str; 2]>,
    /// The time that it took.
    pub time: Duration,
}

impl ImageEmbeddings {
    /// An image of one chunk, without markers.
    pub fn of_chunk(chunk: ImageChunk, time: Duration) -> Self {
        Self {
            segments: vec![Segment::Image(chunk)],
            markers: None,
            time,
        }
    }

    /// Its chunks.
    pub fn chunks(&self) -> impl Iterator<Item = &ImageChunk> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Image(chunk) => Some(chunk),
            Segment::Text(_) => None,
        })
    }

    /// The rows of all its chunks.
    pub fn n_rows(&self) -> usize {
        self.chunks().map(ImageChunk::n_rows).sum()
    }

    /// Its segments as those of a prompt's image number `image`, counted from 0.
    fn segments_as(&self, image: usize) -> impl Iterator<Item = Segment> {
        self.segments
            .iter()
            .cloned()
            .map(move |segment| match segment {
                Segment::Text(ids) => Segment::Text(ids),
                Segment::Image(chunk) => Segment::Image(ImageChunk { image, ..chunk }),
            })
    }

    /// The chunk of an image that has one.
    pub fn only_chunk(&self) -> Option<&ImageChunk> {
        let mut chunks = self.chunks();
        chunks.next().filter(|_| chunks.next().is_none())
    }
}

/// How a prompt's text is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// The user's turn of the model's chat template: the images, then the text.
    Chat,
    /// The text as it stands, `<image>` where an image goes. The vocabulary's beginning-of-sequence
    /// token is added, if it asks for one, unless the text starts with that token's text.
    Raw,
}

/// A prompt, cut into token ids and image rows.
#[derive(Clone)]
pub struct Prompt {
    segments: Vec<Segment>,
    tokens: Vec<Token>, // what each row is
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Segment {
    /// Token ids.
    Text(Vec<i32>),
    /// Image rows.
    Image(ImageChunk),
}

impl Segment {
    /// What a context decodes.
    pub(crate) fn rows(&self) -> Rows<'_> {
        match self {
            Self::Text(ids) => Rows::Tokens(ids),
            Self::Image(chunk) => Rows::Embeddings(chunk.embeddings()),
        }
    }
}

impl Prompt {
    /// Builds a prompt of a text as it stands, with `<image>` for each image.
    pub(crate) fn of_raw(
        model: &Model,
        text: &str,
        images: &[&ImageEmbeddings],
        cancel: &CancelFlag,
    ) -> Result<Self> {
        let texts: Vec<_> = text.split(IMAGE_TOKEN).map(str::to_owned).collect();
        let (n_marks, n_images) = (texts.len() - 1, images.len());
        if n_marks != n_images {
            return Err(Error::invalid(format!(
                "the raw prompt holds `{IMAGE_TOKEN}` {n_marks} times, expected {n_images}, for as many images"
            ))
            .with_hint(format!("put `{IMAGE_TOKEN}` where each image goes")));
        }
        Self::of_texts(model, texts, images, cancel)
    }

    /// Builds a prompt of images and the texts around them, one more.
    pub(crate) fn of_texts(
        model: &Model,
        mut texts: Vec<String>,
        images: &[&ImageEmbeddings],
        cancel: &CancelFlag,
    ) -> Result<Self> {
        for (i, image) in images.iter().enumerate() {
            if let Some([before, after]) = image.markers {
                texts[i].push_str(before);
                texts[i + 1].insert_str(0, after);
            }
        }
        let mut segments = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let add_bos = match i > 0 || model.begins_with_bos(text) {
                true => AddBos::No,
                false => AddBos::Yes,
            };
            segments.push(Segment::Text(model.tokenize_until(text, add_bos, cancel)?));
            let image = images.get(i);
            segments.extend(image.into_iter().flat_map(|image| image.segments_as(i)));
        }
        Self::of_segments(model, segments)
    }

    /// A prompt of these pieces, as they stand.
    pub(crate) fn of_segments(model: &Model, segments: Vec<Segment>) -> Result<Self> {
        let mut tokens = Vec::new();
        for segment in &segments {
            match segment {
                Segment::Text(ids) => {
                    if let Some(id) = ids.iter().find(|id| !model.token_ids().contains(id)) {
                        return Err(Error::invalid(format!(
                            "the vocabulary has {} tokens, and none with the id {id}",
                            model.n_vocab()
                        )));
                    }
                    tokens.extend(ids.iter().map(|&id| match model.is_special(id) {
                        true => Token::special(id),
                        false => Token::text(id),
                    }));
                }
                Segment::Image(chunk) => {
                    chunk.check(model)?;
                    tokens.extend(chunk.tokens());
                }
            }
        }
        match tokens.last().map(|token| token.kind) {
            Some(TokenKind::Text) => Ok(Self { segments, tokens }),
            None => Err(Error::invalid("the prompt has no tokens")),
            Some(_) => Err(Error::invalid("the prompt has no text after the image")
                .with_hint("the model needs a token to answer: add some text, or a newline")),
        }
    }

    /// A prompt of these text tokens, of which there is one at least.
    pub(crate) fn of_text(model: &Model, ids: Vec<i32>) -> Result<Self> {
        Self::of_segments(model, vec![Segment::Text(ids)])
    }

    /// A prompt of its first `n_tokens` text tokens, if there are any.
    pub(crate) fn beginning(&self, n_tokens: usize) -> Option<Self> {
        let texts = self.tokens.iter().filter(|token| token.id.is_some());
        let tokens: Vec<Token> = texts.take(n_tokens).copied().collect();
        let ids: Vec<i32> = tokens.iter().filter_map(|token| token.id).collect();
        let segments = vec![Segment::Text(ids)];
        (!tokens.is_empty()).then_some(Self { segments, tokens })
    }

    /// Whether both are the same rows in the same places.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let mut pairs = self.segments.iter().zip(&other.segments);
        let is_same = |(a, b): (&Segment, &Segment)| match (a, b) {
            (Segment::Text(a), Segment::Text(b)) => a == b,
            (Segment::Image(a), Segment::Image(b)) => a.is_same(b),
            _ => false,
        };
        self.segments.len() == other.segments.len() && pairs.all(is_same)
    }

    /// How much a sequence holds when it was read: with M-RoPE, an image takes up fewer positions than rows.
    pub(crate) fn extent(&self) -> Extent {
        let mut extent = Extent::default();
        for segment in &self.segments {
            extent += segment.rows().extent();
        }
        extent
    }

    /// The rows of the largest image whose rows see one another; 0 if there is none.
    pub fn n_together(&self) -> usize {
        let sizes = self.segments.iter().map(|segment| match segment {
            Segment::Image(chunk) if chunk.attention == ImageAttention::Bidirectional => {
                chunk.n_rows()
            }
            _ => 0,
        });
        sizes.max().unwrap_or(0)
    }

    /// Its pieces, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Its chunks of image rows, each with the position of its first row.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, &ImageChunk)> {
        let mut n_before = 0;
        self.segments.iter().filter_map(move |segment| {
            let first = n_before;
            n_before += segment.rows().n_rows();
            match segment {
                Segment::Image(chunk) => Some((first, chunk)),
                Segment::Text(_) => None,
            }
        })
    }

    /// The positions of its rows, and of the tokens behind it: time, row, column and a fourth that is 0; where the
    /// model has one position a row, the first is that.
    pub fn positions(&self) -> impl Iterator<Item = MropePosition> {
        let number = |position: usize| i32::try_from(position).expect("prompts are short");
        let text = move |position| [number(position), number(position), number(position), 0];
        let mut start = 0;
        let mut positions = Vec::with_capacity(self.tokens.len());
        for segment in &self.segments {
            let rows = segment.rows();
            match rows {
                Rows::Embeddings(rows) if !rows.positions.is_empty() => {
                    let behind = |offset: &i32| offset + number(start);
                    let row = |of_row: &MropePosition| of_row.each_ref().map(behind);
                    positions.extend(rows.positions.iter().map(row));
                }
                _ => positions.extend((start..start + rows.n_rows()).map(text)),
            }
            start += rows.extent().n_positions;
        }
        positions.into_iter().chain((start..).map(text))
    }

    /// Whether some of its images has four positions a row.
    pub fn has_mrope(&self) -> bool {
        let mut chunks = self.chunks();
        chunks.any(|(_, chunk)| matches!(chunk.positions, RowPositions::Mrope { .. }))
    }

    /// Its rows up to the end of the last piece with rows of these kinds.
    pub(crate) fn n_rows_to(&self, kinds: Kinds) -> usize {
        let is_last = |segment: &Segment| match segment {
            Segment::Text(_) => kinds.contain_some(TokenKind::Text),
            Segment::Image(_) => kinds.image,
        };
        let last = self.segments.iter().rposition(is_last);
        let read = &self.segments[..last.map_or(0, |last| last + 1)];
        read.iter().map(|segment| segment.rows().n_rows()).sum()
    }

    /// What each row is.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}
