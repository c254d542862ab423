//! Broken pictures of every format: none panics or hangs, and what is allocated is bounded.

use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use llava_sae_cpp::{ImagePrep, Picture};

use crate::allocations::peak_of;
use crate::bad_input::crc32;
use crate::command_line::run;

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
        (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0"),
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

/// `xmp`, or nothing, and EXIF with this orientation, or none, in a picture of 8 × 8 pixels.
fn with_metadata(format: ImageFormat, xmp: &str, exif: Option<u16>) -> Vec<u8> {
    let colour = |x: u32, y: u32| image::Rgb([x as u8 * 30, y as u8 * 30, 90]);
    let image = DynamicImage::from(image::RgbImage::from_fn(8, 8, colour));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("in memory");
    let bytes = bytes.into_inner();
    // A TIFF file whose directory has the tag alone.
    let exif = exif.map(|number| {
        let [low, high] = number.to_le_bytes();
        let entry = [0x12, 0x01, 3, 0, 1, 0, 0, 0, low, high, 0, 0];
        [&b"II*\0\x08\0\0\0\x01\0"[..], &entry, &[0; 4]].concat()
    });
    let exif = exif.as_deref();
    let xmp = (!xmp.is_empty()).then(|| format!("<x:xmpmeta>{xmp}</x:xmpmeta>"));
    let xmp = xmp.as_ref().map(String::as_bytes);
    match format {
        ImageFormat::Jpeg => {
            let segment = |start: &[u8], content: &[u8]| {
                let length = (2 + start.len() + content.len()) as u16;
                [&[0xff, 0xe1], &length.to_be_bytes()[..], start, content].concat()
            };
            let exif = exif.map(|exif| segment(b"Exif\0\0", exif));
            let xmp = xmp.map(|xmp| segment(b"http://ns.adobe.com/xap/1.0/\0", xmp));
            let (exif, xmp) = (exif.unwrap_or_default(), xmp.unwrap_or_default());
            [&bytes[..2], &exif, &xmp, &bytes[2..]].concat()
        }
        ImageFormat::Png => {
            let start = b"XML:com.adobe.xmp\0\0\0\0\0";
            let xmp = xmp.map(|xmp| chunk(b"iTXt", &[start, xmp].concat()));
            let exif = exif.map(|exif| chunk(b"eXIf", exif));
            let (exif, xmp) = (exif.unwrap_or_default(), xmp.unwrap_or_default());
            [&bytes[..33], &exif, &xmp, &bytes[33..]].concat()
        }
        ImageFormat::WebP => {
            let part = |name: &[u8], content: &[u8]| {
                let length = (content.len() as u32).to_le_bytes();
                let padding = &[0][..content.len() % 2];
                [name, &length[..], content, padding].concat()
            };
            let flags = 8 * u8::from(exif.is_some()) + 4 * u8::from(xmp.is_some());
            let header = part(b"VP8X", &[flags, 0, 0, 0, 7, 0, 0, 7, 0, 0]);
            let exif = exif.map(|exif| part(b"EXIF", exif)).unwrap_or_default();
            let xmp = xmp.map(|xmp| part(b"XMP ", xmp)).unwrap_or_default();
            let content = [b"WEBP", &header[..], &bytes[12..], &exif, &xmp].concat();
            part(b"RIFF", &content)
        }
        ImageFormat::Tiff => {
            // A directory with more entries, at the end.
            let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let directory =
                u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes")) as usize;
            let n_entries = usize::from(u16_at(directory));
            let entries = bytes[directory + 2..][..12 * n_entries].chunks_exact(12);
            let mut entries: Vec<Vec<u8>> = entries.map(<[u8]>::to_vec).collect();
            if let Some(exif) = exif {
                entries.push(exif[10..22].to_vec());
            }
            let mut end = bytes.clone();
            if let Some(xmp) = xmp {
                let (length, at) = (xmp.len() as u32, end.len() as u32);
                let entry = [
                    &[0xbc, 0x02, 1, 0],
                    &length.to_le_bytes()[..],
                    &at.to_le_bytes(),
                ];
                entries.push(entry.concat());
                end.extend(xmp);
            }
            end.resize(end.len().next_multiple_of(2), 0);
            entries.sort_by_key(|entry| u16::from_le_bytes([entry[0], entry[1]]));
            let at = (end.len() as u32).to_le_bytes();
            end[4..8].copy_from_slice(&at);
            end.extend((entries.len() as u16).to_le_bytes());
            end.extend(entries.concat());
            end.extend([0; 4]);
            end
        }
        other => panic!("no metadata in {other:?}"),
    }
}

/// Orientation in XMP counts as in Pillow: where EXIF says nothing.
#[test]
fn orientation_in_xmp() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for format in [
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Tiff,
    ] {
        let pixels = |xmp: &str, exif: Option<u16>| {
            let path = dir.path().join("picture");
            std::fs::write(&path, with_metadata(format, xmp, exif)).expect("writable");
            let picture = Picture::open(&path).expect("a whole picture");
            picture.prepare(8, ImagePrep::Crop).expect("it is square")
        };
        let as_it_lies = pixels("", None);
        let mut turned: Vec<_> = (1..=8).map(|number| pixels("", Some(number))).collect();
        assert!(turned[0] == as_it_lies, "{format:?}");
        for number in 1..=8_u16 {
            let expected = &turned[usize::from(number) - 1];
            let attribute = format!("<rdf:Description tiff:Orientation=\"{number}\"/>");
            let element = format!("<tiff:Orientation>{number}</tiff:Orientation>");
            for xmp in [attribute, element] {
                assert!(&pixels(&xmp, None) == expected, "{format:?}: {xmp}");
                // EXIF has the first word, whatever it says.
                for (exif, expected) in [
                    (1, &as_it_lies),
                    (0, &as_it_lies),
                    (9, &as_it_lies),
                    (6, &turned[5]),
                ] {
                    assert!(
                        &pixels(&xmp, Some(exif)) == expected,
                        "{format:?}: {xmp}, {exif}"
                    );
                }
            }
        }
        for xmp in [
            "<tiff:Orientation>x</tiff:Orientation>",
            "<tiff:Orientation/>",
            "<tiff:Orientation>0</tiff:Orientation>",
            "<exif:Orientation>6</exif:Orientation>",
            "tiff:Orientation='6'",
            "tiff:Orientation",
        ] {
            assert!(pixels(xmp, None) == as_it_lies, "{format:?}: {xmp}");
        }
        let second = "<tiff:Orientation/><tiff:Orientation>6</tiff:Orientation>";
        assert!(pixels(second, None) == turned[5], "{format:?}");
        turned.dedup();
        assert_eq!(
            turned.len(),
            8,
            "{format:?}: each turns in a way of its own"
        );
    }
}

/// Padding a strip takes no more memory than its pixels and some bands of them.
#[test]
fn padding_of_strips() {
    let colour = |x: u32, y: u32| image::Rgb([x as u8, (x / 7 + 3 * y) as u8, y as u8]);
    for (width, height) in [
        (600, 30),
        (30, 600),
        (101, 64),
        (64, 101),
        (65, 64),
        (1, 60),
        (200, 199),
    ] {
        let strip = image::RgbImage::from_fn(width, height, colour);
        let side = width.max(height);
        let mut square = image::RgbImage::from_pixel(side, side, image::Rgb([122, 116, 104]));
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        image::imageops::replace(&mut square, &strip, left.into(), top.into());
        let square = Picture::from_rgb(square).prepare(56, ImagePrep::Crop);
        let padded = Picture::from_rgb(strip).prepare(56, ImagePrep::Pad);
        assert!(
            padded.expect("fits") == square.expect("fits"),
            "{width} × {height}"
        );
    }
    for (width, height) in [(12_000, 600), (600, 12_000), (20_000, 400)] {
        let strip = Picture::from_rgb(image::RgbImage::from_fn(width, height, colour));
        let (padded, peak) = peak_of(|| strip.prepare(336, ImagePrep::Pad));
        let padded = padded.expect("it fits");
        assert_eq!(padded[..3], [122, 116, 104]);
        let middle = 3 * (168 * 336 + 168);
        assert_ne!(padded[middle..middle + 3], [122, 116, 104]);
        assert!(peak < 200 << 20, "{width} × {height}: {peak} bytes");
    }
}

/// A crop that shows little of a picture is said, and padding is not.
#[test]
fn crops_that_show_little() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (width, height, words) in [
        (600, 30, Some("the middle 5 % of")),
        (20, 60, Some("the middle 33 % of")),
        (50, 40, None),
    ] {
        let path = dir.path().join("strip.png");
        let strip = image::RgbImage::from_pixel(width, height, image::Rgb([9, 9, 9]));
        strip.save(&path).expect("saved");
        let path = path.to_str().expect("a plain path");
        for (prep, is_crop) in [("crop", true), ("pad", false)] {
            let output = run(&["-n", "1", "--image-prep", prep, path]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let is_said = words.is_some_and(|words| said.contains(words));
            assert_eq!(is_said, is_crop && words.is_some(), "{said}");
            assert_eq!(said.contains("the middle"), is_said, "{said}");
        }
    }
}
