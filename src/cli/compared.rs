//! Features of two sets of pictures, as `top --class` and `features --against` show them.

use std::io::{self, Write};

use clap::builder::TypedValueParser;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::FeatureName;
use llava_sae_cpp::compare::{ClassFeature, Sort};
use serde::Serialize;

use super::one_of::one_of;

/// The orders of features.
pub(super) fn sorts() -> impl TypedValueParser<Value = Sort> {
    one_of(Sort::ALL, Sort::name)
}

/// A feature as JSON.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    rank: usize,
    feature: FeatureName,
    label: Option<&'a str>,
    difference: f64,
    mean_inside: f64,
    mean_outside: f64,
    share_inside: f64,
    share_outside: f64,
    effect_size: Option<f64>,
    auroc: f64,
}

/// Features of an SAE, best first; `sae` is its id where there are several.
pub(super) fn entries<'a>(
    features: &'a [ClassFeature],
    sae: Option<&'a str>,
) -> impl Iterator<Item = Entry<'a>> {
    (1..).zip(features).map(move |(rank, feature)| Entry {
        rank,
        feature: FeatureName::new(sae, feature.feature),
        label: feature.label.as_deref(),
        difference: feature.difference(),
        mean_inside: feature.mean_inside,
        mean_outside: feature.mean_outside,
        share_inside: feature.share_inside,
        share_outside: feature.share_outside,
        effect_size: feature.effect_size,
        auroc: feature.auroc,
    })
}

/// Prints them as a table, of sets of `items`.
pub(super) fn print_table(
    out: &mut dyn Write,
    items: &str,
    features: &[ClassFeature],
) -> io::Result<()> {
    if features.is_empty() {
        return writeln!(out, "  there is none");
    }
    let share = format!("share of {items}");
    writeln!(
        out,
        "                      mean value       {share:<15}  inside above outside"
    )?;
    writeln!(
        out,
        "  rank  feature    more    inside   outside  inside  outside  effect size  AUROC  label"
    )?;
    for (i, feature) in features.iter().enumerate() {
        let line = format!(
            "{:>6}  {:>7}  {:>6.3}  {:>8.3}  {:>8.3}  {:>5.0}%  {:>6.0}%  {:>11}  {:>5.3}  {}",
            i + 1,
            feature.feature,
            feature.difference(),
            feature.mean_inside,
            feature.mean_outside,
            100.0 * feature.share_inside,
            100.0 * feature.share_outside,
            feature
                .effect_size
                .map_or("-".to_owned(), |effect| format!("{effect:.2}")),
            feature.auroc,
            feature.label.as_deref().map(one_line).unwrap_or_default(),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
