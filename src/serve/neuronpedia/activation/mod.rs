//! `POST /v1/activation/…`: what is active in prompts.

pub(super) mod all;
pub(super) mod single;
pub(super) mod source;
pub(super) mod topk;

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::serve::app::App;
use crate::serve::refusal::Refusal;

/// The answers to several prompts, in their order.
#[derive(Serialize, ToSchema)]
pub(crate) struct Results<T> {
    results: Vec<T>,
}

/// Takes a place, and then waits for the answer to the only prompt.
async fn only<T>(
    app: &App,
    answers: impl Future<Output = Result<Vec<T>, Refusal>>,
) -> Result<Json<T>, Refusal> {
    let _place = app.take_place()?;
    Ok(Json(answers.await?.remove(0)))
}

/// Takes a place, and then waits for the answers to several prompts.
async fn several<T>(
    app: &App,
    answers: impl Future<Output = Result<Vec<T>, Refusal>>,
) -> Result<Json<Results<T>>, Refusal> {
    let _place = app.take_place()?;
    let results = answers.await?;
    Ok(Json(Results { results }))
}

/// Declares what is asked of one prompt, and of several: `Query` holds what both ask besides.
macro_rules! queries {
    (
        $(#[$about:meta])*
        $query:ident, $one:ident, $many:ident {
            $($(#[$attribute:meta])* $member:ident: $type:ty,)*
        }
    ) => {
        pub(super) struct $query {
            $($member: $type,)*
        }

        $(#[$about])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $one {
            /// What the model reads.
            prompt: $crate::serve::neuronpedia::wire::Prompt,
            $($(#[$attribute])* $member: $type,)*
        }

        $(#[$about])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $many {
            /// What the model reads: 1 to 4 of them.
            prompts: Vec<$crate::serve::neuronpedia::wire::Prompt>,
            $($(#[$attribute])* $member: $type,)*
        }

        impl $one {
            fn split(self) -> (Vec<$crate::serve::neuronpedia::wire::Prompt>, $query) {
                let Self { prompt, $($member,)* } = self;
                (vec![prompt], $query { $($member,)* })
            }
        }

        impl $many {
            fn split(self) -> (Vec<$crate::serve::neuronpedia::wire::Prompt>, $query) {
                let Self { prompts, $($member,)* } = self;
                (prompts, $query { $($member,)* })
            }
        }
    };
}
use queries;
