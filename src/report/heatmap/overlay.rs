//! Activations as colours over a picture.
//!
//! Lightness means activation, so that a print in grey says the same: the picture beneath is grey
//! and dark, and the colours, made for the colour-blind too, start dark and grow light.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Pixel, Rgb, RgbImage};

/// The darkest and the lightest grey of the picture beneath the colours, of 255.
const BENEATH: [f32; 2] = [20.0, 92.0];
/// The opacity of the colours.
const OPACITY: f32 = 0.85;
/// Up to this share of the largest activation, colours fade into the picture.
const FADING: f32 = 0.1;

/// The picture's colour for a share of the largest activation.
pub(in crate::report) fn colour(share: f32) -> Rgb<u8> {
    let colorous::Color { r, g, b } = colorous::VIRIDIS.eval_continuous(f64::from(share));
    Rgb([r, g, b])
}

/// How patches become pixels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// Each patch has one colour.
    Steps,
    /// Activations are interpolated between the patches' centres.
    Smooth,
}

/// The activations `shares`, `[rows · columns]` and between 0 and 1, over `picture`.
pub(super) fn overlay(
    picture: &RgbImage,
    shares: &[f32],
    grid: [usize; 2],
    between: Between,
) -> RgbImage {
    let [n_rows, n_columns] = grid.map(|n| n as u32);
    let patches = ImageBuffer::<Luma<f32>, _>::from_raw(n_columns, n_rows, shares.to_vec())
        .expect("an activation for each patch");
    let filter = match between {
        Between::Steps => FilterType::Nearest,
        Between::Smooth => FilterType::CatmullRom, // overshoots are cut to 0 and 1
    };
    let field = imageops::resize(&patches, picture.width(), picture.height(), filter);
    // A dark picture is lightened, so that it is seen: its greys are stretched.
    let grey = |pixel: &Rgb<u8>| f32::from(pixel.to_luma().0[0]);
    let darkest = picture.pixels().map(grey).fold(255.0, f32::min);
    let lightest = picture.pixels().map(grey).fold(darkest + 1.0, f32::max);
    let mut image = picture.clone();
    for (pixel, Luma([share])) in image.pixels_mut().zip(field.pixels()) {
        *pixel = blended((grey(pixel) - darkest) / (lightest - darkest), *share);
    }
    image
}

/// The colour of a share of the largest activation over a pixel of this lightness, 0 to 1.
pub(super) fn blended(lightness: f32, share: f32) -> Rgb<u8> {
    let opacity = OPACITY * (share / FADING).min(1.0);
    let [darkest, lightest] = BENEATH;
    let grey = darkest + (lightest - darkest) * lightness;
    let mix = |colour: u8| (grey + (f32::from(colour) - grey) * opacity).round() as u8;
    Rgb(colour(share).0.map(mix))
}

#[cfg(test)]
mod tests {
    use super::{Luma, Pixel, blended};

    /// Whatever the picture beneath: of two shares that differ by a tenth, the larger one is lighter.
    #[test]
    fn more_is_lighter_on_any_picture() {
        let luma = |lightness: f32, share: f32| {
            let Luma([value]) = blended(lightness, share).to_luma();
            value
        };
        for tenth in 1_u8..10 {
            let share = f32::from(tenth) / 10.0;
            assert!(
                luma(1.0, share) < luma(0.0, share + 0.1),
                "{share}: {} over white, {} over black",
                luma(1.0, share),
                luma(0.0, share + 0.1)
            );
        }
        assert!(luma(1.0, 0.0) < luma(0.0, 0.5), "nothing is dark");
    }
}
