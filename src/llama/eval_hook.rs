//! The eval callback of a context: hands the rows of graph nodes to Rust and writes them back.
//!
//! `llama_context_params.cb_eval` is asked about every node (`ask`), and called again with the
//! computed tensor of those it wanted (the data phase). Returning false in the data phase is no
//! error to llama.cpp (`ggml-backend.cpp`, `ggml_backend_sched_compute_splits`): the rest of the
//! split is skipped and `llama_decode` still returns 0. So errors and panics wait in a slot that
//! every decode looks at.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::few_rows::FewRows;
use super::image_mask;
use super::model::Corrected;
use super::mrope_positions;
use super::node::{Node, n_rows, name, read_rows, write_rows};
use super::norm_epsilon;
use super::recording::{RecordedGraph, Recording};
use crate::{Error, GraphNode, Result};

/// Whether a tensor of the graph is this node.
fn is(node: &GraphNode, tensor: &sys::ggml_tensor) -> bool {
    match node {
        GraphNode::Named(wanted) => name(tensor) == wanted.as_bytes(),
        GraphNode::MultipliesBy(wanted) | GraphNode::Adds(wanted) => is_of(tensor, wanted),
        GraphNode::Normalises(wanted) => {
            tensor.op == sys::GGML_OP_RMS_NORM && is_of(tensor, wanted)
        }
    }
}

/// Whether one of a node's first two operands has this name.
fn is_of(tensor: &sys::ggml_tensor, wanted: &str) -> bool {
    tensor.src[..2].iter().any(|&operand| {
        // SAFETY: an operand is null or a tensor of the same graph.
        let operand = unsafe { operand.as_ref() };
        // What was copied to a device is called `DEVICE#NAME#COPY` (`ggml_backend_sched_split_graph`).
        operand.is_some_and(|operand| {
            let mut parts = name(operand).split(|&byte| byte == b'#');
            parts.any(|part| part == wanted.as_bytes())
        })
    })
}

/// A node whose rows a hook sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookedNode {
    /// The node.
    pub node: GraphNode,
    /// The length of its rows.
    pub width: usize,
}

/// Receives the rows of the hooked nodes.
pub trait RowHook {
    /// Called once a ubatch for each hooked node that is computed, in the graph's order, with the node's
    /// index and its rows, `[n_rows, width]`, in the order of submission.
    ///
    /// # Errors
    /// An error stops the graph; the decode returns it.
    fn on_rows(&mut self, node_idx: usize, rows: &mut [f32]) -> Result<Edited>;
}

/// Whether a hook changed the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    /// They are written back, and the graph goes on with them.
    Yes,
    /// The graph goes on with what it computed.
    No,
}

/// How far something goes in a graph. Hooked nodes are meant by their index, in the graph's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not at all.
    Nothing,
    /// To this hooked node, its rows included.
    Node(usize),
    /// To the graph's end.
    End,
}

/// How much of a graph is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All of it, as if there were no callback but for what puts llama.cpp right: the hook sees nothing.
    Unhooked,
    /// What lies between two places, and the hook sees all hooked nodes up to there.
    Hooked {
        /// What is not computed: it is what [`Context::replay`](super::Context::replay) was given of the same rows. The
        /// hook sees the rows of the nodes there as they were kept; it may change those of the last one.
        replayed: Reach,
        /// What is kept ([`Context::take_recording`](super::Context::take_recording)), together with what is replayed.
        recorded: Reach,
        /// What leads to this place is computed. What the context holds of these rows above it is undefined, and
        /// so are logits. Where a graph is computed in several parts, as with some blocks on a device and
        /// others not, only the part with the hooked node ends there; the parts behind it cost what they
        /// cost, and give nothing.
        computed: Reach,
    },
}

impl Pass {
    /// All of it.
    pub const WHOLE: Self = Self::up_to(Reach::End);

    /// What leads to a place.
    pub const fn up_to(computed: Reach) -> Self {
        Self::Hooked {
            replayed: Reach::Nothing,
            recorded: Reach::Nothing,
            computed,
        }
    }

    /// All of it, and what leads to a place is kept.
    pub const fn recorded(recorded: Reach) -> Self {
        Self::Hooked {
            replayed: Reach::Nothing,
            recorded,
            computed: Reach::End,
        }
    }

    /// How far it goes.
    pub const fn computed(self) -> Reach {
        match self {
            Self::Unhooked => Reach::End,
            Self::Hooked { computed, .. } => computed,
        }
    }

    /// What stands above a place.
    pub const fn replayed(replayed: Reach) -> Self {
        Self::Hooked {
            replayed,
            recorded: Reach::Nothing,
            computed: Reach::End,
        }
    }
}

#[cfg(test)]
thread_local! {
    /// A pass that goes wrong, as it might on a device: its rows do, and without a hook the control vector.
    pub(crate) static SPOILED: std::cell::Cell<Option<Pass>> = const { std::cell::Cell::new(None) };
}

/// What the callback needs, at an address that llama.cpp keeps.
pub(super) struct EvalHook<H> {
    pub(super) hook: H,
    pass: Pass,
    recording: Recording,
    nodes: Vec<HookedNode>,
    is_seen: Vec<bool>, // for each node, in the graph at hand
    rows: Vec<f32>,     // [n_rows, width], reused
    fault: Option<Error>,
    corrected: Corrected,
    pub(super) short_window: Option<usize>, // while an image is decoded that is longer
    pub(super) few_rows: FewRows,
}

impl<H: RowHook> EvalHook<H> {
    pub(super) fn new(hook: H, nodes: Vec<HookedNode>, corrected: Corrected) -> Self {
        Self {
            hook,
            pass: Pass::Unhooked,
            recording: Recording::default(),
            is_seen: vec![false; nodes.len()],
            nodes,
            rows: Vec::new(),
            fault: None,
            corrected,
            short_window: None,
            few_rows: FewRows::new(),
        }
    }

    /// Hooks these nodes instead.
    pub(super) fn set_nodes(&mut self, nodes: Vec<HookedNode>) {
        self.is_seen = vec![false; nodes.len()];
        self.nodes = nodes;
        self.pass = Pass::Unhooked;
    }

    /// How much is computed of the graphs that follow.
    pub(super) fn set_pass(&mut self, pass: Pass) {
        self.pass = pass;
    }

    /// What is replayed of the graphs that follow.
    pub(super) fn set_replayed(&mut self, graph: Arc<RecordedGraph>) {
        self.recording.set_replayed(graph);
    }

    /// What was recorded of the last graph, if that could be.
    pub(super) fn take_recording(&mut self) -> Option<RecordedGraph> {
        self.recording.take(self.recorded())
    }

    pub(super) fn begin_graph(&mut self) -> Result<()> {
        self.is_seen.fill(false);
        let below = match self.replayed() {
            Reach::Node(node_idx) => Some(&self.nodes[node_idx].node),
            Reach::Nothing | Reach::End => None,
        };
        self.recording
            .begin_graph(below.filter(|_| self.recorded() > Reach::Nothing))
    }

    /// Ends a graph, which was computed to its end or given up; the error or panic in it, if any.
    pub(super) fn end_graph(&mut self, is_computed: bool) -> Option<Error> {
        self.recording.restore();
        let few_rows = self.few_rows.end_graph();
        let fault = self.fault.take().or(few_rows.err());
        fault.or_else(|| match self.replayed() {
            Reach::End if is_computed => self.recording.check_whole().err(),
            _ => None,
        })
    }

    fn replayed(&self) -> Reach {
        match self.pass {
            Pass::Unhooked => Reach::Nothing,
            Pass::Hooked { replayed, .. } => replayed,
        }
    }

    fn recorded(&self) -> Reach {
        match self.pass {
            Pass::Unhooked => Reach::Nothing,
            Pass::Hooked { recorded, .. } => recorded,
        }
    }

    /// Whether the graph has not come beyond this place.
    fn is_within(&self, reach: Reach) -> bool {
        match reach {
            Reach::Nothing => false,
            Reach::Node(node_idx) => !self.is_seen[node_idx],
            Reach::End => true,
        }
    }

    /// Which of the hooked nodes it is, if any.
    fn hooked(&self, node: Node) -> Option<usize> {
        let mut nodes = self.nodes.iter();
        nodes.position(|hooked| is(&hooked.node, node.get()))
    }

    fn on_ask(&mut self, node: Node) -> Result<bool> {
        if let Some(epsilon) = self.corrected.norm_epsilon {
            norm_epsilon::put_in(node, epsilon);
        }
        if self.corrected.is_interleaved {
            mrope_positions::put_in(node)?;
        }
        if let Some(window) = self.short_window {
            image_mask::put_in(node, window)?;
        }
        self.few_rows.put_in(node);
        if self.pass == Pass::Unhooked || self.fault.is_some() {
            return Ok(false);
        }
        let hooked = self.hooked(node);
        if self.is_within(self.replayed()) {
            let is_last = hooked.is_some_and(|idx| self.replayed() == Reach::Node(idx));
            if let Some(node_idx) = hooked.filter(|_| !is_last) {
                self.show_recorded(node_idx, node)?;
            }
            return Ok(self.recording.replay(node)? || is_last);
        }
        let is_kept = self.is_within(self.recorded()) && Recording::wants(node.get());
        Ok(hooked.is_some() || is_kept)
    }

    /// Hands the hook the kept rows of a node that is not computed.
    fn show_recorded(&mut self, node_idx: usize, node: Node) -> Result<()> {
        let n_rows = n_rows(node.get(), self.nodes[node_idx].width)?;
        self.note(node_idx)?;
        self.rows.resize(n_rows * self.nodes[node_idx].width, 0.0);
        self.recording
            .replay_rows(&self.nodes[node_idx].node, &mut self.rows)?;
        match self.hook.on_rows(node_idx, &mut self.rows)? {
            Edited::No => Ok(()),
            Edited::Yes => Err(Error::invalid(format!(
                "rows at {} cannot be edited: runs share what is below",
                self.nodes[node_idx].node
            ))),
        }
    }

    /// Notes that the graph has come to a hooked node, which each does once.
    fn note(&mut self, node_idx: usize) -> Result<()> {
        if !std::mem::replace(&mut self.is_seen[node_idx], true) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} came twice in a decode, so that its rows cannot be told apart",
            self.nodes[node_idx].node
        )))
    }

    /// Whether the graph goes on.
    fn on_data(&mut self, node: Node) -> Result<bool> {
        if self.fault.is_some() {
            return Ok(false);
        }
        let is_replayed = self.is_within(self.replayed());
        let is_recorded = self.is_within(self.recorded()) && !is_replayed;
        let Some(node_idx) = self.hooked(node) else {
            if is_recorded {
                self.recording.record_cache_write(node)?;
            }
            return Ok(true);
        };
        self.note(node_idx)?;
        let width = self.nodes[node_idx].width;
        let n_rows = n_rows(node.get(), width)?;
        self.rows.resize(n_rows * width, 0.0);
        let place = &self.nodes[node_idx].node;
        match is_replayed {
            true => self.recording.replay_rows(place, &mut self.rows)?,
            false => read_rows(node.get(), &mut self.rows),
        }
        #[cfg(test)]
        if SPOILED.get() == Some(self.pass) {
            self.rows[0] += 100.0;
        }
        if is_recorded {
            self.recording.record_rows(place, &self.rows);
        }
        let edited = self.hook.on_rows(node_idx, &mut self.rows)? == Edited::Yes;
        if edited || is_replayed {
            write_rows(node.0, &self.rows);
        }
        Ok(self.pass.computed() != Reach::Node(node_idx))
    }
}

/// The callback for `cb_eval`; `user_data` is an [`EvalHook<H>`].
pub(super) unsafe extern "C" fn on_eval<H: RowHook>(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the context's owner gave this pointer and touches it only between decodes.
    let state = unsafe { &mut *user_data.cast::<EvalHook<H>>() };
    let node = Node(tensor); // of the graph that ggml is computing
    let answer = catch_panic(|| match ask {
        true => state.on_ask(node),
        false => state.on_data(node),
    });
    // A node is wanted after an error too: that ends the graph, since its data phase says so.
    answer.unwrap_or_else(|error| {
        state.fault = Some(error);
        ask
    })
}

/// Runs `work`; a panic becomes an error, since it must not cross into C.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::invalid(format!("a hook panicked: {message}")))
    })
}
