//! A language model with its projector and SAEs, loaded once and shared.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gguf_tools::gguf::Overwrite;

use super::card::{self, FeatureCard, Unembedding};
use super::encoders::{EncoderOptions, EncoderWeights};
use super::files::{self, CheckedFiles, Graph, ModelFiles};
use super::memory;
use super::options::SessionOptions;
use crate::chat::{self, ChatTemplate, ImageToken, Message};
use crate::llama::{self, AddBos, KvType, Model, ModelOptions, Special};
use crate::picture::Picture;
use crate::picture::encoder::{PictureEncoder, VisionSettings};
use crate::prompt::{ImageEmbeddings, Prompt, PromptForm, Segment};
use crate::run::{HookedSite, PieceKey, PromptStore, Shortcuts, TryShortcuts};
use crate::steering::{Intervention, Steering, Target, Vector};
use crate::{
    CancelFlag, Encoder, Error, ErrorKind, FeatureId, HookPoint, Result, Sae, SaeSet, ShownRows,
    Site, Token,
};

/// A loaded model with its projector and its SAEs. Nothing of it changes, so that any number of threads
/// can share one; what computes is an [`Engine`](crate::Engine).
pub struct HookedModel {
    language_model: Arc<Model>,
    graph: Graph,
    image_encoder: Option<PictureEncoder>,
    saes: SaeSet,
    encoder_weights: Mutex<Vec<Option<EncoderWeights>>>, // of each SAE; none before its first encoder
    options: SessionOptions,
    shortcuts: Shortcuts,
    chat_template: OnceLock<(ChatTemplate, ImageToken)>, // what it writes for an image
    fingerprint: OnceLock<blake3::Hash>,
    unembedding: OnceLock<Unembedding>, // read for the first card
    sorted_tokens: OnceLock<Vec<i32>>,  // for the first that is looked up by its text
}

impl HookedModel {
    /// Checks that the files belong together and loads them.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn open(files: &ModelFiles, options: SessionOptions) -> Result<Arc<Self>> {
        options.check()?;
        let checked = files::check(files)?;
        let model = load_language_model(&checked, &options)?;
        Self::with(model, checked, files, options)
    }

    /// Opens another model on this one's language model, whose file `files` has to name too.
    ///
    /// # Errors
    /// As [`HookedModel::open`].
    pub fn open_beside(&self, files: &ModelFiles, options: SessionOptions) -> Result<Arc<Self>> {
        options.check()?;
        let model = Arc::clone(&self.language_model);
        Self::with(model, files::check(files)?, files, options)
    }

    fn with(
        language_model: Arc<Model>,
        checked: CheckedFiles,
        files: &ModelFiles,
        options: SessionOptions,
    ) -> Result<Arc<Self>> {
        let saes = checked.saes.into_iter().map(Sae::from_file);
        let saes: Vec<_> = saes.map(|sae| sae.map(Arc::new)).collect::<Result<_>>()?;
        let image_encoder = files
            .mmproj
            .clone()
            .zip(checked.projector)
            .map(|(path, projector)| {
                let settings = VisionSettings::new(&options);
                PictureEncoder::new(path, projector, Arc::clone(&language_model), settings)
            })
            .transpose()?;
        let unknown = checked.graph.unknown_architecture();
        if let Some(architecture) = unknown {
            check_unknown(&language_model, architecture)?;
        }
        let is_tried = match options.try_shortcuts {
            TryShortcuts::OnDevices => {
                unknown.is_some() || llama::computes_elsewhere(options.use_gpu())
            }
            TryShortcuts::Always => true,
        };
        let model = Self {
            language_model,
            graph: checked.graph,
            image_encoder,
            encoder_weights: Mutex::new(saes.iter().map(|_| None).collect()),
            saes: SaeSet::new(saes)?,
            shortcuts: Shortcuts::new(is_tried),
            chat_template: OnceLock::new(),
            fingerprint: OnceLock::new(),
            unembedding: OnceLock::new(),
            sorted_tokens: OnceLock::new(),
            options,
        };
        let saes = model.saes.iter();
        let places = saes.flat_map(|sae| sae.outputs().iter().copied().chain([sae.hook_point()]));
        model.sites(&places.collect())?;
        Ok(Arc::new(model))
    }

    /// The language model.
    pub fn language_model(&self) -> &Arc<Model> {
        &self.language_model
    }

    /// The SAEs.
    pub fn saes(&self) -> &SaeSet {
        &self.saes
    }

    /// How it computes.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// The longest context that the model can have, where there is an end to it.
    pub(crate) fn longest_context(&self) -> Option<usize> {
        let has_end = self.graph.has_position_table();
        has_end.then(|| self.language_model.trained_context())
    }

    pub(crate) fn shortcuts(&self) -> &Shortcuts {
        &self.shortcuts
    }

    /// Places to hook together, with the SAEs that read there, in the model's order.
    pub(crate) fn sites(&self, places: &BTreeSet<HookPoint>) -> Result<Vec<HookedSite>> {
        self.graph.check_order(places)?;
        places.iter().map(|&place| self.site(place)).collect()
    }

    /// A place to hook, with the SAEs that read there.
    pub(crate) fn site(&self, hook_point: HookPoint) -> Result<HookedSite> {
        if hook_point.site() == Site::Z && self.options.kv_type == KvType::Q8_0 {
            // `build_attn` in llama.cpp's `llama-graph.cpp`: it rotates the values in such a cache,
            // and undoes that behind the node.
            let what = format!("llama.cpp does not show `{hook_point}` with a q8_0 KV cache");
            return Err(Error::new(ErrorKind::KvType, what).with_hint("use an f16 KV cache"));
        }
        let saes = self.saes.iter().enumerate();
        let saes = saes.filter(|(_, sae)| sae.hook_point() == hook_point);
        let is_of_several =
            |sae: &Arc<Sae>| sae.outputs().len() > 1 && sae.outputs().contains(&hook_point);
        let (hooked, shown_rows) = match self.saes.iter().any(is_of_several) {
            true => self.graph.node_of_edits(hook_point)?,
            false => (self.graph.node(hook_point)?, ShownRows::All),
        };
        Ok(HookedSite {
            hook_point,
            hooked,
            parts_graph: self.graph.parts_at(hook_point),
            shown_rows,
            saes: saes.map(|(i, _)| i).collect(),
        })
    }

    /// Whether image rows are added to the stream behind a block.
    pub(crate) fn adds_images_behind(&self, layer: usize) -> bool {
        self.graph.adds_images_behind(layer)
    }

    /// An encoder of one of the SAEs, by its place among them; all read the same weights.
    ///
    /// # Errors
    /// A file that cannot be read, or a device without room.
    ///
    /// # Panics
    /// When there is no such SAE.
    pub fn encoder(&self, sae: usize) -> Result<Encoder> {
        let mut weights = self
            .encoder_weights
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let weights = match &mut weights[sae] {
            Some(loaded) => loaded,
            unloaded => {
                let options = EncoderOptions {
                    use_gpu: self.options.use_gpu(),
                    threads: self.options.threads,
                    screen: self.options.screen,
                };
                unloaded.insert(EncoderWeights::load(&self.saes[sae], options)?)
            }
        };
        weights.encoder()
    }

    /// The feature that `name` means ([`SaeSet::find_feature`]).
    ///
    /// # Errors
    /// A name that means none, or several.
    pub fn find_feature(&self, name: &str) -> Result<FeatureId> {
        self.saes.find_feature(name)
    }

    /// What the weights say of a feature, with its `top` nearest neighbours and as many tokens.
    ///
    /// # Errors
    /// A feature that the SAE does not have; a file that cannot be read.
    ///
    /// # Panics
    /// When there is no such SAE.
    pub fn feature_card(&self, feature: FeatureId, top: usize) -> Result<FeatureCard> {
        card::of(self, feature, top)
    }

    /// What the decoder rows of these features, of SAEs that write to the residual stream alone, do to the logit of the token `id`
    /// straight through the unembedding, above the mean over the vocabulary.
    pub(crate) fn direct_logits(&self, features: &[FeatureId], id: i32) -> Result<Vec<f32>> {
        card::direct_logits(self, features, id)
    }

    /// The features of an SAE, by its place among them, whose decoder directions are most like `vector`'s, and the
    /// cosines, largest first: `top` of them. With zeros, a cosine is 0.
    ///
    /// # Errors
    /// A vector of another length than the decoder's rows; an SAE without a file, or one that cannot be read.
    ///
    /// # Panics
    /// When there is no such SAE.
    pub fn nearest_features(
        &self,
        sae: usize,
        vector: &Vector,
        top: usize,
    ) -> Result<Vec<(usize, f32)>> {
        let sae = &self.saes[sae];
        if vector.values().len() != sae.meta().decoder_width() {
            return Err(vector.of_another_width(sae.meta().decoder_width()));
        }
        let unit = card::unit(vector.values(), vector.norm());
        card::nearest(sae, &unit, self.options.threads, top)
    }

    /// What turns the residual stream into logits.
    pub(super) fn unembedding(&self) -> Result<&Unembedding> {
        if let Some(known) = self.unembedding.get() {
            return Ok(known);
        }
        let read = Unembedding::open(self.graph.path(), &self.language_model)?;
        Ok(self.unembedding.get_or_init(|| read))
    }

    /// Prepares interventions. Which rows of a prompt their positions are, a run tells that has one.
    ///
    /// # Errors
    /// As [`Steering::new`]; a text of `token:TEXT` that no token of the vocabulary has; a vector for a hook
    /// point that this model does not have, or whose rows are of another length.
    pub fn steering(&self, mut interventions: Vec<Intervention>) -> Result<Arc<Steering>> {
        for intervention in &mut interventions {
            intervention.at.find_tokens(|text| self.tokens_of(text))?;
        }
        let steering = Steering::new(interventions, &self.saes)?;
        for edit in steering.edits() {
            let width = self.site(edit.hook_point())?.hooked.width;
            let targets = edit.interventions().iter().map(|one| &one.target);
            for target in targets {
                if let Target::Vector(vector) = target
                    && vector.values().len() != width
                {
                    return Err(vector.of_another_width(width));
                }
            }
        }
        Ok(Arc::new(steering))
    }

    /// The tokens whose text is `text`, without the space around it.
    ///
    /// # Errors
    /// When llama.cpp fails.
    pub fn tokens_of(&self, text: &str) -> Result<Vec<i32>> {
        let ids = match self.sorted_tokens.get() {
            Some(known) => known,
            None => {
                let sorted = self.sorted_tokens()?;
                self.sorted_tokens.get_or_init(|| sorted)
            }
        };
        let text_of = |id: i32| trimmed(self.token_bytes(id)?);
        let start = ids.partition_point(|&id| text_of(id).as_deref() < Some(text));
        let found = ids[start..].iter().copied();
        Ok(found
            .take_while(|&id| text_of(id).as_deref() == Some(text))
            .collect())
    }

    /// The tokens that are whole characters, by their texts without the space around them, and then by their ids.
    fn sorted_tokens(&self) -> Result<Vec<i32>> {
        let mut sorted = Vec::new();
        for id in self.language_model.token_ids() {
            let mut bytes = Vec::new();
            self.language_model
                .append_piece(id, Special::Show, &mut bytes)?;
            sorted.extend(trimmed(bytes).map(|text| (text, id)));
        }
        sorted.sort_unstable();
        Ok(sorted.into_iter().map(|(_, id)| id).collect())
    }

    /// Whether it has a projector, so that prompts can have images.
    pub fn has_projector(&self) -> bool {
        self.image_encoder.is_some()
    }

    /// Prepares and encodes a picture.
    ///
    /// # Errors
    /// A model without a projector, a picture that cannot be made square, a failure of llama.cpp.
    pub fn encode_image(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        let encoder = self.image_encoder.as_ref();
        encoder.ok_or_else(files::no_projector)?.encode(picture)
    }

    /// Loads the projector, which else waits for a picture that is in no cache.
    pub(crate) fn load_projector(&self) -> Result<()> {
        self.image_encoder
            .as_ref()
            .map_or(Ok(()), PictureEncoder::load)
    }

    /// Builds a prompt of a text and images. `cancel` stops it, where the text is long.
    ///
    /// # Errors
    /// A raw prompt with more or fewer `<image>` marks than images, characters that the vocabulary has no token
    /// for; as [`HookedModel::chat_prompt`].
    pub fn prompt(
        &self,
        text: &str,
        form: PromptForm,
        images: &[&ImageEmbeddings],
        cancel: &CancelFlag,
    ) -> Result<Prompt> {
        match form {
            PromptForm::Raw => Prompt::of_raw(&self.language_model, text, images, cancel),
            PromptForm::Chat => {
                let turn = Message::of_user(images.len(), text);
                self.chat_prompt(&[turn], images, cancel)
            }
        }
    }

    /// Builds a prompt of a chat by the model's chat template. The model's answer comes next, or where the
    /// last message is the assistant's, what continues that. `images` are those in the messages, in order.
    ///
    /// # Errors
    /// More or fewer images than the messages have; a model without a chat template, or one that refuses these
    /// messages or leaves out some of them ([`ChatTemplate::render`]); characters that the vocabulary has no token
    /// for.
    pub fn chat_prompt(
        &self,
        messages: &[Message],
        images: &[&ImageEmbeddings],
        cancel: &CancelFlag,
    ) -> Result<Prompt> {
        let n_places: usize = messages.iter().map(Message::n_images).sum();
        if n_places != images.len() {
            let n_images = images.len();
            return Err(Error::invalid(format!(
                "the messages have {n_places} images, and {n_images} were given"
            )));
        }
        let (texts, _) = self.chat_texts(messages)?;
        Prompt::of_texts(&self.language_model, texts, images, cancel)
    }

    /// What the model's chat template makes of a chat, with its token for each image.
    ///
    /// # Errors
    /// As [`HookedModel::chat_prompt`].
    pub fn chat_text(&self, messages: &[Message]) -> Result<String> {
        let (texts, token) = self.chat_texts(messages)?;
        Ok(texts.join(token.text))
    }

    /// The texts around a chat's images, and what the template wrote for each of those.
    fn chat_texts(&self, messages: &[Message]) -> Result<(Vec<String>, ImageToken)> {
        let (template, token) = match self.chat_template.get() {
            Some(known) => known,
            None => {
                let read = self.read_chat_template()?;
                self.chat_template.get_or_init(|| read)
            }
        };
        Ok((template.render(messages, *token)?, *token))
    }

    /// The chat template, and what it writes for an image.
    fn read_chat_template(&self) -> Result<(ChatTemplate, ImageToken)> {
        let source = self.options.chat_template.clone();
        let source = source.or_else(|| self.language_model.chat_template());
        let source = source.ok_or_else(|| chat::refused("the model has no chat template"))?;
        let token = match &self.image_encoder {
            Some(encoder) => encoder.image_token(),
            None => Some(ImageToken::LLAVA),
        };
        let token = token.unwrap_or_else(|| ImageToken::in_template(&source));
        let template = ChatTemplate::new(&source, self.language_model.named_tokens())?;
        Ok((template, token))
    }

    /// A prompt of these pieces, as they stand.
    ///
    /// # Errors
    /// A token that the vocabulary does not have; image rows that the model cannot read, or that do not fill
    /// their grid; no text at the end.
    pub fn prompt_of_segments(&self, segments: Vec<Segment>) -> Result<Prompt> {
        Prompt::of_segments(&self.language_model, segments)
    }

    /// The store of prompts, if there is one, and one of `n_rows` has room in it.
    pub(crate) fn store_for(&self, n_rows: usize) -> Option<&PromptStore> {
        let n_bytes = memory::prompt_bytes(&self.language_model, self.options.kv_type, n_rows);
        let store = self.options.prompt_store.as_ref();
        store.filter(|store| n_bytes <= store.max_bytes() as f64)
    }

    /// The key of the beginning of prompts of which these places' rows are kept.
    ///
    /// # Errors
    /// When the model's file, whose fingerprint is part of it, cannot be read.
    pub(crate) fn prompt_key(&self, places: &BTreeSet<HookPoint>) -> Result<PieceKey> {
        let fingerprint = match self.fingerprint.get() {
            Some(known) => *known,
            None => {
                let found = self.graph.fingerprint()?;
                *self.fingerprint.get_or_init(|| found)
            }
        };
        Ok(PieceKey::new(&fingerprint, &self.options, places))
    }

    /// Token ids of a text, as [`Model::tokenize`] gives them, until it is cancelled.
    pub(crate) fn tokenize(
        &self,
        text: &str,
        add_bos: AddBos,
        cancel: &CancelFlag,
    ) -> Result<Vec<i32>> {
        self.language_model.tokenize_until(text, add_bos, cancel)
    }

    /// The text of a token, control tokens by name; an image row has none, nor has an id that is not
    /// in the vocabulary.
    pub fn token_text(&self, token: Token) -> Option<String> {
        let bytes = self.token_bytes(token.id?)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes of a token, control tokens by name, which may be part of a character; none of an id that is not in
    /// the vocabulary.
    pub fn token_bytes(&self, id: i32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let shown = self
            .language_model
            .append_piece(id, Special::Show, &mut bytes);
        shown.ok().map(|()| bytes)
    }

    /// Writes `steering` as a control vector, which llama.cpp's own programs read.
    ///
    /// # Errors
    /// Interventions that no control vector expresses: those that depend on the row or do not touch
    /// all positions alike, and those of layer 0 or of places but the residual stream; a file that
    /// cannot be written.
    pub fn write_control_vector(
        &self,
        steering: &Steering,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<()> {
        crate::study::control_vector::write(&self.language_model, steering, target, overwrite)
    }
}

/// Checks a model whose graph is not known, and says that.
fn check_unknown(model: &Model, architecture: &str) -> Result<()> {
    if !model.keeps_each_token() {
        let what = format!(
            "models of architecture `{architecture}` cannot be hooked: what they keep of a text is not a row for each token"
        );
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("use a model that has attention in each block, and no encoder"));
    }
    log::warn!(
        "models of architecture `{architecture}` were not compared with transformers: the residual stream is taken from where llama.cpp calls it `l_out`"
    );
    Ok(())
}

/// A token's text without the space around it; none of a part of a character.
fn trimmed(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    Some(text.trim().to_owned())
}

/// Loads the language model alone.
fn load_language_model(files: &CheckedFiles, options: &SessionOptions) -> Result<Arc<Model>> {
    let options = ModelOptions {
        gpu_layers: options.gpu_layers,
        repack: options.repack,
    };
    Ok(Arc::new(Model::load(&files.model, options)?))
}
