//! Tables of features, as text.

use std::io::{self, Write};

use llava_sae_cpp::Sae;
use llava_sae_cpp::features::FeatureScore;

/// Prints ranked features under `title`: rank, index, lift if there is a baseline, score, largest activation, the number of
/// positions where it is active, label.
pub(super) fn print_features(
    out: &mut dyn Write,
    title: &str,
    scores: &[FeatureScore],
    sae: &Sae,
) -> io::Result<()> {
    writeln!(out, "{}", one_line(title))?;
    if scores.is_empty() {
        return writeln!(out, "  none is active");
    }
    let has_lift = scores[0].lift.is_some();
    let lift_title = if has_lift { "      lift" } else { "" };
    writeln!(
        out,
        "  rank  feature{lift_title}     score       max  tokens  label"
    )?;
    for (i, score) in scores.iter().enumerate() {
        let label = sae.label(score.feature).map(one_line).unwrap_or_default();
        let lift = score.lift.map(|lift| format!("  {lift:>8.3}"));
        let line = format!(
            "{:>6}  {:>7}{}  {:>8.3}  {:>8.3}  {:>6}  {label}",
            i + 1,
            score.feature,
            lift.unwrap_or_default(),
            score.score,
            score.max,
            score.n_tokens,
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A text without line breaks and other control characters, and without those that turn the writing
/// direction of what follows: they could garble a terminal.
pub(super) fn one_line(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn what_garbles_a_line_is_shown_by_its_code() {
        assert_eq!(one_line("a \"label\", 日本 🍄"), "a \"label\", 日本 🍄");
        assert_eq!(one_line("a\nb\u{1b}[31m\u{0}"), "a\\nb\\u{1b}[31m\\u{0}");
        assert_eq!(one_line("a\u{2028}\u{202e}b"), "a\\u{2028}\\u{202e}b");
    }
}
