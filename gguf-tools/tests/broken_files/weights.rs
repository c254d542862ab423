//! Safetensors files, in an SAE's folder.

use std::fs;

use serde_json::{Value, json};

use crate::Expected::{Either, Refused};
use crate::{Reader, copy, faults, sae};

/// A file with that header.
fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header, data].concat()
}

#[test]
fn headers_and_data() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("saes/saelens-5-jumprelu", dir.path());
    let file = source.join("sae_weights.safetensors");
    let right = fs::read(&file).expect("committed");
    let reader = Reader {
        file,
        read: &|| sae::convert(&source, Vec::new()),
    };
    reader.check_right(&right);

    let n_header = u64::from_le_bytes(*right.first_chunk().expect("a length")) as usize;
    let (header, data) = right[8..].split_at(n_header);
    let check = &mut |fault: &str, bytes: &[u8], expected| reader.check(fault, bytes, expected);
    let ends = (0..8 + n_header).chain((8 + n_header..right.len()).step_by(97));
    faults::cut(&right, ends.chain([right.len() - 1]), check);
    faults::overwrite(&right, 0..8 + n_header, check);
    reader.check("a byte more", &[&right[..], &[0]].concat(), Refused);

    let header: Value = serde_json::from_slice(header).expect("JSON");
    faults::json(&header, &mut |fault, header, expected| {
        reader.check(fault, &with_header(header, data), expected);
    });

    let with_tensor = |fault: &str, tensor: Value| {
        let mut header = header.clone();
        header["W_dec"] = tensor;
        reader.check(
            fault,
            &with_header(header.to_string().as_bytes(), data),
            Refused,
        );
    };
    let n_data = data.len() as u64;
    let max = u64::MAX;
    for shape in [
        json!([max]),
        json!([max, max]),
        json!([1_u64 << 63, 2]),
        json!([1_u64 << 32, 1_u64 << 32]),
        json!([0, max]),
        json!([max, 0]),
        json!([]),
        json!([0, 0]),
        json!(vec![1; 10_000]),
    ] {
        for offsets in [
            json!([0, n_data]),
            json!([0, 0]),
            json!([n_data, 0]),
            json!([0, max]),
            json!([max, max]),
            json!([max, 0]),
        ] {
            for dtype in ["F32", "BF16", "F4", "BOOL", "I64"] {
                let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
                with_tensor(&tensor.to_string(), tensor);
            }
        }
    }
    // Names and tensors without data.
    let tensor = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let name = "n".repeat(7 << 20);
    let long = format!("{{\"{name}\":{tensor}}}");
    reader.check("a long name", &with_header(long.as_bytes(), &[]), Refused);
    for n_tensors in [9_000, 100_000] {
        let tensors: Vec<String> = (0..n_tensors)
            .map(|i| format!("\"{i}\":{tensor}"))
            .collect();
        let many = format!("{{{}}}", tensors.join(","));
        reader.check("many tensors", &with_header(many.as_bytes(), &[]), Refused);
    }
    let twins = format!("{{\"W_dec\":{tensor},\"W_dec\":{tensor}}}");
    reader.check("twins", &with_header(twins.as_bytes(), &[]), Either);
}
