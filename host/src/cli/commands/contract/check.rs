//! `foldstream contract check`: whether new schemas are compatible with earlier ones.

use std::path::PathBuf;

use anyhow::Context as _;

use super::mode::Mode;
use super::report::{Demand, OnUnknown, Report};
use super::sides::{self, Side};
use crate::cli::Context;
use crate::cli::support::exit::{Exit, Failure};

/// Check whether new schemas of events are compatible with earlier ones, or with what the deployed
/// modules read.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream contract check before/schemas schemas
  foldstream contract check placed.json placed.v2.json --mode forward
  foldstream contract check v1.wasm v2.wasm v3.wasm --mode full-transitive
  foldstream contract check ../orders/schemas --deployed
  foldstream contract check before/schemas schemas -o json | jq '.checks[].reasons'

A file is a JSON Schema, named after the type of its event; a folder has such files; a module \
carries those with which it was built. The last one is the new one. With --mode backward (the \
default) the new schema must accept all that fits the old one, with forward the old schema all that \
fits the new one, with full both. Only the last of several old ones counts, unless the mode is \
transitive. --deployed checks that each deployed module reads all that fits the new schemas, and lists \
deployments without a schema of these events; with --require-schemas they fail the check.

It is strict: `compatible` means that nothing that one side accepts is refused by the other. By \
JSON Schema, members that a schema does not name may have any value. Keywords that the check does \
not understand count as incompatible, unless there is --allow-unknown.

It ends with 1 if something is not compatible, with 3 if a file is missing or there is no event to \
compare (with --deployed, no deployed module that carries a schema of one), with 4 if a schema or \
module is refused, and with 5 if the host cannot be reached.")]
pub(crate) struct Args {
    /// The old schemas, oldest first, and the new ones: files, folders or modules.
    #[arg(required = true, value_name = "OLD... NEW")]
    sides: Vec<PathBuf>,
    /// What must be compatible.
    #[arg(long, value_enum, default_value_t, conflicts_with = "deployed")]
    mode: Mode,
    /// Compare with what the modules on a host read, instead of old schemas.
    #[arg(long)]
    deployed: bool,
    /// Fail if a deployment carries no schema of these events.
    #[arg(long, requires = "deployed", conflicts_with = "mode")]
    require_schemas: bool,
    /// Accept keywords that the check does not understand.
    #[arg(long)]
    allow_unknown: bool,
}

/// Compares the schemas, prints a report, and says whether they are compatible.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let (new, old) = args.sides.split_last().context("a file is required")?;
    let on_unknown = if args.allow_unknown {
        OnUnknown::Pass
    } else {
        OnUnknown::Fail
    };
    let mut report = Report::new(on_unknown);
    if args.deployed {
        if !old.is_empty() {
            let message = "--deployed compares one new side with a host; leave out the old ones";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        let new = Side::read(new).await?;
        let events = new.written_events();
        if events.is_empty() {
            let message = format!("{} has no schemas of events; nothing is compared", new.name);
            return Err(Failure::new(Exit::NotFound, message).into());
        }
        let deployed = sides::deployed(&context.client()?, &events).await?;
        for consumer in &deployed.consumers {
            report.add_consumer(consumer, &new);
        }
        let demand = if args.require_schemas {
            Demand::Schemas
        } else {
            Demand::None
        };
        report.add_unknown(deployed.unknown, demand);
    } else {
        let skipped = if args.mode.is_transitive() {
            0
        } else {
            old.len().saturating_sub(1)
        };
        if old.is_empty() {
            let message = "name old schemas and the new ones, or compare with a host by --deployed";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        let new = Side::read(new).await?;
        for old in &old[skipped..] {
            let old = Side::read(old).await?;
            if !report.add(&old, &new, args.mode) {
                let message = format!("{} and {} have no event in common", old.name, new.name);
                return Err(Failure::new(Exit::NotFound, message).into());
            }
        }
    }
    context
        .output
        .many(&report.checks, &report, |_| report.text())?;
    report.verdict()
}
