//! Pictures with sides of their own, as Qwen2-VL and its successors see them: near their own size, and of whole image
//! rows.
//!
//! Mirrors `smart_resize` and `Qwen2VLImageProcessor` of transformers 4.57.6 (`image_processing_qwen2_vl.py`), whose
//! filter is Pillow's bicubic one. llama.cpp rounds halves otherwise, pads where transformers stretches, and has other
//! limits (`calc_size_preserved_ratio` and `mtmd_image_preprocessor_dyn_size` in `tools/mtmd/mtmd-image.cpp`).

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
    /// The fewest pixels and the most that the checkpoint asks for.
    pub(crate) pixels: [u64; 2],
    /// The most that the encoder is given.
    pub(crate) most_pixels: u64,
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
        let [least, asked] = self.pixels;
        let to = self.sides([width, height], [least, asked.min(self.most_pixels)]);
        let wanted = self.sides([width, height], self.pixels);
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
    fn sides(&self, sides: [u32; 2], [least, most]: [u64; 2]) -> [u32; 2] {
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
}

/// A quotient as Python's `round` rounds it.
fn half_to_even(n: u32, divisor: u32) -> u32 {
    let (quotient, rest) = (n / divisor, n % divisor);
    let half = rest.cmp(&(divisor - rest));
    quotient + u32::from(half.is_gt() || half.is_eq() && quotient % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::Resizing;

    /// What `smart_resize` of transformers 4.57.6 gives, by [width, height].
    #[test]
    fn sides_are_those_of_smart_resize() {
        let resizing = Resizing {
            patch_size: 14,
            merge: 2,
            n_heads: 16,
            pixels: [3136, 12_845_056],
            most_pixels: u64::MAX,
        };
        let check = |sides: [u32; 2], expected: [u32; 2]| {
            let found = resizing.sides(sides, resizing.pixels);
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
}
