//! What a guest writes for people: log messages, standard output and standard error.
//!
//! All of it becomes log lines of the host under the deployment's name, within a budget per call of the guest.

use parking_lot::Mutex;

use super::bindings::Level;
use super::{Identity, MESSAGE_BYTES_MAX};

/// What one message costs beyond its text, so that empty ones do not come for free.
const MESSAGE_COST: usize = 64;

/// A stream of the guest's that is split into lines.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Out,
    Err,
}

impl Stream {
    fn level(self) -> Level {
        match self {
            Self::Out => Level::Info,
            Self::Err => Level::Warn,
        }
    }
}

/// The log output of one instance.
#[derive(Debug)]
pub(super) struct Output {
    identity: Identity,
    bytes_max: usize,
    /// Locked by the guest's thread alone; the lock exists because WASI streams are handed out as shared objects.
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes_left: usize,
    dropped: u64,
    /// Unfinished lines of standard output and standard error.
    lines: [Vec<u8>; 2],
}

impl Output {
    pub(super) fn new(identity: Identity, bytes_max: usize) -> Self {
        let pending = Pending { bytes_left: bytes_max, ..Pending::default() };
        Self { identity, bytes_max, pending: Mutex::new(pending) }
    }

    /// The budget begins anew.
    pub(super) fn begin(&self) {
        self.pending.lock().bytes_left = self.bytes_max;
    }

    /// Writes unfinished lines, and says once how much was dropped.
    pub(super) fn end(&self) {
        let mut pending = self.pending.lock();
        for stream in [Stream::Out, Stream::Err] {
            let line = std::mem::take(&mut pending.lines[stream as usize]);
            if !line.is_empty() {
                self.spend(&mut pending, stream.level(), &String::from_utf8_lossy(&line));
            }
        }
        let dropped = std::mem::take(&mut pending.dropped);
        drop(pending);
        if dropped > 0 {
            tracing::warn!(
                target: "foldstream::guest",
                deployment = self.identity.deployment,
                generation = self.identity.generation,
                dropped,
                "the module logged too much in one call: the rest was dropped"
            );
        }
    }

    /// Writes one message.
    pub(super) fn write(&self, level: Level, message: &str) {
        self.spend(&mut self.pending.lock(), level, message);
    }

    /// Takes a piece of a stream, and writes the lines that it completes.
    pub(super) fn write_stream(&self, stream: Stream, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = &mut pending.lines[stream as usize];
            let room = MESSAGE_BYTES_MAX - line.len();
            line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(line);
                self.spend(&mut pending, stream.level(), String::from_utf8_lossy(&line).trim_end());
            }
        }
    }

    fn spend(&self, pending: &mut Pending, level: Level, message: &str) {
        let message = clipped(message, MESSAGE_BYTES_MAX);
        match pending.bytes_left.checked_sub(message.len() + MESSAGE_COST) {
            Some(left) => pending.bytes_left = left,
            None => {
                pending.bytes_left = 0;
                pending.dropped += 1;
                return;
            }
        }
        let Identity { deployment, generation } = &self.identity;
        match level {
            Level::Debug => tracing::debug!(target: "foldstream::guest", deployment, generation, "{message}"),
            Level::Info => tracing::info!(target: "foldstream::guest", deployment, generation, "{message}"),
            Level::Warn => tracing::warn!(target: "foldstream::guest", deployment, generation, "{message}"),
            Level::Error => tracing::error!(target: "foldstream::guest", deployment, generation, "{message}"),
        }
    }
}

/// The longest beginning of a text that fits, without splitting a character.
pub(super) fn clipped(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
