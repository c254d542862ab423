//! `tokenizer.model`: a SentencePiece model, which is one protobuf message.
//!
//! The messages are those of `sentencepiece_model.proto`, with the fields that matter here.

use std::path::Path;

use prost::Message;

use super::pieces::{Joins, MAX_FILE_BYTES, Pieces, Token, TokenKind};
use crate::{Error, Result, input_file};

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<SentencePiece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct SentencePiece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// `TrainerSpec.ModelType.BPE`; the format's default is 1, unigram.
const BPE: i32 = 2;

/// The model without what is in the pieces: a piece of two bytes takes 40 in memory.
#[derive(Clone, PartialEq, Message)]
struct PieceCount {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<()>,
}

/// Reads the pieces, of which there may be `max_tokens`, with their scores and kinds.
///
/// # Errors
/// A malformed file, a model that is not BPE or has more pieces, and a piece of an unknown kind or with a score that is
/// not finite.
pub(super) fn read(path: &Path, max_tokens: usize) -> Result<Pieces> {
    let bytes = input_file::read(path, MAX_FILE_BYTES)?;
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    let malformed = |error| refuse(format!("not a SentencePiece model: {error}"));
    let n_pieces = PieceCount::decode(bytes.as_slice())
        .map_err(malformed)?
        .pieces
        .len();
    if n_pieces > max_tokens {
        return Err(refuse(format!(
            "it has {n_pieces} tokens, but the embedding has only {max_tokens} rows"
        )));
    }
    let model = ModelProto::decode(bytes.as_slice()).map_err(malformed)?;
    let model_type = model
        .trainer_spec
        .and_then(|spec| spec.model_type)
        .unwrap_or(1);
    if model_type != BPE {
        return Err(refuse(format!(
            "the model type is {model_type}, expected {BPE} (BPE)"
        )));
    }
    let tokens = model
        .pieces
        .into_iter()
        .enumerate()
        .map(|(id, piece)| {
            let kind = match piece.kind.unwrap_or(1) {
                1 => TokenKind::Normal,
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                4 => TokenKind::UserDefined,
                5 => TokenKind::Unused,
                6 => TokenKind::Byte,
                other => return Err(refuse(format!("piece {id} is of the unknown kind {other}"))),
            };
            let score = piece.score.unwrap_or(0.0);
            if !score.is_finite() {
                return Err(refuse(format!("piece {id} has the score {score}")));
            }
            Ok(Some(Token {
                piece: piece.piece.unwrap_or_default(),
                score,
                kind,
            }))
        })
        .collect::<Result<_>>()?;
    Ok(Pieces {
        tokens,
        joins: Joins::Scores {
            add_space_prefix: model
                .normalizer_spec
                .and_then(|spec| spec.add_dummy_prefix)
                .unwrap_or(true),
        },
    })
}
