//! Prompts that are read once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Batch, Engine, Request};
use crate::llama::Pass;
use crate::prompt::Prompt;
use crate::run::hooks::Keep;
use crate::run::reading::Goal;
use crate::run::recorded::RecordedPrompt;
use crate::{CancelFlag, Error, ErrorKind, HookPoint, Result, Site};

impl Engine {
    /// Reads a prompt for the runs of it that will follow, which edit nothing below `below`, a place in the
    /// residual stream. Rows of all SAEs below are kept too. What ran before has to have ended.
    ///
    /// # Errors
    /// As [`Engine::admit`]; a place that is not in the residual stream.
    pub fn record(
        &mut self,
        prompt: &Arc<Prompt>,
        below: HookPoint,
        cancel: &CancelFlag,
    ) -> Result<RecordedPrompt> {
        assert!(self.is_idle(), "the engine's runs have ended");
        if below.site() != Site::ResidPost {
            let what = format!("a prompt is recorded below `hook_resid_post`, and not `{below}`");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        self.check_length(prompt)?;
        let key = self.model.prompt_key(prompt, below)?;
        let saes = self.model.saes().iter().map(|sae| sae.hook_point());
        let places: BTreeSet<_> = saes
            .filter(|place| *place <= below)
            .chain([below])
            .collect();
        self.batch = Batch::default();
        self.set_sites(places.clone())?;
        let forward = &mut self.forward;
        forward.context.clear();
        let hooks = forward.context.hook();
        let split = hooks.site(below).expect("it was hooked");
        hooks.begin(0, Keep::default(), None, Vec::new());
        forward.set_pass(Pass::Recorded(split));
        forward.decode_prompt(0, prompt, Goal::Logits, cancel)?;
        Ok(RecordedPrompt {
            key,
            below,
            places,
            graphs: Arc::new(forward.context.take_recording()),
        })
    }

    /// Checks that a run can go on from a recorded prompt.
    pub(super) fn check_recorded(
        &mut self,
        recorded: &RecordedPrompt,
        request: &Request,
    ) -> Result<()> {
        let RecordedPrompt { below, places, .. } = recorded;
        let refused = |why: &str| {
            let what = format!("the run cannot go on from the recorded prompt: {why}");
            Err(Error::invalid(what).with_hint("leave it out, or record the prompt again"))
        };
        if self.model.prompt_key(&request.prompt, *below)? != recorded.key {
            return refused("it is of another prompt, model or way to compute");
        }
        if let Some(place) = request.edited_places().find(|place| place < below) {
            return refused(&format!("`{place}` is edited, and it begins at `{below}`"));
        }
        let sites = self.forward.context.hook().sites.iter();
        let mut below_it = sites
            .map(|site| site.hook_point)
            .filter(|place| place <= below);
        match below_it.find(|place| !places.contains(place)) {
            Some(place) => refused(&format!("it does not hold the rows at `{place}`")),
            None => Ok(()),
        }
    }
}
