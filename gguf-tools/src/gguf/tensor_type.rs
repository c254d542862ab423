//! The number formats of tensors, and the conversions between them and f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Values that share a scale in q8_0 (`QK8_0` in ggml).
const Q8_0_BLOCK: usize = 32;

/// Bytes of a q8_0 block: the scale as f16, then one i8 a value.
const Q8_0_BLOCK_BYTES: usize = 2 + Q8_0_BLOCK;

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 values: an f16 scale, then an i8 a value.
    Q8_0,
    /// Any other format, by ggml's number for it: listed, but neither converted nor written.
    Other(u32),
}

/// ggml's other formats: number, name, values of a block, bytes of a block
/// (`ggml/include/ggml.h`, `ggml/src/ggml-common.h`).
const OTHERS: [(u32, &str, usize, usize); 31] = [
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (9, "q8_1", 32, 36),
    (10, "q2_K", 256, 84),
    (11, "q3_K", 256, 110),
    (12, "q4_K", 256, 144),
    (13, "q5_K", 256, 176),
    (14, "q6_K", 256, 210),
    (15, "q8_K", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (41, "q1_0", 128, 18),
    (42, "q2_0", 64, 18),
];

/// The formats that ggml has removed, which old files may have: number, name, and the format to
/// use instead.
const REMOVED: [(u32, &str, &str); 8] = [
    (4, "q4_2", "q4_0"),
    (5, "q4_3", "q4_1"),
    (31, "q4_0_4_4", "q4_0"),
    (32, "q4_0_4_8", "q4_0"),
    (33, "q4_0_8_8", "q4_0"),
    (36, "iq4_nl_4_4", "iq4_nl"),
    (37, "iq4_nl_4_8", "iq4_nl"),
    (38, "iq4_nl_8_8", "iq4_nl"),
];

impl TensorType {
    /// The format with ggml's number `code`, if it is known.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            8 => Some(Self::Q8_0),
            30 => Some(Self::Bf16),
            _ => OTHERS
                .iter()
                .any(|other| other.0 == code)
                .then_some(Self::Other(code)),
        }
    }

    /// Name and successor of the format that had ggml's number `code`, if it has been removed.
    pub(super) fn removed(code: u32) -> Option<(&'static str, &'static str)> {
        let found = REMOVED.iter().find(|removed| removed.0 == code);
        found.map(|&(_, name, instead)| (name, instead))
    }

    /// ggml's number for the format.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
            Self::Other(code) => code,
        }
    }

    /// ggml's name for the format, such as `q4_K`.
    pub fn name(self) -> &'static str {
        self.layout().map_or("unknown", |(name, _, _)| name)
    }

    /// Bytes of a row of `n_columns` values; `None` if blocks do not divide it, or the format is
    /// unknown.
    pub fn row_bytes(self, n_columns: usize) -> Option<usize> {
        let (_, block, block_bytes) = self.layout()?;
        if !n_columns.is_multiple_of(block) {
            return None;
        }
        (n_columns / block).checked_mul(block_bytes)
    }

    /// Name, values of a block, bytes of a block.
    fn layout(self) -> Option<(&'static str, usize, usize)> {
        match self {
            Self::F32 => Some(("f32", 1, 4)),
            Self::F16 => Some(("f16", 1, 2)),
            Self::Bf16 => Some(("bf16", 1, 2)),
            Self::Q8_0 => Some(("q8_0", Q8_0_BLOCK, Q8_0_BLOCK_BYTES)),
            Self::Other(code) => OTHERS
                .iter()
                .find(|other| other.0 == code)
                .map(|&(_, name, block, block_bytes)| (name, block, block_bytes)),
        }
    }

    /// Whether values of this format can be converted from and to f32 here.
    pub(super) fn is_convertible(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// Whether `value` is finite and stays so in this format.
    pub(super) fn can_hold(self, value: f32) -> bool {
        let limit = match self {
            // Halfway to the next power of two, from where f16 rounds to infinity.
            Self::F16 => 65520.0,
            // The block's scale, a 127th of its largest value, is an f16.
            Self::Q8_0 => 65520.0 * 127.0,
            // As for f16: half a unit in the last place above the largest bf16.
            Self::Bf16 => f32::from_bits(0x7f7f_8000),
            Self::F32 | Self::Other(_) => f32::INFINITY,
        };
        value.abs() < limit
    }

    /// Appends `row` in this format to `out`, bit for bit as ggml's reference quantisation does
    /// (`quantize_row_q8_0_ref` in `ggml/src/ggml-quants.c`); f16 and bf16 round to nearest, ties
    /// to even.
    ///
    /// # Panics
    /// For [`TensorType::Other`], or if blocks do not divide the row.
    pub fn quantize(self, row: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(row.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => {
                for values in row.chunks(Q8_0_BLOCK) {
                    let mut halves = [f16::ZERO; Q8_0_BLOCK];
                    let halves = &mut halves[..values.len()];
                    halves.convert_from_f32_slice(values);
                    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
                }
            }
            Self::Bf16 => {
                out.extend(
                    row.iter()
                        .flat_map(|&value| bf16::from_f32(value).to_le_bytes()),
                );
            }
            Self::Q8_0 => {
                assert_eq!(row.len() % Q8_0_BLOCK, 0, "q8_0 rows are whole blocks");
                for block in row.chunks_exact(Q8_0_BLOCK) {
                    quantize_q8_0_block(block, out);
                }
            }
            Self::Other(code) => panic!("no conversion to ggml type {code}"),
        }
    }

    /// Converts the bytes of one row to f32.
    ///
    /// # Panics
    /// For [`TensorType::Other`], or if `bytes` are not those of `out.len()` values.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.row_bytes(out.len()),
            Some(bytes.len()),
            "bytes and values of one row"
        );
        match self {
            Self::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Q8_0 => {
                let blocks = bytes.as_chunks::<Q8_0_BLOCK_BYTES>().0;
                for (values, block) in out.chunks_exact_mut(Q8_0_BLOCK).zip(blocks) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (value, &quant) in values.iter_mut().zip(&block[2..]) {
                        *value = f32::from(quant.cast_signed()) * scale;
                    }
                }
            }
            Self::Other(code) => panic!("no conversion from ggml type {code}"),
        }
    }
}

fn quantize_q8_0_block(block: &[f32], out: &mut Vec<u8>) {
    let max = block
        .iter()
        .fold(0.0_f32, |max, value| max.max(value.abs()));
    let scale = max / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out.extend(f16::from_f32(scale).to_le_bytes());
    // The quotients are in -127..=127; ggml rounds halves away from zero, as `round` does.
    out.extend(
        block
            .iter()
            .map(|value| ((value * inverse).round() as i8).cast_unsigned()),
    );
}
