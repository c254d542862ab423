//! GGUF files that we write and read back.

use std::path::Path;

use gguf_tools::ErrorKind;
use gguf_tools::gguf::{Gguf, Overwrite, TensorType, TensorWriter, Value, Writer};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::listing;

/// One tensor with its values.
type Tensor = (Vec<u64>, TensorType, Vec<f32>);

fn scalars() -> impl Strategy<Value = Value> {
    let float = prop::num::f32::NORMAL | prop::num::f32::ZERO;
    let double = prop::num::f64::NORMAL;
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        float.prop_map(Value::from),
        double.prop_map(Value::from),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => scalars(),
        1 => vec(any::<String>(), 0..5).prop_map(Value::from),
        1 => vec(any::<i32>(), 0..40).prop_map(Value::from),
        1 => vec(any::<bool>(), 0..40).prop_map(Value::from),
        1 => vec(prop::num::f32::NORMAL, 0..40).prop_map(Value::from),
    ]
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let types = vec![
        TensorType::F32,
        TensorType::F16,
        TensorType::Bf16,
        TensorType::Q8_0,
    ];
    let dims = (1..3_u64, vec(1..4_u64, 0..4));
    (prop::sample::select(types), dims).prop_flat_map(|(tensor_type, (columns, others))| {
        let n_columns = if tensor_type == TensorType::Q8_0 {
            32 * columns
        } else {
            5 * columns
        };
        let dims: Vec<u64> = std::iter::once(n_columns).chain(others).collect();
        let n_values = dims.iter().product::<u64>() as usize;
        (Just(dims), Just(tensor_type), vec(-9.0_f32..9.0, n_values))
    })
}

fn write(path: &Path, metadata: &[Value], tensors: &[Tensor]) -> TensorWriter {
    let mut writer = Writer::create(path, Overwrite::Replace).expect("the folder is there");
    for (idx, value) in metadata.iter().enumerate() {
        writer.set(&format!("key.{idx}"), value.clone());
    }
    for (idx, (dims, tensor_type, _)) in tensors.iter().enumerate() {
        writer.declare(&format!("tensor.{idx}"), dims, *tensor_type);
    }
    let mut writer = writer.begin().expect("keys and tensors are right");
    for (dims, _, values) in tensors {
        for rows in values.chunks(2 * dims[0] as usize) {
            writer.write_f32(rows).expect("one row or two");
        }
    }
    writer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        metadata in vec(values(), 0..6),
        tensors in vec(tensors(), 0..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file.gguf");
        write(&path, &metadata, &tensors).finish().unwrap();

        let gguf = Gguf::open(&path).unwrap();
        prop_assert_eq!(gguf.version(), 3);
        let read: Vec<_> = gguf.metadata().iter().map(|(_, value)| value.clone()).collect();
        prop_assert_eq!(read, metadata);
        for (idx, (dims, tensor_type, values)) in tensors.iter().enumerate() {
            let info = gguf.require_tensor(&format!("tensor.{idx}"), dims).unwrap();
            prop_assert_eq!(info.tensor_type, *tensor_type);
            prop_assert_eq!(info.offset % gguf.alignment(), 0);
            let mut bytes = Vec::new();
            tensor_type.quantize(values, &mut bytes);
            let mut expected = vec![0.0; values.len()];
            tensor_type.dequantize(&bytes, &mut expected);
            prop_assert_eq!(&gguf.read_f32(info).unwrap(), &expected);

            let mut row = vec![0.0; dims[0] as usize];
            let last = values.len() / row.len() - 1;
            gguf.read_row_f32(info, last, &mut row).unwrap();
            prop_assert_eq!(&row[..], &expected[last * row.len()..]);
        }
    }
}

#[test]
fn nothing_appears_until_the_file_is_complete() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("file.gguf");
    let tensor = (vec![2, 2], TensorType::F32, vec![1.0, 2.0, 3.0, 4.0]);
    let writer = write(&path, &[], std::slice::from_ref(&tensor));
    assert!(!path.exists());
    drop(writer);
    assert_eq!(listing(dir.path()), [""; 0]);
    write(&path, &[], &[tensor]).finish().expect("complete");
    assert_eq!(listing(dir.path()), ["file.gguf"]);
}

#[test]
fn a_target_is_replaced_only_when_asked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("file.gguf");
    std::fs::write(&path, "precious").expect("writable");
    let error = Writer::create(&path, Overwrite::Refuse).expect_err("the target exists");
    assert!(
        error.kind() == ErrorKind::Exists && error.hint().is_some(),
        "{error}"
    );

    drop(Writer::create(&path, Overwrite::Replace).expect("allowed"));
    assert_eq!(std::fs::read(&path).expect("untouched"), b"precious");
    write(&path, &[], &[]).finish().expect("complete");
    assert!(Gguf::open(&path).is_ok());
}

#[test]
fn an_error_names_the_target_and_no_other_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("missing/file.gguf");
    let error = Writer::create(&path, Overwrite::Refuse).expect_err("no folder");
    let message = error.to_string();
    assert_eq!(message.matches("file.gguf").count(), 1, "{message}");
    assert!(!message.contains("partial"), "{message}");
}

#[test]
fn a_target_that_comes_into_being_meanwhile_is_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("file.gguf");
    let writer = Writer::create(&path, Overwrite::Refuse)
        .and_then(Writer::begin)
        .expect("no target yet");
    std::fs::write(&path, "precious").expect("writable");
    assert!(writer.finish().is_err());
    assert_eq!(std::fs::read(&path).expect("untouched"), b"precious");
}

#[test]
fn impossible_headers_are_refused() {
    let check = |expected: &str, fill: &dyn Fn(&mut Writer)| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut writer =
            Writer::create(&dir.path().join("x"), Overwrite::Refuse).expect("no target");
        fill(&mut writer);
        let error = writer.begin().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(listing(dir.path()), [""; 0]);
    };
    check("set twice", &|writer| {
        writer.set("a", 1_u32);
        writer.set("a", 2_u32);
    });
    check("is empty", &|writer| writer.set("", true));
    check("declared twice", &|writer| {
        writer.declare("a", &[1], TensorType::F32);
        writer.declare("a", &[1], TensorType::F32);
    });
    check("too long", &|writer| {
        writer.declare(&"a".repeat(64), &[1], TensorType::F32)
    });
    check("[33]", &|writer| {
        writer.declare("a", &[33], TensorType::Q8_0)
    });
    check("[]", &|writer| writer.declare("a", &[], TensorType::F32));
    check("[2, 0]", &|writer| {
        writer.declare("a", &[2, 0], TensorType::F32)
    });
    check("[1, 1, 1, 1, 1]", &|writer| {
        writer.declare("a", &[1; 5], TensorType::F32)
    });
    check("18446744073709551615", &|writer| {
        writer.declare("a", &[u64::MAX, 2], TensorType::F32)
    });
    check("q4_K", &|writer| {
        writer.declare("a", &[256], TensorType::Other(12))
    });
}

#[test]
fn wrong_values_are_refused() {
    let check = |tensor_type, values: &[f32], expected: &str| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut writer =
            Writer::create(&dir.path().join("x"), Overwrite::Refuse).expect("no target");
        writer.declare("a", &[32, 2], tensor_type);
        writer.declare("b", &[32], tensor_type);
        let mut writer = writer.begin().expect("a right header");
        let error = writer
            .write_f32(values)
            .and_then(|()| writer.finish())
            .expect_err(expected);
        assert!(
            error.kind() == ErrorKind::Invalid && error.to_string().contains(expected),
            "{error}"
        );
        assert_eq!(listing(dir.path()), [""; 0]);
    };
    check(TensorType::F32, &[1.0; 33], "rows of 32 values, got 33");
    check(
        TensorType::F32,
        &[1.0; 96],
        "tensor `a` lacks 256 bytes, got 384",
    );
    check(TensorType::F32, &[1.0; 32], "tensor `a` is incomplete");
    check(TensorType::F32, &[1.0; 64], "tensor `b` is incomplete");
    check(TensorType::F32, &[f32::NAN; 64], "NaN");
    check(TensorType::F32, &[f32::NEG_INFINITY; 64], "-inf");
    check(TensorType::F16, &[65520.0; 64], "f16 cannot hold");
    check(TensorType::Bf16, &[f32::MAX; 64], "bf16 cannot hold");
    check(TensorType::Q8_0, &[1e8; 64], "q8_0 cannot hold");
}
