//! What a file holds, by its first bytes: names of pictures are often wrong or missing.

use image::ImageFormat;

/// Bytes that are enough to tell.
pub(crate) const START_BYTES: usize = 512;

/// What begins like something that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Whether it is a picture.
    pub(crate) is_picture: bool,
}

/// The format of a picture that is read.
pub(crate) fn format(start: &[u8]) -> Option<ImageFormat> {
    match image::guess_format(start).ok()? {
        ImageFormat::Bmp => is_bmp(start).then_some(ImageFormat::Bmp),
        format @ (ImageFormat::Png
        | ImageFormat::Jpeg
        | ImageFormat::Gif
        | ImageFormat::WebP
        | ImageFormat::Tiff) => Some(format),
        _ => None,
    }
}

/// Texts may begin with `BM` too: a bitmap goes on with four zeros and the size of its header.
fn is_bmp(start: &[u8]) -> bool {
    let header = start.get(14..18).and_then(|bytes| bytes.try_into().ok());
    start.get(6..10) == Some(&[0; 4])
        && header.is_some_and(|bytes| (12..=124).contains(&u32::from_le_bytes(bytes)))
}

/// What is known and not read.
pub(crate) fn foreign(start: &[u8]) -> Option<Foreign> {
    const PICTURES: [(&[u8], &str); 7] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "PSD"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"\0\0\x01\0", "ICO"),
    ];
    const OTHERS: [(&[u8], &str); 4] = [
        (b"%PDF-", "PDF"),
        (b"PK\x03\x04", "ZIP"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    ];
    let is_picture = |name| Foreign {
        name,
        is_picture: true,
    };
    let is_other = |name| Foreign {
        name,
        is_picture: false,
    };
    let named = |list: &[(&[u8], &'static str)]| {
        let found = list.iter().find(|(magic, _)| start.starts_with(magic));
        found.map(|&(_, name)| name)
    };
    if start.get(4..8) == Some(b"ftyp") {
        return Some(iso_media(&start[8..]).map_or(is_other("MP4 or MOV video"), is_picture));
    }
    named(&PICTURES)
        .map(is_picture)
        .or_else(|| named(&OTHERS).map(is_other))
        .or_else(|| markup(start))
}

/// The picture in an ISO base media file, by its brands (ISO/IEC 14496-12 and 23008-12): the main one,
/// a version, and others that it is compatible with.
fn iso_media(brands: &[u8]) -> Option<&'static str> {
    const HEIF: [&[u8]; 8] = [
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
    ];
    let has = |known: &[&[u8]]| brands.chunks_exact(4).any(|brand| known.contains(&brand));
    if has(&[b"avif", b"avis"]) {
        return Some("AVIF");
    }
    if has(&[b"crx "]) {
        return Some("CR3");
    }
    has(&HEIF).then_some("HEIC")
}

/// Downloads that failed are often web pages.
fn markup(start: &[u8]) -> Option<Foreign> {
    let start = &start[..start.len().min(START_BYTES)];
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if !text.starts_with('<') {
        return None;
    }
    let known = [
        ("<svg", "SVG", true),
        ("<html", "HTML page", false),
        ("<!doctype html", "HTML page", false),
    ];
    let found = known.iter().find(|(tag, ..)| text.contains(tag));
    found.map(|&(_, name, is_picture)| Foreign { name, is_picture })
}
