use llama_cpp_sys_2 as sys;

use super::{FewRows, MAX_ROWS};
use crate::llama::node::Node;
use crate::llama::test_products::{Products, multiply, numbers, weights};

impl Products for FewRows {
    fn put_in(&mut self, node: Node) {
        FewRows::put_in(self, node);
    }

    fn end_graph(&mut self, node: Node) {
        FewRows::end_graph(self).expect("nothing panics");
        assert_eq!(node.get().op, sys::GGML_OP_MUL_MAT);
        assert_eq!(node.get().op_params, [0; 16]);
    }
}

/// Each row has the numbers that ggml gives it alone, to the bit.
fn check(weights_type: sys::ggml_type, width: usize, n_out: usize) {
    let weights = weights(weights_type, width, n_out);
    let matrix = (weights_type, &weights[..]);
    let mut rows = numbers(MAX_ROWS * width);
    rows[width..2 * width].fill(0.0);
    let mut few_rows = FewRows::new();
    let mut alone = Vec::new();
    for row in rows.chunks(width) {
        let (outputs, is_ours) = multiply(&mut few_rows, matrix, (width, row), 1);
        assert!(!is_ours);
        alone.extend(outputs);
    }
    for n_rows in 2..=MAX_ROWS {
        few_rows.begin_step();
        let rows = (width, &rows[..n_rows * width]);
        let (outputs, is_ours) = multiply(&mut few_rows, matrix, rows, 1 + n_rows % 3);
        assert!(is_ours || !super::kernels::is_supported());
        let same = outputs.iter().zip(&alone);
        let n_others = same.filter(|(ours, theirs)| ours.to_bits() != theirs.to_bits());
        assert_eq!(
            n_others.count(),
            0,
            "type {weights_type}, {width} × {n_out}, {n_rows} rows"
        );
    }
}

#[test]
fn rows_together_give_what_ggml_gives_each_alone() {
    for weights_type in [sys::GGML_TYPE_Q4_K, sys::GGML_TYPE_Q6_K] {
        for (width, n_out) in [(256, 1), (256, 37), (2048, 64)] {
            check(weights_type, width, n_out);
        }
    }
}

#[test]
fn the_rest_is_left_to_ggml() {
    let mut few_rows = FewRows::new();
    let mut is_ours = |weights_type, n_rows, is_step| {
        let weights = weights(weights_type, 256, 4);
        let rows = numbers(n_rows * 256);
        if is_step {
            few_rows.begin_step();
        }
        multiply(&mut few_rows, (weights_type, &weights), (256, &rows), 2).1
    };
    assert_eq!(
        is_ours(sys::GGML_TYPE_Q4_K, 2, true),
        super::kernels::is_supported()
    );
    assert!(!is_ours(sys::GGML_TYPE_Q4_K, 2, false));
    assert!(!is_ours(sys::GGML_TYPE_Q4_K, 1, true));
    assert!(!is_ours(sys::GGML_TYPE_Q4_K, MAX_ROWS + 1, true));
    assert!(!is_ours(sys::GGML_TYPE_Q5_K, 2, true));
    assert!(!is_ours(sys::GGML_TYPE_Q8_0, 2, true));
}
