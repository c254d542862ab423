//! The work below the hooked node, done once for several runs of the same prompt.
//!
//! llama.cpp cannot start in the middle of a graph, but a node whose operation is `GGML_OP_NONE` is
//! computed by no backend. So a replayed graph has none below the hooked node but the writes to the KV
//! cache, which get the rows that they were given in the recorded graph, and the hooked node gets its
//! rows from there too. What stands above it is computed as ever: the results are those of the whole
//! graph, bit for bit.
//!
//! What that needs:
//! - a hooked node on which everything above depends alone, as on the residual stream;
//! - graphs of the same rows in the same order;
//! - one graph a decode, which is seen to: a batch is no larger than a ubatch, and a hooked node that
//!   comes a second time is a fault;
//! - no other graphs meanwhile, such as those that shift positions in the cache: nothing here shifts any.
//!
//! Nodes are kept as the pointers that C gave, and changed through those alone.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::node::{Node, read_bytes, write_bytes};
use crate::{Error, GraphNode, Result};

/// What the graphs of some rows gave below a hooked node, in their order: a value, which any context of the
/// same model and options can replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedGraphs(Vec<RecordedGraph>);

/// What is being recorded, and what is being replayed.
#[derive(Default)]
pub(super) struct Recording {
    recorded: RecordedGraphs,
    replayed: Arc<RecordedGraphs>,
    graph_idx: usize,
    cache_write_idx: usize,
    skipped: Vec<(Node, sys::ggml_op)>, // of the graph at hand
}

#[derive(Clone, Debug, Default, PartialEq)]
struct RecordedGraph {
    cache_writes: Vec<Vec<u8>>,
    rows: Vec<(GraphNode, Vec<f32>)>, // of each hooked node below, and of the one itself
}

impl RecordedGraphs {
    /// The memory that it takes.
    pub fn n_bytes(&self) -> usize {
        let of_graph = |graph: &RecordedGraph| {
            let writes = graph.cache_writes.iter().map(Vec::len);
            let rows = graph.rows.iter().map(|(_, rows)| size_of_val(&rows[..]));
            writes.chain(rows).sum::<usize>()
        };
        self.0.iter().map(of_graph).sum()
    }
}

impl Recording {
    /// Begins a recording.
    pub(super) fn begin(&mut self) {
        self.recorded.0.clear();
    }

    /// What was recorded.
    pub(super) fn take(&mut self) -> RecordedGraphs {
        std::mem::take(&mut self.recorded)
    }

    /// What is replayed from here on.
    pub(super) fn set_replayed(&mut self, replayed: Arc<RecordedGraphs>) {
        self.replayed = replayed;
        self.rewind();
    }

    /// Goes back to the first recorded graph.
    pub(super) fn rewind(&mut self) {
        self.graph_idx = 0;
        self.cache_write_idx = 0;
    }

    /// Whether the computed tensor of a node below the hooked one is needed for a recording: what is
    /// written to the cache. A rotation is asked for lest a device fuses it into the write, and its
    /// result is never seen.
    pub(super) fn wants(node: &sys::ggml_tensor) -> bool {
        writes_cache(node) || node.op == sys::GGML_OP_ROPE
    }

    pub(super) fn begin_graph(&mut self) {
        self.recorded.0.push(RecordedGraph::default());
    }

    /// Keeps what was written to the cache.
    pub(super) fn record_cache_write(&mut self, node: Node) -> Result<()> {
        if !writes_cache(node.get()) {
            return Ok(());
        }
        let written = written(node)?;
        // SAFETY: the tensor is alive.
        let mut bytes = vec![0; unsafe { sys::ggml_nbytes(written.get()) }];
        read_bytes(written.get(), &mut bytes);
        let graph = self.recorded.0.last_mut().expect("a graph was begun");
        graph.cache_writes.push(bytes);
        Ok(())
    }

    /// Keeps a hooked node's rows.
    pub(super) fn record_rows(&mut self, node: &GraphNode, rows: &[f32]) {
        let graph = self.recorded.0.last_mut().expect("a graph was begun");
        graph.rows.push((node.clone(), rows.to_vec()));
    }

    /// Takes a node below the hooked one out of the graph, or gives a write to the cache what it
    /// writes. True says that the node is to be computed before the next one is looked at: memory is
    /// reused from node to node.
    pub(super) fn replay(&mut self, node: Node) -> Result<bool> {
        if writes_cache(node.get()) {
            let written = written(node)?;
            let graph = self.replayed.0.get(self.graph_idx);
            let bytes = graph.and_then(|graph| graph.cache_writes.get(self.cache_write_idx));
            // SAFETY: the tensor is alive.
            let n_bytes = unsafe { sys::ggml_nbytes(written.get()) };
            let bytes = bytes.filter(|bytes| bytes.len() == n_bytes);
            write_bytes(written, bytes.ok_or_else(differs)?);
            self.cache_write_idx += 1;
            return Ok(true);
        }
        self.skipped.push((node, node.get().op));
        node.set_op(sys::GGML_OP_NONE);
        Ok(false)
    }

    /// A hooked node's rows, of the graph that is replayed.
    pub(super) fn replay_rows(&self, node: &GraphNode, rows: &mut [f32]) -> Result<()> {
        let graph = self.replayed.0.get(self.graph_idx);
        let kept = graph.and_then(|graph| graph.rows.iter().find(|kept| kept.0 == *node));
        let kept = kept.filter(|kept| kept.1.len() == rows.len());
        rows.copy_from_slice(&kept.ok_or_else(differs)?.1);
        Ok(())
    }

    /// Ends what is replayed of a graph.
    pub(super) fn end_replayed_graph(&mut self) -> Result<()> {
        let graph = self.replayed.0.get(self.graph_idx).ok_or_else(differs)?;
        if graph.cache_writes.len() != self.cache_write_idx {
            return Err(differs());
        }
        self.graph_idx += 1;
        self.cache_write_idx = 0;
        Ok(())
    }

    /// Puts back what was taken out of the graph, which llama.cpp may use again.
    pub(super) fn restore(&mut self) {
        for (node, op) in self.skipped.drain(..) {
            node.set_op(op); // llama.cpp keeps a graph until it builds the next one
        }
    }
}

fn writes_cache(node: &sys::ggml_tensor) -> bool {
    node.op == sys::GGML_OP_SET_ROWS
}

/// What a `GGML_OP_SET_ROWS` writes: its first operand (`ggml_set_rows` in `ggml.c`).
fn written(node: Node) -> Result<Node> {
    let written = node.operand(0).ok_or_else(differs)?;
    // SAFETY: the tensor is alive.
    if unsafe { sys::ggml_is_contiguous(written.get()) } {
        return Ok(written);
    }
    Err(Error::invalid(
        "this model's keys or values do not lie together, so that runs cannot share them",
    ))
}

fn differs() -> Error {
    Error::invalid("a replayed graph differs from the recorded one")
}
