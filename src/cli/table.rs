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

/// A label or title without line breaks and other control characters, which could garble a terminal.
pub(super) fn one_line(label: &str) -> String {
    label
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}
