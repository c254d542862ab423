//! Scans, their tables and baselines with several SAEs: in one pass, what each SAE gives alone.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::ModelFiles;
use llava_sae_cpp::scan::{ScanFile, ScannedSae, ScannedSaes};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use crate::bad_input::check;
use crate::command_line::{json, names, run, stdout, text};
use crate::fixture::Fixture;
use crate::scan::{OwnedRow, folder, rows, scan, stderr, two_classes, with_sidecar};
use crate::scan_top::{list, number, rewrite};
use crate::scan_worker::{answer, worker};
use crate::several_saes::{sae_at, with};

/// SAEs of three places, which are neither in the order of their names nor in that of the blocks.
const SAES: [(&str, &str); 3] = [
    ("resid", "blocks.1.hook_resid_post"),
    ("mlp", "blocks.3.hook_mlp_out"),
    ("heads", "blocks.0.attn.hook_z"),
];

pub(crate) fn saes(dir: &Path) -> Vec<PathBuf> {
    let write = |(name, hook)| sae_at(hook, &dir.join(format!("{name}.gguf")));
    SAES.map(write).to_vec()
}

/// The arguments for the demo with these SAEs.
pub(crate) fn model(saes: &[PathBuf]) -> Vec<&str> {
    static MODELS: OnceLock<PathBuf> = OnceLock::new();
    let models = MODELS.get_or_init(|| Fixture::Demo.converted(TensorType::F16));
    with(models, saes)
}

/// Writes the scan of a folder.
fn write(dir: &Path, file: &Path, saes: &[PathBuf], more: &[&str]) {
    let output = scan(dir, file, &[&model(saes)[..], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Scans of one folder.
pub(crate) struct Scans {
    pub(crate) dir: PathBuf,
    /// With all three SAEs.
    pub(crate) all: PathBuf,
    /// With each.
    pub(crate) alone: Vec<PathBuf>,
}

pub(crate) fn scans() -> &'static Scans {
    static SCANS: OnceLock<Scans> = OnceLock::new();
    SCANS.get_or_init(|| {
        let (dir, out) = (two_classes("several"), folder("several-out"));
        let saes = saes(&out);
        let all = out.join("all.parquet");
        write(&dir, &all, &saes, &[]);
        let alone = saes.iter().map(|sae| {
            let file = sae.with_extension("parquet");
            write(&dir, &file, std::slice::from_ref(sae), &[]);
            file
        });
        let alone = alone.collect();
        Scans { dir, all, alone }
    })
}

#[test]
fn rows_of_several_are_those_of_each() {
    let Scans { dir, all, alone } = scans();
    let together = rows(all);
    let mut n_rows = 0;
    for ((name, _), alone) in SAES.iter().zip(alone) {
        let mut expected = rows(alone);
        assert!(expected.len() > 100, "{name}: {}", expected.len());
        n_rows += expected.len();
        for row in &mut expected {
            assert_eq!(row.sae.replace((*name).to_owned()), None);
        }
        let ours = together
            .iter()
            .filter(|row| row.sae.as_deref() == Some(name));
        let ours: Vec<_> = ours.cloned().collect();
        assert!(ours == expected, "{name}");
    }
    assert_eq!(together.len(), n_rows);
    // By picture, then by SAE as they were given, then by feature.
    let place = |row: &OwnedRow| {
        let sae = row.sae.as_deref().expect("every row names its SAE");
        let sae = SAES.iter().position(|(name, _)| *name == sae);
        (row.path.clone(), sae.expect("one of them"), row.feature)
    };
    assert!(together.is_sorted_by(|a, b| place(a) < place(b)));

    // What the file says of itself.
    let opened = fs::File::open(all).expect("it was written");
    let metadata = ArrowReaderMetadata::load(&opened, Default::default()).expect("a valid file");
    let columns = metadata.schema().fields().iter();
    let columns: Vec<_> = columns.map(|field| field.name().as_str()).collect();
    let expected = [
        "path", "class", "sae", "feature", "label", "sum", "max", "count",
    ];
    assert_eq!(columns, expected);
    let sae = metadata.schema().field(2);
    assert_eq!(sae.data_type().to_string(), "Utf8");
    assert!(!sae.is_nullable());
    let scanned = SAES.map(|(name, _)| ScannedSae {
        id: name.to_owned(),
        d_sae: 768,
    });
    let scanned = ScannedSaes::Several {
        saes: scanned.to_vec(),
    };
    assert_eq!(*ScanFile::open(all).expect("whole").saes(), scanned);

    // Any number of jobs.
    let expected = with_sidecar(all);
    let saes: Vec<_> = alone
        .iter()
        .map(|file| file.with_extension("gguf"))
        .collect();
    for jobs in ["2", "3"] {
        let other = all.with_file_name(format!("{jobs}.parquet"));
        write(dir, &other, &saes, &["--jobs", jobs]);
        assert!(with_sidecar(&other) == expected, "{jobs} jobs");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_scan_of_several_goes_on() {
    use crate::scan_resume::{finished, interrupted, many};
    let (dir, out) = (many("several-many"), folder("several-many-out"));
    let saes = saes(&out);
    let (whole, file) = (out.join("whole.parquet"), out.join("features.parquet"));
    write(&dir, &whole, &saes, &["-t", "1"]);
    interrupted(
        &dir,
        "193 pictures",
        &file,
        2,
        &[&model(&saes)[..], &["--jobs", "2"]].concat(),
    );
    let n_parts = finished(&file).len();
    // Fewer, in another order, and one under another name, which is its id.
    let renamed = out.join("renamed.gguf");
    fs::copy(&saes[2], &renamed).expect("a copy");
    let [resid, mlp, heads] = &saes[..] else {
        panic!("there are three");
    };
    for others in [
        vec![resid.clone()],
        vec![resid.clone(), mlp.clone()],
        vec![mlp.clone(), resid.clone(), heads.clone()],
        vec![resid.clone(), mlp.clone(), renamed],
    ] {
        let args = ["scan", text(&dir), "-o", text(&file)];
        let args = [&args[..], &model(&others)].concat();
        check(&args, 1, &["its SAE is `resid (", "hint: "]);
        assert_eq!(finished(&file).len(), n_parts);
    }
    let output = scan(&dir, &file, &model(&saes));
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        with_sidecar(&file) == with_sidecar(&whole),
        "the same bytes"
    );
}

#[test]
fn scans_of_several_that_are_refused() {
    let (dir, out) = (two_classes("several-bad"), folder("several-bad-out"));
    let sae = sae_at(SAES[0].1, &out.join("a.gguf"));
    let args = ["scan", text(&dir), "-o"];
    let target = out.join("f.parquet");
    let args = [&args[..], &[text(&target)]].concat();
    let twice = [sae.clone(), sae.clone()];
    let words = ["two of the SAEs are called `a`", "hint: "];
    check(&[&args[..], &model(&twice)].concat(), 1, &words);
    let onto_itself = ["scan", text(&dir), "--force", "-o", text(&sae)];
    let onto_itself = [&onto_itself[..], &model(std::slice::from_ref(&sae))].concat();
    check(&onto_itself, 1, &["it is an input"]);
    assert_eq!(names(&out), ["a.gguf"]);
    let files = ModelFiles {
        model: target.clone(),
        mmproj: None,
        saes: Vec::new(),
    };
    let error = files.open_saes().expect_err("there is none");
    assert!(error.to_string().contains("the SAE's file is missing"));
}

/// `top` on a table of several says what it says on the tables of each.
#[test]
fn top_of_several_is_that_of_each() {
    let Scans { all, alone, .. } = scans();
    for ((name, _), alone) in SAES.iter().zip(alone) {
        let feature = rows(alone)[7].feature;
        let ask = |file: &Path, feature: &str| {
            json(&[
                "top",
                text(file),
                "--feature",
                feature,
                "--json",
                "--top",
                "3",
            ])
        };
        let ours = ask(all, &format!("{name}/{feature}"));
        assert_eq!(ours["feature"], format!("{name}/{feature}"));
        let theirs = ask(alone, &feature.to_string());
        assert_eq!(theirs["feature"], feature);
        assert!(!list(&theirs, "images").is_empty());
        for key in ["label", "by", "n_images", "n_firing", "images"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
    }
    // The first SAE alone has labels.
    let table = stdout(&["top", text(all), "--feature", "resid/carrot", "--top", "1"]);
    assert!(table.starts_with("Feature resid/430 `carrot`: "), "{table}");
    let refused = |feature: &str, words: &[&str]| {
        check(&["top", text(all), "--feature", feature], 1, words);
    };
    let which = "does not say which SAE it is a feature of";
    let ids = "`resid`, `mlp`, `heads`";
    refused("430", &["`430`", which, ids]);
    refused("carrot", &["`carrot`", which, ids]);
    refused("other/430", &["`other/430`", which, ids]);
    refused("mlp/768", &["768 features", "0 to 767"]);
    refused("mlp/carrot", &["this SAE has no labels"]);

    // Each SAE has a ranking of its own, since activations of two do not compare.
    let ask = |file: &Path| json(&["top", text(file), "--class", "food", "--json", "--top", "4"]);
    let ours = ask(all);
    let mut ours = list(&ours, "features").iter();
    for ((name, _), alone) in SAES.iter().zip(alone) {
        let theirs = ask(alone);
        assert_eq!(list(&theirs, "features").len(), 4, "{name}");
        for entry in list(&theirs, "features") {
            let mut expected = entry.clone();
            expected["feature"] = format!("{name}/{}", entry["feature"]).into();
            assert_eq!(ours.next(), Some(&expected));
        }
    }
    assert_eq!(ours.next(), None);
    let tables = stdout(&["top", text(all), "--class", "food", "--top", "1"]);
    let titles = tables.lines().filter(|line| line.starts_with("Features"));
    let titles: Vec<_> = titles.collect();
    for (title, (name, _)) in titles.iter().zip(SAES) {
        assert!(
            title.ends_with(&format!("; by largest activation, {name}")),
            "{title}"
        );
    }
    assert_eq!(titles.len(), SAES.len());
}

/// What another program makes of the rows still names the SAEs, if it keeps their column.
#[test]
fn tables_of_several_that_others_have_rewritten() {
    let Scans { all, alone, .. } = scans();
    let file = all.with_file_name("rewritten.parquet");
    let of_scan = rows(all);
    rewrite(&file, &of_scan);
    assert!(rows(&file) == of_scan);
    let feature = of_scan[0].feature;
    let name = format!("resid/{feature}");
    let report = |file: &Path, name: &str| json(&["top", text(file), "--feature", name, "--json"]);
    let images = report(&file, &name)["images"].clone();
    assert_eq!(images, report(all, &name)["images"]);
    let which = ["does not say which SAE", "`heads`, `mlp`, `resid`"];
    check(
        &["top", text(&file), "--feature", &feature.to_string()],
        1,
        &which,
    );

    // The rows of one SAE: with the column they are named as before, and their index is enough.
    let is_mlp = |row: &&OwnedRow| row.sae.as_deref() == Some("mlp");
    let of_mlp: Vec<_> = of_scan.iter().filter(is_mlp).cloned().collect();
    rewrite(&file, &of_mlp);
    let feature = of_mlp[0].feature;
    let found = report(&file, &feature.to_string());
    assert_eq!(found["feature"], format!("mlp/{feature}"));
    let expected = report(&alone[1], &feature.to_string());
    assert_eq!(found["images"], expected["images"]);
    // Without it, they are a table of one.
    let unnamed = of_mlp
        .iter()
        .cloned()
        .map(|row| OwnedRow { sae: None, ..row });
    rewrite(&file, &unnamed.collect::<Vec<_>>());
    assert_eq!(
        report(&file, &feature.to_string())["images"],
        expected["images"]
    );
    let report = json(&["top", text(&file), "--class", "food", "--json"]);
    assert!(number(&list(&report, "features")[0]["difference"]) > 0.0);

    let mut partly = of_scan.clone();
    partly[3].sae = None;
    rewrite(&file, &partly);
    check(
        &["top", text(&file), "--feature", "resid/1"],
        1,
        &["has rows without `sae`", "hint: "],
    );
}

/// A table whose rows would name their SAE, and has none.
#[test]
fn tables_of_several_without_rows() {
    let Scans { all, .. } = scans();
    let file = all.with_file_name("no-rows.parquet");
    rewrite(&file, &rows(all)[..1]);
    let source = fs::File::open(&file).expect("our own");
    let reader = ParquetRecordBatchReaderBuilder::try_new(source).expect("a table");
    let mut batches = reader.build().expect("a table");
    let batch = batches.next().expect("a row").expect("readable");
    let target = fs::File::create(&file).expect("a file of our own");
    let mut writer = ArrowWriter::try_new(target, batch.schema(), None).expect("a plain schema");
    writer.write(&batch.slice(0, 0)).expect("written");
    writer.close().expect("written");
    let out = all.with_file_name("no-rows");
    let gallery = ["gallery", text(&file), "-o", text(&out)];
    for args in [&["top", text(&file)][..], &gallery[..]] {
        for feature in ["1", "mlp/1"] {
            check(&[args, &["--feature", feature]].concat(), 1, &["SAE"]);
        }
    }
    assert!(!out.exists());
}

/// One pass writes the files that a pass for each SAE writes.
#[test]
fn baselines_of_several_are_those_of_each() {
    let (dir, out) = (
        two_classes("several-baseline"),
        folder("several-baseline-out"),
    );
    let saes = saes(&out);
    let measure = |saes: &[PathBuf], target: &Path, more: &[&str]| {
        let args = ["baseline", text(&dir), "-o", text(target)];
        run(&[&args[..], &model(saes)[..], more].concat())
    };
    let (copies, alone) = (out.join("copies/new"), out.join("alone.gguf"));
    let output = measure(&saes, &copies, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(&copies), ["heads.gguf", "mlp.gguf", "resid.gguf"]);
    let read = |path: &Path| fs::read(path).expect("it was written");
    for sae in &saes {
        let copy = copies.join(sae.file_name().expect("a file's name"));
        let output = measure(std::slice::from_ref(sae), &alone, &["--force"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(
            read(&copy) == read(&alone) && read(&copy) != read(sae),
            "{sae:?}"
        );
    }

    let refused = |saes: &[PathBuf], target: &Path, words: &[&str]| {
        let output = measure(saes, target, &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words.iter().chain(&["hint: "]) {
            assert!(said.contains(word), "should say `{word}`: {said}");
        }
    };
    refused(&saes, &copies, &["resid.gguf`: it already exists"]);
    let one_file = "is one file, and 3 SAEs are measured";
    refused(&saes, &alone, &[one_file]);
    refused(&saes, &out.join("new.gguf"), &[one_file]);
    let same = [saes[0].clone(), copies.join("resid.gguf")];
    refused(
        &same,
        &out.join("other"),
        &["files are called `resid.gguf`"],
    );
    assert!(!out.join("new.gguf").exists() && !out.join("other").exists());

    // In place.
    let output = measure(&saes, &out, &["--force"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for sae in &saes {
        let copy = copies.join(sae.file_name().expect("a file's name"));
        assert!(read(sae) == read(&copy), "{sae:?}");
    }
}

/// Shards and a worker of several SAEs, whose rows name theirs.
#[test]
fn shards_and_workers_of_several() {
    let Scans { dir, all, .. } = scans();
    let saes = saes(&folder("several-shards-saes"));
    let out = folder("several-shards");
    let shards = [1, 2].map(|index| out.join(format!("{index}.parquet")));
    for (index, shard) in ["1/2", "2/2"].into_iter().zip(&shards) {
        write(dir, shard, &saes, &["--shard", index]);
    }
    let merged = out.join("merged.parquet");
    let [first, second] = shards.each_ref().map(|shard| text(shard));
    stdout(&["scan", "merge", "-q", second, first, "-o", text(&merged)]);
    assert!(with_sidecar(&merged) == with_sidecar(all));

    let (child, mut stdin, mut answers) = worker(dir, &model(&saes));
    stdin.write_all(b"guitar.png\nno.png\n").expect("it reads");
    drop(stdin);
    let mut expected = rows(all);
    expected.retain(|row| row.path == "guitar.png");
    let batch = answers.next().expect("an answer").expect("a batch");
    let answered = answer(&batch, 0);
    assert_eq!(answered, Ok(expected));
    let batch = answers.next().expect("an answer").expect("a batch");
    assert!(answer(&batch, 1).is_err());
    assert!(answers.next().is_none());
    assert!(child.wait_with_output().expect("it ends").status.success());
}
