//! `foldstream events import`: events from a file, in batches.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;

use super::items::{self, Items};
use super::times::{self, TimesOption};
use crate::api::{Appended, NewEvent};
use crate::cli::Context;
use crate::cli::support::client::{self, Client};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Output, counted, grouped, span};
use crate::cli::support::progress::{Progress, Step};
use crate::cloudevents::{self, SubjectTemplate};

/// Events per request: enough to share a commit, few enough to show progress.
const BATCH_EVENTS: usize = 1_000;
/// Bytes at which a request ends earlier; the default limit of a host is 16 MiB.
const BATCH_BYTES: usize = 4 << 20;
/// Longest wait for one batch.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Import events into an embedded log, from a file in Foldstream's own format or of CloudEvents.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events import events.ndjson
  foldstream events import cloudevents.json
  foldstream events import flights.ndjson --subject 'flights.{subject}.{type}'
  zcat events.ndjson.gz | foldstream events import -

Events come one per line, in JSON arrays, or as a sequence of JSON values. An event in \
Foldstream's own format is
  {\"subject\": \"orders.42.placed\", \"data\": {\"amount\": 10}}
with optional \"type\", \"id\", \"time\" (RFC 3339) and \"headers\". An event with \
\"specversion\" is a CloudEvent 1.0 in JSON. One file may contain both. An event with an \"id\", \
or a CloudEvent with its source and id, is stored once even if it is imported twice within the \
log's duplicate window; a warning counts events that have the id of an earlier one of the file. \
The import stops at a malformed event: it has then imported the events before it, and none after \
it.")]
pub(crate) struct Args {
    /// The file; `-` reads standard input.
    file: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// Options of an import.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Source; default: the only one.
    #[arg(long)]
    source: Option<String>,
    /// Subject of CloudEvents: text with `{name}` for an attribute as one token and `{name:tokens}`
    /// for one whose dots separate tokens; default: `{type:tokens}`, or the subject that an event
    /// was exported with.
    #[arg(long, value_name = "TEMPLATE")]
    subject: Option<String>,
    #[command(flatten)]
    times: TimesOption,
}

impl Options {
    /// Into the log of a source.
    pub(crate) fn into_source(name: &str) -> Self {
        Self {
            source: Some(name.to_owned()),
            ..Self::default()
        }
    }

    fn template(&self) -> Result<Option<SubjectTemplate>, Failure> {
        let template = self
            .subject
            .as_deref()
            .map(SubjectTemplate::parse)
            .transpose();
        template.map_err(|error| Failure::new(Exit::Usage, format!("--subject: {error}")))
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let named = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        let options = [
            named("source", &self.source),
            named("subject", &self.subject),
            self.times.parameter(),
        ];
        options.into_iter().flatten().collect()
    }
}

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Imported {
    /// Events in the file.
    pub events: u64,
    /// How many of them were already stored.
    pub duplicates: u64,
    /// How many of these have the id of an earlier event of the file.
    pub repeated: u64,
    /// How many had a time earlier than that of the previous event, and got that event's time.
    pub times_raised: u64,
    /// Last sequence of the log.
    pub last_sequence: u64,
    /// The sequence of the first event that this import has stored.
    #[serde(skip)]
    first: Option<u64>,
}

impl Imported {
    /// Counts a request of which the host has confirmed that it is stored.
    fn count(&mut self, appended: &Appended) {
        let events = appended.sequences.len();
        let duplicates = usize::try_from(appended.duplicates).unwrap_or(events);
        let stored = events.saturating_sub(duplicates);
        // Those that were stored now have the highest sequences.
        let mut distinct = appended.sequences.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let first = distinct.get(distinct.len().saturating_sub(stored)).copied();
        self.first = self.first.or(first);
        if let Some(first) = self.first {
            // A duplicate has the sequence of the event whose id it has.
            let ours = appended.sequences.iter().filter(|number| **number >= first);
            self.repeated += ours.count().saturating_sub(stored) as u64;
        }
        self.events += events as u64;
        self.duplicates += appended.duplicates;
        self.times_raised += appended.times_raised;
        self.last_sequence = appended.last_sequence;
    }
}

/// Imports a file and prints how many events it had.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let imported = import_file(&client, &args.file, &args.options, context.output).await?;
    context.output.one(&imported, |imported| {
        let duplicates = match imported.duplicates {
            0 => String::new(),
            count => format!(", {} of them already stored", grouped(count)),
        };
        let last = match imported.events {
            0 => String::new(),
            _ => format!("; last sequence {}", grouped(imported.last_sequence)),
        };
        format!(
            "imported {}{duplicates}{last}",
            counted(imported.events, "event")
        )
    })?;
    times::warn(&context.output, imported.times_raised);
    if imported.repeated > 0 {
        context.output.warning(&format!(
            "{} not stored, because an earlier event of the file has the same id; a stream may have \
             stored both, at times further apart than its duplicate window: set `duplicate_window = \
             \"0s\"` of the source while you import, and import the file into an empty log",
            match imported.repeated {
                1 => "1 event was".to_owned(),
                count => format!("{} events were", grouped(count)),
            }
        ));
    }
    Ok(())
}

/// Imports a file, or standard input for `-`.
pub(crate) async fn import_file(
    client: &Client,
    file: &Path,
    options: &Options,
    output: Output,
) -> anyhow::Result<Imported> {
    if file == Path::new("-") {
        let batches = Batches::new(
            "standard input",
            std::io::stdin().lock(),
            options.template()?,
        );
        let input = Input {
            batches,
            size: None,
        };
        return import(client, input, options, output).await;
    }
    let shown = file.display();
    let opened = File::open(file).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Failed
        };
        Failure::new(exit, format!("cannot read {shown}: {error}"))
    })?;
    let size = opened.metadata().ok().map(|metadata| metadata.len());
    // Large reads: a file of small events would otherwise cost a call of the system each few.
    let reader = BufReader::with_capacity(1 << 20, opened);
    let input = Input {
        batches: Batches::new(&shown.to_string(), reader, options.template()?),
        size,
    };
    import(client, input, options, output).await
}

/// What is imported.
struct Input<R> {
    batches: Batches<R>,
    /// Its size in bytes, if known.
    size: Option<u64>,
}

async fn import<R: BufRead>(
    client: &Client,
    input: Input<R>,
    options: &Options,
    output: Output,
) -> anyhow::Result<Imported> {
    let Input { mut batches, size } = input;
    let parameters = options.parameters();
    let mut progress = Progress::new("importing", output);
    let mut imported = Imported::default();
    loop {
        let batch = batches.next();
        // What was checked before the end, of whatever kind, is sent.
        if !batch.lines.is_empty() {
            let content = ("application/x-ndjson", batch.body);
            let sent = client
                .post(&["v1", "events"], &parameters, content, TIMEOUT)
                .await;
            let appended: Appended =
                sent.map_err(|error| refused(&error, &batches.name, &batch.lines, &imported))?;
            // After the answer: only what the host has confirmed counts as imported.
            imported.count(&appended);
        }
        match batch.end {
            End::Full => progress.show(&step(
                &imported,
                batches.items.bytes,
                size,
                progress.elapsed(),
            )),
            End::File => break,
            End::Malformed(message) => {
                let message = format!("{message}; {}", so_far(&imported));
                return Err(Failure::new(Exit::Refused, message).into());
            }
            End::Unreadable(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot continue reading {}; {}",
                        batches.name,
                        so_far(&imported)
                    )
                });
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
        1 => {
            format!(
                "the first event was imported, nothing after it; last sequence {}",
                grouped(imported.last_sequence)
            )
        }
        events => format!(
            "the first {} events were imported, nothing after them; last sequence {}",
            grouped(events),
            grouped(imported.last_sequence)
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
    // An answer that did not come says nothing about what was done.
    let known = if error.leaves_open() {
        at_least(imported)
    } else {
        so_far(imported)
    };
    Failure::new(error.exit(), format!("{told}; {known}"))
}

/// What is known after a request that may have been carried out, though no answer came.
fn at_least(imported: &Imported) -> String {
    let before = match imported.events {
        0 => "nothing before them was imported".to_owned(),
        1 => "the first event was imported".to_owned(),
        events => format!("the first {} events were imported", grouped(events)),
    };
    format!(
        "{before}, and it is not known whether these were; import the file again, because an event \
         with an id (and each CloudEvent) is stored once, and look for the others with `foldstream \
         events read`"
    )
}

/// The line of the event that the host identifies by its place in the request, and the host's
/// reason: `event 0 is refused: …` counts from 0, `line 1 is refused: …` from 1.
fn named_line<'a>(text: &'a str, lines: &[u64]) -> Option<(u64, &'a str)> {
    let (rest, first) = match text.strip_prefix("event ") {
        Some(rest) => (rest, 0),
        None => (text.strip_prefix("line ")?, 1),
    };
    let (number, reason) = rest.split_once(" is refused: ")?;
    // The host counts within the request; `lines` has where each was in the file.
    let index = number.parse::<usize>().ok()?.checked_sub(first)?;
    Some((*lines.get(index)?, reason))
}

fn step(imported: &Imported, bytes: u64, size: Option<u64>, elapsed: Duration) -> Step {
    // At least a millisecond: a first batch may take less, and a rate must be a number.
    let rate = imported.events as f64 / elapsed.as_secs_f64().max(0.001);
    let share = size
        .filter(|size| *size > 0)
        .map(|size| bytes as f64 / size as f64);
    // From the bytes read so far, as the number of events is unknown before the end.
    let total = share
        .filter(|share| *share > 0.0)
        .map(|share| (imported.events as f64 / share).round() as u64);
    let remaining_seconds =
        total.map(|total| total.saturating_sub(imported.events) as f64 / rate.max(0.001));
    Step {
        done: imported.events,
        total,
        is_estimate: true,
        rate,
        remaining_seconds,
    }
}

/// Events of a file as requests.
struct Batches<R> {
    name: String,
    items: Items<R>,
    template: Option<SubjectTemplate>,
}

/// Some checked events, as one request.
struct Batch {
    body: Bytes,
    /// The line at which each event begins.
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

impl<R: BufRead> Batches<R> {
    fn new(name: &str, reader: R, template: Option<SubjectTemplate>) -> Self {
        Self {
            name: name.to_owned(),
            items: Items::new(reader),
            template,
        }
    }

    /// The next events, up to the limits of a batch. They are checked here and sent as they were
    /// written.
    fn next(&mut self) -> Batch {
        let mut body = Vec::new();
        let mut lines = Vec::new();
        let end = loop {
            if lines.len() >= BATCH_EVENTS || body.len() >= BATCH_BYTES {
                break End::Full;
            }
            let begin = body.len();
            let found = self.items.next(&mut body).and_then(|line| match line {
                None => Ok(None),
                // Checked here as a host would, so that what comes before a bad event can be sent
                // alone.
                Some(line) => match check(body[begin..].trim_ascii(), self.template.as_ref()) {
                    Ok(()) => Ok(Some(line)),
                    Err(message) => Err(items::Error::Malformed(line, message)),
                },
            });
            match found {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => break End::File,
                Err(error) => {
                    // Nothing of the bad event may stay in the request.
                    body.truncate(begin);
                    break match error {
                        items::Error::Malformed(line, message) => {
                            End::Malformed(format!("{}:{line}: {message}", self.name))
                        }
                        items::Error::Unreadable(error) => End::Unreadable(error),
                    };
                }
            }
            // The last line of a file may have no end, and values over several lines have none.
            if body.last() != Some(&b'\n') {
                body.push(b'\n');
            }
        };
        Batch {
            body: body.into(),
            lines,
            end,
        }
    }
}

fn check(text: &[u8], template: Option<&SubjectTemplate>) -> Result<(), String> {
    // Told apart by `specversion`, event by event: a file may have both.
    if let Some(envelope) = cloudevents::parse_with_specversion(text) {
        let subject = envelope.and_then(|envelope| SubjectTemplate::subject(template, &envelope));
        return subject.map(drop).map_err(|error| error.to_string());
    }
    let event: NewEvent = serde_json::from_slice(text).map_err(|error| {
        // The position in the line is the column; the line number is always 1 and would mislead.
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        let advice = match text.starts_with("unknown field") || text.starts_with("missing field") {
            true => "; a CloudEvent has a specversion",
            false => "",
        };
        format!(
            "is not an event: {text} (column {}){advice}",
            error.column()
        )
    })?;
    crate::subject::validate(&event.subject).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &str) -> Batches<&[u8]> {
        Batches::new("events.ndjson", text.as_bytes(), None)
    }

    #[test]
    fn lines_become_batches_as_they_are() {
        let mut batches = batches(
            "{\"subject\":\"a.b\"}\n\n  {\"subject\":\"c\",\"data\":12345678901234567890123}",
        );
        let batch = batches.next();
        assert_eq!(batch.lines, [1, 3]);
        assert!(matches!(batch.end, End::File));
        assert_eq!(
            &*batch.body,
            b"{\"subject\":\"a.b\"}\n  {\"subject\":\"c\",\"data\":12345678901234567890123}\n"
        );
    }

    #[test]
    fn batches_end_at_their_limits() {
        let text = "{\"subject\":\"a\"}\n".repeat(BATCH_EVENTS + 1);
        let mut batches = batches(&text);
        let batch = batches.next();
        assert_eq!(
            (batch.lines.len(), batch.lines.last()),
            (BATCH_EVENTS, Some(&(BATCH_EVENTS as u64)))
        );
        assert!(matches!(batch.end, End::Full));
        assert_eq!(batches.next().lines, [BATCH_EVENTS as u64 + 1]);
    }

    #[test]
    fn malformed_lines_are_named_and_end_the_batch() {
        for (line, said) in [
            (
                "{",
                "events.ndjson:2: is not an event: EOF while parsing an object (column 1)",
            ),
            (
                "{}",
                "events.ndjson:2: is not an event: missing field `subject` (column 2); a \
                 CloudEvent has a specversion",
            ),
            (
                "{\"subject\":\"a\",\"body\":1}",
                "events.ndjson:2: is not an event: unknown field `body`, expected one of \
                 `subject`, `type`, `id`, `time`, `headers`, `data` (column 21); a CloudEvent has \
                 a specversion",
            ),
        ] {
            let text = format!("{{\"subject\":\"a\"}}\n{line}\n{{\"subject\":\"b\"}}\n");
            let batch = batches(&text).next();
            assert_eq!(batch.lines, [1]);
            let End::Malformed(message) = batch.end else {
                panic!("the batch ends there")
            };
            assert_eq!(message, said);
        }
        let batch = batches("{\"subject\":\"a.*\"}").next();
        let End::Malformed(message) = batch.end else {
            panic!("the batch ends there")
        };
        assert!(
            message.starts_with("events.ndjson:1: subject `a.*` uses a wildcard"),
            "{message}"
        );
    }

    #[test]
    fn cloud_events_and_our_own_may_be_in_one_file() {
        let event =
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"two words","data":{"a":1}}"#;
        let batch = batches(&format!(
            "{event}\n{{\"subject\":\"a\",\"data\":{event}}}\n"
        ))
        .next();
        assert_eq!(batch.lines, [1, 2]);
        let array = format!("[\n{event},\n{event}\n]").replace("\"type\"", "\n\"type\"");
        let batch = batches(&array).next();
        assert_eq!(batch.lines, [2, 4]);
        assert_eq!(batch.body.iter().filter(|byte| **byte == b'\n').count(), 2);
        let malformed = event.replace("1.0", "0.3");
        let batch = batches(&format!("{event}\n{malformed}\n")).next();
        let End::Malformed(message) = batch.end else {
            panic!("the batch ends there")
        };
        assert!(
            message.starts_with("events.ndjson:2: is not a CloudEvent: attribute specversion is"),
            "{message}"
        );
        let template = SubjectTemplate::parse("flights.{subject}").expect("a template");
        let batch = Batches::new("events.ndjson", event.as_bytes(), Some(template)).next();
        let End::Malformed(message) = batch.end else {
            panic!("the batch ends there")
        };
        assert!(
            message.contains("attribute subject is missing"),
            "{message}"
        );
    }

    #[test]
    fn refused_event_is_named_by_its_line() {
        let lines = [1, 3, 4];
        assert_eq!(
            named_line("event 1 is refused: too large", &lines),
            Some((3, "too large"))
        );
        assert_eq!(
            named_line("line 1 is refused: no time", &lines),
            Some((1, "no time"))
        );
        for other in [
            "event 9 is refused: too large",
            "line 0 is refused: x",
            "the host is stopping",
            "event",
        ] {
            assert_eq!(named_line(other, &lines), None, "{other}");
        }
    }

    #[test]
    fn what_may_have_been_imported_is_not_said_to_be_missing() {
        let url = "http://127.0.0.1:7575".to_owned();
        let broken = client::Error::Broken {
            url: url.clone(),
            message: "connection closed".to_owned(),
        };
        let imported = Imported {
            events: 1_000,
            last_sequence: 1_017,
            ..Imported::default()
        };
        let told = refused(&broken, "a.ndjson", &[1_001, 1_002, 2_000], &imported).to_string();
        assert!(told.contains("a.ndjson, lines 1001 to 2000: "), "{told}");
        assert!(
            told.contains(
                "the first 1,000 events were imported, and it is not known whether these were"
            ),
            "{told}"
        );
        let late = client::Error::TimedOut {
            url: url.clone(),
            seconds: 120,
        };
        let told = refused(&late, "a.ndjson", &[1, 2], &Imported::default()).to_string();
        assert!(!told.contains("nothing was imported"), "{told}");
        let away = client::Error::Unreachable {
            url,
            message: "connection refused".to_owned(),
            is_refused: true,
        };
        let told = refused(&away, "a.ndjson", &[1, 2], &Imported::default()).to_string();
        assert!(told.ends_with("; nothing was imported"), "{told}");
    }

    #[test]
    fn events_with_the_id_of_an_earlier_one_of_the_file_are_counted() {
        let mut imported = Imported::default();
        let mut repeated = |sequences: &[u64], duplicates: u64| {
            imported.count(&Appended {
                sequences: sequences.to_vec(),
                duplicates,
                times_raised: 0,
                last_sequence: 30,
                waited: Vec::new(),
            });
            imported.repeated
        };
        assert_eq!(repeated(&[3, 4], 2), 0, "imported before");
        assert_eq!(
            repeated(&[5, 21, 22, 21], 2),
            1,
            "one before, one of the file"
        );
        assert_eq!(repeated(&[23, 6, 22, 24], 2), 2);
        assert_eq!(repeated(&[21, 7], 2), 3);
        assert_eq!(repeated(&[25, 26], 0), 3);
        assert_eq!((imported.events, imported.duplicates), (14, 8));
    }

    #[test]
    fn it_is_said_how_much_was_imported() {
        assert_eq!(so_far(&Imported::default()), "nothing was imported");
        let imported = Imported {
            events: 1_000,
            last_sequence: 1_017,
            ..Imported::default()
        };
        assert_eq!(
            so_far(&imported),
            "the first 1,000 events were imported, nothing after them; last sequence 1,017"
        );
    }
}
