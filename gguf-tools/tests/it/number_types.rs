//! Number types against answers of ggml and of the formats' definitions.

use gguf_tools::gguf::TensorType;

fn quantize(tensor_type: TensorType, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    tensor_type.quantize(values, &mut bytes);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn f16_rounds_to_nearest_even() {
    let check = |value: f32, bits: u16| {
        assert_eq!(
            quantize(TensorType::F16, &[value]),
            bits.to_le_bytes(),
            "{value}"
        );
    };
    check(0.0, 0x0000);
    check(-0.0, 0x8000);
    check(1.0, 0x3c00);
    check(-2.5, 0xc100);
    check(65504.0, 0x7bff);
    // Halfway between 1 and the next f16, 1 + 2^-10: to the even one. And above the next one.
    check(1.0 + 2.0_f32.powi(-11), 0x3c00);
    check(1.0 + 3.0 * 2.0_f32.powi(-11), 0x3c02);
    // The smallest subnormal, and half of it.
    check(2.0_f32.powi(-24), 0x0001);
    check(2.0_f32.powi(-25), 0x0000);
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let check = |bits: u32, expected: u16| {
        let bytes = quantize(TensorType::Bf16, &[f32::from_bits(bits)]);
        assert_eq!(bytes, expected.to_le_bytes(), "{bits:08x}");
    };
    check(0x3f80_0000, 0x3f80);
    check(0x3f80_8000, 0x3f80);
    check(0x3f81_8000, 0x3f82);
    check(0x3f80_8001, 0x3f81);
    check(0xc2f7_1234, 0xc2f7);
}

/// The expected bytes are from ggml's `quantize_row_q8_0_ref`, compiled by itself.
#[test]
fn q8_0_is_bit_identical_with_ggml() {
    let value = |i: usize| {
        let number = ((i * i * 37 + 11 * i) % 509) as f32 - 254.0;
        number / 97.0 * (i / 32 + 1) as f32
    };
    let values: Vec<f32> = (0..3200).map(value).collect();
    let bytes = quantize(TensorType::Q8_0, &values);
    assert_eq!(
        hex(&bytes[..34]),
        "47258199d638c06d3f375396fd893a110d2e74e1712703032973e479341418439307"
    );
    // FNV-1a of all 100 blocks.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(hash, 0xce3a_80d2_2578_55f6);
}

#[test]
fn q8_0_rounds_halves_away_from_zero() {
    let mut values = [0.0; 32];
    values[..5].copy_from_slice(&[127.0, 0.5, -0.5, 2.5, -2.5]);
    let bytes = quantize(TensorType::Q8_0, &values);
    // A scale of 1 as f16, then the quotients.
    assert_eq!(hex(&bytes[..7]), "003c7f01ff03fd");
    assert_eq!(quantize(TensorType::Q8_0, &[0.0; 32]), [0; 34]);
}

#[test]
fn dequantize_undoes_quantize() {
    let check = |tensor_type: TensorType, tolerance: f32| {
        let values = super::random_values(3, 128);
        let bytes = quantize(tensor_type, &values);
        assert_eq!(tensor_type.row_bytes(values.len()), Some(bytes.len()));
        let mut read = vec![0.0; values.len()];
        tensor_type.dequantize(&bytes, &mut read);
        for (value, read) in values.iter().zip(&read) {
            assert!(
                (value - read).abs() <= tolerance,
                "{tensor_type:?}: {value} became {read}"
            );
        }
    };
    check(TensorType::F32, 0.0);
    // Below 1, half a unit in the last place is 2^-12 and 2^-9.
    check(TensorType::F16, 2.0_f32.powi(-12));
    check(TensorType::Bf16, 2.0_f32.powi(-9));
    // Half a step of 1/127, and the rounding of the scale to f16: 127 · 2^-12 steps at most.
    check(TensorType::Q8_0, 0.54 / 127.0);
}

#[test]
fn rows_have_the_sizes_that_ggml_gives_them() {
    let check = |tensor_type: TensorType, n_columns, expected| {
        assert_eq!(
            tensor_type.row_bytes(n_columns),
            expected,
            "{}",
            tensor_type.name()
        );
    };
    check(TensorType::F32, 33, Some(132));
    check(TensorType::Q8_0, 64, Some(68));
    check(TensorType::Q8_0, 33, None);
    check(TensorType::Other(12), 512, Some(288));
    check(TensorType::Other(12), 32, None);
    check(TensorType::Other(4), 32, None);
    assert_eq!(TensorType::Other(12).name(), "q4_K");
    assert_eq!(TensorType::Bf16.name(), "bf16");
}
