//! The server's page where something is not as usual: formats, narrow windows, errors, keys, labels that would be
//! markup, several SAEs, a model that sees no pictures; and what the page may load.

use std::path::PathBuf;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::serve::{ApiKey, ServeOptions};
use llava_sae_cpp::{HookedModel, ModelFiles, demo};
use serde_json::json;

use crate::browser::Page;
use crate::fixture::{Fixture, exact_options};
use crate::page::nasty_sae;
use crate::serve_fixture::{Served, options};
use crate::serve_page::{ORIGINAL, STEERED, answer, folder, open, url};
use crate::several_saes::sae_at;

/// From the clipboard, and of a format that the server does not read.
#[test]
fn a_pasted_drawing_becomes_a_png() {
    let Some((_served, mut page)) = open(options()) else {
        return;
    };
    answer(&mut page, ORIGINAL);
    let paste = "(() => {
        const drawing = `<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'>
            <rect width='64' height='64' fill='yellow'/></svg>`;
        const data = new DataTransfer();
        data.items.add(new File([drawing], 'drawing.svg', { type: 'image/svg+xml' }));
        document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
    })()";
    page.value(paste);
    page.expect_text("#picture-name", "drawing.png");
    let is_yellow = "(() => {
        const image = document.querySelector('#stage img');
        if (!image.complete) return false;
        const drawing = document.createElement('canvas').getContext('2d');
        drawing.drawImage(image, 0, 0);
        return image.naturalWidth === 64 && drawing.getImageData(9, 9, 1, 1).data.join() === '255,255,0,255';
    })()";
    page.expect(is_yellow, true);
    let said = answer(&mut page, ORIGINAL);
    assert!(said.contains("yellow"), "{said}");
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn narrow_windows_have_room_for_everything() {
    let Some((_served, mut page)) = open(options()) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.click("#hint .main");
    answer(&mut page, STEERED);
    for details in ["#card", "#command", "#sampling"] {
        page.click(&format!("{details} summary"));
    }
    for width in [400, 820, 1300] {
        page.set_width(width);
        page.expect("innerWidth", width);
        for tab in ["chat", "sweep", "compare"] {
            page.click(&format!("#tab-{tab}"));
            assert!(page.fits(), "{width} pixels: {tab}");
        }
    }
}

#[test]
fn errors_are_said_in_words() {
    let Some((mut served, mut page)) = open(options()) else {
        return;
    };
    page.click("#hint .main");
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    let said = |page: &mut Page, words: &str| {
        page.expect("document.querySelector('#alert').hidden", false);
        let shows = format!(
            "document.querySelector('#alert p').textContent.includes({})",
            json!(words)
        );
        page.expect(&shows, true);
    };
    // The server's sentence.
    page.value("document.querySelector('#interventions .places').select()");
    page.click("#interventions .places");
    page.value("document.querySelector('#interventions .places').select()");
    page.enter("nowhere");
    page.press("Enter");
    said(&mut page, "`nowhere` is not a position");
    page.click("#alert button");
    page.expect("document.querySelector('#alert').hidden", true);
    // A file that is no picture, and one that is no set.
    let file = folder("errors").join("notes.txt");
    std::fs::write(&file, "no picture").expect("a file of our own");
    page.choose_file("#file", &file);
    said(&mut page, "`notes.txt` is not a picture");
    page.choose_file("#set-file", &file);
    said(&mut page, "`notes.txt` is not JSON");
    // A server that has ended.
    served.stop();
    page.click("#ask button[type=submit]");
    said(&mut page, "server does not answer");
}

#[test]
fn a_key_is_asked_for_and_kept_in_the_tab() {
    let file = folder("key").join("key.txt");
    std::fs::write(&file, "abc123\n").expect("a file of our own");
    let key = ApiKey::read(&file).expect("a key");
    let options = ServeOptions {
        api_key: Some(key),
        ..options()
    };
    let Some((served, mut page)) = open(options) else {
        return;
    };
    page.expect(
        "document.activeElement === document.querySelector('#key input')",
        true,
    );
    page.enter("wrong");
    page.press("Enter");
    page.expect(
        "document.querySelector('#alert p').textContent.includes('refused')",
        true,
    );
    page.enter("abc123");
    page.press("Enter");
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.expect(
        "document.querySelector('#key').hidden && document.querySelector('#alert').hidden",
        true,
    );
    page.expect("localStorage.length + document.cookie.length", 0);
    page.expect("Object.values(sessionStorage)", json!(["abc123"]));
    // The same tab needs no second one.
    page.go(&url(&served));
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.expect("document.querySelector('#key').hidden", true);
}

#[test]
fn the_page_may_load_nothing_from_elsewhere() {
    let served = Served::demo(options());
    let answer = served.get("/");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let policy = answer.header("content-security-policy").expect("a policy");
    let directive = |name: &str| {
        let mut directives = policy.split("; ").filter_map(|one| one.split_once(' '));
        directives
            .find(|(known, _)| *known == name)
            .map(|(_, sources)| sources)
    };
    for name in ["default-src", "base-uri", "form-action", "frame-ancestors"] {
        assert_eq!(directive(name), Some("'none'"), "{name}");
    }
    assert_eq!(directive("connect-src"), Some("'self'"));
    assert_eq!(directive("img-src"), Some("data: blob: 'self'"));
    let nonce = directive("script-src").expect("scripts");
    assert!(
        nonce.starts_with("'nonce-") && !nonce.contains(' '),
        "{nonce}"
    );
    let html = answer.text();
    assert!(
        !html.contains("http://") || !html.contains("src=\"http"),
        "no address of others"
    );
    assert_eq!(html.matches("<script").count(), 2);
}

/// A fixture with these SAEs, and its page.
fn open_with(fixture: Fixture, saes: Vec<PathBuf>) -> Option<(Served, Page)> {
    let dir = fixture.converted(TensorType::F32);
    let files = ModelFiles::find(Some(&dir), None, None, saes);
    open_files(&files.expect("all files are there"))
}

/// A model, and its page.
fn open_files(files: &ModelFiles) -> Option<(Served, Page)> {
    let model = HookedModel::open(files, exact_options()).expect("it loads");
    let served = Served::of(model, options());
    let page = Page::open_served(&url(&served))?;
    Some((served, page))
}

/// Nothing that the server says becomes markup.
#[test]
fn labels_stay_text() {
    let Some((_served, mut page)) = open_with(Fixture::Tiny, vec![nasty_sae().to_owned()]) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 3", true);
    let n_images = "document.querySelectorAll('img').length";
    let before = page.value(n_images);
    page.click(".option");
    page.click("#card summary");
    page.expect(
        "document.querySelectorAll('.neighbours li').length > 0",
        true,
    );
    page.click("#subtract");
    page.expect("document.querySelectorAll('#interventions li').length", 1);
    answer(&mut page, STEERED);
    page.click("#tab-chat");
    page.click("#message");
    page.enter("<img src=x onerror=alert(1)>");
    page.press("Enter");
    page.expect("document.querySelectorAll('#log li').length", 2);
    page.expect("document.querySelector('#log [aria-busy]')", json!(null));
    page.expect(n_images, before);
    let shown = "[...document.querySelectorAll('.option bdi')].filter(label => label.textContent.startsWith('</script><img')).length > 0";
    page.expect(shown, true);
    page.expect("document.querySelectorAll('script').length", 2);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Features of several SAEs have the SAE's name, in all that is asked for.
#[test]
fn features_of_several_saes() {
    let dir = folder("several");
    let saes = [
        ("lower", "blocks.0.hook_resid_post"),
        ("upper", "blocks.1.hook_resid_post"),
    ];
    let saes = saes.map(|(name, hook_name)| sae_at(hook_name, &dir.join(format!("{name}.gguf"))));
    let Some((_served, mut page)) = open_with(Fixture::Demo, saes.to_vec()) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 20", true);
    let plain = answer(&mut page, ORIGINAL);
    page.click("#search");
    page.enter("upper carrot");
    page.expect(
        "/^upper.430/.test(document.querySelector('.option').children[1].textContent)",
        true,
    );
    page.click(".option");
    page.click("#card summary");
    page.expect("document.querySelectorAll('.neighbours li').length", 10);
    page.click("#subtract");
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    assert_ne!(answer(&mut page, STEERED), plain);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn a_misspelt_label_is_found_and_steered_in_usual_activations() {
    let Some((_served, mut page)) = open_files(&demo::files().expect("the demo")) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.click("#search");
    page.enter("mushrom");
    page.expect(
        "document.querySelector('.option bdi')?.textContent.includes('mushroom')",
        true,
    );
    page.click(".option");
    page.click("#subtract");
    let units = "document.querySelector('#interventions select[aria-label^=units]')";
    page.value(&format!(
        "{units}.value = 'usual', {units}.dispatchEvent(new Event('change'))"
    ));
    page.expect(
        "document.querySelector('#interventions input[type=number]').value",
        "-0.65",
    );
    page.expect(&format!("{units}.value"), "usual");
    page.expect(
        "document.querySelector('#command code').textContent.includes('--units usual')",
        true,
    );
    // Another query finds what it says.
    page.value("document.querySelector('#search').select()");
    page.click("#search");
    page.value("document.querySelector('#search').select()");
    page.enter("carrot");
    page.expect(
        "[...document.querySelectorAll('.option bdi')].every(label => label.textContent.includes('carrot'))",
        true,
    );
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

#[test]
fn a_model_that_sees_no_pictures() {
    let mut files = demo::files().expect("the demo");
    files.mmproj = None;
    let Some((_served, mut page)) = open_files(&files) else {
        return;
    };
    page.expect("document.querySelectorAll('.option').length > 20", true);
    page.expect("document.querySelector('#choice').hidden", true);
    answer(&mut page, ORIGINAL);
    page.click("#question");
    page.value("document.querySelector('#question').select()");
    page.enter("a carrot and a mushroom");
    page.press("Enter");
    // Its tokens, and their features.
    let carrot = "[...document.querySelectorAll('.chips button')].find(chip => chip.textContent === ' carrot')";
    page.expect(&format!("{carrot} !== undefined"), true);
    page.value(&format!("{carrot}.id = 'carrot'"));
    page.hover("#carrot");
    page.expect_text("#position-title", "Token “ carrot”");
    page.expect(
        "[...document.querySelectorAll('#position-features bdi')].some(label => label.textContent === 'carrot')",
        true,
    );
    let plain = answer(&mut page, ORIGINAL);
    page.click("#hint .main");
    page.expect("document.querySelectorAll('#steered ins').length > 0", true);
    assert_ne!(answer(&mut page, STEERED), plain);
    assert_eq!(page.value("document.querySelector('.places').value"), "all");
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}
