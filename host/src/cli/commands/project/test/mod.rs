//! `foldstream test`: scenarios against a compiled module, without a host.

mod baseline;
mod bench;
mod found;
mod junit;
mod report;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;

use crate::cli::Context;
use crate::cli::support::exit::{Failure, message_of};
use crate::cli::support::local_host::Stops;
use crate::cli::support::output::pretty;
use crate::cli::support::watched::{RecursiveMode, Watched};
use crate::scenario;

use bench::{Bench, Scratch};

/// Longest wait for a run to end after Ctrl-C: a module may still be at work.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Test a module with scenarios: files that give events, say what happens, and state the expected
/// results.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream test order-totals.wasm scenarios.yaml
  foldstream test order-totals.wasm scenarios/*.yaml --only cancelled
  foldstream test order-totals.wasm scenarios.yaml --junit junit.xml --baseline costs.json
  foldstream test order-totals.wasm scenarios.yaml --explore 200
  foldstream test order-totals.wasm scenarios.yaml --watch
  foldstream test --schema > scenarios.schema.json

Each scenario is played again with other batches, restarts, clocks and random numbers, and with \
events delivered twice if the module has an inbox: the result must not change. --explore does the \
same with events drawn from the examples in the files. It reduces a scenario that fails, and \
writes it next to the file, as FILE.found-1.yaml.

It ends with 1 if a scenario fails or a cost has grown, with 2 if a file of scenarios has a \
mistake, with 3 if a file is missing, and with 4 if the module is refused.")]
pub(crate) struct Args {
    /// The module.
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Files of scenarios.
    #[arg(required_unless_present = "schema", value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    /// Only scenarios whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Play each scenario once, without other batches and restarts.
    #[arg(long)]
    once: bool,
    /// Also play this many scenarios that are drawn from the examples in each file.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    explore: Option<u32>,
    /// Draw other scenarios; the same seed draws the same ones.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "explore")]
    seed: u64,
    /// How many scenarios are played at once; default: twice the number of processors.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Write a report in the format of JUnit.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Fail if events cost more than this file says.
    #[arg(long, value_name = "FILE", conflicts_with = "once")]
    baseline: Option<PathBuf>,
    /// Write what events cost, for `--baseline`.
    #[arg(long, value_name = "FILE", conflicts_with = "once")]
    save_baseline: Option<PathBuf>,
    /// Run again whenever a file changes.
    #[arg(long)]
    watch: bool,
    /// Print the JSON Schema of scenario files, for editors.
    #[arg(long, conflicts_with_all = ["file", "scenarios", "watch", "junit", "baseline"])]
    schema: bool,
}

/// Runs the scenarios, and says whether all passed.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if args.schema {
        context.output.line(&pretty(&scenario::schema()))?;
        return Ok(());
    }
    let mut signals = Stops::catch()?;
    let module = args.file.clone().context("a module is required")?;
    // Kept here: it is removed at the end, also if a run is still at work.
    let scratch = Scratch::new()?;
    let bench = Arc::new(Bench::new(&scratch)?);
    // Before the first run, so that a change during it is not missed.
    let watched = args
        .watch
        .then(|| watch(args.scenarios.iter().chain([&module])))
        .transpose()?;
    let args = Arc::new(args);
    loop {
        let stops = watch::Sender::new(false);
        let mut work = tokio::task::spawn_blocking({
            let (bench, args, context) = (Arc::clone(&bench), Arc::clone(&args), context.clone());
            let (module, stops) = (module.clone(), stops.subscribe());
            move || bench.test(&module, &args, &stops, &context)
        });
        let Some(result) = signals.unless(&mut work).await else {
            stops.send_replace(true);
            // Whatever it says now is of no interest.
            let _ = tokio::time::timeout(STOP_WAIT, work).await;
            return Err(Failure::interrupted().into());
        };
        let result = result.context("a run ended unexpectedly")?;
        let Some(watched) = &watched else {
            return result;
        };
        if let Err(error) = result {
            // The next change may correct it.
            context.output.error(&message_of(&error));
        }
        context.output.note("waiting for changes; Ctrl-C ends this");
        if signals.unless(watched.changed()).await.is_none() {
            return Err(Failure::interrupted().into());
        }
    }
}

fn watch<'a>(files: impl Iterator<Item = &'a PathBuf>) -> anyhow::Result<Watched> {
    let files: BTreeSet<PathBuf> = files
        .map(|file| {
            std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    // Folders and not files: editors replace a file by another one.
    let folders: BTreeSet<PathBuf> = files
        .iter()
        .filter_map(|file| file.parent().map(Path::to_owned))
        .collect();
    let mut watched = Watched::new(move |path| files.contains(path))?;
    for folder in folders {
        watched.add(&folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watched)
}
