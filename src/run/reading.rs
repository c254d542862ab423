//! The way through a prompt, in pieces that one graph has room for.

use super::remembered::PieceKey;
use crate::Kinds;
use crate::llama::{Output, Rows};
use crate::prompt::{Prompt, Segment};

/// Rows of a text whose logits are computed in one graph: of a large vocabulary, each row's take a megabyte.
pub(super) const SCORED_AT_ONCE: usize = 64;

/// How far a prompt is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To the highest hook, as far as rows of these kinds go.
    Rows(Kinds),
    /// To the logits after its last row.
    Logits,
}

/// How far a prompt was read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(super) goal: Goal,
    pub(super) n_rows: usize, // that were read
    n_needed: usize,
    /// That of all rows before, if what they give is remembered.
    pub(super) key: Option<PieceKey>,
    /// Whether logits are wanted of every row of text, and of those that text follows.
    scores_text: bool,
}

impl Reading {
    /// At a prompt's beginning, which has this key if it is remembered.
    pub(crate) fn new(prompt: &Prompt, goal: Goal, key: Option<PieceKey>) -> Self {
        let n_needed = match goal {
            Goal::Logits => prompt.tokens().len(),
            Goal::Rows(kinds) => prompt.n_rows_to(kinds),
        };
        Self {
            goal,
            n_rows: 0,
            n_needed,
            key,
            scores_text: false,
        }
    }

    /// As [`Reading::new`], to the end, with the logits of every row of text and of the last one of an image.
    pub(super) fn scoring(prompt: &Prompt) -> Self {
        Self {
            scores_text: true,
            ..Self::new(prompt, Goal::Logits, None)
        }
    }

    /// Whether all was read that the goal asks for.
    pub(crate) fn is_done(&self) -> bool {
        self.n_rows == self.n_needed
    }

    /// The next rows, `n_ubatch` at most but for an image whose rows see one another, and the logits that are
    /// wanted of them.
    pub(super) fn next_piece<'a>(
        &self,
        prompt: &'a Prompt,
        n_ubatch: usize,
    ) -> Option<(Rows<'a>, Output)> {
        if self.is_done() {
            return None;
        }
        let mut start = self.n_rows; // within the segment
        let mut rest = prompt.segments().iter().map(Segment::rows);
        let rows = rest.find(|rows| {
            let is_read = rows.n_rows() <= start;
            start -= if is_read { rows.n_rows() } else { 0 };
            !is_read
        })?;
        let n_rows = rows.n_rows();
        let n_at_once = match rows {
            Rows::Tokens(_) if self.scores_text => SCORED_AT_ONCE.min(n_ubatch),
            _ => rows.n_at_once(n_ubatch),
        };
        let end = n_rows.min(start + n_at_once);
        let is_end = match self.scores_text {
            true => end == n_rows,
            false => self.n_rows + end - start == prompt.tokens().len(),
        };
        let output = match (self.goal, rows) {
            (Goal::Logits, Rows::Tokens(_)) if self.scores_text => Output::EveryRow,
            (Goal::Logits, _) if is_end => Output::LastRow,
            (Goal::Logits | Goal::Rows(_), _) => Output::None,
        };
        Some((rows.part(start..end), output))
    }
}
