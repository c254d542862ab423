//! The server's page in a browser, driven as a person would: what newcomers see, pictures, features, interventions,
//! the set as a file and as a command, and all by keys.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llava_sae_cpp::serve::ServeOptions;
use serde_json::json;

use crate::browser::Page;
use crate::command_line;
use crate::fixture::temporary_root;
use crate::serve_fixture::{Served, options};

pub(crate) const STEERED: &str = "#steered";
pub(crate) const ORIGINAL: &str = "#original";
/// Of the first intervention in the list.
const SLIDER: &str = "#interventions input[type=range]";
const NUMBER: &str = "#interventions input[type=number]";

pub(crate) fn folder(name: &str) -> PathBuf {
    let dir = temporary_root().join("serve-page").join(name);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

pub(crate) fn url(served: &Served) -> String {
    format!("http://{}/", served.address)
}

/// A server and its page, on which an example is open.
pub(crate) fn open(options: ServeOptions) -> Option<(Served, Page)> {
    let served = Served::demo(options);
    let page = Page::open_served(&url(&served))?;
    Some((served, page))
}

/// Waits until the run that was asked for last has ended, and gives what is shown of it.
pub(crate) fn answer(page: &mut Page, selector: &str) -> String {
    let waits = "document.querySelector('#original').textContent === ''
        || document.querySelector('#original').classList.contains('old')
        || document.querySelector('#outputs [aria-busy]') !== null";
    page.expect(waits, false);
    page.text(selector)
}

/// What the page shows as the command that does the same, as a shell takes it apart.
fn command(page: &mut Page) -> Vec<String> {
    let text = page.text("#command code");
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words
}

/// The text that the command prints after its interventions, run beside `picture`.
fn run_command(page: &mut Page, folder: &Path) -> String {
    let words = command(page);
    assert_eq!(words[0], "llava-sae-cpp");
    let output = command_line::program()
        .current_dir(folder)
        .args(&words[1..])
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (_, steered) = text
        .split_once("Output after intervention:\n")
        .expect("both outputs");
    steered.trim_end_matches('\n').to_owned()
}

#[test]
fn what_a_newcomer_sees() {
    let Some((served, mut page)) = open(options()) else {
        return;
    };
    // An example, its features, what the model says of it, and what to do.
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.expect(
        "document.querySelectorAll('#examples img').length > 3",
        true,
    );
    page.expect(
        "document.querySelector('#stage img').naturalWidth > 0",
        true,
    );
    let plain = answer(&mut page, ORIGINAL);
    assert!(plain.starts_with("The image shows"), "{plain}");
    let button = page.text("#hint .main");
    assert!(button.starts_with("Subtract "), "{button}");

    // One click, and the words that differ are marked, by a line and not by a colour alone.
    page.click("#hint .main");
    page.expect(
        "document.querySelectorAll('#original del').length > 0",
        true,
    );
    assert_ne!(answer(&mut page, STEERED), plain);
    assert_eq!(page.text(ORIGINAL), plain);
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    let line =
        |of: &str| format!("getComputedStyle(document.querySelector('{of}')).textDecorationLine");
    page.expect(&line("#original del"), "line-through");
    page.expect(&line("#steered ins"), "underline");
    page.expect(
        "document.querySelector('#compare-status').textContent.includes('tokens/s')",
        true,
    );

    // Off, it does nothing; removed, the answer stands alone.
    page.click("#interventions input[type=checkbox]");
    page.expect(
        "document.querySelector('#steered').parentElement.hidden",
        true,
    );
    assert_eq!(answer(&mut page, ORIGINAL), plain);
    page.click("#interventions .remove");
    page.expect("document.querySelectorAll('#interventions li').length", 0);

    // Nothing was asked of others.
    let own = url(&served);
    let is_own = |url: &String| {
        ["data:", "blob:", &own]
            .iter()
            .any(|start| url.starts_with(start))
    };
    let foreign: Vec<_> = page.requests().iter().filter(|url| !is_own(url)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(page.requests().len() > 5);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn a_picture_is_dropped_and_steered_by_a_label() {
    let Some((served, mut page)) = open(options()) else {
        return;
    };
    let folder = folder("dropped");
    let picture = folder.join("my picture.png");
    std::fs::copy("assets/pictures/carrot-cow.png", &picture).expect("a picture of the demo");
    answer(&mut page, ORIGINAL);
    page.drop_file("#choice", &picture);
    page.expect_text("#picture-name", "my picture.png");
    page.expect(
        "document.querySelector('#original').textContent.includes('cow')",
        true,
    );
    let plain = answer(&mut page, ORIGINAL);

    // A feature by a part of its label, in capitals; the map is drawn while the pointer is on it.
    page.click("#search");
    page.enter("CARR");
    page.expect(
        "[...document.querySelectorAll('.option bdi')].every(label => label.textContent.includes('carr'))",
        true,
    );
    let filter = "document.querySelector('#stage img').style.filter";
    page.expect(filter, "grayscale(0) brightness(1)");
    page.hover("#feature-430");
    page.expect(&format!("{filter} !== 'grayscale(0) brightness(1)'"), true);
    page.click("#feature-430");
    page.expect_text("#card-title", "carrot (430)");

    // Its card, on demand.
    page.click("#card summary");
    page.expect(
        "[...document.querySelectorAll('#card .chips bdi')].some(token => token.textContent.trim() === 'carrot')",
        true,
    );
    page.expect("document.querySelectorAll('.neighbours li').length", 10);

    // Subtracted; the slider is moved, and the caption changes.
    page.click("#subtract");
    page.expect("document.querySelectorAll('#interventions li').length", 1);
    page.click_at(SLIDER, 0.5); // nearly 0
    let is_plain = format!(
        "document.querySelector('{STEERED}').textContent === {}",
        json!(plain)
    );
    page.expect(&is_plain, true);
    answer(&mut page, STEERED);
    page.click_at(SLIDER, 0.3);
    page.expect(
        &format!(
            "document.querySelector('{NUMBER}').value === document.querySelector('{SLIDER}').value"
        ),
        true,
    );
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    let steered = answer(&mut page, STEERED);
    assert_ne!(steered, plain);
    let strength = page.value(&format!("Number(document.querySelector('{NUMBER}').value)"));
    assert!(
        strength.as_f64().is_some_and(|value| value < 0.0),
        "{strength}"
    );

    // The command that is shown says the same.
    let shows = format!(
        "document.querySelector('#command code').textContent.includes('--steer 430:{strength} ')"
    );
    page.expect(&shows, true);
    assert_eq!(run_command(&mut page, &folder), steered);

    // Saved, and loaded on a page that knows nothing of it: the same again.
    page.save_downloads(&folder);
    let saved = folder.join("interventions.json");
    let _ = std::fs::remove_file(&saved);
    page.click("#save-set");
    let start = Instant::now();
    while !std::fs::read(&saved).is_ok_and(|set| set.ends_with(b"]\n")) {
        assert!(start.elapsed() < Duration::from_secs(30), "it is saved");
        std::thread::sleep(Duration::from_millis(50));
    }
    page.go(&url(&served));
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.expect("document.querySelectorAll('#interventions li').length", 0);
    page.choose_file("#file", &picture);
    page.expect_text("#picture-name", "my picture.png");
    page.choose_file("#set-file", &saved);
    page.expect("document.querySelectorAll('#interventions li').length", 1);
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    assert_eq!(answer(&mut page, STEERED), steered);
    page.expect(
        &format!("Number(document.querySelector('{NUMBER}').value)"),
        strength,
    );
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Presses Tab until the focus is on what `selector` says.
fn tab_to(page: &mut Page, selector: &str) {
    let is_there = format!("document.activeElement.matches({})", json!(selector));
    for _ in 0..120 {
        if page.value(&is_there) == true {
            let style = "getComputedStyle(document.activeElement).outlineStyle";
            assert_ne!(page.value(style), "none", "{selector}: the focus is seen");
            return;
        }
        page.press("Tab");
    }
    panic!("no Tab leads to {selector}");
}

#[test]
fn everything_by_keys() {
    let Some((_served, mut page)) = open(options()) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 20", true);
    let plain = answer(&mut page, ORIGINAL);

    // The hint, then the slider where the focus goes.
    tab_to(&mut page, "#hint .main");
    page.press("Enter");
    page.expect("document.activeElement.matches('input[type=range]')", true);
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    let value = format!("Number(document.querySelector('{NUMBER}').value)");
    let before = page.value(&value).as_f64().expect("a number");
    page.press("ArrowRight");
    page.expect(&format!("{value} > {before}"), true);
    answer(&mut page, STEERED);

    // Another example, and a feature of it by the list's keys.
    page.value("document.activeElement.blur()");
    tab_to(&mut page, "#examples button:last-child");
    page.press("Enter");
    page.expect(
        "document.querySelector('#examples button:last-child').ariaPressed",
        "true",
    );
    page.expect(
        "document.querySelector('#features').hasAttribute('aria-busy')",
        false,
    );
    let other = answer(&mut page, ORIGINAL);
    assert_ne!(other, plain);
    tab_to(&mut page, "#patches");
    let title = page.text("#position-title");
    let moved = ["ArrowDown", "ArrowUp"].map(|key| {
        page.press(key); // the first one moves nothing in the last row
        page.text("#position-title") != title
    });
    assert!(moved.contains(&true), "{title}");
    page.press("Enter");
    tab_to(&mut page, "#position .button");
    page.press("Enter");
    // The chosen feature, which is active here too, is steered at that patch from now on.
    page.expect(
        "/^[0-9]+$/.test(document.querySelector('.places').value)",
        true,
    );
    page.press("Escape");
    tab_to(&mut page, "#list");
    let chosen = page.text("#card-title");
    page.press("ArrowDown");
    assert_ne!(page.text("#card-title"), chosen);
    page.press("Enter");
    page.expect("document.querySelectorAll('#interventions li').length", 2);

    // The tabs, a message, and the answer to it.
    tab_to(&mut page, "#tab-compare");
    page.press("ArrowRight");
    page.expect("document.querySelector('#chat').hidden", false);
    tab_to(&mut page, "#message");
    page.enter("Describe the image.");
    page.press("Enter");
    page.expect("document.querySelectorAll('#log li').length", 2);
    page.expect("document.querySelector('#log [aria-busy]')", json!(null));
    let said = page.text("#log li:last-child .output");
    assert!(said.starts_with("The image shows"), "{said}");
    page.expect(
        "document.querySelectorAll('#log li:last-child .chips button').length",
        5,
    );

    // Another turn: it goes on from the first.
    page.enter("Describe the image.");
    page.press("Enter");
    page.expect("document.querySelectorAll('#log li').length", 4);
    page.expect("document.querySelector('#log [aria-busy]')", json!(null));
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn a_sweep_as_a_strip_with_its_curves() {
    let Some((_served, mut page)) = open(options()) else {
        return;
    };
    page.click("#feature-430");
    page.click("#sweep-it");
    page.expect("document.activeElement.id", "sweep-from");
    page.click("#sweep-form button[type=submit]");
    page.expect("document.querySelectorAll('#curves svg').length", 2);
    // The original, and seven strengths of which one is 0.
    page.expect("document.querySelectorAll('#texts tbody tr').length", 8);
    page.expect("document.querySelectorAll('#curves svg circle').length", 14);
    let words =
        "[...document.querySelectorAll('#texts tbody tr')].map(row => row.children[3].textContent)";
    let words = page.value(words);
    let words = words.as_array().expect("a list");
    assert_eq!(words[0], "yes");
    assert!(words.contains(&json!("no")), "{words:?}");
    assert!(
        page.value("document.querySelectorAll('#texts :is(ins, del)').length")
            .as_u64()
            > Some(0)
    );
    // A strength is taken over.
    let text = page.text("#texts tbody tr:nth-child(2) .text");
    assert!(!text.is_empty());
    page.click("#texts tbody tr:nth-child(2) .use");
    page.expect("document.querySelector('#compare').hidden", false);
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    answer(&mut page, STEERED);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn what_takes_long_can_be_stopped() {
    let Some((_served, mut page)) = open(options()) else {
        return;
    };
    page.click("#feature-430");
    page.click("#sampling summary");
    let set = |page: &mut Page, selector: &str, value: &str| {
        page.click(selector);
        page.value(&format!("document.querySelector('{selector}').select()"));
        page.enter(value);
    };
    // At such strengths texts do not end by themselves.
    set(&mut page, "#max-tokens", "300");
    page.click("#tab-sweep");
    set(&mut page, "#sweep-from", "-200");
    set(&mut page, "#sweep-to", "-100");
    set(&mut page, "#sweep-count", "25");
    page.click("#sweep-form button[type=submit]");
    page.click("#sweep .stop");
    page.expect_text("#sweep-status", "Stopped.");
    page.expect("document.querySelector('#sweep .stop').hidden", true);
    page.expect("document.querySelectorAll('#curves svg').length", 0);
    page.expect("document.querySelector('#alert').hidden", true);
    // The server goes on with others.
    page.click("#tab-compare");
    page.click("#ask button[type=submit]");
    assert!(answer(&mut page, ORIGINAL).starts_with("The image shows"));
}
