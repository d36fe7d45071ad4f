//! `foldstream timers list`: what is pending.

use crate::api::{PendingTimer, PendingTimers};
use crate::cli::Context;
use crate::cli::support::output::{grouped, table};
use crate::cli::support::pages::{PageArgs, note_end};

/// Show the timers that are pending, in the order in which they fire.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream timers list shipping
  foldstream timers list shipping --limit 1000 -o ndjson | jq -r .name

`foldstream show` says how many are pending, and why some cannot fire.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    #[command(flatten)]
    page: PageArgs,
}

/// Prints one line per timer.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let page: PendingTimers = context
        .client()?
        .get(
            &["v1", "deployments", &args.name, "timers"],
            &args.page.query(),
        )
        .await?;
    context.output.many(&page.timers, &page, lines)?;
    note_end(
        context.output,
        &page.timers,
        page.next.as_deref(),
        "no timers are pending",
    );
    Ok(())
}

/// A table of timers.
pub(crate) fn lines(timers: &[PendingTimer]) -> String {
    let rows = timers.iter().map(|timer| {
        let key = timer.key.as_deref().filter(|key| !key.is_empty());
        vec![
            timer.at.clone(),
            timer.name.clone(),
            key.unwrap_or("-").to_owned(),
            grouped(timer.set_by),
        ]
    });
    table(&["FIRES", "NAME", "KEY", "SET BY"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_rows() {
        let timer = PendingTimer {
            name: "payment/42".to_owned(),
            at: "2026-11-23T10:00:00.000000000Z".to_owned(),
            set_by: 1_042,
            key: Some("42".to_owned()),
        };
        assert_eq!(
            lines(&[timer]),
            "\
FIRES                           NAME        KEY  SET BY
2026-11-23T10:00:00.000000000Z  payment/42  42   1,042"
        );
    }
}
