//! A gallery's pages in a browser, from files: the index searched and sorted, a feature, a class, and nothing from
//! elsewhere.

use std::path::PathBuf;

use serde_json::json;

use crate::browser::Page;
use crate::command_line::{stdout, text};
use crate::page::NASTY;
use crate::scan::{OwnedRow, folder, two_classes};
use crate::scan_top::rewrite;

const SHOWN: &str =
    "[...document.querySelectorAll('#features tbody tr')].map(row => row.children[1].textContent)";

fn gallery() -> PathBuf {
    let dir = two_classes("gallery-page");
    let out = folder("gallery-page-out");
    let file = out.join("features.parquet");
    stdout(&["scan", "-q", text(&dir), "-o", text(&file)]);
    let target = out.join("gallery");
    stdout(&[
        "gallery",
        "-q",
        text(&file),
        "--images",
        text(&dir),
        "-o",
        text(&target),
    ]);
    target
}

/// Goes where a link leads. Nothing can be asked of a page while a click on it takes the browser to another.
fn follow(page: &mut Page, link: &str) {
    let address = page.value(&format!("document.querySelector('{link}').href"));
    page.go(address.as_str().expect("an address"));
}

#[test]
fn a_gallery_in_a_browser() {
    let dir = gallery();
    let Some(mut page) = Page::open(&dir.join("index.html")) else {
        return;
    };
    // Searched by label and by number, sorted by activation.
    page.expect(
        "document.querySelectorAll('#features tbody tr').length > 50",
        true,
    );
    page.click("#search");
    page.enter("carr");
    page.expect(SHOWN, json!(["286", "430"])); // frog, whale, carrot; carrot
    page.expect(
        "document.querySelector('#features img').naturalWidth > 0",
        true,
    );
    page.value("document.querySelector('#search').value = ''");
    page.click("#search");
    page.enter("43");
    page.expect(&format!("{SHOWN}.every(name => name.includes('43'))"), true);
    page.value("document.querySelector('#search').value = ''");
    page.click("#search");
    page.enter(" ");
    page.click("th [data-column='4']");
    let largest = "[...document.querySelectorAll('#features tbody tr')].map(row => Number(row.children[4].textContent))";
    page.expect(
        &format!("{largest}.every((value, i, all) => i === 0 || value <= all[i - 1])"),
        true,
    );
    page.expect(
        "document.querySelector('th[aria-sort=ascending]').textContent",
        "Largest ▾",
    );
    page.click("th [data-column='4']");
    page.expect(
        &format!("{largest}.every((value, i, all) => i === 0 || value >= all[i - 1])"),
        true,
    );
    page.expect("document.querySelectorAll('#classes li').length", 3);
    for width in [1300, 400] {
        page.set_width(width);
        page.expect("innerWidth", width);
        assert!(page.fits(), "the index in {width} pixels");
    }
    page.set_width(1300);

    // A feature: its pictures, with heat maps that can be taken away.
    page.click("#search");
    page.enter("430");
    page.expect(SHOWN, json!(["430"]));
    follow(&mut page, "#features td a");
    page.expect_text("#name", "Feature 430");
    page.expect_text("#label", "carrot");
    page.expect("document.title", "430 carrot");
    page.expect("document.querySelectorAll('#histogram rect').length", 20);
    page.expect("document.querySelectorAll('.tenth').length === data.tenths.filter(tenth => tenth.n_images > 0).length", true);
    page.expect(
        "document.querySelector('#top .name').textContent",
        "food/red/Carrot.PNG",
    );
    page.expect("document.querySelector('#top img').naturalWidth > 0", true);
    let shown = "getComputedStyle(document.querySelector('#top canvas')).visibility";
    page.hover("#name"); // not the picture
    page.expect(shown, "visible");
    let drawn = "(() => { const canvas = document.querySelector('#top canvas');
        return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0); })()";
    page.expect(drawn, true);
    page.click("#maps input");
    page.expect(shown, "hidden");
    page.expect("document.querySelectorAll('#together a').length > 0", true);
    for width in [1300, 400] {
        page.set_width(width);
        page.expect("innerWidth", width);
        assert!(page.fits(), "a feature in {width} pixels");
    }

    // A class, and back.
    follow(&mut page, "#classes a");
    page.expect_text("#name", "red");
    page.expect(
        "document.querySelectorAll('#features tbody tr').length > 5",
        true,
    );
    assert!(page.fits(), "a class");
    follow(&mut page, "header a");
    page.expect_text("h1", "Gallery of features");

    let own = format!("file://{}/", dir.display());
    let foreign: Vec<_> = page
        .requests()
        .iter()
        .filter(|url| !url.starts_with(&own))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(page.requests().len() > 10);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Labels, classes and names that would be markup.
#[test]
fn texts_of_a_gallery_stay_text() {
    let out = folder("gallery-nasty");
    let (file, target) = (out.join("nasty.parquet"), out.join("gallery"));
    let row = |i: usize| OwnedRow {
        path: format!("{NASTY}{i}.png"),
        class: Some(NASTY.to_owned()),
        sae: Some("<b>".to_owned()),
        feature: i % 3,
        label: Some(NASTY.to_owned()),
        sum: 1.0,
        max: 1.0 + i as f32,
        count: 1,
    };
    rewrite(&file, &(0..9).map(row).collect::<Vec<_>>());
    stdout(&["gallery", "-q", text(&file), "-o", text(&target)]);
    let Some(mut page) = Page::open(&target.join("index.html")) else {
        return;
    };
    page.expect("document.querySelectorAll('#features tbody tr').length", 3);
    follow(&mut page, "#features td a");
    page.expect_text("#name", "Feature <b>/0");
    page.expect("document.querySelectorAll('img, b b').length", 0);
    follow(&mut page, "#classes a");
    page.expect("document.title.startsWith('Class </script>')", true);
    page.expect("document.querySelectorAll('img').length", 0);
    page.set_width(400);
    page.expect("innerWidth", 400);
    assert!(page.fits(), "long words");
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}
