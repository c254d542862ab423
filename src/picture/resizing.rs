//! Pictures with sides of their own, of whole image rows: near their own size, as Qwen2-VL and its successors see them, or
//! as large as can be, as Gemma 4 does.
//!
//! Mirrors `smart_resize` and `Qwen2VLImageProcessor` of transformers 4.57.6 (`image_processing_qwen2_vl.py`), and
//! `get_aspect_ratio_preserving_size` and `Gemma4ImageProcessorPil` of transformers 5.24
//! (`image_processing_pil_gemma4.py`), whose filter is Pillow's bicubic one. llama.cpp rounds halves otherwise, pads where
//! transformers stretches, leaves small pictures small, and has other limits (`calc_size_preserved_ratio` and
//! `mtmd_image_preprocessor_dyn_size` in `tools/mtmd/mtmd-image.cpp`).

use super::resample::Filter;
use super::{Picture, resize};
use crate::llama::FlashAttention;
use crate::model::files::MAX_ATTENTION_SCORES;
use crate::prompt::Grid;
use crate::{Error, Result};

/// The longest side over the shortest, at most.
const MAX_ASPECT_RATIO: u32 = 200;

/// The sides that pictures are scaled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resizing {
    /// Pixels a side of a patch.
    pub(crate) patch_size: u32,
    /// Patches a side that become one image row.
    pub(crate) merge: u32,
    /// Of each block's attention.
    pub(crate) n_heads: u32,
    /// How large they may be.
    pub(crate) sides: Sides,
}

/// How large pictures are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    /// Near their own size.
    Near {
        /// The fewest pixels and the most that the checkpoint asks for.
        pixels: [u64; 2],
        /// The most that the encoder is given.
        most_pixels: u64,
    },
    /// As large as so many image rows have room for.
    Filling {
        /// At least 4, lest none is left.
        max_rows: u32,
    },
}

/// A picture as the encoder takes it.
pub(crate) struct Resized {
    pub(crate) rgb: Vec<u8>,     // [height, width, 3]
    pub(crate) size: [usize; 2], // width and height
    pub(crate) grid: Grid,       // of its image rows
}

impl Resizing {
    /// Scales a picture, and warns where it has to be smaller than the checkpoint would see it.
    ///
    /// # Errors
    /// A picture that is too long and narrow, or whose attention has no room without flash attention.
    pub(crate) fn prepare(
        &self,
        picture: &Picture,
        flash_attention: FlashAttention,
    ) -> Result<Resized> {
        let (width, height) = picture.rgb().dimensions();
        if width.max(height) > width.min(height).saturating_mul(MAX_ASPECT_RATIO) {
            return Err(Error::invalid(format!(
                "`{}` is {width} × {height} pixels: more than {MAX_ASPECT_RATIO} times as long as wide",
                picture.shown()
            ))
            .with_hint("cut out the part that matters"));
        }
        let to = match self.sides {
            Sides::Filling { max_rows } => self.filling([width, height], max_rows),
            Sides::Near {
                pixels: [least, asked],
                most_pixels,
            } => {
                let to = self.near([width, height], [least, asked.min(most_pixels)]);
                let wanted = self.near([width, height], [least, asked]);
                if to != wanted {
                    log::warn!(
                        "`{}` is scaled to {} × {} pixels, where the checkpoint's own limits would leave {} × {}",
                        picture.shown(),
                        to[0],
                        to[1],
                        wanted[0],
                        wanted[1]
                    );
                }
                to
            }
        };
        if flash_attention == FlashAttention::Off {
            self.check_attention(picture, to)?;
        }
        let rgb = match to == [width, height] {
            true => picture.rgb().as_raw().clone(),
            false => resize(picture.rgb(), to, Filter::Bicubic).into_raw(),
        };
        let [n_columns, n_rows] = to.map(|side| (side / self.row_size()) as usize);
        Ok(Resized {
            rgb,
            size: to.map(|side| side as usize),
            grid: Grid::of_patches(n_rows, n_columns),
        })
    }

    /// Checks that attention's scores have room.
    fn check_attention(&self, picture: &Picture, sides: [u32; 2]) -> Result<()> {
        let [n_columns, n_rows] = sides.map(|side| u64::from(side / self.patch_size));
        let n_scores = (n_columns * n_rows).pow(2) * u64::from(self.n_heads);
        if n_scores <= MAX_ATTENTION_SCORES {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "`{}` is {n_columns} × {n_rows} patches, whose attention takes {:.0} GB without flash attention",
            picture.shown(),
            n_scores as f64 * size_of::<f32>() as f64 / 1e9
        ))
        .with_hint("scale it down, or use flash attention"))
    }

    /// Pixels a side of what becomes one image row.
    fn row_size(&self) -> u32 {
        self.patch_size * self.merge
    }

    /// `smart_resize`, of width and height; its arithmetic is Python's, in f64.
    fn near(&self, sides: [u32; 2], [least, most]: [u64; 2]) -> [u32; 2] {
        let row_size = self.row_size();
        let n_pixels = f64::from(sides[0]) * f64::from(sides[1]);
        let rounded = sides.map(|side| half_to_even(side, row_size) * row_size);
        let area = u64::from(rounded[0]) * u64::from(rounded[1]);
        if area > most {
            let scale = (n_pixels / most as f64).sqrt();
            let whole = |side: u32| (f64::from(side) / scale / f64::from(row_size)).floor() as u32;
            return sides.map(|side| whole(side).max(1) * row_size);
        }
        if area < least {
            let scale = (least as f64 / n_pixels).sqrt();
            let whole = |side: u32| (f64::from(side) * scale / f64::from(row_size)).ceil() as u32;
            return sides.map(|side| whole(side) * row_size);
        }
        rounded
    }

    /// `get_aspect_ratio_preserving_size`, of width and height; its arithmetic is Python's, in f64.
    fn filling(&self, sides: [u32; 2], max_rows: u32) -> [u32; 2] {
        let row_size = self.row_size();
        let n_pixels = f64::from(sides[0]) * f64::from(sides[1]);
        let most_pixels = u64::from(max_rows) * u64::from(row_size).pow(2);
        let factor = (most_pixels as f64 / n_pixels).sqrt();
        let rows = |side| (factor * f64::from(side) / f64::from(row_size)).floor() as u32;
        let [n_columns, n_rows] = sides.map(rows);
        // A strip that would be less than one row wide.
        let along = |long: u32, short: u32| (long / short).min(max_rows);
        let [width, height] = sides;
        let rows = match [n_columns, n_rows] {
            [n_columns, 0] if n_columns > 0 => [along(width, height), 1],
            [0, n_rows] if n_rows > 0 => [1, along(height, width)],
            both => both,
        };
        rows.map(|n| n * row_size)
    }
}

/// A quotient as Python's `round` rounds it.
fn half_to_even(n: u32, divisor: u32) -> u32 {
    let (quotient, rest) = (n / divisor, n % divisor);
    let half = rest.cmp(&(divisor - rest));
    quotient + u32::from(half.is_gt() || half.is_eq() && quotient % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::{Resizing, Sides};

    const PIXELS: [u64; 2] = [3136, 12_845_056];

    /// What `smart_resize` of transformers 4.57.6 gives, by [width, height].
    #[test]
    fn sides_are_those_of_smart_resize() {
        let resizing = Resizing {
            patch_size: 14,
            merge: 2,
            n_heads: 16,
            sides: Sides::Near {
                pixels: PIXELS,
                most_pixels: u64::MAX,
            },
        };
        let check = |sides: [u32; 2], expected: [u32; 2]| {
            let found = resizing.near(sides, PIXELS);
            assert_eq!(found, expected, "{sides:?}");
        };
        check([1, 1], [56, 56]);
        check([13, 2600], [28, 812]);
        check([2600, 13], [812, 28]);
        check([56, 56], [56, 56]);
        check([70, 70], [56, 56]);
        check([42, 98], [56, 112]);
        check([126, 14], [168, 28]);
        check([150, 60], [140, 56]);
        check([640, 480], [644, 476]);
        check([1920, 1080], [1932, 1092]);
        check([4032, 3024], [4032, 3024]);
        check([12000, 8000], [4368, 2912]);
        check([200, 1], [812, 28]);
        check([10, 2000], [28, 812]);
        check([9, 7], [84, 56]);
        check([99, 101], [112, 112]);
    }

    /// What `get_aspect_ratio_preserving_size` of transformers 5.24 gives, by [width, height].
    #[test]
    fn sides_are_those_of_get_aspect_ratio_preserving_size() {
        let check = |[patch_size, merge, max_rows]: [u32; 3], cases: &[[u32; 4]]| {
            let resizing = Resizing {
                patch_size,
                merge,
                n_heads: 12,
                sides: Sides::Filling { max_rows },
            };
            for &[width, height, wider, higher] in cases {
                let found = resizing.filling([width, height], max_rows);
                assert_eq!(found, [wider, higher], "{width} × {height}");
            }
        };
        let published = [
            [1, 1, 768, 768],
            [640, 480, 912, 672],
            [1920, 1080, 1056, 576],
            [4032, 3024, 912, 672],
            [816, 768, 816, 768],
            [9, 7, 864, 672],
            [5, 190, 96, 4944],
            [1, 200, 48, 11328],
            [13, 2600, 48, 11328],
            [3, 700, 48, 12240],
            [700, 3, 12240, 48],
        ];
        check([16, 3, 280], &published);
        let least = [
            [1, 1, 48, 48],
            [1920, 1080, 66, 36],
            [816, 768, 48, 48],
            [1, 71, 6, 420],
            [100, 1, 420, 6],
            [2600, 13, 420, 6],
            [5, 190, 6, 306],
        ];
        check([2, 3, 70], &least);
        let most = [
            [640, 480, 1064, 784],
            [48, 48, 924, 924],
            [71, 1, 7868, 84],
            [700, 3, 14308, 56],
        ];
        check([14, 2, 1120], &most);
    }
}
