//! `POST /v1/activation/…`: what is active in prompts.

pub(super) mod all;
pub(super) mod single;
pub(super) mod source;
pub(super) mod topk;

use serde::Serialize;
use utoipa::ToSchema;

/// The answers to several prompts, in their order.
#[derive(Serialize, ToSchema)]
pub(crate) struct Results<T> {
    results: Vec<T>,
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
