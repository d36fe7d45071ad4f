//! `foldstream outbox`: the messages that wait in the outbox of a handler.

mod drop;
mod list;
mod retry;
mod send;

use crate::cli::Context;

/// Show, send, drop and retry the messages that a handler has not published yet.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream outbox list shipping
  foldstream outbox retry shipping
  foldstream outbox drop shipping fs.1f3a5c7e9b2d4f60.1042.0.0 --reason 'sent by hand'")]
pub(crate) enum Command {
    List(list::Args),
    Retry(retry::Args),
    Send(send::Args),
    Drop(drop::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list::run(args, context).await,
        Command::Retry(args) => retry::run(args, context).await,
        Command::Send(args) => send::run(args, context).await,
        Command::Drop(args) => drop::run(args, context).await,
    }
}
