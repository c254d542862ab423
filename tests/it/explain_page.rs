//! `explain --html`: what is in the page, in a browser too.

use serde_json::Value;

use crate::browser;
use crate::command_line::{stdout, text};
use crate::fixture::temporary_root;
use crate::page::data;

const PICTURE: &str = "assets/pictures/carrot-mushroom.png";

#[test]
fn an_explanation_in_a_browser() {
    let path = temporary_root().join("explain.html");
    let args = [
        "explain",
        "-q",
        "--json",
        "--word",
        "mushroom",
        "--html",
        text(&path),
        PICTURE,
    ];
    let report: Value = serde_json::from_str(&stdout(&args)).expect("JSON");
    let mut data = data(&std::fs::read_to_string(&path).expect("it was written"));
    let page = data.as_object_mut().expect("an object");
    let pieces = page.remove("pieces").expect("the answer's");
    let views = page.remove("views").expect("the picture");
    page.remove("colours");
    assert_eq!(data, report, "the page has what `--json` prints");
    assert_eq!(views[0]["grid"], serde_json::json!([8, 8]));
    assert_eq!(pieces[1], " mushroom");

    let Some(mut page) = browser::Page::open(&path) else {
        return;
    };
    page.expect_text("#title", "Why “mushroom”");
    assert_eq!(page.text("mark").trim(), "mushroom");
    let answer = report["answer"]["text"].as_str().expect("a text");
    assert_eq!(page.text("#answer"), answer);
    page.expect("document.querySelectorAll('#causes tbody tr').length", 10);
    let causes = report["causes"].as_array().expect("a list").iter();
    let tried: Vec<usize> = causes
        .map(|cause| cause["patches"].as_array().expect("a list").len())
        .filter(|&n| n > 0)
        .collect();
    page.expect("document.querySelectorAll('figure').length", tried.len());
    page.expect(
        "document.querySelectorAll('.patches span').length",
        64 * tried.len(),
    );
    page.expect(
        "document.querySelectorAll('figure:first-child .tried').length",
        tried[0],
    );
    page.check_alone();
}

/// What the data says never becomes markup, and a page without a picture has no figures.
#[test]
fn texts_of_an_explanation_stay_text() {
    let path = temporary_root().join("nasty-explain.html");
    let nasty = "</script><img src=x onerror=alert(1)>";
    let answer = format!("{nasty} dog");
    let args = [
        "explain", "-q", "--word", "dog", "--answer", &answer, "-p", nasty,
    ];
    stdout(&[&args[..], &["--candidates", "3", "--html", text(&path)]].concat());
    let page = std::fs::read_to_string(&path).expect("it was written");
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("<img"));
    let Some(mut page) = browser::Page::open(&path) else {
        return;
    };
    page.expect("document.querySelectorAll('img').length", 0);
    page.expect("document.querySelector('#where').hidden", true);
    assert_eq!(page.text("#answer"), answer);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}
