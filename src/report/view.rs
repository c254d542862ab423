//! Views of pictures: where the patches of a prompt lie.

use image::RgbImage;

use crate::{Picture, Prompt};

/// The longest side of a view as it is shown, in pixels.
const SIDE: u32 = 448;

/// What a chunk of a prompt shows: the whole of one of its pictures, or a part.
#[derive(Clone, Debug)]
pub struct View {
    /// Which of the prompt's pictures, counted from 0.
    pub image: usize,
    /// The part of it: left, top, width and height as shares of the whole.
    pub place: [f32; 4],
    /// Rows and columns of its patches.
    pub grid: [usize; 2],
    /// The first patch's position in the prompt.
    pub first_position: usize,
    /// Positions from a patch to the one below it: more than there are columns where a row that shows nothing
    /// comes behind each row of patches.
    pub stride: usize,
}

impl View {
    /// The views of a prompt, in its order. Image rows that make up no grid, or lie nobody knows where, have none.
    pub fn of_prompt(prompt: &Prompt) -> Vec<Self> {
        let view = |(first_position, chunk): (usize, &crate::ImageChunk)| {
            let grid = chunk.grid?;
            Some(Self {
                image: chunk.image,
                place: chunk.place?,
                grid: [grid.n_rows, grid.n_columns],
                first_position,
                stride: grid.n_columns + usize::from(grid.has_newlines),
            })
        };
        prompt.chunks().filter_map(view).collect()
    }

    /// The positions of its patches, in reading order.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let [n_rows, n_columns] = self.grid;
        (0..n_rows).flat_map(move |row| {
            let start = self.first_position + row * self.stride;
            start..start + n_columns
        })
    }

    /// The place of the one of `views` with the largest `activation` of a position, the first among equals.
    pub fn strongest(views: &[Self], activation: impl Fn(usize) -> f32) -> Option<usize> {
        let largest = |view: &usize| {
            views[*view]
                .positions()
                .map(&activation)
                .fold(0.0, f32::max)
        };
        // Among equals the first.
        let places = (0..views.len()).rev();
        places.max_by(|a, b| largest(a).total_cmp(&largest(b)))
    }

    /// What it shows of its picture.
    pub fn part(&self, picture: &Picture) -> RgbImage {
        picture.part(self.place, SIDE)
    }
}
