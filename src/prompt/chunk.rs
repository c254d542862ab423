//! Chunks of image rows, with their places in the picture and in a sequence.

use std::fmt;
use std::sync::Arc;

use crate::llama::{Embeddings, Model, MropePosition};
use crate::{Error, Result, Token};

/// Image rows that a model reads one after another, of one view: the whole picture, or a tile of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageChunk {
    /// `[n_rows, width]`, not scaled.
    pub rows: Arc<[f32]>,
    /// The length of a row: the residual stream's width, or more where blocks further up take some in too.
    pub width: usize,
    /// The grid that its rows make up in reading order; none where they make up none.
    pub grid: Option<Grid>,
    /// The part of the picture that it shows: left, top, width and height as shares of the whole; none where
    /// llama.cpp cut the picture, and does not say where.
    pub place: Option<[f32; 4]>,
    /// The positions of its rows.
    pub positions: RowPositions,
    /// What its rows see of one another.
    pub attention: ImageAttention,
    /// Which of the prompt's images it belongs to, counted from 0.
    pub image: usize,
}

/// How a chunk's rows lie in its part of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows of patches.
    pub n_rows: usize,
    /// Patches in each.
    pub n_columns: usize,
    /// Whether an image row that shows nothing comes behind each row of patches, as LLaVA-NeXT has it.
    pub has_newlines: bool,
}

/// The positions of a chunk's rows, counted from the chunk's first.
#[derive(Clone, Debug, PartialEq)]
pub enum RowPositions {
    /// One for each, behind that of the row before.
    InOrder,
    /// Four for each, as M-RoPE has them.
    Mrope {
        /// `[n_rows]`.
        of_rows: Arc<[MropePosition]>,
        /// How many they take up.
        n_positions: usize,
    },
}

/// What image rows see of their own chunk; all see what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAttention {
    /// Themselves and the rows before, as text does.
    Causal,
    /// All rows of the chunk.
    Bidirectional,
}

impl ImageChunk {
    /// Its rows.
    pub fn n_rows(&self) -> usize {
        self.rows.len() / self.width.max(1)
    }

    /// The row and the column of each row's patch; none where a row shows none, or none that is known.
    pub fn patches(&self) -> impl Iterator<Item = Option<[usize; 2]>> {
        let grid = self.grid;
        (0..self.n_rows()).map(move |row_idx| grid?.patch(row_idx))
    }

    /// Its first rows, as an image of their own.
    pub(crate) fn beginning(&self, n_rows: usize) -> Self {
        let n_rows = n_rows.min(self.n_rows());
        let mut beginning = Self {
            rows: self.rows[..n_rows * self.width].into(),
            grid: None,
            ..self.clone()
        };
        if let RowPositions::Mrope { of_rows, .. } = &mut beginning.positions {
            *of_rows = of_rows[..n_rows].into();
        }
        beginning
    }

    /// Its rows, as a context decodes them.
    pub(crate) fn embeddings(&self) -> Embeddings<'_> {
        let (positions, n_positions) = match &self.positions {
            RowPositions::InOrder => (&[][..], self.n_rows()),
            RowPositions::Mrope {
                of_rows,
                n_positions,
            } => (&of_rows[..], *n_positions),
        };
        Embeddings {
            values: &self.rows,
            width: self.width,
            positions,
            n_positions,
            is_causal: self.attention == ImageAttention::Causal,
        }
    }

    /// Checks that it is something that a model can read.
    ///
    /// # Errors
    /// As [`Model::check_embeddings`]; a grid with another number of places than there are rows; positions
    /// outside of those that it takes up.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        model.check_embeddings(&self.embeddings())?;
        if let Some(grid) = self.grid
            && grid.n_image_rows() != Some(self.n_rows())
        {
            return Err(Error::invalid(format!(
                "an image of {} rows is no grid of {grid}",
                self.n_rows()
            )));
        }
        if let RowPositions::Mrope {
            of_rows,
            n_positions,
        } = &self.positions
        {
            let is_in =
                |&number: &i32| usize::try_from(number).is_ok_and(|number| number < *n_positions);
            if !of_rows.iter().flatten().all(is_in) {
                return Err(Error::invalid(format!(
                    "image rows have positions outside of the {n_positions} that they take up"
                )));
            }
        }
        Ok(())
    }

    /// What its rows are.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.patches().map(|patch| {
            let row = match patch {
                Some([row, column]) => Token::patch(row, column),
                None => Token::image(),
            };
            row.of_image(self.image)
        })
    }

    /// Whether both are the same rows in the same places.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let are_rows_shared = Arc::ptr_eq(&self.rows, &other.rows);
        (are_rows_shared || self.rows == other.rows)
            && (self.width, self.attention) == (other.width, other.attention)
            && self.positions == other.positions
    }
}

impl Grid {
    /// A grid of patches and nothing else.
    pub fn of_patches(n_rows: usize, n_columns: usize) -> Self {
        Self {
            n_rows,
            n_columns,
            has_newlines: false,
        }
    }

    /// The image rows of a row of patches.
    fn n_in_row(&self) -> Option<usize> {
        self.n_columns.checked_add(usize::from(self.has_newlines))
    }

    /// Its image rows, if that is a number.
    fn n_image_rows(&self) -> Option<usize> {
        self.n_rows.checked_mul(self.n_in_row()?)
    }

    /// The row and the column of an image row's patch, if it shows one.
    fn patch(&self, row_idx: usize) -> Option<[usize; 2]> {
        let n_in_row = self.n_in_row()?;
        let [row, column] = [row_idx.checked_div(n_in_row)?, row_idx % n_in_row];
        (column < self.n_columns).then_some([row, column])
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} × {}", self.n_rows, self.n_columns)?;
        match self.has_newlines {
            true => f.write_str(" with a row behind each row of it"),
            false => Ok(()),
        }
    }
}

impl RowPositions {
    /// The grid whose positions they are ([`RowPositions::mrope_grid`]), if they are those of one.
    pub fn grid(&self) -> Option<Grid> {
        let Self::Mrope { of_rows, .. } = self else {
            return None;
        };
        let number = |n: i32| usize::try_from(n).ok()?.checked_add(1);
        let [_, row, column, _] = *of_rows.last()?;
        let [n_rows, n_columns] = [number(row)?, number(column)?];
        let is_grid = n_rows.checked_mul(n_columns) == Some(of_rows.len())
            && *self == Self::mrope_grid([n_rows, n_columns]);
        is_grid.then(|| Grid::of_patches(n_rows, n_columns))
    }

    /// Those of a grid: its rows are at one time, in rows and columns, and what follows comes behind its longer
    /// side (`get_rope_index` in transformers' `modeling_qwen2_vl.py`).
    pub fn mrope_grid([n_rows, n_columns]: [usize; 2]) -> Self {
        let number = |n: usize| i32::try_from(n).expect("grids are small");
        let of_row = |row| (0..n_columns).map(move |column| [0, number(row), number(column), 0]);
        Self::Mrope {
            of_rows: (0..n_rows).flat_map(of_row).collect(),
            n_positions: n_rows.max(n_columns),
        }
    }
}
