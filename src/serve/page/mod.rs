//! The page at `/`: one file that holds all that it needs, and asks nobody but this server.
//!
//! Its own parts are the files beside this one; how a picture is explored, tables, and the curves of sweeps are those of
//! the pages that reports are (`crate::report`).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use serde::Serialize;

use crate::report::page::document::{Document, Html, TABLE_SCRIPT, TABLE_STYLE};
use crate::report::page::explorer;
use crate::report::sweep::{CHARTS_SCRIPT, CHARTS_STYLE};

const STYLES: [&str; 4] = [
    TABLE_STYLE,
    explorer::STYLE,
    CHARTS_STYLE,
    include_str!("page.css"),
];

/// In this order: the last starts the page.
const SCRIPTS: [&str; 14] = [
    TABLE_SCRIPT,
    explorer::SCRIPTS[0],
    explorer::SCRIPTS[1],
    explorer::SCRIPTS[2],
    CHARTS_SCRIPT,
    include_str!("api.js"),
    include_str!("picture.js"),
    include_str!("interventions.js"),
    include_str!("set.js"),
    include_str!("compare.js"),
    include_str!("feature.js"),
    include_str!("chat.js"),
    include_str!("sweep.js"),
    include_str!("page.js"),
];

/// What the page holds before it has asked for anything; labels and names come with answers.
#[derive(Serialize)]
struct Data {
    colours: Vec<String>,
    labels: BTreeMap<usize, String>,
    names: BTreeMap<usize, String>,
    positions: &'static str,
    neuronpedia: BTreeMap<String, String>,
}

/// The page, with headers by which it loads and sends nothing elsewhere, and stands in no other page.
pub(super) async fn page() -> impl IntoResponse {
    static PAGE: OnceLock<Html> = OnceLock::new();
    let Html { text, policy } = PAGE.get_or_init(html);
    let headers: [(HeaderName, String); 5] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (
            header::CONTENT_SECURITY_POLICY,
            format!("{policy}; frame-ancestors 'none'"),
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, text.as_str())
}

fn html() -> Html {
    let body = include_str!("page.html")
        .replace("{{where}}", explorer::WHERE)
        .replace("{{features}}", explorer::FEATURES)
        .replace("{{position}}", explorer::POSITION);
    let document = Document {
        title: "llava-sae-cpp",
        sources: "connect-src 'self'; img-src data: blob: 'self'; ",
        body: &[&body],
        styles: &STYLES,
        scripts: &SCRIPTS,
    };
    document.html(&Data {
        colours: explorer::colours(),
        labels: BTreeMap::new(),
        names: BTreeMap::new(),
        positions: "",
        neuronpedia: BTreeMap::new(),
    })
}
