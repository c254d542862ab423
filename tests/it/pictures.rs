//! Broken pictures of every format: none panics or hangs, and what is allocated is bounded.

use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use llava_sae_cpp::Picture;

use crate::allocations::peak_of;
use crate::bad_input::crc32;

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::Gif,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

/// A picture of 9 × 7 pixels, none like another.
fn encoded(format: ImageFormat) -> Vec<u8> {
    let colour = |x: u32, y: u32| Rgba([x as u8 * 20, y as u8 * 30, 200 - x as u8, 255]);
    let image = DynamicImage::from(RgbaImage::from_fn(9, 7, colour));
    let image = match format {
        ImageFormat::Jpeg => DynamicImage::from(image.to_rgb8()),
        _ => image,
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("in memory");
    bytes.into_inner()
}

/// Opens `bytes` as a picture, and returns whether that works and what it allocates.
fn open(dir: &Path, bytes: &[u8]) -> (bool, usize) {
    let path = dir.join("picture");
    std::fs::write(&path, bytes).expect("writable");
    peak_of(|| Picture::open(&path).is_ok())
}

#[test]
fn cut_and_overwritten() {
    // A header may claim as many pixels as are read, and a pixel takes up to 8 bytes.
    const MOST_PIXELS: usize = 8 * 100_000_000 + (64 << 20);
    let dir = tempfile::tempdir().expect("a temporary folder");
    for format in FORMATS {
        let right = encoded(format);
        assert!(open(dir.path(), &right).0, "{format:?}");
        for end in 0..right.len() {
            let (_, peak) = open(dir.path(), &right[..end]);
            assert!(peak < 64 << 20, "{format:?} cut at {end}: {peak} bytes");
        }
        let mut broken = right.clone();
        for place in 0..right.len() {
            let numbers: [&[u8]; 4] = [&[0], &[0xff], &[0xff; 4], &[0xff, 0xff, 0xff, 0x7f]];
            for number in numbers {
                let end = right.len().min(place + number.len());
                broken[place..end].copy_from_slice(&number[..end - place]);
                let (_, peak) = open(dir.path(), &broken);
                assert!(
                    peak < MOST_PIXELS,
                    "{format:?}, {number:?} at {place}: {peak} bytes"
                );
                broken[place..end].copy_from_slice(&right[place..end]);
            }
        }
    }
}

/// A PNG chunk.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let content = [kind, data].concat();
    let length = (data.len() as u32).to_be_bytes();
    [&length[..], &content, &crc32(&content).to_be_bytes()].concat()
}

/// Sizes beyond the limit are refused before a pixel is, and texts that unpack to much do not matter.
#[test]
fn decompression_bombs() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let refused = |name: &str, bytes: &[u8]| {
        let (is_read, peak) = open(dir.path(), bytes);
        assert!(!is_read, "{name}");
        assert!(peak < 2 * bytes.len() + (64 << 20), "{name}: {peak} bytes");
    };
    let with_size = |format, at: usize, size: &[u8]| {
        let mut bytes = encoded(format);
        bytes[at..at + size.len()].copy_from_slice(size);
        bytes
    };
    for side in [20_000_u32, i32::MAX as u32] {
        let sides = [side.to_be_bytes(), side.to_be_bytes()].concat();
        let mut png = with_size(ImageFormat::Png, 16, &sides);
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        refused("PNG", &png);
        let sides = [side.to_le_bytes(), side.to_le_bytes()].concat();
        refused("BMP", &with_size(ImageFormat::Bmp, 18, &sides));
    }
    refused("GIF", &with_size(ImageFormat::Gif, 6, &[0xff; 4]));
    let jpeg = encoded(ImageFormat::Jpeg);
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == b"\xff\xc0")
        .expect("a frame");
    refused("JPEG", &with_size(ImageFormat::Jpeg, frame + 5, &[0xff; 4]));

    let mut deflated = Vec::new();
    let mut encoder = flate2::write::ZlibEncoder::new(&mut deflated, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &vec![b'x'; 200 << 20]).expect("in memory");
    encoder.finish().expect("in memory");
    let right = encoded(ImageFormat::Png);
    for (kind, start) in [
        (b"zTXt", &b"key\0\0"[..]),
        (b"iTXt", b"key\0\x01\0\0\0"),
        (b"iCCP", b"name\0\0"),
    ] {
        let bomb = chunk(kind, &[start, &deflated].concat());
        let bytes = [&right[..33], &bomb, &right[33..]].concat();
        let (_, peak) = open(dir.path(), &bytes);
        assert!(
            peak < 2 * bytes.len() + (64 << 20),
            "{kind:?}: {peak} bytes"
        );
    }
    // An IDAT of zeros for fewer pixels than it unpacks to.
    let image = chunk(b"IDAT", &deflated);
    let bytes = [&right[..33], &image, &chunk(b"IEND", b"")].concat();
    let (_, peak) = open(dir.path(), &bytes);
    assert!(peak < 2 * bytes.len() + (64 << 20), "IDAT: {peak} bytes");
}
