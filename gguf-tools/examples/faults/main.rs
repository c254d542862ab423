//! Files with valid headers and wrong contents, and what the program makes of them:
//! `sh scripts/sweep-faults.sh`.
//!
//! Each case is one change to one file of a set that works: every key and every tensor of language
//! models, projectors and SAEs. None may end in a signal, a panic or a hang, and no change to an SAE
//! may give other features without a word. What is done stands in a log, and a later run goes on.

mod changes;
mod file;
mod outcome;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use clap::Parser;
use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::sae::{self, SaeOptions};

use changes::Case;
use file::GgufFile;
use outcome::Outcome;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
struct Args {
    /// The program to try
    #[arg(long, default_value = "target/release/llava-sae-cpp")]
    program: PathBuf,
    /// Where files are made, and the log of what has been tried
    #[arg(long, default_value = "target/faults")]
    dir: PathBuf,
    /// Every N-th case from the I-th on
    #[arg(long, value_name = "I/N", value_parser = parse_part, default_value = "1/1")]
    part: (usize, usize),
    /// Cases at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only cases whose name holds this
    filter: Option<String>,
}

fn parse_part(text: &str) -> std::result::Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(part, n_parts)| {
        let (part, n_parts) = (part.parse().ok()?, n_parts.parse().ok()?);
        (1..=n_parts).contains(&part).then_some((part, n_parts))
    });
    parts.ok_or_else(|| "expected I/N with I from 1 to N".to_owned())
}

/// A file of a working set, and the program's arguments with another in its place.
struct Role {
    name: String,
    file: PathBuf,
    args: Vec<String>, // with `FILE` for the file
    is_sae: bool,
}

/// Stands for the changed file in a role's arguments.
const FILE: &str = "FILE";

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let (part, n_parts) = args.part;
    // Parts may run side by side.
    let dir = args.dir.join(format!("part-{part}-of-{n_parts}"));
    fs::create_dir_all(&dir)?;
    let log_path = dir.join("log.tsv");
    let mut verdicts = read_log(&log_path)?;
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)?;
    let (mut n_seen, mut counts) = (0, BTreeMap::new());
    for role in roles(&dir)? {
        let original = GgufFile::read(&role.file)?;
        let expected = match outcome::run(&args.program, &role, &copy(&role.file, &dir)?, &dir)? {
            Outcome::Answer(answer) => answer,
            other => {
                return Err(format!("{}: the unchanged file gives {other:?}", role.name).into());
            }
        };
        let mut cases = changes::of(&original);
        for case in &mut cases {
            case.name = format!("{}: {}", role.name, case.name);
        }
        cases.retain(|case| {
            n_seen += 1;
            let is_wanted = args
                .filter
                .as_ref()
                .is_none_or(|text| case.name.contains(text));
            is_wanted && n_seen % n_parts == part % n_parts
        });
        let new: Vec<&Case> = cases
            .iter()
            .filter(|case| !verdicts.contains_key(&case.name))
            .collect();
        println!(
            "{}: {} cases, {} of them new",
            role.name,
            cases.len(),
            new.len()
        );
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| -> Result<()> {
            for worker_idx in 0..args.jobs {
                let (new, next, sender) = (&new, &next, sender.clone());
                let (program, role, expected, original, dir) =
                    (&args.program, &role, &expected, &original, &dir);
                scope.spawn(move || {
                    let path = dir.join(format!("case-{worker_idx}.gguf"));
                    while let Some(case) = new.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = fs::write(&path, case.apply(original)).map_err(Into::into);
                        let result = result.and_then(|()| outcome::run(program, role, &path, dir));
                        let result =
                            result.map(|outcome| (&case.name, outcome.verdict(role, expected)));
                        if sender.send(result).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for result in receiver {
                let (name, verdict) = result?;
                writeln!(log, "{name}\t{verdict}")?;
                if verdict.starts_with("BAD") {
                    println!("{name}\t{verdict}");
                }
                verdicts.insert(name.clone(), verdict);
            }
            Ok(())
        })?;
        for case in &cases {
            let verdict = verdicts[&case.name].clone();
            *counts.entry((role.name.clone(), verdict)).or_insert(0) += 1;
        }
    }
    Ok(print_table(&counts))
}

/// How often each role came to each verdict; failure where one is bad.
fn print_table(counts: &BTreeMap<(String, String), usize>) -> ExitCode {
    let mut n_bad = 0;
    println!("\n| role | verdict | cases |\n| --- | --- | --- |");
    for ((role, verdict), n_cases) in counts {
        println!("| {role} | {verdict} | {n_cases} |");
        if verdict.starts_with("BAD") {
            n_bad += n_cases;
        }
    }
    println!("\n{} cases, {n_bad} bad", counts.values().sum::<usize>());
    if n_bad == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn read_log(path: &Path) -> Result<BTreeMap<String, String>> {
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(lines
        .map(|(name, verdict)| (name.to_owned(), verdict.to_owned()))
        .collect())
}

/// The unchanged file where changed ones will be.
fn copy(file: &Path, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("unchanged.gguf");
    fs::copy(file, &path)?;
    Ok(path)
}

/// The embedded demo's files, the tiny fixture's and the random language models.
fn roles(dir: &Path) -> Result<Vec<Role>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let fixtures = root.join("tests/fixtures");
    let text = |path: &Path| {
        path.to_str()
            .expect("the project's paths are UTF-8")
            .to_owned()
    };
    let mut roles = Vec::new();
    let mut add = |name: &str, files: [Option<&Path>; 3], changed: usize, last: &[&str]| {
        let mut args = Vec::new();
        let is_sae = changed == 2;
        if is_sae {
            args.push("features".to_owned());
        }
        for (idx, option) in ["-m", "--mmproj", "--sae"].into_iter().enumerate() {
            if let Some(file) = files[idx] {
                let file = if idx == changed {
                    FILE.to_owned()
                } else {
                    text(file)
                };
                args.extend([option.to_owned(), file]);
            }
        }
        args.extend(last.iter().map(|&arg| arg.to_owned()));
        args.extend(["-t", "1", "--json"].map(str::to_owned));
        if !is_sae {
            args.extend(["-n", "2"].map(str::to_owned));
        }
        let role = ["model", "projector", "SAE"][changed];
        roles.push(Role {
            name: format!("{name} {role}"),
            file: files[changed].expect("a role's own file").to_owned(),
            args,
            is_sae,
        });
    };

    let tiny = dir.join("tiny");
    let made = [
        tiny.join("model-f32.gguf"),
        tiny.join("mmproj-f16.gguf"),
        tiny.join("sae.gguf"),
    ];
    convert_model(&fixtures.join("tiny/llava"), &tiny)?;
    convert_sae(&fixtures.join("tiny/sae"), &made[2], Some(0.11))?;
    let demo = ["model-f16.gguf", "mmproj-f16.gguf", "sae-f16.gguf"]
        .map(|name| root.join("assets").join(name));
    let pictures = [
        ("demo", &demo, "demo/pictures/00.png"),
        ("tiny", &made, "tiny/pictures/00.png"),
    ];
    for (name, files, picture) in pictures {
        let picture = text(&fixtures.join(picture));
        let files = [0, 1, 2].map(|idx| Some(&*files[idx]));
        for changed in 0..3 {
            add(name, files, changed, &[&picture, "--image-cache", "0"]);
        }
    }

    let sae = dir.join("sae-32.gguf");
    convert_sae(&random_sae(&fixtures, dir)?, &sae, None)?;
    // Projectors of other families.
    let picture = text(&fixtures.join("others/pictures/odd.png"));
    let internvl = dir.join("internvl");
    convert_model(&fixtures.join("tiles/internvl-qwen2"), &internvl)?;
    for (name, folder, files) in [
        (
            "qwen2.5vl",
            &fixtures.join("others/qwen2.5vl"),
            ["model.gguf", "mmproj.gguf"],
        ),
        (
            "idefics3",
            &fixtures.join("others/idefics3"),
            ["model.gguf", "mmproj.gguf"],
        ),
        ("internvl", &internvl, ["model-f32.gguf", "mmproj-f16.gguf"]),
        (
            "gemma4",
            &fixtures,
            [
                "gemma4/shared-a.gguf",
                "gemma4_pictures/shared-a/mmproj.gguf",
            ],
        ),
    ] {
        let [model, mmproj] = files.map(|file| folder.join(file));
        let files = [Some(&*model), Some(&*mmproj), Some(&*sae)];
        let last = ["--raw-prompt", "-p", "a<image>b", &picture];
        add(name, files, 1, &last);
    }
    let prompt = ["--raw-prompt", "-p", "a cat"];
    for architecture in ["gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3"] {
        let model = fixtures
            .join("hook_points")
            .join(architecture)
            .join("model.gguf");
        add(architecture, [Some(&model), None, Some(&sae)], 0, &prompt);
        if architecture == "llama" {
            add(architecture, [Some(&model), None, Some(&sae)], 2, &prompt);
        }
    }
    Ok(roles)
}

/// A checkpoint's files, once.
fn convert_model(checkpoint: &Path, out_dir: &Path) -> Result<()> {
    let options = LlavaOptions {
        model_type: TensorType::F32,
        mmproj_type: TensorType::F16,
        overwrite: Overwrite::Replace,
    };
    if !out_dir.exists() {
        let go_on = &mut |_, _| ControlFlow::Continue(());
        llava::convert(checkpoint, out_dir, &options, go_on)?;
    }
    Ok(())
}

/// The random SAE for the language models, as a folder of SAELens.
fn random_sae(fixtures: &Path, dir: &Path) -> Result<PathBuf> {
    let source = dir.join("sae-32");
    fs::create_dir_all(&source)?;
    let weights = "sae_weights.safetensors";
    fs::copy(
        fixtures.join("hook_points/sae-32").join(weights),
        source.join(weights),
    )?;
    let config = serde_json::json!({
        "architecture": "standard", "d_in": 32, "d_sae": 16, "dtype": "float32",
        "apply_b_dec_to_input": false, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.1.hook_mlp_out"},
    });
    fs::write(source.join("cfg.json"), config.to_string())?;
    Ok(source)
}

fn convert_sae(source: &Path, target: &Path, norm_factor: Option<f32>) -> Result<()> {
    let options = SaeOptions {
        weight_type: TensorType::F16,
        norm_factor,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    sae::convert(source, target, &options, &mut |_, _| {
        ControlFlow::Continue(())
    })?;
    Ok(())
}
