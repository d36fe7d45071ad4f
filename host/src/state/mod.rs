//! State: one ordered map per generation, a memtable over a redb file.
//!
//! The applying thread owns the [`Writer`]. Its writes become visible to
//! [`Snapshot`]s as one step per batch, and durable, together with the
//! checkpoint, in one commit of the file now and then. Nothing here knows of
//! Wasm or of sources.

pub mod catalogue;
mod changes;
mod copy;
pub mod exceptions;
mod file;
mod memtable;
mod reads;
mod scan;
mod snapshot;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::atomic_file::Displaced;
use crate::event::Payload;
use crate::memory::Memory;

pub use copy::{copy, map};
pub use file::{FORMAT, check, compact};
pub use reads::{Noted, Reads};
pub use snapshot::Snapshot;
pub use store::Store;
pub use writer::{Patch, Writer};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Most entries on one page of a scan.
pub const SCAN_ENTRIES_MAX: usize = 10_000;
/// Size at which a page of a scan ends, in bytes.
pub const SCAN_BYTES_MAX: usize = 1 << 20;

/// A key. Cloning shares the memory.
pub type Key = Arc<str>;

/// Why state refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A limit was reached; the name stands first.
    #[error("{limit}: {message}")]
    Limit {
        /// Name of the limit, such as `state-bytes`.
        limit: &'static str,
        /// What was found, and what to do.
        message: String,
    },
    /// Entries could not be mapped to others.
    #[error("{0}")]
    Refused(String),
    /// The file can't be used.
    #[error("cannot open state: {0}")]
    Open(String),
    /// Another process has the file open.
    #[error("cannot open state: {0}")]
    InUse(String),
    /// The time that was given is over.
    #[error("the scan took too long")]
    Late,
    /// There is too little memory on the host; nothing failed.
    #[error("{0}")]
    Busy(String),
    /// There is too little room on the disk; nothing was begun, and nothing failed.
    #[error("{0}")]
    Full(String),
    /// The file is no longer in its place; nothing was begun.
    #[error(transparent)]
    Displaced(#[from] Displaced),
    /// What the file holds makes no sense: the same happens again however often it is opened.
    #[error("state is damaged: {0}")]
    Damaged(String),
    /// The disk or the file failed; the store must be opened again.
    #[error("state failed: {0}")]
    Storage(String),
}

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cache of the file, in bytes.
    pub cache_bytes: usize,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
    /// Largest sum of keys and values, in bytes.
    pub state_bytes_max: u64,
    /// Where the memory of a running batch comes from.
    pub memory: Memory,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 16 << 20, value_bytes_max: 1 << 20, state_bytes_max: 64 << 30, memory: Memory::unlimited() }
    }
}

/// The keys that a scan covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selection {
    /// Keys that begin with this text.
    Prefix(String),
    /// Keys from `start`, included, to `end`, excluded.
    Range {
        /// First key, or the first there is.
        start: Option<String>,
        /// End, or after the last there is.
        end: Option<String>,
    },
}

/// The order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the smallest key up.
    Forwards,
    /// From the largest key down.
    Backwards,
}

/// A scan: what, from where, in which order, how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The keys that it covers.
    pub selection: Selection,
    /// Begin behind this key, in the direction of the scan.
    pub after: Option<String>,
    /// Its order.
    pub direction: Direction,
    /// Most entries; at most [`SCAN_ENTRIES_MAX`].
    pub limit: usize,
}

/// A part of a scan's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Entries in the order of the scan.
    pub entries: Vec<(Key, Payload)>,
    /// Whether the selection goes on after them.
    pub more: bool,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Keys and values, in bytes; too high by what the keys in memory replace in the file.
    pub state_bytes: u64,
    /// The part of them that is in memory only, with its overhead, in bytes.
    pub memtable_bytes: u64,
    /// Memory that only readers of older states hold, in bytes.
    pub pinned_bytes: u64,
    /// The file, in bytes.
    pub file_bytes: u64,
}
