//! `reproduce`: the demo's protocol holds, and fails or is not tested where it should be.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::reproduce::{ClassPictures, Event, Experiment, Protocol};
use llava_sae_cpp::{CancelFlag, ModelFiles, Session, demo};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::bad_input::check;
use crate::command_line::{run, text};
use crate::fixture::{Fixture, exact_options, temporary_root};
use crate::random_sae::write_safetensors;

pub(crate) const PICTURES: &str = "reproduce/demo";

pub(crate) fn folder(name: &str) -> PathBuf {
    let dir = temporary_root().join("reproduce").join(name);
    fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("it was written")
}

pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The demo's protocol with something changed, and its file.
pub(crate) fn protocol(name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut protocol = serde_json::from_str(&read(&root("reproduce/demo.json"))).expect("JSON");
    change(&mut protocol);
    let path = folder("protocols").join(format!("{name}.json"));
    fs::write(&path, protocol.to_string()).expect("a file of our own");
    path
}

/// A protocol that takes little time: four pictures a class, of which three are described, with one prompt.
pub(crate) fn small(protocol: &mut Value) {
    let first = protocol["prompts"][0].take();
    protocol["prompts"] = json!([first]);
    protocol["reading"]["pictures_per_class"] = json!(4);
    protocol["steering"]["pictures"] = json!(3);
    protocol["control"]["features_per_picture"] = json!(2);
}

/// A folder with four pictures of each of these classes, the first ones from the third on, which are all
/// described well.
pub(crate) fn pictures(name: &str, classes: &[&str]) -> PathBuf {
    let dir = folder(name);
    for class in classes {
        let class_dir = dir.join(class);
        fs::create_dir_all(&class_dir).expect("a folder of our own");
        for i in [2, 4, 5, 6] {
            let name = format!("{i:02}.png");
            fs::copy(
                root(PICTURES).join(class).join(&name),
                class_dir.join(&name),
            )
            .expect("a copy");
        }
    }
    dir
}

pub(crate) const CLASSES: [&str; 7] = [
    "apple", "boat", "carrot", "cow", "elephant", "frog", "mushroom",
];

pub(crate) fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| {
        let text = str::from_utf8(bytes).expect("UTF-8");
        text.to_owned()
    });
    (output.status.code(), stdout, stderr)
}

/// The demo's whole protocol, run once.
pub(crate) struct DemoRun {
    pub(crate) report: PathBuf,
    pub(crate) page: PathBuf,
    pub(crate) stdout: String,
}

pub(crate) fn demo_run() -> &'static DemoRun {
    static RUN: OnceLock<DemoRun> = OnceLock::new();
    RUN.get_or_init(|| {
        let dir = folder("demo");
        let (report, page) = (dir.join("report.json"), dir.join("report.html"));
        let outputs = ["-o", text(&page), "--json", text(&report)];
        let args = ["reproduce", "-q", "--images", PICTURES];
        let (code, stdout, stderr) = outcome(&run(&[&args[..], &outputs].concat()));
        assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
        DemoRun {
            report,
            page,
            stdout,
        }
    })
}

pub(crate) fn demo_report() -> Value {
    serde_json::from_str(&read(&demo_run().report)).expect("JSON")
}

/// The verdicts of a report's claims.
fn verdicts(report: &Value) -> HashMap<&str, &str> {
    let claims = report["claims"].as_array().expect("a list");
    claims
        .iter()
        .map(|claim| {
            let text = |key: &str| claim[key].as_str().expect("a text");
            (text("claim"), text("verdict"))
        })
        .collect()
}

fn all(verdict: [&'static str; 3]) -> HashMap<&'static str, &'static str> {
    ["reading", "steering", "control"]
        .into_iter()
        .zip(verdict)
        .collect()
}

#[test]
fn the_demo_holds() {
    let report = demo_report();
    assert_eq!(report["verdict"], "holds");
    assert_eq!(verdicts(&report), all(["holds"; 3]));
    let names = report["prompts"].as_array().expect("a list").iter();
    let names: Vec<_> = names
        .map(|prompt| (&prompt["name"], &prompt["is_judged"]))
        .collect();
    assert_eq!(
        names,
        [
            (&json!("one BOS"), &json!(true)),
            (&json!("two BOS"), &json!(false))
        ]
    );
    let stdout = &demo_run().stdout;
    assert!(stdout.starts_with("Protocol `demo`: holds\n"), "{stdout}");
    assert!(stdout.contains("  reading   holds "), "{stdout}");
    assert!(
        stdout.contains("With the prompt `two BOS`, for comparison:\n"),
        "{stdout}"
    );
}

pub(crate) fn values_of(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).expect("it is there");
    let values = tensor.data().chunks_exact(4);
    values
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect()
}

/// The demo's SAE with each feature in another's place.
fn shuffled_sae() -> PathBuf {
    let dir = folder("shuffled");
    let original = Fixture::Demo.dir().join("sae");
    let bytes = fs::read(original.join("sae_weights.safetensors")).expect("a committed file");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (d_in, d_sae) = (192, 768);
    let shuffled = |feature: usize| (feature * 5 + 100) % d_sae;
    let rolled = ["W_enc", "W_dec", "b_enc", "threshold", "b_dec"].map(|name| {
        let values = values_of(&tensors, name);
        let from = |i: usize| match name {
            "W_enc" => i / d_sae * d_sae + shuffled(i % d_sae),
            "W_dec" => shuffled(i / d_in) * d_in + i % d_in,
            "b_dec" => i,
            _ => shuffled(i),
        };
        let shape = tensors.tensor(name).expect("it is there").shape().to_vec();
        let values = (0..values.len()).map(|i| values[from(i)]).collect();
        (name, shape, values)
    });
    write_safetensors(&dir.join("sae_weights.safetensors"), &rolled);
    fs::copy(original.join("cfg.json"), dir.join("cfg.json")).expect("a copy");
    let target = dir.join("sae.gguf");
    let options = SaeOptions {
        weight_type: TensorType::F16,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    let progress = &mut |_, _| std::ops::ControlFlow::Continue(());
    sae::convert(&dir, &target, &options, progress).expect("it converts");
    target
}

#[test]
fn shuffled_features_fail() {
    let sae = shuffled_sae();
    let dir = pictures("of-all", &CLASSES);
    let protocol = protocol("small", small);
    let args = [
        "reproduce",
        "-q",
        "--no-probe",
        "--images",
        text(&dir),
        "--protocol",
        text(&protocol),
        "--json",
    ];
    let report = |sae: &str| {
        let model = [
            "-m",
            "assets/model-f16.gguf",
            "--mmproj",
            "assets/mmproj-f16.gguf",
            "--sae",
            sae,
        ];
        let (code, stdout, stderr) = outcome(&run(&[&args[..], &model].concat()));
        assert_eq!(stderr, "");
        (
            code,
            serde_json::from_str::<Value>(&stdout).expect("one JSON object"),
        )
    };
    let (code, right) = report("assets/sae-f16.gguf");
    assert_eq!((code, verdicts(&right)), (Some(0), all(["holds"; 3])));
    let (code, wrong) = report(text(&sae));
    assert_eq!(code, Some(1));
    assert_eq!(wrong["verdict"], "fails");
    assert_eq!(verdicts(&wrong), all(["fails", "fails", "holds"]));
}

#[test]
fn what_is_missing_is_not_tested() {
    // Two classes of seven lack their folders, one has no pictures, and one has one that is broken.
    let dir = pictures("of-some", &["apple", "boat", "carrot", "elephant"]);
    fs::create_dir_all(dir.join("mushroom")).expect("a folder of our own");
    fs::write(dir.join("apple/02.png"), "broken").expect("a file of our own");
    let protocol = protocol("small-too", |protocol| {
        small(protocol);
        protocol["name"] = json!("mine");
    });
    let args = [
        "reproduce",
        "-q",
        "--images",
        text(&dir),
        "--expect",
        text(&protocol),
    ];
    let (code, stdout, stderr) = outcome(&run(&args));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stdout.starts_with("Protocol `mine`: not tested\n"),
        "{stdout}"
    );
    assert!(
        stdout.contains("  reading   not tested  3 of 7 classes pass, 4 could not be tested\n"),
        "{stdout}"
    );
    assert!(stdout.contains("  steering  holds "), "{stdout}");
    for missing in [
        "the class `cow` is not tested: no folder `",
        "the class `frog` is not tested: no folder `",
        "the class `mushroom` is not tested: no pictures in `",
        "skipped: ",
    ] {
        assert!(stderr.contains(missing), "{stderr}");
    }
    let (code, stdout, _) = outcome(&run(&[&args[..], &["--allow-missing", "--json"]].concat()));
    assert_eq!(code, Some(0));
    let report: Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(report["verdict"], "not tested");
    assert_eq!(
        report["pictures"][0],
        json!({"class": "apple", "n_pictures": 4, "unreadable": ["02.png"]})
    );
    assert_eq!(report["prompts"][0]["reading"][0]["verdict"], "not tested");
    assert_eq!(report["prompts"][0]["reading"][0]["n_pictures"], 3);
    assert_eq!(
        report["prompts"][0]["reading"][3]["published"][0]["auroc"],
        Value::Null
    );
}

#[test]
fn bad_input() {
    let refused = |args: &[&str], words: &[&str]| {
        let images = ["reproduce", "-q", "--images", PICTURES];
        check(&[&images[..], args].concat(), 1, words);
    };
    let misspelt = protocol("misspelt", |protocol| protocol["readings"] = json!({}));
    refused(
        &["--protocol", text(&misspelt)],
        &["is no protocol: unknown field `readings`"],
    );
    let senseless = protocol("senseless", |protocol| {
        protocol["reading"]["classes"][0]["features"] = json!([768]);
    });
    refused(
        &["--protocol", text(&senseless)],
        &["is no protocol: there is no feature `768`: valid ones are 0 to 767"],
    );
    refused(
        &["--protocol", "no-such-file"],
        &["cannot read `no-such-file`"],
    );
    refused(
        &["--protocol", "llava-gemma-2b"],
        &[
            "needs an SAE at `blocks.12.hook_resid_post`, and this one is at `blocks.1.hook_resid_post`",
            "hint: ",
        ],
    );
    let wider = protocol("wider", |protocol| protocol["sae"]["d_sae"] = json!(1024));
    refused(
        &["--protocol", text(&wider)],
        &["needs an SAE of 1024 features on rows of 192, and this one has 768 on 192"],
    );
    let beyond = protocol("beyond", |protocol| {
        protocol["reading"]["positions"] = json!("586");
    });
    refused(&["--protocol", text(&beyond)], &["586"]);
    let tiny = Fixture::Tiny.converted(TensorType::F32);
    refused(
        &["-d", text(&tiny)],
        &[
            "no protocol of the program's own fits this SAE",
            "`llava-gemma-2b`, `demo`, `gemma-3-4b`",
        ],
    );

    let demo = Fixture::Demo.converted(TensorType::F32);
    let twice = [demo.join("sae.gguf"), PathBuf::from("assets/sae-f16.gguf")];
    refused(
        &[
            "-d",
            text(&demo),
            "--sae",
            text(&twice[0]),
            "--sae",
            text(&twice[1]),
        ],
        &["one SAE, and there are 2"],
    );

    check(
        &["reproduce", "-q", "--images", "no-such-folder"],
        1,
        &["cannot read `no-such-folder`"],
    );
    check(
        &["reproduce", "-q", "--images", "assets/pictures"],
        1,
        &[
            "no class of the protocol has pictures in `assets/pictures`",
            "`apple`, `boat`",
        ],
    );
    check(&["reproduce", "-q"], 2, &["--images"]);

    let taken = folder("taken").join("report.html");
    fs::write(&taken, "mine").expect("a file of our own");
    refused(&["-o", text(&taken)], &["it already exists", "`--force`"]);
    assert_eq!(read(&taken), "mine");
    refused(
        &["-o", text(&taken), "--json", text(&taken), "--force"],
        &["one file"],
    );
    refused(
        &[
            "--protocol",
            text(&misspelt),
            "-o",
            text(&misspelt),
            "--force",
        ],
        &[text(&misspelt)],
    );
}

#[test]
fn it_can_be_stopped() {
    let files = demo::files_in(&folder("files")).expect("a folder of our own");
    let mut session = Session::open(&files, exact_options()).expect("it loads");
    let cancel = CancelFlag::default();
    let protocol = Protocol::open("demo").expect("one of the program's own");
    let classes = protocol.reading.classes.iter();
    let pictures: Vec<_> = classes
        .map(|class| ClassPictures {
            name: class.name.clone(),
            paths: vec![root(PICTURES).join(&class.name).join("00.png")],
        })
        .collect();
    let files: &ModelFiles = &files;
    let experiment = Experiment {
        protocol: &protocol,
        pictures: &pictures,
        files,
        cancel: &cancel,
    };
    let mut n_steps = 0;
    let stopped = experiment.run(&mut session, &mut |event| {
        if let Event::Step = event {
            n_steps += 1;
            if n_steps == 7 {
                cancel.cancel(); // all have been read, and one is to be described
            }
        }
    });
    let error = stopped.expect_err("it was stopped");
    assert!(error.is_interrupted(), "{error}");
    assert_eq!(n_steps, 7);
}

/// Features that are found by words in their labels: the demo's are labelled with what they stand for.
#[test]
fn features_are_found_by_their_labels() {
    let by_labels = protocol("by-labels", |protocol| {
        small(protocol);
        for class in protocol["reading"]["classes"]
            .as_array_mut()
            .expect("a list")
        {
            let name = class["name"].as_str().expect("a name").to_owned();
            let words = match &*name {
                "frog" => json!(["no such word"]),
                name => json!([name.to_uppercase()]),
            };
            *class = json!({ "name": name, "labels": words });
        }
        let steering = protocol["steering"].as_object_mut().expect("an object");
        steering.remove("feature");
        steering.insert("labels".to_owned(), json!(["carrot", "carrots"]));
        // Labels of several things are among those that are found.
        protocol["reading"]["share_in_top"] = json!(0.01);
    });
    let images = pictures("by-labels", &CLASSES);
    let args = [
        "reproduce",
        "-q",
        "--images",
        text(&images),
        "--protocol",
        text(&by_labels),
        "--json",
    ];
    let (code, stdout, stderr) = outcome(&run(&args));
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &*stderr), (Some(0), ""), "{}", report["claims"]);
    let labels = read(&Fixture::Demo.dir().join("sae/labels.json"));
    let labels: Vec<Value> = serde_json::from_str(&labels).expect("JSON");
    let hidden = report["protocol"]["reading"]["hidden"]
        .as_array()
        .expect("a list");
    for class in report["protocol"]["reading"]["classes"]
        .as_array()
        .expect("a list")
    {
        let name = class["name"].as_str().expect("a name");
        let has_word = |label: &&Value| {
            let text = label["description"].as_str().expect("a text");
            text.split(", ").any(|part| part == name)
        };
        let index = |label: &Value| label["index"].as_str().and_then(|index| index.parse().ok());
        let expected = labels.iter().filter(has_word).filter_map(index);
        let mut expected: Vec<u64> = expected
            .filter(|index| !hidden.contains(&json!(index)))
            .collect();
        expected.sort_unstable();
        if name == "frog" {
            expected.clear();
        }
        assert_eq!(class["features"], json!(expected), "{name}");
    }
    // Several labels have the word; this one is nothing else.
    assert_eq!(report["protocol"]["steering"]["feature"], 430);
    let frog = report["prompts"][0]["reading"].as_array().expect("a list");
    let frog = frog.iter().find(|class| class["class"] == "frog");
    assert_eq!(frog.expect("a class")["verdict"], "not tested");

    let nothing = protocol("by-no-label", |protocol| {
        small(protocol);
        let steering = protocol["steering"].as_object_mut().expect("an object");
        steering.remove("feature");
        steering.insert("labels".to_owned(), json!(["no such word"]));
    });
    let args = [
        "reproduce",
        "--images",
        text(&images),
        "--protocol",
        text(&nothing),
    ];
    check(&args, 1, &["no feature to steer", "`no such word`"]);
}
