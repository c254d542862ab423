//! How a model computes.

use crate::llama::{FlashAttention, KvType, VisionGraph};
use crate::picture::{ImageCache, ImagePrep};
use crate::run::{PromptStore, TryShortcuts};
use crate::{Error, Result};

/// How a model computes.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Processor threads.
    pub threads: usize,
    /// Layers kept on a device; negative means all of them, 0 none (SAEs and the vision encoder
    /// follow).
    pub gpu_layers: i32,
    /// Whether quantised weights are repacked for the processor, which takes time and memory for a copy.
    pub repack: bool,
    /// The KV cache's number type.
    pub kv_type: KvType,
    /// Whether to use flash attention.
    pub flash_attention: FlashAttention,
    /// Rows of one graph.
    pub n_ubatch: usize,
    /// The context's length in tokens; 0 is enough for each run, up to an answer of the length
    /// that the model was trained on.
    pub context_size: usize,
    /// Whether llama.cpp gets a callback, without which nothing can be read or steered: for measuring
    /// what it costs.
    pub eval_callback: bool,
    /// Whether features are computed by way of an SAE file's screen, where it has one.
    pub screen: bool,
    /// Whether the prompts of runs side by side, and the passes of [`metrics`](crate::metrics), share the blocks
    /// below the lowest edit, which changes no bit.
    pub share_prompts: bool,
    /// Where prompts that were read are kept for later runs, if they may share them.
    pub prompt_store: Option<PromptStore>,
    /// When what runs leave out is tried against the whole graph, and the vision encoder's graph, which is
    /// changed, against the processor's.
    pub try_shortcuts: TryShortcuts,
    /// How a picture becomes square; none is the way of the model's own processor.
    pub image_prep: Option<ImagePrep>,
    /// Whether llama.cpp's graph of the vision encoder is put right.
    pub vision_graph: VisionGraph,
    /// The chat template, a Jinja text, instead of the one in the model's file.
    pub chat_template: Option<String>,
    /// Where image embeddings are kept for other models loaded from the same files.
    pub image_cache: Option<ImageCache>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            gpu_layers: -1,
            repack: false,
            kv_type: KvType::F16,
            flash_attention: FlashAttention::Auto,
            n_ubatch: 512,
            context_size: 0,
            eval_callback: true,
            screen: true,
            share_prompts: true,
            prompt_store: None,
            try_shortcuts: TryShortcuts::OnDevices,
            image_prep: None,
            vision_graph: VisionGraph::Corrected,
            chat_template: None,
            image_cache: None,
        }
    }
}

impl SessionOptions {
    /// # Errors
    /// Numbers that llama.cpp does not take.
    pub(super) fn check(&self) -> Result<()> {
        for (n, what) in [
            (self.threads, "processor threads"),
            (self.n_ubatch, "rows of a graph"),
        ] {
            if n == 0 || i32::try_from(n).is_err() {
                return Err(
                    Error::invalid(format!("llama.cpp cannot compute with {n} {what}"))
                        .with_hint(format!("take at least 1, and at most {}", i32::MAX)),
                );
            }
        }
        Ok(())
    }

    pub(crate) fn use_gpu(&self) -> bool {
        self.gpu_layers != 0
    }
}
