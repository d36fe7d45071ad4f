//! `foldstream timers`: the timers of a handler.

mod list;

use crate::cli::Context;

/// Show the timers of a handler that are pending.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream timers list shipping
  foldstream timers list shipping --limit 1000 -o ndjson | jq -r .name")]
pub(crate) enum Command {
    List(list::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list::run(args, context).await,
    }
}
