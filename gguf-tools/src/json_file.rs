//! JSON of unknown origin, in bounded memory.
//!
//! A value of two bytes can take a hundred in memory, or twice that where the form has to be guessed.
//! So files of settings are bounded as a whole, and what is long is read value by value.

use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::json_text::{self, plain};
use crate::{Error, Result, input_file};

/// Longest file of settings; the longest known have a megabyte.
const MAX_SETTINGS_BYTES: u64 = 8 << 20;

/// Most values in a text that is read as a whole.
const MAX_VALUES: usize = 1 << 17;

/// Reads a JSON file of settings.
///
/// # Errors
/// A file that cannot be read, is too large, or is not JSON of the expected form.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse(&read_text(path, MAX_SETTINGS_BYTES)?).map_err(malformed(path))
}

/// Reads a JSON file of at most `max_bytes`, made [`plain`].
///
/// # Errors
/// A file that cannot be read, or is larger.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    Ok(plain(&input_file::read(path, max_bytes)?))
}

/// As [`read_json`]; `None` if there is no such file.
///
/// # Errors
/// As [`read_json`].
pub(crate) fn read_optional_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

/// The error for a file that is not JSON of the expected form.
pub(crate) fn malformed(path: &Path) -> impl Fn(serde_json::Error) -> Error {
    move |error| Error::invalid(format!("cannot read `{}`: {error}", path.display()))
}

/// Reads a JSON text as a whole.
///
/// # Errors
/// Text that is not JSON of the expected form, or holds too many values.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> serde_json::Result<T> {
    if json_text::n_values(text) > MAX_VALUES {
        let what = format!("it has more than {MAX_VALUES} values");
        return Err(serde_json::Error::custom(what));
    }
    serde_json::from_slice(text)
}

/// Hands out the elements of a JSON array one by one.
///
/// # Errors
/// Text that is no such array, as `malformed` words it, and the first error of `take`.
pub(crate) fn for_each<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    json: D,
    malformed: impl FnOnce(D::Error) -> Error,
    take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let mut fault = None;
    let elements = Elements {
        take,
        fault: &mut fault,
        element: PhantomData,
    };
    let result = json.deserialize_seq(elements);
    fault.map_or(Ok(()), Err)?;
    result.map_err(malformed)
}

/// As [`for_each`], for the keys and values of a JSON object.
///
/// # Errors
/// As [`for_each`].
pub(crate) fn for_each_pair<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    json: D,
    malformed: impl FnOnce(D::Error) -> Error,
    mut take: impl FnMut(String, T) -> Result<()>,
) -> Result<()> {
    let mut fault = None;
    let pairs = Elements {
        take: |(key, value)| take(key, value),
        fault: &mut fault,
        element: PhantomData,
    };
    let result = json.deserialize_map(Pairs(pairs));
    fault.map_or(Ok(()), Err)?;
    result.map_err(malformed)
}

struct Elements<'a, T, F> {
    take: F,
    /// What `take` says, which the parser's own error cannot hold.
    fault: &'a mut Option<Error>,
    element: PhantomData<T>,
}

impl<T, F: FnMut(T) -> Result<()>> Elements<'_, T, F> {
    fn hand_out<E: serde::de::Error>(&mut self, element: T) -> std::result::Result<(), E> {
        (self.take)(element).map_err(|fault| {
            *self.fault = Some(fault);
            E::custom("refused")
        })
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T) -> Result<()>> Visitor<'de> for Elements<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> std::result::Result<(), A::Error> {
        while let Some(element) = array.next_element()? {
            self.hand_out(element)?;
        }
        Ok(())
    }
}

struct Pairs<E>(E);

impl<'de, T, F> Visitor<'de> for Pairs<Elements<'_, (String, T), F>>
where
    T: Deserialize<'de>,
    F: FnMut((String, T)) -> Result<()>,
{
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> std::result::Result<(), A::Error> {
        while let Some(pair) = object.next_entry()? {
            self.0.hand_out(pair)?;
        }
        Ok(())
    }
}
