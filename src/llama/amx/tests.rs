use half::f16;
use llama_cpp_sys_2 as sys;

use super::{AmxProducts, is_supported};
use crate::llama::node::Node;
use crate::llama::test_products::{Products, multiply, numbers, weights};

impl Products for AmxProducts {
    fn put_in(&mut self, node: Node) {
        AmxProducts::put_in(self, node);
    }

    fn end_graph(&mut self, _: Node) {
        AmxProducts::end_graph(self).expect("nothing panics");
    }
}

/// ggml's own.
struct Ggml;

impl Products for Ggml {
    fn put_in(&mut self, _: Node) {}
    fn end_graph(&mut self, _: Node) {}
}

/// How far outputs are from the product in f64, of the sums of absolute values: rounding errors grow with these.
fn error(outputs: &[f32], weights: &[u8], width: usize, rows: &[f32]) -> f64 {
    let weights: Vec<f64> = (weights.chunks_exact(2))
        .map(|bytes| f64::from(f16::from_le_bytes([bytes[0], bytes[1]])))
        .collect();
    let exact = rows.chunks_exact(width).flat_map(|row| {
        weights.chunks_exact(width).map(|weights| {
            let terms = row.iter().zip(weights).map(|(&x, w)| f64::from(x) * w);
            terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            })
        })
    });
    (outputs.iter().zip(exact))
        .map(|(&output, (sum, size))| (f64::from(output) - sum).abs() / size)
        .fold(0.0, f64::max)
}

/// Sizes that fill panels and steps, and sizes that do not; several steps and panels at once, and the rest of them.
#[test]
fn products_are_more_exact_than_ggml_s() {
    for (width, n_out, n_rows) in [
        (32, 32, 32),
        (1024, 256, 577),
        (1072, 150, 33),
        (2200, 17, 64),
    ] {
        let weights = weights(sys::GGML_TYPE_F16, width, n_out);
        let rows = numbers(n_rows * width);
        let matrix = (sys::GGML_TYPE_F16, &weights[..]);
        let (by_ggml, _) = multiply(&mut Ggml, matrix, (width, &rows), 2);
        let ggml_error = error(&by_ggml, &weights, width, &rows);
        let mut first: Option<Vec<f32>> = None;
        for threads in [1, 2, 3] {
            let mut products = AmxProducts::default();
            let (outputs, is_ours) = multiply(&mut products, matrix, (width, &rows), threads);
            assert_eq!(is_ours, is_supported());
            let error = error(&outputs, &weights, width, &rows);
            // 2^-17 of each row's number is rounded away, and up to 2^-16 of each product left out.
            assert!(error < 2e-5 || !is_ours, "{error}");
            assert!(
                error < 0.3 * ggml_error || !is_ours,
                "{error}, ggml's {ggml_error}"
            );
            let first = first.get_or_insert_with(|| outputs.clone());
            assert_eq!(*first, outputs, "{threads} threads");
        }
    }
}

#[test]
fn the_rest_is_left_to_ggml() {
    let is_ours = |weights_type, width: usize, n_rows| {
        let weights = weights(weights_type, width, 40);
        let rows = numbers(n_rows * width);
        multiply(
            &mut AmxProducts::default(),
            (weights_type, &weights),
            (width, &rows),
            2,
        )
        .1
    };
    assert_eq!(is_ours(sys::GGML_TYPE_F16, 48, 32), is_supported());
    assert!(!is_ours(sys::GGML_TYPE_F16, 48, 31));
    assert!(!is_ours(sys::GGML_TYPE_F32, 48, 32));
    assert!(!is_ours(sys::GGML_TYPE_BF16, 48, 32));
    assert!(!is_ours(sys::GGML_TYPE_Q8_0, 64, 32));
}
