//! The directory of a zip, as NumPy writes it (PKWARE's APPNOTE 6.3, with zip64).
//!
//! The `zip` crate reserves memory for as many entries as a file claims to have; here a directory is
//! read if it is as small as that of an SAE.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Largest directory that is read; that of five arrays has some hundred bytes.
const MAX_DIRECTORY_BYTES: u64 = 1 << 16;

/// What ends a zip: the record without a comment, which NumPy never writes.
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;

/// A file in a zip.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) packing: Packing,
    /// Where its bytes start in the zip.
    pub(super) start: u64,
    /// Its bytes in the zip, which end inside of that.
    pub(super) n_packed: u64,
    /// Its bytes once they are unpacked, as the zip says.
    pub(super) n_bytes: u64,
    pub(super) crc32: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Stored,
    Deflated,
}

/// The files in a zip of `n_file_bytes`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn entries(file: &mut File, n_file_bytes: u64) -> Result<Vec<Entry>, String> {
    let end_start = n_file_bytes
        .checked_sub(END_BYTES)
        .ok_or_else(|| format!("it has only {n_file_bytes} bytes"))?;
    let end: [u8; END_BYTES as usize] = record(file, end_start, b"PK\x05\x06")?;
    let mut count = u64::from(u16_at(&end, 10));
    let mut n_bytes = u64::from(u32_at(&end, 12));
    let mut start = u64::from(u32_at(&end, 16));
    if count == u64::from(u16::MAX) || n_bytes.max(start) == u64::from(u32::MAX) {
        let locator_start = end_start.saturating_sub(LOCATOR_BYTES);
        let locator: [u8; 20] = record(file, locator_start, b"PK\x06\x07")?;
        let end: [u8; 56] = record(file, u64_at(&locator, 8), b"PK\x06\x06")?;
        (count, n_bytes, start) = (u64_at(&end, 32), u64_at(&end, 40), u64_at(&end, 48));
    }
    if n_bytes > MAX_DIRECTORY_BYTES {
        return Err(format!("its directory claims {n_bytes} bytes"));
    }
    let mut directory = vec![0; n_bytes as usize];
    read_at(file, start, &mut directory)?;
    let mut rest = &directory[..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        entries.push(entry(file, &mut rest, n_file_bytes)?);
    }
    if entries.len() as u64 != count {
        return Err(format!(
            "its directory has {} entries, expected {count}",
            entries.len()
        ));
    }
    Ok(entries)
}

/// Takes one entry off the directory, and looks up where its bytes are.
fn entry(file: &mut File, directory: &mut &[u8], n_file_bytes: u64) -> Result<Entry, String> {
    const CUT_OFF: &str = "its directory is cut off";
    let (header, rest) = directory.split_first_chunk::<46>().ok_or(CUT_OFF)?;
    if !header.starts_with(b"PK\x01\x02") {
        return Err("its directory is malformed".to_owned());
    }
    let lengths = [28, 30, 32].map(|at| usize::from(u16_at(header, at)));
    let (name, rest) = rest.split_at_checked(lengths[0]).ok_or(CUT_OFF)?;
    let (extra, rest) = rest.split_at_checked(lengths[1]).ok_or(CUT_OFF)?;
    *directory = rest.get(lengths[2]..).ok_or(CUT_OFF)?;

    let name = str::from_utf8(name).map_err(|_| "a name in it is not valid UTF-8")?;
    if u16_at(header, 8) & 1 != 0 {
        return Err(format!("`{name}` is encrypted"));
    }
    let packing = match u16_at(header, 10) {
        0 => Packing::Stored,
        8 => Packing::Deflated,
        method => return Err(format!("`{name}` is packed by the unknown method {method}")),
    };
    let mut sizes = [24, 20, 42].map(|at| u64::from(u32_at(header, at)));
    let mut large = zip64_field(extra).chunks_exact(8);
    for size in sizes
        .iter_mut()
        .filter(|size| **size == u64::from(u32::MAX))
    {
        *size = u64_at(large.next().ok_or(CUT_OFF)?, 0);
    }
    let [n_bytes, n_packed, header_start] = sizes;

    let local: [u8; 30] = record(file, header_start, b"PK\x03\x04")?;
    let n_names = u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
    // `record` has read the header, so that its end is counted in 63 bits.
    let start = header_start + local.len() as u64 + n_names;
    let is_inside = start
        .checked_add(n_packed)
        .is_some_and(|end| end <= n_file_bytes);
    let is_stored_whole = packing == Packing::Deflated || n_packed == n_bytes;
    if !is_inside || !is_stored_whole {
        return Err(format!(
            "`{name}` has {n_packed} bytes of {n_bytes}, which the file does not"
        ));
    }
    Ok(Entry {
        name: name.to_owned(),
        packing,
        start,
        n_packed,
        n_bytes,
        crc32: u32_at(header, 16),
    })
}

/// The extra field with the sizes that need 64 bits, or nothing.
fn zip64_field(mut extra: &[u8]) -> &[u8] {
    const ZIP64: u16 = 1;
    while let Some((start, rest)) = extra.split_first_chunk::<4>() {
        let length = usize::from(u16_at(start, 2));
        match (u16_at(start, 0), rest.split_at_checked(length)) {
            (ZIP64, Some((field, _))) => return field,
            (_, Some((_, rest))) => extra = rest,
            (_, None) => break,
        }
    }
    &[]
}

/// Reads a record that begins with `signature`.
fn record<const N: usize>(
    file: &mut File,
    start: u64,
    signature: &[u8],
) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    read_at(file, start, &mut bytes)?;
    if bytes.starts_with(signature) {
        Ok(bytes)
    } else {
        Err(format!("byte {start} starts no zip record"))
    }
}

fn read_at(file: &mut File, start: u64, bytes: &mut [u8]) -> Result<(), String> {
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.read_exact(bytes))
        .map_err(|error| error.to_string())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
