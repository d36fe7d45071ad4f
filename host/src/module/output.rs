//! What a guest writes for people: log messages, standard output and standard error.
//!
//! All of it becomes log lines of the host under the deployment's name, within a budget per guest
//! call and another one per second of the deployment.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::bindings::Level;
use super::{Identity, MESSAGE_BYTES_MAX};

/// Longest explanation of a trap, in bytes.
const WORDS_BYTES_MAX: usize = 1_024;

/// Longest place in such an explanation, in bytes.
const PLACE_BYTES_MAX: usize = 256;

/// Overhead of a message in addition to its text, so that empty messages are not free.
const MESSAGE_COST: usize = 64;

/// Log lines per second that all instances of one deployment may write, and the burst: as many as
/// one call can write.
const LINES_PER_SECOND: f64 = 100.0;
const LINES_AT_ONCE: f64 = 1_024.0;
/// Bytes of these lines per second, and the burst: more than one call may write.
const BYTES_PER_SECOND: f64 = 64.0 * 1024.0;
const BYTES_AT_ONCE: f64 = 4.0 * BYTES_PER_SECOND;
/// While lines are dropped, the log says so this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How much a deployment may log over time: a token bucket that all its instances share.
#[derive(Debug)]
pub(super) struct Flow(Mutex<Tokens>);

#[derive(Debug)]
struct Tokens {
    lines: f64,
    bytes: f64,
    filled_at: Instant,
    /// Dropped lines that were not reported yet.
    dropped: u64,
    logged_at: Option<Instant>,
}

impl Default for Flow {
    fn default() -> Self {
        Self(Mutex::new(Tokens {
            lines: LINES_AT_ONCE,
            bytes: BYTES_AT_ONCE,
            filled_at: Instant::now(),
            dropped: 0,
            logged_at: None,
        }))
    }
}

impl Flow {
    /// Whether it is full, so that a new one would be the same.
    pub(super) fn is_full(&self) -> bool {
        let tokens = self.0.lock();
        // What has flowed in since the last line is only added when the next one is written.
        let filled = tokens.filled_at.elapsed().as_secs_f64();
        tokens.lines + filled * LINES_PER_SECOND >= LINES_AT_ONCE
            && tokens.bytes + filled * BYTES_PER_SECOND >= BYTES_AT_ONCE
    }

    /// Whether a line may be written now; and how many were dropped, if it is time to say so.
    fn take(&self, bytes: usize, now: Instant) -> (bool, Option<u64>) {
        let mut tokens = self.0.lock();
        let elapsed = now
            .saturating_duration_since(tokens.filled_at)
            .as_secs_f64();
        tokens.filled_at = now;
        tokens.lines = (tokens.lines + elapsed * LINES_PER_SECOND).min(LINES_AT_ONCE);
        tokens.bytes = (tokens.bytes + elapsed * BYTES_PER_SECOND).min(BYTES_AT_ONCE);
        let bytes = bytes as f64;
        let passes = tokens.lines >= 1.0 && tokens.bytes >= bytes;
        if passes {
            tokens.lines -= 1.0;
            tokens.bytes -= bytes;
        } else {
            tokens.dropped += 1;
        }
        // A drop that was not reported is carried to the next line, also one that passes.
        let is_due = tokens
            .logged_at
            .is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL);
        if tokens.dropped == 0 || !is_due {
            return (passes, None);
        }
        tokens.logged_at = Some(now);
        (passes, Some(std::mem::take(&mut tokens.dropped)))
    }
}

/// A stream of the guest that is split into lines.
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

impl Pending {
    /// Considers a line as an explanation of a trap.
    fn hear(&mut self, stream: Stream, line: &str) {
        if let Stream::Err = stream {
            self.last_words.take(line);
        }
    }
}

/// The log output of one instance.
#[derive(Debug)]
pub(super) struct Output {
    identity: Identity,
    bytes_max: usize,
    flow: Arc<Flow>,
    /// Locked only by the guest's thread; the lock exists because WASI streams are shared objects.
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes_left: usize,
    dropped: u64,
    /// Unfinished lines of standard output and standard error.
    lines: [Vec<u8>; 2],
    last_words: LastWords,
}

/// The last message of the guest in this call that may explain why it trapped: its panic message,
/// otherwise an error or a line of standard error. The budget of the log does not apply here,
/// because the explanation often comes after much else.
#[derive(Debug, Default)]
struct LastWords {
    text: String,
    is_panic: bool,
    /// The next line is the panic message.
    continues: bool,
    /// The next line has the place of the panic in the module, in the stack that Go prints.
    is_place_next: bool,
    is_placed: bool,
}

impl LastWords {
    /// Considers a message, or a line of standard error.
    fn take(&mut self, line: &str) {
        let message = line.trim();
        if message.is_empty() {
            return;
        }
        // Rust breaks its message after the place: `panicked at src/lib.rs:3:5:`, then the text.
        if std::mem::take(&mut self.continues) {
            self.text = format!("{} {message}", self.text);
            return;
        }
        // How Rust and Go begin what they print when they panic.
        let begin = ["panicked at ", "panic: ", "fatal error: "]
            .iter()
            .filter_map(|begin| message.find(begin))
            .min();
        match begin {
            Some(begin) => {
                // What Go adds if somebody recovered and panicked again.
                let panic = &message[begin..];
                let panic = panic.split(" [recovered").next().unwrap_or(panic);
                self.text = one_line(panic);
                self.is_panic = true;
                self.continues = self.text.starts_with("panicked at ") && self.text.ends_with(':');
            }
            // Notes and backtraces follow a panic.
            None if self.is_panic => self.find_place(line),
            None => self.text = one_line(message),
        }
    }

    /// Adds the place of the innermost function of the module itself. Go prints a line for a
    /// function, and behind it one with its place, which begins with a tab.
    fn find_place(&mut self, line: &str) {
        if self.is_placed {
            return;
        }
        if std::mem::take(&mut self.is_place_next)
            && let Some(place) = line.strip_prefix('\t')
        {
            let place = place.split_whitespace().next().unwrap_or_default();
            let (_, file) = place.rsplit_once('/').unwrap_or_default();
            let file = if file.is_empty() { place } else { file };
            self.text = format!("{} ({})", self.text, clipped(file, PLACE_BYTES_MAX));
            self.is_placed = true;
            return;
        }
        let function = line.strip_prefix("created by ").unwrap_or(line);
        self.is_place_next = function.starts_with("main.");
    }
}

fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    clipped(&lines.join(" "), WORDS_BYTES_MAX).to_owned()
}

impl Output {
    pub(super) fn new(identity: Identity, bytes_max: usize, flow: Arc<Flow>) -> Self {
        let pending = Pending {
            bytes_left: bytes_max,
            ..Pending::default()
        };
        Self {
            identity,
            bytes_max,
            flow,
            pending: Mutex::new(pending),
        }
    }

    /// The budget starts again.
    pub(super) fn begin(&self) {
        let mut pending = self.pending.lock();
        pending.bytes_left = self.bytes_max;
        // A panic of an earlier call does not explain this one.
        pending.last_words = LastWords::default();
    }

    /// The message of a panic in this call, if there was one.
    pub(super) fn panic(&self) -> Option<String> {
        let pending = self.pending.lock();
        pending
            .last_words
            .is_panic
            .then(|| pending.last_words.text.clone())
    }

    /// The last error or line of standard error in this call, if there was one.
    pub(super) fn last_words(&self) -> Option<String> {
        let text = &self.pending.lock().last_words.text;
        (!text.is_empty()).then(|| text.clone())
    }

    /// Writes unfinished lines, and reports once how much was dropped.
    pub(super) fn end(&self) {
        let mut pending = self.pending.lock();
        for stream in [Stream::Out, Stream::Err] {
            // The bytes after the last line break: a guest that traps leaves its last words there.
            let line = std::mem::take(&mut pending.lines[stream as usize]);
            if !line.is_empty() {
                let line = String::from_utf8_lossy(&line);
                pending.hear(stream, &line);
                self.spend(&mut pending, stream.level(), &line);
            }
        }
        let dropped = std::mem::take(&mut pending.dropped);
        // Released before the log is written, which may take its time.
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

    pub(super) fn write(&self, level: Level, message: &str) {
        let mut pending = self.pending.lock();
        if matches!(level, Level::Error) {
            pending.last_words.take(message);
        }
        self.spend(&mut pending, level, message);
    }

    /// Takes a piece of a stream, and writes the lines that it completes.
    pub(super) fn write_stream(&self, stream: Stream, bytes: &[u8]) {
        let mut pending = self.pending.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = &mut pending.lines[stream as usize];
            // A line without an end takes no more than a message may have; what exceeds it is
            // dropped.
            let room = MESSAGE_BYTES_MAX - line.len();
            line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(line);
                let line = String::from_utf8_lossy(&line);
                pending.hear(stream, &line);
                self.spend(&mut pending, stream.level(), line.trim_end());
            }
        }
    }

    fn spend(&self, pending: &mut Pending, level: Level, message: &str) {
        let message = clipped(message, MESSAGE_BYTES_MAX);
        match pending.bytes_left.checked_sub(message.len() + MESSAGE_COST) {
            Some(left) => pending.bytes_left = left,
            None => {
                // Nothing more passes in this call, also no shorter message: gaps in a text would
                // mislead.
                pending.bytes_left = 0;
                pending.dropped += 1;
                return;
            }
        }
        let Identity {
            deployment,
            generation,
        } = &self.identity;
        // Messages below the log level cost nothing.
        if !is_logged(level) {
            return;
        }
        // The budget of the deployment last, so that dropped and unlogged messages do not use it
        // up.
        let (passes, dropped) = self.flow.take(message.len() + MESSAGE_COST, Instant::now());
        if let Some(dropped) = dropped {
            tracing::warn!(
                target: "foldstream::guest",
                deployment,
                generation,
                dropped,
                "the module logs more than {LINES_PER_SECOND} lines or {BYTES_PER_SECOND} bytes \
                 per second: lines are dropped"
            );
        }
        if !passes {
            return;
        }
        // A line break in a message would start a line that looks like the host's own.
        let message = on_one_line(message);
        match level {
            Level::Debug => {
                tracing::debug!(target: "foldstream::guest", deployment, generation, "{message}");
            }
            Level::Info => {
                tracing::info!(target: "foldstream::guest", deployment, generation, "{message}");
            }
            Level::Warn => {
                tracing::warn!(target: "foldstream::guest", deployment, generation, "{message}");
            }
            Level::Error => {
                tracing::error!(target: "foldstream::guest", deployment, generation, "{message}");
            }
        }
    }
}

/// Text with its control characters escaped: it can neither start a line nor control a terminal.
fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| match c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Whether the host's log accepts this level at all.
fn is_logged(level: Level) -> bool {
    match level {
        Level::Debug => tracing::enabled!(target: "foldstream::guest", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "foldstream::guest", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "foldstream::guest", tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: "foldstream::guest", tracing::Level::ERROR),
    }
}

/// The longest prefix of a text that fits, without splitting a character.
pub(super) fn clipped(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_guest_is_one_line_of_the_log() {
        let forged = on_one_line("a\r\n2026-11-26T00:00:00Z ERROR forged\u{2028}\u{1b}[31m");
        assert_eq!(forged.lines().count(), 1, "{forged}");
        assert!(
            !forged.chars().any(|c| c.is_control() || c == '\u{2028}'),
            "{forged}"
        );
        assert_eq!(on_one_line("Grüße, \u{1f44b}"), "Grüße, \u{1f44b}");
    }

    #[test]
    fn a_storm_of_lines_is_cut_and_reported_now_and_then() {
        let (flow, begin) = (Flow::default(), Instant::now());
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let passed = (0..2_000).filter(|_| flow.take(100, at(0)).0).count();
        assert_eq!(passed, 1_024);
        assert_eq!(
            flow.take(100, at(1)),
            (false, None),
            "it was said a moment ago"
        );
        assert!(flow.take(100, at(500)).0, "a line every ten milliseconds");
        let (passes, dropped_lines) = flow.take(100, at(11_000));
        assert!(
            passes && dropped_lines.is_some_and(|dropped| dropped >= 970),
            "the rest is logged later: {dropped_lines:?}"
        );
    }

    #[test]
    fn long_lines_are_counted_by_their_bytes() {
        let (flow, now) = (Flow::default(), Instant::now());
        let passed = (0..100).filter(|_| flow.take(4_160, now).0).count();
        assert_eq!(passed, 63);
    }

    fn words(lines: &[&str]) -> (String, bool) {
        let mut words = LastWords::default();
        lines.iter().for_each(|line| words.take(line));
        (words.text, words.is_panic)
    }

    #[test]
    fn message_of_a_panic_is_found_in_what_guests_of_any_language_write() {
        let sdk = ["panicked at src/lib.rs:12:9:\na sku has a category"];
        assert_eq!(
            words(&sdk),
            (
                "panicked at src/lib.rs:12:9: a sku has a category".to_owned(),
                true
            )
        );
        let rust = [
            "thread 'main' panicked at src/lib.rs:3:5:",
            "no",
            "note: run with `RUST_BACKTRACE=1`",
        ];
        assert_eq!(
            words(&rust),
            ("panicked at src/lib.rs:3:5: no".to_owned(), true)
        );
        let go = [
            "looking",
            "panic: index out of range [3]",
            "",
            "goroutine 1 [running]:",
        ];
        assert_eq!(
            words(&go),
            ("panic: index out of range [3]".to_owned(), true)
        );
        let goroutine = [
            "panic: out of stock [recovered, repanicked]",
            "",
            "goroutine 21 [running]:",
            "panic({0x5b2e0, 0x9a5c8})",
            "\truntime/panic.go:792 +0x14",
            "main.(*Stock).take(...)",
            "\tstock/main.go:144 +0x2",
            "created by main.handle in goroutine 1",
            "\tstock/main.go:9 +0x5",
        ];
        assert_eq!(
            words(&goroutine),
            ("panic: out of stock (main.go:144)".to_owned(), true)
        );
        let python = [
            "Traceback (most recent call last):",
            "  File \"app.py\", line 3",
            "KeyError: 'sku'",
        ];
        assert_eq!(words(&python), ("KeyError: 'sku'".to_owned(), false));
    }
}
