//! The tiles that a picture of LLaVA-NeXT is cut into.

/// The sizes that a picture may be scaled to, each of whole tiles, in the config's order: of two that
/// fit a picture equally well, the first is taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// Heights and widths in pixels, as transformers has them.
    sizes: Vec<[usize; 2]>,
}

/// Those of `LlavaNextConfig` and `LlavaNextImageProcessor`.
pub(super) const DEFAULT_PINPOINTS: [[usize; 2]; 5] =
    [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// Most sizes that are read, and tiles on a side of one; models have 5 to 36 sizes of up to 6 tiles.
const MAX_SIZES: usize = 256;
const MAX_TILES: usize = 64;

impl Tiles {
    /// Checks `image_grid_pinpoints` for tiles of `image_size` pixels a side.
    pub(super) fn check(
        pinpoints: Option<Vec<Vec<usize>>>,
        image_size: usize,
    ) -> std::result::Result<Self, String> {
        const KEY: &str = "image_grid_pinpoints";
        let Some(pinpoints) = pinpoints else {
            return Self::check(Some(DEFAULT_PINPOINTS.map(Vec::from).into()), image_size);
        };
        if !(1..=MAX_SIZES).contains(&pinpoints.len()) {
            let n_sizes = pinpoints.len();
            return Err(format!(
                "`{KEY}` has {n_sizes} sizes, expected 1 to {MAX_SIZES}"
            ));
        }
        let is_whole = |&length: &usize| {
            length.is_multiple_of(image_size) && (1..=MAX_TILES).contains(&(length / image_size))
        };
        let mut sizes = Vec::with_capacity(pinpoints.len());
        for size in pinpoints {
            match size[..] {
                [height, width] if is_whole(&height) && is_whole(&width) => {
                    sizes.push([height, width]);
                }
                _ => {
                    return Err(format!(
                        "`{KEY}` has {size:?}, expected a height and a width of whole tiles of {image_size} pixels"
                    ));
                }
            }
        }
        Ok(Self { sizes })
    }

    /// Height and width of each size, one behind the other, as llama.cpp's converter of 2024 wrote a config's numbers
    /// (llama.cpp itself takes heights for widths, which makes a difference where two sizes fit equally well).
    pub(crate) fn heights_and_widths(&self) -> Vec<i32> {
        let lengths = self.sizes.as_flattened().iter();
        lengths.map(|&length| length as i32).collect()
    }

    pub(super) fn sizes(&self) -> &[[usize; 2]] {
        &self.sizes
    }
}
