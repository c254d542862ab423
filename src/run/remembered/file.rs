//! The form of a piece on the disk: tensors of `safetensors`, and what they are in its metadata.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{Piece, PieceKey};
use crate::llama::{CacheWrite, NodePlace, RecordedGraph, RecordedNode};
use crate::{Error, Result};

const METADATA: &str = "piece";

/// What the tensors are.
#[derive(Serialize, Deserialize)]
struct Metadata {
    /// To be raised whenever the form changes.
    format: u32,
    key: String,
    n_cache_writes: usize,
    nodes: Vec<NodePlace>,
    is_whole: bool,
}

const FORMAT: u32 = 1;

fn write_name(idx: usize) -> String {
    format!("cache_write.{idx}")
}

fn node_name(idx: usize) -> String {
    format!("node.{idx}")
}

const LOGITS: &str = "logits";

/// A piece as bytes.
///
/// # Errors
/// When `safetensors` refuses.
pub(super) fn write(key: &PieceKey, piece: &Piece) -> Result<Vec<u8>> {
    let Piece { graph, logits } = piece;
    let metadata = Metadata {
        format: FORMAT,
        key: key.hash().to_hex().to_string(),
        n_cache_writes: graph.cache_writes.len(),
        nodes: graph.nodes.iter().map(|node| node.at.clone()).collect(),
        is_whole: graph.is_whole,
    };
    let floats = |values: &[f32]| -> (Dtype, Vec<u8>) {
        let bytes = values.iter().copied().flat_map(f32::to_le_bytes);
        (Dtype::F32, bytes.collect())
    };
    let mut tensors = vec![(LOGITS.to_owned(), floats(logits))];
    for (idx, write) in graph.cache_writes.iter().enumerate() {
        let stored = match write {
            CacheWrite::F16(values) => {
                let bytes = values.iter().copied().flat_map(f16::to_le_bytes);
                (Dtype::F16, bytes.collect())
            }
            CacheWrite::Bytes(bytes) => (Dtype::U8, bytes.clone()),
        };
        tensors.push((write_name(idx), stored));
    }
    for (idx, node) in graph.nodes.iter().enumerate() {
        tensors.push((node_name(idx), floats(&node.rows)));
    }
    let refused = |error: safetensors::SafeTensorError| Error::invalid(error.to_string());
    let views = tensors.iter().map(|(name, (dtype, bytes))| {
        let n_values = bytes.len() * 8 / dtype.bitsize();
        let view = TensorView::new(*dtype, vec![n_values], bytes);
        view.map(|view| (name, view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>();
    let metadata =
        serde_json::to_string(&metadata).map_err(|error| Error::invalid(error.to_string()))?;
    let metadata = HashMap::from([(METADATA.to_owned(), metadata)]);
    safetensors::serialize(views.map_err(refused)?, Some(metadata)).map_err(refused)
}

/// The piece of `key` in these bytes, if it is one.
pub(super) fn read(key: &PieceKey, bytes: &[u8]) -> Option<Piece> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = header.metadata().as_ref()?.get(METADATA)?;
    let metadata: Metadata = serde_json::from_str(metadata).ok()?;
    if metadata.format != FORMAT || metadata.key != key.hash().to_hex().as_str() {
        return None;
    }
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let floats = |name: &str| -> Option<Vec<f32>> {
        let tensor = tensors.tensor(name).ok()?;
        let values = tensor.data().as_chunks().0.iter().copied();
        (tensor.dtype() == Dtype::F32).then(|| values.map(f32::from_le_bytes).collect())
    };
    let cache_write = |idx: usize| {
        let tensor = tensors.tensor(&write_name(idx)).ok()?;
        match tensor.dtype() {
            Dtype::F16 => {
                let values = tensor.data().as_chunks().0.iter().copied();
                Some(CacheWrite::F16(values.map(f16::from_le_bytes).collect()))
            }
            Dtype::U8 => Some(CacheWrite::Bytes(tensor.data().to_vec())),
            _ => None,
        }
    };
    let node = |(idx, at): (usize, NodePlace)| {
        let rows = floats(&node_name(idx))?;
        Some(RecordedNode { at, rows })
    };
    Some(Piece {
        graph: Arc::new(RecordedGraph {
            cache_writes: (0..metadata.n_cache_writes)
                .map(cache_write)
                .collect::<Option<_>>()?,
            nodes: metadata
                .nodes
                .into_iter()
                .enumerate()
                .map(node)
                .collect::<Option<_>>()?,
            is_whole: metadata.is_whole,
        }),
        logits: floats(LOGITS)?,
    })
}
