//! `gallery`: what pages hold, and what is refused. Its numbers are in `gallery_numbers.rs`, and what a browser makes of
//! the pages in `gallery_page.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gguf_tools::terminal::one_line;
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::gallery::{N_BINS, Which};
use llava_sae_cpp::report::gallery::{About, Items};
use serde_json::Value;

use crate::bad_input::check;
#[cfg(unix)]
use crate::bad_input::send;
use crate::command_line::{json, names, run, stdout, text};
use crate::fixture::temporary_root;
use crate::gallery_numbers::gathered;
use crate::page::{NASTY, data};
use crate::scan::{OwnedRow, add, folder, rows, stderr, two_classes};
use crate::scan_several::{self, Scans, scans};
use crate::scan_top::{list, number, rewrite};

/// A scan of pictures of three classes and one of none.
fn scanned() -> &'static (PathBuf, PathBuf) {
    static SCANNED: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    SCANNED.get_or_init(|| {
        let dir = two_classes("gallery");
        let file = folder("gallery-tables").join("features.parquet");
        stdout(&["scan", "-q", text(&dir), "-o", text(&file)]);
        (dir, file)
    })
}

/// Where a gallery of this name is to be written.
fn output(name: &str) -> PathBuf {
    folder("galleries").join(name)
}

/// Writes a gallery and gives its folder and what was said.
fn write(name: &str, file: &Path, args: &[&str]) -> (PathBuf, String) {
    let dir = output(name);
    let output = run(&[&["gallery", "-q", text(file), "-o", text(&dir)], args].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    (dir, stderr(&output))
}

/// The data in a page.
fn page(dir: &Path, name: &str) -> Value {
    data(&fs::read_to_string(dir.join(name)).expect("a page"))
}

/// The numbers in pages are those of the scan, heat maps those of `features`, and no path of the machine is in them.
#[test]
fn pages_of_a_scan() {
    let (dir, file) = scanned();
    let (out, said) = write("scan", file, &["--images", text(dir)]);
    assert_eq!(said, "");
    assert_eq!(
        names(&out),
        ["classes", "features", "index.html", "parts", "pictures"]
    );
    let rows = rows(file);
    let features: BTreeSet<_> = rows.iter().map(|row| row.feature).collect();
    let index = page(&out, "index.html");
    assert_eq!(index["n_images"], 6);
    assert_eq!(list(&index, "features").len(), features.len());
    assert_eq!(names(&out.join("features")).len(), features.len());
    let classes: Vec<_> = list(&index, "classes")
        .iter()
        .map(|class| class["class"].as_str())
        .collect();
    assert_eq!(classes, [Some("food"), Some("red"), Some("vehicle")]);
    assert_eq!(index["settings"]["prompt"], "Describe the image.");

    let carrot = page(&out, "features/430.html");
    assert_eq!(carrot["label"], "carrot");
    let expected = json(&["top", text(file), "--feature", "430", "--json"]);
    let top = list(&carrot, "top");
    assert_eq!(top.len(), list(&expected, "images").len());
    assert_eq!(carrot["n_firing"], expected["n_firing"]);
    let mut n_patches = 0;
    for (item, image) in top.iter().zip(list(&expected, "images")) {
        assert_eq!(item["name"], image["path"]);
        assert_eq!(
            (&item["class"], &item["count"]),
            (&image["class"], &image["count"])
        );
        assert_eq!(number(&item["max"]) as f32, number(&image["max"]) as f32);
        let name = item["picture"]["file"].as_str().expect("it is shown");
        let thumbnail = image::open(out.join("pictures").join(name)).expect("a picture");
        assert_eq!(item["picture"]["size"][0], thumbnail.width());

        let path = dir.join(item["name"].as_str().expect("a path"));
        let seen = json(&[
            "features",
            "--json",
            "--rank",
            "activation",
            "--top",
            "768",
            text(&path),
        ]);
        let seen_features = list(&seen, "features");
        let seen_carrot = seen_features
            .iter()
            .find(|one| one["feature"] == 430)
            .expect("active");
        let patches: Vec<f64> = list(seen_carrot, "patches").iter().map(number).collect();
        let largest = patches.iter().copied().fold(0.0, f64::max);
        let mut shares = vec![0.0; patches.len()];
        let pairs: Vec<f64> = list(&item["map"], "patches").iter().map(number).collect();
        for pair in pairs.chunks_exact(2) {
            shares[pair[0] as usize] = pair[1];
        }
        n_patches += pairs.len() / 2;
        assert_eq!(item["map"]["grid"], seen["grid"]);
        assert_eq!(item["map"]["place"], seen["views"][0]["place"]);
        for (share, patch) in shares.into_iter().zip(patches) {
            // A share is rounded, and so was the activation.
            assert!((share / 255.0 - patch / largest).abs() < 0.6 / 255.0);
        }
    }
    assert!(n_patches > 20, "{n_patches}");
    let link = |other: &Value| {
        out.join("features")
            .join(other["page"].as_str().expect("a page"))
    };
    assert!(
        list(&carrot, "together")
            .iter()
            .all(|other| link(other).exists())
    );

    let food = page(&out, "classes/0.html");
    assert_eq!(
        (&food["class"], &food["n_inside"], &food["n_outside"]),
        (&"food".into(), &2.into(), &4.into())
    );
    let machine = [
        temporary_root().to_string_lossy().into_owned(),
        text(dir).to_owned(),
    ];
    for name in ["index.html", "features/430.html", "classes/0.html"] {
        let text = fs::read_to_string(out.join(name)).expect("a page");
        assert!(machine.iter().all(|path| !text.contains(path)), "{name}");
    }

    // The same pages for pictures alone, but for the maps; and for names alone.
    let model = ["--no-heatmaps", "--feature", "430", "--examples", "2"];
    let (plain, _) = write(
        "plain",
        file,
        &[&["--images", text(dir)], &model[..]].concat(),
    );
    let plain = page(&plain, "features/430.html");
    assert_eq!(list(&plain, "top").len(), 2);
    assert_eq!(plain["histogram"], carrot["histogram"]);
    assert!(plain["top"][0]["map"].is_null() && plain["top"][0]["picture"].is_object());
    let (bare, _) = write("bare", file, &["--class", "red", "--top", "2"]);
    assert_eq!(names(&bare), ["classes", "features", "index.html", "parts"]);
    assert_eq!(names(&bare.join("features")).len(), 2);
    let bare = page(&bare, "features/430.html");
    assert!(bare["top"][0]["picture"].is_null() && bare["top"][0]["missing"].is_null());
}

/// A picture that has gone, and one that is another since the scan.
#[test]
fn pictures_that_are_missing() {
    let dir = folder("gallery-missing");
    add("08.png", &dir, "a/carrot.png");
    add("00.png", &dir, "a/changes.png");
    add("01.png", &dir, "b/goes.png");
    let file = folder("gallery-tables").join("missing.parquet");
    stdout(&["scan", "-q", text(&dir), "-o", text(&file)]);
    fs::remove_file(dir.join("b/goes.png")).expect("our own file");
    add("02.png", &dir, "a/changes.png");
    let (out, said) = write("missing", &file, &["--images", text(&dir)]);
    for line in [
        "goes.png",
        "`a/changes.png` does not activate",
        "missing, of 3 pictures that are shown: 2",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let mut reasons = BTreeMap::new();
    for name in names(&out.join("features")) {
        let feature = page(&out, &format!("features/{name}"));
        for item in list(&feature, "top") {
            let name = item["name"].as_str().expect("a path").to_owned();
            assert_eq!(item["missing"].is_null(), item["picture"].is_object());
            reasons.insert(name, item["missing"].as_str().map(str::to_owned));
        }
    }
    let reasons: Vec<_> = reasons.values().map(Option::as_deref).collect();
    assert_eq!(reasons, [None, Some("changed"), Some("gone")]);
    // Without a model, nobody sees that it has changed.
    let args = ["--images", text(&dir), "--no-heatmaps"];
    let (_, said) = write("missing-plain", &file, &args);
    assert!(
        said.contains("missing, of 3 pictures that are shown: 1"),
        "{said}"
    );
}

/// One picture, a class of one, a name that is no text, and a label that would be markup.
#[test]
fn small_tables_and_strange_names() {
    let row = |path: &str, class: Option<&str>, feature, label: Option<&str>, max| OwnedRow {
        path: path.to_owned(),
        class: class.map(str::to_owned),
        sae: None,
        feature,
        label: label.map(str::to_owned),
        sum: max,
        max,
        count: 1,
    };
    let file = folder("gallery-tables").join("small.parquet");
    rewrite(
        &file,
        &[
            row("only.png", Some("a"), 3, None, 0.5),
            row("only.png", Some("a"), 4, None, 1.0),
        ],
    );
    let (out, said) = write("one", &file, &[]);
    assert!(said.contains("is not known"), "{said}");
    let three = page(&out, "features/3.html");
    assert_eq!(three["histogram"][N_BINS - 1], 1);
    assert!(three["label"].is_null() && list(&three, "together").is_empty());
    let class = page(&out, "classes/0.html");
    assert_eq!(
        (&class["n_inside"], &class["n_outside"]),
        (&1.into(), &0.into())
    );
    assert_eq!(list(&class, "features").len(), 2);

    // What is not above 0 does not count.
    rewrite(
        &file,
        &[
            row("a.png", None, 3, None, 0.0),
            row("b.png", None, 3, None, -1.0),
            row("c.png", None, 4, None, 2.0),
        ],
    );
    let (out, _) = write("zeros", &file, &[]);
    assert_eq!(names(&out.join("features")), ["4.html"]);
    rewrite(&file, &[row("a.png", None, 3, None, f32::NAN)]);
    let target = output("no-number");
    check(
        &["gallery", text(&file), "-o", text(&target)],
        1,
        &["feature `3` on `a.png` is no number", "hint: "],
    );
    assert!(!target.exists());
    rewrite(&file, &[]);
    let (out, _) = write("empty", &file, &[]);
    assert_eq!(list(&page(&out, "index.html"), "features").len(), 0);

    // Names and labels are shown as text.
    let strange = format!("{NASTY}.png");
    rewrite(
        &file,
        &[
            row(&strange, Some(NASTY), 3, Some(NASTY), 0.5),
            row(r"caf\xE9.png", Some("b"), 3, None, 1.0),
        ],
    );
    let pictures = folder("gallery-strange");
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
        fs::copy("assets/pictures/apple.png", pictures.join(name)).expect("a copy");
    }
    let (out, _) = write(
        "strange",
        &file,
        &["--images", text(&pictures), "--no-heatmaps"],
    );
    for name in ["index.html", "features/3.html", "classes/0.html"] {
        let html = fs::read_to_string(out.join(name)).expect("a page");
        assert_eq!(html.matches("<script").count(), 2, "{name}");
        assert!(!html.contains("<img") && !html.contains("<!--"), "{name}");
        assert!(
            html.contains("default-src 'none'; img-src 'self' file:; "),
            "{name}"
        );
    }
    let feature = page(&out, "features/3.html");
    assert_eq!(feature["label"], one_line(NASTY));
    assert_eq!(feature["top"][1]["class"], one_line(NASTY));
    assert_eq!(
        feature["top"][0]["picture"].is_object(),
        cfg!(target_os = "linux")
    );
    assert_eq!(feature["top"][1]["missing"], "gone");
}

/// Features of several SAEs are those of each alone, heat maps too.
#[test]
fn several_saes() {
    let Scans { dir, all, alone } = scans();
    let saes: Vec<_> = alone
        .iter()
        .map(|file| file.with_extension("gguf"))
        .collect();
    let write = |name: &str, file: &Path, saes: &[PathBuf], feature: &str| {
        let images = ["--images", text(dir), "--feature", feature];
        write(
            name,
            file,
            &[&images[..], &scan_several::model(saes)[..]].concat(),
        )
        .0
    };
    let strongest = rows(&alone[1])
        .into_iter()
        .max_by(|a, b| a.max.total_cmp(&b.max));
    let feature = strongest.expect("there are rows").feature;
    let ours = write("several", all, &saes, &format!("mlp/{feature}"));
    let expected = write("several-mlp", &alone[1], &saes[1..2], &feature.to_string());
    assert_eq!(names(&ours.join("features")), [format!("2-{feature}.html")]);
    let ours = page(&ours, &format!("features/2-{feature}.html"));
    let expected = page(&expected, &format!("features/{feature}.html"));
    assert_eq!(ours["name"], format!("mlp/{feature}"));
    for key in [
        "n_firing",
        "largest",
        "histogram",
        "top",
        "tenths",
        "classes",
    ] {
        assert_eq!(ours[key], expected[key], "{key}");
    }
    assert!(ours["top"][0]["map"].is_object());
    let together: Vec<_> = list(&ours, "together")
        .iter()
        .map(|one| one["name"].as_str())
        .collect();
    assert!(
        together
            .iter()
            .any(|name| name.is_some_and(|name| name.starts_with("resid/"))),
        "{together:?}"
    );
}

/// A feature leads to its page on Neuronpedia, where its SAE is known there.
#[test]
fn links_to_neuronpedia() {
    let named = Which::Named(vec!["carrot".to_owned()]);
    let gallery = gathered(&scanned().1, named).expect("it is there");
    let linked = |name: &str, addresses: &[(&str, &str)]| {
        let dir = output(name);
        let addresses = addresses.iter();
        let about = About {
            table: "features.parquet".to_owned(),
            settings: None,
            neuronpedia: addresses
                .map(|(sae, address)| ((*sae).to_owned(), (*address).to_owned()))
                .collect(),
        };
        let items = Items::default();
        let cancel = CancelFlag::default();
        llava_sae_cpp::report::gallery::write(&dir, &gallery, &items, &about, &cancel)
            .expect("a folder of our own");
        page(&dir, "features/430.html")["neuronpedia"].clone()
    };
    let address = "https://www.neuronpedia.org/gemma-2b/12-res-jb";
    assert_eq!(linked("known", &[("", address)]), format!("{address}/430"));
    assert!(linked("unknown", &[("other", address)]).is_null());
}

#[test]
fn galleries_that_are_refused() {
    let (dir, file) = scanned();
    let out = output("refused");
    let refused = |args: &[&str], code, words: &[&str]| {
        check(
            &[&["gallery", text(file), "-o", text(&out)], args].concat(),
            code,
            words,
        );
        assert!(!out.exists());
    };
    refused(&["--feature", "unicorn"], 1, &["`unicorn`", "hint: "]);
    refused(&["--feature", "768"], 1, &["0 to 767"]);
    refused(
        &["--class", "dog"],
        1,
        &["`dog`", "`food`, `red`, `vehicle`"],
    );
    refused(&["--feature", "1", "--top", "2"], 2, &["--top"]);
    refused(&["--feature", "1", "--class", "food"], 2, &["--class"]);
    refused(&["--no-heatmaps"], 2, &["--images"]);
    refused(&["--top", "0"], 2, &["--top"]);
    refused(&["--images", text(file)], 1, &["is not a folder", "hint: "]);
    refused(
        &["--images", "/no/such"],
        1,
        &["`/no/such` is not a folder"],
    );
    check(&["gallery", "/no/such", "-o", text(&out)], 1, &["/no/such"]);
    check(&["gallery", text(file)], 2, &["--output"]);

    // A folder that is there.
    let carrot = [
        "gallery",
        "-q",
        text(file),
        "--feature",
        "carrot",
        "-o",
        text(&out),
    ];
    stdout(&carrot);
    check(&carrot, 1, &["it already exists", "hint: ", "--force"]);
    stdout(&[&carrot[..], &["--force"]].concat());
    let theirs = out.join("notes.txt");
    fs::write(&theirs, "a user's").expect("our own folder");
    check(
        &[&carrot[..], &["--force"]].concat(),
        1,
        &["`notes.txt`", "hint: "],
    );
    assert!(theirs.exists() && out.join("features/430.html").exists());
    let pictures = ["gallery", text(file), "--force", "-o", text(dir)];
    check(&pictures, 1, &["there is something else in it", "hint: "]);

    // A model that is not the scan's.
    let several = folder("gallery-tables").join("other.parquet");
    let mut other = rows(file);
    other.truncate(1);
    other[0].sae = Some("other".to_owned());
    rewrite(&several, &other);
    let target = output("other");
    let args = [
        "gallery",
        text(&several),
        "--images",
        text(dir),
        "-o",
        text(&target),
    ];
    check(&args, 1, &["has not the table's SAE `other`", "hint: "]);
    let left = names(&folder("galleries"));
    assert!(
        left.iter()
            .all(|name| !name.ends_with(".unfinished") || !name.starts_with("other")),
        "{left:?}"
    );
}

/// An interruption leaves nothing.
#[cfg(unix)]
#[test]
fn an_interrupted_gallery_leaves_nothing() {
    let dir = folder("gallery-interrupted");
    for i in 0..60 {
        add(&format!("{:02}.png", i % 16), &dir, &format!("{i}.png"));
    }
    let file = folder("gallery-tables").join("interrupted.parquet");
    stdout(&["scan", "-q", text(&dir), "-o", text(&file)]);
    let parent = folder("gallery-interrupted-out");
    let out = parent.join("out");
    let args = [
        "gallery",
        "-q",
        text(&file),
        "--images",
        text(&dir),
        "-o",
        text(&out),
        "-t",
        "1",
        "--image-cache",
        "0",
    ];
    let mut program = crate::command_line::program();
    let mut child = program
        .args(args)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    // It is on its way when the first thumbnails are there.
    let begun = || {
        let mut inside = names(&parent);
        inside
            .pop()
            .is_some_and(|name| parent.join(name).join("pictures/0.jpg").exists())
    };
    while !begun() {
        assert!(
            child.try_wait().expect("our child").is_none(),
            "it ended before it was interrupted"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    send("INT", &child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("error: interrupted"),
        "{}",
        stderr(&output)
    );
    assert!(names(&parent).is_empty(), "{:?}", names(&parent));
}
