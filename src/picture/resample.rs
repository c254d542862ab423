//! Pillow's antialiased filters, to the bit: weights in fixed point, rounded to 8 bits after each direction
//! (`Resample.c` of Pillow 12). In floating point, what lies between two values is rounded the other way here and
//! there. Pillow 13 takes columns first where the height shrinks much more than the width, which moves some values
//! by 1 of 255; what models were trained and published with did not.

/// A filter, whose support grows with the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// A triangle.
    Bilinear,
    /// Cubic convolution with a = −0.5.
    Bicubic,
    /// A sinc in a window of three lobes.
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    match x == 0.0 {
        true => 1.0,
        false => x.sin() / x,
    }
}

/// Bits of a weight behind the point: `PRECISION_BITS`.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// Scales rows of RGB pixels, `[n_rows, from, 3]`, to a length of `to`.
pub(super) fn along_rows(pixels: &[u8], from: u32, to: u32, filter: Filter) -> Vec<u8> {
    let taps = taps(from, to, filter);
    let [from, to] = [from, to].map(|length| length as usize);
    let mut scaled = Vec::with_capacity(pixels.len() / from * to);
    for row in pixels.chunks_exact(3 * from) {
        for Taps { first, weights } in &taps {
            let mut sums = [HALF; 3];
            let (pixels, _) = row[3 * first..].as_chunks::<3>();
            for (pixel, weight) in pixels.iter().zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            scaled.extend(sums.map(rounded));
        }
    }
    scaled
}

/// Scales columns of RGB pixels, `[from, width, 3]`, to a length of `to`.
pub(super) fn along_columns(pixels: &[u8], from: u32, to: u32, filter: Filter) -> Vec<u8> {
    let row_bytes = pixels.len() / from as usize;
    let mut scaled = Vec::with_capacity(row_bytes * to as usize);
    let mut sums = vec![HALF; row_bytes];
    for Taps { first, weights } in taps(from, to, filter) {
        sums.fill(HALF);
        let rows = pixels[row_bytes * first..].chunks_exact(row_bytes);
        for (row, weight) in rows.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        scaled.extend(sums.iter().copied().map(rounded));
    }
    scaled
}

/// What is added before the bits behind the point are cut off.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

fn rounded(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// What makes up one value.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Those of each of `to` values that are made of `from` (`precompute_coeffs` and `normalize_coeffs_8bpc`).
fn taps(from: u32, to: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let of_value = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from as usize);
        let weight = |x: usize| filter.weight((x as f64 - center + 0.5) * (1.0 / filter_scale));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight / sum * f64::from(1 << WEIGHT_BITS);
            (scaled + 0.5_f64.copysign(scaled)) as i32
        };
        let weights = weights.iter().map(fixed).collect();
        Taps { first, weights }
    };
    (0..to).map(of_value).collect()
}
