//! What is read, and what is refused.

use super::parse;

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
