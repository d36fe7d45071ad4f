//! The work of a test: loads the module, and plays the scenarios of all files.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::sync::watch;

use super::report::{Report, Tested, at};
use super::{Args, baseline, found, junit};
use crate::access::user_folder;
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::support::config_args::{temporary_folder, temporary_folder_in};
use crate::cli::support::exit::{Exit, Failure};
use crate::config::Config;
use crate::memory::Memory;
use crate::module::{self, Engine, Module};
use crate::scenario::{Document, Exploration, Failed, Folders, Runs, Suite, in_order};
use crate::small_file;

/// Where Linux keeps files in memory.
const MEMORY_FOLDER: &str = "/dev/shm";

/// The folder for compiled code among the caches of the user.
const CACHE: &str = "foldstream/code";

/// Temporary folders; dropping it removes them.
#[derive(Debug)]
pub(super) struct Scratch {
    disk: TempDir,
    memory: Option<TempDir>,
}

impl Scratch {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            disk: temporary_folder()?,
            // Without one it takes longer.
            memory: temporary_folder_in(Path::new(MEMORY_FOLDER)).ok(),
        })
    }
}

/// What runs share: compiled code is kept, so that only a module that has changed is compiled.
#[derive(Debug)]
pub(super) struct Bench {
    folders: Folders,
    engine: Engine,
}

/// A file of scenarios that was read.
struct Read<'a> {
    path: &'a Path,
    document: Document,
}

impl Bench {
    pub(super) fn new(scratch: &Scratch) -> anyhow::Result<Self> {
        let checker =
            module::this_program().context("cannot find this program, which checks the module")?;
        let options = |cache| module::Options {
            counts_fuel: true,
            ..Config::default().module_options(cache, checker.clone(), &Memory::unlimited())
        };
        // Kept from run to run: the code of a large module takes seconds to compile.
        let kept = user_folder("XDG_CACHE_HOME", ".cache")
            .and_then(|caches| Engine::new(options(caches.join(CACHE))).ok());
        let engine = match kept {
            Some(engine) => engine,
            None => Engine::new(options(scratch.disk.path().join("cache")))?,
        };
        Ok(Self {
            engine,
            folders: Folders {
                disk: scratch.disk.path().to_owned(),
                memory: scratch
                    .memory
                    .as_ref()
                    .map(|folder| folder.path().to_owned()),
            },
        })
    }

    /// Plays the scenarios of all files, prints a report, and says whether all passed. `stops` ends
    /// it early. Blocking; needs a thread of a runtime.
    pub(super) fn test(
        &self,
        module: &Path,
        args: &Args,
        stops: &watch::Receiver<bool>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let files = args
            .scenarios
            .iter()
            .map(|path| read(path))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if args.baseline.is_some() || args.save_baseline.is_some() {
            baseline::check_names(&args.scenarios)?;
        }
        let baseline = args
            .baseline
            .as_deref()
            .map(baseline::Baseline::read)
            .transpose()?;
        let loaded = self.load(module)?;
        let mut report = Report::of(loaded.manifest().name.clone());
        let runs = if args.once {
            Runs::Once
        } else {
            Runs::AllConditions
        };
        let suite = Suite::new(loaded, self.folders.clone(), runs, stops.clone())?;
        let wanted = wanted(&files, args.only.as_deref())?;
        let begun = Instant::now();
        let play = |place: usize| {
            let (file, index): (&Read<'_>, usize) = wanted[place];
            suite.run(&file.document, index)
        };
        let outcomes = in_order(wanted.len(), jobs(args), play, Result::is_err);
        for ((file, index), outcome) in wanted.iter().zip(outcomes) {
            let name = &file.document.scenarios()[*index].name;
            let outcome = outcome.map_err(|failed| unplayed(file, name, failed))?;
            let tested = Tested::of(file.path, &file.document, *index, outcome);
            report.tested.push(tested.compared(baseline.as_ref()));
        }
        if let Some(scenarios) = args.explore {
            let exploration = Exploration {
                scenarios,
                seed: args.seed,
                jobs: jobs(args),
            };
            explore(&suite, &files, exploration, (&mut report, context))?;
        }
        report.seconds = begun.elapsed().as_secs_f64();
        if let Some((baseline, path)) = baseline.as_ref().zip(args.baseline.as_ref()) {
            warn_of_new(baseline.lacks(&report), path, context);
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

    fn load(&self, module: &Path) -> anyhow::Result<Arc<Module>> {
        let accepted = self.engine.accept(deploy::read_module(module)?)?;
        Ok(self.engine.load(&accepted)?.module)
    }
}

/// Says what a baseline does not guard.
fn warn_of_new(scenarios: usize, baseline: &Path, context: &Context) {
    if scenarios > 0 {
        context.output.warning(&format!(
            "{} not in the baseline, so nothing is compared; add what they cost with \
             `--save-baseline {}`",
            match scenarios {
                1 => "1 scenario is".to_owned(),
                more => format!("{more} scenarios are"),
            },
            baseline.display()
        ));
    }
}

fn jobs(args: &Args) -> usize {
    let usual = || {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // While one waits for its pipeline, another one works.
        2 * processors
    };
    args.jobs.map_or_else(usual, std::num::NonZero::get)
}

/// The scenarios that were asked for.
fn wanted<'a>(
    files: &'a [Read<'a>],
    only: Option<&str>,
) -> anyhow::Result<Vec<(&'a Read<'a>, usize)>> {
    let all = files.iter().flat_map(|file| {
        let scenarios = file.document.scenarios().iter().enumerate();
        scenarios.map(move |(index, scenario)| (file, index, scenario))
    });
    let wanted: Vec<_> = all
        .filter(|(_, _, scenario)| only.is_none_or(|text| scenario.name.contains(text)))
        .map(|(file, index, _)| (file, index))
        .collect();
    if wanted.is_empty() {
        let message = match only {
            Some(_) => "no scenario has that name; leave out --only to see all",
            None => "the files have no scenarios; add one to the list `scenarios`",
        };
        return Err(Failure::new(Exit::NotFound, message).into());
    }
    Ok(wanted)
}

/// Explores the module from the examples of each file, and writes what fails.
fn explore(
    suite: &Suite,
    files: &[Read<'_>],
    exploration: Exploration,
    (report, context): (&mut Report, &Context),
) -> anyhow::Result<()> {
    // A module that does not do what its scenarios say is corrected first.
    if !report.is_passed() {
        return Ok(());
    }
    for file in files {
        let has_examples =
            Suite::has_examples(&file.document).map_err(|mistake| mistaken(file.path, &mistake))?;
        if !has_examples {
            context.output.warning(&format!(
                "{} has no events to draw from, so nothing is explored",
                file.path.display()
            ));
            continue;
        }
        let explored = suite
            .explore(&file.document, exploration)
            .map_err(|failed| unplayed(file, "found by --explore", failed))?;
        let found = explored
            .map(|explored| found::write(file.path, explored))
            .transpose()?;
        report.explored(file.path, exploration.scenarios, found);
    }
    Ok(())
}

/// Reads a file of scenarios.
fn read(path: &Path) -> anyhow::Result<Read<'_>> {
    let shown = path.display();
    let text = small_file::read_text(path).map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Usage
        };
        Failure::new(exit, format!("cannot read {shown}: {error}"))
    })?;
    let document = Document::read(&text).map_err(|mistake| mistaken(path, &mistake))?;
    Ok(Read { path, document })
}

/// A mistake, with its place.
fn mistaken(path: &Path, mistake: &crate::scenario::Mistake) -> Failure {
    let at = at(&path.display().to_string(), mistake.place);
    Failure::new(Exit::Usage, format!("{at}: {mistake}"))
}

/// Why a scenario has no outcome, with its exit code.
fn unplayed(file: &Read<'_>, scenario: &str, failed: Failed) -> anyhow::Error {
    let shown = file.path.display();
    match failed {
        Failed::Mistake(mistake) => mistaken(file.path, &mistake).into(),
        Failed::Error(error) => {
            anyhow::Error::new(error).context(format!("{shown}: scenario `{scenario}`"))
        }
    }
}
