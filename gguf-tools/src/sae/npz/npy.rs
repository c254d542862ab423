//! The header of a `.npy` array (NumPy's `lib/format.py`): versions, a length, and a Python dict.
//!
//! ```text
//! {'descr': '<f4', 'fortran_order': False, 'shape': (2304, 16384), }
//! ```
//!
//! Parsers of whole Python literals take time that doubles with each nested bracket; a plain array
//! has none.

use std::io::Read;

/// Longest header that is read; NumPy writes fewer than 200 bytes.
const MAX_HEADER_BYTES: u32 = 1 << 16;

/// What an array says about itself.
pub(super) struct Header {
    /// Its number type, `<f4`.
    pub(super) descr: String,
    pub(super) order: Order,
    pub(super) shape: Vec<usize>,
    /// Bytes of this header.
    pub(super) n_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    C,
    Fortran,
}

/// Reads the header at the start of `array`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(array: &mut impl Read) -> Result<Header, String> {
    let magic: [u8; 8] = bytes(array)?;
    if !magic.starts_with(b"\x93NUMPY") {
        return Err("it is not an `.npy` array".to_owned());
    }
    let (n_start, length) = match magic[6] {
        1 => (10, u32::from(u16::from_le_bytes(bytes(array)?))),
        2 | 3 => (12, u32::from_le_bytes(bytes(array)?)),
        version => return Err(format!("it has the unknown version {version}")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header claims {length} bytes"));
    }
    let mut text = vec![0; length as usize];
    array
        .read_exact(&mut text)
        .map_err(|error| error.to_string())?;
    let n_bytes = n_start + u64::from(length);
    str::from_utf8(&text)
        .ok()
        .and_then(|text| parse(text, n_bytes))
        .ok_or_else(|| "its header is not that of a plain array".to_owned())
}

fn bytes<const N: usize>(array: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    array
        .read_exact(&mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn parse(text: &str, n_bytes: u64) -> Option<Header> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut order, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, tail) = rest.split_once(':')?;
        let tail = tail.trim_start();
        let end = match tail.strip_prefix('(') {
            Some(_) => tail.find(')')? + 1,
            None => tail.find(',').unwrap_or(tail.len()),
        };
        let (value, tail) = tail.split_at(end);
        match unquoted(key)? {
            "descr" => descr = Some(unquoted(value)?.to_owned()),
            "fortran_order" => order = Some(parse_order(value)?),
            "shape" => shape = Some(parse_shape(value)?),
            _ => return None,
        }
        rest = tail.trim_start();
        if let Some(next) = rest.strip_prefix(',') {
            rest = next.trim_start();
        } else if !rest.is_empty() {
            return None;
        }
    }
    Some(Header {
        descr: descr?,
        order: order?,
        shape: shape?,
        n_bytes,
    })
}

fn unquoted(text: &str) -> Option<&str> {
    let text = text.trim();
    ['\'', '"']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote))
}

fn parse_order(text: &str) -> Option<Order> {
    match text.trim() {
        "False" => Some(Order::C),
        "True" => Some(Order::Fortran),
        _ => None,
    }
}

/// `(2304, 16384)`, `(16384,)` or `()`.
fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let sizes = text.strip_prefix('(')?.strip_suffix(')')?.trim();
    let sizes = sizes.strip_suffix(',').unwrap_or(sizes);
    if sizes.is_empty() {
        return Some(Vec::new());
    }
    sizes
        .split(',')
        .map(|size| size.trim().parse().ok())
        .collect()
}
