//! A page that holds its data, as JSON in which nothing can be taken for markup and which the script shows as text
//! only: `document.html`, with `base.css` and `element.js` in front of every page's own.

use serde::Serialize;

/// How tables look.
pub(crate) const TABLE_STYLE: &str = include_str!("table.css");
/// What makes tables.
pub(crate) const TABLE_SCRIPT: &str = include_str!("table.js");
/// What pages of reports share besides.
pub(in crate::report) const REPORT_STYLE: &str = include_str!("report.css");

/// A page's own parts, one behind the other.
pub(crate) struct Document<'a> {
    /// The title of its window.
    pub(crate) title: &'a str,
    /// What it may load, as directives of a content security policy; nothing else.
    pub(crate) sources: &'a str,
    /// What stands in its body.
    pub(crate) body: &'a [&'a str],
    /// Its styles.
    pub(crate) styles: &'a [&'a str],
    /// Its scripts.
    pub(crate) scripts: &'a [&'a str],
}

/// A document's text, and the content security policy that stands in it.
pub(crate) struct Html {
    pub(crate) text: String,
    #[cfg_attr(
        not(feature = "serve"),
        expect(dead_code, reason = "a server sends it as a header")
    )]
    pub(crate) policy: String,
}

impl Document<'_> {
    /// The page with this data.
    pub(crate) fn html(&self, data: &impl Serialize) -> Html {
        let (style, script) = (self.style_text(), self.script_text());
        self.html_with(data, |nonce| {
            let style = format!("<style nonce=\"{nonce}\">\n{style}</style>");
            let script = format!("<script nonce=\"{nonce}\">\n{script}</script>");
            [style, script]
        })
    }

    /// The page with this data, whose styles and scripts are in files at these addresses.
    #[cfg(feature = "scan")]
    pub(in crate::report) fn html_beside(
        &self,
        data: &impl Serialize,
        style: &str,
        script: &str,
    ) -> String {
        let page = self.html_with(data, |nonce| {
            let style = format!("<link rel=\"stylesheet\" nonce=\"{nonce}\" href=\"{style}\">");
            let script = format!("<script nonce=\"{nonce}\" src=\"{script}\"></script>");
            [style, script]
        });
        page.text
    }

    /// Its styles.
    pub(in crate::report) fn style_text(&self) -> String {
        [&[include_str!("base.css")], self.styles].concat().concat()
    }

    /// Its scripts.
    pub(in crate::report) fn script_text(&self) -> String {
        let scripts = [&[include_str!("element.js")], self.scripts].concat();
        scripts.join("\n")
    }

    /// The page with this data and with the elements of its style and of its script, which `elements` makes.
    fn html_with(&self, data: &impl Serialize, elements: impl Fn(&str) -> [String; 2]) -> Html {
        let data = serde_json::to_string(data).expect("a page's data is plain");
        let data = without_markup(&data);
        // Only what holds the hash of all data runs, and no data can hold its own hash.
        let nonce = blake3::hash(data.as_bytes()).to_hex();
        let policy = format!(
            "default-src 'none'; {}style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; base-uri 'none'; \
            form-action 'none'",
            self.sources
        );
        let [style, script] = elements(&nonce);
        let text = include_str!("document.html")
            .replace("{{title}}", self.title)
            .replace("{{policy}}", &policy)
            .replace("{{body}}\n", &[&self.body.concat(), "\n"].concat())
            .replace("{{style}}", &style)
            .replace("{{script}}", &script)
            .replace("{{data}}", &data); // last, since anything may stand in it
        Html { text, policy }
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
