//! A reproduction's report as one page: `page.html`, `page.css` and `page.js` beside this file.

use super::page::document;
use crate::reproduce::Report;

impl Report {
    /// The report as one HTML page that holds its data and loads nothing.
    pub fn html(&self) -> String {
        let [template, style, script] = [
            include_str!("page.html"),
            concat!(include_str!("../page/report.css"), include_str!("page.css")),
            concat!(
                include_str!("../page/report.js"),
                "\n",
                include_str!("page.js")
            ),
        ];
        document::html(template, style, script, self)
    }
}
