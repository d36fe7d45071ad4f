//! `foldstream events tail`: prints events as they arrive.

use anyhow::Context as _;

use super::read::{Filter, row};
use crate::cli::Context;
use crate::cli::support::output::{Format, compact, printable};
use crate::cli::support::received::StoredEvent;
use crate::cli::support::sse::Subscription;

/// Print events as they arrive, until Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream events tail
  foldstream events tail --subject 'orders.>' -o ndjson
  foldstream events tail --from 1000
  foldstream events tail --source orders")]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Start after this sequence; default: now.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "from")]
    after: Option<u64>,
    /// Start with this sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
}

/// Prints one event after another.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let subscription = Subscription {
        client: &client,
        path: vec!["v1", "events", "tail"],
        parameters: args.filter.parameters(),
        after: args.after.or(args.from.map(|from| from - 1)),
        output: context.output,
    };
    let output = context.output;
    subscription
        .follow(|event| {
            if event.event != "event" {
                return Ok(());
            }
            let event: StoredEvent =
                serde_json::from_str(&event.data).context("the host sent an unknown event")?;
            Ok(output.line(&line(&event, output.format))?)
        })
        .await
}

fn line(event: &StoredEvent, format: Format) -> String {
    if format != Format::Table {
        return compact(event);
    }
    row(event)
        .iter()
        .map(|cell| printable(cell))
        .collect::<Vec<_>>()
        .join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_one_line_each() {
        let event = super::super::read::tests::event();
        assert_eq!(
            line(&event, Format::Table),
            "17  2026-11-23T10:00:00.123Z  orders.42.placed  placed  {\"amount\":10.0}"
        );
        assert_eq!(
            line(&event, Format::Ndjson),
            "{\"sequence\":17,\"time\":\"2026-11-23T10:00:00.123456789Z\",\"subject\":\"orders.42.placed\",\
             \"type\":\"placed\",\"headers\":{\"traceparent\":\"00\"},\"data\":{\"amount\":10.0}}"
        );
    }
}
