//! Text from files on its way to a terminal, which control characters would steer.

/// The text on one line: control characters, line breaks and tabs among them, and those that turn the
/// writing direction of what follows, are shown by their codes, such as `\u{1b}`.
pub fn one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// As [`one_line`], but line breaks and tabs stay.
pub fn printable(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) && !stays(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{one_line, printable};

    #[test]
    fn what_steers_a_terminal_is_shown_by_its_code() {
        let check = |text: &str, line: &str, lines: &str| {
            assert_eq!(one_line(text), line);
            assert_eq!(printable(text), lines);
        };
        let harmless = "a \"label\", 日本 🍄";
        check(harmless, harmless, harmless);
        check(
            "a\n\tb\u{1b}[31m\u{0}\r",
            "a\\n\\tb\\u{1b}[31m\\u{0}\\r",
            "a\n\tb\\u{1b}[31m\\u{0}\\r",
        );
        check(
            "a\u{2028}\u{202e}b",
            "a\\u{2028}\\u{202e}b",
            "a\\u{2028}\\u{202e}b",
        );
    }
}
