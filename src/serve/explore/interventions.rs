//! `POST /api/interventions`: what a saved set means, and how the command line says it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::request::asked;
use crate::SaeSet;
use crate::saved_set::{self, Entry};
use crate::serve::app::App;
use crate::serve::body::Body;
use crate::serve::generation::steering;
use crate::serve::refusal::Refusal;
use crate::steering::{Intervention, Positions, Steering, Units};

/// Interventions, and perhaps a prompt that they are for.
#[derive(Deserialize, ToSchema)]
pub(crate) struct InterventionsRequest {
    /// A saved set, or the list in one.
    #[schema(value_type = Option<Vec<Object>>)]
    steering: Option<Box<RawValue>>,
    /// A chat; images are parts of messages, as `data:` URLs.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Box<RawValue>>,
    /// A text as it stands, instead of a chat.
    prompt: Option<String>,
}

/// What they mean.
#[derive(Serialize, ToSchema)]
pub(crate) struct Resolved {
    /// A saved set, with features by their indices, their labels, and all that was left to defaults.
    #[schema(value_type = Vec<Object>)]
    interventions: Vec<Entry>,
    /// The same as the command line's arguments, unquoted; none where only a file can say it.
    arguments: Option<Vec<String>>,
}

/// What a saved set means, without a run; the positions in it are checked where there is a prompt.
#[utoipa::path(
    post,
    path = "/api/interventions",
    tag = "ours",
    request_body = InterventionsRequest,
    responses((status = 200, body = Resolved))
)]
pub(crate) async fn resolve(
    State(app): State<Arc<App>>,
    body: Body<InterventionsRequest>,
) -> Result<Json<Resolved>, Refusal> {
    let _place = app.take_place()?;
    let request = body.known()?;
    let prepared = match (request.messages.as_deref(), request.prompt.as_deref()) {
        (None, None) => None,
        (messages, prompt) => Some(app.prepare(asked(messages, prompt)?).await?),
    };
    let prompt = prepared.as_ref().map(|prepared| &*prepared.prompt);
    let set = request.steering.as_deref();
    let steering = set.map(|set| steering(&app, set, prompt));
    let steering = steering.transpose()?.flatten();
    let steering = steering.as_deref();
    let saes = app.model.saes();
    Ok(Json(Resolved {
        interventions: saved_set::entries(steering, saes),
        arguments: arguments(steering.map_or(&[], Steering::interventions), saes),
    }))
}

/// The command line's arguments that mean these interventions. There, all have the same positions, units and
/// condition, vectors are files, and what parts arguments is in no name.
fn arguments(interventions: &[Intervention], saes: &SaeSet) -> Option<Vec<String>> {
    let Some(first) = interventions.first() else {
        return Some(Vec::new());
    };
    let is_alike = |other: &Intervention| {
        (other.at == first.at) && (other.units == first.units) && (other.when == first.when)
    };
    if !interventions.iter().all(is_alike) {
        return None;
    }
    let named = |feature| {
        let name = saes.shown(feature).to_string();
        let is_whole = name.trim() == name && !name.contains(',') && !name.starts_with('-');
        is_whole.then_some(name)
    };
    let mut arguments = Vec::new();
    for intervention in interventions {
        let name = named(intervention.target.feature()?)?;
        arguments.push(format!("--{}", intervention.change.kind().name));
        arguments.push(match intervention.change.number() {
            Some(number) => format!("{name}:{number}"),
            None => name,
        });
    }
    if first.at != Positions::ALL {
        arguments.extend(["--at".to_owned(), first.at.to_string()]);
    }
    if first.units != Units::Raw {
        arguments.extend(["--units".to_owned(), first.units.name().to_owned()]);
    }
    if let Some(when) = first.when {
        let name = named(when.feature)?;
        arguments.extend(["--when".to_owned(), format!("{name}>{}", when.above)]);
    }
    Some(arguments)
}
