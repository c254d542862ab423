//! The encoder of an SAE: rows to active features.
//!
//! Where the SAE's file has a screen, the encoder in q8_0, rows are multiplied with that, which reads
//! half the bytes of f16, and only the features that can be active are computed from the encoder itself:
//! in f32, from the rows as they are. A runtime may round a row `x` to `x̂` in q8_0 for such a product, as
//! ggml does, so the pre-activation is at most
//!
//! ```text
//! x̂·ŵ + b + ‖x‖·‖w − ŵ‖ + ‖x − x̂‖·‖ŵ‖
//! ```
//!
//! by Cauchy and Schwarz. A feature is left out where that is not above its threshold, and with top-k
//! where it is below what `k` others reach at least; so the features are those that computing all of
//! them gives.

use std::sync::Arc;

use gguf_tools::sae::{Architecture, EncoderScreen};
use half::f16;

use crate::Result;
use crate::activations::Activations;
use crate::normalization::{is_folded, normalize_row};
use crate::product::{InMemory, MatrixRows, RowProduct, dot};
use crate::sae::Sae;

/// Rows that are multiplied at once: their products, some megabytes, stay in the processor's cache.
const BLOCK_ROWS: usize = 128;
/// Values that share a scale in q8_0.
const Q8_0_BLOCK: usize = 32;
/// Features that are looked at together.
const LANES: usize = 16;
/// The number of multiplications for which starting threads pays.
const MIN_SHARED: usize = 8 << 20;

/// Encodes with one SAE.
pub struct Encoder {
    sae: Arc<Sae>,
    product: Box<dyn RowProduct>, // with the screen, or with the encoder where there is none
    screen: Option<Screen>,
    inputs: Vec<f32>, // [n_rows, d_in], as the SAE was trained on them, reused
    candidates: Activations, // of a block of rows, reused
    largest: Vec<(f32, u32)>, // a row's pre-activations above 0 with their features, reused
}

impl Encoder {
    /// An encoder that multiplies rows with `W_enc` by `product`.
    pub fn new(sae: Arc<Sae>, product: Box<dyn RowProduct>) -> Self {
        Self {
            sae,
            product,
            screen: None,
            inputs: Vec::new(),
            candidates: Activations::default(),
            largest: Vec::new(),
        }
    }

    /// An encoder that multiplies rows with the screen of the SAE's file by `product`, and with single rows
    /// of `W_enc` by `weights`, on `threads` threads where it pays.
    pub fn with_screen(
        sae: Arc<Sae>,
        product: Box<dyn RowProduct>,
        screen: EncoderScreen,
        weights: Box<dyn MatrixRows>,
        threads: usize,
    ) -> Self {
        Self {
            screen: Some(Screen::new(&sae, screen, weights, threads)),
            ..Self::new(sae, product)
        }
    }

    /// An encoder without a runtime, which holds `W_enc` in f32.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn in_memory(sae: Arc<Sae>) -> Result<Self> {
        let product = InMemory::new(sae.w_enc()?, sae.meta().d_in);
        Ok(Self::new(sae, Box::new(product)))
    }

    /// Its SAE.
    pub fn sae(&self) -> &Arc<Sae> {
        &self.sae
    }

    /// Appends the active features of `rows`, `[n_rows, d_in]`, to `out`:
    /// `h = (x − b_dec) · W_enc + b_enc` with `x` normalised as the SAE was trained, active where
    /// `h > threshold`, and of these the `k` largest with a top-k SAE (`SAELens`, `saes/*_sae.py`).
    ///
    /// # Errors
    /// When the runtime fails.
    pub fn encode(&mut self, rows: &[f32], out: &mut Activations) -> Result<()> {
        let meta = self.sae.meta();
        if self.sae.subtracted().is_empty() && is_folded(meta) {
            return self.encode_prepared(rows, out);
        }
        let mut inputs = std::mem::take(&mut self.inputs);
        inputs.clear();
        inputs.extend_from_slice(rows);
        for row in inputs.chunks_exact_mut(meta.d_in) {
            normalize_row(meta, row);
            for (x, b) in row.iter_mut().zip(self.sae.subtracted()) {
                *x -= b;
            }
        }
        let encoded = self.encode_prepared(&inputs, out);
        self.inputs = inputs;
        encoded
    }

    /// The same for rows that are already as the SAE was trained on them.
    fn encode_prepared(&mut self, inputs: &[f32], out: &mut Activations) -> Result<()> {
        let d_in = self.product.n_in();
        let (b_enc, threshold) = (self.sae.b_enc(), self.sae.threshold());
        for inputs in inputs.chunks(BLOCK_ROWS * d_in) {
            let products = self.product.apply(inputs)?;
            let products = products.chunks_exact(b_enc.len());
            self.candidates.clear();
            for (x, products) in inputs.chunks_exact(d_in).zip(products) {
                match &mut self.screen {
                    Some(screen) => {
                        screen.push_candidates(b_enc, x, products, &mut self.candidates);
                    }
                    None => {
                        for (feature, (product, b)) in products.iter().zip(b_enc).enumerate() {
                            let h = product + b;
                            if h > threshold[feature] {
                                self.candidates.push(feature, h);
                            }
                        }
                    }
                }
                self.candidates.finish_row();
            }
            if let Some(screen) = &mut self.screen {
                screen.compute(b_enc, inputs, &mut self.candidates);
            }
            for row_idx in 0..self.candidates.n_rows() {
                let active = self.candidates.row(row_idx);
                let active = active.filter(|&(feature, h)| h > threshold[feature]);
                match k(&self.sae) {
                    Some(k) => push_largest(active, k, &mut self.largest, out),
                    None => active.for_each(|(feature, h)| out.push(feature, h)),
                }
                out.finish_row();
            }
        }
        Ok(())
    }
}

/// How many features of a row are kept, with a top-k SAE.
fn k(sae: &Sae) -> Option<usize> {
    match sae.meta().architecture {
        Architecture::TopK { k } => Some(k),
        Architecture::Standard | Architecture::JumpRelu => None,
    }
}

/// What a screen's product says about features, and the encoder's rows for those that remain.
struct Screen {
    error: Vec<f32>,  // ‖w − ŵ‖, [d_sae]
    norm: Vec<f32>,   // ‖ŵ‖, [d_sae]
    margin: Vec<f32>, // b_enc − threshold, [d_sae]
    slack: Vec<f32>,  // what sums with these are rounded by, at most, [d_sae]
    k: Option<usize>,
    largest: [f32; 3], // of `error`, `norm` and `slack`
    weights: Box<dyn MatrixRows>,
    threads: usize,
    lower: Vec<f32>, // what features reach at least, reused
    order: Vec<u32>, // candidates by feature, reused
}

impl Screen {
    fn new(sae: &Sae, screen: EncoderScreen, weights: Box<dyn MatrixRows>, threads: usize) -> Self {
        let largest = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        let terms = || sae.b_enc().iter().zip(sae.threshold());
        let slack: Vec<f32> = terms()
            .map(|(b, t)| 4.0 * f32::EPSILON * (b.abs() + t))
            .collect();
        Self {
            largest: [&screen.error, &screen.norm, &slack].map(|values| largest(values)),
            error: screen.error,
            norm: screen.norm,
            margin: terms().map(|(b, t)| b - t).collect(),
            slack,
            k: k(sae),
            weights,
            threads,
            lower: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Appends the features that can be active in the row `x`, whose products with the screen are given,
    /// with no activation yet.
    fn push_candidates(
        &mut self,
        b_enc: &[f32],
        x: &[f32],
        products: &[f32],
        out: &mut Activations,
    ) {
        let [of_error, of_norm] = uncertainty(x);
        let of = |error: f32, norm: f32, slack: f32| of_error * error + of_norm * norm + slack;
        let uncertainty =
            |feature: usize| of(self.error[feature], self.norm[feature], self.slack[feature]);
        let floor = match self.k {
            None => f32::NEG_INFINITY,
            Some(k) => {
                self.lower.clear();
                let biased = products.iter().zip(b_enc).enumerate();
                let lower =
                    biased.map(|(feature, (product, b))| product + b - uncertainty(feature));
                self.lower.extend(lower);
                // What the k-th of them reaches at least.
                let (_, kth, _) = self
                    .lower
                    .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                *kth
            }
        };
        // Sums that are no number say nothing, so such features are computed.
        let is_beyond = |sum: f32| sum > 0.0 || sum.is_nan();
        let [error, norm, slack] = self.largest;
        let most = of(error, norm, slack);
        let lanes = products.chunks(LANES).zip(self.margin.chunks(LANES));
        for (i, (products, margins)) in lanes.enumerate() {
            // Nearly all features are far below their thresholds, which takes two numbers each to see.
            let sums = products
                .iter()
                .zip(margins)
                .map(|(product, margin)| product + margin + most);
            if !sums.fold(false, |any, sum| any | is_beyond(sum)) {
                continue;
            }
            for (lane, (product, margin)) in products.iter().zip(margins).enumerate() {
                let feature = i * LANES + lane;
                let uncertainty = uncertainty(feature);
                let is_below_floor = product + b_enc[feature] + uncertainty < floor;
                if is_beyond(product + margin + uncertainty) && !is_below_floor {
                    out.push(feature, 0.0);
                }
            }
        }
    }

    /// Computes the candidates' pre-activations in the rows `inputs`.
    fn compute(&mut self, b_enc: &[f32], inputs: &[f32], candidates: &mut Activations) {
        let d_in = inputs.len() / candidates.n_rows().max(1);
        let n_candidates = candidates.n_active();
        // By feature, so that each row of the encoder is read once.
        self.order.clear();
        self.order.extend(0..n_candidates as u32);
        let (features, rows) = candidates.places();
        self.order.sort_unstable_by_key(|&i| features[i as usize]);
        let weights = &self.weights;
        let compute = |order: &[u32]| {
            let mut buffer = Vec::new();
            let mut computed = Vec::with_capacity(order.len());
            for places in order.chunk_by(|&a, &b| features[a as usize] == features[b as usize]) {
                let feature = features[places[0] as usize] as usize;
                let w = weights.row(feature, &mut buffer);
                for &place in places {
                    let x = &inputs[rows[place as usize] * d_in..][..d_in];
                    computed.push((place, weights.dot(x, w) + b_enc[feature]));
                }
            }
            computed
        };
        let n_parts = match n_candidates * d_in {
            0..MIN_SHARED => 1,
            _ => self.threads.max(1),
        };
        let part = n_candidates.div_ceil(n_parts).max(1);
        let computed: Vec<Vec<(u32, f32)>> = std::thread::scope(|scope| {
            let mut parts = self.order.chunks(part);
            let own = parts.next();
            let compute = &compute;
            let others: Vec<_> = parts
                .map(|part| scope.spawn(move || compute(part)))
                .collect();
            let own = own.map(compute).into_iter();
            let others = others
                .into_iter()
                .map(|other| other.join().expect("no panic"));
            own.chain(others).collect()
        });
        for (place, h) in computed.into_iter().flatten() {
            candidates.set_value(place as usize, h);
        }
    }
}

/// What a feature's `‖w − ŵ‖` and `‖ŵ‖` are to be multiplied by, for the row `x`.
fn uncertainty(x: &[f32]) -> [f32; 2] {
    let (length, rounding) = (dot(x, x).sqrt(), rounding(x));
    // The product with the screen is a sum of blocks in f32, and that with the encoder one of some 64
    // sums side by side; more is added to both.
    let n_sums = (x.len() / Q8_0_BLOCK + 64) as f32;
    let of_sums = n_sums * f32::EPSILON * (length + rounding);
    // The bound itself is computed in f32.
    let slack = 1.0 + 1e-4;
    [slack * length, slack * (rounding + of_sums)]
}

/// `‖x − x̂‖`, `x̂` being the row in q8_0 (`quantize_row_q8_0` in ggml's `ggml-quants.c`): ties go to even
/// here, which changes no distance.
fn rounding(x: &[f32]) -> f32 {
    // Adding it leaves no fraction, and subtracting it the nearest integer, below 2^22.
    const ROUND: f32 = 12_582_912.0;
    let of_block = |block: &[f32]| -> f32 {
        let max = block
            .iter()
            .fold(0.0_f32, |max, value| max.max(value.abs()));
        let scale = max / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let stored = f16::from_f32(scale).to_f32();
        let squares = block.iter().map(|value| {
            let difference = value - stored * ((value * inverse + ROUND) - ROUND);
            difference * difference
        });
        squares.sum()
    };
    x.chunks_exact(Q8_0_BLOCK).map(of_block).sum::<f32>().sqrt()
}

/// Appends the `k` largest of `active` by rising feature; of equal ones, those with lower indices.
fn push_largest(
    active: impl Iterator<Item = (usize, f32)>,
    k: usize,
    largest: &mut Vec<(f32, u32)>,
    out: &mut Activations,
) {
    largest.clear();
    largest.extend(active.map(|(feature, h)| (h, feature as u32)));
    if largest.len() > k {
        largest.select_nth_unstable_by(k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        largest.truncate(k);
        largest.sort_unstable_by_key(|entry| entry.1);
    }
    for &(h, feature) in &*largest {
        out.push(feature as usize, h);
    }
}
