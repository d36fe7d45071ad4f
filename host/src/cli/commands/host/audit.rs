//! `foldstream audit`: what was done to deployments.

use crate::api::{AuditEntry, AuditLog};
use crate::cli::Context;
use crate::cli::support::output::table;

/// Show what was done to deployments, newest first.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream audit
  foldstream audit order-totals --limit 10
  foldstream audit -o ndjson | jq -r 'select(.action == \"delete\") | .deployment'")]
pub(crate) struct Args {
    /// Only entries about this deployment, which may be deleted.
    name: Option<String>,
    /// Maximum number of entries.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
}

/// Prints one line per entry.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.name.map(|name| ("deployment", name)));
    let log: AuditLog = context.client()?.get(&["v1", "audit"], &query).await?;
    context.output.many(&log.entries, &log, lines)?;
    if log.entries.is_empty() {
        context.output.note("the audit log has no such entries");
    }
    Ok(())
}

fn lines(entries: &[AuditEntry]) -> String {
    let by = |entry: &AuditEntry| match (&entry.actor, &entry.peer) {
        (Some(actor), Some(peer)) => format!("{actor} ({peer})"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "-".to_owned(),
    };
    let row = |entry: &AuditEntry| {
        let [at, action, deployment, detail] =
            [&entry.at, &entry.action, &entry.deployment, &entry.detail].map(Clone::clone);
        vec![at, action, deployment, by(entry), detail]
    };
    table(
        &["AT", "ACTION", "DEPLOYMENT", "BY", "DETAIL"],
        entries.iter().map(row),
    )
}
