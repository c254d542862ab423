//! A checksum in a Parquet file's own metadata. It is checked before the file is taken apart: the
//! `parquet` crate (56) believes the lengths in a damaged file, and asks for any amount of memory; and of
//! 597 files with flipped bits, under checksums made to match, it panicked on 21. It guards against
//! damage, not against who makes a checksum match.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use parquet::file::metadata::KeyValue;

use crate::{Error, Result};

/// The metadata's key: the BLAKE3 hash, in hexadecimal, of the file with zeros in its place.
const KEY: &str = "llava_sae_cpp.blake3";
/// Length of a hash in hexadecimal, and what stands in its place while it is computed.
const HASH_BYTES: usize = 64;
const ZEROS: [u8; HASH_BYTES] = [b'0'; HASH_BYTES];
/// What follows a key in Thrift's compact protocol: the next field, a string of 64 bytes.
const VALUE_STARTS: [u8; 2] = [0x18, 0x40];
/// Ends a Parquet file, behind the length of its footer in 4 bytes.
const MAGIC: &[u8; 4] = b"PAR1";

/// What a file's end and checksum say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// It is as it was written.
    Whole,
    /// It is not what was written.
    Damaged,
    /// It is a Parquet file without such a checksum.
    None,
    /// It does not end as a Parquet file does.
    NoParquet,
}

/// The metadata that [`seal`] fills in; it must be the last.
pub(super) fn placeholder() -> KeyValue {
    let zeros = String::from_utf8_lossy(&ZEROS).into_owned();
    KeyValue::new(KEY.to_owned(), zeros)
}

/// Fills in the checksum of a complete file, open for reading and writing.
pub(super) fn seal(file: &mut File, shown: &Path) -> Result<()> {
    let write_error = || gguf_tools::Error::io("write", shown);
    let Ok(at) = find(file, shown)? else {
        return Err(Error::invalid(format!(
            "no place for a checksum in `{}`",
            shown.display()
        )));
    };
    let hash = hash_around(file, at).map_err(write_error())?;
    file.seek(SeekFrom::Start(at)).map_err(write_error())?;
    file.write_all(&hash).map_err(write_error())?;
    file.sync_all().map_err(write_error())?;
    Ok(())
}

/// Checks a file, in bounded memory whatever it holds.
pub(super) fn check(file: &mut File, shown: &Path) -> Result<Seal> {
    let read_error = || gguf_tools::Error::io("read", shown);
    let at = match find(file, shown)? {
        Ok(at) => at,
        Err(seal) => return Ok(seal),
    };
    let mut found = [0; HASH_BYTES];
    file.seek(SeekFrom::Start(at)).map_err(read_error())?;
    file.read_exact(&mut found).map_err(read_error())?;
    let hash = hash_around(file, at).map_err(read_error())?;
    Ok(if hash == found {
        Seal::Whole
    } else {
        Seal::Damaged
    })
}

/// Where the checksum stands, or why there is none. Reads the footer in pieces.
fn find(file: &mut File, shown: &Path) -> Result<std::result::Result<u64, Seal>> {
    const PIECE_BYTES: usize = 1 << 20;
    let read_error = || gguf_tools::Error::io("read", shown);
    let n_bytes = file.seek(SeekFrom::End(0)).map_err(read_error())?;
    if n_bytes < 12 {
        return Ok(Err(Seal::NoParquet));
    }
    let mut end = [0; 8];
    file.seek(SeekFrom::Start(n_bytes - 8))
        .and_then(|_| file.read_exact(&mut end))
        .map_err(read_error())?;
    let footer_bytes = u64::from(u32::from_le_bytes(end[..4].try_into().expect("four bytes")));
    if end[4..] != *MAGIC || footer_bytes > n_bytes - 12 {
        return Ok(Err(Seal::NoParquet));
    }
    let pattern = [KEY.as_bytes(), &VALUE_STARTS].concat();
    let mut at = n_bytes - 8 - footer_bytes;
    let mut last = None;
    let mut piece = Vec::new(); // the last bytes of one piece begin the next
    file.seek(SeekFrom::Start(at)).map_err(read_error())?;
    let mut footer = Read::take(&*file, footer_bytes);
    loop {
        let n_kept = piece.len().min(pattern.len() - 1);
        let n_dropped = piece.len() - n_kept;
        piece.drain(..n_dropped);
        at += n_dropped as u64;
        let n_read = Read::take(&mut footer, PIECE_BYTES as u64)
            .read_to_end(&mut piece)
            .map_err(read_error())?;
        if n_read == 0 {
            break;
        }
        let mut windows = piece.windows(pattern.len());
        if let Some(start) = windows.rposition(|window| window == pattern) {
            last = Some(at + (start + pattern.len()) as u64);
        }
    }
    let in_footer = |&at: &u64| at + HASH_BYTES as u64 <= n_bytes - 8;
    Ok(last.filter(in_footer).ok_or(Seal::None))
}

/// The hash of the whole file with zeros at `at`.
fn hash_around(file: &mut File, at: u64) -> std::io::Result<[u8; HASH_BYTES]> {
    let mut hasher = blake3::Hasher::new();
    file.rewind()?;
    hasher.update_reader(Read::take(&*file, at))?;
    hasher.update(&ZEROS);
    file.seek(SeekFrom::Start(at + HASH_BYTES as u64))?;
    hasher.update_reader(&*file)?;
    let hash = hasher.finalize().to_hex();
    Ok(hash.as_bytes().try_into().expect("64 digits"))
}
