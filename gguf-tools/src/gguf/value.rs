//! Metadata values and how they lie in the file.

use serde::Serialize;

use super::source::Source;
use crate::{Error, Result};

const STRING_CODE: u32 = 8;
const ARRAY_CODE: u32 = 9;

/// Defines [`Value`] and [`Array`] with one variant for each of GGUF's scalar types, given as
/// `Variant(type) = GGUF's number for it, its name`.
macro_rules! define_values {
    ($($variant:ident($scalar:ty) = $code:expr, $name:literal;)*) => {
        /// A metadata value; serialised as the plain value that it holds.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Value {
            $(#[doc = concat!("One `", $name, "`.")] $variant($scalar),)*
            /// Many values of one type.
            Array(Array),
        }

        /// Many values of one scalar type; arrays of arrays are refused, as in llama.cpp.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Array {
            $(#[doc = concat!("Each a `", $name, "`.")] $variant(Vec<$scalar>),)*
        }

        $(
            impl From<$scalar> for Value {
                fn from(value: $scalar) -> Self {
                    Self::$variant(value)
                }
            }

            impl From<Vec<$scalar>> for Value {
                fn from(values: Vec<$scalar>) -> Self {
                    Self::Array(Array::$variant(values))
                }
            }
        )*

        impl Value {
            /// The type's name, for messages: `u32`, `string`, `array of u32`.
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                    $(Self::Array(Array::$variant(_)) => concat!("array of ", $name),)*
                }
            }

            /// Appends the type's number and the value.
            pub(super) fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => {
                        u32::encode(&$code, out);
                        value.encode(out);
                    })*
                    $(Self::Array(Array::$variant(values)) => {
                        u32::encode(&ARRAY_CODE, out);
                        u32::encode(&$code, out);
                        (values.len() as u64).encode(out);
                        values.iter().for_each(|value| value.encode(out));
                    })*
                }
            }

            /// Reads what [`Value::encode`] wrote.
            pub(super) fn decode(source: &mut Source) -> Result<Self> {
                match u32::decode(source)? {
                    $(code if code == $code => <$scalar>::decode(source).map(Self::from),)*
                    ARRAY_CODE => match u32::decode(source)? {
                        $(code if code == $code => {
                            let memory_bytes = size_of::<$scalar>() as u64;
                            let n_values = source.length(<$scalar>::MIN_BYTES, memory_bytes)?;
                            // Not `collect`, whose buffer would grow past what was counted.
                            let mut values = Vec::with_capacity(n_values);
                            for _ in 0..n_values {
                                values.push(<$scalar>::decode(source)?);
                            }
                            Ok(Self::from(values))
                        })*
                        code => Err(unknown_type(source, code)),
                    },
                    code => Err(unknown_type(source, code)),
                }
            }
        }

        impl Array {
            /// How many values.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The first `n_values`, or all where there are fewer.
            #[must_use]
            pub fn head(&self, n_values: usize) -> Self {
                match self {
                    $(Self::$variant(values) => {
                        Self::$variant(values.iter().take(n_values).cloned().collect())
                    })*
                }
            }
        }
    };
}

define_values! {
    U8(u8) = 0, "u8";
    I8(i8) = 1, "i8";
    U16(u16) = 2, "u16";
    I16(i16) = 3, "i16";
    U32(u32) = 4, "u32";
    I32(i32) = 5, "i32";
    F32(f32) = 6, "f32";
    Bool(bool) = 7, "bool";
    String(String) = STRING_CODE, "string";
    U64(u64) = 10, "u64";
    I64(i64) = 11, "i64";
    F64(f64) = 12, "f64";
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

fn unknown_type(source: &Source, code: u32) -> Error {
    source.malformed(format!("a value has the unknown type {code}"))
}

/// A scalar in the file's form.
pub(super) trait Scalar: Sized {
    /// The fewest bytes that a value takes: a bound on counts before anything is allocated.
    const MIN_BYTES: u64;

    fn encode(&self, out: &mut Vec<u8>);

    fn decode(source: &mut Source) -> Result<Self>;
}

macro_rules! impl_number {
    ($($number:ty)*) => {$(
        impl Scalar for $number {
            const MIN_BYTES: u64 = size_of::<Self>() as u64;

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn decode(source: &mut Source) -> Result<Self> {
                source.bytes().map(Self::from_le_bytes)
            }
        }
    )*};
}

impl_number! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }

impl Scalar for bool {
    const MIN_BYTES: u64 = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(source: &mut Source) -> Result<Self> {
        match source.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(source.malformed(format!("a bool has the value {byte}"))),
        }
    }
}

impl Scalar for String {
    const MIN_BYTES: u64 = 8;

    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend(self.as_bytes());
    }

    fn decode(source: &mut Source) -> Result<Self> {
        source.string()
    }
}
