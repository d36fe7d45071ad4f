//! `foldstream outbox drop`: messages that will never be published.

use reqwest::Method;

use super::list;
use crate::api::{DropMessages, DroppedMessages};
use crate::cli::Context;
use crate::cli::support::output::counted;

/// Drop messages that wait. They are never published.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream outbox drop shipping fs.1f3a5c7e9b2d4f60.1042.0.0 --reason 'sent by hand'

Either all of the messages are dropped or none. The audit log records them with the reason. If a \
message was sent and its confirmation was lost, its stream may have it all the same.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Ids of the messages, as `foldstream outbox list` shows them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// The reason, for the audit log.
    #[arg(long)]
    reason: String,
}

/// Prints what was dropped.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let request = client.request(
        Method::POST,
        &["v1", "deployments", &args.name, "outbox", "drop"],
    );
    let wanted = DropMessages {
        ids: args.ids,
        reason: args.reason,
    };
    let dropped: DroppedMessages = client.answer_of(request.json(&wanted)).await?;
    context
        .output
        .many(&dropped.dropped, &dropped, list::lines)?;
    context.output.note(&format!(
        "dropped {}; {} still wait",
        counted(dropped.dropped.len() as u64, "message"),
        counted(dropped.left, "message")
    ));
    Ok(())
}
