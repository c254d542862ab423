//! What requests to OpenAI's endpoints have in common.

use serde::Deserialize;
use utoipa::ToSchema;

/// Declares a request of OpenAI's form that generates, with members of its own in front of those that all have.
macro_rules! generating_request {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $crate::serve::generation::text_request! {
            $(#[$about])*
            $name {
                $($own)*
                /// Any: there is one model, and answers name it.
                #[expect(dead_code, reason = "clients send it")]
                model: Option<String>,
                /// The number of answers, each with a seed of its own: that of the request and those behind it.
                n: Option<usize>,
                /// Whether the answer comes as server-sent events.
                stream: Option<bool>,
                /// How these come.
                stream_options: Option<$crate::serve::openai::request::StreamOptions>,
                /// Interventions: a saved set, or the list in one.
                #[schema(value_type = Option<Vec<Object>>)]
                steering: Option<Box<serde_json::value::RawValue>>,
                /// Which features of the prompt to give back; of several answers, those of the first.
                sae: Option<$crate::serve::sae::SaeRequest>,
            }
        }

        impl $name {
            /// How texts are to be generated, with so many log-probabilities a token.
            fn generation(
                &self,
                top_log_probs: Option<usize>,
            ) -> $crate::serve::generation::Generation<'_> {
                $crate::serve::generation::Generation {
                    top_log_probs,
                    n: self.n.unwrap_or(1),
                    steering: self.steering.as_deref(),
                    ..self.one_text()
                }
            }

            /// Whether a stream is to end with the numbers of tokens.
            fn includes_usage(&self) -> bool {
                self.stream_options.is_some_and(|options| options.include_usage == Some(true))
            }
        }
    };
}
pub(super) use generating_request;

/// How a stream comes.
#[derive(Clone, Copy, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether it ends with the numbers of tokens.
    pub(super) include_usage: Option<bool>,
}
