//! The GELUs of vision encoders and projectors as transformers computes them.
//!
//! On the processor, ggml looks them up in tables of f16 (`GGML_GELU_FP16`, `GGML_GELU_QUICK_FP16` in
//! `ggml-cpu/vec.h`), and what mtmd calls GELU is the tanh approximation, which is SigLIP's, where LLaVA's
//! projector has erf. Over the layers of an encoder that moves single image embeddings by 0.2 %. ggml can do
//! better by itself: it has an exact erf form, and operations that call back. So nodes are given
//! another operation before they are computed.
//!
//! Gemma 4's gated blocks have one node for the GELU and the product with it, which is the quick GELU's where the file has
//! no `clip.use_gelu`, as llama.cpp's converter writes it.

#[cfg(test)]
mod tests;

use std::ffi::{c_int, c_void};
use std::ops::Range;

use llama_cpp_sys_2 as sys;

use super::node::{Function, Node, name};
use super::projector_type::ProjectorType;

/// What changes the nodes of a projector's graph.
pub(super) struct ExactGelu {
    projector: ProjectorType,
}

impl ExactGelu {
    pub(super) fn new(projector: ProjectorType) -> Self {
        Self { projector }
    }

    /// Changes `node`, not computed yet, if it is a GELU that ggml would approximate. It stays
    /// changed: mtmd builds a graph for each image.
    pub(super) fn put_in(&self, node: &mut sys::ggml_tensor) {
        if self.projector == ProjectorType::Gemma4 && node.op == sys::GGML_OP_GLU {
            return self.put_in_gated(node);
        }
        if node.op != sys::GGML_OP_UNARY || !is_plain(node) {
            return;
        }
        // SAFETY: the node is a unary operation.
        let unary = unsafe { sys::ggml_get_unary_op(node) };
        match unary {
            sys::GGML_UNARY_OP_GELU if self.is_erf(node) => {
                let original = node.op_params;
                node.op_params[0] = sys::GGML_UNARY_OP_GELU_ERF as i32;
                if !is_supported(node) {
                    node.op_params = original;
                }
            }
            // A device computes these in f32, and could not call back.
            sys::GGML_UNARY_OP_GELU if is_on_processor(node) => compute_by(node, call::<TanhGelu>),
            sys::GGML_UNARY_OP_GELU_QUICK if is_on_processor(node) => {
                compute_by(node, call::<QuickGelu>)
            }
            _ => {}
        }
    }
}

impl ExactGelu {
    /// The same of a GELU of one operand that multiplies another.
    fn put_in_gated(&self, node: &mut sys::ggml_tensor) {
        const GELUS: [sys::ggml_glu_op; 2] = [sys::GGML_GLU_OP_GEGLU, sys::GGML_GLU_OP_GEGLU_QUICK];
        if !GELUS.contains(&(node.op_params[0] as _))
            || !is_plain(node)
            || !is_plain_f32(node.src[1])
        {
            return;
        }
        match is_on_processor(node) {
            true => compute_by(node, call_gated::<TanhGelu>),
            false => node.op_params[0] = sys::GGML_GLU_OP_GEGLU as i32,
        }
    }

    /// Whether transformers computes erf where mtmd computes tanh: in projectors, but for Gemma 3's and Idefics3's, which
    /// have no GELU. Of the encoders, these two's and Qwen3-VL's alone have tanh; InternVL's has erf. Gemma 4 has gates.
    fn is_erf(&self, node: &sys::ggml_tensor) -> bool {
        match self.projector {
            ProjectorType::Mlp
            | ProjectorType::Qwen2Vl
            | ProjectorType::Qwen25Vl
            | ProjectorType::InternVl => true,
            ProjectorType::Gemma3 | ProjectorType::Gemma4 | ProjectorType::Idefics3 => false,
            ProjectorType::Qwen3Vl => !is_of_block(node),
        }
    }
}

/// Whether a GELU's operand is what the bias of an encoder's block was added to.
fn is_of_block(node: &sys::ggml_tensor) -> bool {
    // SAFETY: a node's operands live as long as its graph.
    let sum = unsafe { node.src[0].as_ref() };
    // SAFETY: as above.
    let bias = sum.and_then(|sum| unsafe { sum.src[1].as_ref() });
    bias.is_some_and(|bias| name(bias).starts_with(b"v.blk."))
}

/// Whether the node and its source are contiguous f32, as `call` takes them to be.
fn is_plain(node: &sys::ggml_tensor) -> bool {
    is_plain_f32(node) && is_plain_f32(node.src[0])
}

/// Whether there is a tensor, contiguous and of f32.
fn is_plain_f32(tensor: *const sys::ggml_tensor) -> bool {
    // SAFETY: a node and its operands are null or live as long as its graph.
    unsafe { tensor.as_ref() }.is_some_and(|tensor| {
        // SAFETY: the tensor is alive.
        let is_contiguous = unsafe { sys::ggml_is_contiguous(tensor) };
        is_contiguous && tensor.type_ == sys::GGML_TYPE_F32
    })
}

/// Whether the processor's backend computes this node.
fn is_on_processor(node: &sys::ggml_tensor) -> bool {
    // SAFETY: no arguments.
    buffer_type(node) == Some(unsafe { sys::ggml_backend_cpu_buffer_type() })
}

/// Whether the device that holds this node can compute it.
fn is_supported(node: &sys::ggml_tensor) -> bool {
    let Some(buffer_type) = buffer_type(node) else {
        return false;
    };
    // SAFETY: a buffer's type lives as long as ggml.
    let device = unsafe { sys::ggml_backend_buft_get_device(buffer_type) };
    // The processor's own buffer type names no device (`ggml-backend.cpp`).
    // SAFETY: the device lives as long as ggml, and the node is alive.
    device.is_null() || unsafe { sys::ggml_backend_dev_supports_op(device, node) }
}

fn buffer_type(node: &sys::ggml_tensor) -> Option<sys::ggml_backend_buffer_type_t> {
    // SAFETY: a node that is about to be computed has memory in a living buffer.
    (!node.buffer.is_null()).then(|| unsafe { sys::ggml_backend_buffer_get_type(node.buffer) })
}

fn compute_by(node: &mut sys::ggml_tensor, function: Function) {
    Node(node).set_function(function, std::ptr::null_mut());
}

/// A function of each value.
trait Activation {
    fn of(x: f32) -> f32;
}

/// x · σ(1.702 x) (`QuickGELUActivation` in transformers' `activations.py`).
struct QuickGelu;

impl Activation for QuickGelu {
    fn of(x: f32) -> f32 {
        x / (1.0 + (-1.702 * x).exp())
    }
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))) (`PytorchGELUTanh` in transformers' `activations.py`).
struct TanhGelu;

impl Activation for TanhGelu {
    fn of(x: f32) -> f32 {
        let inner = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
        0.5 * x * (1.0 + (inner * (x + 0.044_715 * x * x * x)).tanh())
    }
}

/// Applies an activation to the `ith` of `nth` parts of a node's values.
unsafe extern "C" fn call<A: Activation>(
    output: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    _: *mut c_void,
) {
    // SAFETY: ggml passes the node that it computes.
    let output = unsafe { &*output };
    // SAFETY: and the node has a source.
    let input = unsafe { &*output.src[0] };
    let Range { start, end } = part(output, ith, nth);
    // SAFETY: the node has `n` f32 values in the processor's memory.
    let values = unsafe { output.data.cast::<f32>().add(start) };
    // SAFETY: so has its source.
    let sources = unsafe { input.data.cast::<f32>().add(start) };
    // SAFETY: both hold this part, and may be the same memory.
    unsafe { std::ptr::copy(sources, values, end - start) };
    // SAFETY: no other thread has this part of the node.
    for value in unsafe { std::slice::from_raw_parts_mut(values, end - start) } {
        *value = A::of(*value);
    }
}

/// Applies it to the `ith` of `nth` parts of the first operand's values, and multiplies by the second's.
unsafe extern "C" fn call_gated<A: Activation>(
    output: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    _: *mut c_void,
) {
    // SAFETY: ggml passes the node that it computes.
    let output = unsafe { &*output };
    // SAFETY: and the node has two sources.
    let gate = unsafe { &*output.src[0] };
    // SAFETY: as above.
    let input = unsafe { &*output.src[1] };
    let [values, gates, factors] = [output, gate, input].map(|tensor| tensor.data.cast::<f32>());
    for i in part(output, ith, nth) {
        // SAFETY: the node and its sources have as many f32 values in the processor's memory.
        let gate = unsafe { gates.wrapping_add(i).read() };
        // SAFETY: as above.
        let factor = unsafe { factors.wrapping_add(i).read() };
        // SAFETY: as above; it may be in the place of an operand's, which has been read.
        unsafe { values.wrapping_add(i).write(A::of(gate) * factor) };
    }
}

/// Which of a node's values are the `ith` of `nth` parts.
fn part(node: &sys::ggml_tensor, ith: c_int, nth: c_int) -> Range<usize> {
    // SAFETY: the tensor is alive.
    let n = usize::try_from(unsafe { sys::ggml_nelements(node) }).unwrap_or(0);
    let (ith, nth) = (ith as usize, nth as usize);
    n * ith / nth..n * (ith + 1) / nth
}
