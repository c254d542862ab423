//! Pictures in tiles with an overview behind them, as Idefics3, SmolVLM and InternVL see them, and the text that stands
//! between these.
//!
//! Mirrors `Idefics3ImageProcessor` and `get_image_prompt_string` (`image_processing_idefics3.py`,
//! `processing_idefics3.py`) and `GotOcr2ImageProcessor` (`image_processing_got_ocr2.py`) of transformers 4.53. llama.cpp
//! scales as the first does where a file says the longest side, otherwise by another rule; InternVL's grids it chooses
//! by another too, and stands `\n\n` in front of an only tile of Idefics3's.

use image::imageops;

use super::resample::Filter;
use super::tiles::Part;
use super::{Picture, WHOLE, resize};
use crate::Result;
use crate::llama::FAKE_TOKEN;
use crate::prompt::Grid;

/// How a picture is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cutting {
    /// Scaled to this longest side in pixels, then to whole tiles, however many that takes: Idefics3.
    Edge(u32),
    /// Scaled to so many tiles at least and at most, in the grid whose sides are nearest to the picture's: InternVL.
    Shape([u32; 2]),
}

/// A picture's tiles and its overview.
pub(crate) struct Cut {
    /// RGB, `[size, size, 3]` each: the tiles in reading order, and the overview behind them, if there is one.
    pub(crate) pixels: Vec<Vec<u8>>,
    cutting: Cutting,
    n_tiles: [usize; 2], // rows and columns; none where the overview is all
}

/// What stands between a picture's parts, and around them.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) around: Option<[&'static str; 2]>,
    pub(crate) between: Vec<String>,
}

impl Cutting {
    /// Scales a picture and cuts it into tiles of `size` pixels a side.
    ///
    /// # Errors
    /// A picture that is too long and narrow.
    pub(crate) fn cut(self, picture: &Picture, size: u32) -> Result<Cut> {
        picture.check_shape()?;
        let rgb = picture.rgb();
        let (width, height) = rgb.dimensions();
        let whole = match self {
            Self::Edge(longest) => {
                let scaled = edge([width, height], longest);
                let to = whole_tiles(scaled, size);
                resize(&resize(rgb, scaled, Filter::Lanczos), to, Filter::Lanczos)
            }
            Self::Shape(n_tiles) => {
                let n_tiles = best_grid([width, height], n_tiles, size);
                resize(rgb, n_tiles.map(|n| n * size), Filter::Bicubic)
            }
        };
        let n_tiles = [whole.height(), whole.width()].map(|side| side / size);
        if n_tiles == [1, 1] {
            return Ok(Cut {
                pixels: vec![whole.into_raw()],
                cutting: self,
                n_tiles: [0, 0],
            });
        }
        let mut pixels = Vec::new();
        for top in (0..whole.height()).step_by(size as usize) {
            for left in (0..whole.width()).step_by(size as usize) {
                let tile = imageops::crop_imm(&whole, left, top, size, size);
                pixels.push(tile.to_image().into_raw());
            }
        }
        let overview = match self {
            Self::Edge(_) => resize(&whole, [size; 2], Filter::Lanczos),
            Self::Shape(_) => resize(rgb, [size; 2], Filter::Bicubic),
        };
        pixels.push(overview.into_raw());
        Ok(Cut {
            pixels,
            cutting: self,
            n_tiles: n_tiles.map(|n| n as usize),
        })
    }
}

/// Width and height with this longest side; the other is even where it follows from that
/// (`_resize_output_size_rescale_to_max_len`).
fn edge([width, height]: [u32; 2], longest: u32) -> [u32; 2] {
    let ratio = f64::from(width) / f64::from(height);
    let even = |side: f64| (side as u32).next_multiple_of(2).max(1);
    match width >= height {
        true => [longest, even(f64::from(longest) / ratio)],
        false => [even(f64::from(longest) * ratio), longest],
    }
}

/// Width and height in whole tiles: the longer side first, and the other by the sides' ratio
/// (`resize_for_vision_encoder`).
fn whole_tiles([width, height]: [u32; 2], size: u32) -> [u32; 2] {
    let ratio = f64::from(width) / f64::from(height);
    let whole = |side: u32| side.div_ceil(size) * size;
    match width >= height {
        true => [
            whole(width),
            whole((f64::from(whole(width)) / ratio) as u32),
        ],
        false => [
            whole((f64::from(whole(height)) * ratio) as u32),
            whole(height),
        ],
    }
}

/// Columns and rows of tiles of `size` a side, for a picture of that width and height: those whose ratio is nearest, and
/// of equal ones the largest that the picture covers half of (`get_optimal_tiled_canvas`).
fn best_grid([width, height]: [u32; 2], [least, most]: [u32; 2], size: u32) -> [u32; 2] {
    let columns = 1..=most;
    let mut grids: Vec<[u32; 2]> = columns
        .flat_map(|n_columns| (1..=most).map(move |n_rows| [n_columns, n_rows]))
        .filter(|[n_columns, n_rows]| (least..=most).contains(&(n_columns * n_rows)))
        .collect();
    grids.sort_by_key(|[n_columns, n_rows]| n_columns * n_rows); // stable
    let ratio = |[width, height]: [u32; 2]| f64::from(width) / f64::from(height);
    let area = f64::from(width) * f64::from(height);
    let (mut best, mut best_difference) = ([1, 1], f64::INFINITY);
    for grid in grids {
        let difference = (ratio([width, height]) - ratio(grid)).abs();
        let half =
            0.5 * f64::from(size) * f64::from(size) * f64::from(grid[0]) * f64::from(grid[1]);
        if difference < best_difference || difference == best_difference && area > half {
            (best, best_difference) = (grid, difference);
        }
    }
    best
}

impl Cut {
    /// Its parts; `rows` holds `[grid · grid, d_model]` for each, whose patches cover a share of its sides.
    pub(crate) fn parts(&self, rows: Vec<Vec<f32>>, grid: usize, covered: f32) -> Vec<Part> {
        let [n_rows, n_columns] = self.n_tiles;
        let places = (0..n_rows).flat_map(|row| (0..n_columns).map(move |column| [row, column]));
        let places = places.map(|[row, column]| {
            let [left, width] = [column as f32, covered].map(|n| n / n_columns as f32);
            let [top, height] = [row as f32, covered].map(|n| n / n_rows as f32);
            [left, top, width, height]
        });
        let overview = WHOLE.map(|share| share * covered);
        let parts = rows.into_iter().zip(places.chain([overview]));
        let part = |(rows, place)| Part {
            rows,
            grid: Grid::of_patches(grid, grid),
            place,
        };
        parts.map(part).collect()
    }

    /// The text that the model was trained to see there; none where it is the same for all pictures.
    pub(crate) fn texts(&self) -> Option<Texts> {
        if let Cutting::Shape(_) = self.cutting {
            return None;
        }
        let [n_rows, n_columns] = self.n_tiles;
        let around = match n_rows {
            0 => ["<fake_token_around_image><global-img>", FAKE_TOKEN],
            _ => ["<fake_token_around_image><row_1_col_1>", FAKE_TOKEN],
        };
        let tile = |tile_idx: usize| {
            let [row, column] = [tile_idx / n_columns, tile_idx % n_columns].map(|n| n + 1);
            let line_end = if column == 1 { "\n" } else { "" };
            format!("{line_end}{FAKE_TOKEN}<row_{row}_col_{column}>")
        };
        let tiles = (1..n_rows * n_columns).map(tile);
        let overview = (n_rows > 0).then(|| format!("\n\n{FAKE_TOKEN}<global-img>"));
        Some(Texts {
            around: Some(around),
            between: tiles.chain(overview).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{edge, whole_tiles};

    /// What transformers' functions of those names give, by [width, height].
    #[test]
    fn sides_are_those_of_transformers() {
        let check =
            |sides: [u32; 2], [longest, size]: [u32; 2], scaled: [u32; 2], whole: [u32; 2]| {
                let found = edge(sides, longest);
                assert_eq!(found, scaled, "{sides:?}");
                assert_eq!(whole_tiles(found, size), whole, "{sides:?}");
            };
        check([1, 1], [2048, 512], [2048, 2048], [2048, 2048]);
        check([640, 480], [2048, 512], [2048, 1536], [2048, 1536]);
        check([480, 640], [2048, 512], [1536, 2048], [1536, 2048]);
        check([1000, 333], [1536, 384], [1536, 512], [1536, 768]);
        check([333, 1000], [1536, 384], [512, 1536], [768, 1536]);
        check([64, 1], [2048, 512], [2048, 32], [2048, 512]);
        check([1, 64], [1456, 364], [22, 1456], [364, 1456]);
        check([4032, 3024], [1456, 364], [1456, 1092], [1456, 1092]);
        check([513, 511], [512, 512], [512, 510], [512, 512]);
        check([2049, 2047], [2048, 512], [2048, 2046], [2048, 2048]);
        check([1999, 1000], [1024, 512], [1024, 512], [1024, 512]);
        check([997, 1993], [1456, 364], [728, 1456], [728, 1456]);
        check([100, 99], [1457, 364], [1457, 1442], [1820, 1820]);
        check([30, 7], [1000, 333], [1000, 234], [1332, 333]);
    }
}
