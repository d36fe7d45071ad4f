//! `foldstream outbox send`: messages that wait for a time or for a decision, now.

use reqwest::Method;

use super::list;
use crate::api::{SendMessages, SentMessages};
use crate::cli::Context;
use crate::cli::support::output::counted;

/// Send messages now that wait for their time, or that are in conflict.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream outbox send billing fs.1f3a5c7e9b2d4f60.1042.0.0 --reason 'the customer asked'
  foldstream outbox send billing fs.1f3a5c7e9b2d4f60.1042.0.0 --reason checked --without-condition

A message is in conflict if its condition does not hold. It is tried again as it is, and set aside \
again if its condition still does not hold; with --without-condition it is stored in any case. \
Either all of the messages are sent or none. The audit log records them with the reason.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Ids of the messages, as `foldstream outbox list` shows them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Send them even if the last sequence is not the one that they expect.
    #[arg(long)]
    without_condition: bool,
    /// The reason, for the audit log.
    #[arg(long)]
    reason: String,
}

/// Prints what is sent.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let request = client.request(
        Method::POST,
        &["v1", "deployments", &args.name, "outbox", "send"],
    );
    let wanted = SendMessages {
        ids: args.ids,
        reason: args.reason,
        without_condition: args.without_condition,
    };
    let sent: SentMessages = client.answer_of(request.json(&wanted)).await?;
    context.output.many(&sent.messages, &sent, list::lines)?;
    context.output.note(&format!(
        "{} to send; `foldstream outbox list {}` says what becomes of them",
        counted(sent.messages.len() as u64, "message"),
        args.name
    ));
    Ok(())
}
