//! `pull --list`: the published models by name.

use llava_sae_cpp::report::json;
use llava_sae_hub::models::{PAIRS, Pair, PairSae};
use serde::Serialize;

use super::super::outcome::{CommandResult, print};
use super::folder::Folder;

/// A published model, as `--json` lists it.
#[derive(Serialize)]
struct Entry {
    name: &'static str,
    about: &'static str,
    sees: bool,
    model: String,
    model_licence: &'static str,
    sae: String,
    sae_licence: &'static str,
    labels: Option<String>,
    megabytes: u32,
    /// Where it is, if it was pulled.
    folder: Option<String>,
}

impl Entry {
    fn of(pair: &'static Pair) -> Self {
        let folder = Folder::of(pair.name).ok();
        let folder = folder.filter(|folder| folder.path().exists());
        Self {
            name: pair.name,
            about: pair.about,
            sees: pair.sees(),
            model: pair.model().to_string(),
            model_licence: pair.model_licence,
            sae: match pair.sae {
                PairSae::Listed { release, id } => format!("{release} {id}"),
                PairSae::At(address) => address.to_owned(),
            },
            sae_licence: pair.sae_licence,
            labels: pair.labels().map(|labels| labels.to_string()),
            megabytes: pair.megabytes(),
            folder: folder.map(|folder| folder.path().display().to_string()),
        }
    }
}

pub(super) fn print_pairs(as_json: bool) -> CommandResult {
    let entries: Vec<_> = PAIRS.iter().map(Entry::of).collect();
    print(|out| {
        if as_json {
            return json::print(out, &entries);
        }
        for (idx, entry) in entries.iter().enumerate() {
            if idx > 0 {
                writeln!(out)?;
            }
            writeln!(out, "{}: {}", entry.name, entry.about)?;
            writeln!(
                out,
                "  model   {} (licence: {})",
                entry.model, entry.model_licence
            )?;
            writeln!(
                out,
                "  SAE     {} (licence: {})",
                entry.sae, entry.sae_licence
            )?;
            writeln!(
                out,
                "  labels  {}",
                entry.labels.as_deref().unwrap_or("none")
            )?;
            let gigabytes = f64::from(entry.megabytes) / 1000.0;
            match &entry.folder {
                Some(folder) => writeln!(out, "  is in   {folder}")?,
                None => writeln!(out, "  about {gigabytes:.1} GB to download")?,
            }
        }
        Ok(())
    })
}
