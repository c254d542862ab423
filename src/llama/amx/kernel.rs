//! Panels of 32 rows in bfloat16, and their products by AMX's tiles.
//!
//! The instructions and the layout of tiles are those of Intel's "Intel 64 and IA-32 Architectures Software Developer's
//! Manual", volume 1, chapter 18, and volume 2 (`TDPBF16PS`).

use std::arch::asm;
use std::arch::x86_64::*;
use std::ffi::c_long;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

/// Rows of a tile, and pairs of numbers in each.
const TILE: usize = 16;
/// Rows of a panel: two tiles.
pub(super) const PANEL: usize = 2 * TILE;
/// Numbers of each row that one instruction takes.
pub(super) const STEP: usize = 2 * TILE;

/// `[16, 16]` pairs of bfloat16, the first in the lower half, or numbers in f32.
type Tile = [[u32; TILE]; TILE];

/// The next 32 numbers of a panel's rows: two tiles of upper parts, two of lower ones. Of weights, a tile's rows are
/// the panel's; of what they are multiplied with, its columns are.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Step([Tile; 4]);

/// Sums of a panel of weights with a panel of rows: `[2 of weights, 2 of rows]` tiles, of `[16 weights, 16 rows]` each.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Sums([Tile; 4]);

impl Step {
    pub(super) const ZERO: Self = Self([[[0; TILE]; TILE]; 4]);
}

impl Sums {
    pub(super) const ZERO: Self = Self([[[0; TILE]; TILE]; 4]);
}

/// Whether the processor and the system have what the kernel uses, and llama.cpp was compiled for AVX-512, without which
/// a program is meant for lesser processors, as in tests. The first call asks Linux for the units, which it grants to a
/// process.
pub(in crate::llama) fn is_supported() -> bool {
    static IS_SUPPORTED: OnceLock<bool> = OnceLock::new();
    *IS_SUPPORTED.get_or_init(|| {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        // SAFETY: no arguments.
        let is_meant = unsafe { sys::ggml_cpu_has_avx512() } != 0;
        is_meant && has_avx2 && has_tiles() && is_granted()
    })
}

/// Whether the processor has AMX-TILE and AMX-BF16.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    #[allow(unused_unsafe)] // it is safe since Rust 1.94
    // SAFETY: processors with AVX2 have CPUID with this leaf.
    let features = unsafe { __cpuid_count(7, 0) };
    features.edx & (BF16 | TILES) == BF16 | TILES
}

/// Asks Linux for the tiles' registers (`Documentation/arch/x86/xstate.rst` in its source); false where it has none.
fn is_granted() -> bool {
    const SYS_ARCH_PRCTL: c_long = 158;
    const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
    const XFEATURE_XTILEDATA: c_long = 18;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    // SAFETY: a system call of two numbers, which changes nothing but what the process may use.
    unsafe { syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Packs weights of a panel, up to `STEP` in f16 of each row; what is missing is zero.
///
/// # Safety
/// The processor has AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn pack_weights<'w>(step: &mut Step, rows: impl Iterator<Item = &'w [u8]>) {
    *step = Step::ZERO;
    for (idx, row) in rows.enumerate() {
        let mut halves = [[0_u8; 16]; STEP / 8];
        halves.as_flattened_mut()[..row.len()].copy_from_slice(row);
        let parts = split(halves.map(|halves| {
            // SAFETY: 16 bytes.
            let halves = unsafe { _mm_loadu_si128(halves.as_ptr().cast()) };
            _mm256_cvtph_ps(halves)
        }));
        step.put(idx, parts);
    }
}

/// Packs numbers of a panel's rows, up to `STEP` of each; what is missing is zero.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn pack_rows<'r>(step: &mut Step, rows: impl Iterator<Item = &'r [f32]>) {
    *step = Step::ZERO;
    for (idx, row) in rows.enumerate() {
        let mut values = [[0.0; 8]; STEP / 8];
        values.as_flattened_mut()[..row.len()].copy_from_slice(row);
        step.put(idx, split(values.map(|values| load(&values))));
    }
    for tile in &mut step.0 {
        *tile = transposed(tile);
    }
}

impl Step {
    /// Writes a row's upper and lower parts.
    fn put(&mut self, row: usize, [upper, lower]: [[u32; TILE]; 2]) {
        self.0[row / TILE][row % TILE] = upper;
        self.0[2 + row / TILE][row % TILE] = lower;
    }
}

#[target_feature(enable = "avx2")]
fn load(values: &[f32; 8]) -> __m256 {
    // SAFETY: eight numbers.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Numbers as sums of two in bfloat16, both rounded.
#[target_feature(enable = "avx2")]
fn split(values: [__m256; STEP / 8]) -> [[u32; TILE]; 2] {
    let rounded = |x| _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x8000));
    let upper = values.map(|x| _mm256_and_si256(rounded(x), _mm256_set1_epi32(!0xffff)));
    let rest = |i: usize| _mm256_sub_ps(values[i], _mm256_castsi256_ps(upper[i]));
    let lower = std::array::from_fn(|i| rounded(rest(i)));
    [upper, lower].map(|part| {
        let halves = part.map(|eight| _mm256_srli_epi32::<16>(eight));
        let mut packed = [[0_u32; 8]; 2];
        for (target, i) in packed.iter_mut().zip([0, 2]) {
            let packed = _mm256_packus_epi32(halves[i], halves[i + 1]); // by halves of registers
            let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: room for eight pairs.
            unsafe { _mm256_storeu_si256(target.as_mut_ptr().cast(), in_order) };
        }
        std::array::from_fn(|i| packed[i / 8][i % 8])
    })
}

/// A tile with rows and columns exchanged.
#[target_feature(enable = "avx2")]
fn transposed(tile: &Tile) -> Tile {
    let mut out = [[0; TILE]; TILE];
    for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
        let rows: [__m256; 8] = std::array::from_fn(|i| {
            let row: &[u32; 8] = tile[row + i][column..][..8].try_into().expect("eight");
            // SAFETY: eight numbers.
            unsafe { _mm256_loadu_ps(row.as_ptr().cast()) }
        });
        // Pairs of rows, then pairs of pairs, each by halves of registers.
        let pairs: [__m256; 8] = std::array::from_fn(|i| {
            let [a, b] = [rows[i / 2 * 2], rows[i / 2 * 2 + 1]];
            match i % 2 {
                0 => _mm256_unpacklo_ps(a, b),
                _ => _mm256_unpackhi_ps(a, b),
            }
        });
        let fours: [__m256; 8] = std::array::from_fn(|i| {
            let first = i / 4 * 4 + i % 4 / 2;
            let [a, b] = [pairs[first], pairs[first + 2]];
            match i % 2 {
                0 => _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
                _ => _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
            }
        });
        for i in 0..4 {
            let first = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
            let second = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
            for (column, values) in [(column + i, first), (column + 4 + i, second)] {
                let target = &mut out[column][row..row + 8];
                // SAFETY: room for eight numbers.
                unsafe { _mm256_storeu_ps(target.as_mut_ptr().cast(), values) };
            }
        }
    }
    out
}

impl Sums {
    /// The sums of each row, `[32 rows, 32 weights]`.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn by_row(&self) -> [[f32; PANEL]; PANEL] {
        let mut rows = [[0.0; PANEL]; PANEL];
        for (idx, tile) in self.0.iter().enumerate() {
            let (weights, first_row) = (idx / 2 * TILE, idx % 2 * TILE);
            for (row, sums) in rows[first_row..].iter_mut().zip(transposed(tile)) {
                row[weights..weights + TILE].copy_from_slice(&sums.map(f32::from_bits));
            }
        }
        rows
    }
}

/// How the eight tiles are used: all of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

static TILE_CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_of_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Adds the products of a panel of weights and a panel of rows to their sums.
///
/// # Safety
/// [`is_supported`].
pub(super) unsafe fn multiply(weights: &[Step], rows: &[Step], sums: &mut Sums) {
    let n_steps = weights.len().min(rows.len());
    if n_steps == 0 {
        return;
    }
    // Tiles 0 to 3 are the sums, 4 and 5 weights, 6 and 7 rows. The lower parts of rows come first, so that the
    // upper ones are there for both parts of the weights.
    // SAFETY: the system has granted the tiles; all that is read and written are these steps and sums. Nothing of the
    // tiles stays.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{sums} + {stride}]",
            "tileloadd tmm1, [{sums} + {stride} + 1024]",
            "tileloadd tmm2, [{sums} + {stride} + 2048]",
            "tileloadd tmm3, [{sums} + {stride} + 3072]",
            "2:",
            "tileloadd tmm4, [{weights} + {stride}]",
            "tileloadd tmm6, [{rows} + {stride} + 2048]",
            "tileloadd tmm5, [{weights} + {stride} + 1024]",
            "tileloadd tmm7, [{rows} + {stride} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm6, [{rows} + {stride}]",
            "tileloadd tmm7, [{rows} + {stride} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm4, [{weights} + {stride} + 2048]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm5, [{weights} + {stride} + 3072]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {weights}, 4096",
            "add {rows}, 4096",
            "dec {n_steps}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilestored [{sums} + {stride} + 1024], tmm1",
            "tilestored [{sums} + {stride} + 2048], tmm2",
            "tilestored [{sums} + {stride} + 3072], tmm3",
            "tilerelease",
            config = in(reg) &raw const TILE_CONFIG,
            stride = in(reg) 64_usize,
            sums = in(reg) sums,
            weights = inout(reg) weights.as_ptr() => _,
            rows = inout(reg) rows.as_ptr() => _,
            n_steps = inout(reg) n_steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
