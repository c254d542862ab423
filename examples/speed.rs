//! Times what `scripts/bench.sh` makes tables of:
//! `speed MODEL MMPROJ SAE SAE_Q8_0 PICTURE ROUNDS N_TOKENS [TABLE...]`.
//!
//! Everything that is compared takes turns in one process, on the same weights. A line of JSON for
//! each row: its table, its name, and one time a round, in milliseconds.

use std::error::Error;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use gguf_tools::gguf::Gguf;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::llama::{self, Matrix, MatrixProduct};
use llava_sae_cpp::steering::{Change, Intervention, Positions, Steering};
use llava_sae_cpp::{
    Activations, Encoder, EncoderOptions, EncoderWeights, FeatureId, ImageCache, Keep, Kinds,
    ModelFiles, Picture, Prompt, PromptForm, PromptStore, RowProduct, Run, RunOptions, Sae,
    Session, SessionOptions, Step,
};
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn Error>>;

const PROMPT: &str = "Describe the image.";
/// Tokens of a turn, where single tokens are compared.
const TURN_TOKENS: usize = 25;
/// The same where steps of several sequences are, which take longer.
const TURN_STEPS: usize = 9;
/// Bytes that are copied to see how fast memory is: more than any cache.
const COPIED_BYTES: usize = 512 << 20;
/// Rows of the product that shows how fast the processor calculates.
const PRODUCT_ROWS: usize = 512;

/// A table, and what makes it.
type Table<'a> = (&'a str, &'a dyn Fn(&mut Bench) -> Outcome<()>);

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [
        model,
        mmproj,
        sae,
        sae_q8_0,
        picture,
        rounds,
        n_tokens,
        tables @ ..,
    ] = &args[..]
    else {
        return Err("expected seven arguments, and the tables, which are all by default".into());
    };
    let files = |sae: &String| ModelFiles {
        model: PathBuf::from(model),
        mmproj: Some(PathBuf::from(mmproj)),
        saes: vec![PathBuf::from(sae)],
    };
    let n_tokens = n_tokens.parse()?;
    let [files, q8_0] = &[files(sae), files(sae_q8_0)];
    let mut bench = Bench::open(files, q8_0, rounds.parse()?)?;
    let picture = Picture::open(Path::new(picture))?;
    let is_wanted = |name: &str| tables.is_empty() || tables.iter().any(|table| table == name);
    let all: [Table; 9] = [
        ("start", &|bench| bench.start_up(files, &picture)),
        ("image", &|bench| bench.image(&picture)),
        ("token", &Bench::tokens),
        ("prompt", &|bench| bench.prompts(&picture)),
        ("sweep", &|bench| bench.sweeps(&picture, n_tokens)),
        ("step", &Bench::steps),
        ("image_step", &|bench| bench.image_steps(&picture)),
        ("encoder", &|bench| bench.encoder(files, q8_0)),
        ("limits", &|bench| bench.limits(files)),
    ];
    all.iter()
        .filter(|(name, _)| is_wanted(name))
        .try_for_each(|(_, table)| table(&mut bench))
}

/// Sessions on the same weights, and how often each is timed.
struct Bench {
    /// Without a callback.
    bare: Session,
    /// As the command line opens it.
    usual: Session,
    /// With the encoder as it is stored.
    whole: Session,
    /// With the encoder in q8_0.
    q8_0: Session,
    /// With repacked weights.
    repacked: Session,
    /// With prompts side by side that share nothing.
    apart: Session,
    /// With prompts that are remembered.
    remembering: Session,
    rounds: usize,
}

/// What is timed: a name, and the work, which tells its own time.
type Timed<'a> = (&'a str, Box<dyn FnMut(&mut Bench) -> Outcome<f64> + 'a>);

/// Which of the sessions is meant.
type SessionOf = fn(&mut Bench) -> &mut Session;

impl Bench {
    fn open(files: &ModelFiles, q8_0: &ModelFiles, rounds: usize) -> Outcome<Self> {
        let with = |change: fn(&mut SessionOptions)| {
            let mut options = SessionOptions::default();
            change(&mut options);
            options
        };
        let usual = Session::open(files, SessionOptions::default())?;
        let beside = |files, options| usual.model().open_beside(files, options).map(Session::new);
        Ok(Self {
            bare: beside(files, with(|options| options.eval_callback = false))?,
            whole: beside(files, with(|options| options.screen = false))?,
            q8_0: beside(q8_0, SessionOptions::default())?,
            apart: beside(files, with(|options| options.share_prompts = false))?,
            remembering: beside(
                files,
                with(|options| options.prompt_store = Some(PromptStore::in_memory(1 << 30))),
            )?,
            repacked: Session::open(files, with(|options| options.repack = true))?,
            usual,
            rounds,
        })
    }

    /// Lets all take turns: once to warm up, then once a round.
    fn time(&mut self, table: &str, timed: Vec<Timed<'_>>) -> Outcome<()> {
        self.time_often(table, timed, self.rounds)
    }

    fn time_often(&mut self, table: &str, mut timed: Vec<Timed<'_>>, rounds: usize) -> Outcome<()> {
        let mut samples = vec![Vec::new(); timed.len()];
        for round in 0..=rounds {
            for ((_, work), samples) in timed.iter_mut().zip(&mut samples) {
                let milliseconds = work(self)?;
                if round > 0 {
                    samples.push(milliseconds);
                }
            }
        }
        for ((name, _), samples) in timed.iter().zip(samples) {
            println!("{}", json!({"table": table, "row": name, "ms": samples}));
        }
        Ok(())
    }

    /// From files to the first token.
    fn start_up(&mut self, files: &ModelFiles, picture: &Picture) -> Outcome<()> {
        let open = |repack| SessionOptions {
            repack,
            ..SessionOptions::default()
        };
        let load = |repack| {
            let start = Instant::now();
            black_box(Session::open(files, open(repack))?);
            Ok(milliseconds(start))
        };
        let first = |image_cache: Option<ImageCache>, prompt_store: Option<PromptStore>| {
            let start = Instant::now();
            let options_ = SessionOptions {
                image_cache,
                prompt_store,
                ..open(false)
            };
            let mut session = Session::open(files, options_)?;
            let prompt = prompt(&mut session, picture)?;
            let everywhere = steering(&mut session, Change::steer(1.0), Positions::ALL)?;
            let options = options(Keep::default(), Some(everywhere), 1);
            run(&mut session, &prompt, options)?;
            Ok(milliseconds(start))
        };
        let dir = tempfile::tempdir()?;
        let cache = ImageCache::new(dir.path().join("images"), 1 << 30);
        // Another each time, as another process has it: what is there is on the disk.
        let store = || PromptStore::new(dir.path().join("prompts"), 1 << 30);
        self.time(
            "start",
            vec![
                ("load", Box::new(|_| load(false))),
                ("load, weights repacked", Box::new(|_| load(true))),
                ("first token", Box::new(|_| first(None, None))),
                (
                    "first token of a picture in the cache",
                    Box::new(|_| first(Some(cache.clone()), None)),
                ),
                (
                    "first token of a prompt that is remembered on the disk",
                    Box::new(|_| first(Some(cache.clone()), Some(store()))),
                ),
            ],
        )
    }

    fn image(&mut self, picture: &Picture) -> Outcome<()> {
        let encode = |bench: &mut Self| {
            let start = Instant::now();
            black_box(bench.usual.encode_image(picture)?);
            Ok(milliseconds(start))
        };
        self.time("image", vec![("image encoder", Box::new(encode))])
    }

    /// Generated tokens, each by itself.
    fn tokens(&mut self) -> Outcome<()> {
        let prompt = self
            .usual
            .prompt("Tell a long story.", PromptForm::Chat, &[])?;
        let prompt = &prompt;
        let everywhere = steering(&mut self.usual, Change::steer(1.0), Positions::ALL)?;
        let generated = Kinds {
            generated: true,
            ..Kinds::NONE
        };
        let added = steering(&mut self.usual, Change::steer(1.0), generated.into())?;
        let clamped = steering(&mut self.usual, Change::clamp(1.0), generated.into())?;
        let rows = Keep {
            residuals: true,
            ..Keep::default()
        };
        let features = Keep {
            features: generated,
            ..Keep::default()
        };
        let time = |session: &mut Session, keep, steering| {
            let run = run(session, prompt, options(keep, steering, TURN_TOKENS))?;
            let n_decoded = run.token_ids.len() - 1; // the first one comes of the prompt
            Ok(run.generate_time.as_secs_f64() * 1e3 / n_decoded as f64)
        };
        let nothing = Keep::default();
        let (everywhere, added, clamped) = (&everywhere, &added, &clamped);
        self.time_often(
            "token",
            vec![
                (
                    "no callback",
                    Box::new(|b| time(&mut b.bare, nothing, None)),
                ),
                (
                    "no callback, weights repacked",
                    Box::new(|b| time(&mut b.repacked, nothing, None)),
                ),
                (
                    "callback that wants nothing",
                    Box::new(|b| time(&mut b.usual, nothing, None)),
                ),
                (
                    "callback that reads rows",
                    Box::new(|b| time(&mut b.usual, rows, None)),
                ),
                (
                    "steering everywhere, in the graph",
                    Box::new(|b| time(&mut b.usual, nothing, Some(everywhere.clone()))),
                ),
                (
                    "steering generated tokens, in the callback",
                    Box::new(|b| time(&mut b.usual, nothing, Some(added.clone()))),
                ),
                (
                    "a clamp of generated tokens",
                    Box::new(|b| time(&mut b.usual, nothing, Some(clamped.clone()))),
                ),
                (
                    "features, encoder in f16",
                    Box::new(|b| time(&mut b.whole, features, None)),
                ),
                (
                    "features, encoder in q8_0",
                    Box::new(|b| time(&mut b.q8_0, features, None)),
                ),
                (
                    "features, exact by screening",
                    Box::new(|b| time(&mut b.usual, features, None)),
                ),
            ],
            // What differs by a hundredth shows in many short turns only.
            4 * self.rounds,
        )
    }

    /// A prompt with an image, without generating.
    fn prompts(&mut self, picture: &Picture) -> Outcome<()> {
        let prompt = prompt(&mut self.usual, picture)?;
        let prompt = &prompt;
        let added = steering(&mut self.usual, Change::steer(1.0), Positions::IMAGE)?;
        let everywhere = steering(&mut self.usual, Change::steer(1.0), Positions::ALL)?;
        let generated = Kinds {
            generated: true,
            ..Kinds::NONE
        };
        let later = steering(&mut self.usual, Change::steer(1.0), generated.into())?;
        let (added, everywhere, later) = (&added, &everywhere, &later);
        let logits = Keep {
            logits: true,
            ..Keep::default()
        };
        let features = Keep {
            features: Kinds::ALL,
            ..logits
        };
        let to_hook = Keep {
            features: Kinds::IMAGE,
            ..Keep::default()
        };
        let time = |session: &mut Session, keep, steering| {
            let run = run(session, prompt, options(keep, steering, 0))?;
            Ok(run.prompt_time.as_secs_f64() * 1e3)
        };
        let n_image = prompt
            .tokens()
            .iter()
            .filter(|token| token.id.is_none())
            .count();
        println!(
            "{}",
            json!({
                "n_prompt": prompt.tokens().len(),
                "n_image": n_image,
                "computed_by": llama::computed_by(false),
            })
        );
        self.time(
            "prompt",
            vec![
                ("no callback", Box::new(|b| time(&mut b.bare, logits, None))),
                (
                    "no callback, weights repacked",
                    Box::new(|b| time(&mut b.repacked, logits, None)),
                ),
                (
                    "steering image rows",
                    Box::new(|b| time(&mut b.usual, logits, Some(added.clone()))),
                ),
                (
                    "features of all rows, encoder in f16",
                    Box::new(|b| time(&mut b.whole, features, None)),
                ),
                (
                    "features of all rows, encoder in q8_0",
                    Box::new(|b| time(&mut b.q8_0, features, None)),
                ),
                (
                    "features of all rows, exact by screening",
                    Box::new(|b| time(&mut b.usual, features, None)),
                ),
                (
                    "remembered, steering all rows",
                    Box::new(|b| time(&mut b.remembering, logits, Some(everywhere.clone()))),
                ),
                (
                    "remembered, steering generated tokens",
                    Box::new(|b| time(&mut b.remembering, logits, Some(later.clone()))),
                ),
                (
                    "remembered, features of all rows, exact by screening",
                    Box::new(|b| time(&mut b.remembering, features, None)),
                ),
                (
                    "features of image rows alone: the model stops at the hook",
                    Box::new(|b| time(&mut b.usual, to_hook, None)),
                ),
            ],
        )
    }

    /// A run, two to compare, and eight strengths with the original.
    fn sweeps(&mut self, picture: &Picture, n_tokens: usize) -> Outcome<()> {
        let prompt = prompt(&mut self.usual, picture)?;
        let prompt = &prompt;
        let strengths = (1..=8).map(|i| Change::steer(i as f32));
        let steerings: Vec<Arc<Steering>> = strengths
            .map(|change| steering(&mut self.usual, change, Positions::IMAGE))
            .collect::<Outcome<_>>()?;
        let steerings = &steerings;
        let time = |session: &mut Session, n_steered: usize| {
            let nothing = Keep::default();
            let original = options(nothing, None, n_tokens);
            let steered = steerings[..n_steered]
                .iter()
                .map(|steering| options(nothing, Some(Arc::clone(steering)), n_tokens));
            let options: Vec<_> = std::iter::once(original).chain(steered).collect();
            let start = Instant::now();
            let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
            black_box(session.run_side_by_side(prompt, options, go_on)?);
            Ok(milliseconds(start))
        };
        self.time(
            "sweep",
            vec![
                ("one run", Box::new(|b| time(&mut b.usual, 0))),
                (
                    "`--compare`, prompts apart",
                    Box::new(|b| time(&mut b.apart, 1)),
                ),
                ("`--compare`", Box::new(|b| time(&mut b.usual, 1))),
                ("a sweep of 8", Box::new(|b| time(&mut b.usual, 8))),
            ],
        )
    }

    /// A step of several sequences, behind a prompt of a few tokens.
    fn steps(&mut self) -> Outcome<()> {
        let prompt = self.usual.prompt("Hi", PromptForm::Raw, &[])?;
        let usual: SessionOf = |bench| &mut bench.usual;
        let bare: SessionOf = |bench| &mut bench.bare;
        let repacked: SessionOf = |bench| &mut bench.repacked;
        let counts = [1, 2, 4, 8, 9, 16];
        let rows = [
            ("", usual),
            (", no callback", bare),
            (", weights repacked", repacked),
        ];
        let rows = rows.map(|(what, session)| counts.map(|n| (format!("{n}{what}"), session, n)));
        self.time_steps("step", &prompt, rows.as_flattened())
    }

    /// The same behind a prompt with an image.
    fn image_steps(&mut self, picture: &Picture) -> Outcome<()> {
        let prompt = prompt(&mut self.usual, picture)?;
        let usual: SessionOf = |bench| &mut bench.usual;
        let rows = [1, 2, 9].map(|n| (n.to_string(), usual, n));
        self.time_steps("image_step", &prompt, &rows)
    }

    fn time_steps(
        &mut self,
        table: &str,
        prompt: &Prompt,
        rows: &[(String, SessionOf, usize)],
    ) -> Outcome<()> {
        let time = |session: &mut Session, n_sequences| {
            let options = vec![options(Keep::default(), None, TURN_STEPS); n_sequences];
            let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
            let runs = session.run_side_by_side(prompt, options, go_on)?;
            let n_decoded = runs[0].token_ids.len() - 1; // the first one comes of the prompt
            Ok(runs[0].generate_time.as_secs_f64() * 1e3 / n_decoded as f64)
        };
        let timed = rows.iter().map(|(name, session, n)| -> Timed<'_> {
            (name, Box::new(move |bench| time(session(bench), *n)))
        });
        self.time(table, timed.collect())
    }

    /// The encoder alone, on one row.
    fn encoder(&mut self, files: &ModelFiles, q8_0: &ModelFiles) -> Outcome<()> {
        let d_in = self.usual.sae().meta().d_in;
        let prompt = self.usual.prompt(PROMPT, PromptForm::Chat, &[])?;
        let keep = Keep {
            residuals: true,
            ..Keep::default()
        };
        let rows = run(&mut self.usual, &prompt, options(keep, None, 0))?
            .trace
            .saes
            .remove(0)
            .residuals;
        let row = &rows[rows.len() - d_in..];
        let open = |path: &Path, screen| -> Outcome<Encoder> {
            let options = EncoderOptions {
                use_gpu: false,
                threads: SessionOptions::default().threads,
                screen,
            };
            let sae = Arc::new(Sae::open(path)?);
            Ok(EncoderWeights::load(&sae, options)?.encoder()?)
        };
        let [mut whole, mut screened] = [open(&files.saes[0], false)?, open(&files.saes[0], true)?];
        let mut q8_0 = open(&q8_0.saes[0], false)?;
        let file = SaeFile::open(&files.saes[0])?;
        let n_bytes = |tensor: &gguf_tools::gguf::TensorInfo| tensor.n_bytes;
        let screen_bytes = file.screen()?.map(|screen| n_bytes(&screen.tensor));
        println!(
            "{}",
            json!({"encoder_bytes": n_bytes(file.w_enc()), "screen_bytes": screen_bytes})
        );
        let time = |encoder: &mut Encoder| {
            const REPEATS: u32 = 20;
            let mut activations = Activations::default();
            let start = Instant::now();
            for _ in 0..REPEATS {
                encoder.encode(row, &mut activations)?;
            }
            black_box(&activations);
            Ok(milliseconds(start) / f64::from(REPEATS))
        };
        self.time(
            "encoder",
            vec![
                ("f16", Box::new(|_| time(&mut whole))),
                ("q8_0", Box::new(|_| time(&mut q8_0))),
                ("exact by screening", Box::new(|_| time(&mut screened))),
            ],
        )
    }

    /// How fast memory and processor are.
    fn limits(&mut self, files: &ModelFiles) -> Outcome<()> {
        let threads = SessionOptions::default().threads;
        let source = vec![1_u8; COPIED_BYTES];
        let mut target = vec![0_u8; COPIED_BYTES];
        let model = Gguf::open(&files.model)?;
        let tensor = model
            .tensor("blk.0.ffn_up.weight")
            .ok_or("no such tensor")?;
        let mut product = MatrixProduct::new(Matrix::load(&files.model, tensor, false)?, threads)?;
        let rows = vec![0.5_f32; PRODUCT_ROWS * product.n_in()];
        let n_operations: u64 = 2 * tensor.dims.iter().product::<u64>() * PRODUCT_ROWS as u64;
        // All weights but those of the norms multiply each row; the embedding does once, for the last.
        let of = |wanted: &dyn Fn(&str) -> bool| -> u64 {
            let matrices = model
                .tensors()
                .iter()
                .filter(|tensor| tensor.dims.len() == 2);
            let wanted = matrices.filter(|tensor| wanted(&tensor.name));
            wanted
                .map(|tensor| tensor.dims.iter().product::<u64>())
                .sum()
        };
        let bytes: u64 = model.tensors().iter().map(|tensor| tensor.n_bytes).sum();
        println!(
            "{}",
            json!({
                "copied_bytes": COPIED_BYTES,
                "product_operations": n_operations,
                "product_type": tensor.tensor_type.name(),
                "model_bytes": bytes,
                "block_weights": of(&|name| name.starts_with("blk.")),
                "output_weights": of(&|name| name == "token_embd.weight"),
            })
        );
        let copy = |_: &mut Self| {
            let start = Instant::now();
            let part = COPIED_BYTES.div_ceil(threads);
            std::thread::scope(|scope| {
                for (target, source) in target.chunks_mut(part).zip(source.chunks(part)) {
                    scope.spawn(|| target.copy_from_slice(source));
                }
            });
            black_box(&target);
            Ok(milliseconds(start))
        };
        let multiply = |_: &mut Self| {
            let start = Instant::now();
            black_box(product.apply(&rows)?);
            Ok(milliseconds(start))
        };
        self.time(
            "limits",
            vec![("copy", Box::new(copy)), ("product", Box::new(multiply))],
        )
    }
}

fn prompt(session: &mut Session, picture: &Picture) -> Outcome<Prompt> {
    let image = session.encode_image(picture)?;
    Ok(session.prompt(PROMPT, PromptForm::Chat, &[&image])?)
}

fn options(keep: Keep, steering: Option<Arc<Steering>>, max_tokens: usize) -> RunOptions {
    RunOptions {
        steering,
        keep,
        max_tokens,
        ..RunOptions::default()
    }
}

fn run(session: &mut Session, prompt: &Prompt, options: RunOptions) -> Outcome<Run> {
    Ok(session.run(prompt, options)?)
}

fn steering(session: &mut Session, change: Change, at: Positions) -> Outcome<Arc<Steering>> {
    let intervention = Intervention {
        at,
        ..Intervention::new(FeatureId::of_only(1), change)
    };
    Ok(session.model().steering(vec![intervention])?)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
