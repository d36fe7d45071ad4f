//! `foldstream skips`: the events that a deployment skips.

use reqwest::Method;

use crate::api::{Skip, SkipList};
use crate::cli::Context;
use crate::cli::support::output::{counted, table};

/// Show the events that a deployment skips, and why; or withdraw a decision.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream skips order-totals
  foldstream skips order-totals -o ndjson | jq .reason
  foldstream skips order-totals --remove 17   # a rebuild then folds it

`foldstream resume NAME --skip SEQUENCE` skips an event. Withdrawing a decision does not change \
a state that has already passed the event; a state that is built from scratch folds it again.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Withdraw the decision to skip this event.
    #[arg(long, value_name = "SEQUENCE")]
    remove: Option<u64>,
}

/// Prints one line per event.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let list: SkipList = match args.remove {
        None => {
            client
                .get(&["v1", "deployments", &args.name, "skips"], &[])
                .await?
        }
        Some(sequence) => {
            let sequence = sequence.to_string();
            let request = client.request(
                Method::DELETE,
                &["v1", "deployments", &args.name, "skips", &sequence],
            );
            client.answer_of(request).await?
        }
    };
    context.output.many(&list.skips, &list, lines)?;
    if list.skips.is_empty() {
        context.output.note("no events are skipped");
    }
    Ok(())
}

fn lines(skips: &[Skip]) -> String {
    let rows = skips.iter().map(|skip| {
        vec![
            skip.sequence.to_string(),
            skip.state.name().to_owned(),
            skip.subject.clone().unwrap_or_else(|| "-".to_owned()),
            skip.kind.clone().unwrap_or_else(|| "-".to_owned()),
            skip.at
                .split('.')
                .next()
                .unwrap_or_default()
                .trim_end_matches('Z')
                .to_owned()
                + "Z",
            match skip.later {
                0 => skip.reason.clone(),
                later => format!(
                    "{} (and {} of its key)",
                    skip.reason,
                    counted(later, "later event")
                ),
            },
        ]
    });
    table(
        &["SEQUENCE", "STATE", "SUBJECT", "TYPE", "DECIDED", "REASON"],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SkipState;

    #[test]
    fn skips_are_rows() {
        let skip = Skip {
            sequence: 17,
            later: 0,
            state: SkipState::Skipped,
            reason: "not JSON".to_owned(),
            at: "2026-11-23T10:00:00.123456789Z".to_owned(),
            error: None,
            subject: Some("orders.42.placed".to_owned()),
            kind: Some("placed".to_owned()),
            time: None,
            digest: None,
        };
        let unreadable = Skip {
            sequence: 18,
            later: 7,
            state: SkipState::Ahead,
            subject: None,
            kind: None,
            ..skip.clone()
        };
        assert_eq!(
            lines(&[skip, unreadable]),
            "\
SEQUENCE  STATE    SUBJECT           TYPE    DECIDED               REASON
17        skipped  orders.42.placed  placed  2026-11-23T10:00:00Z  not JSON
18        ahead    -                 -       2026-11-23T10:00:00Z  not JSON (and 7 later events of its key)"
        );
    }
}
