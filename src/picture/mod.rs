//! Pictures: reading them, and making them what the vision encoder takes, a square for most.

pub(crate) mod cache;
pub(crate) mod content;
mod corrected_encoder;
mod cutting;
pub(crate) mod encoder;
mod orientation;
pub(crate) mod plain_encoder;
mod resample;
mod resizing;
mod tiles;

pub use cache::ImageCache;
pub(crate) use cutting::Cutting;
pub(crate) use resizing::{Resizing, Sides};
pub(crate) use tiles::{Merge, Tiling};

use std::fmt::Display;
use std::io::Cursor;
use std::path::Path;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{
    AnimationDecoder, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage,
    imageops,
};

use self::resample::{Filter, along_columns, along_rows};
use crate::{Error, ErrorKind, Result};

/// Pixels of the largest picture that is read: 100 megapixels take 300 MB as RGB.
const MAX_PIXELS: u64 = 100_000_000;
/// Bytes of the largest file that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Memory for what stands before the pixels; the largest colour profiles have some megabytes.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The longest side over the shortest, at most; a longer strip holds nothing a model could see.
const MAX_ASPECT_RATIO: u32 = 64;
/// CLIP's mean colour, with which LLaVA pads (`expand2square` in `llava/mm_utils.py`).
const PAD_COLOUR: [u8; 3] = [122, 116, 104];

/// The place of the whole picture: left, top, width and height as shares of it.
pub(crate) const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];

/// How a picture becomes what the encoder takes, which is a square but for `Resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePrep {
    /// The shortest side is scaled and the centre cut out: transformers' `CLIPImageProcessor`.
    Crop,
    /// Padded with CLIP's mean colour, then scaled: as LLaVA was trained.
    Pad,
    /// Scaled to a square, whatever its sides: transformers' `Gemma3ImageProcessor`.
    Stretch,
    /// As `Stretch`, and in tiles besides: `LlavaNextImageProcessor`, `Idefics3ImageProcessor`, `GotOcr2ImageProcessor`.
    Tiles,
    /// Scaled to sides of its own shape: transformers' `Qwen2VLImageProcessor`, `Gemma4ImageProcessor`.
    Resize,
}

impl ImagePrep {
    /// Its name, as options and files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "crop",
            Self::Pad => "pad",
            Self::Stretch => "stretch",
            Self::Tiles => "tiles",
            Self::Resize => "resize",
        }
    }

    /// The one of a model's `ways` that is `asked` for, or else the first; none where there are none, since llama.cpp
    /// prepares pictures.
    ///
    /// # Errors
    /// A way in which such a model was not trained.
    pub(crate) fn of(ways: &[Self], asked: Option<Self>) -> Result<Option<Self>> {
        let Some(way) = asked else {
            return Ok(ways.first().copied());
        };
        if ways.contains(&way) {
            return Ok(asked);
        }
        let what = format!(
            "`{}` is no way to prepare pictures for this model",
            way.name()
        );
        let names: Vec<_> = ways.iter().map(|way| way.name()).collect();
        let hint = match names[..] {
            [] => "leave it out: llama.cpp prepares pictures for it".to_owned(),
            [only] => format!("leave it out: there is one way for it, `{only}`"),
            _ => format!("leave it out, or use `{}`", names.join("` or `")),
        };
        Err(Error::new(ErrorKind::Unsupported, what).with_hint(hint))
    }
}

/// A picture as RGB, upright.
pub struct Picture {
    rgb: RgbImage,
    path: String,
}

impl Picture {
    /// Reads a PNG, JPEG, GIF, WebP, BMP or TIFF file, whatever its name. As in transformers, the
    /// rotation in EXIF or XMP is applied, transparency is dropped and the first frame of an
    /// animation is taken; the last two are logged as warnings. `demo:NAME` is one of the demo's pictures.
    ///
    /// # Errors
    /// A file that cannot be read, is no picture, is damaged, or is too large; an unknown name.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        if let Some(file) = crate::demo::picture(path)? {
            return Self::from_bytes(file, &shown);
        }
        let read_error = |error| Error::io("read", path)(error);
        let metadata = std::fs::metadata(path).map_err(read_error)?;
        if !metadata.is_file() {
            return Err(unreadable(&shown, &"it is not a file"));
        }
        if metadata.len() > MAX_FILE_BYTES {
            let what = format!("the file is larger than {MAX_FILE_BYTES} bytes");
            return Err(unreadable(&shown, &what));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::from_bytes(&bytes, &shown)
    }

    /// As [`Picture::open`], from a file's contents; messages name them `shown`.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn from_bytes(bytes: &[u8], shown: &str) -> Result<Self> {
        let invalid = |error: &dyn Display| unreadable(shown, error);
        if bytes.is_empty() {
            return Err(invalid(&"the file is empty"));
        }
        if content::format(bytes).is_none()
            && let Some(foreign) = content::foreign(bytes)
        {
            let what = format!(
                "cannot read the picture `{shown}`: it is of type {}",
                foreign.name
            );
            return Err(Error::invalid(what)
                .with_hint("convert it to one of PNG, JPEG, GIF, WebP, BMP and TIFF"));
        }
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| invalid(&error))?;
        reader.limits(header_limits());
        let format = reader.format();
        let mut decoder = reader.into_decoder().map_err(|error| invalid(&error))?;
        let (width, height) = decoder.dimensions();
        check_size(shown, width, height)?;
        decoder
            .set_limits(Limits::default())
            .map_err(|error| invalid(&error))?;
        let orientation = orientation::orientation(&mut decoder, format, bytes)
            .map_err(|error| invalid(&error))?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(|error| invalid(&error))?;
        // The decoder fills what is missing with gray.
        if format == Some(ImageFormat::Jpeg) && !is_whole_jpeg(bytes) {
            return Err(invalid(&"the file is truncated"));
        }
        image.apply_orientation(orientation);
        if format.is_some_and(|format| is_animated(format, bytes)) {
            log::warn!("`{shown}` is animated: its first frame is used");
        }
        if is_transparent(&image) {
            log::warn!(
                "`{shown}` is transparent: its alpha channel is ignored, as in transformers"
            );
        }
        Ok(Self {
            rgb: image.into_rgb8(),
            path: shown.to_owned(),
        })
    }

    /// A picture from RGB pixels, for those who have no file.
    pub fn from_rgb(rgb: RgbImage) -> Self {
        Self {
            rgb,
            path: "picture".to_owned(),
        }
    }

    /// The whole picture.
    pub fn rgb(&self) -> &RgbImage {
        &self.rgb
    }

    /// The part that [`Picture::prepare`] shows: left, top, width and height as shares of the whole. With
    /// padding it reaches beyond the picture.
    pub fn kept(&self, prep: ImagePrep) -> [f32; 4] {
        let (width, height) = self.rgb.dimensions();
        let side = match prep {
            ImagePrep::Crop => width.min(height) as f32,
            ImagePrep::Pad => width.max(height) as f32,
            ImagePrep::Stretch | ImagePrep::Tiles | ImagePrep::Resize => return WHOLE,
        };
        let [width, height] = [width, height].map(|length| side / length as f32);
        [(1.0 - width) / 2.0, (1.0 - height) / 2.0, width, height]
    }

    /// The picture as `size` × `size` RGB pixels, `[size, size, 3]`; of tiles, the overview that comes with them, and
    /// of pictures with sides of their own, what a square of this size is scaled to. Scaling is Pillow's bicubic filter,
    /// and its bilinear one to stretch, as in transformers; a picture of that size stays as it is.
    ///
    /// # Errors
    /// A picture that is too long and narrow.
    pub fn prepare(&self, size: u32, prep: ImagePrep) -> Result<Vec<u8>> {
        let (width, height) = self.rgb.dimensions();
        if (width, height) == (size, size) {
            return Ok(self.rgb.as_raw().clone());
        }
        self.check_shape()?;
        let short = width.min(height);
        match prep {
            ImagePrep::Crop => {
                // transformers' `get_resize_output_image_size` and `center_crop`, rounding included.
                let scaled = |side: u32| {
                    let side = u64::from(size) * u64::from(side) / u64::from(short);
                    u32::try_from(side).expect("bounded by the aspect ratio")
                };
                let to = [scaled(width), scaled(height)];
                let resized = resize(&self.rgb, to, Filter::Bicubic);
                let left = (resized.width() - size) / 2;
                let top = (resized.height() - size) / 2;
                let crop = imageops::crop_imm(&resized, left, top, size, size);
                Ok(crop.to_image().into_raw())
            }
            ImagePrep::Pad => Ok(resize_padded(&self.rgb, size).into_raw()),
            ImagePrep::Stretch => Ok(resize(&self.rgb, [size; 2], Filter::Bilinear).into_raw()),
            ImagePrep::Tiles | ImagePrep::Resize => {
                Ok(resize(&self.rgb, [size; 2], Filter::Bicubic).into_raw())
            }
        }
    }

    /// The part of it at `place`, left, top, width and height as shares of the whole, with `side` pixels along
    /// its longest side at most. What lies outside of the picture has the colour that it is padded with.
    pub fn part(&self, place: [f32; 4], side: u32) -> RgbImage {
        let (width, height) = self.rgb.dimensions();
        let lengths = [width, height, width, height].map(|length| length as f32);
        let [left, top, part_width, part_height]: [f32; 4] =
            std::array::from_fn(|i| place[i] * lengths[i]);
        let scale = (side as f32 / part_width.max(part_height)).min(1.0);
        let scaled = |length: f32| ((length * scale).round() as u32).max(1);
        let whole = match scale < 1.0 {
            true => {
                let [width, height] = [width, height].map(|length| scaled(length as f32));
                &imageops::thumbnail(&self.rgb, width, height)
            }
            false => &self.rgb,
        };
        let colour = image::Rgb(PAD_COLOUR);
        let mut part = RgbImage::from_pixel(scaled(part_width), scaled(part_height), colour);
        let [x, y] = [left, top].map(|start| -(start * scale).round() as i64);
        imageops::replace(&mut part, whole, x, y);
        part
    }

    /// Checks that it is not too long and narrow.
    pub(crate) fn check_shape(&self) -> Result<()> {
        let (width, height) = self.rgb.dimensions();
        if width.max(height) <= width.min(height).saturating_mul(MAX_ASPECT_RATIO) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "`{}` is {width} × {height} pixels: more than {MAX_ASPECT_RATIO} times as long as wide",
            self.path
        ))
        .with_hint("cut out the part that matters"))
    }

    /// The share of the picture that the model sees, of its area.
    pub(crate) fn seen_share(&self, prep: ImagePrep) -> f64 {
        let (width, height) = self.rgb.dimensions();
        match prep {
            ImagePrep::Crop => f64::from(width.min(height)) / f64::from(width.max(height)),
            ImagePrep::Pad | ImagePrep::Stretch | ImagePrep::Tiles | ImagePrep::Resize => 1.0,
        }
    }

    /// Its file, as messages name it.
    pub(crate) fn shown(&self) -> &str {
        &self.path
    }
}

fn unreadable(shown: &str, why: &dyn Display) -> Error {
    Error::invalid(format!("cannot read the picture `{shown}`: {why}"))
        .with_hint("use a PNG, JPEG, GIF, WebP, BMP or TIFF file")
}

/// Limits of what is read before the pixels, such as a colour profile that unpacks a thousandfold.
fn header_limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_HEADER_BYTES);
    limits
}

fn check_size(path: &str, width: u32, height: u32) -> Result<()> {
    let n_pixels = u64::from(width) * u64::from(height);
    if n_pixels <= MAX_PIXELS {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`{path}` needs {width} × {height} pixels: more than {} megapixels",
        MAX_PIXELS / 1_000_000
    ))
    .with_hint("scale it down first; the model sees a few hundred pixels a side"))
}

/// Scales with one of Pillow's antialiased filters, as Pillow does: first along rows, then along columns,
/// rounded to 8 bits after each. The other order, or one rounding, moves pixels beside hard edges by up to 19 of
/// 255.
fn resize(rgb: &RgbImage, to: [u32; 2], filter: Filter) -> RgbImage {
    let narrowed = along_rows(rgb.as_raw(), rgb.width(), to[0], filter);
    shorten(&narrowed, rgb.height(), to, filter)
}

/// Scales rows of `to[0]` pixels along columns.
fn shorten(narrowed: &[u8], height: u32, to: [u32; 2], filter: Filter) -> RgbImage {
    let scaled = along_columns(narrowed, height, to[1], filter);
    RgbImage::from_raw(to[0], to[1], scaled).expect("both directions were scaled")
}

/// Rows of a padded square that are made at once.
const BAND_ROWS: usize = 64;

/// Pads to a square and scales to `size` × `size`. The square is made band by band: that of a long
/// picture may be far larger than the picture.
fn resize_padded(rgb: &RgbImage, size: u32) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let side = width.max(height);
    let (left, top) = ((side - width) / 2, ((side - height) / 2) as usize);
    let (left, width) = (row_bytes(left), row_bytes(width));
    let padding = PAD_COLOUR.repeat(side as usize);
    let rows = rgb.as_raw().chunks(width);
    let band = |first: usize| {
        let last = (side as usize).min(first + BAND_ROWS);
        let mut band = padding.repeat(last - first);
        let inside = first.max(top)..last.min(top + height as usize);
        for (y, row) in inside
            .clone()
            .zip(rows.clone().skip(inside.start.saturating_sub(top)))
        {
            let start = (y - first) * padding.len() + left;
            band[start..start + width].copy_from_slice(row);
        }
        band
    };
    let bands = (0..side as usize).step_by(BAND_ROWS).map(band);
    let narrowed: Vec<u8> = bands
        .flat_map(|band| along_rows(&band, side, size, Filter::Bicubic))
        .collect();
    shorten(&narrowed, side, [size; 2], Filter::Bicubic)
}

fn row_bytes(width: u32) -> usize {
    3 * width as usize
}

/// Whether a JPEG file reaches its end marker (ITU-T T.81, annex B): segments with lengths, and coded
/// data that runs to the next marker.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut rest = &bytes[2..]; // behind the start marker
    loop {
        // Coded data escapes 0xff as 0xff00 and holds restart markers; fill bytes may come before any.
        let marker = rest
            .windows(2)
            .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff));
        let Some(start) = marker else { return false };
        if rest[start + 1] == END {
            return true;
        }
        rest = &rest[start + 2..];
        let Some((length, _)) = rest.split_first_chunk() else {
            return false;
        };
        let length = usize::from(u16::from_be_bytes(*length));
        rest = rest.get(length..).unwrap_or_default();
    }
}

fn is_transparent(image: &DynamicImage) -> bool {
    image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel[3] != u8::MAX)
}

fn is_animated(format: ImageFormat, bytes: &[u8]) -> bool {
    let bytes = Cursor::new(bytes);
    match format {
        ImageFormat::Gif => {
            GifDecoder::new(bytes).is_ok_and(|decoder| decoder.into_frames().take(2).count() > 1)
        }
        ImageFormat::Png => PngDecoder::with_limits(bytes, header_limits())
            .is_ok_and(|decoder| decoder.is_apng().unwrap_or(false)),
        ImageFormat::WebP => WebPDecoder::new(bytes).is_ok_and(|decoder| decoder.has_animation()),
        _ => false,
    }
}
