//! A reproduction's report as one page: `page.html`, `page.css` and `page.js` beside this file.

use super::page::document::{Document, REPORT_STYLE, TABLE_SCRIPT, TABLE_STYLE};
use crate::reproduce::Report;

impl Report {
    /// The report as one HTML page that holds its data and loads nothing.
    pub fn html(&self) -> String {
        let document = Document {
            title: "Reproduction",
            sources: "",
            body: &[include_str!("page.html")],
            styles: &[REPORT_STYLE, TABLE_STYLE, include_str!("page.css")],
            scripts: &[TABLE_SCRIPT, include_str!("page.js")],
        };
        document.html(self).text
    }
}
