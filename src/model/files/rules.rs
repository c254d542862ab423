//! Rules for keys and tensors of GGUF files, and what the errors say where one is broken.
//!
//! What the keys and tensors mean stands in the tables of the files' kinds. A key that no table has is
//! one that llama.cpp does not read.

use std::fmt::Display;
use std::path::Path;

use gguf_tools::gguf::{Array, Gguf, TensorInfo, TensorType, Value};

use crate::{Error, Result};

/// What a key must hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A u32 between the two.
    Count(u32, u32),
    /// An i32.
    Int,
    /// A normal f32 above 0, up to this one.
    Positive(f32),
    /// A finite f32 of at least 0.
    NotNegative,
    /// A bool.
    Flag,
    /// The bool `true`.
    True,
    /// The bool `false`.
    False,
    /// A string.
    Text,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// An array of strings.
    Texts,
    /// An array of i32.
    Ints,
    /// An array of bools.
    Flags,
    /// An array of three finite f32.
    Three,
    /// An array of three normal f32 above 0.
    ThreePositive,
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Count(min, max), Value::U32(n)) => (min..=max).contains(n),
            (Self::Positive(max), Value::F32(x)) => *x >= f32::MIN_POSITIVE && *x <= max,
            (Self::NotNegative, Value::F32(x)) => *x >= 0.0 && x.is_finite(),
            (Self::Int, Value::I32(_))
            | (Self::Flag, Value::Bool(_))
            | (Self::Text, Value::String(_)) => true,
            (Self::True, Value::Bool(truth)) => *truth,
            (Self::False, Value::Bool(truth)) => !truth,
            (Self::Three | Self::ThreePositive, Value::Array(Array::F32(values))) => {
                let least = match self {
                    Self::Three => f32::MIN,
                    _ => f32::MIN_POSITIVE,
                };
                values.len() == 3 && values.iter().all(|x| (least..=f32::MAX).contains(x))
            }
            (Self::OneOf(texts), Value::String(text)) => texts.contains(&&**text),
            (Self::Texts, Value::Array(Array::String(_)))
            | (Self::Ints, Value::Array(Array::I32(_)))
            | (Self::Flags, Value::Array(Array::Bool(_))) => true,
            _ => false,
        }
    }

    fn expected(self) -> String {
        match self {
            Self::Count(min, max) if min == max => format!("the u32 {min}"),
            Self::Count(0, u32::MAX) => "a u32".to_owned(),
            Self::Count(min, max) => format!("a u32 from {min} to {max}"),
            Self::Int => "an i32".to_owned(),
            Self::Positive(f32::MAX) => "an f32 above 0".to_owned(),
            Self::Positive(max) => format!("an f32 above 0 and up to {max}"),
            Self::NotNegative => "an f32 of 0 or more".to_owned(),
            Self::Flag => "a bool".to_owned(),
            Self::True => "true".to_owned(),
            Self::False => "false".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::OneOf(texts) => format!("one of `{}`", texts.join("`, `")),
            Self::Texts => "an array of strings".to_owned(),
            Self::Ints => "an array of i32".to_owned(),
            Self::Flags => "an array of bools".to_owned(),
            Self::Three => "an array of three finite f32".to_owned(),
            Self::ThreePositive => "an array of three finite f32 above 0".to_owned(),
        }
    }
}

/// A key's rule. A name that begins with `*.` stands for one that begins with the architecture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    name: &'static str,
    kind: Kind,
    is_required: bool,
}

impl Key {
    /// A key that must be there.
    pub(super) const fn required(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            is_required: true,
        }
    }

    /// A key that may be there.
    pub(super) const fn optional(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            is_required: false,
        }
    }

    /// Checks the key in a file of this architecture.
    pub(super) fn check(&self, file: &Gguf, architecture: &str) -> Result<()> {
        let name = self.name.replacen('*', architecture, 1);
        match file.get(&name) {
            None if self.is_required => Err(broken(file, format!("there is no key `{name}`"))),
            Some(value) if !self.kind.accepts(value) => {
                Err(wrong_value(file, &name, self.kind.expected(), value))
            }
            _ => Ok(()),
        }
    }
}

/// The error for a key's value that breaks its rule.
pub(super) fn wrong_value(file: &Gguf, key: &str, expected: impl Display, got: &Value) -> Error {
    let type_name = got.type_name();
    let got = match got {
        Value::U32(n) => format!("{n}"),
        Value::F32(x) => format!("{x}"),
        Value::Bool(truth) => format!("{truth}"),
        Value::String(text) => format!("`{}`", text.escape_debug()),
        Value::Array(_) => format!("an {type_name}"),
        _ => format!("a value of type {type_name}"),
    };
    broken(file, format!("key `{key}` must be {expected}, got {got}"))
}

/// The error for a file that breaks a rule.
pub(super) fn broken(file: &Gguf, what: impl Display) -> Error {
    Error::invalid(format!("`{}`: {what}", file.path().display()))
        .with_hint("the file is damaged, or llama.cpp's converter did not make it: download or convert it again")
}

/// What llama.cpp does with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It multiplies by it, or looks rows up.
    Matrix,
    /// It adds it, or multiplies by it value by value: a norm, a bias, a scale, `RoPE`'s factors.
    Vector,
    /// It convolves with it (`ggml_conv_2d`).
    Kernel,
}

/// Number types that have a product in `type_traits_cpu` (`ggml/src/ggml-cpu/ggml-cpu.c`) and rows in
/// `ggml_compute_forward_get_rows` (`ggml/src/ggml-cpu/ops.cpp`).
const MATRIX_TYPES: [&str; 28] = [
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_K", "q3_K", "q4_K", "q5_K",
    "q6_K", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs",
    "tq1_0", "tq2_0", "mxfp4", "nvfp4", "q1_0", "q2_0",
];

/// Checks the shape and the number type of a tensor; `dims` are in ggml's order.
pub(super) fn check_tensor(
    file: &Gguf,
    tensor: &TensorInfo,
    role: Role,
    dims: &[u64],
) -> Result<()> {
    let name = &tensor.name;
    let without_ones = |dims: &[u64]| {
        let n_ones = dims.iter().rev().take_while(|&&dim| dim == 1).count();
        dims[..dims.len() - n_ones].to_vec()
    };
    if without_ones(&tensor.dims) != without_ones(dims) {
        return Err(broken(
            file,
            format!(
                "tensor `{name}` must have the dims {dims:?}, but has {:?}",
                tensor.dims
            ),
        ));
    }
    let (fits, expected) = match role {
        Role::Vector => (tensor.tensor_type == TensorType::F32, "type f32"),
        Role::Kernel => (
            matches!(tensor.tensor_type, TensorType::F32 | TensorType::F16),
            "type f32 or f16",
        ),
        Role::Matrix => (
            MATRIX_TYPES.contains(&tensor.tensor_type.name()),
            "a type that ggml multiplies by, such as f16 or q8_0",
        ),
    };
    if !fits {
        return Err(broken(
            file,
            format!(
                "tensor `{name}` must be of {expected}, but is of type {}",
                tensor.tensor_type.name()
            ),
        ));
    }
    Ok(())
}

pub(super) fn wrong_role(path: &Path, expected: &str, arch: &str) -> Error {
    Error::invalid(format!(
        "`{}` should be {expected}, but its architecture is `{arch}`",
        path.display()
    ))
    .with_hint("check which file is the language model, which the projector, and which the SAE")
}
