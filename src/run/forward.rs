//! The way of runs through a context: rows announced, decoded, and seen by the hooks.

use super::cursor::Row;
use super::hooks::Hooks;
use super::reading::{Goal, Reading};
use crate::llama::{Context, Extent, Output, Pass, Reach, Rows};
use crate::prompt::Prompt;
use crate::{CancelFlag, Result, ShownRows, Token};

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
        let mut reading = Reading::new(prompt, goal, None);
        let n_ubatch = self.context.n_ubatch();
        while let Some(piece) = reading.next_piece(prompt, n_ubatch) {
            self.decode_piece(sequence, prompt, &mut reading, piece, cancel)?;
        }
        Ok(())
    }

    /// Decodes the next piece of a prompt ([`Reading::next_piece`]), and tells how many rows it has.
    pub(crate) fn decode_piece(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        reading: &mut Reading,
        (rows, output): (Rows<'_>, Output),
        cancel: &CancelFlag,
    ) -> Result<usize> {
        self.context.watch([cancel.clone()]);
        let n_rows = rows.n_rows();
        let tokens = prompt.tokens().iter().copied().enumerate();
        let tokens = tokens.skip(reading.n_rows).take(n_rows);
        self.decode(sequence, tokens, rows, output)?;
        reading.n_rows += n_rows;
        if reading.is_done() && reading.goal != Goal::Logits {
            // Nothing above the hook was computed, so no other row may look at these.
            self.context.truncate(sequence, Extent::default())?;
        }
        Ok(n_rows)
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
        let n_seen = match (self.pass, self.pass.computed()) {
            (Pass::Unhooked, _) | (_, Reach::Nothing) => 0,
            (_, Reach::Node(site)) => site + 1,
            (_, Reach::End) => hooks.sites.len(),
        };
        let sites = hooks.sites[..n_seen].iter().enumerate();
        for (place, site) in sites.filter(|(_, site)| site.shown_rows == ShownRows::All) {
            hooks.cursor.finish(place, &site.hooked.node)?;
        }
        Ok(())
    }
}
