//! Writes log lines to standard error on a separate thread.
//!
//! A reader of standard error may stop reading. Lines then wait here, and are finally dropped and
//! counted: no thread that logs ever waits for the reader.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait. With the longest lines of modules these take about 40 MiB, with usual ones
/// 2 MiB.
const LINES_MAX: usize = 8_192;
/// How long the end of the process waits until the lines are written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The one of this process.
static RUNNING: OnceLock<LogWriter> = OnceLock::new();

/// The one that writes our own log, once it runs.
pub(crate) fn running() -> Option<&'static LogWriter> {
    RUNNING.get()
}

/// Starts the one that writes our own log to standard error, unless it runs.
pub(crate) fn run() -> io::Result<&'static LogWriter> {
    let writer = LogWriter::start(io::stderr())?;
    Ok(RUNNING.get_or_init(|| writer))
}

/// Takes lines. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct LogWriter {
    messages: Sender<Message>,
    /// Lines dropped since the last report.
    dropped: Arc<AtomicU64>,
}

/// A message to the thread that writes.
#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Dropped once all earlier lines are written, which ends somebody's wait.
    Mark(#[expect(dead_code, reason = "dropping it is the message")] Sender<Infallible>),
}

impl LogWriter {
    /// Starts the thread that writes to `target`.
    pub(crate) fn start(target: impl Write + Send + 'static) -> io::Result<Self> {
        let (messages, received) = bounded(LINES_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let known = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&received, &known, target))?;
        Ok(Self { messages, dropped })
    }

    /// Waits until all lines are written, but not for long.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let (mark, passed) = bounded(0);
        // A full queue may take no mark either: the deadline holds for both waits.
        if self
            .messages
            .send_deadline(Message::Mark(mark), deadline)
            .is_ok()
        {
            let _ = passed.recv_deadline(deadline);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

fn write(messages: &Receiver<Message>, dropped: &AtomicU64, mut target: impl Write) {
    for message in messages {
        // Dropping the mark is what its sender waits for.
        let Message::Line(line) = message else {
            continue;
        };
        // There is nobody left to report a failure to.
        let _ = target.write_all(&line);
        let dropped = dropped.swap(0, Ordering::AcqRel);
        // Through the log itself, so in order; at most one such line for each that was written.
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "log lines were dropped because standard error accepted none"
            );
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            bytes: Vec::new(),
            writer: self,
        }
    }
}

/// One line, sent when it is complete.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    bytes: Vec<u8>,
    writer: &'a LogWriter,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        let LogWriter { messages, dropped } = self.writer;
        let line = Message::Line(std::mem::take(&mut self.bytes));
        // It never waits, whatever the reader does: a line that does not fit is lost, and counted.
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = messages.try_send(line)
        {
            dropped.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A reader that takes nothing until it may.
    #[derive(Clone, Default)]
    struct Stuck {
        gate: Arc<Mutex<()>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock().expect("not poisoned");
            self.taken
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_keeps_nobody_from_logging() {
        let stuck = Stuck::default();
        let closed = stuck.gate.lock().expect("not poisoned");
        let writer = LogWriter::start(stuck.clone()).expect("starts");
        for number in 0..LINES_MAX + 100 {
            writeln!(writer.make_writer(), "line {number}").expect("takes it");
        }
        assert!(
            writer.dropped.load(Ordering::Acquire) >= 99,
            "the rest found no room"
        );
        drop(closed);
        writer.flush();
        let taken =
            String::from_utf8(stuck.taken.lock().expect("not poisoned").clone()).expect("text");
        assert!(taken.starts_with("line 0\nline 1\n") && taken.contains("line 8000\n"));
    }
}
