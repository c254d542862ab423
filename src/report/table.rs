//! Tables of features, as text.

use std::io::{self, Write};

use crate::Sae;
use crate::rank::FeatureScore;
use gguf_tools::terminal::one_line;

/// What the score of a table's features is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Their largest activation, which has its own column.
    Max,
    /// Something else.
    Other,
}

/// Prints ranked features under `title`: rank, index, lift if there is a baseline, score, largest
/// activation, the number of positions where it is active, label.
///
/// # Errors
/// Those of `out`.
pub fn print_features(
    out: &mut dyn Write,
    title: &str,
    scores: &[FeatureScore],
    score_is: Score,
    sae: &Sae,
) -> io::Result<()> {
    writeln!(out, "{}", one_line(title))?;
    if scores.is_empty() {
        return writeln!(out, "  none is active");
    }
    let column = |on: bool, title| if on { title } else { "" };
    let has_lift = scores[0].lift.is_some();
    let has_score = score_is == Score::Other;
    writeln!(
        out,
        "  rank  feature{}{}       max  tokens  label",
        column(has_lift, "      lift"),
        column(has_score, "     score"),
    )?;
    for (i, score) in scores.iter().enumerate() {
        let label = sae.label(score.feature).map(one_line).unwrap_or_default();
        let number = |value: f32| format!("  {value:>8.3}");
        let line = format!(
            "{:>6}  {:>7}{}{}{}  {:>6}  {label}",
            i + 1,
            score.feature,
            score.lift.map(number).unwrap_or_default(),
            Some(score.score)
                .filter(|_| has_score)
                .map(number)
                .unwrap_or_default(),
            number(score.max),
            score.n_tokens,
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
