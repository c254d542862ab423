//! What a page has on which a picture or a text is explored: `explorer/` beside this file.
//!
//! Its parts say where they look for data; a page gives `colours` in its own.

use crate::report::heatmap;

/// The picture beneath its patches, and the tokens.
pub(crate) const WHERE: &str = include_str!("explorer/where.html");
/// The list of features.
pub(crate) const FEATURES: &str = include_str!("explorer/features.html");
/// The features at a position.
pub(crate) const POSITION: &str = include_str!("explorer/position.html");
/// How these look.
pub(crate) const STYLE: &str = include_str!("explorer/explorer.css");
/// The colours of heat maps.
pub(crate) const HEAT_SCRIPT: &str = include_str!("explorer/heat.js");
/// What they do, in this order.
pub(crate) const SCRIPTS: [&str; 3] = [
    HEAT_SCRIPT,
    include_str!("explorer/stage.js"),
    include_str!("explorer/list.js"),
];

/// Colours of the heat map, from 0 to the largest activation.
const N_COLOURS: usize = 65;

/// The heat map's colours as CSS has them, `[N_COLOURS]`.
pub(crate) fn colours() -> Vec<String> {
    let hex = |i| {
        let [r, g, b] = heatmap::colour(i as f32 / (N_COLOURS - 1) as f32).0;
        format!("#{r:02x}{g:02x}{b:02x}")
    };
    (0..N_COLOURS).map(hex).collect()
}
