//! How runs that are all known before the first step are computed, and what is hooked for runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Batch, ControlVector, Engine, Request};
use crate::prompt::Prompt;
use crate::run::reading::Goal;
use crate::run::shortcuts::Shortcut;
use crate::steering::Steering;
use crate::{Error, HookPoint, Result, ShownRows};

impl Engine {
    /// How these runs are computed, which are all that there will be.
    pub(super) fn plan(&mut self, requests: &[Request]) -> Result<Batch> {
        let mut batch = Batch::default();
        let Some(first) = requests.first() else {
            return Ok(batch);
        };
        let prompt = Arc::clone(&first.prompt);
        let shares = self.may_share(requests);
        batch.remembers = (shares || self.may_remember(requests)) && self.takes_shared(&prompt)?;
        batch.pieces = (shares && batch.remembers).then(HashMap::new);
        batch.shared_below = self.shared_place(requests)?;
        if let [only] = requests
            && let Some((layer, values)) = only.in_graph()
            && !self.forward.context.has_control_vector()
            && !self.model.adds_images_behind(layer)
        {
            let values = values.to_vec();
            let steering = only.options.steering.as_deref().expect("it has a vector");
            let tried = Some((steering, layer, &values[..]));
            if self.takes(Shortcut::ControlVector, &prompt, tried)? {
                let is_set = !batch.remembers;
                if is_set {
                    self.forward.context.set_control_vector(layer, &values)?;
                }
                batch.vector = Some(ControlVector {
                    layer,
                    values,
                    is_set,
                });
            }
        }
        let stops = |request: &Request| {
            request.options.goal() != Goal::Logits && request.options.reads_rows()
        };
        batch.is_whole =
            requests.iter().any(stops) && !self.takes(Shortcut::StopAtHook, &prompt, None)?;
        Ok(batch)
    }

    /// Whether the prompts of these runs may be kept in the model's store, or come from there.
    pub(super) fn may_remember(&self, requests: &[Request]) -> bool {
        let may = |request: &Request| {
            let n_rows = request.prompt.tokens().len();
            let has_room = self.model.store_for(n_rows).is_some();
            has_room && request.options.prompt_log_probs.is_none()
        };
        requests.iter().all(may) && self.may_remember_some()
    }

    /// Whether there are prompts that may be kept in the model's store, or come from there.
    pub(super) fn may_remember_some(&self) -> bool {
        let has_store = self.model.options().prompt_store.is_some();
        has_store && self.may_record() && !self.forward.context.has_control_vector()
    }

    /// Whether what a prompt gives may be kept, for which there has to be a callback.
    fn may_record(&self) -> bool {
        let options = self.model.options();
        options.share_prompts && options.eval_callback
    }

    /// The hooked place below which these runs' prompts are computed once, if they are.
    pub(in crate::run) fn shared_place(&mut self, requests: &[Request]) -> Result<Option<usize>> {
        if !self.may_share(requests) {
            return Ok(None);
        }
        let split = self.split(requests);
        let holds = split.is_some() && self.takes_shared(&requests[0].prompt)?;
        Ok(split.filter(|_| holds))
    }

    /// Whether what was read of a prompt gives the same as reading it.
    pub(super) fn takes_shared(&mut self, prompt: &Prompt) -> Result<bool> {
        self.takes(Shortcut::SharedPrompts, prompt, None)
    }

    /// Whether these runs' prompts may be computed once up to a place.
    fn may_share(&self, requests: &[Request]) -> bool {
        let [first, others @ ..] = requests else {
            return false;
        };
        let generates = |request: &Request| {
            let options = &request.options;
            options.goal() == Goal::Logits && options.prompt_log_probs.is_none()
        };
        // Mostly they are one, whose rows need not be compared.
        let is_same = |other: &Request| {
            Arc::ptr_eq(&other.prompt, &first.prompt) || other.prompt.is_same(&first.prompt)
        };
        self.may_record()
            && !others.is_empty()
            && requests.iter().all(generates)
            && others.iter().all(is_same)
    }

    /// The highest hooked place above which everything depends on its rows alone, and below which no run edits.
    fn split(&mut self, requests: &[Request]) -> Option<usize> {
        let lowest = requests.iter().flat_map(Request::edited_places).min();
        self.stream_below(lowest)
    }

    /// The highest hooked place of the residual stream, up to this one if it is given.
    pub(in crate::run) fn stream_below(&mut self, place: Option<HookPoint>) -> Option<usize> {
        self.forward.context.hook().sites.iter().rposition(|site| {
            site.parts_graph && place.is_none_or(|place| site.hook_point <= place)
        })
    }

    /// The places that have to be hooked for these runs.
    fn sites_of(&self, requests: &[Request]) -> BTreeSet<HookPoint> {
        let mut places = BTreeSet::new();
        for request in requests {
            if request.options.reads_rows() || request.options.goal() != Goal::Logits {
                places.extend(self.model.saes().iter().map(|sae| sae.hook_point()));
            }
            places.extend(request.edited_places());
            let steering = request.options.steering.as_deref();
            let watched = steering.map_or(&[][..], Steering::watched);
            places.extend(watched.iter().map(|watched| watched.hook_point));
            places.extend(request.editors.iter().map(|editor| editor.read));
        }
        places
    }

    /// The hooked place below which the last runs' prompts were computed once, if they were.
    pub(in crate::run) fn shared_below(&self) -> Option<usize> {
        self.batch.shared_below
    }

    /// The places whose rows are kept of prompts of these runs: those of the SAEs, and what of the residual stream
    /// leads to them and to the lowest edit.
    pub(super) fn kept_places(&self, requests: &[Request]) -> BTreeSet<HookPoint> {
        let saes: Vec<_> = self
            .model
            .saes()
            .iter()
            .map(|sae| sae.hook_point())
            .collect();
        let lowest = requests.iter().flat_map(Request::edited_places).min();
        let streams = saes.iter().copied().chain(lowest);
        let streams: Vec<_> = streams.filter_map(HookPoint::stream_below).collect();
        saes.into_iter().chain(streams).collect()
    }

    /// Refuses editors where not all rows come.
    fn check_editors(&self, requests: &[Request]) -> Result<()> {
        let editors = requests.iter().flat_map(|request| &request.editors);
        let mut places = editors.flat_map(|editor| [editor.read, editor.write]);
        let shows_all = |place| {
            let site = self.model.site(place)?;
            match site.shown_rows {
                ShownRows::All => Ok(()),
                ShownRows::Output => Err(Error::invalid(format!(
                    "cannot edit `{place}` with a function: in the model's last layer, llama.cpp keeps only the rows that need logits"
                ))
                .with_hint("use an earlier layer")),
            }
        };
        places.try_for_each(shows_all)
    }

    /// Hooks what these runs need, and what is kept of their prompts.
    pub(in crate::run) fn hook_all(&mut self, requests: &[Request]) -> Result<()> {
        self.check_editors(requests)?;
        let mut places = self.sites_of(requests);
        if self.may_share(requests) || self.may_remember(requests) {
            places.extend(self.kept_places(requests));
        }
        self.set_sites(&places)
    }

    /// Hooks what a further run needs, and what is kept of its prompt.
    pub(super) fn hook(&mut self, request: &Request) -> Result<()> {
        let requests = std::slice::from_ref(request);
        self.check_editors(requests)?;
        let mut places = self.sites_of(requests);
        if self.may_remember(requests) {
            places.extend(self.kept_places(requests));
        }
        if !self.is_idle() {
            let sites = &self.forward.context.hook().sites;
            places.extend(sites.iter().map(|site| site.hook_point));
        }
        self.set_sites(&places)
    }

    pub(super) fn set_sites(&mut self, places: &BTreeSet<HookPoint>) -> Result<()> {
        let sites = self.model.sites(places)?;
        if self.forward.context.hook().sites != sites {
            let nodes = sites.iter().map(|site| site.hooked.clone()).collect();
            self.forward.context.set_nodes(nodes);
            self.forward.context.hook().sites = sites;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use crate::steering::{Change, Intervention, Vector};
    use crate::{
        HookPoint, Keep, PromptForm, Run, RunOptions, Session, SessionOptions, Step, demo,
    };

    /// Where runs edit beside the residual stream, they share what leads to the block.
    #[test]
    fn runs_share_the_blocks_below_any_edit() {
        let options = SessionOptions {
            threads: 1,
            gpu_layers: 0,
            ..SessionOptions::default()
        };
        let files = demo::files().expect("the demo");
        let mut session = Session::open(&files, options.clone()).expect("it loads");
        let whole = SessionOptions {
            share_prompts: false,
            ..options
        };
        let mut whole = Session::open(&files, whole).expect("it loads");
        for (place, expected) in [
            ("blocks.2.hook_mlp_out", Some("blocks.1.hook_resid_post")),
            ("blocks.1.attn.hook_z", Some("blocks.0.hook_resid_post")),
            ("blocks.1.hook_resid_post", Some("blocks.1.hook_resid_post")),
            ("blocks.0.hook_attn_out", None),
        ] {
            let at = HookPoint::parse(place).expect("a hook point");
            let width = session.model().site(at).expect("it is there").hooked.width;
            let both = |session: &mut Session| -> Vec<Run> {
                let vector = Vector::new("v", at, vec![0.3; width]).expect("finite numbers");
                let add = Intervention::new(vector, Change::vector(1.0));
                let plain = RunOptions {
                    keep: Keep {
                        logits: true,
                        ..Keep::default()
                    },
                    max_tokens: 6,
                    ..RunOptions::default()
                };
                let steered = RunOptions {
                    steering: Some(session.model().steering(vec![add]).expect("it fits")),
                    ..plain.clone()
                };
                let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
                let prompt = prompt.expect("known characters");
                let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
                let runs = session.run_side_by_side(&prompt, vec![plain, steered], go_on);
                runs.expect("they run")
            };
            let (ours, theirs) = (both(&mut session), both(&mut whole));
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours.logits, theirs.logits, "{place}");
                assert_eq!(ours.token_ids, theirs.token_ids, "{place}");
            }
            assert_ne!(ours[0].logits, ours[1].logits, "{place}");
            let engine = session.engine();
            let split = engine.shared_below();
            let split = split.map(|site| engine.forward.context.hook().sites[site].hook_point);
            let split = split.map(|place| place.to_string());
            assert_eq!(split.as_deref(), expected, "{place}");
        }
    }
}
