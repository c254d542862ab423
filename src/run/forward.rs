//! The way of runs through a context: rows announced, decoded, and seen by the hooks.

use super::cursor::Row;
use super::hooks::Hooks;
use crate::llama::{Context, Output, Pass, Rows};
use crate::prompt::{Prompt, Segment};
use crate::{CancelFlag, Kinds, Result, Token};

/// How far a prompt is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To the highest hook, as far as rows of these kinds go.
    Rows(Kinds),
    /// To the logits after its last row.
    Logits,
}

/// Announces rows, decodes them, and checks that the hooks saw them.
pub(crate) struct Forward {
    pub(crate) context: Context<Hooks>,
    pass: Pass,
}

impl Forward {
    pub(crate) fn new(context: Context<Hooks>) -> Self {
        Self {
            context,
            pass: Pass::Unhooked,
        }
    }

    /// Says how much is computed of what is decoded from here on.
    pub(crate) fn set_pass(&mut self, pass: Pass) {
        self.pass = pass;
        self.context.set_pass(pass);
    }

    /// Decodes a prompt as far as `goal` asks for, as the pass says.
    pub(crate) fn decode_prompt(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        goal: Goal,
        cancel: &CancelFlag,
    ) -> Result<()> {
        self.context.watch([cancel.clone()]);
        let d_model = self.context.d_model();
        let segments = match goal {
            Goal::Logits => prompt.segments(),
            Goal::Rows(kinds) => prompt.segments_to(kinds),
        };
        let mut tokens = prompt.tokens().iter().copied().enumerate();
        for (i, segment) in segments.iter().enumerate() {
            let is_last = i + 1 == segments.len();
            let output = match goal {
                Goal::Logits if is_last => Output::LastRow,
                Goal::Logits | Goal::Rows(_) => Output::None,
            };
            let (rows, n_rows) = match segment {
                Segment::Text(ids) => (Rows::Tokens(ids), ids.len()),
                Segment::Image(rows) => (Rows::Embeddings(rows), rows.len() / d_model),
            };
            self.decode(sequence, tokens.by_ref().take(n_rows), rows, output)?;
        }
        if goal != Goal::Logits {
            // Nothing above the hook was computed, so no other row may look at these.
            self.context.truncate(sequence, 0)?;
        }
        Ok(())
    }

    /// Appends rows to a sequence; `tokens` are what they are, with their places in the prompt, which generated
    /// ones may have any of.
    pub(crate) fn decode(
        &mut self,
        sequence: usize,
        tokens: impl Iterator<Item = (usize, Token)>,
        rows: Rows<'_>,
        output: Output,
    ) -> Result<()> {
        self.submit(tokens.map(|(prompt_idx, token)| Row {
            sequence,
            prompt_idx,
            token,
        }));
        self.context.decode(sequence, rows, output)?;
        self.check_hooks()
    }

    /// Appends a generated token to each of several sequences.
    pub(crate) fn decode_generated(
        &mut self,
        sequences: &[usize],
        ids: &[i32],
        cancel: impl IntoIterator<Item = CancelFlag>,
    ) -> Result<()> {
        self.context.watch(cancel);
        let rows = sequences.iter().zip(ids).map(|(&sequence, &id)| Row {
            sequence,
            prompt_idx: 0,
            token: Token::generated(id),
        });
        self.submit(rows);
        self.context.decode_side_by_side(sequences, ids)?;
        self.check_hooks()
    }

    /// Announces rows to the hooks, which see none where they are off.
    fn submit(&mut self, rows: impl Iterator<Item = Row>) {
        if self.pass != Pass::Unhooked {
            let hooks = self.context.hook();
            let n_sites = hooks.sites.len();
            hooks.cursor.submit(rows, n_sites);
        }
    }

    fn check_hooks(&mut self) -> Result<()> {
        let hooks = self.context.hook();
        let n_seen = match self.pass {
            Pass::Unhooked => 0,
            Pass::UpTo(site) => site + 1,
            Pass::Whole | Pass::Recorded(_) | Pass::Replayed(_) => hooks.sites.len(),
        };
        for (place, site) in hooks.sites[..n_seen].iter().enumerate() {
            hooks.cursor.finish(place, &site.hooked.node)?;
        }
        Ok(())
    }
}
