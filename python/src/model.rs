//! Models, and what is asked of them.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use llava_sae_cpp::metrics::{self, Metrics};
use llava_sae_cpp::report::capture::RowColumns;
use llava_sae_cpp::report::json;
use llava_sae_cpp::report::metrics::Report as MetricsReport;
use llava_sae_cpp::report::sweep::{Point, Report as SweepReport};
use llava_sae_cpp::steering::{Change, Intervention, Positions};
use llava_sae_cpp::{
    CancelFlag, EditorAt, Error, HookedModel, Keep, Kinds, Result, Run, RunOptions, Session, Step,
    Stop, saved_set,
};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;

use crate::arrays;
use crate::edit::editors;
use crate::error::OrRaise;
use crate::features::Features;
use crate::image::{self, Encoded, Image};
use crate::raised::Raised;
use crate::sae::Sae;
use crate::settings::{Asked, RankSettings, RunSettings, SweepSettings, parse};
use crate::shared_session::{Pending, SharedSession};
use crate::stream::{self, Event, Stream};
use crate::sweep::Sweep;

/// Functions by hook points.
type Functions = Vec<(String, Py<PyAny>)>;

/// A loaded model, with one session.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Model {
    model: Arc<HookedModel>,
    session: Arc<SharedSession>,
    names: [String; 2], // the model's and the SAE's, as reports have them
}

/// A run as JSON: the members of `--json` that are about it.
#[derive(Serialize)]
struct Generated {
    prompt: String,
    interventions: Vec<saved_set::Entry>,
    #[serde(flatten)]
    output: json::Output,
    n_prompt_tokens: usize,
    n_image_tokens: usize,
    prompt_ms: f64,
    generate_ms: f64,
}

impl Generated {
    fn new(run: &Run, options: &Described, model: &HookedModel) -> Self {
        Self {
            prompt: options.prompt.clone(),
            interventions: options.interventions(model),
            output: json::Output::new(run),
            n_prompt_tokens: options.n_prompt_tokens,
            n_image_tokens: options.n_image_tokens,
            prompt_ms: run.prompt_time.as_secs_f64() * 1e3,
            generate_ms: run.generate_time.as_secs_f64() * 1e3,
        }
    }
}

/// What a run was asked, for its report.
struct Described {
    prompt: String,
    steering: Option<Arc<llava_sae_cpp::steering::Steering>>,
    n_prompt_tokens: usize,
    n_image_tokens: usize,
}

impl Described {
    fn new(asked: &Asked, options: &RunOptions) -> Self {
        let images = asked.images.iter();
        Self {
            prompt: asked.shown.clone(),
            steering: options.steering.clone(),
            n_prompt_tokens: asked.prompt.tokens().len(),
            n_image_tokens: images.map(|image| image.embeddings.n_rows()).sum(),
        }
    }

    fn interventions(&self, model: &HookedModel) -> Vec<saved_set::Entry> {
        saved_set::entries(self.steering.as_deref(), model.saes())
    }
}

/// A run that has not been cancelled: what it gives would be in part.
fn whole(run: Run) -> Result<Run> {
    match run.stop {
        Stop::Interrupted => Err(Error::interrupted()),
        _ => Ok(run),
    }
}

/// What is looked for in a prompt.
struct Look<'a> {
    settings: &'a RunSettings,
    ranking: &'a RankSettings,
    names: &'a [String; 2],
}

impl Look<'_> {
    fn at(
        &self,
        session: &mut Session,
        images: Vec<Image>,
        editors: Vec<EditorAt>,
        cancel: &CancelFlag,
    ) -> Result<Features> {
        let asked = self.settings.ask(session, images, cancel)?;
        let model = Arc::clone(session.model());
        // What is wrong with positions is said before the run.
        let ranking = self.ranking.prepare(&model, &asked)?;
        let options = RunOptions {
            keep: Keep {
                features: Kinds::ALL,
                ..Keep::default()
            },
            ..self.settings.options(&model, cancel)?
        };
        let run = session.run_edited(&asked.prompt, options, editors, &mut go_on)?;
        let names = self.names.clone();
        Ok(Features::new(model, names, asked, ranking, whole(run)?))
    }
}

fn go_on(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

impl Model {
    /// Builds what `settings` say, and runs it with what `keep` says and functions that edit.
    fn run<T: Send + 'static>(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        functions: Functions,
        keep: Keep,
        finish: impl FnOnce(&mut Session, Asked, RunOptions, Run) -> Result<T> + Send + 'static,
    ) -> PyResult<T> {
        let raised = Raised::default();
        let editors = editors(functions, &raised).or_raise(py)?;
        let done = self.session.run(py, |session, cancel| {
            let asked = settings.ask(session, images, cancel)?;
            let options = RunOptions {
                keep,
                ..settings.options(session.model(), cancel)?
            };
            let run = session.run_edited(&asked.prompt, options.clone(), editors, &mut go_on)?;
            finish(session, asked, options, whole(run)?)
        });
        raised.or(done)
    }
}

#[pymethods]
impl Model {
    /// The model that arguments of the command line choose.
    #[staticmethod]
    fn open(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<Self> {
        // Ctrl-C is looked for meanwhile, whatever loads it.
        let pending = Pending::start(move |cancel, sender| {
            let opened = llava_sae_cpp::cli::open(arguments, cancel);
            let opened = opened.map(|opened| {
                let model = Arc::clone(opened.session.model());
                (model, [opened.model, opened.sae])
            });
            let _ = sender.send(opened);
        });
        let pending = pending.or_raise(py)?;
        let panicked = || Err(Error::invalid("the model cannot be opened"));
        let opened = pending.next(py)?.unwrap_or_else(panicked);
        let (model, names) = opened.or_raise(py)?;
        Ok(Self {
            session: Arc::new(SharedSession::new(Arc::clone(&model))),
            model,
            names,
        })
    }

    /// Ends its runs, and lets go of its session.
    fn close(&self, py: Python<'_>) {
        self.session.close(py);
    }

    #[getter]
    fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// What reports call the model and its SAEs.
    #[getter]
    fn names(&self) -> [String; 2] {
        self.names.clone()
    }

    /// The SAEs.
    fn saes(&self) -> Vec<Sae> {
        let places = 0..self.model.saes().len();
        places
            .map(|place| Sae::of_model(&self.model, place))
            .collect()
    }

    /// Reads and encodes a picture: a path, the contents of a file, or pixels.
    fn image(&self, py: Python<'_>, source: &Bound<'_, PyAny>) -> PyResult<Image> {
        let picture = image::read(source)?.or_raise(py)?;
        self.session.run(py, |session, _| {
            let embeddings = session.encode_image(&picture)?;
            Ok(Image(Arc::new(Encoded {
                picture,
                embeddings,
            })))
        })
    }

    /// What a feature is called, by its name or a part of its label.
    fn find(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let feature = self.model.find_feature(name).or_raise(py)?;
        Ok(self.model.saes().shown(feature).to_string())
    }

    /// A feature by its weights alone, as `feature --json` prints it.
    fn card(&self, py: Python<'_>, feature: &str, top: usize) -> PyResult<String> {
        let feature = self.model.find_feature(feature).or_raise(py)?;
        self.session.run(py, |session, _| {
            let card = session.model().feature_card(feature, top)?;
            Ok(serde_json::to_string(&card).expect("plain data"))
        })
    }

    /// The positions of a prompt, as `features --json` prints them.
    fn tokens(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
    ) -> PyResult<String> {
        self.session.run(py, |session, cancel| {
            let asked = settings.ask(session, images, cancel)?;
            let tokens = json::tokens(asked.prompt.tokens(), session.model());
            Ok(serde_json::to_string(&tokens).expect("plain data"))
        })
    }

    /// Ranks the features of a prompt.
    fn features(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        ranking: &RankSettings,
        functions: Functions,
    ) -> PyResult<Features> {
        let look = Look {
            settings,
            ranking,
            names: &self.names,
        };
        let raised = Raised::default();
        let editors = editors(functions, &raised).or_raise(py)?;
        let found = self.session.run(py, |session, cancel| {
            look.at(session, images, editors, cancel)
        });
        raised.or(found)
    }

    /// Seconds that such a call takes with `top` features as a report, without Python: the mean of `n_calls`.
    fn time_features(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        ranking: &RankSettings,
        top: usize,
        n_calls: u32,
    ) -> PyResult<f64> {
        let look = Look {
            settings,
            ranking,
            names: &self.names,
        };
        self.session.run(py, |session, cancel| {
            let start = Instant::now();
            for _ in 0..n_calls {
                let found = look.at(session, images.clone(), Vec::new(), cancel)?;
                std::hint::black_box(found.standings(top)?);
            }
            Ok(start.elapsed().as_secs_f64() / f64::from(n_calls))
        })
    }

    /// Generates a text; returns its report.
    fn generate(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        functions: Functions,
    ) -> PyResult<String> {
        let keep = Keep::default();
        self.run(
            py,
            images,
            settings,
            functions,
            keep,
            |session, asked, options, run| {
                let described = Described::new(&asked, &options);
                let report = Generated::new(&run, &described, session.model());
                Ok(serde_json::to_string(&report).expect("plain data"))
            },
        )
    }

    /// Generates a text, step by step.
    fn stream(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: Py<RunSettings>,
        functions: Functions,
    ) -> PyResult<Stream> {
        let raised = Raised::default();
        let editors = editors(functions, &raised).or_raise(py)?;
        self.session.check(py)?;
        let shared = Arc::clone(&self.session);
        let pending = Pending::start(move |cancel, sender: &Sender<Result<Event>>| {
            let settings = settings.get();
            let run = |session: &mut Session| {
                let asked = settings.ask(session, images, cancel)?;
                let model = Arc::clone(session.model());
                let options = RunOptions {
                    keep: Keep {
                        // The row that the first token is predicted from is one of the prompt's text.
                        features: Kinds {
                            image: false,
                            ..Kinds::ALL
                        },
                        ..Keep::default()
                    },
                    ..settings.options(&model, cancel)?
                };
                let described = Described::new(&asked, &options);
                let on_step = &mut |step: Step<'_>| match sender
                    .send(Ok(Event::Step(stream::piece(&step, &model))))
                {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                };
                let run = session.run_edited(&asked.prompt, options, editors, on_step)?;
                let report = Generated::new(&run, &described, &model);
                Ok(Event::End(
                    serde_json::to_string(&report).expect("plain data"),
                ))
            };
            let _ = sender.send(shared.run_until(cancel, run));
        });
        Ok(Stream {
            pending: pending.or_raise(py)?,
            raised,
        })
    }

    /// What the hooks see of a run, by the names of the tensors that `capture` writes, and its report.
    fn capture<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Image>,
        settings: &RunSettings,
        functions: Functions,
        logits: bool,
    ) -> PyResult<(Bound<'py, PyDict>, String)> {
        let keep = Keep {
            logits,
            ..Keep::ALL
        };
        let done = self.run(
            py,
            images,
            settings,
            functions,
            keep,
            |session, asked, options, run| {
                let described = Described::new(&asked, &options);
                let report = Generated::new(&run, &described, session.model());
                let columns = RowColumns::new(&asked.prompt, &run.trace.tokens);
                let embeddings = asked.images.iter().map(|image| &image.embeddings);
                let embeddings = image::rows(embeddings);
                let report = serde_json::to_string(&report).expect("plain data");
                Ok((columns, embeddings, run, report))
            },
        );
        let (columns, (embeddings, width), run, report) = done?;
        let tensors = PyDict::new(py);
        tensors.set_item("token_ids", columns.token_ids.into_pyarray(py))?;
        tensors.set_item("kinds", columns.kinds.into_pyarray(py))?;
        let positions = arrays::matrix(py, columns.positions, columns.position_width)?;
        tensors.set_item("positions", positions)?;
        tensors.set_item("images", columns.images.into_pyarray(py))?;
        tensors.set_item("chunks", columns.chunks.into_pyarray(py))?;
        let saes = self.model.saes();
        for (place, seen) in run.trace.saes.into_iter().enumerate() {
            let prefix = saes.shown_id(place).map(|id| format!("{id}/"));
            let name = |name: &str| format!("{}{name}", prefix.as_deref().unwrap_or_default());
            let d_in = saes[place].meta().d_in;
            let (indptr, indices, data) = arrays::csr(py, &seen.activations);
            tensors.set_item(name("feature_offsets"), indptr)?;
            tensors.set_item(name("feature_ids"), indices)?;
            tensors.set_item(name("feature_values"), data)?;
            tensors.set_item(name("resid"), arrays::matrix(py, seen.residuals, d_in)?)?;
            if !seen.steered_residuals.is_empty() {
                let steered = arrays::matrix(py, seen.steered_residuals, d_in)?;
                tensors.set_item(name("resid_steered"), steered)?;
            }
        }
        if !embeddings.is_empty() {
            tensors.set_item("image_embeddings", arrays::matrix(py, embeddings, width)?)?;
        }
        if !run.logits.is_empty() {
            tensors.set_item("logits", run.logits.into_pyarray(py))?;
        }
        Ok((tensors, report))
    }

    /// The logits after the prompt, `[n_vocab]`.
    fn logits<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Image>,
        settings: &RunSettings,
        functions: Functions,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let keep = Keep {
            logits: true,
            ..Keep::default()
        };
        let done = self.run(py, images, settings, functions, keep, |_, _, _, run| {
            Ok(run.logits)
        });
        Ok(done?.into_pyarray(py))
    }

    /// Steers a feature with several strengths at once.
    fn sweep(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        sweep: &str,
    ) -> PyResult<Sweep> {
        let wanted: SweepSettings = parse(sweep).or_raise(py)?;
        let names = self.names.clone();
        self.session.run(py, |session, cancel| {
            let model = Arc::clone(session.model());
            let feature = model.find_feature(&wanted.feature)?;
            let at = Positions::parse(&wanted.at)?;
            let steering = |&strength: &f32| {
                model.steering(vec![Intervention {
                    units: wanted.units,
                    at: at.clone(),
                    ..Intervention::new(feature, Change::steer(strength))
                }])
            };
            let steerings = wanted.strengths.iter().map(steering);
            let steerings: Vec<_> = steerings.collect::<Result<_>>()?;
            let asked = settings.ask(session, images, cancel)?;
            let options = settings.options(&model, cancel)?;
            let sweep = session.sweep(&asked.prompt, &steerings, &options)?;
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let word = wanted.word.as_deref();
            let [model_name, sae_name] = names;
            Ok(Sweep(SweepReport {
                model: model_name,
                sae: sae_name,
                prompt: asked.shown,
                image: None,
                images: Vec::new(),
                feature: model.saes().shown(feature),
                label: model.saes().label(feature).map(str::to_owned),
                units: wanted.units,
                at: at.to_string(),
                word: wanted.word.clone(),
                original: Point::new(0.0, &sweep.original, word),
                steered: Point::of_each(&wanted.strengths, &sweep.steered, word),
                control: None,
            }))
        })
    }

    /// Measures each SAE on prompts of an image each, or on one without; the text rows are those of `text`, if it is
    /// given. Returns what `metrics --json` prints, without names.
    fn metrics(
        &self,
        py: Python<'_>,
        images: Vec<Image>,
        settings: &RunSettings,
        text: Option<String>,
    ) -> PyResult<Vec<String>> {
        self.session.run(py, |session, cancel| {
            let n_saes = session.model().saes().len();
            let mut all: Vec<_> = (0..n_saes).map(|sae| Metrics::new(session, sae)).collect();
            let of_text = text.as_deref();
            let of_text = of_text.map(|text| metrics::text_prompts(session, text, cancel));
            for prompt in of_text.transpose()?.into_iter().flatten() {
                for metrics in &mut all {
                    metrics.add(session, &prompt, cancel)?;
                }
            }
            let prompts: Vec<Vec<Image>> = match (images.is_empty(), &text) {
                (true, Some(_)) => Vec::new(),
                (true, None) => vec![Vec::new()],
                (false, _) => images.into_iter().map(|image| vec![image]).collect(),
            };
            for images in prompts {
                let asked = settings.ask(session, images, cancel)?;
                for metrics in &mut all {
                    match text {
                        Some(_) => metrics.add_image(session, &asked.prompt, cancel)?,
                        None => metrics.add(session, &asked.prompt, cancel)?,
                    }
                }
            }
            let report = |metrics: &Metrics| {
                serde_json::to_string(&MetricsReport::new(metrics)).expect("plain data")
            };
            Ok(all.iter().map(report).collect())
        })
    }
}
