//! `foldstream sagas`: the sagas of a handler.

mod list;

use crate::cli::Context;

/// Show the sagas of a handler: which instances wait for which step, and since when.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream sagas list orders
  foldstream sagas list orders --status running --step payment")]
pub(crate) enum Command {
    List(list::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list::run(args, context).await,
    }
}
