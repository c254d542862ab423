//! Checkpoints of Gemma 4, converted, beside transformers, as the files that were written by hand are in `gemma4.rs` and
//! `gemma4_pictures.rs`.

use llava_sae_cpp::{ModelFiles, Session};

use crate::command_line::{run, stdout, text};
use crate::convert_sae::saelens;
use crate::families::converted_from;
use crate::fixture::{IMAGE_EMBEDDINGS, everything, relative_error, temporary_root};
use crate::gemma4::{ROWS, SETS, Set, check_ids};
use crate::gemma4_checkpoint::gemma4_checkpoint;
use crate::gemma4_picture_set::Set as PictureSet;
use crate::hook_points::{sae_at, with_ubatch, worst_row};
use crate::picture_set::{open, resid_post, rows};

/// A folder with the checkpoint, called as the set.
fn checkpoint_dir(name: &str) -> std::path::PathBuf {
    let dir = temporary_root().join("gemma4-checkpoints").join(name);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    gemma4_checkpoint(name).write(&dir);
    dir
}

fn session(set: &Set, hook: &str) -> Session {
    let made = converted_from(&checkpoint_dir(set.name));
    let files = ModelFiles {
        model: made.model.expect("it is converted"),
        mmproj: made.mmproj,
        saes: vec![sae_at(hook, set.number("d_model"))],
    };
    open(&files, with_ubatch(512))
}

#[test]
fn texts_have_the_ids_of_transformers() {
    let set = Set::named("shared-b");
    check_ids(&set, &session(&set, &resid_post(0)));
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for name in SETS {
        let set = Set::named(name);
        let hook = resid_post(set.number("n_layers") - 1);
        let mut session = session(&set, &hook);
        let prompt = set.prompt(&session);
        let run = session.run(&prompt, everything(6)).expect("it runs");
        let theirs = set.rows(&hook);
        let ours = &run.trace.saes[0].residuals;
        let error = worst_row(&ours[..theirs.len()], &theirs, set.number("d_model"));
        assert!(error < ROWS, "{name}: {error:.2e}");
        let theirs = set.oracle.f32(&format!("{name}/logits"));
        let error = relative_error(&run.logits[..theirs.len()], &theirs);
        assert!(error < ROWS, "{name}: logits {error:.2e}");
        let ids = set.oracle.ids(&format!("{name}/greedy_ids"));
        assert_eq!(run.token_ids, ids, "{name}");
    }
}

#[test]
fn image_rows_and_texts_are_those_of_transformers() {
    for set in PictureSet::all() {
        let [_, layer] = set.layers();
        let by_hand = Set::named(set.name);
        let mut session = session(&by_hand, &resid_post(layer));
        for name in ["wide", "strip"] {
            let image = set.image(&session, name);
            let theirs = set.oracle.f32(&format!("picture/{name}/image_embeddings"));
            let error = relative_error(&rows(&image), &theirs);
            assert!(
                error < IMAGE_EMBEDDINGS,
                "{}, {name}: {error:.2e}",
                set.name
            );
        }
        let prompt = set.prompt(&session, "two");
        let run = session.run(&prompt, everything(4)).expect("it runs");
        let theirs = set.oracle.f32("two/logits");
        let error = relative_error(&run.logits[..theirs.len()], &theirs);
        assert!(error < ROWS, "{}: logits {error:.2e}", set.name);
        let ids = set.oracle.ids("two/greedy_ids");
        assert_eq!(run.token_ids, ids, "{}", set.name);
    }
}

/// Writes a checkpoint of one that sees nothing.
pub(crate) fn write_blind(dir: &std::path::Path) {
    let mut blind = gemma4_checkpoint("shared-a");
    blind.config["vision_config"] = serde_json::Value::Null;
    blind.tensors.retain(|name, _| !name.contains("vision"));
    std::fs::create_dir(dir).expect("a folder of our own");
    blind.write(dir);
}

#[test]
fn a_folder_without_a_projector_is_ready_for_texts() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let sae = saelens(dir.path(), Some("blocks.1.hook_resid_post"));
    let (checkpoint, out) = (dir.path().join("blind"), dir.path().join("out"));
    write_blind(&checkpoint);
    let convert = ["convert", "--llava", text(&checkpoint), "--sae", text(&sae)];
    // A projector that is not written is not in the way.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a folder of our own");
    let lying = other.join("mmproj-f16.gguf");
    std::fs::write(&lying, "another").expect("it is written");
    let output = run(&[&convert[..], &["-o", text(&other)]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(std::fs::read(lying).expect("it stays"), b"another");
    for type_name in ["f32", "q8_0", "q4_k_m"] {
        let more = ["-o", text(&out), "--force", "--type", type_name];
        let output = run(&[&convert[..], &more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("--prompt TEXT`"), "{said}");
        let mut names: Vec<_> = std::fs::read_dir(&out)
            .expect("a folder of our own")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, [&*format!("model-{type_name}.gguf"), "sae-f16.gguf"]);
        let shown = stdout(&[
            "features",
            "-q",
            "-d",
            text(&out),
            "--raw-prompt",
            "-p",
            "the cat sat",
        ]);
        assert!(shown.lines().count() > 3, "{shown}");
        std::fs::remove_dir_all(&out).expect("a folder of our own");
    }
}
