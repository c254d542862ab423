//! What a capture says of each row of a run, as columns of numbers.

use crate::{Prompt, Token, TokenKind};

/// Columns about rows, `[n_rows]`; the numbers in them are an interface.
pub struct RowColumns {
    /// Ids in the vocabulary; -1 for image rows.
    pub token_ids: Vec<i32>,
    /// 0 for text, 1 for image rows, 2 for what was generated.
    pub kinds: Vec<u8>,
    /// What RoPE turns each row by, `[n_rows, position_width]`; with M-RoPE time, row, column and 0.
    pub positions: Vec<i32>,
    /// The length of a position.
    pub position_width: usize,
    /// Which of the prompt's images, counted from 0; -1 for text.
    pub images: Vec<i32>,
    /// Which of the prompt's pieces of image rows, counted from 0; -1 for text.
    pub chunks: Vec<i32>,
}

impl RowColumns {
    /// The columns of the rows `tokens`, which begin with those of `prompt`, or are its first.
    pub fn new(prompt: &Prompt, tokens: &[Token]) -> Self {
        let n_rows = tokens.len();
        let kind = |token: &Token| match token.kind {
            TokenKind::Text => 0,
            TokenKind::Image => 1,
            TokenKind::Generated => 2,
        };
        let position_width = if prompt.has_mrope() { 4 } else { 1 };
        let positions = prompt.positions().take(n_rows);
        let [mut images, mut chunks] = [(); 2].map(|()| vec![-1_i32; n_rows]);
        for (chunk_idx, (first, chunk)) in (0..).zip(prompt.chunks()) {
            // A run without logits stops behind the last row that is looked at.
            let rows = first.min(n_rows)..(first + chunk.n_rows()).min(n_rows);
            chunks[rows.clone()].fill(chunk_idx);
            images[rows].fill(chunk.image as i32);
        }
        Self {
            token_ids: tokens.iter().map(|token| token.id.unwrap_or(-1)).collect(),
            kinds: tokens.iter().map(kind).collect(),
            positions: positions
                .flat_map(|position| position[..position_width].to_vec())
                .collect(),
            position_width,
            images,
            chunks,
        }
    }
}
