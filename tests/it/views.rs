//! A picture that is seen in several views, an overview and tiles: as JSON, heat maps and a page.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::browser;
use crate::command_line::{json, names, stdout, text};
use crate::fixture::temporary_root;
use crate::hook_points::sae_at;

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/next");
    fixtures.join(name)
}

/// Runs `features` on LLaVA-NeXT's wide picture: 4 × 4 patches of an overview and 4 × 10 of tiles.
fn features(args: &[&str]) -> Vec<String> {
    let files = ["model.gguf", "mmproj.gguf", "pictures/wide.png"].map(fixture);
    let [model, mmproj, picture] = files.each_ref().map(|path| text(path).to_owned());
    let sae = sae_at("blocks.1.hook_resid_post", 32);
    let fixed = ["features", "-q", "--raw-prompt", "-p", "<image> a cat"];
    let files = [
        "-m",
        &model,
        "--mmproj",
        &mmproj,
        "--sae",
        text(&sae),
        &picture,
    ];
    let args = [&fixed[..], args, &files].concat();
    args.into_iter().map(str::to_owned).collect()
}

fn call(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn views_say_where_patches_lie() {
    let report = json(&call(&features(&["--json", "--top", "4"])));
    let views = report["views"].as_array().expect("a list");
    let of_views = |key: &str| {
        views
            .iter()
            .map(|view| view[key].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of_views("grid"), [json!([4, 4]), json!([4, 10])]);
    assert_eq!(of_views("first_position"), [json!(1), json!(17)]);
    assert_eq!(of_views("stride"), [json!(4), json!(11)]);
    assert_eq!(report["n_image_tokens"], 16 + 4 * 11);
    assert!(report["grid"].is_null());
    // A feature's largest patch is where it says, with the newline rows counted.
    for feature in report["features"].as_array().expect("a list") {
        let patches = feature["patches"].as_array().expect("a list");
        assert_eq!(patches.len(), 16 + 40);
        let position = feature["argmax_position"].as_u64().expect("a position") as usize;
        let place = match position.checked_sub(17) {
            None => Some(position - 1),
            Some(behind) => (behind % 11 < 10).then_some(16 + behind / 11 * 10 + behind % 11),
        };
        if let Some(place) = place {
            assert_eq!(patches[place], feature["max"]);
        }
    }
}

#[test]
fn each_view_has_heat_maps_of_its_own() {
    let dir = temporary_root().join("maps-of-views");
    stdout(&call(&features(&[
        "--top",
        "1",
        "--force",
        "--heatmap",
        text(&dir),
    ])));
    let names = names(&dir);
    let starts = names.iter().map(|name| &name[.."wide-view1-1-".len()]);
    assert_eq!(Vec::from_iter(starts), ["wide-view1-1-", "wide-view2-1-"]);
    // Four rows of ten patches, in the picture's shape.
    let of_tiles = image::open(dir.join(&names[1])).expect("a PNG");
    let of_overview = image::open(dir.join(&names[0])).expect("a PNG");
    assert!(of_tiles.width() > 3 * 280 && of_tiles.height() < 300);
    assert!(of_overview.height() < 300);
}

#[test]
fn views_in_a_browser() {
    let path = temporary_root().join("views.html");
    stdout(&call(&features(&[
        "--force",
        "-n",
        "2",
        "--html",
        text(&path),
    ])));
    let Some(mut page) = browser::Page::open(&path) else {
        return;
    };
    let options =
        "[...document.querySelectorAll('#view-choice option')].map(o => o.textContent).join()";
    page.expect(options, "1: 4 × 4 patches,2: 4 × 10 patches");
    let choose = |view: usize| {
        format!(
            "(select => {{ select.value = {view}; select.dispatchEvent(new Event('change')); }})(document.querySelector('#view-choice select'))"
        )
    };
    let cells = "document.querySelectorAll('[role=gridcell]').length";
    page.value(&choose(0));
    page.expect(cells, 16);
    page.value(&choose(1));
    page.expect(cells, 40);
    // The second row begins behind the first one's newline.
    page.hover("#patches [data-position='28']");
    page.expect_text("#position-title", "Patch in row 2, column 1 of view 2");
    let missing = "document.querySelector('[data-position=\"27\"]') === null";
    page.expect(missing, Value::Bool(true));
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}
