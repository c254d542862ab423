//! Faults that are applied to right files of any kind: each is named, and given to a check.

use serde_json::{Value, json};

use crate::Expected::{self, Either, Refused};

/// Takes a fault's name, the broken file, and what a reader must make of it.
pub(crate) type Check<'a> = &'a mut dyn FnMut(&str, &[u8], Expected);

/// What is no file of any format.
const NONSENSE: [&[u8]; 7] = [
    b"",
    b"\0",
    b" \n",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xfe{\0}\0",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    b"<!DOCTYPE html><html></html>",
];

/// Cuts `right` off at each of `ends`, and puts nonsense in its place.
pub(crate) fn cut(right: &[u8], ends: impl IntoIterator<Item = usize>, check: Check) {
    for nonsense in NONSENSE {
        check("nonsense", nonsense, Refused);
    }
    for end in ends {
        check(&format!("cut at {end}"), &right[..end], Refused);
    }
}

/// Writes other numbers over each place in `places`: lengths, counts, types and offsets are among
/// them, whatever the format.
pub(crate) fn overwrite(right: &[u8], places: impl IntoIterator<Item = usize>, check: Check) {
    let numbers: [&[u8]; 5] = [
        &[0],
        &[0xff],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0xff; 8],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ];
    let mut broken = right.to_vec();
    for place in places {
        for number in numbers {
            let number = &number[..number.len().min(right.len() - place)];
            broken[place..place + number.len()].copy_from_slice(number);
            check(&format!("{number:?} at {place}"), &broken, Either);
            broken[place..place + number.len()]
                .copy_from_slice(&right[place..place + number.len()]);
        }
    }
}

/// All faults of a JSON object.
pub(crate) fn json(right: &Value, check: Check) {
    let text = right.to_string();
    let is_structure = |(_, byte): &(usize, u8)| b"{}[]:,\"".contains(byte);
    let ends: Vec<usize> = text
        .bytes()
        .enumerate()
        .filter(is_structure)
        .map(|(at, _)| at)
        .collect();
    let step = ends.len().div_ceil(200);
    cut(text.as_bytes(), ends.into_iter().step_by(step), check);
    for other in ["null", "7", "\"text\"", "true"] {
        check("another value", other.as_bytes(), Refused);
    }
    for tail in ["}", ",", "{}", "\0"] {
        check(
            "text behind its end",
            (text.clone() + tail).as_bytes(),
            Refused,
        );
    }
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = open.repeat(100_000) + "0" + &close.repeat(100_000);
        check("nested", deep.as_bytes(), Refused);
        check(
            "nested without an end",
            open.repeat(100_000).as_bytes(),
            Refused,
        );
    }
    for path in paths(right) {
        values_at(right, &path, check);
    }
    large_values(right, check);
}

/// The keys of a JSON object and of those in it, and the first place of its arrays.
fn paths(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object
            .iter()
            .take(20)
            .map(|(key, v)| (key.clone(), v))
            .collect(),
        Value::Array(array) => array.iter().take(1).map(|v| ("0".to_owned(), v)).collect(),
        _ => Vec::new(),
    };
    let mut found = Vec::new();
    for (key, child) in children {
        let key = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
        found.extend(paths(child).into_iter().map(|path| key.clone() + &path));
        found.push(key);
    }
    found
}

/// Everything that can stand in a key's place, and the key missing, twice, and not UTF-8.
fn values_at(right: &Value, path: &str, check: Check) {
    const MARK: &str = "\u{1}mark\u{1}";
    let quoted_mark = json!(MARK).to_string();
    let (parent, key) = path.rsplit_once('/').expect("paths begin so");
    let mut missing = right.clone();
    if let Some(Value::Object(object)) = missing.pointer_mut(parent) {
        object.remove(&key.replace("~1", "/").replace("~0", "~"));
        check(
            &format!("no {path}"),
            missing.to_string().as_bytes(),
            Either,
        );
    }
    let mut marked = right.clone();
    *marked.pointer_mut(path).expect("a path of its own") = json!(MARK);
    let marked = marked.to_string();
    let mut put = |name: &str, value: &[u8]| {
        let (before, after) = marked.split_once(&quoted_mark).expect("it is there");
        let broken = [before.as_bytes(), value, after.as_bytes()].concat();
        check(&format!("{name} at {path}"), &broken, Either);
    };
    for value in [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e300",
        "4294967296",
        "18446744073709551615",
        "18446744073709551616",
        "\"\"",
        "\"text\"",
        "[]",
        "{}",
        "[[]]",
        "[0,0,0,0,0]",
        "{\"a\":0}",
        "\"\\ud800\"",
        "\"\\u0000\"",
    ] {
        put(value, value.as_bytes());
    }
    put("invalid UTF-8", b"\"\xc3\x28\"");
    let value = right.pointer(path).expect("a path of its own");
    put(
        "a twin",
        format!("{value},{}:{value}", json!(key)).as_bytes(),
    );
    put(
        "nested",
        ("[".repeat(50_000) + &"]".repeat(50_000)).as_bytes(),
    );
}

/// What is short in a file and long in memory, in the place of each key of the object itself.
fn large_values(right: &Value, check: Check) {
    let list = |element: &str, n: usize| format!("[{}]", vec![element; n].join(","));
    let pairs: Vec<String> = (0..50_000).map(|i| format!("\"{i}\":0")).collect();
    // As many values as are read as a whole.
    let values = [
        list("0", 100_000),
        list("[]", 60_000),
        list("\"\"", 100_000),
        format!("{{{}}}", pairs.join(",")),
        format!("\"{}\"", "\\n".repeat(1 << 19)),
    ];
    for key in right.as_object().expect("an object").keys().take(12) {
        for value in &values {
            let mut object = right.clone();
            object.as_object_mut().expect("an object").remove(key);
            let rest = object.to_string();
            let rest = rest.trim_start_matches('{');
            let comma = if rest == "}" { "" } else { "," };
            let broken = format!("{{{}:{value}{comma}{rest}", json!(key));
            check(&format!("many values at {key}"), broken.as_bytes(), Either);
        }
    }
    for element in ["0", "[]", "{\"a\":0}"] {
        check("many values", list(element, 300_000).as_bytes(), Refused);
    }
}
