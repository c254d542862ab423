//! GGUF files with something changed, whose headers stay well-formed.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Overwrite, TensorType, Value, Writer};

use crate::fixture::temporary_root;

/// What is changed in a file.
pub(crate) type Change<'a> = &'a dyn Fn(&mut Parts);

/// A copy of the file with the change, `rewritten.gguf` in a folder of its own.
pub(crate) fn rewritten(original: &Path, change: Change<'_>) -> PathBuf {
    let mut parts = Parts::read(original);
    change(&mut parts);
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let target = dir.keep().join("rewritten.gguf");
    parts.write(&target);
    target
}

/// A GGUF file in its parts.
pub(crate) struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

/// A tensor of a file; one of a type that is not written here is filled with zeros.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) tensor_type: TensorType,
    pub(crate) values: Vec<f32>,
}

impl Tensor {
    /// A tensor of f32 with the value 1.
    pub(crate) fn ones(name: &str, dims: &[u64]) -> Self {
        Self {
            name: name.to_owned(),
            dims: dims.to_owned(),
            tensor_type: TensorType::F32,
            values: vec![1.0; dims.iter().product::<u64>() as usize],
        }
    }
}

impl Parts {
    pub(crate) fn read(path: &Path) -> Self {
        let file = Gguf::open(path).expect("a committed file");
        let tensors = file.tensors().iter().map(|tensor| Tensor {
            name: tensor.name.clone(),
            dims: tensor.dims.clone(),
            tensor_type: tensor.tensor_type,
            values: file.read_f32(tensor).expect("a valid tensor"),
        });
        Self {
            metadata: file.metadata().to_vec(),
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> &Value {
        let found = self.metadata.iter().find(|(name, _)| name == key);
        &found.unwrap_or_else(|| panic!("no key `{key}`")).1
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.remove(key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    /// Gives another architecture to the model, and to its keys.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        for (key, _) in &mut self.metadata {
            if let Some(name) = key.strip_prefix(&format!("{from}.")) {
                *key = format!("{to}.{name}");
            }
        }
        self.set("general.architecture", to);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor `{name}`"))
    }

    pub(crate) fn tensors(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    pub(crate) fn add(&mut self, tensor: Tensor) {
        self.tensors.push(tensor);
    }

    /// Stores those tensors in another number type for which `wanted` names one.
    pub(crate) fn convert(&mut self, wanted: &dyn Fn(&Tensor) -> Option<TensorType>) {
        for tensor in &mut self.tensors {
            tensor.tensor_type = wanted(tensor).unwrap_or(tensor.tensor_type);
        }
    }

    /// Takes a tensor out.
    pub(crate) fn take(&mut self, name: &str) -> Tensor {
        let tensor = self.tensor(name).clone();
        self.tensors.retain(|tensor| tensor.name != name);
        tensor
    }

    fn write(&self, target: &Path) {
        let mut writer = Writer::create(target, Overwrite::Replace).expect("a file of our own");
        for (key, value) in &self.metadata {
            writer.set(key, value.clone());
        }
        for tensor in &self.tensors {
            let (dims, tensor_type) = tensor.as_written();
            writer.declare(&tensor.name, &dims, tensor_type);
        }
        let mut writer = writer.begin().expect("a valid header");
        for tensor in &self.tensors {
            let (dims, tensor_type) = tensor.as_written();
            let values = if tensor_type == tensor.tensor_type {
                tensor.values.clone()
            } else {
                vec![0.0; dims.iter().product::<u64>() as usize]
            };
            writer.write_f32(&values).expect("a file of our own");
        }
        writer.finish().expect("a file of our own");
        let mut bytes = std::fs::read(target).expect("just written");
        for tensor in &self.tensors {
            tensor.patch(&mut bytes);
        }
        std::fs::write(target, bytes).expect("a file of our own");
    }
}

impl Tensor {
    /// The dims and the type by which it is written: one of f32 that takes as many bytes.
    fn as_written(&self) -> (Vec<u64>, TensorType) {
        let TensorType::Other(_) = self.tensor_type else {
            return (self.dims.clone(), self.tensor_type);
        };
        let row_bytes = self.tensor_type.row_bytes(self.dims[0] as usize);
        let row_bytes = row_bytes.expect("blocks divide it") as u64;
        let n_bytes = row_bytes * self.dims[1..].iter().product::<u64>();
        assert_eq!(n_bytes % 4, 0, "it has the bytes of an f32");
        let mut dims = vec![1; self.dims.len()];
        dims[0] = n_bytes / 4;
        (dims, TensorType::F32)
    }

    /// Writes its own dims and type over those of [`Tensor::as_written`]. Behind a tensor's name stand
    /// the number of dims as u32, each as u64, and the type as u32.
    fn patch(&self, bytes: &mut [u8]) {
        let TensorType::Other(code) = self.tensor_type else {
            return;
        };
        let name = self.name.as_bytes();
        let name = [&(name.len() as u64).to_le_bytes(), name].concat();
        let mut windows = bytes.windows(name.len());
        let start = windows.position(|window| window == name).expect("declared") + name.len() + 4;
        let dims = self.dims.iter().flat_map(|dim| dim.to_le_bytes());
        let own: Vec<u8> = dims.chain(code.to_le_bytes()).collect();
        bytes[start..start + own.len()].copy_from_slice(&own);
    }
}
