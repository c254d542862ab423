//! Labels from Neuronpedia's bucket.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use gguf_tools::{ErrorKind, Result};
use llava_sae_hub::{Hub, LabelsAddress};

use crate::mirror::{Content, Fault, Mirror};
use crate::{hub, offline};

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

fn content() -> Content {
    let prefix = "v1/gemma-2b/12-res-jb/explanations";
    let mut content = Content::default();
    for number in [0, 1, 2, 10] {
        let key = format!("{prefix}/batch-{number}.jsonl.gz");
        content.bucket.insert(key, gzip(&format!("{number}\n")));
    }
    for other in [
        format!("{prefix}/README.md"),
        "v1/gemma-2b/12-res-jb/features/batch-0.jsonl.gz".to_owned(),
    ] {
        content.bucket.insert(other, Vec::new());
    }
    content
}

fn address() -> LabelsAddress {
    "neuronpedia:gemma-2b/12-res-jb"
        .parse()
        .expect("an address")
}

fn fetch(hub: &Hub) -> Result<Vec<PathBuf>> {
    let labels = hub.labels(&address())?;
    hub.fetch_labels(&labels, &mut |_, _| ControlFlow::Continue(()))
}

/// The list comes in parts, in the order of texts; the files are in the order of their numbers.
#[test]
fn labels_come_in_the_order_of_their_numbers() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let labels = client.labels(&address()).expect("there");
    assert_eq!(client.n_missing_label_bytes(&labels), labels.n_bytes());
    let paths = fetch(&client).expect("there");
    let texts: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).expect("written"))
        .collect();
    assert_eq!(texts, ["0\n", "1\n", "2\n", "10\n"].map(gzip));
    assert_eq!(client.n_missing_label_bytes(&labels), 0);
    mirror.asked();
    assert_eq!(fetch(&client).expect("there"), paths);
    assert_eq!(mirror.asked().len(), 3); // the list alone
    assert_eq!(fetch(&offline(&mirror, dir.path())).expect("there"), paths);
    assert!(mirror.asked().is_empty());
    client.drop_labels(&labels).expect("removable");
    let error = fetch(&offline(&mirror, dir.path())).expect_err("dropped");
    assert_eq!(error.kind(), ErrorKind::Offline);
}

#[test]
fn an_sae_without_labels_is_said() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let address = "neuronpedia:gemma-2b/13-res-jb"
        .parse()
        .expect("an address");
    let error = hub(&mirror, dir.path()).labels(&address).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::NotPublished);
    assert!(
        error
            .to_string()
            .contains("`neuronpedia:gemma-2b/13-res-jb`"),
        "{error}"
    );
}

#[test]
fn failures_are_tried_again_and_damage_is_an_error() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut n_asked = 0;
    mirror.sabotage(move |_| {
        n_asked += 1;
        match n_asked % 2 {
            1 => Fault::CutAfter(3),
            _ => Fault::Nothing,
        }
    });
    assert_eq!(
        fetch(&hub(&mirror, dir.path())).expect("it arrives").len(),
        4
    );

    let dir = tempfile::tempdir().expect("a temporary folder");
    mirror.sabotage(|asked| match asked.path.contains("batch-1.") {
        true => Fault::WrongByte,
        false => Fault::Nothing,
    });
    let error = fetch(&hub(&mirror, dir.path())).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    mirror.sabotage(|_| Fault::Nothing);
    assert_eq!(
        fetch(&hub(&mirror, dir.path())).expect("it arrives").len(),
        4
    );
}

#[test]
fn what_is_no_bucket_is_said() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let settings = crate::Settings {
        neuronpedia: format!(
            "{}/v1/gemma-2b/12-res-jb/explanations/README.md",
            mirror.neuronpedia
        ),
        ..crate::settings(&mirror, dir.path())
    };
    let error = Hub::new(settings, std::sync::Arc::new(|| false)).labels(&address());
    let error = error.expect_err("no list");
    assert_eq!(error.kind(), ErrorKind::Network);
}
