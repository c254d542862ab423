//! Heat maps: a feature's activation over an image's patches, as a PNG for each feature.

mod overlay;
mod text;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

pub(super) use overlay::colour;
use overlay::{Between, blended, overlay};
use text::Text;

/// A panel's longest side, at least; each patch takes a whole number of pixels.
const PANEL: u32 = 288;
/// The room for a panel's caption.
const CAPTION: u32 = 72;
const MARGIN: u32 = 16;
const BAR_WIDTH: u32 = 18;
/// From a tick to its number.
const TICK: u32 = 4;
/// Room for the numbers at the colour bar.
const NUMBERS: u32 = 64;
const TITLE_PIXELS: f32 = 22.0;
const TEXT_PIXELS: f32 = 16.0;
/// From a line's top to the next one's, over its height.
const LEADING: f32 = 1.4;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([24; 3]);
/// The lightness beneath the colour bar.
const BAR_LIGHTNESS: f32 = 0.5;

/// What a heat map shows.
pub struct HeatMap<'a> {
    /// What the patches show.
    pub picture: &'a RgbImage,
    /// The activations, `[rows · columns]`, one of them above 0.
    pub patches: &'a [f32],
    /// Rows and columns.
    pub grid: [usize; 2],
    /// The line above; it is shortened if it is too long.
    pub title: &'a str,
}

impl HeatMap<'_> {
    /// The heat map as a PNG file.
    pub fn png(&self) -> Vec<u8> {
        png(&self.draw())
    }

    fn draw(&self) -> RgbImage {
        let [width, height] = self.panel();
        let pitch = width.max(CAPTION) + MARGIN;
        let largest = self.patches.iter().copied().fold(0.0, f32::max);
        let shares: Vec<f32> = self.patches.iter().map(|value| value / largest).collect();
        let picture = imageops::resize(self.picture, width, height, FilterType::CatmullRom);
        let smooth = overlay(&picture, &shares, self.grid, Between::Smooth);
        let steps = overlay(&picture, &shares, self.grid, Between::Steps);

        let (title, text) = (Text::new(TITLE_PIXELS), Text::new(TEXT_PIXELS));
        let captions_y = MARGIN + (TITLE_PIXELS * LEADING) as u32;
        let panels_y = captions_y + (TEXT_PIXELS * LEADING) as u32;
        let bar_x = MARGIN + 3 * pitch;
        let mut canvas = RgbImage::from_pixel(
            bar_x + BAR_WIDTH + TICK + NUMBERS + MARGIN,
            panels_y + height + MARGIN,
            PAPER,
        );
        let title_width = (canvas.width() - 2 * MARGIN) as f32;
        let line = title.shortened(self.title, title_width);
        title.draw(&mut canvas, &line, MARGIN as f32, MARGIN as f32 - 4.0, INK);
        let panels = [
            (&picture, "picture"),
            (&smooth, "smooth"),
            (&steps, "patches"),
        ];
        for (i, (panel, caption)) in (0..).zip(panels) {
            let x = MARGIN + i * pitch;
            text.draw(&mut canvas, caption, x as f32, captions_y as f32, INK);
            imageops::replace(&mut canvas, panel, x.into(), panels_y.into());
        }
        text.draw(
            &mut canvas,
            "activation",
            bar_x as f32,
            captions_y as f32,
            INK,
        );
        draw_bar(&mut canvas, &text, bar_x, panels_y, height, largest);
        canvas
    }

    /// A panel's width and height: the picture's shape, but for the whole pixels of each patch.
    fn panel(&self) -> [u32; 2] {
        let [n_rows, n_columns] = self.grid.map(|n_patches| n_patches as u32);
        let (width, height) = self.picture.dimensions();
        let longest = match width >= height {
            true => PANEL.next_multiple_of(n_columns),
            false => PANEL.next_multiple_of(n_rows),
        };
        let side = |length: u32, n_patches: u32| {
            let pixels = f64::from(longest) * f64::from(length) / f64::from(width.max(height));
            let of_patch = (pixels / f64::from(n_patches)).round() as u32;
            n_patches * of_patch.max(1)
        };
        [side(width, n_columns), side(height, n_rows)]
    }
}

/// An image as a PNG file.
pub(super) fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut png, CompressionType::Default, PngFilter::Adaptive);
    let written = image.write_with_encoder(encoder);
    written.expect("memory can be written, and PNG holds any RGB image");
    png
}

/// Draws the colour bar: from 0 at the bottom to `largest` at the top, with round numbers between.
fn draw_bar(canvas: &mut RgbImage, text: &Text, x: u32, y: u32, height: u32, largest: f32) {
    for row in 0..height {
        let share = 1.0 - row as f32 / (height - 1) as f32;
        for column in 0..BAR_WIDTH {
            canvas.put_pixel(x + column, y + row, blended(BAR_LIGHTNESS, share));
        }
    }
    for value in ticks(largest) {
        let row = ((1.0 - value / largest) * (height - 1) as f32).round() as u32;
        for column in BAR_WIDTH..BAR_WIDTH + TICK {
            canvas.put_pixel(x + column, y + row, INK);
        }
        let line = number(value);
        let left = (x + BAR_WIDTH + 2 * TICK) as f32;
        let top = (y + row) as f32 - TEXT_PIXELS / 2.0;
        text.draw(canvas, &line, left, top, INK);
    }
}

/// 0, round numbers, and the largest activation; none of them close to the largest.
fn ticks(largest: f32) -> Vec<f32> {
    const N_STEPS: f32 = 6.0;
    let power = 10_f32.powf((largest / N_STEPS).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = steps.into_iter().find(|step| step * N_STEPS >= largest);
    let step = step.unwrap_or(largest);
    let round = (0..=N_STEPS as u16).map(|i| f32::from(i) * step);
    round
        .filter(|value| *value < 0.92 * largest)
        .chain([largest])
        .collect()
}

/// A number with three significant digits.
fn number(value: f32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let n_before_point = value.log10().floor() as i32 + 1;
    if !(-2..=6).contains(&n_before_point) {
        return format!("{value:.1e}");
    }
    let decimals = usize::try_from(3 - n_before_point).unwrap_or(0);
    let digits = format!("{value:.decimals$}");
    match digits.contains('.') {
        true => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
        false => digits,
    }
}

/// The names that heat maps of these pictures start with: their files' stems, made different where
/// two are the same, also for file systems that do not tell `a` from `A`.
pub fn stems(pictures: &[PathBuf]) -> Vec<String> {
    let stem = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default();
        in_file_names(&stem.to_string_lossy())
    };
    let stems: Vec<String> = pictures.iter().map(stem).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let as_they_are: HashSet<String> = stems.iter().map(|stem| stem.to_lowercase()).collect();
    stems
        .into_iter()
        .map(|stem| {
            if taken.insert(stem.to_lowercase()) {
                return stem;
            }
            let is_new = |name: &String| {
                let name = name.to_lowercase();
                !as_they_are.contains(&name) && taken.insert(name)
            };
            let mut numbered = (2..).map(|i| format!("{stem}-{i}"));
            numbered
                .find(is_new)
                .expect("there is a number for each picture")
        })
        .collect()
}

/// A name, such as an SAE's id, as a part of a file's name: what separates folders becomes `_`.
pub fn in_file_names(name: &str) -> String {
    name.replace(['/', '\\', ':'], "_")
}

/// The path of the heat map of a feature that is `rank`th of `n_ranks`, so that a folder's listing
/// is in the order of ranks.
pub fn path(dir: &Path, stem: &str, rank: usize, n_ranks: usize, feature: usize) -> PathBuf {
    let digits = n_ranks.to_string().len();
    dir.join(format!("{stem}-{rank:0digits$}-{feature}.png"))
}

#[cfg(test)]
mod tests {
    use super::{HeatMap, RgbImage, number, stems, ticks};

    /// Patches have whole pixels, and a panel the picture's shape as far as that allows.
    #[test]
    fn panels_have_the_shape_of_what_they_show() {
        let panel = |[width, height]: [u32; 2], grid| {
            let map = HeatMap {
                picture: &RgbImage::new(width, height),
                patches: &[],
                grid,
                title: "",
            };
            map.panel()
        };
        assert_eq!(panel([336, 336], [24, 24]), [288, 288]);
        assert_eq!(panel([64, 64], [7, 7]), [294, 294]);
        assert_eq!(panel([400, 100], [16, 16]), [288, 80]);
        assert_eq!(panel([100, 200], [48, 24]), [144, 288]);
        assert_eq!(panel([6400, 100], [16, 16]), [288, 16]);
    }

    #[test]
    fn names_differ() {
        let check = |paths: &[&str], expected: &[&str]| {
            let paths: Vec<_> = paths.iter().map(Into::into).collect();
            assert_eq!(stems(&paths), expected);
        };
        check(&["a.png", "b/c.jpg"], &["a", "c"]);
        check(&["a.png", "b/a.jpg", "a.png"], &["a", "a-2", "a-3"]);
        check(&["a.png", "A.png", "a-2.png"], &["a", "A-3", "a-2"]);
    }

    #[test]
    fn ticks_are_round_and_apart() {
        let check = |largest: f32, expected: &[&str]| {
            let shown: Vec<_> = ticks(largest).into_iter().map(number).collect();
            assert_eq!(shown, expected);
        };
        check(25.092, &["0", "5", "10", "15", "20", "25.1"]);
        check(10.0, &["0", "2", "4", "6", "8", "10"]);
        check(0.0371, &["0", "0.01", "0.02", "0.03", "0.0371"]);
        check(1234.5, &["0", "500", "1000", "1234"]);
        check(3.1e-7, &["0", "1.0e-7", "2.0e-7", "3.1e-7"]);
    }
}
