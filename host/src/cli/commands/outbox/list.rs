//! `foldstream outbox list`: what waits.

use crate::api::{WaitingMessage, WaitingMessages};
use crate::cli::Context;
use crate::cli::support::output::{bytes, table};
use crate::cli::support::pages::{PageArgs, note_end};

/// Show the messages that wait to be published, in the order in which they leave.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream outbox list shipping
  foldstream outbox list shipping --limit 1000 -o ndjson | jq -r .id

`foldstream show` says why nothing is published.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    #[command(flatten)]
    page: PageArgs,
}

/// Prints one line per message.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let page: WaitingMessages = context
        .client()?
        .get(
            &["v1", "deployments", &args.name, "outbox"],
            &args.page.query(),
        )
        .await?;
    context.output.many(&page.messages, &page, lines)?;
    note_end(
        context.output,
        &page.messages,
        page.next.as_deref(),
        "no messages wait",
    );
    Ok(())
}

/// A table of messages.
pub(super) fn lines(messages: &[WaitingMessage]) -> String {
    let rows = messages.iter().map(|message| {
        let key = if message.key.is_empty() {
            "-"
        } else {
            &message.key
        };
        vec![
            message.id.clone(),
            message.source.clone(),
            message.subject.clone(),
            message.kind.clone(),
            key.to_owned(),
            bytes(message.bytes),
            message
                .made_at
                .split('.')
                .next()
                .unwrap_or_default()
                .trim_end_matches('Z')
                .to_owned()
                + "Z",
            waits_for(message),
        ]
    });
    table(
        &[
            "ID",
            "SOURCE",
            "SUBJECT",
            "TYPE",
            "KEY",
            "DATA",
            "MADE",
            "WAITS FOR",
        ],
        rows,
    )
}

/// What a message waits for, beyond its turn.
fn waits_for(message: &WaitingMessage) -> String {
    match (&message.conflict, &message.refused, &message.not_before) {
        (Some(why), _, _) => format!("`outbox send` or `drop`: {why}"),
        (None, Some(why), _) => format!("another attempt: {why}"),
        (None, None, Some(time)) => time.clone(),
        (None, None, None) => "its turn".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_rows() {
        let message = WaitingMessage {
            id: "fs.00000000000000ab.7.0.1".to_owned(),
            source: "events".to_owned(),
            subject: "shipping.42.send".to_owned(),
            kind: "send".to_owned(),
            key: String::new(),
            sequence: 7,
            made_at: "2026-11-23T10:00:00.123456789Z".to_owned(),
            bytes: 2_048,
            not_before: None,
            time_to_live_seconds: None,
            expected_last: None,
            conflict: None,
            refused: None,
        };
        assert_eq!(
            lines(std::slice::from_ref(&message)),
            "\
ID                         SOURCE  SUBJECT           TYPE  KEY  DATA     MADE                  WAITS FOR
fs.00000000000000ab.7.0.1  events  shipping.42.send  send  -    2.0 KiB  2026-11-23T10:00:00Z  its turn"
        );
        let later = WaitingMessage {
            not_before: Some("2027-01-01T00:00:00Z".to_owned()),
            ..message
        };
        assert!(lines(std::slice::from_ref(&later)).ends_with("2027-01-01T00:00:00Z"));
        let refused = WaitingMessage {
            refused: Some("it is too large".to_owned()),
            ..later.clone()
        };
        assert!(lines(&[refused]).ends_with("another attempt: it is too large"));
        let aside = WaitingMessage {
            conflict: Some("it has 4".to_owned()),
            ..later
        };
        assert!(lines(&[aside]).ends_with("`outbox send` or `drop`: it has 4"));
    }
}
