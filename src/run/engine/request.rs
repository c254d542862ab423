//! What is asked of an engine.

use std::sync::Arc;

use super::pieces::PromptEdits;
use crate::prompt::Prompt;
use crate::run::hooks::EditorAt;
use crate::run::options::RunOptions;
use crate::run::reading::Goal;
use crate::steering::{Edit, Steering};
use crate::{HookPoint, Result, Site};

/// A run that is asked for.
pub struct Request {
    /// What the model reads first.
    pub prompt: Arc<Prompt>,
    /// What the run does.
    pub options: RunOptions,
    /// What edits rows besides the options' interventions.
    pub editors: Vec<EditorAt>,
}

impl Request {
    /// A run of `prompt` without editors.
    pub fn new(prompt: Arc<Prompt>, options: RunOptions) -> Self {
        Self {
            prompt,
            options,
            editors: Vec::new(),
        }
    }

    /// Checks the options, and finds the rows of the prompt that interventions touch, where positions of their own
    /// say it.
    pub(in crate::run) fn prepare(&mut self) -> Result<()> {
        self.options.check()?;
        let steering = &mut self.options.steering;
        if let Some(unplaced) = steering.as_deref().filter(|one| one.has_places()) {
            *steering = Some(Arc::new(unplaced.placed(self.prompt.tokens())?));
        }
        Ok(())
    }

    /// Where it edits rows.
    pub(super) fn edited_places(&self) -> impl Iterator<Item = HookPoint> {
        let steering = self.options.steering.as_deref();
        let edits = steering.map_or(&[][..], Steering::edits);
        let editors = self.editors.iter().map(|editor| editor.write);
        edits.iter().map(Edit::hook_point).chain(editors)
    }

    /// Where it edits the rows of its prompt, if it does.
    pub(super) fn prompt_edits(&self) -> Option<PromptEdits> {
        let steering = self.options.steering.as_deref();
        let first_row = match self.editors.is_empty() {
            true => steering.and_then(|steering| steering.first_row(self.prompt.tokens())),
            false => Some(0),
        };
        Some(PromptEdits {
            first_row: first_row?,
            lowest: self.edited_places().min()?,
        })
    }

    /// The block and the vector of a run that llama.cpp's control vector does alone: nothing reads rows at a
    /// hook, and the same is added to every row of the residual stream.
    pub(super) fn in_graph(&self) -> Option<(usize, &[f32])> {
        let options = &self.options;
        if options.reads_rows() || options.goal() != Goal::Logits || !self.editors.is_empty() {
            return None;
        }
        let (hook_point, vector) = options.steering.as_deref()?.constant()?;
        // llama.cpp has none for layer 0.
        let is_possible = hook_point.site() == Site::ResidPost && hook_point.layer() > 0;
        is_possible.then_some((hook_point.layer(), vector))
    }

    /// Whether it goes through the hooks, `is_steered` saying that its interventions do.
    pub(super) fn is_hooked(&self, is_steered: bool) -> bool {
        is_steered
            || !self.editors.is_empty()
            || self.options.reads_rows()
            || self.options.goal() != Goal::Logits
    }
}
