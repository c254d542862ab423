//! Pictures in tiles, as LLaVA-1.6 (LLaVA-NeXT) sees them: where they are cut, and how the tiles' rows are put together.
//!
//! Mirrors `LlavaNextImageProcessor`, and `pack_image_features` in `modeling_llava_next.py`, of transformers
//! 4.57.6; what that does not know, `llava/mm_utils.py` and `llava/model/llava_arch.py` of LLaVA 1.2.

use image::{RgbImage, imageops};

use super::resample::Filter;
use super::{ImagePrep, Picture, WHOLE, resize};
use crate::Result;
use crate::prompt::Grid;

/// How a model sees pictures in tiles of its encoder's size.
#[derive(Clone, Debug)]
pub(crate) struct Tiling {
    /// What a picture may be scaled to, height and width in pixels, each of whole tiles; of those that fit equally
    /// well, the first is taken.
    pub(crate) resolutions: Vec<[u32; 2]>,
    /// What becomes of the tiles' rows.
    pub(crate) merge: Merge,
}

/// How the rows of all tiles become a prompt's rows, behind those of the whole picture (LLaVA's
/// `mm_patch_merge_type`).
#[derive(Clone, Debug)]
pub(crate) enum Merge {
    /// Tile after tile.
    Flat,
    /// Row after row of the grid that they make up.
    Spatial,
    /// The same, without padding, and with this row, `[d_model]`, behind each row of patches.
    SpatialUnpad(Vec<f32>),
}

impl Merge {
    /// Its name in projectors' files.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Spatial => "spatial",
            Self::SpatialUnpad(_) => "spatial_unpad",
        }
    }
}

/// A picture's views, and where the tiles among them lie.
pub(crate) struct Views {
    /// RGB, `[size, size, 3]` each: the whole picture, then its tiles in reading order.
    pub(crate) pixels: Vec<Vec<u8>>,
    n_tiles: [usize; 2], // rows and columns
    picture: [u32; 2],   // height and width in pixels, as are the next two
    scaled: [u32; 2],    // of the picture in its tiles
    top_left: [u32; 2],  // of the picture there; the rest is padding
    size: u32,           // of a tile
}

/// Image rows of one part of a picture.
pub(crate) struct Part {
    pub(crate) rows: Vec<f32>, // [those of the grid, d_model]
    pub(crate) grid: Grid,
    pub(crate) place: [f32; 4], // as a chunk's
}

impl Tiling {
    /// Scales a picture and cuts it into tiles of `size` pixels a side.
    ///
    /// # Errors
    /// As [`Picture::prepare`].
    pub(crate) fn views(&self, picture: &Picture, size: u32) -> Result<Views> {
        let overview = picture.prepare(size, ImagePrep::Tiles)?;
        let (width, height) = picture.rgb().dimensions();
        let resolution = best_resolution([height, width], &self.resolutions);
        let scaled = fitted([height, width], resolution);
        let top_left = [0, 1].map(|side| (resolution[side] - scaled[side]) / 2);
        let inside = resize(picture.rgb(), [scaled[1], scaled[0]], Filter::Bicubic);
        let mut padded = RgbImage::new(resolution[1], resolution[0]);
        imageops::replace(&mut padded, &inside, top_left[1].into(), top_left[0].into());
        let mut pixels = vec![overview];
        for top in (0..resolution[0]).step_by(size as usize) {
            for left in (0..resolution[1]).step_by(size as usize) {
                let tile = imageops::crop_imm(&padded, left, top, size, size);
                pixels.push(tile.to_image().into_raw());
            }
        }
        Ok(Views {
            pixels,
            n_tiles: resolution.map(|length| (length / size) as usize),
            picture: [height, width],
            scaled,
            top_left,
            size,
        })
    }

    /// Puts the rows of all views together; `rows` holds `[grid · grid, d_model]` for each.
    pub(crate) fn parts(&self, views: &Views, rows: Vec<Vec<f32>>, grid: usize) -> Vec<Part> {
        let one_view = |(rows, place)| Part {
            rows,
            grid: Grid::of_patches(grid, grid),
            place,
        };
        let mut rows = rows.into_iter();
        let overview = rows.next().map(|rows| one_view((rows, WHOLE)));
        let tiles: Vec<Vec<f32>> = rows.collect();
        let whole = views.n_tiles.map(|n| n * grid);
        let others = match &self.merge {
            Merge::Flat => {
                let n_columns = views.n_tiles[1];
                let first = |tile_idx: usize| {
                    [tile_idx / n_columns, tile_idx % n_columns].map(|n| n * grid)
                };
                let places = (0..tiles.len()).map(|i| views.place(first(i), [grid; 2], grid));
                tiles.into_iter().zip(places).map(one_view).collect()
            }
            Merge::Spatial => vec![Part {
                rows: merged(&tiles, views.n_tiles, grid, [0, 0], &[]),
                grid: Grid::of_patches(whole[0], whole[1]),
                place: views.place([0, 0], whole, grid),
            }],
            Merge::SpatialUnpad(newline) => {
                let padding = padding(views.picture, whole);
                let [n_rows, n_columns] = [0, 1].map(|side| whole[side] - 2 * padding[side]);
                vec![Part {
                    rows: merged(&tiles, views.n_tiles, grid, padding, newline),
                    grid: Grid {
                        has_newlines: true,
                        ..Grid::of_patches(n_rows, n_columns)
                    },
                    place: views.place(padding, [n_rows, n_columns], grid),
                }]
            }
        };
        // Of a long strip, nothing but padding may be left, as in transformers.
        let others = others
            .into_iter()
            .filter(|part: &Part| !part.rows.is_empty());
        overview.into_iter().chain(others).collect()
    }
}

impl Views {
    /// The place in the picture of a part of the grid of all tiles, which have `grid` patches a side: of that many rows
    /// and columns from the `first` of each. Padding lies outside of the picture.
    fn place(&self, first: [usize; 2], n_patches: [usize; 2], grid: usize) -> [f32; 4] {
        let pixels = |n_patches: usize| n_patches as f32 * (self.size as f32 / grid as f32);
        let share = |side: usize, pixels: f32| pixels / self.scaled[side] as f32;
        let start = |side: usize| share(side, pixels(first[side]) - self.top_left[side] as f32);
        let length = |side: usize| share(side, pixels(n_patches[side]));
        [start(1), start(0), length(1), length(0)]
    }
}

/// The resolution in which most of a picture's pixels stay, and of those the one with least padding
/// (`select_best_resolution` in `image_processing_utils.py`).
fn best_resolution(picture: [u32; 2], resolutions: &[[u32; 2]]) -> [u32; 2] {
    let area = |[height, width]: [u32; 2]| u64::from(height) * u64::from(width);
    let [height, width] = picture.map(f64::from);
    let kept = |resolution: [u32; 2]| {
        let [to_height, to_width] = resolution.map(f64::from);
        let scale = (to_width / width).min(to_height / height);
        let scaled = ((width * scale) as u64) * ((height * scale) as u64);
        scaled.min(area(picture))
    };
    let mut found = resolutions.iter().copied();
    let first = found.next().expect("a tiling has resolutions");
    found.fold(first, |best, next| {
        let [in_best, in_next] = [best, next].map(kept);
        let [lost_in_best, lost_in_next] = [area(best) - in_best, area(next) - in_next];
        match in_next > in_best || (in_next == in_best && lost_in_next < lost_in_best) {
            true => next,
            false => best,
        }
    })
}

/// The size of a picture that is scaled into a resolution (`get_patch_output_size` in `image_processing_utils.py`).
fn fitted(picture: [u32; 2], resolution: [u32; 2]) -> [u32; 2] {
    let scale = |side: usize| f64::from(resolution[side]) / f64::from(picture[side]);
    let scaled = |side: usize, scale: f64| {
        let length = (f64::from(picture[side]) * scale).ceil() as u32;
        length.min(resolution[side])
    };
    match scale(1) < scale(0) {
        true => [scaled(0, scale(1)), resolution[1]],
        false => [resolution[0], scaled(1, scale(0))],
    }
}

/// The rows of patches above and below a picture in `grid` that are padding, and the columns beside it
/// (`unpad_image` in `modeling_llava_next.py`).
fn padding(picture: [u32; 2], grid: [usize; 2]) -> [usize; 2] {
    let [height, width] = picture.map(f64::from);
    let [n_rows, n_columns] = grid.map(|n| n as f64);
    // It is rounded to seven digits, then down.
    let half_of_rest = |n: f64, inside: f64| ((n - (inside + 5e-8).floor()) / 2.0).floor() as usize;
    match width / height > n_columns / n_rows {
        true => [half_of_rest(n_rows, height * (n_columns / width)), 0],
        false => [0, half_of_rest(n_columns, width * (n_rows / height))],
    }
}

/// The rows of tiles, `[grid · grid, d_model]` each, in the reading order of the grid that they make up, without
/// `padding` at its sides, and with `newline` behind each row of patches.
fn merged(
    tiles: &[Vec<f32>],
    n_tiles: [usize; 2],
    grid: usize,
    padding: [usize; 2],
    newline: &[f32],
) -> Vec<f32> {
    let width = tiles.first().map_or(0, |rows| rows.len() / (grid * grid));
    let [n_rows, n_columns] = n_tiles.map(|n| n * grid);
    let mut rows = Vec::new();
    for y in padding[0]..n_rows - padding[0] {
        for x in padding[1]..n_columns - padding[1] {
            let tile = &tiles[y / grid * n_tiles[1] + x / grid];
            let start = (y % grid * grid + x % grid) * width;
            rows.extend_from_slice(&tile[start..start + width]);
        }
        rows.extend_from_slice(newline);
    }
    rows
}
