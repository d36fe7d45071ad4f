//! `foldstream events`: the events of a source.

mod append;
mod export;
mod import;
mod items;
mod read;
mod tail;
mod times;

pub(crate) use import::{Options as ImportOptions, import_file};

use crate::cli::Context;

/// Append, import, read, follow and export events.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream events append orders.42.placed '{\"amount\": 10}'
  foldstream events import events.ndjson
  foldstream events read --subject 'orders.*.placed' --limit 20
  foldstream events tail
  foldstream events export > events.ndjson
  foldstream events export --format cloudevents > cloudevents.ndjson")]
pub(crate) enum Command {
    Append(append::Args),
    Import(import::Args),
    Read(read::Args),
    Tail(tail::Args),
    Export(export::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Append(args) => append::run(args, context).await,
        Command::Import(args) => import::run(args, context).await,
        Command::Read(args) => read::run(args, context).await,
        Command::Tail(args) => tail::run(args, context).await,
        Command::Export(args) => export::run(args, context).await,
    }
}
