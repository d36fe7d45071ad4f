//! `foldstream contract`: the schemas of events, between producers and consumers.

mod check;
mod mode;
mod report;
mod sides;

use crate::cli::Context;

/// Compare the JSON Schemas of events: can each consumer read what each producer writes?
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream contract check before/schemas schemas
  foldstream contract check order-totals-1.wasm order-totals.wasm --mode full
  foldstream contract check ../orders/schemas --deployed")]
pub(crate) enum Command {
    Check(check::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Check(args) => check::run(args, context).await,
    }
}
