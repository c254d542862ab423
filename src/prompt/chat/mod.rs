//! Chats: messages of several turns, with images in any of them, and the model's template that makes one text of them.
//!
//! This is texts alone: it knows neither llama.cpp nor what an image is made of. [`HookedModel::chat_prompt`] puts
//! image rows between the texts.
//!
//! [`HookedModel::chat_prompt`]: crate::HookedModel::chat_prompt

mod environment;
mod openai;
mod template;

pub use openai::{Chat, ImageSource, LocalFiles};
pub use template::ChatTemplate;
pub(crate) use template::refused;

/// What one of the parties says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What, in order.
    pub content: Vec<Part>,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who sets the scene, where the model's template has that.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// The next of the chat's images.
    Image,
}

/// How a model's texts say that an image stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageToken {
    /// The token's text, which templates write for an image.
    pub text: &'static str,
    /// What stands behind it where a template takes one text for a message, so that the token is part of that.
    pub behind: &'static str,
}

impl ImageToken {
    /// LLaVA's, with a line end behind it, as its own code has it.
    pub const LLAVA: Self = Self {
        text: "<image>",
        behind: "\n",
    };

    /// The one that a template writes, of those that published ones do; `<image>` if it is none of the others.
    pub(crate) fn in_template(source: &str) -> Self {
        let others = [
            "<|vision_start|><|image_pad|><|vision_end|>",
            "<start_of_image>",
            "<IMG_CONTEXT>",
            "<|image|>",
            "[IMG]",
        ];
        let written = others.into_iter().find(|token| source.contains(token));
        Self {
            text: written.unwrap_or("<image>"),
            behind: "",
        }
    }
}

impl Message {
    /// A user's turn: the images, then a text.
    pub fn of_user(n_images: usize, text: &str) -> Self {
        let images = std::iter::repeat_n(Part::Image, n_images);
        Self {
            role: Role::User,
            content: images.chain([Part::Text(text.to_owned())]).collect(),
        }
    }

    /// The number of its images.
    pub fn n_images(&self) -> usize {
        let images = self.content.iter().filter(|&part| *part == Part::Image);
        images.count()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image => None,
        })
    }
}

impl Role {
    /// Its name in templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

#[cfg(test)]
mod tests;
