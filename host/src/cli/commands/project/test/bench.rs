//! The work of a test: loads the module, and plays the scenarios of all files.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::Context as _;
use tempfile::TempDir;

use super::report::{Report, Tested};
use super::{Args, baseline, found, junit};
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::support::config_args::{temporary_folder, temporary_folder_in};
use crate::cli::support::exit::{Exit, Failure};
use crate::config::Config;
use crate::memory::Memory;
use crate::module::{self, Engine, Module};
use crate::scenario::{Document, Exploration, Failed, Folders, Outcome, Suite};
use crate::small_file;

/// Where Linux keeps files in memory.
const MEMORY_FOLDER: &str = "/dev/shm";

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
        let cache = scratch.disk.path().join("cache");
        let options = module::Options {
            counts_fuel: true,
            ..Config::default().module_options(cache, checker, &Memory::unlimited())
        };
        Ok(Self {
            engine: Engine::new(options)?,
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
        stops: &Arc<AtomicBool>,
        context: &Context,
    ) -> anyhow::Result<()> {
        let files = args
            .scenarios
            .iter()
            .map(|path| read(path))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let baseline = args
            .baseline
            .as_deref()
            .map(baseline::Baseline::read)
            .transpose()?;
        let loaded = self.load(module)?;
        let mut report = Report::of(loaded.manifest().name.clone());
        let suite = Suite::new(loaded, self.folders.clone(), !args.once, Arc::clone(stops));
        let wanted = wanted(&files, args.only.as_deref())?;
        let begun = Instant::now();
        let outcomes = play_all(&suite, &wanted, jobs(args));
        for ((file, index), outcome) in wanted.iter().zip(outcomes) {
            let outcome = outcome.map_err(|failed| unplayed(file, *index, failed))?;
            let tested = Tested::of(file.path, &file.document, *index, outcome);
            report.tested.push(tested.compared(baseline.as_ref()));
        }
        if let Some(scenarios) = args.explore {
            let exploration = Exploration {
                scenarios,
                seed: args.seed,
            };
            explore(&suite, &files, exploration, &mut report)?;
        }
        report.seconds = begun.elapsed().as_secs_f64();
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

fn jobs(args: &Args) -> usize {
    let usual = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
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

/// Plays scenarios on some threads. The outcomes are in the order of the scenarios; after an error
/// nothing more begins, and what has not begun is left out.
fn play_all(
    suite: &Suite,
    wanted: &[(&Read<'_>, usize)],
    jobs: usize,
) -> Vec<Result<Outcome, Failed>> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<OnceLock<Result<Outcome, Failed>>> =
        wanted.iter().map(|_| OnceLock::new()).collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(wanted.len()) {
            scope.spawn(|| {
                // In order, so that all that comes before an error has an outcome.
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some((file, index)) = wanted.get(place) else {
                        return;
                    };
                    let outcome = suite.run(&file.document, *index);
                    if outcome.is_err() {
                        next.store(wanted.len(), Ordering::Relaxed);
                    }
                    // Each place is taken once.
                    let _ = outcomes[place].set(outcome);
                }
            });
        }
    });
    outcomes
        .into_iter()
        .filter_map(OnceLock::into_inner)
        .collect()
}

/// Explores the module from the examples of each file, and writes what fails.
fn explore(
    suite: &Suite,
    files: &[Read<'_>],
    exploration: Exploration,
    report: &mut Report,
) -> anyhow::Result<()> {
    // A module that does not do what its scenarios say is corrected first.
    if !report.is_passed() {
        return Ok(());
    }
    for file in files {
        let explored = suite
            .explore(&file.document, exploration)
            .map_err(|failed| unplayed(file, 0, failed))?;
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

/// A mistake, with its place as editors and terminals understand it.
fn mistaken(path: &Path, mistake: &crate::scenario::Mistake) -> Failure {
    let shown = path.display();
    let place = mistake.place.map_or_else(String::new, |place| {
        format!("{}:{}:", place.line, place.column)
    });
    Failure::new(Exit::Usage, format!("{shown}:{place} {mistake}"))
}

/// Why a scenario has no outcome, with its exit code.
fn unplayed(file: &Read<'_>, index: usize, failed: Failed) -> anyhow::Error {
    let shown = file.path.display();
    match failed {
        Failed::Mistake(mistake) => mistaken(file.path, &mistake).into(),
        Failed::Error(error) => {
            let name = &file.document.scenarios()[index].name;
            anyhow::Error::new(error).context(format!("{shown}: scenario `{name}`"))
        }
    }
}
