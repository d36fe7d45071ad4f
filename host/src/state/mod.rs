//! State: one ordered map per generation, a memtable over a redb file.
//!
//! The applying thread owns the [`Writer`]. Its writes become visible to
//! [`Snapshot`]s as one step per batch. From time to time they become durable,
//! together with the checkpoint, in one commit of the file. Nothing here knows
//! of Wasm or of sources.

mod agreed_timers;
pub mod catalogue;
mod changes;
mod copy;
pub mod exceptions;
mod file;
mod hand_over;
pub mod inbox;
mod known;
mod marks;
mod memtable;
mod opening;
mod order;
pub mod outbox;
mod parked;
mod places;
mod reads;
mod releases;
mod reserve;
mod scan;
mod snapshot;
mod store;
pub mod tables;
mod timers;
mod trace;
mod waiting;
mod writer;
mod writes;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::task::JoinError;

use crate::atomic_file::Displaced;
use crate::event::Payload;
use crate::memory::{self, Memory};
use crate::{room, storage};

pub use agreed_timers::{Agreed, Agreement};
pub use copy::{Conversion, copy, map};
pub use file::{FORMAT, FORMAT_OWNED, SETTLED, check, compact};
pub use hand_over::{Copied, Prepared};
pub use marks::Mark;
pub use outbox::{Delayed, Ownership, Waiting, create_owned};
pub use parked::{Parked, ParkedCounts, ParkedFailure, ParkedKey, ReadEntry};
pub use reads::{Noted, Reads};
pub use releases::Release;
pub use snapshot::{Pages, Snapshot};
pub use store::Store;
pub use timers::Due;
pub use trace::{Call, Scanned, Trace, Traced};
pub use waiting::RefusedKeys;
pub(crate) use writer::Notes;
pub use writer::{Patch, Replaced, Writer};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Most entries on one page of a scan.
pub const SCAN_ENTRIES_MAX: usize = 10_000;
/// Size at which a page of a scan ends, in bytes.
pub const SCAN_BYTES_MAX: usize = 1 << 20;

/// A key. Cloning shares the memory.
pub type Key = Arc<str>;

/// Why state refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A limit was reached; its name comes first.
    #[error("{limit}: {message}")]
    Limit {
        /// Name of the limit, such as `state-bytes`.
        limit: &'static str,
        /// What happened, and what to do.
        message: String,
    },
    /// A migration refused entries.
    #[error("{0}")]
    Refused(String),
    /// The file can't be used.
    #[error("cannot open state: {0}")]
    Open(#[source] storage::Error),
    /// Another process has the file open.
    #[error("cannot open state: {0}")]
    InUse(#[source] storage::Error),
    /// The deadline has passed.
    #[error("the scan took too long")]
    Late,
    /// The host has too little memory; nothing failed.
    #[error(transparent)]
    Busy(#[from] memory::Shortage),
    /// The disk has too little room; nothing was begun, and nothing failed.
    #[error(transparent)]
    Full(#[from] room::Shortage),
    /// The file is no longer in its place; nothing was begun.
    #[error(transparent)]
    Displaced(#[from] Displaced),
    /// The data in the file is inconsistent: reopening it will not help.
    #[error("state is damaged: {0}")]
    Damaged(#[source] storage::Error),
    /// The disk or the file failed; the store must be reopened.
    #[error("state failed: {0}")]
    Storage(#[source] storage::Error),
}

impl Error {
    /// Content that does not make sense; the text says what, and what to do.
    pub(crate) fn damaged(text: impl Into<String>) -> Self {
        Self::Damaged(storage::Error::new(text))
    }
}

/// The result of a task that works on a state. One that ended without a result, by a panic or with
/// its runtime, has failed.
pub(crate) fn joined<T>(outcome: Result<Result<T, Error>, JoinError>) -> Result<T, Error> {
    outcome.unwrap_or_else(|error| Err(Error::Storage(storage::Error::of(error))))
}

/// Options of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cache of the file, in bytes.
    pub cache_bytes: usize,
    /// Largest value, in bytes.
    pub value_bytes_max: usize,
    /// Largest sum of keys and values, in bytes.
    pub state_bytes_max: u64,
    /// Largest file, in bytes; it is not enforced here, as a file only grows by commits
    /// ([`Store::file_excess`]).
    pub file_bytes_max: u64,
    /// Most effects that wait in the outbox before nothing more is applied.
    pub outbox_entries_max: u64,
    /// Most bytes of them.
    pub outbox_bytes_max: u64,
    /// Most timers that are pending.
    pub timers_pending_max: u64,
    /// From this many timers in a row on, each of which set the next for at once, they are a loop.
    pub timers_in_a_row_max: u32,
    /// The source of memory for a running batch.
    pub memory: Memory,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            value_bytes_max: 1 << 20,
            state_bytes_max: 64 << 30,
            file_bytes_max: u64::MAX,
            outbox_entries_max: 100_000,
            outbox_bytes_max: 256 << 20,
            timers_pending_max: 10_000_000,
            timers_in_a_row_max: 1_000,
            memory: Memory::unlimited(),
        }
    }
}

/// The keys that a scan covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selection {
    /// Keys that begin with this prefix.
    Prefix(String),
    /// Keys from `start` (inclusive) to `end` (exclusive).
    Range {
        /// First key; none begins at the first key of the state.
        start: Option<String>,
        /// End; none ends after the last key.
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

/// A scan: its selection, start, order and limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The keys that it covers.
    pub selection: Selection,
    /// Start after this key, in the direction of the scan.
    pub after: Option<String>,
    /// Its order.
    pub direction: Direction,
    /// Most entries; at most [`SCAN_ENTRIES_MAX`].
    pub limit: usize,
}

/// One page of a scan's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Entries in the order of the scan.
    pub entries: Vec<(Key, Payload)>,
    /// Whether the selection has more entries after these.
    pub more: bool,
}

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Keys and values, in bytes; too high by the values that keys in memory replace in the file.
    pub state_bytes: u64,
    /// The part of them that is only in memory, including overhead, in bytes.
    pub memtable_bytes: u64,
    /// Memory held only by readers of older states, in bytes.
    pub pinned_bytes: u64,
    /// Allocated disk space of the file, in bytes.
    pub file_bytes: u64,
}
