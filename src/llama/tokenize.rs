//! Texts to token ids, of any length.

use llama_cpp_sys_2 as sys;

use super::model::{AddBos, Model};
use super::vocabulary::{Characters, Cuts, too_long};
use crate::{CancelFlag, Error, Result};

/// Texts up to this length, in bytes, are not cut.
const UNCUT: usize = 32 << 10;

impl Model {
    /// Token ids of `text`. Special tokens' texts become those tokens; `add_bos` follows the
    /// vocabulary's own rule for the beginning of a sequence.
    ///
    /// # Errors
    /// Characters that the vocabulary has no token for; a text that is too long and cannot be cut.
    pub fn tokenize(&self, text: &str, add_bos: AddBos) -> Result<Vec<i32>> {
        self.tokenize_until(text, add_bos, &CancelFlag::default())
    }

    /// As [`Model::tokenize`], until it is cancelled.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) besides.
    pub(crate) fn tokenize_until(
        &self,
        text: &str,
        add_bos: AddBos,
        cancel: &CancelFlag,
    ) -> Result<Vec<i32>> {
        let vocab_type = self.piece_type();
        let characters = self
            .vocabulary
            .characters
            .get_or_init(|| Characters::new(vocab_type, self.texts(), || self.special_texts()));
        characters.check(text)?;
        if text.len() <= UNCUT || !self.can_cut() {
            return self.tokenize_at_once(text, add_bos);
        }
        let cuts = self
            .vocabulary
            .cuts
            .get_or_init(|| Cuts::new(vocab_type, self.texts(), self.special_texts()));
        let mut ids = Vec::new();
        // As llama.cpp adds them (`llama_vocab::impl::tokenize`).
        let [begin, end] = self.added_tokens(add_bos);
        ids.extend(begin);
        let mut start = 0;
        while start < text.len() {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let stop = cuts.next(text, start)?;
            // The character in front goes with each part: what llama.cpp adds at the beginning of a
            // text, it adds before that.
            let before = text[..start].char_indices().next_back();
            let before = before.map_or(start, |(place, _)| place);
            let own = self.tokenize_at_once(&text[before..start], AddBos::No)?;
            let part = self.tokenize_at_once(&text[before..stop], AddBos::No)?;
            let part = part.strip_prefix(&own[..]).ok_or_else(too_long)?;
            ids.extend_from_slice(part);
            start = stop;
        }
        ids.extend(end);
        Ok(ids)
    }

    fn can_cut(&self) -> bool {
        matches!(
            self.vocab_type(),
            sys::LLAMA_VOCAB_TYPE_SPM | sys::LLAMA_VOCAB_TYPE_BPE
        )
    }

    /// The texts of all tokens, as the vocabulary stores them.
    fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.token_ids().map(|token| self.token_bytes(token))
    }

    /// Texts that llama.cpp looks for before anything else (`cache_special_tokens`).
    fn special_texts(&self) -> Vec<String> {
        let special = sys::LLAMA_TOKEN_ATTR_CONTROL
            | sys::LLAMA_TOKEN_ATTR_USER_DEFINED
            | sys::LLAMA_TOKEN_ATTR_UNKNOWN;
        let is_special = |token: &i32| self.token_attributes(*token) & special != 0;
        let text = |token: i32| std::str::from_utf8(self.token_bytes(token)).map(str::to_owned);
        let texts = self.token_ids().filter(is_special).flat_map(text);
        texts.filter(|text| !text.is_empty()).collect()
    }
}
