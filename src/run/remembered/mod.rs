//! Prompts that were read are remembered, piece by piece: what the rows of a graph gave, so that the next run
//! with the same beginning computes only what it changes.

mod file;
mod key;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::file_cache::FileCache;
use crate::llama::RecordedGraph;

pub(crate) use self::key::PieceKey;

const EXTENSION: &str = "prompt-piece";

/// What reading a piece of a prompt gave, the rows of one graph.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) graph: Arc<RecordedGraph>,
    /// The logits after its last row, `[n_vocab]`; empty where the prompt does not end there, or the graph is not
    /// kept to its end.
    pub(crate) logits: Vec<f32>,
}

impl Piece {
    fn n_bytes(&self) -> usize {
        self.graph.n_bytes() + size_of_val(&self.logits[..])
    }
}

/// Prompts that were read, in memory and on the disk, for all engines and models that are given it. Clones
/// are the same store.
///
/// What is kept of a prompt is what its blocks gave below the lowest place that a run edits, or all blocks where
/// it edits none of the prompt's rows; and that for each piece of it, which is known by all that it depends on,
/// the rows before it among them. So prompts share their beginnings, and runs of one differ in where they
/// go on. What is damaged, of another version or of other kernels counts as missing. No result depends on what is
/// in the store, to the bit.
#[derive(Clone)]
pub struct PromptStore(Arc<Store>);

struct Store {
    memory: Mutex<Memory>,
    disk: Option<FileCache>,
    max_bytes: usize,
}

/// What is in memory; what was used longest ago goes first.
#[derive(Default)]
struct Memory {
    pieces: HashMap<PieceKey, Kept>,
    n_bytes: usize,
    n_uses: u64,
}

struct Kept {
    piece: Arc<Piece>,
    last_use: u64,
}

impl PromptStore {
    /// A store of at most `max_bytes` in memory.
    pub fn in_memory(max_bytes: usize) -> Self {
        Self::with(None, max_bytes)
    }

    /// A store of at most `max_bytes` in memory and as many in `dir`, which is made when something is kept.
    pub fn new(dir: PathBuf, max_bytes: usize) -> Self {
        Self::with(
            Some(FileCache::new(dir, EXTENSION, max_bytes as u64)),
            max_bytes,
        )
    }

    /// A store with the user's cache folder; in memory alone where the system has none.
    pub fn of_user(max_bytes: usize) -> Self {
        Self::with(
            FileCache::of_user("prompts", EXTENSION, max_bytes as u64),
            max_bytes,
        )
    }

    fn with(disk: Option<FileCache>, max_bytes: usize) -> Self {
        Self(Arc::new(Store {
            memory: Mutex::default(),
            disk,
            max_bytes,
        }))
    }

    /// Another store, as large in memory, for a run through many pictures: they would push out of the disk
    /// what is asked again and again.
    #[must_use]
    pub fn without_disk(&self) -> Self {
        Self::in_memory(self.0.max_bytes)
    }

    /// What it holds at most, in memory and on the disk each.
    pub fn max_bytes(&self) -> usize {
        self.0.max_bytes
    }

    /// The memory that it takes now.
    pub fn n_bytes(&self) -> usize {
        self.memory().n_bytes
    }

    /// Forgets what is in memory.
    pub fn clear_memory(&self) {
        *self.memory() = Memory::default();
    }

    pub(crate) fn get(&self, key: &PieceKey) -> Option<Arc<Piece>> {
        if let Some(piece) = self.memory().get(key) {
            return Some(piece);
        }
        let disk = self.0.disk.as_ref()?;
        let bytes = disk.get(key.hash(), self.0.max_bytes as u64)?;
        let piece = file::read(key, &bytes).map(Arc::new);
        if piece.is_none() {
            log::debug!(
                "`{}` is not what it should be",
                disk.path(key.hash()).display()
            );
        }
        let piece = piece?;
        self.memory()
            .put(*key, Arc::clone(&piece), self.0.max_bytes);
        Some(piece)
    }

    pub(crate) fn put(&self, key: PieceKey, piece: Arc<Piece>) {
        if let Some(disk) = &self.0.disk {
            match file::write(&key, &piece) {
                Ok(bytes) => disk.put(key.hash(), &bytes),
                Err(error) => log::debug!("a prompt is not kept on the disk: {error}"),
            }
        }
        self.memory().put(key, piece, self.0.max_bytes);
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        let memory = self.0.memory.lock();
        memory.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PromptStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Store {
            disk, max_bytes, ..
        } = &*self.0;
        f.debug_struct("PromptStore")
            .field("disk", disk)
            .field("max_bytes", max_bytes)
            .finish_non_exhaustive()
    }
}

impl Memory {
    fn get(&mut self, key: &PieceKey) -> Option<Arc<Piece>> {
        self.n_uses += 1;
        let kept = self.pieces.get_mut(key)?;
        kept.last_use = self.n_uses;
        Some(Arc::clone(&kept.piece))
    }

    fn put(&mut self, key: PieceKey, piece: Arc<Piece>, max_bytes: usize) {
        self.remove(&key);
        let n_bytes = piece.n_bytes();
        if n_bytes > max_bytes {
            return;
        }
        while self.n_bytes + n_bytes > max_bytes {
            let oldest = self.pieces.iter().min_by_key(|(_, kept)| kept.last_use);
            let oldest = *oldest.expect("what takes memory is there").0;
            self.remove(&oldest);
        }
        self.n_uses += 1;
        self.n_bytes += n_bytes;
        let last_use = self.n_uses;
        self.pieces.insert(key, Kept { piece, last_use });
    }

    fn remove(&mut self, key: &PieceKey) {
        if let Some(kept) = self.pieces.remove(key) {
            self.n_bytes -= kept.piece.n_bytes();
        }
    }
}
