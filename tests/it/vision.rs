//! llama.cpp's order of vision rows: the defect, and the cure.

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{SessionOptions, TryShortcuts, VisionGraph};

use crate::fixture::{Fixture, IMAGE_EMBEDDINGS, exact_options, image_rows, relative_error};

fn error(fixture: Fixture, name: &str, vision_graph: VisionGraph) -> f64 {
    let options = SessionOptions {
        vision_graph,
        ..exact_options()
    };
    let session = fixture.session(TensorType::F32, options);
    let image = session
        .encode_image(&fixture.open_picture(name))
        .expect("the picture is encoded");
    relative_error(
        image_rows(&image),
        &fixture.oracle().f32(&format!("{name}/image_embeddings")),
    )
}

/// If this fails for `AsLlamaCpp`, llama.cpp has put its order right, and the cure can go.
#[test]
fn the_class_row_is_put_right() {
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        for name in ["00.png", "01.png"] {
            let cured = error(fixture, name, VisionGraph::Corrected);
            let as_it_is = error(fixture, name, VisionGraph::AsLlamaCpp);
            assert!(cured < IMAGE_EMBEDDINGS, "{fixture:?} {name}: {cured:.2e}");
            assert!(as_it_is > 0.3, "{fixture:?} {name}: {as_it_is:.2e}");
        }
    }
}

/// A device on which the correction has no effect, played by the processor without it: it is noticed,
/// and the rows are right.
#[test]
fn corrections_without_effect_are_noticed() {
    let encode = |fixture: Fixture, vision_graph, try_shortcuts| {
        let options = SessionOptions {
            gpu_layers: 0,
            vision_graph,
            try_shortcuts,
            ..exact_options()
        };
        let session = fixture.session(TensorType::F32, options);
        let rows = |name| {
            let image = session.encode_image(&fixture.open_picture(name));
            image_rows(&image.expect("the picture is encoded")).to_vec()
        };
        // The first picture is checked, and the second encoded as it came out.
        [rows("00.png"), rows("01.png")]
    };
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        let right = encode(fixture, VisionGraph::Corrected, TryShortcuts::OnDevices);
        let sabotaged = encode(fixture, VisionGraph::AsLlamaCpp, TryShortcuts::Always);
        assert_eq!(sabotaged, right, "{fixture:?}");
        let checked = encode(fixture, VisionGraph::Corrected, TryShortcuts::Always);
        assert_eq!(checked, right, "{fixture:?}");
    }
}
