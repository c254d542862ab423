use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::ErrorKind;

const PICTURE: ImageToken = ImageToken {
    text: "<picture>",
    behind: "\n",
};

fn render(template: &str, chat: &Value) -> crate::Result<String> {
    let tokens = [("bos_token", "<bos>"), ("eos_token", "<eos>")];
    let tokens = tokens.map(|(name, text)| (name, text.to_owned())).into();
    let chat = Chat::parse(chat.to_string().as_bytes(), LocalFiles::Refused)?;
    let texts = ChatTemplate::new(template, tokens)?.render(&chat.messages, PICTURE)?;
    Ok(texts.join(PICTURE.text))
}

#[test]
fn templates_write_what_they_write_in_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a fixture");
    let oracle: Value = serde_json::from_str(&read("oracle.json")).expect("JSON");
    let cases = oracle["cases"].as_array().expect("cases");
    assert!(cases.len() > 140);
    for case in cases {
        let field = |name: &str| case[name].as_str();
        let template = field("template").expect("a name");
        let chat = &oracle["chats"][field("chat").expect("a name")];
        let written = render(&read(&format!("templates/{template}.jinja")), chat);
        match (written, field("text"), field("refused")) {
            (Ok(written), Some(expected), _) => assert_eq!(written, expected, "{case}"),
            (Err(error), _, Some(reason)) => {
                assert_eq!(error.kind(), ErrorKind::ChatTemplate);
                let expected = format!("the chat template refuses this chat: {reason}");
                assert_eq!(error.to_string(), expected, "{case}");
            }
            (written, ..) => panic!("{case}: {:?}", written.map_err(|error| error.to_string())),
        }
    }
}

#[test]
fn what_a_template_does_wrong_is_said() {
    let check = |template: &str, chat: Value, expected: &str| {
        let error = render(template, &chat).expect_err(template);
        assert_eq!(error.kind(), ErrorKind::ChatTemplate, "{error}");
        assert!(error.hint().is_some(), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected), "{template}: {error}");
    };
    let hello = || json!([{"role": "user", "content": "Hello"}]);
    let image =
        || json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]);

    // Constructs that are not known, by name and line.
    check("{% trans %}", hello(), "unknown statement trans");
    check(
        "\n{{ messages | nonsense }}",
        hello(),
        "unknown filter: filter nonsense is unknown (in chat template:2)",
    );
    check(
        "{{ messages is nonsense }}",
        hello(),
        "test nonsense is unknown",
    );
    check(
        "{{ messages[0].content.swapcase() }}",
        hello(),
        "has no method named swapcase",
    );
    check("{{ nonsense(1) }}", hello(), "nonsense");
    check("{% for x in %}", hello(), "syntax error");
    check("{% include 'other' %}", hello(), "other");
    check("{{ strftime_now('%Q') }}", hello(), "`%Q`");
    check("{{ {} | tojson(separators=1) }}", hello(), "separators");

    // Messages and images that do not come through.
    let of_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
    let scene = json!([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]);
    check(
        of_users,
        scene,
        "leaves out what `messages[0]` says, the system's",
    );
    let texts = "{% for p in messages[0].content if p.type == 'text' %}{{ p.text }}{% endfor %}";
    check(texts, image(), "drops images: it shows 0 of 1");
    let twice = "{{ messages[0].content ~ messages[0].content }}";
    check(twice, image(), "repeats images: it shows 2 of 1");
    let marked = json!([{"role": "user", "content": "a <picture> b"}]);
    check(
        "{{ messages[0].content }}",
        marked,
        "`messages[0]` holds `<picture>` in a text",
    );
    let started = json!([{"role": "assistant", "content": "It is"}]);
    check(
        "{{ messages[0].content | upper }}",
        started,
        "changes the assistant's message",
    );

    // Time and memory.
    let endless = [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{{ 'x' * 999999999 }}",
        "{{ 'x'.replace('', 'x' * 99999).replace('x', 'x' * 99999) }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    ];
    for template in endless {
        check(template, hello(), "");
    }
    let long = " ".repeat((1 << 20) + 1);
    check(&long, hello(), "1048577 bytes");
    // Values in one another end no process; they are no fault.
    let deep =
        "{% set n = namespace(x=1) %}{% for i in range(30000) %}{% set n.x = [n.x] %}{% endfor %}";
    let shown = format!("{deep}{{{{ messages[0].content }}}}");
    assert_eq!(render(&shown, &hello()).expect("it writes little"), "Hello");
    let _ = render(&format!("{deep}{{{{ n.x }}}}"), &hello());
    let _ = render(&format!("{deep}{{{{ n.x | tojson }}}}"), &hello());
    let nested = format!("{{{{ {}1{} }}}}", "[".repeat(90_000), "]".repeat(90_000));
    check(&nested, hello(), "");
}

#[test]
fn chats_of_another_form_are_refused_with_the_place() {
    let check = |text: &str, expected: &str| {
        let error = Chat::parse(text.as_bytes(), LocalFiles::Refused).expect_err(text);
        let error = error.to_string();
        assert!(error.contains(expected), "{text}: {error}");
    };
    check("", "EOF");
    check("[", "EOF");
    check("3", "expected a list of messages");
    check("{}", "expected a list of messages");
    check(r#"{"messages": {}}"#, "expected a list of messages");
    check("[]", "`messages` is empty");
    check(r#"["hello"]"#, "`messages[0]` is no object");
    check(&"[".repeat(200), "recursion limit");
    check(
        &format!("[{}]", "0,".repeat(1 << 20)),
        "more than 1048576 values",
    );
    let hello = r#""messages": [{"role": "user", "content": "Hello"}]"#;
    check(
        &format!(r#"{{{hello}, "temperature": 1}}"#),
        "`temperature` is not known here",
    );
    check(
        &format!(r#"{{{hello}, "tools": [1]}}"#),
        "`tools` is not known here",
    );

    let check = |message: Value, at: &str, expected: &str| {
        let hello = json!({"role": "user", "content": "Hello"});
        let chat = json!([hello, message]).to_string();
        let error = Chat::parse(chat.as_bytes(), LocalFiles::Refused).expect_err(&chat);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(error.to_string(), format!("`messages[1]{at}` {expected}"));
    };
    let missing = "is missing, or is no text";
    check(json!({"content": "a"}), ".role", missing);
    check(json!({"role": 3, "content": "a"}), ".role", missing);
    check(
        json!({"role": "tool", "content": "a"}),
        ".role",
        "is `tool`",
    );
    check(
        json!({"role": "user", "content": "a", "name": "b"}),
        ".name",
        "is not known here",
    );
    let neither = "is neither a text nor a list of parts";
    check(json!({"role": "user"}), ".content", neither);
    check(
        json!({"role": "assistant", "content": null}),
        ".content",
        neither,
    );
    check(json!({"role": "user", "content": {}}), ".content", neither);
    check(
        json!({"role": "user", "content": []}),
        ".content",
        "is empty",
    );

    let check = |part: Value, at: &str, expected: &str| {
        let content = json!([{"type": "text", "text": "a"}, part]);
        check(
            json!({"role": "user", "content": content}),
            &format!(".content[1]{at}"),
            expected,
        );
    };
    check(json!("text"), "", "is no object");
    check(json!({}), ".type", "is ``");
    check(json!({"type": "input_audio"}), ".type", "is `input_audio`");
    check(json!({"type": "text"}), ".text", missing);
    check(
        json!({"type": "text", "text": "a", "x": 1}),
        ".x",
        "is not known here",
    );
    check(
        json!({"type": "image", "url": "a.png"}),
        ".url",
        "is not known here",
    );
    let check = |url: Value, expected: &str| {
        check(
            json!({"type": "image_url", "image_url": url}),
            ".image_url",
            expected,
        );
    };
    check(json!(null), "has no `url`");
    check(json!({"detail": "low"}), "has no `url`");
    check(
        json!("https://example.com/a.png"),
        "is a web address, and nothing is downloaded here",
    );
    check(
        json!({"url": "HTTP://example.com"}),
        "is a web address, and nothing is downloaded here",
    );
    check(json!("data:image/png"), "is a `data:` URL without data");
    check(
        json!("data:image/png,abc"),
        "is a `data:` URL whose data are not base64",
    );
    check(
        json!("data:text/plain;base64,YWJj"),
        "is a `data:` URL of no image",
    );
    check(
        json!("data:image/png;base64,YW?j"),
        "is a `data:` URL with malformed base64",
    );
    // Whoever sends a chat reads no file of the machine that answers.
    check(json!("/etc/passwd"), "is not a `data:` URL");
    check(json!("file:///etc/passwd"), "is not a `data:` URL");
}

#[test]
fn images_come_from_everywhere() {
    let urls = [
        "a.png",
        "/b/c d.png",
        "file:///b/c%20d.png",
        "file://localhost/b",
        "file:e.png",
        "data:image/png;base64,YWJj",
    ];
    let parts =
        urls.map(|url| json!({"type": "image_url", "image_url": {"url": url, "detail": "auto"}}));
    let mut parts = Vec::from(parts);
    parts.insert(1, json!({"type": "image"}));
    parts.push(json!({"type": "image_url", "image_url": "f.png"}));
    let request = json!({
        "model": "any",
        "temperature": null,
        "messages": [
            {"role": "developer", "content": "Hello", "refusal": null, "annotations": []},
            {"role": "user", "content": parts},
        ],
    });
    let text = format!("\u{feff}{request}");
    let chat = Chat::parse(text.as_bytes(), LocalFiles::From(Path::new("/in"))).expect("a chat");
    assert_eq!(chat.messages[0].role, Role::System);
    assert_eq!(chat.messages[1].n_images(), 8);
    let file = |path: &str| ImageSource::File(path.into());
    let expected = [
        file("/in/a.png"),
        ImageSource::Given,
        file("/b/c d.png"),
        file("/b/c d.png"),
        file("/b"),
        file("/in/e.png"),
        ImageSource::Bytes(b"abc".into()),
        file("/in/f.png"),
    ];
    assert_eq!(chat.images, expected);

    let error = chat
        .pictures(Vec::new())
        .map(|_| ())
        .expect_err("a place without a picture");
    assert!(
        error.to_string().contains("pictures given: 0, expected 1"),
        "{error}"
    );
}
