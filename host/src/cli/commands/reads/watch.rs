//! `foldstream watch`: changes of a read model as they happen.

use anyhow::Context as _;
use serde_json::json;

use super::scan::cell;
use crate::cli::Context;
use crate::cli::support::output::{Format, compact, printable};
use crate::cli::support::received::Change;
use crate::cli::support::sse::Subscription;

/// Print changes of a read model as they happen, until Ctrl-C.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream watch order-totals
  foldstream watch order-totals --prefix customer/ -o ndjson
  foldstream watch order-totals --after 1000000

If a key changes several times in quick succession, at least the last change arrives. If the \
host no longer knows what changed since --after, {\"reset\":true} (or a warning) comes first: \
scan again; later changes follow.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Only keys that begin with this prefix.
    #[arg(long)]
    prefix: Option<String>,
    /// Start with the changes after this position; default: now.
    #[arg(long, value_name = "POSITION")]
    after: Option<u64>,
}

/// Prints one change after another.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let subscription = Subscription {
        client: &client,
        path: vec!["v1", "deployments", &args.name, "changes"],
        parameters: args
            .prefix
            .iter()
            .map(|prefix| ("prefix", prefix.clone()))
            .collect(),
        after: args.after,
        output: context.output,
    };
    let output = context.output;
    subscription
        .follow(|event| match event.event.as_str() {
            "change" => {
                let change: Change = serde_json::from_str(&event.data).context(
                    "the host sent an \
                    unknown change",
                )?;
                Ok(output.line(&line(&change, output.format))?)
            }
            "reset" if output.format == Format::Table => {
                output.warning(
                    "the host no longer knows what changed since then; scan again, \
                                later changes follow",
                );
                Ok(())
            }
            "reset" => Ok(output.line(&compact(&json!({ "reset": true })))?),
            _ => Ok(()),
        })
        .await
}

fn line(change: &Change, format: Format) -> String {
    if format != Format::Table {
        return compact(change);
    }
    let value = if change.deleted {
        "(deleted)".to_owned()
    } else {
        cell(&change.value)
    };
    format!(
        "{}  {}  {}",
        change.position,
        printable(&change.key),
        printable(&value)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::support::received::raw;

    #[test]
    fn changes_are_one_line_each() {
        let mut change = Change {
            key: "customer/42".to_owned(),
            value: raw(r#"{"total":3.0}"#),
            deleted: false,
            position: 17,
        };
        assert_eq!(
            line(&change, Format::Table),
            "17  customer/42  {\"total\":3.0}"
        );
        assert_eq!(
            line(&change, Format::Ndjson),
            r#"{"key":"customer/42","value":{"total":3.0},"position":17}"#
        );
        assert_eq!(line(&change, Format::Json), line(&change, Format::Ndjson));
        change.deleted = true;
        change.value = raw("null");
        assert_eq!(line(&change, Format::Table), "17  customer/42  (deleted)");
        assert_eq!(
            line(&change, Format::Ndjson),
            r#"{"key":"customer/42","value":null,"deleted":true,"position":17}"#
        );
    }
}
