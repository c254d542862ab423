//! `features --against`: the features that set two sets of pictures apart.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gguf_tools::terminal::one_line;
use llava_sae_cpp::compare::{self, PictureScores, Sort};
use llava_sae_cpp::pictures::ItemKind;
use llava_sae_cpp::report::json;
use llava_sae_cpp::{CancelFlag, Error, Picture};
use serde::Serialize;

use super::args::FeaturesArgs;
use super::seen::{self, Subject};
use crate::cli::compared::{self, Entry};
use crate::cli::folder::{items_in, warn_of_gap};
use crate::cli::outcome::{CommandResult, print};
use crate::cli::progress::Verbosity;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    images: Vec<String>,
    against: Vec<String>,
    score: String,
    sort: Sort,
    n_inside: usize,
    n_outside: usize,
    features: Vec<Entry<'a>>,
}

pub(super) fn run(args: &FeaturesArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let sets = [&args.image, &args.against];
    let [inside, outside] = sets.map(|given| pictures(given, verbosity));
    let (inside, outside) = (inside?, outside?);
    let asked = args.prompt.read()?;
    let mut session = args.model.open(verbosity, cancel)?;
    let model = Arc::clone(session.model());
    let saes = model.saes();
    let ranking = args.ranking(saes)?;
    let mut scores_of = |paths: &[PathBuf]| -> llava_sae_cpp::Result<Vec<PictureScores>> {
        let mut scores = Vec::new();
        for path in paths {
            let picture = match Picture::open(path) {
                Ok(picture) => picture,
                Err(error) => {
                    warn_of_gap(&format!("skipped: {error}"));
                    continue;
                }
            };
            let subject = Subject::new(&session, &asked, Some(picture), verbosity, cancel)?;
            let ranking = ranking.clone();
            let seen = seen::look(
                &mut session,
                subject,
                None,
                ranking,
                args,
                verbosity,
                cancel,
            )?;
            scores.push(seen.seen(saes)?.scores);
        }
        match scores.is_empty() {
            true => Err(
                Error::invalid("no picture of one of the two sets could be read")
                    .with_hint("the warnings say why"),
            ),
            false => Ok(scores),
        }
    };
    let (inside, outside) = (scores_of(&inside)?, scores_of(&outside)?);
    let found = compare::compare(&inside, &outside, saes, args.sort, args.top.get());
    let of_each = found.iter().enumerate();
    print(|out| {
        if args.json {
            let features =
                of_each.flat_map(|(sae, found)| compared::entries(found, saes.shown_id(sae)));
            let report = Report {
                images: json::paths(&args.image),
                against: json::paths(&args.against),
                score: args.subject(),
                sort: args.sort,
                n_inside: inside.len(),
                n_outside: outside.len(),
                features: features.collect(),
            };
            return json::print(out, &report);
        }
        for (sae, found) in of_each {
            let sae = saes.shown_id(sae).map(|id| format!(", {id}"));
            let title = format!(
                "Features whose score is larger in the {} pictures given than in the {} that they are compared with; {}{}",
                inside.len(),
                outside.len(),
                args.subject(),
                sae.unwrap_or_default()
            );
            writeln!(out, "{}", one_line(&title))?;
            compared::print_table(out, "images", found)?;
        }
        io::Result::Ok(())
    })
}

/// The pictures that are given, those of folders included.
fn pictures(given: &[PathBuf], verbosity: Verbosity) -> llava_sae_cpp::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in given {
        let metadata = path.metadata().map_err(Error::io("read", path))?;
        match metadata.is_dir() {
            true => {
                let found = items_in(path, ItemKind::Pictures, verbosity)?;
                all.extend(found.iter().map(|picture| picture.file(path)));
            }
            false => all.push(path.clone()),
        }
    }
    Ok(all)
}
