//! What the table of f16 does to a language model, whose GELUs stay as ggml has them.

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use llama_cpp_sys_2 as sys;
use safetensors::SafeTensors;

use super::ExactGelu;
use crate::llama::{Model, ModelOptions, ProjectorType};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma4")
}

/// Puts exact ones in, and wants no rows.
unsafe extern "C" fn on_eval(node: *mut sys::ggml_tensor, ask: bool, gelu: *mut c_void) -> bool {
    if ask {
        // SAFETY: `logits` gave this pointer.
        let gelu = unsafe { &*gelu.cast::<ExactGelu>() };
        // SAFETY: ggml passes a node of the graph that it is about to compute.
        gelu.put_in(unsafe { &mut *node });
    }
    !ask
}

/// Logits behind a prompt, with exact GELUs or with ggml's.
fn logits(name: &str, mut ids: Vec<i32>, gelu: Option<&ExactGelu>) -> Vec<f32> {
    let options = ModelOptions {
        gpu_layers: 0,
        repack: false,
    };
    let model = Model::load(&root().join(format!("{name}.gguf")), options);
    let model = model.expect("a committed file");
    // SAFETY: returns a plain struct by value.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = 64;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = sys::GGML_TYPE_F32;
    params.type_v = sys::GGML_TYPE_F32;
    if let Some(gelu) = gelu {
        params.cb_eval = Some(on_eval);
        params.cb_eval_user_data = std::ptr::from_ref(gelu).cast_mut().cast();
    }
    // SAFETY: the model and the GELUs outlive the context.
    let context = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
    assert!(!context.is_null());
    let n = i32::try_from(ids.len()).expect("a few");
    // SAFETY: the ids outlive the batch.
    let batch = unsafe { sys::llama_batch_get_one(ids.as_mut_ptr(), n) };
    // SAFETY: context and batch are alive.
    assert_eq!(unsafe { sys::llama_decode(context, batch) }, 0);
    // SAFETY: it has decoded, and keeps logits of the last token.
    let logits = unsafe { sys::llama_get_logits_ith(context, -1) };
    // SAFETY: they are as many as there are tokens in the vocabulary.
    let logits = unsafe { std::slice::from_raw_parts(logits, model.n_vocab()) }.to_vec();
    // SAFETY: it was made here, and is freed once.
    unsafe { sys::llama_free(context) };
    logits
}

fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let sum: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    (sum / theirs.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// With exact ones, Gemma 4's logits are transformers' to rounding in f32, so that the table is all that parts them.
/// Experts' gates are parts of one tensor, which the callback leaves alone.
#[test]
fn the_table_of_f16_is_what_parts_gemma4_from_transformers() {
    let bytes = std::fs::read(root().join("oracle.safetensors")).expect("a committed file");
    let oracle = SafeTensors::deserialize(&bytes).expect("safetensors");
    let read = |name: &str| {
        let (words, _) = oracle.tensor(name).expect(name).data().as_chunks::<4>();
        words.to_vec()
    };
    let gelu = ExactGelu::new(ProjectorType::Gemma4);
    for name in ["dense-a", "dense-b", "shared-a", "shared-b"] {
        let ids = read(&format!("{name}/prompt_ids"));
        let ids: Vec<i32> = ids.into_iter().map(i32::from_le_bytes).collect();
        let theirs = read(&format!("{name}/own_gelu/logits"));
        let theirs: Vec<f32> = theirs.into_iter().map(f32::from_le_bytes).collect();
        let exact = distance(&logits(name, ids.clone(), Some(&gelu)), &theirs);
        let by_table = distance(&logits(name, ids, None), &theirs);
        println!("{name}: {exact:.1e} beside {by_table:.1e}");
        assert!(exact < 2e-5, "{name}: {exact:.2e}");
        assert!(
            by_table > 5.0 * exact,
            "{name}: {by_table:.2e}, {exact:.2e}"
        );
    }
}
