//! Interventions on the residual stream: pure edits of rows. Nothing here knows llama.cpp.

use std::collections::BTreeMap;

use crate::tokens::TokenKind;
use crate::{Error, Result};

/// One change of one feature.
#[derive(Clone, Debug, PartialEq)]
pub enum Intervention {
    /// `x += strength · W_dec[feature]`, the decoder direction as trained (not normalised), no
    /// bias: as `SAELens` and the original experiment steer.
    Add {
        /// The feature's index.
        feature: usize,
        /// How many decoder directions are added; negative subtracts.
        strength: f32,
    },
}

/// Which positions an intervention touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Image rows.
    pub image: bool,
    /// The prompt's text, before generation.
    pub prompt: bool,
    /// Generated tokens.
    pub generated: bool,
}

impl Positions {
    /// Every position, the original experiment's choice.
    pub const ALL: Self = Self {
        image: true,
        prompt: true,
        generated: true,
    };
    const NONE: Self = Self {
        image: false,
        prompt: false,
        generated: false,
    };

    /// Reads `all`, `image`, `prompt`, `generated`, or a comma-separated list of them.
    ///
    /// # Errors
    /// An empty list or an unknown word.
    pub fn parse(list: &str) -> Result<Self> {
        let mut positions = Self::NONE;
        for word in list.split(',') {
            match word.trim() {
                "all" => positions = Self::ALL,
                "image" => positions.image = true,
                "prompt" => positions.prompt = true,
                "generated" => positions.generated = true,
                other => {
                    return Err(Error::invalid(format!("`{other}` is no position"))
                        .with_hint("use `all`, `image`, `prompt`, `generated` or a list such as `image,generated`"));
                }
            }
        }
        Ok(positions)
    }

    /// Whether a row of this kind is touched.
    pub fn contain(self, kind: TokenKind) -> bool {
        match kind {
            TokenKind::Image => self.image,
            TokenKind::Text => self.prompt,
            TokenKind::Generated => self.generated,
        }
    }

    /// The words that [`Positions::parse`] reads.
    pub fn words(self) -> Vec<&'static str> {
        if self == Self::ALL {
            return vec!["all"];
        }
        [
            (self.image, "image"),
            (self.prompt, "prompt"),
            (self.generated, "generated"),
        ]
        .into_iter()
        .filter_map(|(on, word)| on.then_some(word))
        .collect()
    }
}

/// All interventions of a run, prepared for the hot path.
#[derive(Clone, Debug)]
pub struct Steering {
    interventions: Vec<Intervention>,
    positions: Positions,
    delta: Vec<f32>, // [d_model]: the sum of all additions
}

impl Steering {
    /// Prepares `interventions`; `decoder_direction` fills a row of length `d_model` with
    /// `W_dec[feature]`.
    ///
    /// # Errors
    /// A strength that is not finite, or an error of `decoder_direction`.
    pub fn new(
        interventions: Vec<Intervention>,
        positions: Positions,
        d_model: usize,
        mut decoder_direction: impl FnMut(usize, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        // Strengths of one feature are summed first, so that `+a` and `-a` cancel exactly.
        let mut strengths = BTreeMap::<usize, f32>::new();
        for intervention in &interventions {
            let Intervention::Add { feature, strength } = intervention;
            if !strength.is_finite() {
                return Err(Error::invalid(format!(
                    "cannot steer feature `{feature}` by `{strength}`: the strength must be finite"
                )));
            }
            *strengths.entry(*feature).or_default() += strength;
        }
        let mut delta = vec![0.0; d_model];
        let mut direction = vec![0.0; d_model];
        for (feature, strength) in strengths {
            decoder_direction(feature, &mut direction)?;
            for (sum, value) in delta.iter_mut().zip(&direction) {
                *sum += strength * value;
            }
        }
        // The next norm squares the row in 32 bits.
        let squares: f32 = delta.iter().map(|value| value * value).sum();
        if !squares.is_finite() {
            return Err(Error::invalid(
                "the strengths add up to a row that is too large for 32-bit numbers",
            )
            .with_hint("use smaller strengths"));
        }
        Ok(Self {
            interventions,
            positions,
            delta,
        })
    }

    /// What was asked for, in order.
    pub fn interventions(&self) -> &[Intervention] {
        &self.interventions
    }

    /// Where it applies.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// The vector that is added to each touched row, `[d_model]`.
    pub fn delta(&self) -> &[f32] {
        &self.delta
    }

    /// Edits one row of length `d_model` if its kind is touched; tells whether it was.
    pub fn apply(&self, kind: TokenKind, row: &mut [f32]) -> bool {
        if !self.positions.contain(kind) {
            return false;
        }
        for (x, delta) in row.iter_mut().zip(&self.delta) {
            *x += delta;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Intervention, Positions, Steering};
    use crate::tokens::TokenKind;

    fn steering(strengths: &[(usize, f32)], at: &str) -> Steering {
        let interventions = strengths
            .iter()
            .map(|&(feature, strength)| Intervention::Add { feature, strength })
            .collect();
        let positions = Positions::parse(at).expect("valid positions");
        Steering::new(interventions, positions, 2, |feature, row| {
            row.copy_from_slice(&[feature as f32, 0.3]);
            Ok(())
        })
        .expect("finite strengths")
    }

    #[test]
    fn additions_are_summed() {
        let mut row = [1.0, 1.0];
        assert!(steering(&[(3, 2.0), (5, -1.0)], "all").apply(TokenKind::Image, &mut row));
        assert_eq!(row, [1.0 + 6.0 - 5.0, 1.0 + 0.6 - 0.3]);
    }

    #[test]
    fn opposite_strengths_cancel_exactly() {
        let mut row = [0.1, 0.7];
        steering(&[(3, 0.1), (5, 9.0), (3, -0.1), (5, -9.0)], "all")
            .apply(TokenKind::Text, &mut row);
        assert_eq!(row, [0.1, 0.7]);
    }

    #[test]
    fn positions_choose_rows() {
        let check = |at: &str, touched: [bool; 3]| {
            let steering = steering(&[(1, 1.0)], at);
            let kinds = [TokenKind::Image, TokenKind::Text, TokenKind::Generated];
            assert_eq!(
                kinds.map(|kind| steering.apply(kind, &mut [0.0; 2])),
                touched,
                "{at}"
            );
        };
        check("all", [true; 3]);
        check("image", [true, false, false]);
        check("prompt", [false, true, false]);
        check("image, generated", [true, false, true]);
        assert!(Positions::parse("").is_err());
        assert!(Positions::parse("images").is_err());
    }

    #[test]
    fn strengths_that_are_not_finite_are_refused() {
        for strength in [f32::NAN, f32::INFINITY, f32::MAX] {
            let add = |feature| Intervention::Add { feature, strength };
            let result = Steering::new(vec![add(0), add(1)], Positions::ALL, 1, |_, row| {
                row.fill(2.0);
                Ok(())
            });
            assert!(result.is_err(), "{strength}");
        }
    }
}
