//! `foldstream events read`: a part of a stream.

use crate::cli::Context;
use crate::cli::commands::reads::scan::cell;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::table;
use crate::cli::support::received::{EventPage, StoredEvent};

/// Print events of a stream, in order.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events read
  foldstream events read --from 1000 --limit 20
  foldstream events read --sequence 333 -o json
  foldstream events read --source orders
  foldstream events read --subject 'orders.*.placed' -o ndjson")]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Start after this sequence.
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0, conflicts_with_all = ["from", "sequence"])]
    after: u64,
    /// Start with this sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Only this event.
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(conflicts_with_all = ["from", "limit", "subject"])]
    sequence: Option<u64>,
    /// Maximum number of events.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Which events to read.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Filter {
    /// Source; default: the only one, or the only embedded log.
    #[arg(long)]
    source: Option<String>,
    /// Only subjects that match: `*` is one token, `>` is the rest.
    #[arg(long, value_name = "PATTERN")]
    subject: Option<String>,
}

impl Filter {
    /// The API parameters for these options.
    pub(super) fn parameters(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        parameters.extend(self.source.clone().map(|source| ("source", source)));
        parameters.extend(self.subject.clone().map(|subject| ("subject", subject)));
        parameters
    }

    /// One page of events.
    pub(super) async fn page(
        &self,
        client: &Client,
        after: u64,
        limit: u32,
    ) -> Result<EventPage, Error> {
        let mut parameters = self.parameters();
        parameters.push(("after", after.to_string()));
        parameters.push(("limit", limit.to_string()));
        client.get(&["v1", "events"], &parameters).await
    }
}

pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    if let Some(sequence) = args.sequence {
        return one(&args.filter, sequence, &client, context).await;
    }
    let after = args.from.map_or(args.after, |from| from - 1);
    let page = args.filter.page(&client, after, args.limit).await?;
    context.output.many(&page.events, &page, lines)?;
    if let Some(next) = page.next {
        context
            .output
            .note(&format!("there may be more: use --after {next}"));
    }
    Ok(())
}

async fn one(
    filter: &Filter,
    sequence: u64,
    client: &Client,
    context: &Context,
) -> anyhow::Result<()> {
    let page = filter.page(client, sequence - 1, 1).await?;
    let Some(event) = page
        .events
        .first()
        .filter(|event| event.sequence == sequence)
    else {
        let message = match sequence > page.last_sequence {
            true => format!(
                "event {sequence} does not exist yet: the stream ends at {}",
                page.last_sequence
            ),
            false => format!(
                "the stream has no event {sequence}: it was removed, or is a message of the server \
                 and no event, such as a delete marker"
            ),
        };
        return Err(Failure::new(Exit::NotFound, message).into());
    };
    context
        .output
        .one(event, |event| lines(std::slice::from_ref(event)))?;
    Ok(())
}

fn lines(events: &[StoredEvent]) -> String {
    table(
        &["SEQUENCE", "TIME", "SUBJECT", "TYPE", "DATA"],
        events.iter().map(row),
    )
}

/// The cells of an event.
pub(super) fn row(event: &StoredEvent) -> Vec<String> {
    // Nanoseconds are for machines only.
    let time = match event.time.split_once('.') {
        Some((seconds, fraction)) if fraction.ends_with('Z') => {
            format!("{seconds}.{:.3}Z", fraction.trim_end_matches('Z'))
        }
        _ => event.time.clone(),
    };
    vec![
        event.sequence.to_string(),
        time,
        event.subject.clone(),
        event.kind.clone(),
        cell(&event.data),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::support::received::raw;

    pub(in super::super) fn event() -> StoredEvent {
        StoredEvent {
            sequence: 17,
            time: "2026-11-23T10:00:00.123456789Z".to_owned(),
            subject: "orders.42.placed".to_owned(),
            kind: "placed".to_owned(),
            headers: std::collections::BTreeMap::from([(
                "traceparent".to_owned(),
                "00".to_owned(),
            )]),
            data: raw(r#"{"amount":10.0}"#),
        }
    }

    #[test]
    fn events_are_rows() {
        assert_eq!(
            lines(&[event()]),
            "\
SEQUENCE  TIME                      SUBJECT           TYPE    DATA
17        2026-11-23T10:00:00.123Z  orders.42.placed  placed  {\"amount\":10.0}"
        );
    }
}
