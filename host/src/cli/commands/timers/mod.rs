//! `foldstream timers`: the timers of a handler.

mod change;
mod list;

use crate::cli::Context;

/// Show the timers of a handler that are pending; fire or drop one.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream timers list shipping
  foldstream timers list shipping --limit 1000 -o ndjson | jq -r .name
  foldstream timers fire shipping payment/42
  foldstream timers drop shipping payment/42")]
pub(crate) enum Command {
    List(list::Args),
    /// Fire a timer now, whatever its time.
    #[command(before_help = "\
Examples:
  foldstream timers fire shipping payment/42
  foldstream timers fire shipping payment/42 --dry-run    # which timer that is

The handler's stream stores a message for it, like any firing, so that a rebuild fires it at the same place.")]
    Fire(change::Args),
    /// Drop a timer: it never fires.
    #[command(before_help = "\
Examples:
  foldstream timers drop shipping payment/42
  foldstream timers drop shipping payment/42 --dry-run    # which timer that is

What waits for the timer, such as a step of a saga without its answer, waits for ever.")]
    Drop(change::Args),
}

/// Does what was asked for.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list::run(args, context).await,
        Command::Fire(args) => change::run(args, "fire", context).await,
        Command::Drop(args) => change::run(args, "drop", context).await,
    }
}
