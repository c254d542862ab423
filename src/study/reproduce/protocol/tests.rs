use serde_json::{Value, json};

use super::{BUILT_IN, Protocol};

#[test]
fn the_programs_own_protocols_are_read() {
    let names: Vec<_> = Protocol::built_in()
        .into_iter()
        .map(|one| one.name)
        .collect();
    assert_eq!(names, ["llava-gemma-2b", "demo", "gemma-3-4b"]);
    for protocol in Protocol::built_in() {
        let json = serde_json::to_string(&protocol).expect("plain data");
        assert_eq!(Protocol::parse(&json).expect("its own JSON"), protocol);
    }
}

/// Sets what a JSON pointer points to.
fn changed(pointer: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(BUILT_IN[0]).expect("JSON");
    *json.pointer_mut(pointer).expect("it is there") = value;
    json.to_string()
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (pointer, value, expected) in [
        (
            "/judged_prompt",
            json!("three BOS"),
            "`judged_prompt` names no prompt",
        ),
        (
            "/prompts/0/text",
            json!("no picture"),
            "a prompt holds `<image>` once",
        ),
        (
            "/prompts/0/name",
            json!("one BOS"),
            "two prompts have one name",
        ),
        (
            "/sae/d_sae",
            json!(12288),
            "there is no feature `15413`: valid ones are 0 to 12287",
        ),
        (
            "/sae/hook_point",
            json!("blocks.x"),
            "hook point `blocks.x` is not supported",
        ),
        (
            "/reading/classes/0/name",
            json!("../pizza"),
            "the class `../pizza` is no name of a folder",
        ),
        (
            "/reading/classes/0/name",
            json!("alps"),
            "two classes have one name",
        ),
        (
            "/reading/classes/0/features",
            json!([]),
            "the class `pizza` has no features",
        ),
        (
            "/reading/classes/0/features",
            json!([7310, 4270, 7310]),
            "the class `pizza` has a feature twice",
        ),
        (
            "/steering/strengths/0",
            json!(-3),
            "a strength is there twice",
        ),
        (
            "/steering/judged_strengths/0",
            json!(-4),
            "a strength is there twice",
        ),
        (
            "/reading/classes/0/features",
            json!([2777]),
            "feature `2777` is hidden",
        ),
        (
            "/reading/classes_needed",
            json!(8),
            "`classes_needed` is from 1 to the number of classes",
        ),
        (
            "/reading/auroc",
            json!(90),
            "`share_in_top`, `auroc`, `share_of_pictures` and `max_share_dropped` are from 0 to 1",
        ),
        (
            "/steering/class",
            json!("dog"),
            "`steering.class` is no class",
        ),
        ("/steering/words", json!(["!"]), "`words` holds words"),
        (
            "/reading/classes/0",
            json!({"name": "pizza", "labels": ["pizza", "-"]}),
            "`labels` holds words",
        ),
        (
            "/steering/feature",
            Value::Null,
            "`steering` has a `feature`, or `labels` by which it is found",
        ),
        (
            "/steering/strengths/0",
            json!(0),
            "strengths are numbers other than 0, which is run in any case",
        ),
        (
            "/steering/judged_strengths/0",
            json!(-5),
            "`judged_strengths` are among `strengths`",
        ),
        (
            "/steering/judged_strengths_needed",
            json!(4),
            "`judged_strengths_needed` is from 1 to the number of `judged_strengths`",
        ),
        (
            "/control/features_per_picture",
            json!(100),
            "a picture's 306 captions are more than 256",
        ),
    ] {
        let error = Protocol::parse(&changed(pointer, value)).expect_err(pointer);
        assert_eq!(error.to_string(), expected, "{pointer}");
    }
}

#[test]
fn json_of_another_form_is_refused() {
    let misspelt = BUILT_IN[0].replace("\"pictures_per_class\"", "\"picture_per_class\"");
    let error = Protocol::parse(&misspelt).expect_err("an unknown field");
    let text = error.to_string();
    assert!(
        text.starts_with("unknown field `picture_per_class`"),
        "{text}"
    );
    assert!(text.contains("line "), "{text}");
}
