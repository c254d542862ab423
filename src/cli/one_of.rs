//! Values of options that are the library's own.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// One of the library's values, by its name.
pub(super) fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let names = PossibleValuesParser::new(all.map(name));
    names.map(move |text| {
        let named = all.into_iter().find(|&value| name(value) == text);
        named.expect("clap lets no other name through")
    })
}
