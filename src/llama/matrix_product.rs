//! Products of rows with one matrix of a GGUF file, computed by ggml.

use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use gguf_tools::gguf::{TensorInfo, TensorType};
use llama_cpp_sys_2 as sys;

use super::backend;
use super::guard::{self, guarded};
use super::mapped_file::MappedFile;
use super::tensor_context::{GRAPH_NODES, TensorContext};
use super::waiting;
use crate::error::runtime;
use crate::{Error, Result, RowProduct};

/// Rows of one graph: bounds the memory for intermediate results.
const MAX_ROWS: usize = 512;

/// A matrix in the memory of a ggml backend, shared by all that multiply by it. On the processor it is used as
/// it lies in the memory-mapped file; a device has one copy.
pub struct Matrix {
    // Dropped in this order: the weights, the backend that gave them memory, the mapped file.
    weights: Weights,
    _backend: Backend,
    _file: MappedFile,
    use_gpu: bool,
    n_in: usize,
    n_out: usize,
}

// SAFETY: ggml's buffers are bound to no thread, and graphs only read the weights' tensor, which has its name.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

/// Products of rows with a matrix.
pub struct MatrixProduct {
    // Dropped in this order: the graph's memory, the backend, the matrix.
    allocator: GraphAllocator,
    backend: Backend,
    matrix: Arc<Matrix>,
    outputs: Vec<f32>, // [n_rows, n_out], reused
}

impl Matrix {
    /// Prepares the matrix `tensor` (`n_out` rows of `n_in` columns) of the file at `path`, whose
    /// header has been checked: on the first device if `use_gpu` and there is one, else on the processor.
    ///
    /// # Errors
    /// When ggml has no product for the matrix's type, the file cannot be mapped, or ggml cannot
    /// provide the backend or its memory.
    pub fn load(path: &Path, tensor: &TensorInfo, use_gpu: bool) -> Result<Arc<Self>> {
        backend::start();
        let file = MappedFile::open(path)?;
        let size = |n: u64| usize::try_from(n).expect("the file is mapped, so its sizes fit");
        let [n_in, n_out] = tensor.dims[..] else {
            return Err(Error::invalid(format!(
                "`{}` in `{}` is not a matrix",
                tensor.name,
                path.display()
            )));
        };
        if !has_product(tensor.tensor_type) {
            return Err(Error::invalid(format!(
                "`{}` in `{}` is of type {}, which ggml does not multiply by",
                tensor.name,
                path.display(),
                tensor.tensor_type.name()
            )));
        }
        let start = size(tensor.offset);
        let bytes = file
            .bytes()
            .get(start..start + size(tensor.n_bytes))
            .ok_or_else(|| Error::invalid(format!("`{}` is truncated", path.display())))?;
        let backend = Backend::new(use_gpu, 1)?;
        let weights = Weights::new(&backend, tensor, bytes)?;
        Ok(Arc::new(Self {
            weights,
            _backend: backend,
            _file: file,
            use_gpu,
            n_in: size(n_in),
            n_out: size(n_out),
        }))
    }
}

impl MatrixProduct {
    /// Products with `matrix`, where it is in memory, on `threads` threads if that is the processor's.
    ///
    /// # Errors
    /// When ggml cannot provide the backend or its memory.
    pub fn new(matrix: Arc<Matrix>, threads: usize) -> Result<Self> {
        let backend = Backend::new(matrix.use_gpu, threads)?;
        Ok(Self {
            allocator: GraphAllocator::new(&backend)?,
            backend,
            matrix,
            outputs: Vec::new(),
        })
    }
}

// SAFETY: ggml's backends, buffers and allocators are bound to no thread, and only the owner reaches these.
unsafe impl Send for MatrixProduct {}

impl RowProduct for MatrixProduct {
    fn n_in(&self) -> usize {
        self.matrix.n_in
    }

    fn apply(&mut self, rows: &[f32]) -> Result<&[f32]> {
        let Matrix {
            weights,
            n_in,
            n_out,
            ..
        } = &*self.matrix;
        assert_eq!(rows.len() % n_in, 0, "inputs are whole rows");
        waiting::adapt();
        self.outputs.resize(rows.len() / n_in * n_out, 0.0);
        let inputs = rows.chunks(MAX_ROWS * n_in);
        for (input, output) in inputs.zip(self.outputs.chunks_mut(MAX_ROWS * n_out)) {
            multiply(&self.allocator, weights, &self.backend, input, output)?;
        }
        Ok(&self.outputs)
    }
}

fn multiply(
    allocator: &GraphAllocator,
    weights: &Weights,
    backend: &Backend,
    input: &[f32],
    output: &mut [f32],
) -> Result<()> {
    let failed = |what: &str| runtime("ggml_mul_mat", what);
    // SAFETY: the weights' tensor is alive.
    let n_in = unsafe { (*weights.tensor.as_ptr()).ne[0] };
    let n_rows = i64::try_from(input.len()).expect("a slice's length fits") / n_in;
    let graph_context = TensorContext::new(4)?;
    let context = graph_context.as_ptr();
    // SAFETY: the context has room for these tensors and the graph, and outlives them.
    let x = unsafe { sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, n_in, n_rows) };
    // SAFETY: `x` is a tensor of this context.
    unsafe { sys::ggml_set_input(x) };
    // SAFETY: both are alive, and the inner sizes agree.
    let y = unsafe { sys::ggml_mul_mat(context, weights.tensor.as_ptr(), x) };
    // Else CUDA adds products with an f16 matrix in f16: an SAE's activations were off by 1 %.
    // SAFETY: `y` is a matrix product of this context.
    unsafe { sys::ggml_mul_mat_set_prec(y, sys::GGML_PREC_F32) };
    // SAFETY: `y` is a tensor of this context.
    unsafe { sys::ggml_set_output(y) };
    // SAFETY: the context has room for a graph.
    let graph = unsafe { sys::ggml_new_graph_custom(context, GRAPH_NODES, false) };
    // SAFETY: graph and tensor belong to the context.
    unsafe { sys::ggml_build_forward_expand(graph, y) };
    // SAFETY: the allocator is alive; it gives `x` and `y` memory until its next graph.
    if !unsafe { sys::ggml_gallocr_alloc_graph(allocator.0.as_ptr(), graph) } {
        return Err(failed("out of memory"));
    }
    // SAFETY: `x` holds exactly the input's values.
    unsafe { sys::ggml_backend_tensor_set(x, input.as_ptr().cast(), 0, size_of_val(input)) };
    let status = guarded("ggml_backend_graph_compute", || {
        // SAFETY: all tensors of the graph have memory on this backend.
        unsafe { guard::ggml_backend_graph_compute(backend.0.as_ptr(), graph) }
    })?;
    if status != sys::GGML_STATUS_SUCCESS {
        return Err(failed(&format!("status {status}")));
    }
    // SAFETY: `y` holds `n_rows · n_out` values, as `output` does.
    unsafe { sys::ggml_backend_tensor_get(y, output.as_mut_ptr().cast(), 0, size_of_val(output)) };
    Ok(())
}

/// A ggml backend.
struct Backend(NonNull<sys::ggml_backend>);

impl Backend {
    fn new(use_gpu: bool, threads: usize) -> Result<Self> {
        let gpu_types = [
            sys::GGML_BACKEND_DEVICE_TYPE_GPU,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
        ];
        for device_type in gpu_types.into_iter().filter(|_| use_gpu) {
            // SAFETY: null parameters ask for the defaults; without such a device it returns null.
            let gpu = unsafe { sys::ggml_backend_init_by_type(device_type, std::ptr::null()) };
            if let Some(gpu) = NonNull::new(gpu) {
                return Ok(Self(gpu));
            }
        }
        // SAFETY: no arguments.
        let cpu = NonNull::new(unsafe { sys::ggml_backend_cpu_init() })
            .ok_or_else(|| backend::failure("ggml_backend_cpu_init", "no reason was given"))?;
        // SAFETY: it is a CPU backend.
        unsafe {
            sys::ggml_backend_cpu_set_n_threads(
                cpu.as_ptr(),
                i32::try_from(threads).unwrap_or(i32::MAX),
            );
        }
        Ok(Self(cpu))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // SAFETY: made by ggml and freed once, after everything that uses it.
        unsafe { sys::ggml_backend_free(self.0.as_ptr()) };
    }
}

/// The matrix as a ggml tensor with memory on the backend.
struct Weights {
    tensor: NonNull<sys::ggml_tensor>,
    _buffer: Buffer,
    _context: TensorContext,
}

impl Weights {
    fn new(backend: &Backend, info: &TensorInfo, bytes: &[u8]) -> Result<Self> {
        let context = TensorContext::new(1)?;
        let dim = |i: usize| i64::try_from(info.dims[i]).expect("the file is mapped, so it fits");
        // SAFETY: the context has room for one tensor, and the type was checked.
        let tensor = unsafe {
            sys::ggml_new_tensor_2d(
                context.as_ptr(),
                ggml_type(info.tensor_type),
                dim(0),
                dim(1),
            )
        };
        let tensor = NonNull::new(tensor)
            .ok_or_else(|| backend::failure("ggml_new_tensor_2d", "out of memory"))?;
        // A graph names what has no name, and the tensor is shared by threads.
        // SAFETY: the tensor is alive, and the name is copied.
        unsafe { sys::ggml_set_name(tensor.as_ptr(), c"matrix".as_ptr()) };
        // SAFETY: the tensor is alive.
        let n_bytes = unsafe { sys::ggml_nbytes(tensor.as_ptr()) };
        if n_bytes != bytes.len() {
            return Err(Error::invalid(format!(
                "`{}` takes {n_bytes} bytes, and the file holds {}",
                info.name,
                bytes.len()
            )));
        }
        // SAFETY: the backend is alive.
        let is_cpu = unsafe { sys::ggml_backend_is_cpu(backend.0.as_ptr()) };
        if is_cpu && bytes.as_ptr().align_offset(BUFFER_ALIGNMENT) == 0 {
            return Self::in_place(context, tensor, bytes);
        }
        // SAFETY: context and backend are alive.
        let buffer =
            unsafe { sys::ggml_backend_alloc_ctx_tensors(context.as_ptr(), backend.0.as_ptr()) };
        let buffer = Buffer::new(buffer)?;
        // SAFETY: the tensor has memory for exactly these bytes.
        unsafe {
            sys::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len());
        }
        Ok(Self {
            tensor,
            _buffer: buffer,
            _context: context,
        })
    }

    fn in_place(
        context: TensorContext,
        tensor: NonNull<sys::ggml_tensor>,
        bytes: &[u8],
    ) -> Result<Self> {
        let data = bytes.as_ptr().cast_mut().cast();
        // SAFETY: aligned as ggml asks; `Matrix` keeps the mapped file longer than the
        // buffer, and a matrix product only reads its weights.
        let buffer = unsafe { sys::ggml_backend_cpu_buffer_from_ptr(data, bytes.len()) };
        let buffer = Buffer::new(buffer)?;
        // SAFETY: the address lies in the buffer, which holds the whole tensor.
        let status =
            unsafe { sys::ggml_backend_tensor_alloc(buffer.0.as_ptr(), tensor.as_ptr(), data) };
        if status != sys::GGML_STATUS_SUCCESS {
            return Err(backend::failure(
                "ggml_backend_tensor_alloc",
                &format!("status {status}"),
            ));
        }
        Ok(Self {
            tensor,
            _buffer: buffer,
            _context: context,
        })
    }
}

fn ggml_type(tensor_type: TensorType) -> sys::ggml_type {
    match tensor_type {
        TensorType::F32 => sys::GGML_TYPE_F32,
        TensorType::F16 => sys::GGML_TYPE_F16,
        TensorType::Bf16 => sys::GGML_TYPE_BF16,
        TensorType::Q8_0 => sys::GGML_TYPE_Q8_0,
        TensorType::Other(code) => code as sys::ggml_type, // signed for some compilers
    }
}

/// Whether ggml multiplies rows by matrices of this type, on the processor and so everywhere. It
/// does not ask: integers, f64 and types of inputs (q8_1, q8_K) have no product to call, and types
/// that were removed from it have blocks of no values.
fn has_product(tensor_type: TensorType) -> bool {
    let code = ggml_type(tensor_type);
    if code >= sys::GGML_TYPE_COUNT {
        return false;
    }
    // SAFETY: the type is in ggml's table.
    let traits = unsafe { sys::ggml_get_type_traits_cpu(code) };
    // SAFETY: the table lives as long as the program.
    unsafe { (*traits).vec_dot }.is_some()
}

/// ggml's `TENSOR_ALIGNMENT` (`ggml-backend.cpp`); a GGUF file's tensors are aligned to 32 bytes.
const BUFFER_ALIGNMENT: usize = 32;

/// Memory on a backend.
struct Buffer(NonNull<sys::ggml_backend_buffer>);

impl Buffer {
    fn new(ptr: *mut sys::ggml_backend_buffer) -> Result<Self> {
        NonNull::new(ptr)
            .map(Self)
            .ok_or_else(|| backend::failure("ggml_backend_buffer", "out of memory"))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by ggml and freed once.
        unsafe { sys::ggml_backend_buffer_free(self.0.as_ptr()) };
    }
}

/// Gives a graph's tensors memory, reused from graph to graph.
struct GraphAllocator(NonNull<sys::ggml_gallocr>);

impl GraphAllocator {
    fn new(backend: &Backend) -> Result<Self> {
        // SAFETY: the backend is alive.
        let buffer_type = unsafe { sys::ggml_backend_get_default_buffer_type(backend.0.as_ptr()) };
        // SAFETY: the buffer type lives as long as ggml.
        let ptr = unsafe { sys::ggml_gallocr_new(buffer_type) };
        NonNull::new(ptr)
            .map(Self)
            .ok_or_else(|| backend::failure("ggml_gallocr_new", "out of memory"))
    }
}

impl Drop for GraphAllocator {
    fn drop(&mut self) {
        // SAFETY: made by ggml and freed once.
        unsafe { sys::ggml_gallocr_free(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use gguf_tools::gguf::TensorType;

    use super::has_product;

    #[test]
    fn types_without_a_product_are_known() {
        let others = (0..64)
            .map(TensorType::Other)
            .filter(|&other| has_product(other));
        let with_product: Vec<_> = others.collect();
        for (code, name) in [(2, "q4_0"), (12, "q4_K"), (23, "iq4_xs"), (39, "mxfp4")] {
            assert!(with_product.contains(&TensorType::Other(code)), "{name}");
        }
        for (code, name) in [
            (9, "q8_1"),
            (15, "q8_K"),
            (24, "i8"),
            (26, "i32"),
            (28, "f64"),
            (31, "q4_0_4_4"),
            (33, "q4_0_8_8"),
            (63, "a type of the future"),
        ] {
            assert!(!with_product.contains(&TensorType::Other(code)), "{name}");
        }
    }
}
