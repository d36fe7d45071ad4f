//! `foldstream test`: scenarios against a compiled module, without a host.

mod baseline;
mod junit;
mod report;
mod watching;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::config::Config;
use crate::memory::Memory;
use crate::module::{self, Engine};
use crate::scenario::{self, File, Suite};
use crate::small_file;

use report::{Report, Tested};

/// Test a module with scenarios: files that say which events are given, what happens, and what is
/// so then.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream test order-totals.wasm scenarios.yaml
  foldstream test order-totals.wasm scenarios/*.yaml --only cancelled
  foldstream test order-totals.wasm scenarios.yaml --junit junit.xml --baseline costs.json
  foldstream test order-totals.wasm scenarios.yaml --watch
  foldstream test --schema > scenarios.schema.json

Each scenario is played again with other batches, restarts and random numbers, and with events \
delivered twice if the module has an inbox: the result must not change.

It ends with 1 if a scenario fails or a cost has grown, with 2 if a file of scenarios has a \
mistake, with 3 if a file is missing, and with 4 if the module is refused.")]
pub(crate) struct Args {
    /// The module.
    #[arg(required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Files of scenarios.
    #[arg(required_unless_present = "schema", value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    /// Only scenarios whose name has this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Play each scenario once, without other batches and restarts.
    #[arg(long)]
    once: bool,
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
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    if args.schema {
        let schema = crate::cli::support::output::pretty(&scenario::schema());
        context.output.line(&schema)?;
        return Ok(());
    }
    let module = args.file.as_deref().context("a module is required")?;
    let bench = Bench::new()?;
    if !args.watch {
        return bench.test(module, args, context);
    }
    let files = args.scenarios.iter().map(PathBuf::as_path);
    let watching = watching::Watching::of(files.chain([module]))?;
    loop {
        match bench.test(module, args, context) {
            Ok(()) => {}
            // The next change may correct it.
            Err(error) => {
                let message = crate::cli::support::exit::message_of(&error);
                context.output.error(&message);
            }
        }
        context.output.note("waiting for changes; Ctrl-C ends this");
        watching.changed();
    }
}

/// What runs share: compiled code is kept, so that only a module that has changed is compiled.
struct Bench {
    folder: tempfile::TempDir,
    engine: Engine,
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let folder = config_args::temporary_folder()?;
        let checker =
            module::this_program().context("cannot find this program, which checks the module")?;
        let options = Config::default().module_options(
            folder.path().join("cache"),
            checker,
            &Memory::unlimited(),
        );
        Ok(Self {
            engine: Engine::new(options)?,
            folder,
        })
    }

    fn test(&self, module: &Path, args: &Args, context: &Context) -> anyhow::Result<()> {
        let files = args
            .scenarios
            .iter()
            .map(|path| Ok((path.as_path(), read(path)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let baseline = args
            .baseline
            .as_deref()
            .map(baseline::Baseline::read)
            .transpose()?;
        let accepted = self.engine.accept(deploy::read_module(module)?)?;
        let loaded = self.engine.load(&accepted)?.module;
        let name = loaded.manifest().name.clone();
        let suite = Suite::new(loaded, self.folder.path(), !args.once)?;
        let begun = Instant::now();
        let mut report = Report::of(name);
        for (path, file) in &files {
            for scenario in wanted(file, args.only.as_deref()) {
                let outcome = suite
                    .run(file, scenario)
                    .map_err(|failed| unplayed(path, &scenario.name, failed))?;
                let tested = Tested::of(path, scenario, outcome, baseline.as_ref());
                report.tested.push(tested);
            }
        }
        report.seconds = begun.elapsed().as_secs_f64();
        if report.tested.is_empty() {
            let message = match &args.only {
                Some(_) => "no scenario has that name; leave out --only to see all",
                None => "the files have no scenarios; add one to the list `scenarios`",
            };
            return Err(Failure::new(Exit::NotFound, message).into());
        }
        if let Some(path) = &args.junit {
            junit::write(&report, path)?;
        }
        if let Some(path) = &args.save_baseline {
            baseline::Baseline::of(&report).write(path)?;
        }
        context
            .output
            .many(&report.tested, &report, |_| report.text())?;
        report.verdict()
    }
}

/// The scenarios of a file that were asked for.
fn wanted<'a>(
    file: &'a File,
    only: Option<&'a str>,
) -> impl Iterator<Item = &'a scenario::Scenario> {
    file.scenarios
        .iter()
        .filter(move |scenario| only.is_none_or(|text| scenario.name.contains(text)))
}

/// Reads a file of scenarios.
fn read(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let text = small_file::read_text(path).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Usage
        };
        Failure::new(exit, format!("cannot read {shown}: {error}"))
    })?;
    let file = File::parse(&text)
        .map_err(|mistake| Failure::new(Exit::Usage, format!("{shown}: {mistake}")))?;
    Ok(file)
}

/// Why a scenario has no outcome, with its exit code.
fn unplayed(path: &Path, name: &str, failed: scenario::Failed) -> anyhow::Error {
    let shown = path.display();
    match failed {
        scenario::Failed::Mistake(mistake) => {
            Failure::new(Exit::Usage, format!("{shown}: {mistake}")).into()
        }
        scenario::Failed::Error(error) => {
            anyhow::Error::new(error).context(format!("{shown}: scenario `{name}`"))
        }
    }
}
