//! The words, what they say of rows, and what is refused.

use proptest::collection::vec;
use proptest::prelude::*;

use super::Positions;
use crate::token::{Kinds, Token};

/// A position of each kind.
const TOKENS: [Token; 4] = [
    Token::text(5),
    Token::special(2),
    Token::image(),
    Token::generated(5),
];

fn parse(words: &str) -> Positions {
    Positions::parse(words).expect("valid positions")
}

#[test]
fn positions_are_sets_of_kinds() {
    let check = |words: &str, expected: &[Token], shown: &str| {
        let positions = parse(words);
        let rows = positions.rows(&TOKENS).expect("kinds are always there");
        for (i, token) in TOKENS.into_iter().enumerate() {
            let is_expected = expected.contains(&token);
            assert_eq!(rows.contain(i, token), is_expected, "{words}");
            assert_eq!(positions.kinds().contain(token), is_expected, "{words}");
        }
        assert_eq!(positions.to_string(), shown);
        assert_eq!(parse(shown), positions);
    };
    let [text, special, image, generated] = TOKENS;
    check("all", &TOKENS, "all");
    check("image", &[image], "image");
    check("prompt", &[text, special], "prompt");
    check("generated, image", &[image, generated], "image,generated");
    check("special", &[special], "special");
    check("special,image", &[special, image], "image,special");
    check("prompt,no-special", &[text], "prompt,no-special");
    check(
        "no-special,all",
        &[text, image, generated],
        "all,no-special",
    );
    check("image,no-special", &[image], "image");
    for bad in [
        "",
        "images",
        "no-special",
        "image,",
        "5..",
        "..5",
        "5...9",
        "1.5",
        "token:",
        "token: ",
        "image:",
        "image:0",
        "image:-1",
        "image:1..2",
        "patch:1",
        "patch:1,",
        "patch:-1,2",
        "patch:2..1,0",
        "patch:1,2..",
        "last,,5",
    ] {
        assert!(Positions::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn kinds_overlap_where_they_share_one() {
    let check = |a: &str, b: &str, expected: bool| {
        let [first, second] = [a, b].map(|words| parse(words).kinds());
        assert_eq!(first.overlap(second), expected, "{a} and {b}");
    };
    check("all", "prompt", true);
    check("image,generated", "generated", true);
    check("image,generated", "prompt", false);
    check("prompt", "special", true);
    check("prompt,no-special", "special", false);
}

/// `<bos>`, an image of 2 by 3 patches, and three tokens of text.
fn prompt() -> Vec<Token> {
    let patches = (0..6).map(|i| Token::patch(i / 3, i % 3));
    let text = [7, 8, 7].map(Token::text);
    let bos = std::iter::once(Token::special(2));
    bos.chain(patches).chain(text).collect()
}

/// Texts of a vocabulary.
fn ids_of(text: &str) -> Vec<i32> {
    match text {
        "dog" => vec![7, 70],
        "cat" => vec![8],
        "<bos>" => vec![2],
        _ => Vec::new(),
    }
}

fn looked_up(words: &str) -> crate::Result<Positions> {
    let mut positions = Positions::parse(words)?;
    positions.find_tokens(|text| Ok(ids_of(text)))?;
    Ok(positions)
}

#[test]
fn places_are_rows_of_the_prompt() {
    let prompt = prompt();
    let check = |words: &str, expected: &[usize], generated: &[i32]| {
        let positions = looked_up(words).expect(words);
        assert_eq!(positions.to_string(), words);
        let rows = positions.rows(&prompt).expect(words);
        for (i, &token) in prompt.iter().enumerate() {
            let is_in = rows.contain(i, token);
            assert_eq!(is_in, expected.contains(&i), "{words}, row {i}");
            assert!(
                !is_in || positions.possible_kinds().contain(token),
                "{words}"
            );
        }
        for id in [2, 7, 8, 70] {
            let is_in = rows.contain(0, Token::generated(id));
            assert_eq!(is_in, generated.contains(&id), "{words}, generated {id}");
            assert!(!is_in || positions.possible_kinds().generated, "{words}");
        }
    };
    check("last", &[9], &[]);
    check("5", &[5], &[]);
    check("0", &[0], &[]);
    check("-1", &[9], &[]);
    check("-10", &[0], &[]);
    check("5..9", &[5, 6, 7, 8, 9], &[]);
    check("-3..-2", &[7, 8], &[]);
    check("8..-1", &[8, 9], &[]);
    check("token:dog", &[7, 9], &[7, 70]);
    check("token:cat", &[8], &[8]);
    check("token:<bos>", &[0], &[2]);
    check("patch:0,0", &[1], &[]);
    check("patch:1,2", &[6], &[]);
    check("patch:0..1,1", &[2, 5], &[]);
    check("patch:1,0..2", &[4, 5, 6], &[]);
    check("patch:0..1,1..2", &[2, 3, 5, 6], &[]);
    check("image:1", &[1, 2, 3, 4, 5, 6], &[]);
    check("generated,patch:0,0,last", &[1, 9], &[2, 7, 8, 70]);
    check("image,0,token:cat", &[0, 1, 2, 3, 4, 5, 6, 8], &[8]);
    check(
        "prompt,no-special,patch:0,2,patch:0,0",
        &[1, 3, 7, 8, 9],
        &[],
    );
}

#[test]
fn images_are_counted_from_one() {
    let mut prompt = prompt();
    let second = [Token::patch(0, 0).of_image(1), Token::image().of_image(1)];
    prompt.splice(8..8, second);
    let rows = |words: &str| {
        let rows = parse(words).rows(&prompt).expect(words);
        let is_in = |&i: &usize| rows.contain(i, prompt[i]);
        (0..prompt.len()).filter(is_in).collect::<Vec<_>>()
    };
    assert_eq!(rows("image:1"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(rows("image:2"), [8, 9]);
    assert_eq!(rows("image:2,0"), [0, 8, 9]);
    assert_eq!(rows("image"), [1, 2, 3, 4, 5, 6, 8, 9]);
    assert_eq!(rows("patch:0,0"), [1, 8], "of every image");
    let error = parse("image:3").rows(&prompt).expect_err("there are two");
    assert!(
        error
            .to_string()
            .contains("no image 3 in the prompt: it has 2")
    );
    assert_eq!(error.hint(), Some("use `image:1` to `image:2`"));
}

#[test]
fn what_the_prompt_does_not_have_is_refused() {
    let check = |words: &str, prompt: &[Token], said: &str| {
        let positions = looked_up(words).expect(words);
        let error = positions.rows(prompt).expect_err(words);
        assert!(error.to_string().contains(said), "{words}: {error}");
        assert!(error.hint().is_some(), "{words}");
    };
    let whole = prompt();
    check("10", &whole, "no position 10: the prompt has 10 rows");
    check("-11", &whole, "no position -11");
    check("5..10", &whole, "no position 10");
    check("9..5", &whole, "9..5");
    check("-1..0", &whole, "-1..0");
    check("patch:2,0", &whole, "no patch 2,0");
    check("patch:0..1,1..3", &whole, "no patch 1,3");
    check("all,patch:0,0", &whole[7..], "no image");
    check("image:2", &whole, "no image 2 in the prompt: it has one");
    check("image:1", &whole[7..], "it has none");
    assert!(looked_up("token:dogs").is_err(), "no token is that");
    assert!(parse("token:dog").rows(&whole).is_err(), "not looked up");
}

#[test]
fn rows_overlap_where_they_share_one() {
    let prompt = prompt();
    let check = |a: &str, b: &str, expected: bool| {
        let rows = |words| looked_up(words).expect(words).rows(&prompt).expect(words);
        assert_eq!(rows(a).overlap(&rows(b), &prompt), expected, "{a} and {b}");
        assert_eq!(rows(b).overlap(&rows(a), &prompt), expected, "{b} and {a}");
    };
    check("5", "6", false);
    check("5", "4..6", true);
    check("last", "-1", true);
    check("last", "token:dog", true);
    check("8", "token:dog", false);
    check("token:dog", "token:cat", false);
    check("token:dog", "generated", true);
    check("image", "patch:0,0", true);
    check("prompt", "patch:0,0", false);
    check("prompt,no-special", "0", false);
    check("special", "0", true);
}

/// Words of every form.
pub(crate) fn a_word() -> impl Strategy<Value = String> {
    let range = |a: usize, b: usize| match a == b {
        true => a.to_string(),
        false => format!("{}..{}", a.min(b), a.max(b)),
    };
    prop_oneof![
        Just("image".to_owned()),
        Just("prompt".to_owned()),
        Just("special".to_owned()),
        Just("generated".to_owned()),
        Just("last".to_owned()),
        (-20_i64..20).prop_map(|i| i.to_string()),
        (-20_i64..20, -20_i64..20).prop_map(|(a, b)| format!("{a}..{b}")),
        (1_usize..9).prop_map(|number| format!("image:{number}")),
        "[a-z<>. ]{0,3}[a-z:]".prop_map(|text| format!("token:{}", text.trim())),
        (0_usize..9, 0_usize..9, 0_usize..9, 0_usize..9).prop_map(move |(a, b, c, d)| format!(
            "patch:{},{}",
            range(a, b),
            range(c, d)
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What is shown is read as the same.
    #[test]
    fn words_are_read_as_they_are_shown(words in vec(a_word(), 1..6)) {
        let positions = parse(&words.join(","));
        prop_assert_eq!(parse(&positions.to_string()), positions);
    }

    /// Each row of a list is a row of one of its words.
    #[test]
    fn a_list_is_the_union_of_its_words(words in vec(a_word(), 1..6)) {
        let prompt = prompt();
        let of = |words: &str| {
            let mut positions = parse(words);
            positions.find_tokens(|_| Ok(vec![7])).expect("a token");
            positions.rows(&prompt).ok()
        };
        let Some(each) = words.iter().map(|word| of(word)).collect::<Option<Vec<_>>>() else {
            return Ok(()); // a row that there is not
        };
        let together = of(&words.join(",")).expect("each is there");
        for (i, &token) in prompt.iter().enumerate() {
            let is_in = each.iter().any(|rows| rows.contain(i, token));
            prop_assert_eq!(together.contain(i, token), is_in);
        }
    }
}

#[test]
fn kinds_are_positions() {
    assert_eq!(Positions::from(Kinds::ALL), parse("all"));
    assert_eq!(Positions::of(Kinds::IMAGE), parse("image"));
}
