//! What a context decodes, and how much of it a sequence holds.

use std::ops::Range;

use llama_cpp_sys_2 as sys;

use super::model::Model;
use crate::{Error, ErrorKind, Result};

/// What is decoded.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Token ids.
    Tokens(&'a [i32]),
    /// Embeddings, which stand for no token.
    Embeddings(Embeddings<'a>),
}

/// Rows that a model reads in place of tokens, such as an image's.
#[derive(Clone, Copy, Debug)]
pub struct Embeddings<'a> {
    /// `[n_rows, width]`, as the projector gives them.
    pub values: &'a [f32],
    /// The length of a row ([`Model::input_width`](super::Model::input_width)).
    pub width: usize,
    /// Four positions of each row, counted from the sequence's next one ([`MropePosition`]); empty where each
    /// row takes the position behind the one before.
    pub positions: &'a [MropePosition],
    /// How many positions they take up.
    pub n_positions: usize,
    /// Whether each row sees only itself and those before. Else all of them see one another, for which they
    /// have to be in one graph.
    pub is_causal: bool,
}

/// A row's position where a model has M-RoPE: its time, row and column, and a fourth that images leave 0
/// (`mtmd_image_tokens_get_decoder_pos` in llama.cpp's `tools/mtmd/mtmd.cpp`).
pub type MropePosition = [i32; 4];

/// How much a sequence holds. With M-RoPE an image takes up fewer positions than rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Rows, of which each takes a cell of the KV cache.
    pub n_rows: usize,
    /// Positions: the next token's.
    pub n_positions: usize,
}

/// The rows that logits are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// None.
    None,
    /// The last row.
    LastRow,
    /// Every row; there may be 512 of them at once.
    EveryRow,
}

/// A row of the last batch whose logits were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRow {
    /// The last one.
    Last,
    /// By its index in the batch.
    Index(usize),
}

impl<'a> Rows<'a> {
    /// How many they are.
    pub fn n_rows(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Embeddings(rows) => rows.values.len() / rows.width.max(1),
        }
    }

    /// How many of them a graph takes at most, which has room for `n_ubatch`: embeddings that see one another are in
    /// one.
    pub fn n_at_once(&self, n_ubatch: usize) -> usize {
        match self {
            Self::Embeddings(rows) if !rows.is_causal => self.n_rows(),
            Self::Embeddings(_) | Self::Tokens(_) => n_ubatch,
        }
    }

    /// What a sequence holds more with them.
    pub fn extent(&self) -> Extent {
        Extent {
            n_rows: self.n_rows(),
            n_positions: match self {
                Self::Tokens(ids) => ids.len(),
                Self::Embeddings(rows) => rows.n_positions,
            },
        }
    }

    /// The rows of a range, which are decoded behind those before it.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Tokens(ids) => Self::Tokens(&ids[range]),
            Self::Embeddings(rows) => Self::Embeddings(rows.part(range)),
        }
    }
}

impl Embeddings<'_> {
    fn part(self, range: Range<usize>) -> Self {
        let is_end = range.end * self.width == self.values.len();
        Self {
            values: &self.values[range.start * self.width..range.end * self.width],
            // Four positions are counted from where the whole begins, which a part does not move.
            n_positions: match self.positions {
                [] => range.len(),
                _ if is_end => self.n_positions,
                _ => 0,
            },
            positions: match self.positions {
                [] => &[],
                positions => &positions[range],
            },
            ..self
        }
    }
}

impl std::ops::AddAssign for Extent {
    fn add_assign(&mut self, other: Self) {
        self.n_rows += other.n_rows;
        self.n_positions += other.n_positions;
    }
}

/// Positions of a row of embeddings with M-RoPE.
const N_MROPE: usize = 4;

impl Model {
    /// The length of the rows of embeddings that it reads: the residual stream's width, or more where blocks
    /// further up take some in too.
    pub fn input_width(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_embd_inp(self.as_ptr()) }.unsigned_abs() as usize
    }

    /// Whether rows of embeddings have four positions each.
    pub fn has_mrope(&self) -> bool {
        // SAFETY: the model is alive.
        let rope = unsafe { sys::llama_model_rope_type(self.as_ptr()) };
        // `llama_hparams::n_pos_per_embd` in `src/llama-hparams.cpp`.
        matches!(
            rope,
            sys::LLAMA_ROPE_TYPE_MROPE | sys::LLAMA_ROPE_TYPE_IMROPE
        )
    }

    /// The rows that some blocks see at most, with sliding windows; none where all blocks see all.
    pub(super) fn sliding_window(&self) -> Option<usize> {
        // SAFETY: the model is alive.
        let window = unsafe { sys::llama_model_n_swa(self.as_ptr()) };
        (window > 0).then_some(window.unsigned_abs() as usize)
    }

    /// Checks that embeddings are rows that this model can read.
    ///
    /// # Errors
    /// Rows of another width, or no whole ones; four positions where the model has one for each row, another
    /// number of them than of rows, or times that fall.
    pub fn check_embeddings(&self, rows: &Embeddings<'_>) -> Result<()> {
        let Embeddings {
            values,
            width,
            positions,
            ..
        } = *rows;
        let expected = self.input_width();
        if width != expected || values.is_empty() || !values.len().is_multiple_of(width) {
            return Err(Error::invalid(format!(
                "expected image rows of {expected} values, got {} values in rows of {width}",
                values.len()
            ))
            .with_hint("the image belongs to another model"));
        }
        let n_rows = values.len() / width;
        if positions.is_empty() {
            return Ok(());
        }
        if !self.has_mrope() {
            let what = "the image rows have four positions each, and this model has one for each";
            return Err(Error::new(ErrorKind::Unsupported, what.to_owned())
                .with_hint("the image belongs to another model"));
        }
        // llama.cpp refuses times that fall (`llama_batch_allocr::init` in `src/llama-batch.cpp`).
        let is_rising = positions.is_sorted_by_key(|position| position[0]);
        if positions.len() != n_rows || !is_rising {
            return Err(Error::invalid(format!(
                "expected positions of {n_rows} image rows whose times do not fall, got {}",
                positions.len()
            )));
        }
        Ok(())
    }

    /// The positions of embeddings that come at position `next`, as a batch of llama.cpp's has them: one for
    /// each row, or `[4, n_rows]`.
    pub(super) fn batch_positions(&self, rows: &Embeddings<'_>, next: i32) -> Vec<i32> {
        let n_rows = (0..).zip(rows.values.chunks_exact(rows.width));
        let in_order = n_rows.map(|(i, _)| next + i);
        if !self.has_mrope() {
            return in_order.collect();
        }
        // As llama.cpp has it for tokens: the fourth is 0.
        let of_rows: Vec<MropePosition> = match rows.positions {
            [] => in_order.map(|i| [i, i, i, 0]).collect(),
            given => given
                .iter()
                .map(|&[time, row, column, fourth]| {
                    [time + next, row + next, column + next, fourth]
                })
                .collect(),
        };
        (0..N_MROPE)
            .flat_map(|section| of_rows.iter().map(move |position| position[section]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Embeddings, Extent, Rows};

    #[test]
    fn parts_make_up_the_whole() {
        let values = [0.0; 12];
        let positions = [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]];
        let four = Rows::Embeddings(Embeddings {
            values: &values,
            width: 3,
            positions: &positions,
            n_positions: 2,
            is_causal: true,
        });
        let one = Rows::Embeddings(Embeddings {
            values: &values,
            width: 3,
            positions: &[],
            n_positions: 4,
            is_causal: true,
        });
        for (rows, expected) in [
            (four, [[3, 0], [1, 2]]),
            (one, [[3, 3], [1, 1]]),
            (Rows::Tokens(&[5; 4]), [[3, 3], [1, 1]]),
        ] {
            let mut sum = Extent::default();
            for (range, [n_rows, n_positions]) in [0..3, 3..4].into_iter().zip(expected) {
                let extent = rows.part(range).extent();
                assert_eq!(
                    extent,
                    Extent {
                        n_rows,
                        n_positions
                    }
                );
                sum += extent;
            }
            assert_eq!(sum, rows.extent());
        }
    }
}
