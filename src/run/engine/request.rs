//! What is asked of an engine.

use std::sync::Arc;

use crate::prompt::Prompt;
use crate::run::hooks::EditorAt;
use crate::run::options::RunOptions;
use crate::run::reading::Goal;
use crate::run::recorded::RecordedPrompt;
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
    /// The prompt as it was read before, if it was ([`Engine::record`](super::Engine::record)).
    pub recorded: Option<Arc<RecordedPrompt>>,
}

impl Request {
    /// A run of `prompt` without editors.
    pub fn new(prompt: Arc<Prompt>, options: RunOptions) -> Self {
        Self {
            prompt,
            options,
            editors: Vec::new(),
            recorded: None,
        }
    }

    /// Finds the rows of the prompt that interventions touch, where positions of their own say it.
    pub(in crate::run) fn place(&mut self) -> Result<()> {
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
            || self.recorded.is_some()
    }
}
