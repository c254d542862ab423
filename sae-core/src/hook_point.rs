//! Hook points: `TransformerLens`' names for places in a language model, and the nodes of llama.cpp's
//! graphs that show them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A place in a language model, `blocks.L.SITE` in `TransformerLens`' terms.
/// Hook points rise in the order in which a model computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    layer: usize,
    site: Site,
}

/// A place in a block (`TransformerLens` 3.2.1, `components/transformer_block.py`), in the order in which
/// they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The heads' outputs side by side, before the output projection: rows of `n_heads · d_head`.
    Z,
    /// What attention adds to the residual stream: after the norm that follows it, where there is one.
    AttnOut,
    /// The residual stream between attention and the feed-forward part.
    ResidMid,
    /// The rows that the feed-forward part reads, by their length alone: after its RMS norm's division, before the norm's
    /// weight (`hook_normalized` in `TransformerLens`' `components/rms_norm.py`).
    Ln2Normalized,
    /// The rows that the feed-forward part reads: after the norm that precedes it, its weight included.
    MlpIn,
    /// What the feed-forward part adds to the residual stream: after the norm that follows it, where
    /// there is one.
    MlpOut,
    /// The residual stream after the block; `hidden_states[L + 1]` in Hugging Face's terms.
    ResidPost,
}

/// A node of llama.cpp's graph, by what distinguishes it from the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GraphNode {
    /// It has this name, such as `l_out-12`.
    Named(String),
    /// It multiplies by the weight of this name, such as `blk.12.attn_output.weight`.
    MultipliesBy(String),
    /// It adds the bias of this name, such as `blk.12.attn_output.bias`.
    Adds(String),
    /// It divides the rows of the node of this name, such as `ffn_inp-12`, by their lengths.
    Normalises(String),
}

/// Which of a graph's rows a node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownRows {
    /// All of them.
    All,
    /// Those that need logits.
    Output,
}

impl fmt::Display for GraphNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "`{name}`"),
            Self::MultipliesBy(weight) => write!(f, "the product with `{weight}`"),
            Self::Adds(bias) => write!(f, "the sum with `{bias}`"),
            Self::Normalises(name) => write!(f, "the norm of `{name}`"),
        }
    }
}

impl Site {
    const ALL: [Self; 7] = [
        Self::Z,
        Self::AttnOut,
        Self::ResidMid,
        Self::Ln2Normalized,
        Self::MlpIn,
        Self::MlpOut,
        Self::ResidPost,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ResidPost => "hook_resid_post",
            Self::MlpOut => "hook_mlp_out",
            Self::MlpIn => "mlp.hook_in",
            Self::Ln2Normalized => "ln2.hook_normalized",
            Self::ResidMid => "hook_resid_mid",
            Self::AttnOut => "hook_attn_out",
            Self::Z => "attn.hook_z",
        }
    }
}

/// How the node of block L is recognised.
#[derive(Clone, Copy)]
enum Mark {
    /// It is called `NAME-L`.
    Name(&'static str),
    /// It multiplies by `blk.L.NAME.weight`.
    Weight(&'static str),
    /// It adds `blk.L.NAME.bias`.
    Bias(&'static str),
    /// It divides rows of `NAME-L` by their lengths.
    Norm(&'static str),
}

/// Which rows llama.cpp computes there in the last block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastBlock {
    AllRows,
    /// Those that need logits; the node comes after they were picked.
    OutputRows,
}

/// Where the graphs show a site.
struct Shown {
    architectures: &'static [&'static str], // `general.architecture` in GGUF files
    site: Site,
    mark: Mark,
    last_block: LastBlock,
}

/// The architectures whose graphs have been read and compared with transformers.
const ARCHITECTURES: &[&str] = &[
    "gemma", "gemma2", "gemma3", "gemma4", "gpt2", "gptneox", "llama", "olmo2", "phi3", "qwen2",
    "qwen2vl", "qwen3", "qwen3vl",
];

const GEMMA4: &[&str] = &["gemma4"];

/// The nodes of llama.cpp's graphs (`src/models/*.cpp` and `build_attn` in `src/llama-graph.cpp`, as
/// llama-cpp-sys-2 0.1.161 carries them). No name here stands twice in a graph without a control
/// vector; with one, Llama's sum after the feed-forward part is called `ffn_out` too.
const NODES: [Shown; 21] = [
    Shown {
        architectures: &[
            "gemma", "gemma2", "gemma3", "gpt2", "gptneox", "llama", "olmo2", "phi3", "qwen2",
            "qwen2vl", "qwen3", "qwen3vl",
        ],
        site: Site::ResidPost,
        mark: Mark::Name("l_out"),
        last_block: LastBlock::OutputRows,
    },
    // It picks the rows that need logits behind all blocks.
    Shown {
        architectures: GEMMA4,
        site: Site::ResidPost,
        mark: Mark::Name("l_out"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: GEMMA4,
        site: Site::MlpOut,
        mark: Mark::Name("ffn_post_norm"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: GEMMA4,
        site: Site::AttnOut,
        mark: Mark::Name("attn_post_norm"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: GEMMA4,
        site: Site::ResidMid,
        mark: Mark::Name("attn_out"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: GEMMA4,
        site: Site::Ln2Normalized,
        mark: Mark::Norm("attn_out"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: GEMMA4,
        site: Site::MlpIn,
        mark: Mark::Name("ffn_norm"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: &[
            "gemma", "gpt2", "llama", "phi3", "qwen2", "qwen2vl", "qwen3", "qwen3vl",
        ],
        site: Site::MlpOut,
        mark: Mark::Name("ffn_out"),
        last_block: LastBlock::OutputRows,
    },
    // `ffn_out` stands twice where attention and MLP read the same rows.
    Shown {
        architectures: &["gptneox"],
        site: Site::MlpOut,
        mark: Mark::Bias("ffn_down"),
        last_block: LastBlock::OutputRows,
    },
    // Its name, `ffn_post_norm`, has no layer.
    Shown {
        architectures: &["gemma2", "olmo2"],
        site: Site::MlpOut,
        mark: Mark::Weight("post_ffw_norm"),
        last_block: LastBlock::OutputRows,
    },
    Shown {
        architectures: &["gemma3"],
        site: Site::MlpOut,
        mark: Mark::Name("ffn_post_norm"),
        last_block: LastBlock::OutputRows,
    },
    // It has no name.
    Shown {
        architectures: &["gemma", "phi3", "qwen2", "qwen2vl", "qwen3", "qwen3vl"],
        site: Site::AttnOut,
        mark: Mark::Weight("attn_output"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: &["gpt2", "gptneox"],
        site: Site::AttnOut,
        mark: Mark::Bias("attn_output"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: &["gemma2", "gemma3", "olmo2"],
        site: Site::AttnOut,
        mark: Mark::Name("attn_post_norm"),
        last_block: LastBlock::OutputRows,
    },
    Shown {
        architectures: &["llama"],
        site: Site::AttnOut,
        mark: Mark::Name("attn_out"),
        last_block: LastBlock::AllRows,
    },
    Shown {
        architectures: &["gemma", "gemma2", "gemma3"],
        site: Site::ResidMid,
        mark: Mark::Name("sa_out"),
        last_block: LastBlock::OutputRows,
    },
    Shown {
        architectures: &["gpt2", "llama", "olmo2", "qwen2", "qwen2vl", "qwen3"],
        site: Site::ResidMid,
        mark: Mark::Name("ffn_inp"),
        last_block: LastBlock::OutputRows,
    },
    // Layer norms have another `hook_normalized`, behind their weights.
    Shown {
        architectures: &["gemma", "gemma2", "gemma3"],
        site: Site::Ln2Normalized,
        mark: Mark::Norm("sa_out"),
        last_block: LastBlock::OutputRows,
    },
    Shown {
        architectures: &["llama", "qwen2", "qwen2vl", "qwen3"],
        site: Site::Ln2Normalized,
        mark: Mark::Norm("ffn_inp"),
        last_block: LastBlock::OutputRows,
    },
    // What OLMo 2's reads is the residual stream itself.
    Shown {
        architectures: &[
            "gemma", "gemma2", "gemma3", "gpt2", "llama", "phi3", "qwen2", "qwen2vl", "qwen3",
        ],
        site: Site::MlpIn,
        mark: Mark::Name("ffn_norm"),
        last_block: LastBlock::OutputRows,
    },
    Shown {
        architectures: ARCHITECTURES,
        site: Site::Z,
        mark: Mark::Name("kqv_out"),
        last_block: LastBlock::AllRows,
    },
];

impl HookPoint {
    /// Reads a hook point's name, such as `blocks.12.hook_resid_post`.
    ///
    /// # Errors
    /// A name of another place. `hook_resid_pre` is the block below's `hook_resid_post`.
    pub fn parse(name: &str) -> Result<Self> {
        let unsupported = || {
            Error::new(ErrorKind::Unsupported, format!("hook point `{name}` is not supported")).with_hint(
                "use one of `blocks.L.` with `hook_resid_post`, `hook_resid_pre` (from L = 1), `hook_resid_mid`, `ln2.hook_normalized`, `mlp.hook_in`, `hook_mlp_out`, `hook_attn_out` or `attn.hook_z`, or a block by Hugging Face's name, such as `model.layers.L`",
            )
        };
        if let Some(layer) = block_of_hugging_face(name) {
            let site = Site::ResidPost;
            return Ok(Self { layer, site });
        }
        let (layer, site) = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
            .ok_or_else(unsupported)?;
        let layer = layer_of(layer).ok_or_else(unsupported)?;
        if site == "hook_resid_pre" {
            let layer = layer.checked_sub(1).ok_or_else(unsupported)?;
            let site = Site::ResidPost;
            return Ok(Self { layer, site });
        }
        let known = Site::ALL.into_iter().find(|known| known.name() == site);
        let site = known.ok_or_else(unsupported)?;
        Ok(Self { layer, site })
    }

    /// The block, counted from 0.
    pub fn layer(self) -> usize {
        self.layer
    }

    /// The highest place in the residual stream that it depends on: this one, or the one behind the block before;
    /// none in the first block.
    pub fn stream_below(self) -> Option<Self> {
        let layer = match self.site {
            Site::ResidPost => self.layer,
            Site::Z
            | Site::AttnOut
            | Site::ResidMid
            | Site::Ln2Normalized
            | Site::MlpIn
            | Site::MlpOut => self.layer.checked_sub(1)?,
        };
        Some(Self {
            layer,
            site: Site::ResidPost,
        })
    }

    /// The place in the block.
    pub fn site(self) -> Site {
        self.site
    }

    /// The node that shows this hook point in llama.cpp's graph of a model of `n_layers` blocks, to whose stream image
    /// rows are added behind each of the first `n_deepstack`.
    /// `architecture` is its `general.architecture`. Of an architecture whose graph is not known, the residual stream
    /// is where nearly all of llama.cpp's graphs have it.
    ///
    /// # Errors
    /// Another place of an architecture whose graph is not known; a layer that does not exist; the last one, where
    /// llama.cpp computes the node for the rows that need logits only, so that others never exist.
    pub fn node(
        self,
        architecture: &str,
        n_layers: usize,
        n_deepstack: usize,
    ) -> Result<GraphNode> {
        match self.node_of_edits(architecture, n_layers, n_deepstack)? {
            (node, ShownRows::All) => Ok(node),
            (_, ShownRows::Output) => Err(Error::invalid(format!(
                "cannot hook `{self}`: in the model's last layer, llama.cpp keeps only the rows that need logits"
            ))
            .with_hint("use an earlier layer")),
        }
    }

    /// The node, and which rows it shows, for edits, which matter to nothing but logits in the last layer.
    ///
    /// # Errors
    /// As [`HookPoint::node`], but for the last layer.
    pub fn node_of_edits(
        self,
        architecture: &str,
        n_layers: usize,
        n_deepstack: usize,
    ) -> Result<(GraphNode, ShownRows)> {
        let layer = self.layer;
        let is_known = ARCHITECTURES.contains(&architecture);
        let is_here = |shown: &&Shown| {
            let is_stream = shown.site == Site::ResidPost && !is_known;
            shown.site == self.site && (is_stream || shown.architectures.contains(&architecture))
        };
        let shown = NODES.iter().find(is_here);
        let Some(shown) = shown else {
            let of_site = NODES.iter().filter(|shown| shown.site == self.site);
            let mut known: Vec<_> = of_site
                .flat_map(|shown| shown.architectures)
                .copied()
                .collect();
            known.sort_unstable();
            return Err(Error::invalid(format!(
                "cannot hook `{self}`: where llama.cpp's graph of architecture `{architecture}` computes it is not known"
            ))
            .with_hint(format!("use the residual stream, or a model of one of these architectures: {}", known.join(", "))));
        };
        if layer >= n_layers {
            return Err(Error::invalid(format!(
                "cannot hook `{self}`: this model has {n_layers} layers"
            ))
            .with_hint(format!("its layers are 0 to {}", n_layers - 1)));
        }
        let is_cut = layer + 1 == n_layers && shown.last_block == LastBlock::OutputRows;
        let rows = match is_cut {
            true => ShownRows::Output,
            false => ShownRows::All,
        };
        if self.site == Site::ResidPost && layer < n_deepstack {
            return Ok((GraphNode::Named(format!("deepstack_out-{layer}")), rows));
        }
        let node = match shown.mark {
            Mark::Name(name) => GraphNode::Named(format!("{name}-{layer}")),
            Mark::Weight(name) => GraphNode::MultipliesBy(format!("blk.{layer}.{name}.weight")),
            Mark::Bias(name) => GraphNode::Adds(format!("blk.{layer}.{name}.bias")),
            Mark::Norm(name) => GraphNode::Normalises(format!("{name}-{layer}")),
        };
        Ok((node, rows))
    }
}

/// The layer of a block that Hugging Face's transformers call so, whose output is the residual stream
/// behind it: `model.layers.12`, `model.language_model.layers.12`, `transformer.h.12`. Only the modules
/// that hold language models may stand in front, since vision towers have `layers` too.
fn block_of_hugging_face(name: &str) -> Option<usize> {
    const HOLDERS: [&str; 7] = [
        "model",
        "language_model",
        "text_model",
        "base_model",
        "decoder",
        "transformer",
        "gpt_neox",
    ];
    let name = name.strip_suffix(".output").unwrap_or(name);
    let (blocks, layer) = name.rsplit_once('.')?;
    let (holders, list) = blocks.rsplit_once('.')?;
    let are_blocks = matches!(list, "layers" | "h");
    let are_holders = holders.split('.').all(|part| HOLDERS.contains(&part));
    (are_blocks && are_holders).then(|| layer_of(layer))?
}

/// A layer as it is written: digits without leading zeros.
fn layer_of(text: &str) -> Option<usize> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let is_short = text.len() == 1 || !text.starts_with('0');
    (is_plain && is_short).then(|| text.parse().ok())?
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.{}", self.layer, self.site.name())
    }
}

#[cfg(test)]
mod tests {
    use super::{ARCHITECTURES, HookPoint, NODES, Site};

    fn parse(name: &str) -> HookPoint {
        HookPoint::parse(name).expect("a known name")
    }

    #[test]
    fn names_are_read() {
        let check = |name: &str, shown: Option<&str>| {
            let found = HookPoint::parse(name).ok().map(|hook| hook.to_string());
            assert_eq!(found.as_deref(), shown, "{name}");
        };
        for name in [
            "blocks.12.hook_resid_post",
            "blocks.12.hook_mlp_out",
            "blocks.12.hook_attn_out",
            "blocks.12.hook_resid_mid",
            "blocks.12.ln2.hook_normalized",
            "blocks.12.mlp.hook_in",
            "blocks.12.attn.hook_z",
        ] {
            check(name, Some(name));
        }
        check(
            "blocks.12.hook_resid_pre",
            Some("blocks.11.hook_resid_post"),
        );
        for holder in [
            "model.layers",
            "model.language_model.layers",
            "language_model.model.layers",
            "model.decoder.layers",
            "transformer.h",
            "gpt_neox.layers",
        ] {
            for output in ["", ".output"] {
                let block = |layer: &str| format!("{holder}.{layer}{output}");
                check(&block("0"), Some("blocks.0.hook_resid_post"));
                check(&block("12"), Some("blocks.12.hook_resid_post"));
                for layer in ["01", "+1", "-1", "", "1.mlp", "x"] {
                    check(&block(layer), None);
                }
            }
        }
        for name in [
            "vision_tower.vision_model.encoder.layers.3",
            "model.vision_tower.layers.3",
            "model.visual.blocks.3",
            "encoder.layers.3",
            "model.layers",
            "model.layers.12.self_attn",
            "model.norm",
            "h.3",
        ] {
            check(name, None);
        }
        for layer in ["01", "00", "+1", "", " 1", "1 ", "99999999999999999999"] {
            check(&format!("blocks.{layer}.hook_resid_post"), None);
        }
        check("blocks.0.hook_resid_pre", None);
        check("blocks.12.hook_mlp_in", None);
        check("blocks.12.hook_z", None);
        check("blocks.-1.hook_resid_post", None);
        check("blocks.12", None);
        check("layers.12", None);
        check("", None);
    }

    #[test]
    fn each_architecture_shows_each_site_once() {
        for architecture in ARCHITECTURES {
            for site in Site::ALL {
                let shown = NODES.iter().filter(|shown| {
                    shown.site == site && shown.architectures.contains(architecture)
                });
                let is_before_mlp =
                    matches!(site, Site::ResidMid | Site::Ln2Normalized | Site::MlpIn);
                let least = usize::from(!is_before_mlp);
                let n_shown = shown.count();
                assert!((least..=1).contains(&n_shown), "{architecture}, {site:?}");
            }
        }
    }

    #[test]
    fn places_become_nodes() {
        let check = |architecture: &str, name: &str, node: &str| {
            let n_deepstack = if architecture == "qwen3vl" { 3 } else { 0 };
            let found = parse(name).node(architecture, 13, n_deepstack);
            assert_eq!(
                found.expect(name).to_string(),
                node,
                "{architecture}, {name}"
            );
        };
        check("gemma", "blocks.1.hook_resid_post", "`l_out-1`");
        check("gemma", "blocks.11.hook_resid_pre", "`l_out-10`");
        check("llama", "blocks.3.hook_mlp_out", "`ffn_out-3`");
        check("llama", "blocks.12.hook_attn_out", "`attn_out-12`");
        check("gemma3", "blocks.3.hook_mlp_out", "`ffn_post_norm-3`");
        check("gemma3", "blocks.3.hook_attn_out", "`attn_post_norm-3`");
        check("qwen3", "blocks.12.attn.hook_z", "`kqv_out-12`");
        check("qwen3vl", "blocks.2.hook_resid_post", "`deepstack_out-2`");
        check("qwen3vl", "blocks.2.hook_mlp_out", "`ffn_out-2`");
        check("qwen3vl", "blocks.3.hook_resid_post", "`l_out-3`");
        let weight = |name| format!("the product with `blk.3.{name}.weight`");
        check("gemma2", "blocks.3.hook_mlp_out", &weight("post_ffw_norm"));
        check("qwen2", "blocks.3.hook_attn_out", &weight("attn_output"));
        let bias = |name| format!("the sum with `blk.3.{name}.bias`");
        check("gpt2", "blocks.3.hook_attn_out", &bias("attn_output"));
        check("gptneox", "blocks.3.hook_mlp_out", &bias("ffn_down"));
        check("gemma3", "blocks.3.mlp.hook_in", "`ffn_norm-3`");
        check("gpt2", "blocks.3.hook_resid_mid", "`ffn_inp-3`");
        check("gemma4", "blocks.12.hook_resid_post", "`l_out-12`");
        check("gemma4", "blocks.3.hook_resid_mid", "`attn_out-3`");
        let norm = "the norm of `sa_out-3`";
        check("gemma2", "blocks.3.ln2.hook_normalized", norm);
        for (architecture, site) in [
            ("olmo2", "mlp.hook_in"),
            ("gpt2", "ln2.hook_normalized"),
            ("gptneox", "hook_resid_mid"),
        ] {
            let place = parse(&format!("blocks.3.{site}"));
            place.node(architecture, 13, 0).expect_err(architecture);
        }
    }

    #[test]
    fn layers_that_have_no_such_rows_are_refused() {
        let check = |architecture: &str, site: &str, has_last: bool| {
            let node = |layer| parse(&format!("blocks.{layer}.{site}")).node(architecture, 4, 0);
            assert!(node(2).is_ok(), "{architecture}, {site}");
            assert_eq!(node(3).is_ok(), has_last, "{architecture}, {site}");
            assert!(node(4).is_err(), "{architecture}, {site}");
        };
        for architecture in ARCHITECTURES {
            let has_post_norms = matches!(*architecture, "gemma2" | "gemma3" | "olmo2");
            let is_gemma4 = *architecture == "gemma4";
            check(architecture, "hook_resid_post", is_gemma4);
            check(architecture, "hook_mlp_out", is_gemma4);
            check(architecture, "hook_attn_out", !has_post_norms);
            check(architecture, "attn.hook_z", true);
        }
    }

    #[test]
    fn unknown_architectures_show_the_residual_stream_alone() {
        let stream = parse("blocks.0.hook_resid_post").node("mamba", 4, 0);
        assert_eq!(stream.expect("as others have it").to_string(), "`l_out-0`");
        let last = parse("blocks.3.hook_resid_post");
        assert!(last.node("mamba", 4, 0).is_err());
        let error = parse("blocks.0.hook_mlp_out")
            .node("mamba", 4, 0)
            .expect_err("a graph that is not known");
        assert!(error.to_string().contains("`mamba`"));
        assert!(error.hint().is_some_and(|hint| hint.contains("qwen3")));
    }
}
