//! `POST /api/compare`: a text with interventions beside the one without.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;

use super::events::{self, Timings};
use super::request::{DEFAULT_TOKENS, asked};
use crate::report::difference::{self, Pieces};
use crate::report::json::Output;
use crate::saved_set::{self, Entry};
use crate::serve::app::{App, Place};
use crate::serve::body::Body;
use crate::serve::generation::{Generation, text_request};
use crate::serve::refusal::Refusal;
use crate::serve::runs::{Event, RunEvents};
use crate::serve::sae::{SaeRequest, Wanted};
use crate::serve::stream::{self, Events, Gone};
use crate::{CancelFlag, Keep, Request, RunOptions};

text_request! {
    /// A prompt, and interventions whose effect on its answer is shown.
    CompareRequest {
        /// A chat; images are parts of messages, as `data:` URLs.
        #[schema(value_type = Option<Vec<Object>>)]
        messages: Option<Box<RawValue>>,
        /// A text as it stands, instead of a chat.
        prompt: Option<String>,
        /// Interventions: a saved set, or the list in one.
        #[schema(value_type = Vec<Object>)]
        steering: Option<Box<RawValue>>,
        /// Which features to give back, those without interventions.
        sae: Option<SaeRequest>,
    }
}

/// What the two runs are called, in their order.
const NAMES: [&str; 2] = ["original", "steered"];

type Frame = events::Frame<NewText, Compared>;

/// New characters of a run.
#[derive(Serialize)]
struct NewText {
    run: &'static str,
    text: String,
}

/// What came of both.
#[derive(Serialize)]
struct Compared {
    original: Output,
    steered: Output,
    difference: Difference,
    interventions: Vec<Entry>,
    timings: Timings,
}

/// The pieces of each text, with whether the other one lacks them.
#[derive(Serialize)]
struct Difference {
    original: Pieces<bool>,
    steered: Pieces<bool>,
}

/// A text with interventions beside the one without, as events: `sae` behind the prompt, if that is asked for, `text`
/// of either run as it comes, and `done`.
#[utoipa::path(
    post,
    path = "/api/compare",
    tag = "ours",
    request_body = CompareRequest,
    responses((status = 200, content_type = "text/event-stream", body = String))
)]
pub(crate) async fn compare(
    State(app): State<Arc<App>>,
    body: Body<CompareRequest>,
) -> Result<Response, Refusal> {
    let place = app.take_place()?;
    let request = body.known()?;
    let asked = asked(request.messages.as_deref(), request.prompt.as_deref())?;
    let prepared = app.prepare(asked).await?;
    let sae = request.sae.as_ref();
    let wanted = sae.map(|sae| sae.check(&app, &prepared)).transpose()?;
    let generation = Generation {
        max_tokens: Some(request.max_tokens.unwrap_or(DEFAULT_TOKENS)),
        steering: request.steering.as_deref(),
        ..request.one_text()
    };
    let prompts = std::slice::from_ref(&prepared.prompt);
    let mut requests = generation.requests(&app, prompts, Keep::default())?;
    let steered = &requests[0].options;
    let Some(steering) = &steered.steering else {
        let what = "there is nothing to compare with: give interventions";
        return Err(Refusal::about("steering", what));
    };
    let interventions = saved_set::entries(Some(steering), app.model.saes());
    let options = RunOptions {
        steering: None,
        keep: wanted.as_ref().map(Wanted::keep).unwrap_or_default(),
        cancel: CancelFlag::default(),
        ..steered.clone()
    };
    requests.insert(0, Request::new(Arc::clone(&prepared.prompt), options));
    let writer = Writer {
        wanted,
        interventions,
        app: Arc::clone(&app),
        _place: place,
    };
    let runs = app.runs.ask(requests);
    Ok(stream::answer(|events| writer.write(runs, events)))
}

struct Writer {
    wanted: Option<Wanted>,
    interventions: Vec<Entry>,
    app: Arc<App>,
    _place: Place,
}

impl Writer {
    async fn write(mut self, mut runs: RunEvents, events: Events) -> Result<(), Gone> {
        let mut ended = [None, None];
        while let Some((run_idx, mut event)) = runs.next().await {
            if run_idx == 0 {
                match Wanted::answer_at(&mut self.wanted, &mut event, &self.app).await {
                    Ok(None) => {}
                    Ok(Some(sae)) => events.json(&Frame::Sae { sae }).await?,
                    Err(refusal) => return events.json(&Frame::error(refusal)).await,
                }
            }
            match event {
                Event::Text { text, .. } if !text.is_empty() => {
                    let run = NAMES[run_idx];
                    events.json(&Frame::Text(NewText { run, text })).await?;
                }
                Event::Prompt(_) | Event::Text { .. } => {}
                Event::End(Ok(run)) => ended[run_idx] = Some(run),
                Event::End(Err(error)) => return events.json(&Frame::error(error)).await,
            }
        }
        let [Some(original), Some(steered)] = ended else {
            return Ok(()); // an error has been sent
        };
        let (before, after) = difference::marked(&original.text, &steered.text);
        let compared = Compared {
            original: Output::new(&original),
            steered: Output::new(&steered),
            difference: Difference {
                original: before,
                steered: after,
            },
            interventions: self.interventions,
            timings: Timings::of([&original, &steered].into_iter()),
        };
        events.json(&Frame::Done(compared)).await
    }
}
