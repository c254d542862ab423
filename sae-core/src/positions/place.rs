//! A place in a run, as words.

use std::fmt;

use crate::token::Kinds;

/// A place in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// The prompt's last row.
    Last,
    /// The prompt's rows from the first to the second, both included; negative ones count from its end.
    Range(i64, i64),
    /// Every token, in the prompt or generated, that has this text, apart from the space around it.
    Token {
        /// The text.
        text: String,
        /// Its tokens' ids; none until they are looked up
        /// ([`Positions::find_tokens`](crate::Positions::find_tokens)).
        ids: Option<Vec<i32>>,
    },
    /// The rows of one of the prompt's images, counted from 1.
    Image(usize),
    /// Image rows, by their patches' rows and columns: the first and the last of each, both included.
    Patches {
        /// The rows, counted from 0 at the top.
        rows: [usize; 2],
        /// The columns, counted from 0 at the left.
        columns: [usize; 2],
    },
}

impl Place {
    /// Reads a place; none where it is something else.
    pub(super) fn parse(word: &str) -> Option<Self> {
        if word == "last" {
            return Some(Self::Last);
        }
        if let Some(text) = word.strip_prefix("token:") {
            let text = text.trim();
            return (!text.is_empty()).then(|| Self::Token {
                text: text.to_owned(),
                ids: None,
            });
        }
        if let Some(number) = word.strip_prefix("image:") {
            let number = number.trim().parse().ok();
            return number.filter(|&number| number > 0).map(Self::Image);
        }
        if let Some(patch) = word.strip_prefix("patch:") {
            let (rows, columns) = patch.split_once(',')?;
            let [rows, columns] = [rows, columns].map(ends::<usize>);
            let is_rising = |ends: &[usize; 2]| ends[0] <= ends[1];
            return Some(Self::Patches {
                rows: rows.filter(is_rising)?,
                columns: columns.filter(is_rising)?,
            });
        }
        let [from, to] = ends(word)?;
        Some(Self::Range(from, to))
    }

    pub(super) fn possible_kinds(&self) -> Kinds {
        let in_prompt = Kinds {
            generated: false,
            ..Kinds::ALL
        };
        match self {
            Self::Last | Self::Range(..) => in_prompt,
            Self::Token { .. } => Kinds {
                image: false,
                ..Kinds::ALL
            },
            Self::Image(_) | Self::Patches { .. } => Kinds::IMAGE,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |[from, to]: [usize; 2]| match from == to {
            true => from.to_string(),
            false => format!("{from}..{to}"),
        };
        match self {
            Self::Last => f.write_str("last"),
            Self::Range(from, to) if from == to => write!(f, "{from}"),
            Self::Range(from, to) => write!(f, "{from}..{to}"),
            Self::Token { text, .. } => write!(f, "token:{text}"),
            Self::Image(number) => write!(f, "image:{number}"),
            Self::Patches { rows, columns } => {
                write!(f, "patch:{},{}", range(*rows), range(*columns))
            }
        }
    }
}

/// A number, or two with `..` between.
fn ends<T: std::str::FromStr>(word: &str) -> Option<[T; 2]> {
    let (from, to) = word.split_once("..").unwrap_or((word, word));
    let number = |text: &str| text.trim().parse().ok();
    Some([number(from)?, number(to)?])
}
