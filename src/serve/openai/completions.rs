//! `POST /v1/completions`: texts as they stand are gone on with.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::request::generating_request;
use super::streamed::{Beside, Part, Streamed};
use super::wire::{Head, Timings, Usage, finish_reason};
use crate::serve::app::App;
use crate::serve::body::Body;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;
use crate::serve::sae::Wanted;
use crate::serve::stream;
use crate::{HookedModel, Keep, Prompt, Run, Token, TokenLogProbs};

generating_request! {
    /// Texts that the model is to go on with.
    CompletionRequest {
        /// A text, or its token ids, or several of either.
        prompt: Prompts,
        /// Whether answers begin with the prompt, and `logprobs` with those of its tokens.
        echo: Option<bool>,
        /// How many most likely tokens to name at each place, 20 at most.
        logprobs: Option<usize>,
        /// Not done here.
        suffix: Option<String>,
        /// Not done here: the best of as many as are asked for.
        best_of: Option<usize>,
    }
}

/// Texts as they stand, with the vocabulary's beginning-of-sequence token in front where it asks for one and they lack
/// it; ids are taken as they are.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<i32>),
    ListsOfIds(Vec<Vec<i32>>),
}

/// Texts that were gone on with, or a part of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct TextCompletion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    /// The features that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    sae: Option<Box<RawValue>>,
    /// Members of the request that mean nothing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TextChoice)]
struct Choice {
    text: String,
    index: usize,
    logprobs: Option<LogProbs>,
    finish_reason: Option<&'static str>,
}

/// How likely tokens were: lists with an entry for each.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = TextLogProbs)]
struct LogProbs {
    tokens: Vec<String>,
    /// In nats; none for a prompt's first token and for image rows.
    token_logprobs: Vec<Option<f64>>,
    /// The most likely tokens, the chosen one among them, each with its log-probability.
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where tokens begin, in characters of the text.
    text_offset: Vec<usize>,
}

/// How answers are written.
struct Writer {
    head: Head,
    model: Arc<HookedModel>,
    prompts: Vec<Arc<Prompt>>,
    /// How many tokens in front of each prompt its text does not have: they are shown as none.
    n_added: Vec<usize>, // [prompts]
    n: usize, // answers to each prompt
    echoes: bool,
    has_log_probs: bool,
}

/// Goes on with texts.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses((status = 200, body = TextCompletion))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    body: Body<CompletionRequest>,
) -> Result<Response, Refusal> {
    let place = app.take_place()?;
    let Body {
        value: request,
        ignored,
    } = body;
    request.check()?;
    let mut generation = request.generation(request.logprobs);
    let asked = request.prompt.clone().asked();
    generation.check_number(asked.len())?;
    let model = app.model.language_model();
    let mut prepared = Vec::new();
    let mut n_added = Vec::new();
    for asked in asked {
        n_added.push(match &asked {
            Asked::Raw(text) if !model.begins_with_bos(text) => model.added_bos().iter().count(),
            _ => 0,
        });
        let one = app.prepare(asked).await;
        prepared.push(one.map_err(|refusal| refusal.of("prompt"))?);
    }
    let wanted = match (&request.sae, &prepared[..]) {
        (Some(sae), [only]) => Some(sae.check(&app, only)?),
        (Some(_), _) => {
            let what = "features are given of one prompt: ask for each by itself";
            return Err(Refusal::about("sae", what));
        }
        (None, _) => None,
    };
    let prompts: Vec<_> = prepared.into_iter().map(|one| one.prompt).collect();
    generation.prompt_log_probs = request.logprobs.filter(|_| request.echo == Some(true));
    let mut requests = generation.requests(&app, &prompts, Keep::default())?;
    if let Some(wanted) = &wanted {
        requests[0].options.keep = wanted.keep();
    }
    let writer = Writer {
        head: Head::new("cmpl", "text_completion", &app),
        model: Arc::clone(&app.model),
        prompts,
        n_added,
        n: generation.n,
        echoes: request.echo == Some(true),
        has_log_probs: request.logprobs.is_some(),
    };
    let runs = app.runs.ask(requests);
    if request.stream == Some(true) {
        let streamed = Streamed {
            n_prompt: writer.n_prompt().collect(),
            n: generation.n,
            wanted,
            includes_usage: request.includes_usage(),
            app,
            _place: place,
        };
        let chunk = move |part, beside| writer.chunk(part, beside);
        return Ok(stream::answer(|events| streamed.write(runs, events, chunk)));
    }
    let mut ended = runs.end().await?;
    let sae = Wanted::answer_of(wanted, &mut ended[0].trace, &app).await?;
    let ignored = ignored.into_iter().collect();
    let whole = writer.whole(&ended, ignored);
    Ok(Json(TextCompletion { sae, ..whole }).into_response())
}

impl CompletionRequest {
    /// Refuses what is not done here.
    fn check(&self) -> Result<(), Refusal> {
        if self
            .suffix
            .as_deref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            let what = "`suffix` is not done here: leave it out";
            return Err(Refusal::about("suffix", what));
        }
        if self
            .best_of
            .is_some_and(|best_of| best_of != self.n.unwrap_or(1))
        {
            let what = "`best_of` is not done here: leave it out, or give as many as `n`";
            return Err(Refusal::about("best_of", what));
        }
        if self.stream == Some(true) && self.echo == Some(true) {
            let what = "a stream does not begin with its prompt: leave out `echo` or `stream`";
            return Err(Refusal::about("echo", what));
        }
        Ok(())
    }
}

impl Prompts {
    fn asked(self) -> Vec<Asked> {
        match self {
            Self::Text(text) => vec![Asked::Raw(text)],
            Self::Texts(texts) => texts.into_iter().map(Asked::Raw).collect(),
            Self::Ids(ids) => vec![Asked::Ids(ids)],
            Self::ListsOfIds(lists) => lists.into_iter().map(Asked::Ids).collect(),
        }
    }
}

impl Writer {
    /// The tokens of each prompt.
    fn n_prompt(&self) -> impl Iterator<Item = usize> {
        self.prompts.iter().map(|prompt| prompt.tokens().len())
    }

    fn prompt(&self, answer: usize) -> &Prompt {
        &self.prompts[answer / self.n]
    }

    fn whole(&self, runs: &[Run], ignored: Vec<String>) -> TextCompletion {
        let choice = |(index, run): (usize, &Run)| {
            let mut log_probs = LogProbs::default();
            let mut text = String::new();
            if self.echoes {
                let found = run.prompt_log_probs.iter().map(Option::as_ref);
                let found = found.chain(std::iter::repeat(None));
                let n_added = self.n_added[index / self.n];
                for (i, (token, found)) in self.prompt(index).tokens().iter().zip(found).enumerate()
                {
                    let shown = log_probs.push(*token, found, &self.model);
                    match i < n_added {
                        true => log_probs.tokens[i].clear(),
                        false => text.push_str(&shown),
                    }
                }
            }
            for (&id, found) in run.token_ids.iter().zip(&run.log_probs) {
                log_probs.push(Token::generated(id), Some(found), &self.model);
            }
            // Those who ask for a token behind the prompt, to leave it out again, count on one.
            if let Some((id, Some(found))) = run.end.as_ref().filter(|_| self.echoes) {
                log_probs.push(Token::generated(*id), Some(found), &self.model);
            }
            text.push_str(&run.text);
            Choice {
                text,
                index,
                logprobs: self.has_log_probs.then_some(log_probs),
                finish_reason: Some(finish_reason(run.stop)),
            }
        };
        TextCompletion {
            head: self.head.clone(),
            choices: runs.iter().enumerate().map(choice).collect(),
            usage: Some(Usage::of(self.n_prompt().sum(), runs)),
            timings: Some(Timings::of(self.prompt(0).tokens().len(), &runs[0])),
            sae: None,
            ignored,
        }
    }

    fn chunk(&self, part: Option<Part>, beside: Beside) -> TextCompletion {
        let choice = |part: Part| Choice {
            text: part.text.unwrap_or_default(),
            index: part.index,
            logprobs: part.token.map(|(id, found)| {
                let mut log_probs = LogProbs::default();
                log_probs.push(Token::generated(id), Some(&found), &self.model);
                log_probs
            }),
            finish_reason: part.finish_reason,
        };
        TextCompletion {
            head: self.head.clone(),
            choices: part.into_iter().map(choice).collect(),
            usage: beside.usage,
            timings: beside.timings,
            sae: beside.sae,
            ignored: Vec::new(),
        }
    }
}

impl LogProbs {
    /// Adds a token with what was found of it, and gives its text.
    fn push(&mut self, token: Token, found: Option<&TokenLogProbs>, model: &HookedModel) -> String {
        let text = |id| model.token_text(Token::text(id)).unwrap_or_default();
        let shown = token.id.map_or("<image>".to_owned(), text);
        let before = self.text_offset.last().zip(self.tokens.last());
        let offset = before.map_or(0, |(start, token)| start + token.chars().count());
        self.text_offset.push(offset);
        self.token_logprobs.push(found.map(|found| found.log_prob));
        self.top_logprobs.push(found.map(|found| {
            let mut top = Map::new();
            let chosen = (token.id.unwrap_or_default(), found.log_prob);
            for &(id, log_prob) in found.top.iter().chain([&chosen]) {
                // Of tokens with the same text, the likeliest.
                top.entry(text(id)).or_insert_with(|| log_prob.into());
            }
            top
        }));
        self.tokens.push(shown.clone());
        shown
    }
}
