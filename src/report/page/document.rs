//! A page that holds its data, as JSON in which nothing can be taken for markup and which the script shows as text
//! only, and loads nothing: `document.html`, with `base.css` and `element.js` in front of every page's own.

use serde::Serialize;

/// What pages of numbers and tables share, behind what all do.
pub(in crate::report) const REPORT_STYLE: &str = include_str!("report.css");
/// The same of their scripts.
pub(in crate::report) const REPORT_SCRIPT: &str = include_str!("report.js");

/// A page's own parts.
pub(in crate::report) struct Document<'a> {
    /// The title of its window.
    pub(in crate::report) title: &'a str,
    /// What pictures it may show.
    pub(in crate::report) pictures: Pictures,
    /// What stands in its body.
    pub(in crate::report) body: &'a str,
    /// One behind the other.
    pub(in crate::report) styles: [&'a str; 2],
    /// The same.
    pub(in crate::report) scripts: [&'a str; 2],
}

/// What pictures a page may show.
pub(in crate::report) enum Pictures {
    /// None.
    None,
    /// Those in its data.
    Data,
}

impl Document<'_> {
    /// The page with this data.
    pub(in crate::report) fn html(&self, data: &impl Serialize) -> String {
        let data = serde_json::to_string(data).expect("a page's data is plain");
        let data = without_markup(&data);
        // Only what holds the hash of all data runs, and no data can hold its own hash.
        let nonce = blake3::hash(data.as_bytes()).to_hex();
        let pictures = match self.pictures {
            Pictures::None => "",
            Pictures::Data => "img-src data:; ",
        };
        let [style, more_style] = self.styles;
        let [script, more_script] = self.scripts;
        include_str!("document.html")
            .replace("{{title}}", self.title)
            .replace("{{images}}", pictures)
            .replace("{{nonce}}", &nonce)
            .replace("{{body}}\n", &[self.body, "\n"].concat())
            .replace(
                "{{style}}",
                &[include_str!("base.css"), style, more_style].concat(),
            )
            .replace(
                "{{script}}",
                &[include_str!("element.js"), script, more_script].join("\n"),
            )
            .replace("{{data}}", &data) // last, since anything may stand in it
    }
}

/// JSON with those characters escaped that HTML or old JavaScript could take for something else; they
/// stand only within its strings.
fn without_markup(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::without_markup;

    #[test]
    fn json_becomes_harmless_and_stays_the_same() {
        let nasty = "</script><!-- & \u{2028}\u{2029} \" \\ \u{0}";
        let json = serde_json::to_string(nasty).expect("a text");
        let escaped = without_markup(&json);
        assert!(!escaped.contains(['<', '>', '&', '\u{2028}', '\u{2029}']));
        assert_eq!(
            serde_json::from_str::<String>(&escaped).expect("JSON"),
            nasty
        );
    }
}
