//! A reproduction's report as one page: `page.html`, `page.css` and `page.js` beside this file.

use super::page::document::{Document, Pictures, REPORT_SCRIPT, REPORT_STYLE};
use crate::reproduce::Report;

impl Report {
    /// The report as one HTML page that holds its data and loads nothing.
    pub fn html(&self) -> String {
        let document = Document {
            title: "Reproduction",
            pictures: Pictures::None,
            body: include_str!("page.html"),
            styles: [REPORT_STYLE, include_str!("page.css")],
            scripts: [REPORT_SCRIPT, include_str!("page.js")],
        };
        document.html(self)
    }
}
