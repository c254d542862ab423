//! `features --html`: what is in the page, in a browser too.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeOptions};
use serde_json::{Value, json};

use crate::command_line::{stdout, text};
use crate::fixture::{Fixture, temporary_root};
use crate::{bad_input, browser};

const PICTURES: [&str; 2] = [
    "assets/pictures/carrot-mushroom.png",
    "assets/pictures/boat.png",
];
/// A label that would be a script, a picture, and placeholders of the page's template.
pub(crate) const NASTY: &str = "</script><img src=x onerror=alert(1)> \"quoted\" 'so' & \\ {{data}}{{script}}\u{7}\n<!--\u{2028}\u{202e}日本";
/// What is shown of it: the conversion makes spaces of control characters, and what else could
/// garble a line is shown by its code.
const NASTY_SHOWN: &str = "</script><img src=x onerror=alert(1)> \"quoted\" 'so' & \\ \
    {{data}}{{script}}  <!--\\u{2028}\\u{202e}日本";

fn folder() -> PathBuf {
    let dir = temporary_root().join("page");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

/// Writes a page with these arguments in f32, computed as the reference was.
fn write_page(name: &str, model: &[&str], args: &[&str]) -> PathBuf {
    let path = folder().join(name);
    let exact = [
        "features",
        "-q",
        "--kv-type",
        "f32",
        "-fa",
        "off",
        "-t",
        "1",
    ];
    let output = ["--html", text(&path)];
    stdout(&[&exact[..], &output, model, args].concat());
    path
}

/// The demo's page on two pictures, with an intervention.
fn demo_page() -> &'static Path {
    static PAGE: OnceLock<PathBuf> = OnceLock::new();
    PAGE.get_or_init(|| {
        let dir = Fixture::Demo.converted(TensorType::F32);
        let steer = ["--steer", "carrot:-16", "--at", "image"];
        let args = [&steer[..], &PICTURES].concat();
        write_page("demo.html", &["-d", text(&dir)], &args)
    })
}

/// An SAE for the fixture `Tiny`, whose labels are all nasty.
pub(crate) fn nasty_sae() -> &'static Path {
    static SAE: OnceLock<PathBuf> = OnceLock::new();
    SAE.get_or_init(|| {
        let labels = folder().join("labels.json");
        let entry = |index: u32| json!({"index": index, "description": NASTY});
        let entries = Value::from_iter((0..16).map(entry));
        std::fs::write(&labels, entries.to_string()).expect("a file of our own");
        let options = SaeOptions {
            weight_type: TensorType::F32,
            norm_factor: Some(0.11), // `norm_factor` in the fixture's oracle.json
            hook_name: None,
            labels: vec![labels],
            overwrite: Overwrite::Replace,
        };
        let sae = folder().join("nasty.gguf");
        let progress = &mut |_, _| std::ops::ControlFlow::Continue(());
        sae::convert(&Fixture::Tiny.dir().join("sae"), &sae, &options, progress)
            .expect("the fixture converts");
        sae
    })
}

/// A page on it.
fn nasty_page() -> &'static Path {
    static PAGE: OnceLock<PathBuf> = OnceLock::new();
    PAGE.get_or_init(|| {
        let dir = Fixture::Tiny.converted(TensorType::F32);
        let picture = Fixture::Tiny.picture("00.png");
        let model = ["-d", text(&dir), "--sae", text(nasty_sae())];
        write_page("nasty.html", &model, &["-n", "4", text(&picture)])
    })
}

/// The data in a page, as a browser finds it: up to the first `</script`.
pub(crate) fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").expect("the data's tag");
    let (data, _) = rest.split_once("</script").expect("its end");
    serde_json::from_str(data).expect("JSON")
}

/// The most active feature of a position in a page's data.
fn most_active(picture: &Value, position: usize) -> u64 {
    let row = picture["activations"][position].as_array().expect("a list");
    let value = |pair: &&[Value]| pair[1].as_f64().expect("a number");
    let pairs = row.chunks_exact(2);
    let largest = pairs.max_by(|a, b| value(a).total_cmp(&value(b)));
    largest.expect("something is active")[0]
        .as_u64()
        .expect("an index")
}

/// What is in the data, in a small form that is the same on any processor: in f32, and few numbers,
/// of two digits.
#[test]
fn data_of_a_page() {
    let page = std::fs::read_to_string(demo_page()).expect("it was written");
    let data = data(&page);
    let two_digits = |value: &Value| {
        let value = value.as_f64().expect("a number");
        format!("{value:.1e}").parse::<f64>().expect("a number")
    };
    let keys = |value: &Value| {
        let keys = value.as_object().expect("an object").keys();
        keys.map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    let picture = &data["pictures"][0];
    let mut lines = vec![
        format!("keys: {}", keys(&data)),
        format!("a picture's: {}", keys(picture)),
        format!(
            "{} · {} · {}",
            data["hook"], data["positions"], data["ranked_by"]
        ),
        format!("interventions: {}", data["interventions"]),
        format!("original: {}", picture["original"]),
        format!("steered: {}", picture["steered"]),
        format!("grid: {}", picture["views"][0]["grid"]),
    ];
    let image = picture["views"][0]["image"].as_str().expect("a text");
    assert!(image.starts_with("data:image/png;base64,"));
    let features = picture["features"].as_array().expect("a list");
    assert!(features.len() > picture["n_ranked"].as_u64().expect("a number") as usize);
    for feature in &features[..3] {
        let label = &data["labels"][feature[0].to_string()];
        lines.push(format!(
            "feature {} {label}: score {}, lift {}, max {}, {} positions, largest at {}",
            feature[0],
            two_digits(&feature[1]),
            feature[2],
            two_digits(&feature[3]),
            feature[4],
            feature[5]
        ));
    }
    let tokens = picture["tokens"].as_array().expect("a list");
    assert_eq!(
        picture["activations"].as_array().map(Vec::len),
        Some(tokens.len())
    );
    for (position, token) in tokens.iter().enumerate() {
        if token["kind"] != "image" {
            let (kind, text) = (&token["kind"], &token["text"]);
            lines.push(format!("{kind} {text}: {}", most_active(picture, position)));
        }
    }
    let n_patches = tokens
        .iter()
        .filter(|token| token["kind"] == "image")
        .count();
    lines.push(format!("{n_patches} patches"));
    insta::assert_snapshot!(lines.join("\n"));
}

/// A feature that a patch or token shows is in the list, and pages stay small.
#[test]
fn what_is_active_is_listed() {
    let page = std::fs::read_to_string(demo_page()).expect("it was written");
    assert!(page.len() < 400_000, "{} bytes", page.len());
    let data = data(&page);
    for picture in data["pictures"].as_array().expect("a list") {
        let listed = picture["features"].as_array().expect("a list");
        let listed: HashSet<_> = listed.iter().map(|entry| entry[0].to_string()).collect();
        for row in picture["activations"].as_array().expect("a list") {
            let pairs = row.as_array().expect("a list").chunks_exact(2);
            for pair in pairs {
                assert!(listed.contains(&pair[0].to_string()), "{}", pair[0]);
            }
        }
    }
    assert_eq!(data["labels"]["430"], "carrot");
}

#[test]
fn nasty_labels_stay_text() {
    let page = std::fs::read_to_string(nasty_page()).expect("it was written");
    for tag in ["<script", "</script>", "<style", "<img"] {
        let expected = if tag == "<style" { 1 } else { 2 };
        assert_eq!(page.matches(tag).count(), expected, "{tag}");
    }
    assert!(!page.contains("<!--") && !page.contains(['\u{7}', '\u{2028}', '\u{202e}']));
    let data = data(&page);
    let mut labels = data["labels"].as_object().expect("texts by index").values();
    assert!(
        labels.len() > 0 && labels.all(|label| label == NASTY_SHOWN),
        "{}",
        data["labels"]
    );
}

#[test]
fn targets_that_cannot_be_written() {
    let dir = folder();
    let picture = PICTURES[0];
    let file = dir.join("a-file");
    std::fs::write(&file, "kept").expect("a file of our own");
    let copy = dir.join("input.png");
    std::fs::copy(picture, &copy).expect("a file of our own");
    let below_file = file.join("page.html");
    let nowhere = dir.join("no-such-folder/page.html");
    let check = |args: &[&str], code, words: &[&str]| {
        bad_input::check(&[&["features", "-n", "0"], args].concat(), code, words);
    };
    check(
        &["--html", text(&dir), picture],
        1,
        &["is a folder", "hint: "],
    );
    check(
        &["--html", text(&nowhere), picture],
        1,
        &["cannot write", "no-such-folder"],
    );
    check(
        &["--html", text(&below_file), picture],
        1,
        &["cannot write", "a-file"],
    );
    check(&["--html", text(&file), picture], 1, &["exists", "hint: "]);
    check(
        &["--html", text(&copy), "--force", text(&copy)],
        1,
        &["it is an input", "hint: "],
    );
    let check = |args: &[&str], code, words: &[&str]| {
        bad_input::check(&[&["features"], args].concat(), code, words);
    };
    check(&["--heatmap", text(&file), picture], 1, &["a-file"]);
    check(&["--heatmap", text(&below_file), picture], 1, &["a-file"]);
    check(&["--force", picture], 2, &["--heatmap", "--html"]);
    for args in [
        ["--steer", "carrot:1"],
        ["--ablate", "carrot"],
        ["-n", "3"],
        ["--temp", "1"],
    ] {
        check(&[&args[..], &[picture]].concat(), 2, &["--html <FILE>"]);
    }
    assert_eq!(std::fs::read(&file).expect("still there"), b"kept");
    assert_eq!(std::fs::read(&copy).ok(), std::fs::read(picture).ok());
}

#[test]
fn a_page_in_a_browser() {
    let Some(mut page) = browser::Page::open(demo_page()) else {
        return;
    };
    let data = data(&std::fs::read_to_string(demo_page()).expect("it was written"));
    // The first feature is chosen, and the captions stand side by side.
    let first = &data["pictures"][0]["features"][0][0];
    page.expect(
        "document.querySelector('.option[aria-selected=true]').id",
        format!("feature-{first}"),
    );
    assert_eq!(page.text("#captions del"), "carrot");
    assert_eq!(page.text("#captions ins"), "cat");
    let heat = "document.querySelector('canvas').toDataURL()";
    let before = page.value(heat);

    // The picture is shown as it is, until a feature is asked for.
    let filter = "document.querySelector('#stage img').style.filter";
    page.expect(filter, "grayscale(0) brightness(1)");

    // … or the pointer is on it in the list.
    page.hover("#feature-766");
    page.expect(&format!("{filter} !== 'grayscale(0) brightness(1)'"), true);
    page.hover("#features-title");
    page.expect(filter, "grayscale(0) brightness(1)");

    // A feature is clicked: heat map, title, tokens and the page's address follow.
    page.click("#feature-766");
    page.expect_text("#chosen", "Feature 766 · mushroom");
    assert_ne!(page.value(heat), before, "a heat map");
    assert_ne!(page.value(filter), "grayscale(0) brightness(1)");
    page.expect("location.hash", "#feature=766");
    let mushroom = "[...document.querySelectorAll('.chips button')].find(chip => chip.textContent.trim() === 'mushroom')";
    page.expect(&format!("{mushroom}.style.background !== ''"), true);

    // Patches and tokens that the pointer is on show their features.
    let position = 4 + 8 * 5 + 3; // four tokens stand before the image
    page.hover(&format!("#patches [data-position='{position}']"));
    page.expect_text("#position-title", "Patch in row 6, column 4");
    let most_active = |position| most_active(&data["pictures"][0], position).to_string();
    page.expect_text("#position-features li span", &most_active(position));
    let token = page.value(&format!("{mushroom}.dataset.position"));
    let token: usize = token
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("a position");
    page.hover(&format!(".chips [data-position='{token}']"));
    page.expect_text("#position-title", "Token “ mushroom”");
    page.expect_text("#position-features li span", &most_active(token));

    // A click holds a position, Escape lets it go, and arrow keys move.
    page.click(&format!("#patches [data-position='{position}']"));
    page.hover(".chips [data-position='1']");
    page.expect_text("#position-title", "Patch in row 6, column 4");
    page.value("document.querySelector('#patches').focus()");
    page.press("Escape");
    page.press("ArrowUp");
    page.expect_text("#position-title", "Patch in row 5, column 4");

    // The search finds labels and indices, among all active features.
    page.click("#search");
    page.enter("SHRoom");
    let labels = "[...document.querySelectorAll('.option bdi')]";
    page.expect(
        &format!(
            "{labels}.length > 0 && {labels}.every(label => label.textContent.includes('mushroom'))"
        ),
        true,
    );
    page.value("document.querySelector('#search').select()");
    page.enter("430");
    page.expect("document.querySelectorAll('.option').length", 1);
    page.press("Enter");
    page.expect_text("#chosen", "Feature 430 · carrot");

    // An address leads to a feature, and the list can be sorted.
    page.value("document.querySelector('#search').select()");
    page.enter(" ");
    page.value("location.hash = '#feature=766'");
    page.expect_text("#chosen", "Feature 766 · mushroom");
    let sorted = |page: &mut browser::Page, order: &str, key: &str| {
        let order = json!(order);
        page.value(&format!("(select => {{ select.value = {order}; select.dispatchEvent(new Event('change')); }})(document.querySelector('#order'))"));
        let keys = format!("[...document.querySelectorAll('.option')].map({key})");
        let rises = "every((key, i, all) => i === 0 || all[i - 1] <= key)";
        page.expect(&format!("{keys}.length > 10 && {keys}.{rises}"), true);
    };
    sorted(&mut page, "feature", "option => Number(option.id.slice(8))");
    let label = "option => option.querySelector('bdi:not(.no-label)')?.textContent.toLowerCase() ?? '\u{10ffff}'";
    sorted(&mut page, "label", label);
    let column = if data["has_lift"] == true {
        "lift"
    } else {
        "score"
    };
    sorted(
        &mut page,
        column,
        "option => -option.children[2].textContent",
    );

    // By the activation at a position, the list follows the pointer.
    page.value("(select => { select.value = 'activation at this position'; select.dispatchEvent(new Event('change')); })(document.querySelector('#order'))");
    for position in [position, 4 + 8 * 2 + 5] {
        page.hover(&format!("#patches [data-position='{position}']"));
        page.expect(
            "document.querySelector('.option').id",
            format!("feature-{}", most_active(position)),
        );
    }

    // A label has a line of its own.
    let below = "document.querySelectorAll('.option').values().every(option =>
        option.querySelector('bdi').getBoundingClientRect().top >
        option.querySelector('.number').getBoundingClientRect().top)";
    page.expect(below, true);
    page.set_width(400);
    page.expect("innerWidth", 400);
    assert!(page.fits());
    page.set_width(1300);
    page.expect("innerWidth", 1300);
    assert!(page.fits());

    // The other picture, and the other heat map.
    page.click("input[value=steps]");
    page.expect("document.querySelector('canvas').width", 8);
    page.value("document.querySelector('#picture-choice select').focus()");
    page.press("ArrowDown");
    page.expect_text("#picture-name", "boat");

    // An address whose feature is not active on this picture opens one where it is.
    let active = |picture: &Value| -> Vec<u64> {
        let features = picture["features"].as_array().expect("a list").iter();
        let index = |entry: &Value| entry[0].as_u64().expect("an index");
        features.map(index).collect()
    };
    let [carrot, boat] = [0, 1].map(|i| active(&data["pictures"][i]));
    let missing = carrot.iter().find(|feature| !boat.contains(feature));
    let missing = missing.expect("the pictures are not the same");
    page.value(&format!("location.hash = '#feature={missing}'"));
    page.expect_text("#picture-name", "carrot-mushroom");
    page.expect(
        "document.querySelector('.option[aria-selected=true]').id",
        format!("feature-{missing}"),
    );
    page.expect(
        "document.querySelector('#picture-choice select').value",
        "0",
    );

    // No script failed; nothing comes from elsewhere, nor may it.
    assert!(page.errors().is_empty(), "{:?}", page.errors());
    let loaded = "performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:')).length";
    page.expect(loaded, 0);
    let refused = "new Promise(resolve => {
        document.addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective));
        fetch('http://127.0.0.1:9/').catch(() => {});
    })";
    page.expect(refused, "connect-src");
}

/// A text has a page too: its tokens and features, without what belongs to pictures.
#[test]
fn a_text_in_a_browser() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let text_only = [
        "-p",
        "a carrot on the grass",
        "-n",
        "6",
        "--steer",
        "carrot:-8",
    ];
    let path = write_page("text.html", &["-d", text(&dir)], &text_only);
    let report = data(&std::fs::read_to_string(&path).expect("it was written"));
    let picture = &report["pictures"][0];
    assert_eq!(picture["views"], json!([]));
    let tokens = picture["tokens"].as_array().expect("a list");
    let carrot = tokens.iter().position(|token| token["text"] == " carrot");
    let carrot = carrot.expect("it is a token");
    let Some(mut page) = browser::Page::open(&path) else {
        return;
    };
    page.expect_text("#picture-name", "text");
    page.expect("document.querySelector('#stage').hidden", true);
    page.expect("document.querySelector('#controls').hidden", true);
    page.expect("document.querySelectorAll('#captions > div').length", 2);
    page.hover(&format!(".chips [data-position='{carrot}']"));
    page.expect_text("#position-title", "Token “ carrot”");
    let most_active = most_active(picture, carrot).to_string();
    page.expect_text("#position-features li span", &most_active);
    page.click("#position-features button");
    page.expect("location.hash", format!("#feature={most_active}"));
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// A picture that is not square is shown whole too, with a frame around what the model sees.
#[test]
fn a_crop_is_framed() {
    let wide = folder().join("wide.png");
    let pixel = |x, y| image::Rgb([x as u8, y as u8, 90]);
    let picture = image::RgbImage::from_fn(400, 100, pixel);
    picture.save(&wide).expect("a file of our own");
    let page = |name, prep| {
        let args = ["-n", "0", "--image-prep", prep, text(&wide), PICTURES[0]];
        let page = std::fs::read_to_string(write_page(name, &[], &args));
        data(&page.expect("it was written"))
    };
    let cropped = page("crop.html", "crop");
    assert_eq!(
        cropped["pictures"][0]["views"][0]["whole"]["frame"],
        json!([0.375, 0.0, 0.25, 1.0])
    );
    assert!(cropped["pictures"][1]["views"][0]["whole"].is_null());
    assert!(page("pad.html", "pad")["pictures"][0]["views"][0]["whole"].is_null());
}

#[test]
fn nasty_labels_in_a_browser() {
    let Some(mut page) = browser::Page::open(nasty_page()) else {
        return;
    };
    page.expect("document.querySelectorAll('img, script').length", 4);
    page.expect("[...document.querySelectorAll('.option bdi')].some(label => label.textContent.startsWith('</script>'))", true);
    let label = json!(NASTY_SHOWN);
    page.expect(&format!("[...document.querySelectorAll('.option bdi')].some(label => label.textContent === {label})"), true);
}
