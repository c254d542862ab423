//! A page of a template, a style, a script, and data: as JSON in which nothing can be taken for markup, and
//! which the script shows as text only. `base.css` and `element.js` are in front of every page's own.

use serde::Serialize;

/// The page that `template` is, with the others in the places that it has for them.
pub(in crate::report) fn html(
    template: &str,
    style: &str,
    script: &str,
    data: &impl Serialize,
) -> String {
    let data = serde_json::to_string(data).expect("a page's data is plain");
    let data = without_markup(&data);
    // Only what holds the hash of all data runs, and no data can hold its own hash.
    let nonce = blake3::hash(data.as_bytes()).to_hex();
    template
        .replace("{{nonce}}", &nonce)
        .replace("{{style}}", &[include_str!("base.css"), style].concat())
        .replace(
            "{{script}}",
            &[include_str!("element.js"), "\n", script].concat(),
        )
        .replace("{{data}}", &data) // last, since anything may stand in it
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
