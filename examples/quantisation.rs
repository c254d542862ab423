//! What quantisation does to features, on the demo model: `cargo run --release --example quantisation`.
//!
//! For each number type of language model and SAE, beside the run in f32, over the pictures of
//! `tests/fixtures/demo`: how many of a picture's ten strongest features remain, how far the image
//! rows' activations move, and how many captions stay.

use std::collections::BTreeSet;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::llama::{Quant, quantize};
use llava_sae_cpp::rank::{self, Over, Pool};
use llava_sae_cpp::{
    Keep, Kinds, ModelFiles, Picture, PromptForm, RunOptions, Session, SessionOptions,
};

const PROMPT: &str = "Describe the image.";
const N_TOP: usize = 10;

/// What a picture gave.
struct Seen {
    caption: String,
    activations: Vec<f32>, // [n_image_rows, d_sae]
    top: BTreeSet<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/demo");
    let dir = tempfile::tempdir()?;
    let plain = |tensor_type| model(&checkpoint, dir.path(), tensor_type);
    let f32_model = plain(TensorType::F32)?;
    let k_quant = |quant, name: &str| -> Result<PathBuf, Box<dyn Error>> {
        let target = dir.path().join(format!("model-{name}.gguf"));
        quantize(&f32_model, &target, quant, 2)?;
        Ok(target)
    };
    let models = [
        ("f32", f32_model.clone()),
        ("f16", plain(TensorType::F16)?),
        ("q8_0", plain(TensorType::Q8_0)?),
        ("q6_k", k_quant(Quant::Q6K, "q6_k")?),
        ("q5_k_m", k_quant(Quant::Q5KM, "q5_k_m")?),
        ("q4_k_m", k_quant(Quant::Q4KM, "q4_k_m")?),
    ];
    let saes = [
        ("f32", sae(&checkpoint, dir.path(), TensorType::F32)?),
        ("f16", sae(&checkpoint, dir.path(), TensorType::F16)?),
        ("q8_0", sae(&checkpoint, dir.path(), TensorType::Q8_0)?),
    ];
    let mmproj = dir.path().join("mmproj-f32.gguf");
    println!(
        "| language model | SAE | top {N_TOP} that remain | activations, relative error | captions that stay |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let look_with = |model: &PathBuf, sae: &PathBuf| {
        let files = ModelFiles {
            model: model.clone(),
            mmproj: Some(mmproj.clone()),
            saes: vec![sae.clone()],
        };
        look(&files, &checkpoint.join("pictures"))
    };
    let reference = look_with(&models[0].1, &saes[0].1)?;
    for (model_name, model) in &models {
        for (sae_name, sae) in &saes {
            let figures = compared(&look_with(model, sae)?, &reference);
            println!("| {model_name} | {sae_name} | {figures} |");
        }
    }
    Ok(())
}

/// Converts the language model; the projector stays in f32.
fn model(checkpoint: &Path, dir: &Path, model_type: TensorType) -> Result<PathBuf, Box<dyn Error>> {
    let options = LlavaOptions {
        model_type,
        mmproj_type: TensorType::F32,
        overwrite: Overwrite::Replace,
    };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let made = llava::convert(&checkpoint.join("llava"), dir, &options, go_on)?;
    Ok(made.model.expect("it is a LLaVA-Gemma"))
}

fn sae(checkpoint: &Path, dir: &Path, weight_type: TensorType) -> Result<PathBuf, Box<dyn Error>> {
    let target = dir.join(format!("sae-{}.gguf", weight_type.name()));
    let options = SaeOptions {
        weight_type,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    sae::convert(&checkpoint.join("sae"), &target, &options, go_on)?;
    Ok(target)
}

/// Describes every picture of a folder, and reads its features.
fn look(files: &ModelFiles, pictures: &Path) -> Result<Vec<Seen>, Box<dyn Error>> {
    let mut session = Session::open(files, SessionOptions::default())?;
    let d_sae = session.sae().meta().d_sae;
    let mut paths = std::fs::read_dir(pictures)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    paths.sort();
    let mut seen = Vec::new();
    for path in paths {
        let image = session.encode_image(&Picture::open(&path)?)?;
        let prompt = session.prompt(PROMPT, PromptForm::Chat, &[&image])?;
        let options = RunOptions {
            steering: None,
            keep: Keep {
                features: Kinds::IMAGE,
                ..Keep::default()
            },
            max_tokens: 48,
            ..RunOptions::default()
        };
        let run = session.run(&prompt, options)?;
        let rows = rank::pooled_positions(prompt.tokens(), &Over::IMAGE)?;
        let acts = &run.trace.saes[0].activations;
        let ranked = rank::rank(acts, &rows, d_sae, Pool::Max, None);
        let mut activations = vec![0.0; rows.len() * d_sae];
        for (row, &position) in activations.chunks_exact_mut(d_sae).zip(&rows) {
            for (feature, value) in acts.row(position) {
                row[feature] = value;
            }
        }
        seen.push(Seen {
            caption: run.text,
            activations,
            top: ranked
                .iter()
                .take(N_TOP)
                .map(|score| score.feature)
                .collect(),
        });
    }
    Ok(seen)
}

/// The three figures of a row.
fn compared(seen: &[Seen], reference: &[Seen]) -> String {
    let (mut remain, mut wanted, mut same) = (0, 0, 0);
    let (mut error, mut size) = (0.0, 0.0);
    for (seen, reference) in seen.iter().zip(reference) {
        remain += seen.top.intersection(&reference.top).count();
        wanted += reference.top.len();
        same += usize::from(seen.caption == reference.caption);
        for (a, b) in seen.activations.iter().zip(&reference.activations) {
            error += f64::from(a - b).powi(2);
            size += f64::from(*b).powi(2);
        }
    }
    format!(
        "{:.1} % | {:.1e} | {same} of {}",
        100.0 * remain as f64 / wanted as f64,
        (error / size).sqrt(),
        seen.len()
    )
}
