//! `capture`: everything the hook saw, as a safetensors file.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::{NewFile, Overwrite, check_is_no_input};
use llava_sae_cpp::report::capture::RowColumns;
use llava_sae_cpp::report::json;
use llava_sae_cpp::{
    CancelFlag, Error, ImageChunk, ImageEmbeddings, Keep, Kinds, Prompt, Run, RunOptions, SaeSet,
    SaeTrace, Stop, saved_set,
};
use safetensors::tensor::{Dtype, TensorView};

use super::args::{GenerateArgs, ModelArgs, PromptArgs};
use super::interventions::InterventionArgs;
use super::outcome::{CommandResult, Outcome};
use super::progress::{Spinner, Verbosity};

/// Save everything the hook saw: rows, features, image embeddings, logits
#[derive(Args)]
#[command(after_long_help = TENSORS)]
pub(super) struct CaptureArgs {
    /// The picture; several make one prompt, and without any, `--prompt` is text only, and `--chat` has its own
    #[arg(required_unless_present_any = ["prompt", "chat"])]
    image: Vec<PathBuf>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    /// Leave out the logits; with `-n 0`, the model then stops at the hook
    #[arg(long)]
    no_logits: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    interventions: InterventionArgs,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const TENSORS: &str = "\
Tensors (n rows: the prompt's and the generated tokens', except for the last token, which the model
never reads; `-n 0` stops after the prompt):
  token_ids         I32 [n]           -1 for image rows
  kinds             U8  [n]           0 text, 1 image, 2 generated
  positions         I32 [n, 1 or 4]   what RoPE turns each row by; with M-RoPE time, row, column and 0
  images            I32 [n]           which of the prompt's images, from 0; -1 for text
  chunks            I32 [n]           which piece of image rows (a picture or a tile), from 0; -1 for text
  resid             F32 [n, d_in]     at the SAE's hook, before interventions
  resid_steered     F32 [n, d_in]     after interventions, where there are any
  feature_offsets   I64 [n+1]         where each row's active features start
  feature_ids       I32 [nnz]         active features of `resid`, by rising index
  feature_values    F32 [nnz]         their activations
  image_embeddings  F32 [n_image, d_model]  as the projector gives them, where there is an image
  logits            F32 [vocab]       after the prompt's last token, without `--no-logits`

With several SAEs, the names of `resid`, `resid_steered` and `feature_*` begin with `SAE/`, and each
is at that SAE's hook; an SAE above an intervention sees the changed stream.";

pub(super) fn run(args: CaptureArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let file = start_file(&args)?;
    let interventions = args.interventions.read()?;
    let asked = args.prompt.read()?;
    let mut session = args.model.open(verbosity, &cancel)?;
    let steering = interventions.steering(session.model())?;
    let images = asked.encode(&session, &args.image, verbosity)?;
    let prompt = asked.build(&session, &images, &cancel)?;
    let options = RunOptions {
        steering: steering.clone(),
        keep: Keep {
            features: Kinds::ALL,
            residuals: true,
            logits: !args.no_logits,
        },
        max_tokens: args.generate.max_tokens,
        sampling: args.generate.sampling(),
        cancel,
        ..RunOptions::default()
    };
    let spinner = Spinner::start("running the model", verbosity);
    let run = session.run(&prompt, options)?;
    spinner.finish();
    if run.stop == Stop::Interrupted {
        return Err(Error::interrupted().into());
    }

    let mut tensors = Tensors::of_run(&run, &prompt, session.model().saes());
    let chunks = || images.iter().flat_map(ImageEmbeddings::chunks);
    let n_rows = chunks().map(ImageChunk::n_rows).sum();
    if n_rows > 0 {
        let rows: Vec<f32> = chunks().flat_map(|chunk| chunk.rows.to_vec()).collect();
        let shape = vec![n_rows, rows.len() / n_rows];
        tensors.add_f32("image_embeddings", shape, &rows);
    }
    let interventions = saved_set::entries(steering.as_deref(), session.model().saes());
    let interventions =
        serde_json::to_string(&interventions).expect("interventions are plain data");
    let hooks = session.model().saes().iter();
    let hooks: Vec<_> = hooks.map(|sae| sae.hook_point().to_string()).collect();
    let metadata = [
        ("model", args.model.shown_model()),
        ("sae", args.model.shown_sae()),
        ("hook", hooks.join(", ")),
        ("prompt", asked.shown(&session)?),
        ("image", json::paths(&args.image).join(", ")),
        ("interventions", interventions),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    file.finish_with(&tensors.bytes(metadata)?)?;
    Ok(Outcome::Done)
}

/// Checks, before any work, that the output can be written and is not one of the inputs, and starts
/// its file.
fn start_file(args: &CaptureArgs) -> llava_sae_cpp::Result<NewFile> {
    let others = args.image.iter().chain(args.interventions.file());
    let others = others.chain(args.prompt.file());
    let inputs = args.model.given_files().into_iter();
    check_is_no_input(&args.output, inputs.chain(others.cloned()))?;
    NewFile::create(&args.output, Overwrite::if_forced(args.force))
}

/// Named tensors as little-endian bytes.
struct Tensors(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn of_run(run: &Run, prompt: &Prompt, saes: &SaeSet) -> Self {
        let trace = &run.trace;
        let columns = RowColumns::new(prompt, &trace.tokens);
        let n_rows = trace.tokens.len();
        let mut tensors = Self(Vec::new());
        tensors.add_i32("token_ids", vec![n_rows], &columns.token_ids);
        tensors.add("kinds", Dtype::U8, vec![n_rows], columns.kinds);
        for ((sae_idx, sae), seen) in saes.iter().enumerate().zip(&trace.saes) {
            let prefix = match saes.shown_id(sae_idx) {
                None => String::new(),
                Some(id) => format!("{id}/"),
            };
            tensors.add_sae(&prefix, seen, sae.meta().d_in);
        }
        if !run.logits.is_empty() {
            tensors.add_f32("logits", vec![run.logits.len()], &run.logits);
        }
        let shape = vec![n_rows, columns.position_width];
        tensors.add_i32("positions", shape, &columns.positions);
        tensors.add_i32("images", vec![n_rows], &columns.images);
        tensors.add_i32("chunks", vec![n_rows], &columns.chunks);
        tensors
    }

    /// What was seen where an SAE reads.
    fn add_sae(&mut self, prefix: &str, seen: &SaeTrace, d_in: usize) {
        let shape = || vec![seen.residuals.len() / d_in, d_in];
        self.add_f32(&format!("{prefix}resid"), shape(), &seen.residuals);
        if !seen.steered_residuals.is_empty() {
            let name = format!("{prefix}resid_steered");
            self.add_f32(&name, shape(), &seen.steered_residuals);
        }
        let activations = &seen.activations;
        let ends = std::iter::once(&0).chain(activations.ends());
        let offsets: Vec<u8> = ends.flat_map(|&end| (end as i64).to_le_bytes()).collect();
        let name = format!("{prefix}feature_offsets");
        self.add(&name, Dtype::I64, vec![activations.n_rows() + 1], offsets);
        let nnz = vec![activations.n_active()];
        let ids = activations.indices().iter();
        let ids = ids.flat_map(|feature| feature.to_le_bytes()).collect();
        let name = format!("{prefix}feature_ids");
        self.add(&name, Dtype::I32, nnz.clone(), ids);
        let name = format!("{prefix}feature_values");
        self.add_f32(&name, nnz, activations.data());
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) {
        self.0.push((name.to_owned(), dtype, shape, bytes));
    }

    fn add_i32(&mut self, name: &str, shape: Vec<usize>, values: &[i32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.add(name, Dtype::I32, shape, bytes.collect());
    }

    fn add_f32(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.add(name, Dtype::F32, shape, bytes);
    }

    /// The file.
    fn bytes(&self, metadata: HashMap<String, String>) -> llava_sae_cpp::Result<Vec<u8>> {
        let views = self.0.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (
                name.as_str(),
                view.expect("each tensor's bytes match its shape"),
            )
        });
        safetensors::serialize(views, Some(metadata))
            .map_err(|error| Error::invalid(format!("cannot make the safetensors file: {error}")))
    }
}
