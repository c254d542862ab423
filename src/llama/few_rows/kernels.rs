//! Dot products of one row of K-quantised weights with a few rows of numbers, by AVX2.
//!
//! The numbers are those of ggml's `ggml_vec_dot_q4_K_q8_K` and `ggml_vec_dot_q6_K_q8_K` (`arch/x86/quants.c` of
//! llama.cpp in llama-cpp-sys-2 0.1.161, the branch for AVX2) to the bit: sums of a block are whole numbers, and
//! those of blocks are added in the same eight lanes in the same order. What is different is that a block of weights
//! is unpacked once for all rows.

use std::arch::x86_64::*;

use llama_cpp_sys_2 as sys;

/// Numbers in a block (`QK_K` in `ggml-common.h`).
pub(super) const BLOCK: usize = 256;
/// Rows that one call of a kernel multiplies, at most: their sums stay in registers.
pub(super) const MAX_AT_ONCE: usize = 9;
/// How far ahead weights are fetched, in bytes. By themselves, processors fetch them late where the rows, which are
/// read over and over, fill the first cache: a row of 64 blocks took half as long again.
const FETCHED_AHEAD: usize = 3072;

/// `block_q4_K` (`ggml-common.h`): 8 groups of 32 weights, `d · scale · q - dmin · min`.
#[repr(C)]
struct Q4K {
    d: [u8; 2],        // f16
    dmin: [u8; 2],     // f16
    scales: [u8; 12],  // 8 scales and 8 minima of 6 bits
    qs: [[u8; 32]; 4], // groups 2i in the low halves, 2i + 1 in the high ones
}

/// `block_q6_K` (`ggml-common.h`): 16 groups of 16 weights, `d · scale · (q - 32)`.
#[repr(C)]
struct Q6K {
    ql: [[u8; 32]; 4], // the lower 4 bits
    qh: [[u8; 32]; 2], // the upper 2 bits
    scales: [i8; 16],
    d: [u8; 2], // f16
}

/// `block_q8_K` (`ggml-common.h`), as ggml quantises rows for these products.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Q8K {
    d: f32,
    qs: [[i8; 32]; 8],
    bsums: [i16; 16], // of 16 each
}

impl Q8K {
    pub(super) const ZERO: Self = Self {
        d: 0.0,
        qs: [[0; 32]; 8],
        bsums: [0; 16],
    };
}

/// The same as the kernels read it, aligned for their loads.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
pub(super) struct RowBlock {
    qs: [[i8; 32]; 8],
    sums_of_16: [i16; 16],
    sums_of_32: [i16; 8],
    d: f32,
}

impl RowBlock {
    pub(super) const ZERO: Self = Self {
        qs: [[0; 32]; 8],
        sums_of_16: [0; 16],
        sums_of_32: [0; 8],
        d: 0.0,
    };
}

impl From<&Q8K> for RowBlock {
    fn from(block: &Q8K) -> Self {
        let sum = |i: usize| block.bsums[2 * i].wrapping_add(block.bsums[2 * i + 1]);
        Self {
            qs: block.qs,
            sums_of_16: block.bsums,
            sums_of_32: std::array::from_fn(sum),
            d: block.d,
        }
    }
}

/// Multiplies a row of weights, `[n_blocks]`, with rows, `[n_blocks, n_rows]`, of which it takes as many as there
/// are sums, the first of them being `first`.
///
/// # Safety
/// The processor has what [`is_supported`] asks for, and the weights are that many blocks of the kernel's type.
pub(super) type Kernel =
    unsafe fn(weights: *const u8, rows: &[RowBlock], n_rows: usize, first: usize, sums: &mut [f32]);

/// Whether the processor has what the kernels use, and llama.cpp was compiled for it, so that it computes the same.
pub(super) fn is_supported() -> bool {
    // SAFETY: no arguments, here and below.
    let has_avx2 = unsafe { sys::ggml_cpu_has_avx2() } != 0;
    // SAFETY: see above.
    let has_fma = unsafe { sys::ggml_cpu_has_fma() } != 0;
    has_avx2
        && has_fma
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// The kernels for weights of this type, by the number of rows less one; none for types that have none.
pub(super) fn kernels(weights: sys::ggml_type) -> Option<&'static [Kernel; MAX_AT_ONCE]> {
    macro_rules! by_rows {
        ($kernel:ident) => {
            &[
                $kernel::<1>,
                $kernel::<2>,
                $kernel::<3>,
                $kernel::<4>,
                $kernel::<5>,
                $kernel::<6>,
                $kernel::<7>,
                $kernel::<8>,
                $kernel::<9>,
            ]
        };
    }
    match weights {
        sys::GGML_TYPE_Q4_K => Some(by_rows!(q4_k)),
        sys::GGML_TYPE_Q6_K => Some(by_rows!(q6_k)),
        _ => None,
    }
}

/// A row's blocks of weights, each with the blocks of the `N` rows that it is multiplied with.
///
/// # Safety
/// As [`Kernel`]; `W` is the weights' type.
unsafe fn blocks<'a, W: 'a, const N: usize>(
    weights: *const u8,
    rows: &'a [RowBlock],
    n_rows: usize,
    first: usize,
) -> impl Iterator<Item = (&'a W, &'a [RowBlock; N])> {
    const { assert!(align_of::<W>() == 1) };
    // SAFETY: there are as many blocks of weights as of each row, at any address.
    let weights = unsafe { std::slice::from_raw_parts(weights.cast(), rows.len() / n_rows) };
    let rows = rows.chunks_exact(n_rows);
    let chosen = rows.map(move |rows| rows[first..].first_chunk().expect("as many rows as sums"));
    weights.iter().zip(chosen)
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_k<const N: usize>(
    weights: *const u8,
    rows: &[RowBlock],
    n_rows: usize,
    first: usize,
    sums: &mut [f32],
) {
    let mut products = [_mm256_setzero_ps(); N];
    let mut minima = [_mm_setzero_ps(); N];
    let low_half = _mm256_set1_epi8(15);
    // SAFETY: the caller's promise.
    for (block, rows) in unsafe { blocks::<Q4K, N>(weights, rows, n_rows, first) } {
        fetch_ahead(block);
        let [d, dmin] = [block.d, block.dmin].map(|f16| from_f16(f16));
        let [scales, mins] = unpack_scales(&block.scales);
        let scales = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales)));
        let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins));
        let mut whole = [_mm256_setzero_si256(); N];
        for (i, qs) in block.qs.iter().enumerate() {
            let both = load(qs);
            let halves = [both, _mm256_srli_epi16::<4>(both)];
            for (half, qs) in halves.into_iter().enumerate() {
                let group = 2 * i + half;
                let qs = _mm256_and_si256(qs, low_half);
                let bytes_of_scale = 0x0100 + 0x0202 * group as i16;
                let scale = _mm256_shuffle_epi8(scales, _mm256_set1_epi16(bytes_of_scale));
                for (whole, row) in whole.iter_mut().zip(rows) {
                    let pairs = _mm256_maddubs_epi16(qs, load(&row.qs[group]));
                    *whole = _mm256_add_epi32(*whole, _mm256_madd_epi16(scale, pairs));
                }
            }
        }
        for (n, row) in rows.iter().enumerate() {
            let scale = _mm256_set1_ps(row.d * d);
            products[n] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(whole[n]), products[n]);
            let of_minima = _mm_madd_epi16(mins, load_half(&row.sums_of_32));
            let scale = _mm_set1_ps(-row.d * dmin);
            minima[n] = _mm_fmadd_ps(scale, _mm_cvtepi32_ps(of_minima), minima[n]);
        }
    }
    for ((sum, products), minima) in sums.iter_mut().zip(products).zip(minima) {
        *sum = sum_of_8(products) + sum_of_4(minima);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k<const N: usize>(
    weights: *const u8,
    rows: &[RowBlock],
    n_rows: usize,
    first: usize,
    sums: &mut [f32],
) {
    let mut products = [_mm256_setzero_ps(); N];
    let low_half = _mm256_set1_epi8(15);
    let upper_bits = _mm256_set1_epi8(0x30);
    // SAFETY: the caller's promise.
    for (block, rows) in unsafe { blocks::<Q6K, N>(weights, rows, n_rows, first) } {
        fetch_ahead(block);
        let d = from_f16(block.d);
        let scales = load_half(&block.scales);
        // 32 is taken from each weight, so 32 times the scaled sums from what they give.
        let scales_of_sums = _mm256_slli_epi16::<5>(_mm256_cvtepi8_epi16(scales));
        let mut whole = [_mm256_setzero_si256(); N];
        for (whole, row) in whole.iter_mut().zip(rows) {
            let of_sums = _mm256_madd_epi16(load(&row.sums_of_16), scales_of_sums);
            *whole = _mm256_sub_epi32(*whole, of_sums);
        }
        for (i, qh) in block.qh.iter().enumerate() {
            let qh = load(qh);
            let [ql_0, ql_1] = [load(&block.ql[2 * i]), load(&block.ql[2 * i + 1])];
            let quarters = [
                (ql_0, _mm256_slli_epi16::<4>(qh)),
                (ql_1, _mm256_slli_epi16::<2>(qh)),
                (_mm256_srli_epi16::<4>(ql_0), qh),
                (_mm256_srli_epi16::<4>(ql_1), _mm256_srli_epi16::<2>(qh)),
            ];
            for (quarter, (low, high)) in quarters.into_iter().enumerate() {
                let group = 4 * i + quarter; // of 32, with two scales
                let low = _mm256_and_si256(low, low_half);
                let qs = _mm256_or_si256(low, _mm256_and_si256(high, upper_bits));
                let first_scale = 0x0101_0101_0101_0101 * 2 * group as i64;
                let which = _mm_set_epi64x(first_scale + 0x0101_0101_0101_0101, first_scale);
                let scale = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, which));
                for (whole, row) in whole.iter_mut().zip(rows) {
                    let pairs = _mm256_maddubs_epi16(qs, load(&row.qs[group]));
                    *whole = _mm256_add_epi32(*whole, _mm256_madd_epi16(scale, pairs));
                }
            }
        }
        for (n, row) in rows.iter().enumerate() {
            let scale = _mm256_set1_ps(row.d * d);
            products[n] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(whole[n]), products[n]);
        }
    }
    for (sum, products) in sums.iter_mut().zip(products) {
        *sum = sum_of_8(products);
    }
}

/// Fetches weights behind a block, which may be beyond the last one.
fn fetch_ahead<W>(block: &W) {
    for line in (0..size_of::<W>()).step_by(64) {
        let address = std::ptr::from_ref(block).cast::<i8>();
        // SAFETY: any address may be fetched, or none is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(FETCHED_AHEAD + line)) };
    }
}

/// The 8 scales and 8 minima of [`Q4K::scales`], a byte each.
fn unpack_scales(packed: &[u8; 12]) -> [i64; 2] {
    let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|byte| packed[4 * i + byte]));
    let [low_scales, low_mins, rest] = [word(0), word(1), word(2)];
    let both = |low: u32, rest: u32| {
        let high = (rest & 0x0f0f_0f0f) | ((low >> 6 & 0x0303_0303) << 4);
        i64::from(low & 0x3f3f_3f3f) | i64::from(high) << 32
    };
    [both(low_scales, rest), both(low_mins, rest >> 4)]
}

#[target_feature(enable = "f16c")]
fn from_f16(bytes: [u8; 2]) -> f32 {
    let bits = i32::from(u16::from_le_bytes(bytes));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

#[target_feature(enable = "avx2")]
fn load<T>(from: &T) -> __m256i {
    const { assert!(size_of::<T>() == 32) };
    // SAFETY: 32 bytes, at any address.
    unsafe { _mm256_loadu_si256(std::ptr::from_ref(from).cast()) }
}

#[target_feature(enable = "avx2")]
fn load_half<T>(from: &T) -> __m128i {
    const { assert!(size_of::<T>() == 16) };
    // SAFETY: 16 bytes, at any address.
    unsafe { _mm_loadu_si128(std::ptr::from_ref(from).cast()) }
}

/// `hsum_float_8` in `arch/x86/quants.c`.
#[target_feature(enable = "avx2")]
fn sum_of_8(x: __m256) -> f32 {
    let high = _mm256_extractf128_ps::<1>(x);
    sum_of_4(_mm_add_ps(high, _mm256_castps256_ps128(x)))
}

#[target_feature(enable = "avx2")]
fn sum_of_4(x: __m128) -> f32 {
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}
