//! `sweep --html`: what is in the page, in a browser too.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::command_line::{stdout, text};
use crate::fixture::{Fixture, temporary_root};
use crate::page::data;
use crate::{bad_input, browser};
use gguf_tools::gguf::TensorType;

const PICTURE: &str = "assets/pictures/carrot-mushroom.png";

fn path(name: &str) -> PathBuf {
    temporary_root().join(name)
}

/// A page, and what `--json` says of the same sweep.
fn sweep(name: &str, args: &[&str]) -> (String, Value) {
    let path = path(name);
    let output = ["sweep", "-q", "--json", "--html", text(&path)];
    let printed = stdout(&[&output[..], args].concat());
    let page = std::fs::read_to_string(path).expect("it was written");
    (page, serde_json::from_str(&printed).expect("JSON"))
}

#[test]
fn a_sweep_in_a_browser() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let steer = ["--steer", "carrot:-16..0:8", "--at", "image"];
    let word = ["-d", text(&dir), "--word", "carrot", PICTURE];
    let (page, report) = sweep("sweep.html", &[&steer[..], &word].concat());
    let mut data = data(&page);
    let pieces = data["pieces"].take();
    data.as_object_mut().expect("an object").remove("pieces");
    assert_eq!(data, report, "the page has what `--json` prints");
    let of_side = |pieces: &Value, other: &str| -> String {
        let pieces = pieces.as_array().expect("a list").iter();
        let of_side = pieces.filter(|piece| piece[1] != other);
        of_side
            .map(|piece| piece[0].as_str().expect("a text"))
            .collect()
    };
    for (i, point) in report["steered"]
        .as_array()
        .expect("a list")
        .iter()
        .enumerate()
    {
        assert_eq!(of_side(&pieces[i], "after"), report["original"]["text"]);
        assert_eq!(of_side(&pieces[i], "before"), point["text"]);
    }

    let Some(mut page) = browser::Page::open(&path("sweep.html")) else {
        return;
    };
    page.expect_text("#title", "Feature 430carrot");
    assert_eq!(page.text("#strength-0 del"), "carrot");
    assert_eq!(
        page.text("#strength-2 .text"),
        page.text(".original-text .text")
    );
    page.expect(
        "document.querySelectorAll('#strength-2 :is(del, ins)').length",
        0,
    );
    // Two curves of three marks, hollow where the word is gone, each a link to its text.
    page.expect("document.querySelectorAll('svg').length", 2);
    let words = report["steered"].as_array().expect("a list").iter();
    let filled = Value::from_iter(words.map(|point| point["has_word"].clone()));
    page.expect("[...document.querySelector('svg').querySelectorAll('circle')].map(mark => mark.classList.contains('filled'))", filled);
    page.click("#curves svg a");
    page.expect("document.querySelector('tr:target').id", "strength-0");
    // KL falls towards strength 0, so its marks do.
    let falls = "[...document.querySelector('svg').querySelectorAll('circle')].every((mark, i, all) => i === 0 || mark.cy.baseVal.value > all[i - 1].cy.baseVal.value)";
    page.expect(falls, true);
    page.check_alone();
}

/// A text that is broken to line breaks takes one line.
#[test]
fn line_breaks_are_signs() {
    let args = ["--steer", "carrot:-32..-32:1", "-n", "6", PICTURE];
    let (_, report) = sweep("breaks.html", &args);
    let broken = report["steered"][0]["text"].as_str().expect("a text");
    let Some(mut page) = browser::Page::open(&path("breaks.html")) else {
        return;
    };
    let shown = page.text("#strength-0 .text");
    // Which text a processor gives at such a strength may differ; here it is line breaks alone.
    assert_eq!(shown.contains('↵'), broken.contains('\n'), "{shown:?}");
    assert!(!shown.contains('\n'), "{shown:?}");
}

/// What the data says never becomes markup, and a sweep of one strength has a page too.
#[test]
fn texts_of_a_sweep_stay_text() {
    let nasty = "</script><img src=x onerror=alert(1)>";
    let args = [
        "--steer",
        "430:2..2:1",
        "-n",
        "3",
        "--word",
        nasty,
        "-p",
        nasty,
    ];
    let (page, report) = sweep("nasty-sweep.html", &args);
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("<img"));
    assert_eq!(report["word"], json!(nasty));
    let Some(mut page) = browser::Page::open(&path("nasty-sweep.html")) else {
        return;
    };
    page.expect("document.querySelectorAll('img').length", 0);
    page.expect(
        &format!(
            "document.querySelector('#marks').textContent.includes({})",
            json!(nasty)
        ),
        true,
    );
    page.expect("document.querySelectorAll('circle').length", 2);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn pages_that_cannot_be_written() {
    let kept = path("kept-sweep.html");
    std::fs::write(&kept, "kept").expect("a file of our own");
    let check = |args: &[&str], code, words: &[&str]| {
        let sweep = ["sweep", "--steer", "carrot:0..1:1", PICTURE];
        bad_input::check(&[&sweep[..], args].concat(), code, words);
    };
    check(&["--html", text(&kept)], 1, &["exists", "hint: "]);
    check(
        &["--html", PICTURE, "--force"],
        1,
        &["it is an input", "hint: "],
    );
    check(&["--force"], 2, &["--html <FILE>"]);
    assert_eq!(std::fs::read(&kept).ok().as_deref(), Some(&b"kept"[..]));
}
