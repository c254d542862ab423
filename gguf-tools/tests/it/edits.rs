//! Copies of a file with another header.

use gguf_tools::gguf::{Edits, Gguf, Overwrite, TensorType, Value, Writer};

use crate::random_values;

#[test]
fn a_copy_differs_in_what_was_edited() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("original.gguf");
    let tensors = [
        ("a", vec![3], TensorType::F32),
        ("b", vec![64, 5], TensorType::Q8_0),
        ("c", vec![7, 3], TensorType::F16),
        ("d", vec![1, 2, 3, 4], TensorType::Bf16),
    ];
    let mut writer = Writer::create(&path, Overwrite::Refuse).expect("our own folder");
    writer.set("kept", vec!["text".to_owned()]);
    writer.set("changed", 1_u32);
    for (name, dims, tensor_type) in &tensors {
        writer.declare(name, dims, *tensor_type);
    }
    let mut writer = writer.begin().expect("a right header");
    for (seed, (_, dims, _)) in (0..).zip(&tensors) {
        let n_values: u64 = dims.iter().product();
        let values = random_values(seed, n_values as usize);
        writer.write_f32(&values).expect("whole tensors");
    }
    writer.finish().expect("complete");

    let original = Gguf::open(&path).expect("just written");
    for left_out in ["a", "c", "d", "none of them"] {
        let mut edits = Edits::default();
        edits.set("changed", 2_u32);
        edits.set("new", vec![3_i32]);
        edits.leave_out(left_out);
        let copy_path = original.edited_copy(&edits).expect("room for a copy");
        let copy = Gguf::open(&copy_path).expect("a right file");
        let keys: Vec<_> = copy.metadata().iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["kept", "changed", "new"]);
        assert_eq!(copy.get("kept"), original.get("kept"));
        assert_eq!(copy.get("changed"), Some(&Value::U32(2)));
        assert_eq!(copy.get("new"), Some(&vec![3_i32].into()));
        let kept = tensors.iter().filter(|(name, ..)| *name != left_out);
        assert_eq!(copy.tensors().len(), kept.clone().count());
        for (name, dims, tensor_type) in kept {
            let tensor = copy.require_tensor(name, dims).expect("it is there");
            assert_eq!(tensor.tensor_type, *tensor_type);
            let values = |file: &Gguf| file.read_f32(file.tensor(name).expect("there")).ok();
            assert_eq!(values(&copy), values(&original), "{name}");
        }
        let place = copy_path.to_path_buf();
        drop(copy_path);
        assert!(!place.exists());
    }
}
