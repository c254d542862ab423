//! The way of runs through a context: rows announced, decoded, and seen by the hook.

use crate::Result;
use crate::llama::{Context, GraphNode, Output, Pass, Rows};
use crate::prompt::{Prompt, Segment};
use crate::run::RunOptions;
use crate::tap::{Sequence, Tap, Trace};
use crate::tokens::{Positions, Row, Token};

/// How far a prompt is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To the hook, as far as rows of these kinds go.
    Rows(Positions),
    /// To the logits after its last row.
    Logits,
}

/// The way of one or several runs through a context: announces rows, decodes them, checks that the
/// hook saw them.
pub(crate) struct Decoder<'a> {
    pub(crate) context: &'a mut Context<Tap>,
    node: &'a GraphNode,
    pass: Pass, // of generated tokens, and of prompts that share nothing
    /// Whether prompts share the blocks below the hook.
    pub(crate) shares_prompts: bool,
    hooked: bool, // at present
}

impl<'a> Decoder<'a> {
    /// Begins runs, each of which becomes a sequence.
    pub(crate) fn start(
        context: &'a mut Context<Tap>,
        node: &'a GraphNode,
        options: &[RunOptions<'_>],
    ) -> Self {
        context.clear();
        let pass = match options.iter().any(RunOptions::is_hooked) {
            true => Pass::Whole,
            false => Pass::Unhooked,
        };
        let tap = context.hook();
        tap.cursor.clear();
        tap.sequences = options
            .iter()
            .map(|run| Sequence {
                keep: run.keep,
                steering: run.steering.cloned(),
                substitute: None,
                trace: Trace::default(),
            })
            .collect();
        Self {
            context,
            node,
            pass,
            shares_prompts: false,
            hooked: false,
        }
    }

    /// Goes on with the sequences that the last runs left, and their interventions.
    pub(crate) fn resume(context: &'a mut Context<Tap>, node: &'a GraphNode) -> Self {
        context.hook().cursor.clear();
        Self {
            context,
            node,
            pass: Pass::Whole,
            shares_prompts: false,
            hooked: false,
        }
    }

    /// Says how much is computed of what is decoded from here on.
    pub(crate) fn set_pass(&mut self, pass: Pass) {
        self.hooked = pass != Pass::Unhooked;
        self.context.set_pass(pass);
    }

    /// Decodes a prompt as far as `goal` asks for.
    pub(crate) fn decode_prompt(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        goal: Goal,
    ) -> Result<()> {
        self.set_pass(match (goal, sequence) {
            (Goal::Rows(_), _) => Pass::UpToHook,
            (Goal::Logits, _) if !self.shares_prompts => self.pass,
            (Goal::Logits, 0) => Pass::Recorded,
            (Goal::Logits, _) => Pass::Replayed,
        });
        let d_model = self.context.d_model();
        let segments = match goal {
            Goal::Logits => prompt.segments(),
            Goal::Rows(kinds) => prompt.segments_to(kinds),
        };
        let mut tokens = prompt.tokens().iter().copied();
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

    /// Ends the prompts: the rest is generated tokens.
    pub(crate) fn end_prompts(&mut self) {
        self.set_pass(self.pass);
    }

    /// Appends rows to a sequence.
    pub(crate) fn decode(
        &mut self,
        sequence: usize,
        tokens: impl Iterator<Item = Token>,
        rows: Rows<'_>,
        output: Output,
    ) -> Result<()> {
        self.submit(tokens.map(|token| Row { sequence, token }));
        self.context.decode(sequence, rows, output)?;
        self.check_hook()
    }

    /// Appends a generated token to each of several sequences.
    pub(crate) fn decode_generated(&mut self, sequences: &[usize], ids: &[i32]) -> Result<()> {
        let rows = sequences.iter().zip(ids).map(|(&sequence, &id)| Row {
            sequence,
            token: Token::generated(id),
        });
        self.submit(rows);
        self.context.decode_side_by_side(sequences, ids)?;
        self.check_hook()
    }

    /// Announces rows to the hook, which sees none where it is off.
    fn submit(&mut self, rows: impl Iterator<Item = Row>) {
        if self.hooked {
            self.context.hook().cursor.submit(rows);
        }
    }

    fn check_hook(&mut self) -> Result<()> {
        if self.hooked {
            self.context.hook().cursor.finish_decode(self.node)?;
        }
        Ok(())
    }

    /// What the hook saw of a sequence.
    pub(crate) fn take_trace(&mut self, sequence: usize) -> Trace {
        std::mem::take(&mut self.context.hook().sequences[sequence].trace)
    }
}
