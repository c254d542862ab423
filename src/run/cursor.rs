//! A cursor that follows rows as llama.cpp hands them out.

use std::fmt;

use crate::{Error, Result, Token};

/// Follows the rows of a decode: submitted in a batch, seen at each hooked place in ubatches of any size.
///
/// llama.cpp does not say which rows a ubatch holds. With one cache for all sequences it keeps their
/// order, so counting is enough, and [`Cursor::finish`] proves after each decode that nothing was
/// missed or seen twice.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    rows: Vec<Row>,
    n_seen: Vec<usize>, // at each place
}

/// A row that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The sequence that it belongs to.
    pub(crate) sequence: usize,
    /// Its place in the prompt; not looked at where it was generated.
    pub(crate) prompt_idx: usize,
    /// What it is.
    pub(crate) token: Token,
}

impl Cursor {
    /// Announces the rows of the next decode, which `n_places` are to see.
    pub(crate) fn submit(&mut self, rows: impl IntoIterator<Item = Row>, n_places: usize) {
        self.rows.clear();
        self.rows.extend(rows);
        self.n_seen.clear();
        self.n_seen.resize(n_places, 0);
    }

    /// Takes the next `n_rows` rows at a place.
    ///
    /// # Errors
    /// When more rows come than were announced.
    pub(crate) fn advance(&mut self, place: usize, n_rows: usize) -> Result<&[Row]> {
        let Some(n_seen) = self.n_seen.get_mut(place) else {
            return Err(Error::invalid("a hook saw rows where none were announced"));
        };
        let start = *n_seen;
        let end = start + n_rows;
        if end > self.rows.len() {
            return Err(Error::invalid(format!(
                "the hook saw row {} of {} submitted rows",
                end - 1,
                self.rows.len()
            )));
        }
        *n_seen = end;
        Ok(&self.rows[start..end])
    }

    /// The last `n_rows` rows, which are those that need logits.
    ///
    /// # Errors
    /// When more rows come than were announced.
    pub(crate) fn last(&self, n_rows: usize) -> Result<&[Row]> {
        let n_submitted = self.rows.len();
        let first = n_submitted.checked_sub(n_rows).ok_or_else(|| {
            Error::invalid(format!(
                "the hook saw {n_rows} of {n_submitted} submitted rows"
            ))
        })?;
        Ok(&self.rows[first..])
    }

    /// Checks that a place saw every announced row.
    ///
    /// # Errors
    /// When rows are missing: the graph has no such node, or llama.cpp left rows out.
    pub(crate) fn finish(&self, place: usize, node: impl fmt::Display) -> Result<()> {
        if self.n_seen[place] == self.rows.len() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the hook at {node} saw {} of {} submitted rows",
            self.n_seen[place],
            self.rows.len()
        ))
        .with_hint("this model's graph does not show its rows there"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Row};
    use crate::Token;

    #[test]
    fn rows_are_followed_across_ubatches() {
        let mut cursor = Cursor::default();
        let row = |sequence, token| Row {
            sequence,
            prompt_idx: 0,
            token,
        };
        let rows = [
            row(0, Token::text(2)),
            row(0, Token::image()),
            row(1, Token::image()),
        ];
        cursor.submit(rows, 2);
        assert_eq!(cursor.advance(0, 1).expect("a row is left"), &rows[..1]);
        assert!(cursor.finish(0, "l_out-0").is_err());
        assert_eq!(cursor.advance(1, 3).expect("another place"), &rows);
        assert_eq!(cursor.advance(0, 2).expect("two rows are left"), &rows[1..]);
        assert!(cursor.finish(0, "l_out-0").is_ok() && cursor.finish(1, "l_out-1").is_ok());
        assert!(cursor.advance(0, 1).is_err() && cursor.advance(2, 1).is_err());
    }
}
