//! `foldstream events export`: events as `events import` takes them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context as _;

use super::super::Context;
use super::super::client::Client;
use super::super::output::{compact, grouped};
use super::super::progress::{Progress, Step};
use super::read::Filter;
use crate::api::{NewEvent, StoredEvent};

/// The header in which a message id is stored.
const MESSAGE_ID: &str = "nats-msg-id";
/// Events in one request.
const PAGE_EVENTS: u32 = 1_000;

/// Write events as newline-delimited JSON that `events import` takes.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events export > events.ndjson
  foldstream events export --subject 'orders.>' --to orders.ndjson
  foldstream events export | foldstream events import - --url http://127.0.0.1:7576

It ends with the last event that the stream had when it began. Sequences are not kept: an import gives new ones.")]
pub struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Begin behind this sequence.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
    /// File to write; left out, standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Writes one line per event.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut progress = Progress::new("exporting", context.output);
    let count = match &args.to {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            export(&args, &client, BufWriter::new(file), &mut progress).await?
        }
        None => export(&args, &client, BufWriter::new(std::io::stdout()), &mut progress).await?,
    };
    progress.finish();
    context.output.note(&format!("exported {} events", grouped(count)));
    Ok(())
}

async fn export(args: &Args, client: &Client, mut target: impl Write, progress: &mut Progress) -> anyhow::Result<u64> {
    let mut after = args.after;
    let mut last = None;
    let mut count = 0;
    loop {
        let page = args.filter.page(client, after, PAGE_EVENTS).await?;
        let last = *last.get_or_insert(page.last_sequence);
        for event in page.events.into_iter().take_while(|event| event.sequence <= last) {
            target.write_all(compact(&importable(event)).as_bytes())?;
            target.write_all(b"\n")?;
            count += 1;
        }
        match page.next {
            Some(next) if next < last && next > after => after = next,
            _ => break,
        }
        let seconds = progress.elapsed().as_secs_f64().max(0.001);
        let rate = count as f64 / seconds;
        let through = (after - args.after) as f64 / seconds;
        let remaining_seconds = Some((last - after) as f64 / through.max(0.001));
        progress.show(&Step { done: count, total: None, rate, remaining_seconds });
    }
    target.flush()?;
    Ok(count)
}

/// The event as it is appended; its message id keeps it from being stored twice.
fn importable(mut event: StoredEvent) -> NewEvent {
    NewEvent {
        subject: event.subject,
        kind: Some(event.kind),
        id: event.headers.remove(MESSAGE_ID),
        time: Some(event.time),
        headers: event.headers,
        data: event.data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_can_be_imported() {
        let stored = super::super::read::tests::event();
        let line = compact(&importable(stored.clone()));
        let event: NewEvent = serde_json::from_str(&line).expect("import reads it");
        assert_eq!((event.subject, event.kind, event.time), (stored.subject, Some(stored.kind), Some(stored.time)));
        assert_eq!((event.headers, event.data, event.id), (stored.headers, stored.data, None));
    }

    #[test]
    fn message_id_is_exported_as_such() {
        let mut stored = super::super::read::tests::event();
        stored.headers = std::collections::BTreeMap::from([(MESSAGE_ID.to_owned(), "order-7".to_owned())]);
        let event = importable(stored);
        assert_eq!(event.id.as_deref(), Some("order-7"));
        assert!(event.headers.is_empty());
    }
}
