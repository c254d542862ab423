//! The work below a hooked node, or of a whole graph, done once for several runs of the same prompt.
//!
//! llama.cpp cannot start in the middle of a graph, but a node whose operation is `GGML_OP_NONE` is
//! computed by no backend. So a replayed graph has none below the hooked node but the writes to the KV
//! cache, which get the rows that they were given in the recorded graph, and the hooked node gets its
//! rows from there too. What stands above it is computed as ever: the results are those of the whole
//! graph, bit for bit. A graph that is replayed to its end computes nothing but those writes.
//!
//! What that needs:
//! - a hooked node on which everything above depends alone, as on the residual stream, or the whole graph;
//! - graphs of the same rows in the same order;
//! - one graph a decode, which is seen to: a batch is no larger than a ubatch, and a hooked node that
//!   comes a second time is a fault;
//! - no other graphs meanwhile, such as those that shift positions in the cache: nothing here shifts any.
//!
//! Nodes are kept as the pointers that C gave, and changed through those alone.

use std::sync::Arc;

use half::f16;
use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::eval_hook::Reach;
use super::node::{Node, name, read_packed, write_packed};
use crate::{Error, GraphNode, Result};

/// What a graph of some rows gave, up to a node or to its end: a value, which any context of the same model and
/// options can replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedGraph {
    /// What was written to the KV cache, in the graph's order.
    pub(crate) cache_writes: Vec<CacheWrite>,
    /// The hooked nodes, in the graph's order.
    pub(crate) nodes: Vec<RecordedNode>,
    /// Whether it reaches to the graph's end.
    pub(crate) is_whole: bool,
}

/// What was written to the cache, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CacheWrite {
    /// Numbers in f32, as they were when written to a cache in f16, which loses nothing that it keeps.
    F16(Vec<f16>),
    /// The written tensor's bytes.
    Bytes(Vec<u8>),
}

/// A hooked node of a recorded graph.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RecordedNode {
    pub(crate) at: NodePlace,
    /// `[n_rows, width]`.
    pub(crate) rows: Vec<f32>,
}

/// Where a node stands in a recorded graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodePlace {
    pub(crate) node: GraphNode,
    /// The writes to the cache below it.
    pub(crate) n_cache_writes: usize,
}

/// What is being recorded, and what is being replayed.
#[derive(Default)]
pub(super) struct Recording {
    recorded: Option<RecordedGraph>,
    replayed: Arc<RecordedGraph>,
    cache_write_idx: usize,             // of the replayed graph
    skipped: Vec<(Node, sys::ggml_op)>, // of the graph at hand
}

impl CacheWrite {
    fn n_bytes(&self) -> usize {
        match self {
            Self::F16(values) => size_of_val(&values[..]),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

impl RecordedGraph {
    /// The memory that it takes.
    pub(crate) fn n_bytes(&self) -> usize {
        let writes = self.cache_writes.iter().map(CacheWrite::n_bytes);
        let rows = self.nodes.iter().map(|node| size_of_val(&node.rows[..]));
        writes.chain(rows).sum()
    }

    /// What it holds of a hooked node.
    pub(crate) fn node(&self, node: &GraphNode) -> Option<&RecordedNode> {
        self.nodes.iter().find(|kept| kept.at.node == *node)
    }

    /// What it holds of this node and below.
    fn below(&self, node: &GraphNode) -> Option<Self> {
        let idx = self.nodes.iter().position(|kept| kept.at.node == *node)?;
        let n_cache_writes = self.nodes[idx].at.n_cache_writes;
        Some(Self {
            cache_writes: self.cache_writes.get(..n_cache_writes)?.to_vec(),
            nodes: self.nodes[..=idx].to_vec(),
            is_whole: false,
        })
    }
}

impl Recording {
    /// What is replayed of the graphs that follow.
    pub(super) fn set_replayed(&mut self, replayed: Arc<RecordedGraph>) {
        self.replayed = replayed;
    }

    /// Begins a graph, which is replayed below a node, if one is given.
    pub(super) fn begin_graph(&mut self, replayed_below: Option<&GraphNode>) -> Result<()> {
        self.cache_write_idx = 0;
        self.recorded = Some(match replayed_below {
            None => RecordedGraph::default(),
            Some(node) => self.replayed.below(node).ok_or_else(differs)?,
        });
        Ok(())
    }

    /// What was recorded of the last graph, which reached as far, if that could be.
    pub(super) fn take(&mut self, reach: Reach) -> Option<RecordedGraph> {
        let mut recorded = self.recorded.take()?;
        recorded.is_whole = reach == Reach::End;
        Some(recorded)
    }

    /// Whether the computed tensor of a node is needed for a recording: what is written to the cache. A rotation
    /// is asked for lest a device fuses it into the write, and its result is never seen.
    pub(super) fn wants(node: &sys::ggml_tensor) -> bool {
        writes_cache(node) || node.op == sys::GGML_OP_ROPE
    }

    /// Keeps what was written to the cache. Of what does not lie together there is no recording.
    pub(super) fn record_cache_write(&mut self, node: Node) -> Result<()> {
        if !writes_cache(node.get()) {
            return Ok(());
        }
        let written = written(node)?;
        let Some(recorded) = &mut self.recorded else {
            return Ok(());
        };
        let Some(bytes) = read_packed(written.get()) else {
            self.recorded = None;
            return Ok(());
        };
        let types = [written, node].map(|node| node.get().type_);
        recorded.cache_writes.push(match types {
            [sys::GGML_TYPE_F32, sys::GGML_TYPE_F16] => {
                let values = bytes.as_chunks().0.iter().copied();
                let values = values.map(|bytes| f16::from_f32(f32::from_ne_bytes(bytes)));
                CacheWrite::F16(values.collect())
            }
            _ => CacheWrite::Bytes(bytes),
        });
        Ok(())
    }

    /// Keeps a hooked node's rows.
    pub(super) fn record_rows(&mut self, node: &GraphNode, rows: &[f32]) {
        if let Some(recorded) = &mut self.recorded {
            let at = NodePlace {
                node: node.clone(),
                n_cache_writes: recorded.cache_writes.len(),
            };
            let rows = rows.to_vec();
            recorded.nodes.push(RecordedNode { at, rows });
        }
    }

    /// Takes a node that is replayed out of the graph, or gives a write to the cache what it writes. True
    /// says that the node is to be computed before the next one is looked at: memory is reused from node to
    /// node.
    pub(super) fn replay(&mut self, node: Node) -> Result<bool> {
        if writes_cache(node.get()) {
            let written = written(node)?;
            let kept = self.replayed.cache_writes.get(self.cache_write_idx);
            let is_written = match kept.ok_or_else(differs)? {
                CacheWrite::Bytes(bytes) => write_packed(written, bytes),
                CacheWrite::F16(values) => {
                    let bytes = values.iter().flat_map(|value| value.to_f32().to_ne_bytes());
                    write_packed(written, &bytes.collect::<Vec<u8>>())
                }
            };
            if !is_written {
                return Err(differs());
            }
            self.cache_write_idx += 1;
            return Ok(true);
        }
        self.skipped.push((node, node.get().op));
        node.set_op(sys::GGML_OP_NONE);
        Ok(false)
    }

    /// A hooked node's rows, of the graph that is replayed.
    pub(super) fn replay_rows(&self, node: &GraphNode, rows: &mut [f32]) -> Result<()> {
        let kept = self.replayed.node(node).ok_or_else(differs)?;
        if kept.rows.len() != rows.len() || kept.at.n_cache_writes != self.cache_write_idx {
            return Err(differs());
        }
        rows.copy_from_slice(&kept.rows);
        Ok(())
    }

    /// Checks, at the end of a graph that was replayed whole, that nothing is left.
    pub(super) fn check_whole(&self) -> Result<()> {
        let is_all = self.replayed.cache_writes.len() == self.cache_write_idx;
        match is_all && self.replayed.is_whole {
            true => Ok(()),
            false => Err(differs()),
        }
    }

    /// Puts back what was taken out of the graph, which llama.cpp may use again.
    pub(super) fn restore(&mut self) {
        for (node, op) in self.skipped.drain(..) {
            node.set_op(op); // llama.cpp keeps a graph until it builds the next one
        }
    }
}

/// Whether a node writes to the KV cache, whose tensors are called `cache_k_l…` and `cache_v_l…` (`llama_kv_cache` in
/// `llama-kv-cache.cpp`). Graphs have other nodes of that operation too.
fn writes_cache(node: &sys::ggml_tensor) -> bool {
    // SAFETY: what a tensor is a view of lives as long as it.
    let target = unsafe { node.view_src.as_ref() };
    node.op == sys::GGML_OP_SET_ROWS
        && target.is_some_and(|target| name(target).starts_with(b"cache_"))
}

/// What a `GGML_OP_SET_ROWS` writes: its first operand (`ggml_set_rows` in `ggml.c`).
fn written(node: Node) -> Result<Node> {
    node.operand(0).ok_or_else(differs)
}

fn differs() -> Error {
    Error::invalid("a replayed graph differs from the recorded one")
}
