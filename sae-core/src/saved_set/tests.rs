//! What is read, and what is refused.

use std::sync::Arc;

use gguf_tools::sae::{Architecture, NormalizeActivations, SaeMeta};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Entry, interventions, parse, read};
use crate::feature::FeatureId;
use crate::hook_point::HookPoint;
use crate::sae::{Sae, SaeArrays};
use crate::sae_set::SaeSet;
use crate::steering::{
    Change, Condition, Intervention, KINDS, Number, Positions, Steering, Target, Targets, Units,
    Vector,
};

const RIGHT: &str = r#"{"text": "", "interventions": [{"kind": "steer", "feature": 12, "label": "dog",
    "value": -6, "units": "raw", "at": "all"}, {"kind": "ablate", "feature": "dog"}]}"#;

#[test]
fn broken_sets_are_refused() {
    let n_entries = |text: &[u8]| parse(text, "set.json").map(|entries| entries.len());
    assert_eq!(n_entries(RIGHT.as_bytes()).expect("a right set"), 2);
    let rewritten = RIGHT.replacen('{', "\u{feff}{\"seconds\": NaN, ", 1);
    assert_eq!(
        n_entries(rewritten.as_bytes()).expect("as Python writes"),
        2
    );
    for end in 0..RIGHT.len() {
        assert!(n_entries(&RIGHT.as_bytes()[..end]).is_err(), "cut at {end}");
    }
    // Either is right for a byte in a text.
    for place in 0..RIGHT.len() {
        for byte in [0, b'"', b'[', b'{', b'9', 0xff] {
            let mut broken = RIGHT.as_bytes().to_vec();
            broken[place] = byte;
            let _ = n_entries(&broken);
        }
    }
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let many = format!("[{}0]", "0,".repeat(1 << 20));
    let wide = format!(
        r#"[{{"kind": "steer", "feature": [{}0]}}]"#,
        "0,".repeat(1 << 18)
    );
    for text in [
        "null",
        "7",
        "\"text\"",
        "{}",
        "[]",
        "[null]",
        "[[]]",
        "[{}]",
        &deep,
        &many,
        &wide,
        r#"{"interventions": {}}"#,
        r#"{"interventions": [], "interventions": []}"#,
        r#"[{"kind": "steer", "kind": "steer", "feature": 1, "value": 1}]"#,
        r#"[{"kind": "steer", "feature": 18446744073709551616, "value": 1}]"#,
        r#"[{"kind": "steer", "feature": -1, "value": 1}]"#,
        r#"[{"kind": "steer", "feature": 1, "value": "1"}]"#,
        r#"[{"kind": "wave", "feature": 1, "value": 1}]"#,
        r#"[{"kind": "steer", "feature": 1, "value": 1, "more": 1}]"#,
    ] {
        assert!(
            n_entries(text.as_bytes()).is_err(),
            "{}",
            &text[..text.len().min(80)]
        );
        let inside = format!("{{\"interventions\": {text}}}");
        assert!(
            n_entries(inside.as_bytes()).is_err(),
            "{}",
            &text[..text.len().min(80)]
        );
    }
    assert!(n_entries(b"[\xc3\x28]").is_err(), "invalid UTF-8");
    // What is beside the list does not matter, however much it is.
    let long = format!(
        r#"{{"more": [{}0], "interventions": [{{"kind": "ablate", "feature": 1}}]}}"#,
        "0,".repeat(1 << 20)
    );
    assert_eq!(n_entries(long.as_bytes()).expect("a right set"), 1);
}

/// Two SAEs of 9 features on rows of 3, one behind the other; with one alone, features need no name.
fn saes(n_saes: usize) -> SaeSet {
    let sae = |(layer, id): (usize, &str)| {
        let meta = SaeMeta {
            architecture: Architecture::Standard,
            d_in: 3,
            d_out: 3,
            d_sae: 9,
            hook_name: format!("blocks.{layer}.hook_resid_post"),
            hook_names_out: Vec::new(),
            apply_b_dec_to_input: false,
            normalize_activations: NormalizeActivations::None,
            is_centred: false,
            norm_factor: None,
            source_format: None,
            model_name: None,
            release: None,
            id: None,
            labels: (0..9).map(|i| format!("label {i}")).collect(),
            labels_source: None,
        };
        let arrays = SaeArrays {
            w_enc: vec![1.0; 27],
            w_dec: vec![0.5; 27],
            b_enc: vec![0.0; 9],
            b_dec: vec![0.0; 3],
            threshold: None,
            meta,
        };
        Arc::new(Sae::from_arrays(arrays, id).expect("arrays of these sizes"))
    };
    let all = [(0, "lower"), (1, "upper")].map(sae);
    SaeSet::new(all.into_iter().take(n_saes).collect()).expect("other names")
}

#[test]
fn vectors_and_conditions_are_read() {
    let read = |text: &str, n_saes| {
        let entries = parse(text.as_bytes(), "set.json")?;
        interventions(&entries, "set.json", &saes(n_saes))
    };
    let one = |text: &str, n_saes| {
        let mut read = read(&format!("[{text}]"), n_saes).expect(text);
        assert_eq!(read.len(), 1);
        read.remove(0)
    };
    let refused = |text: &str, n_saes, words: &[&str]| {
        let error = read(&format!("[{text}]"), n_saes).expect_err(text);
        for word in words {
            let hint = error.hint().expect("a hint");
            assert!(
                error.to_string().contains(word) || hint.contains(word),
                "{text}: {error}"
            );
        }
    };
    let added = r#"{"kind": "vector", "values": [1, 2, 3], "value": 2}"#;
    let vector = |hook: &str| {
        let hook_point = HookPoint::parse(hook).expect("a known name");
        Vector::new("vector", hook_point, vec![1.0, 2.0, 3.0]).expect("finite numbers")
    };
    let expected = Intervention::new(vector("blocks.0.hook_resid_post"), Change::vector(2.0));
    assert_eq!(one(added, 1), expected);
    for n_saes in [0, 2] {
        refused(added, n_saes, &["`hook` is missing", "hook point"]);
    }
    let elsewhere =
        r#"{"kind": "cap", "values": [1, 2, 3], "hook": "blocks.7.hook_mlp_out", "value": 2}"#;
    let expected = Intervention::new(vector("blocks.7.hook_mlp_out"), Change::cap(2.0));
    assert_eq!(one(elsewhere, 0), expected);
    let when = r#"{"kind": "project", "feature": "upper/3", "value": 0, "at": "last,token:dog",
        "when": {"feature": "lower/label 4", "above": 1.5}}"#;
    let when = one(when, 2);
    let condition = when.when.expect("a condition");
    assert_eq!(condition.feature, FeatureId { sae: 0, index: 4 });
    assert_eq!(
        (condition.above, when.at.to_string()),
        (1.5, "last,token:dog".to_owned())
    );

    refused(
        r#"{"kind": "vector", "value": 2}"#,
        1,
        &["`values` is missing"],
    );
    refused(
        r#"{"kind": "cap", "value": 2}"#,
        1,
        &["`feature` is missing"],
    );
    refused(
        r#"{"kind": "vector", "values": [], "value": 2}"#,
        1,
        &["no values"],
    );
    refused(
        r#"{"kind": "vector", "values": [1e39], "value": 2}"#,
        1,
        &["finite"],
    );
    refused(
        r#"{"kind": "cap", "feature": 1, "values": [1], "value": 2}"#,
        1,
        &["both"],
    );
    refused(
        r#"{"kind": "cap", "feature": 1, "hook": "blocks.0.hook_mlp_out", "value": 2}"#,
        1,
        &["`hook` is for vectors"],
    );
    refused(
        r#"{"kind": "vector", "file": "/etc/passwd", "value": 2}"#,
        1,
        &["`file`", "`values`"],
    );
    refused(
        r#"{"kind": "ablate", "feature": 1, "when": {"feature": 99, "above": 0}}"#,
        1,
        &["99"],
    );
    refused(
        r#"{"kind": "ablate", "feature": 1, "when": {"feature": 9, "above": 1e39}}"#,
        1,
        &["`above`"],
    );
    assert!(
        parse(
            br#"[{"kind": "ablate", "feature": 1, "when": {"feature": 9}}]"#,
            ""
        )
        .is_err()
    );
}

#[test]
fn conditions_are_of_features_at_the_same_place_or_before() {
    let limited = |target: usize, when: usize| {
        let feature = |sae| FeatureId { sae, index: 1 };
        Steering::new(
            vec![Intervention {
                when: Some(Condition {
                    feature: feature(when),
                    above: 0.0,
                }),
                ..Intervention::new(feature(target), Change::ablate())
            }],
            &saes(2),
        )
    };
    assert!(limited(0, 0).expect("the same").watched().is_empty());
    let above = limited(1, 0).expect("a lower one");
    let [watched] = above.watched() else {
        panic!("one feature");
    };
    assert_eq!(watched.hook_point.layer(), 0);
    let error = limited(0, 1).expect_err("a higher one");
    let words = [
        "upper/1",
        "blocks.1.hook_resid_post",
        "after `blocks.0.hook_resid_post`",
    ];
    for word in words {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(error.hint().is_some());
}

/// Files of vectors are found from the set's folder.
#[test]
fn files_of_vectors_are_read() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let header = r#"{"direction":{"dtype":"F32","shape":[1,3],"data_offsets":[0,12]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([1.0_f32, -2.5, 3.0].iter().flat_map(|x| x.to_le_bytes()));
    std::fs::create_dir(dir.path().join("vectors")).expect("a folder of our own");
    std::fs::write(dir.path().join("vectors/a.safetensors"), &file).expect("a file of our own");
    let set = dir.path().join("set.json");
    let text = r#"[{"kind": "vector", "file": "vectors/a.safetensors", "value": -1}]"#;
    std::fs::write(&set, text).expect("a file of our own");
    let found = read(&set).and_then(|entries| interventions(&entries, "set.json", &saes(1)));
    let found = found.expect("it is there");
    let Target::Vector(vector) = &found[0].target else {
        panic!("a vector");
    };
    assert_eq!(
        (vector.values(), vector.name()),
        (&[1.0, -2.5, 3.0][..], "a.safetensors")
    );

    for bad in [
        header.replace("[1,3]", "[3,1,2]"),
        header.replace("F32", "I32"),
        header.replace("[0,12]", "[0,16]"),
        header.replace(
            "{\"direction\"",
            r#"{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"direction""#,
        ),
    ] {
        let mut broken = (bad.len() as u64).to_le_bytes().to_vec();
        broken.extend(bad.as_bytes());
        broken.extend(&file[8 + header.len()..]);
        std::fs::write(dir.path().join("vectors/a.safetensors"), &broken).expect("our own");
        let error = read(&set).expect_err(&bad).to_string();
        assert!(
            error.contains("intervention 1") && error.contains("a.safetensors"),
            "{error}"
        );
    }
}

fn an_intervention(n_saes: usize) -> impl Strategy<Value = Intervention> {
    let feature = || (0..n_saes, 0_usize..9).prop_map(|(sae, index)| FeatureId { sae, index });
    let number = || any::<f32>().prop_filter("JSON holds finite numbers", |x| x.is_finite());
    let hook = prop_oneof![
        Just("blocks.0.hook_resid_post"),
        Just("blocks.5.attn.hook_z")
    ];
    let vector = (hook, vec(number(), 1..5), "[a-z ]{0,5}").prop_map(|(hook, values, name)| {
        let hook_point = HookPoint::parse(hook).expect("a known name");
        Target::from(Vector::new(&name, hook_point, values).expect("finite numbers"))
    });
    let when = prop_oneof![
        Just(None),
        (feature(), number()).prop_map(|(feature, above)| Some(Condition { feature, above }))
    ];
    let units = prop::sample::select(&Units::ALL[..]);
    let targets = (feature(), vector, any::<bool>());
    let at = vec(crate::positions::tests::a_word(), 1..4);
    (0..KINDS.len(), number(), targets, units, at, when).prop_map(
        |(kind, number, (feature, vector, is_vector), units, at, when)| {
            let kind = KINDS[kind];
            let target = match kind.targets {
                Targets::Vectors => vector,
                Targets::Both if is_vector => vector,
                Targets::Features | Targets::Both => feature.into(),
            };
            let number = (kind.number != Number::None).then_some(number);
            Intervention {
                target,
                change: Change::new(kind, number).expect("as it takes"),
                units,
                at: Positions::parse(&at.join(",")).expect("valid positions"),
                when,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What is written is read as the same, of each kind and with each form of position.
    #[test]
    fn sets_are_read_as_they_are_written(
        (n_saes, set) in (1_usize..3).prop_flat_map(|n_saes| {
            (Just(n_saes), vec(an_intervention(n_saes), 1..6))
        }),
    ) {
        let saes = saes(n_saes);
        let written: Vec<Entry> = set.iter().map(|one| Entry::new(one, &saes)).collect();
        let text = serde_json::to_string(&written).expect("plain data");
        let read = parse(text.as_bytes(), "set.json");
        let read = read.and_then(|entries| interventions(&entries, "set.json", &saes));
        prop_assert_eq!(read.expect("what was written"), set);
    }
}
