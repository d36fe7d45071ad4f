//! `foldstream events import`: events from a file, in batches.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;

use super::super::Context;
use super::super::client::{self, Client};
use super::super::exit::{Exit, Failure};
use super::super::output::{Output, grouped, span};
use super::super::progress::{Progress, Step};
use crate::api::{Appended, NewEvent};

/// Events in one request: enough to share a commit, few enough to show progress.
const BATCH_EVENTS: usize = 1_000;
/// Bytes at which a request ends earlier; the host takes 16 MiB unless configured otherwise.
const BATCH_BYTES: usize = 4 << 20;
/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Longest wait for one batch.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Import events into an embedded log from newline-delimited JSON.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events import events.ndjson
  zcat events.ndjson.gz | foldstream events import -

Each line is one event:
  {\"subject\": \"orders.42.placed\", \"data\": {\"amount\": 10}}
and may have \"type\", \"id\", \"time\" (RFC 3339) and \"headers\" too. An event with an \"id\" is stored once even
when it is imported twice within the log's duplicate window. At a malformed line the import ends: what stands
before it is imported, what stands after it is not.")]
pub struct Args {
    /// The file; `-` reads standard input.
    file: PathBuf,
    /// Source; left out, the only one.
    #[arg(long)]
    source: Option<String>,
}

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Events in the file.
    pub events: u64,
    /// How many of them were there before.
    pub duplicates: u64,
    /// Last sequence of the log.
    pub last_sequence: u64,
}

/// Imports a file and prints how much it was.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let imported = import_file(&client, &args.file, args.source.as_deref(), context.output).await?;
    context.output.one(&imported, |imported| {
        let duplicates = match imported.duplicates {
            0 => String::new(),
            count => format!(", {} of them were there before", grouped(count)),
        };
        format!(
            "imported {} events{duplicates}; last sequence {}",
            grouped(imported.events),
            grouped(imported.last_sequence)
        )
    })?;
    Ok(())
}

/// Imports a file, or standard input for `-`.
pub async fn import_file(
    client: &Client,
    file: &Path,
    source: Option<&str>,
    output: Output,
) -> anyhow::Result<Imported> {
    if file == Path::new("-") {
        return import(client, Lines::new("standard input", std::io::stdin().lock()), None, source, output).await;
    }
    let shown = file.display();
    let opened = File::open(file).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {shown}: {error}"))
    })?;
    let size = opened.metadata().ok().map(|metadata| metadata.len());
    import(client, Lines::new(&shown.to_string(), BufReader::with_capacity(1 << 20, opened)), size, source, output)
        .await
}

async fn import<R: BufRead>(
    client: &Client,
    mut lines: Lines<R>,
    size: Option<u64>,
    source: Option<&str>,
    output: Output,
) -> anyhow::Result<Imported> {
    let parameters: Vec<_> = source.into_iter().map(|source| ("source", source.to_owned())).collect();
    let mut progress = Progress::new("importing", output);
    let mut imported = Imported::default();
    loop {
        let batch = lines.batch();
        if !batch.lines.is_empty() {
            let content = ("application/x-ndjson", batch.body);
            let sent = client.post(&["v1", "events"], &parameters, content, TIMEOUT).await;
            let appended: Appended = sent.map_err(|error| refused(&error, &lines.name, &batch.lines, &imported))?;
            imported.events += batch.lines.len() as u64;
            imported.duplicates += appended.duplicates;
            imported.last_sequence = appended.last_sequence;
        }
        match batch.end {
            End::Full => progress.show(&step(&imported, &lines, size, progress.elapsed())),
            End::File => break,
            End::Malformed(message) => {
                let message = format!("{message}; {}", so_far(&imported));
                return Err(Failure::new(Exit::Refused, message).into());
            }
            End::Unreadable(error) => {
                return Err(error).with_context(|| format!("cannot read on in {}; {}", lines.name, so_far(&imported)));
            }
        }
    }
    let seconds = progress.elapsed().as_secs_f64();
    progress.finish();
    output.detail(&format!("took {}", span(seconds)));
    Ok(imported)
}

fn so_far(imported: &Imported) -> String {
    match imported.events {
        0 => "nothing was imported".to_owned(),
        events => format!(
            "the first {} events were imported, nothing after them; last sequence {}",
            grouped(events),
            imported.last_sequence
        ),
    }
}

fn refused(error: &client::Error, name: &str, lines: &[u64], imported: &Imported) -> Failure {
    let text = error.to_string();
    let told = match (named_line(&text, lines), lines) {
        (Some((line, reason)), _) => format!("{name}:{line}: {reason}"),
        (None, [first, .., last]) => format!("{name}, lines {first} to {last}: {text}"),
        (None, _) => format!("{name}: {text}"),
    };
    Failure::new(error.exit(), format!("{told}; {}", so_far(imported)))
}

/// The line of the event that the host names by its place in the request, and what it says of it:
/// `event 0 is refused: …` counts from 0, `line 1 is refused: …` from 1.
fn named_line<'a>(text: &'a str, lines: &[u64]) -> Option<(u64, &'a str)> {
    let (rest, first) = match text.strip_prefix("event ") {
        Some(rest) => (rest, 0),
        None => (text.strip_prefix("line ")?, 1),
    };
    let (number, reason) = rest.split_once(" is refused: ")?;
    let index = number.parse::<usize>().ok()?.checked_sub(first)?;
    Some((*lines.get(index)?, reason))
}

fn step<R>(imported: &Imported, lines: &Lines<R>, size: Option<u64>, elapsed: Duration) -> Step {
    let rate = imported.events as f64 / elapsed.as_secs_f64().max(0.001);
    let share = size.filter(|size| *size > 0).map(|size| lines.bytes as f64 / size as f64);
    let total = share.filter(|share| *share > 0.0).map(|share| (imported.events as f64 / share).round() as u64);
    let remaining_seconds = total.map(|total| total.saturating_sub(imported.events) as f64 / rate.max(0.001));
    Step { done: imported.events, total, rate, remaining_seconds }
}

/// Lines of a file, counted.
struct Lines<R> {
    name: String,
    reader: R,
    number: u64,
    bytes: u64,
}

/// Some lines, checked, as one request.
struct Batch {
    body: Bytes,
    /// The number of each event's line.
    lines: Vec<u64>,
    end: End,
}

/// Why a batch ended.
enum End {
    Full,
    File,
    Malformed(String),
    Unreadable(std::io::Error),
}

impl<R: BufRead> Lines<R> {
    fn new(name: &str, reader: R) -> Self {
        Self { name: name.to_owned(), reader, number: 0, bytes: 0 }
    }

    /// The next lines up to the limits of a batch. They are checked here and sent as they stand.
    fn batch(&mut self) -> Batch {
        let mut body = Vec::new();
        let mut lines = Vec::new();
        let end = loop {
            if lines.len() >= BATCH_EVENTS || body.len() >= BATCH_BYTES {
                break End::Full;
            }
            let begin = body.len();
            match self.reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut body) {
                Ok(0) => break End::File,
                Ok(length) => self.bytes += length as u64,
                Err(error) => break End::Unreadable(error),
            }
            self.number += 1;
            let line = body[begin..].trim_ascii();
            if line.is_empty() {
                body.truncate(begin);
                continue;
            }
            let checked = check(line).map_err(|message| format!("{}:{}: {message}", self.name, self.number));
            if let Err(message) = checked {
                body.truncate(begin);
                break End::Malformed(message);
            }
            if body.last() != Some(&b'\n') {
                body.push(b'\n');
            }
            lines.push(self.number);
        };
        Batch { body: body.into(), lines, end }
    }
}

fn check(line: &[u8]) -> Result<(), String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
    }
    let event: NewEvent = serde_json::from_slice(line).map_err(|error| {
        // The position within the line is the column; that the line is the first of its text misleads.
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        format!("is no event: {text} (column {})", error.column())
    })?;
    crate::subject::validate(&event.subject).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines<&[u8]> {
        Lines::new("events.ndjson", text.as_bytes())
    }

    #[test]
    fn lines_become_batches_as_they_stand() {
        let mut lines = lines("{\"subject\":\"a.b\"}\n\n  {\"subject\":\"c\",\"data\":12345678901234567890123}");
        let batch = lines.batch();
        assert_eq!(batch.lines, [1, 3]);
        assert!(matches!(batch.end, End::File));
        assert_eq!(&*batch.body, b"{\"subject\":\"a.b\"}\n  {\"subject\":\"c\",\"data\":12345678901234567890123}\n");
    }

    #[test]
    fn batches_end_at_their_limits() {
        let text = "{\"subject\":\"a\"}\n".repeat(BATCH_EVENTS + 1);
        let mut lines = lines(&text);
        let batch = lines.batch();
        assert_eq!((batch.lines.len(), batch.lines.last()), (BATCH_EVENTS, Some(&(BATCH_EVENTS as u64))));
        assert!(matches!(batch.end, End::Full));
        assert_eq!(lines.batch().lines, [BATCH_EVENTS as u64 + 1]);
    }

    #[test]
    fn malformed_lines_are_named_and_end_the_batch() {
        for (line, said) in [
            ("{", "events.ndjson:2: is no event: EOF while parsing an object (column 1)"),
            ("{}", "events.ndjson:2: is no event: missing field `subject` (column 2)"),
            (
                "{\"subject\":\"a\",\"body\":1}",
                "events.ndjson:2: is no event: unknown field `body`, expected one of `subject`, `type`, `id`, `time`, \
                 `headers`, `data` (column 21)",
            ),
        ] {
            let text = format!("{{\"subject\":\"a\"}}\n{line}\n{{\"subject\":\"b\"}}\n");
            let batch = lines(&text).batch();
            assert_eq!(batch.lines, [1]);
            let End::Malformed(message) = batch.end else { panic!("the batch ends there") };
            assert_eq!(message, said);
        }
        let batch = lines("{\"subject\":\"a.*\"}").batch();
        let End::Malformed(message) = batch.end else { panic!("the batch ends there") };
        assert!(message.starts_with("events.ndjson:1: subject `a.*` uses a wildcard"), "{message}");
    }

    #[test]
    fn refused_event_is_named_by_its_line() {
        let lines = [1, 3, 4];
        assert_eq!(named_line("event 1 is refused: too large", &lines), Some((3, "too large")));
        assert_eq!(named_line("line 1 is refused: no time", &lines), Some((1, "no time")));
        for other in ["event 9 is refused: too large", "line 0 is refused: x", "the host is stopping", "event"] {
            assert_eq!(named_line(other, &lines), None, "{other}");
        }
    }

    #[test]
    fn it_is_said_how_much_was_imported() {
        assert_eq!(so_far(&Imported::default()), "nothing was imported");
        let imported = Imported { events: 1_000, duplicates: 0, last_sequence: 1_017 };
        assert_eq!(so_far(&imported), "the first 1,000 events were imported, nothing after them; last sequence 1017");
    }
}
