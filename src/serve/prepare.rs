//! From what a request holds to a prompt: pictures are decoded and encoded, texts become tokens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::app::App;
use super::refusal::Refusal;
use crate::chat::{Chat, LocalFiles, Message};
use crate::{
    CancelFlag, Error, HookedModel, ImageEmbeddings, Picture, Prompt, PromptForm, Result, llama,
};

/// The images that are kept encoded.
const N_IMAGES: usize = 32;

/// What a request asks the model.
pub(super) enum Asked {
    /// OpenAI's `messages`, as JSON.
    Messages(Vec<u8>),
    /// A text as it stands.
    Raw(String),
    /// Token ids as they stand.
    Ids(Vec<i32>),
}

/// A prompt, and what it was made of.
pub(super) struct Prepared {
    pub(super) prompt: Arc<Prompt>,
    /// Those of a chat; none of a text.
    pub(super) messages: Option<Vec<Message>>,
    pub(super) pictures: Arc<[Picture]>,
}

/// Encoded images, the one that was used last at the end. Whoever encodes holds the lock, so that an image that comes
/// twice at once is encoded once, and the processor does not work on several.
#[derive(Default)]
pub(super) struct Images(Mutex<VecDeque<(blake3::Hash, ImageEmbeddings)>>);

impl Images {
    fn encode(
        &self,
        model: &HookedModel,
        picture: &Picture,
        cancel: &CancelFlag,
    ) -> Result<ImageEmbeddings> {
        let mut hasher = blake3::Hasher::new();
        let (width, height) = picture.rgb().dimensions();
        hasher.update(&[width.to_le_bytes(), height.to_le_bytes()].concat());
        let hash = hasher.update(picture.rgb().as_raw()).finalize();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        let found = known.iter().position(|(other, _)| *other == hash);
        let image = match found.and_then(|i| known.remove(i)) {
            Some((_, image)) => image,
            None => model.encode_image(picture)?,
        };
        if known.len() == N_IMAGES {
            known.pop_front();
        }
        known.push_back((hash, image.clone()));
        Ok(image)
    }
}

impl App {
    /// Makes a prompt of what is asked. Dropping the future stops it.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        asked: Asked,
    ) -> std::result::Result<Prepared, Refusal> {
        self.compute(move |app, cancel| app.prepare_now(&asked, cancel))
            .await
    }

    /// Does what may take long on a thread of its own. Dropping the future cancels it.
    pub(super) async fn compute<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &CancelFlag) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Refusal> {
        let cancel = CancelFlag::default();
        let _guard = CancelOnDrop(cancel.clone());
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&app, &cancel)).await;
        let failed = |_| Error::new(crate::ErrorKind::Runtime, "a thread of the server failed");
        Ok(done.map_err(failed)??)
    }

    fn prepare_now(&self, asked: &Asked, cancel: &CancelFlag) -> Result<Prepared> {
        let model = &self.model;
        let (mut messages, mut pictures) = (None, Vec::new());
        let prompt = match asked {
            Asked::Messages(json) => {
                let chat = Chat::parse(json, LocalFiles::Refused)?;
                pictures = chat.pictures(Vec::new())?;
                let encode = |picture| self.images.encode(model, picture, cancel);
                let images: Vec<_> = pictures.iter().map(encode).collect::<Result<_>>()?;
                let images: Vec<_> = images.iter().collect();
                let prompt = model.chat_prompt(&chat.messages, &images, cancel)?;
                messages = Some(chat.messages);
                prompt
            }
            Asked::Raw(text) => model.prompt(text, PromptForm::Raw, &[], cancel)?,
            Asked::Ids(ids) => model.prompt_of_segments(vec![crate::Segment::Text(ids.clone())])?,
        };
        let (n_prompt, capacity) = (prompt.tokens().len(), self.runs.capacity());
        if n_prompt >= capacity {
            return Err(llama::context_too_small(format!(
                "the prompt has {n_prompt} tokens, and a request has room for {capacity}, its answer among them"
            ))
            .with_hint("shorten it, or start the server with a longer context"));
        }
        Ok(Prepared {
            prompt: Arc::new(prompt),
            messages,
            pictures: pictures.into(),
        })
    }
}

/// Cancels when the future that holds it is dropped.
pub(super) struct CancelOnDrop(pub(super) CancelFlag);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
