//! Which way up a picture is, as Pillow has it (13.0, `Image.getexif` in `Image.py` and `exif_transpose`
//! in `ImageOps.py`): the EXIF tag of that name, whatever it says; where there is none, the first
//! `tiff:Orientation` of the XMP packet.

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageResult};

/// The tag in EXIF and TIFF.
const ORIENTATION: u16 = 0x112;
/// The tag of an XMP packet in TIFF.
const XMP: u16 = 700;

/// The orientation of the picture in `bytes`, which `decoder` reads.
pub(super) fn orientation(
    decoder: &mut impl ImageDecoder,
    format: Option<ImageFormat>,
    bytes: &[u8],
) -> ImageResult<Orientation> {
    let number = match format {
        // A TIFF file is laid out as EXIF is. Its decoder has no room for the packet of a small picture.
        Some(ImageFormat::Tiff) => match Directory::open(bytes) {
            Some(tags) => tags
                .number(ORIENTATION)
                .or_else(|| xmp_number(tags.bytes_of(XMP)?)),
            None => return decoder.orientation(),
        },
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP) => {
            let exif = decoder.exif_metadata()?;
            let tags = exif.as_deref().and_then(Directory::open);
            tags.and_then(|tags| tags.number(ORIENTATION)).or_else(|| {
                // A packet that cannot be read does not matter.
                let xmp = decoder.xmp_metadata().ok().flatten()?;
                xmp_number(&xmp)
            })
        }
        _ => return decoder.orientation(),
    };
    let known = number.and_then(|number| Orientation::from_exif(u8::try_from(number).ok()?));
    Ok(known.unwrap_or(Orientation::NoTransforms))
}

/// The first directory of a TIFF file or an EXIF block (Exif 3.0, section 4.6).
struct Directory<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
    start: usize,
    n_entries: usize,
}

impl<'a> Directory<'a> {
    fn open(mut bytes: &'a [u8]) -> Option<Self> {
        while let Some(rest) = bytes.strip_prefix(b"Exif\0\0") {
            bytes = rest;
        }
        let mut directory = Self {
            bytes,
            is_big_endian: match bytes.get(..4)? {
                b"MM\0*" => true,
                b"II*\0" => false,
                _ => return None,
            },
            start: 0,
            n_entries: 0,
        };
        directory.start = directory.u32_at(4)? as usize;
        directory.n_entries = directory.u16_at(directory.start)?.into();
        Some(directory)
    }

    /// Where the entry of a tag is: tag and type in 2 bytes each, count and value in 4.
    fn entry(&self, tag: u16) -> Option<usize> {
        let mut entries = (0..self.n_entries).map(|i| self.start + 2 + 12 * i);
        entries.find(|&entry| self.u16_at(entry) == Some(tag))
    }

    fn number(&self, tag: u16) -> Option<u32> {
        let entry = self.entry(tag)?;
        match self.u16_at(entry + 2)? {
            1 => self.bytes.get(entry + 8).map(|&byte| byte.into()),
            3 => self.u16_at(entry + 8).map(u32::from),
            4 => self.u32_at(entry + 8),
            _ => None,
        }
    }

    /// The bytes that a tag of more than four leads to.
    fn bytes_of(&self, tag: u16) -> Option<&'a [u8]> {
        let entry = self.entry(tag)?;
        let (length, start) = (self.u32_at(entry + 4)?, self.u32_at(entry + 8)?);
        self.bytes.get(start as usize..)?.get(..length as usize)
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..)?.first_chunk()?;
        Some(match self.is_big_endian {
            true => u16::from_be_bytes(*bytes),
            false => u16::from_le_bytes(*bytes),
        })
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..)?.first_chunk()?;
        Some(match self.is_big_endian {
            true => u32::from_be_bytes(*bytes),
            false => u32::from_le_bytes(*bytes),
        })
    }
}

/// What Pillow's `tiff:Orientation(="|>)([0-9])` finds first.
fn xmp_number(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let ends = (NAME.len()..=xmp.len()).filter(|&end| xmp[..end].ends_with(NAME));
    let mut numbers = ends.filter_map(|end| {
        let rest = &xmp[end..];
        let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
        value.first().filter(|byte| byte.is_ascii_digit())
    });
    numbers.next().map(|digit| u32::from(digit - b'0'))
}
