//! GGUF files of any contents: unlike `gguf_tools`' writer, nothing is checked.

use std::path::Path;

use gguf_tools::gguf::{Array, Gguf, Value};

use crate::Result;

/// A file's contents, in memory.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    /// What offsets are multiples of.
    pub(crate) alignment: usize,
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) type_name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// Types that changes choose from: ggml's number, name, values of a block, bytes of a block.
pub(crate) const TYPES: [(u32, &str, u64, u64); 11] = [
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (30, "bf16", 1, 2),
    (8, "q8_0", 32, 34),
    (2, "q4_0", 32, 18),
    (39, "mxfp4", 32, 17),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
];

impl GgufFile {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let bytes = std::fs::read(path)?;
        let tensor = |tensor: &gguf_tools::gguf::TensorInfo| Tensor {
            name: tensor.name.clone(),
            dims: tensor.dims.clone(),
            type_name: tensor.tensor_type.name(),
            bytes: bytes[tensor.offset as usize..][..tensor.n_bytes as usize].to_vec(),
        };
        Ok(Self {
            metadata: gguf.metadata().to_vec(),
            tensors: gguf.tensors().iter().map(tensor).collect(),
            alignment: 32,
        })
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(key, &mut out);
            put_value(value, &mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&tensor.name, &mut out);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.layout().0.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}

impl Tensor {
    /// Number, values of a block and bytes of a block of its type.
    pub(crate) fn layout(&self) -> (u32, u64, u64) {
        let found = TYPES.iter().find(|layout| layout.1 == self.type_name);
        let &(code, _, block, block_bytes) = found.expect("fixtures have the listed types");
        (code, block, block_bytes)
    }

    /// Gives it another shape or type, with its bytes again and again as its new contents; `None` if
    /// blocks do not divide the rows.
    pub(crate) fn reshaped(&self, dims: Vec<u64>, type_name: &'static str) -> Option<Self> {
        let mut new = Self {
            name: self.name.clone(),
            dims,
            type_name,
            bytes: Vec::new(),
        };
        let (_, block, block_bytes) = new.layout();
        if !new.dims[0].is_multiple_of(block) {
            return None;
        }
        let n_bytes = new.dims.iter().product::<u64>() / block * block_bytes;
        new.bytes = self
            .bytes
            .iter()
            .copied()
            .cycle()
            .take(n_bytes as usize)
            .collect();
        Some(new)
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
    macro_rules! put {
        ($($variant:ident = $code:literal, $encode:expr;)*) => {
            match value {
                $(Value::$variant(value) => {
                    out.extend(u32::to_le_bytes($code));
                    $encode(value, out);
                })*
                $(Value::Array(Array::$variant(values)) => {
                    out.extend(u32::to_le_bytes(9));
                    out.extend(u32::to_le_bytes($code));
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|value| $encode(value, out));
                })*
            }
        };
    }
    put! {
        U8 = 0, |value: &u8, out: &mut Vec<u8>| out.push(*value);
        I8 = 1, |value: &i8, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        U16 = 2, |value: &u16, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        I16 = 3, |value: &i16, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        U32 = 4, |value: &u32, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        I32 = 5, |value: &i32, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        F32 = 6, |value: &f32, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        Bool = 7, |value: &bool, out: &mut Vec<u8>| out.push(u8::from(*value));
        String = 8, |value: &String, out: &mut Vec<u8>| put_text(value, out);
        U64 = 10, |value: &u64, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        I64 = 11, |value: &i64, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
        F64 = 12, |value: &f64, out: &mut Vec<u8>| out.extend(value.to_le_bytes());
    }
}
