//! `foldstream events export`: writes events in the format that `events import` reads.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::read::Filter;
use crate::cli::Context;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::output::{compact, grouped};
use crate::cli::support::progress::{Progress, Step};
use crate::cli::support::whole_file::WholeFile;
use crate::cloudevents::{BATCH_MEDIA_TYPE, HEADER_PREFIX, percent};

/// The header that stores a message id.
const MESSAGE_ID: &str = "nats-msg-id";
const PAGE_EVENTS: u64 = 1_000;
/// Longest wait for a page.
const TIMEOUT: Duration = Duration::from_secs(75);

/// Write events, one per line, in the format that `events import` reads.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events export > events.ndjson
  foldstream events export --subject 'orders.>' --to orders.ndjson
  foldstream events export --format cloudevents --to orders.cloudevents.ndjson
  foldstream events export | foldstream events import - --url http://127.0.0.1:7576

The export ends after the last event that the stream had when it began. Sequences are not kept: \
an import assigns new ones. Data are exported byte for byte: what JSON on one line cannot \
represent is base64 in {\"$bytes\": …}. Of headers with the same name, the first is exported. With \
--format cloudevents, events that arrived as CloudEvents are exported as they were; others get \
their sequence as id and their stream as source. A FILE of --to exists only once it is complete.")]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Start after this sequence.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
    /// Format of the events.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// File to write; default: standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Formats of exported events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Foldstream's own format.
    #[default]
    Foldstream,
    /// CloudEvents 1.0 in JSON.
    Cloudevents,
}

/// Writes one line per event.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut progress = Progress::new("exporting", context.output);
    let count = match &args.to {
        Some(path) => {
            let refused = || format!("cannot write {}", path.display());
            let target = WholeFile::create(path).with_context(refused)?;
            let count =
                export(&args, &client, BufWriter::new(target.file()), &mut progress).await?;
            target.complete().with_context(refused)?;
            count
        }
        None => {
            export(
                &args,
                &client,
                BufWriter::new(std::io::stdout()),
                &mut progress,
            )
            .await?
        }
    };
    progress.finish();
    context
        .output
        .note(&format!("exported {} events", grouped(count)));
    Ok(())
}

async fn export(
    args: &Args,
    client: &Client,
    mut target: impl Write,
    progress: &mut Progress,
) -> anyhow::Result<u64> {
    let mut after = args.after;
    let mut last = None;
    let mut count = 0;
    loop {
        // No page needs more events than there are sequences left.
        let limit = last.map_or(PAGE_EVENTS, |last| PAGE_EVENTS.min(last - after));
        let page = match args.format {
            Format::Foldstream => page_of_events(client, &args.filter, after, limit).await?,
            Format::Cloudevents => page_of_cloud_events(client, &args.filter, after, limit).await?,
        };
        // That of the first page: events that come during the export are not part of it.
        let last = *last.get_or_insert(page.last_sequence);
        for line in page.lines {
            target.write_all(line.as_bytes())?;
            target.write_all(b"\n")?;
            count += 1;
        }
        match page.next {
            // A `next` that does not advance would repeat for ever.
            Some(next) if next < last && next > after => after = next,
            _ => break,
        }
        let seconds = progress.elapsed().as_secs_f64().max(0.001);
        let rate = count as f64 / seconds;
        let through = (after - args.after) as f64 / seconds;
        // By sequences, because how many of them match is known at the end only.
        let remaining_seconds = Some((last - after) as f64 / through.max(0.001));
        progress.show(&Step {
            done: count,
            total: None,
            is_estimate: false,
            rate,
            remaining_seconds,
        });
    }
    target.flush()?;
    Ok(count)
}

/// Events, one per line.
struct Page {
    lines: Vec<String>,
    next: Option<u64>,
    last_sequence: u64,
}

/// [`crate::api::EventPage`], with data as written.
#[derive(Deserialize)]
struct StoredPage {
    events: Vec<Stored>,
    next: Option<u64>,
    last_sequence: u64,
}

/// [`crate::api::StoredEvent`], with data as written.
#[derive(Deserialize)]
struct Stored {
    time: String,
    subject: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    data: Box<RawValue>,
}

/// [`crate::api::NewEvent`], with data as written.
#[derive(Serialize)]
struct Importable {
    subject: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    time: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    data: Box<RawValue>,
}

fn parameters(filter: &Filter, after: u64, limit: u64) -> Vec<(&'static str, String)> {
    let mut parameters = filter.parameters();
    parameters.extend([("after", after.to_string()), ("limit", limit.to_string())]);
    parameters
}

async fn page_of_events(
    client: &Client,
    filter: &Filter,
    after: u64,
    limit: u64,
) -> Result<Page, Error> {
    let mut parameters = parameters(filter, after, limit);
    // Otherwise a JSON text that is a string would be imported as plain text.
    parameters.push(("exact", "true".to_owned()));
    let page: StoredPage = client.get(&["v1", "events"], &parameters).await?;
    let lines = page.events.into_iter().map(importable_line);
    Ok(Page {
        lines: lines.collect(),
        next: page.next,
        last_sequence: page.last_sequence,
    })
}

async fn page_of_cloud_events(
    client: &Client,
    filter: &Filter,
    after: u64,
    limit: u64,
) -> Result<Page, Error> {
    let request = client
        .request(Method::GET, &["v1", "events"])
        .query(&parameters(filter, after, limit));
    let response = client
        .send(request.header(ACCEPT, BATCH_MEDIA_TYPE), TIMEOUT)
        .await?;
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
    };
    let foreign = |message: String| Error::Foreign {
        url: client.url().to_owned(),
        message,
    };
    let (next, last_sequence) = (
        header("foldstream-next"),
        header("foldstream-last-sequence"),
    );
    // Hosts before this header ignore `Accept`, and answer in their own format.
    let last_sequence = last_sequence
        .ok_or_else(|| foreign("it cannot write CloudEvents; upgrade it".to_owned()))?;
    let body = client.body(response).await?;
    let events: Vec<&RawValue> =
        serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()))?;
    Ok(Page {
        lines: events.iter().map(|event| one_line(event.get())).collect(),
        next,
        last_sequence,
    })
}

/// JSON on one line: a line break in it is white space between values.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

fn importable_line(event: Stored) -> String {
    one_line(&compact(&importable(event)))
}

/// The event in the form in which it is appended. Its message id prevents duplicates. CloudEvents
/// attributes are encoded again, because reading decodes them.
fn importable(mut event: Stored) -> Importable {
    // As `id` again: an import must find out that the event is there already.
    let id = event.headers.remove(MESSAGE_ID);
    for (name, value) in &mut event.headers {
        if name.starts_with(HEADER_PREFIX) {
            *value = percent::encode(value).into_owned();
        }
    }
    event
        .headers
        .retain(|name, _| !name.starts_with("foldstream-") && !name.starts_with("nats-"));
    let Stored {
        time,
        subject,
        kind,
        headers,
        data,
    } = event;
    Importable {
        subject,
        kind,
        id,
        time,
        headers,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NewEvent;
    use crate::cli::support::received::StoredEvent;

    fn imported(stored: &StoredEvent) -> NewEvent {
        let event: Stored =
            serde_json::from_str(&compact(stored)).expect("the host answers like this");
        serde_json::from_str(&compact(&importable(event))).expect("import reads it")
    }

    #[test]
    fn what_is_exported_can_be_imported() {
        let stored = super::super::read::tests::event();
        let event = imported(&stored);
        assert_eq!(
            (event.subject, event.kind, event.time),
            (stored.subject, Some(stored.kind), Some(stored.time))
        );
        assert_eq!((event.headers, event.id), (stored.headers, None));
        assert_eq!(event.data.to_string(), stored.data.get());
    }

    #[test]
    fn message_id_is_exported_as_such_and_attributes_are_encoded() {
        let mut stored = super::super::read::tests::event();
        let headers = [
            (MESSAGE_ID, "order-7"),
            ("ce-id", "100%"),
            ("foldstream-cloudevent-error", "why"),
        ];
        stored.headers = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let event = imported(&stored);
        assert_eq!(event.id.as_deref(), Some("order-7"));
        assert_eq!(
            event.headers,
            BTreeMap::from([("ce-id".to_owned(), "100%25".to_owned())])
        );
    }

    #[test]
    fn data_keep_their_digits_in_one_line() {
        let text = "{\"time\":\"t\",\"subject\":\"a\",\"type\":\"b\",\"data\":{\"z\": 1.10,\n\"a\":12345678901234567890123}}";
        let event: Stored = serde_json::from_str(text).expect("sound");
        let line = one_line(&compact(&importable(event)));
        assert!(
            line.ends_with("{\"z\": 1.10, \"a\":12345678901234567890123}}"),
            "{line}"
        );
    }
}
