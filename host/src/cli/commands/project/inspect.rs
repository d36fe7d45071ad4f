//! `foldstream inspect`: describes a module without deploying it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use tempfile::TempDir;

use crate::api::{Direction, Inbox, ModuleInfo};
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::support::config_args;
use crate::cli::support::output::{bytes, counted, grouped, table};
use crate::config::Config;
use crate::memory::Memory;
use crate::module::{self, Engine};
use crate::schemas::{self, EventSchema};

/// Show a module's kind, manifest, imports, size and digest.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream inspect order-totals.wasm
  foldstream inspect order-totals.wasm -o json | jq -r .digest")]
pub(crate) struct Args {
    /// The module.
    file: PathBuf,
}

/// What to show for a module that can migrate.
pub(crate) const MIGRATES: &str = "state of older versions";

/// What to show for a module that sets timers.
const SETS_TIMERS: &str =
    "set by it; they fire as messages of the stream that it reads, `_fs.timers.DEPLOYMENT`";

/// What the check found in a file.
#[derive(Debug)]
pub(crate) struct Examined {
    /// The component, as a host stores it.
    pub component: Bytes,
    pub info: ModuleInfo,
}

/// Checks the module as a host would, and prints its description.
pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let examined = examine(deploy::read_module(&args.file)?)?;
    context.output.one(&examined.info, lines)?;
    Ok(())
}

/// Checks and compiles a module with the limits of a host, and calls its manifest.
pub(crate) fn examine(upload: Bytes) -> anyhow::Result<Examined> {
    let (engine, _cache) = engine()?;
    let accepted = engine.accept(upload)?;
    let loaded = engine.load(&accepted)?;
    Ok(Examined {
        component: accepted.component,
        info: loaded.module.info().clone().into(),
    })
}

/// Checks a module as a host would, and returns the schemas that it carries.
pub(crate) fn carried(upload: Bytes) -> anyhow::Result<Arc<[EventSchema]>> {
    let (engine, _cache) = engine()?;
    Ok(engine.accept(upload)?.schemas)
}

/// An engine with the limits of a host, and its folder.
fn engine() -> anyhow::Result<(Engine, TempDir)> {
    let cache = config_args::temporary_folder()?;
    let checker =
        module::this_program().context("cannot find this program, which checks the module")?;
    let mut options =
        Config::default().module_options(cache.path().to_owned(), checker, &Memory::unlimited());
    // Only one instance is needed, for the manifest.
    options.instances_max = module::PLACES_PER_INSTANCE_MAX;
    Ok((Engine::new(options)?, cache))
}

fn lines(info: &ModuleInfo) -> String {
    let mut rows = vec![
        ("kind", info.kind.name().to_owned()),
        ("name", info.name.clone()),
        ("description", info.description.clone()),
        ("size", format!("{} ({})", bytes(info.size), info.size)),
        ("digest", info.digest.clone()),
        ("subjects", info.subjects.join(", ")),
        (
            "headers",
            if info.wants_headers {
                "wanted".to_owned()
            } else {
                "not wanted".to_owned()
            },
        ),
        ("key", info.key_rule.clone()),
    ];
    rows.extend(info.inbox.iter().map(|asked| ("inbox", inbox(asked))));
    rows.extend([
        ("error policy", error_policy(info)),
        ("limits", limits(info)),
        ("state version", info.state_version.to_string()),
    ]);
    rows.extend(info.migrates.then(|| ("migrates", MIGRATES.to_owned())));
    rows.extend(
        info.queries
            .iter()
            .map(|query| ("query", format!("{}: {}", query.name, query.description))),
    );
    rows.extend(
        info.publishes
            .iter()
            .map(|subjects| ("publishes", format!("{subjects}, if a deploy allows it"))),
    );
    rows.extend(info.sets_timers.then(|| ("timers", SETS_TIMERS.to_owned())));
    for (title, direction) in [
        ("read schemas", Direction::Reads),
        ("published schemas", Direction::Publishes),
    ] {
        let events = events(info, direction);
        rows.extend((!events.is_empty()).then(|| (title, events.join(", "))));
    }
    rows.extend(info.imports.iter().map(|import| ("import", import.clone())));
    table(
        &[],
        rows.into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]),
    )
}

/// The events for which a module carries schemas.
fn events(info: &ModuleInfo, direction: Direction) -> Vec<String> {
    let events = info.events.iter();
    events
        .filter(|event| event.direction == direction)
        .map(|event| schemas::name(&event.event, event.version))
        .collect()
}

/// How events are recognised that were published twice.
pub(crate) fn inbox(inbox: &Inbox) -> String {
    let window = std::time::Duration::from_millis(inbox.window_ms);
    format!(
        "{} within {}, at most {} ids",
        inbox.id,
        humantime::format_duration(window),
        grouped(inbox.ids_max)
    )
}

/// How often the host tries a failing batch.
pub(crate) fn error_policy(info: &ModuleInfo) -> String {
    let policy = &info.error_policy;
    let parts = [
        policy
            .attempts
            .map(|attempts| counted(attempts.into(), "attempt")),
        policy
            .initial_backoff_ms
            .map(|pause| format!("first pause {pause} ms")),
        policy
            .max_backoff_ms
            .map(|pause| format!("longest pause {pause} ms")),
    ];
    asked_for(parts)
}

/// The limits that the module asks for.
pub(crate) fn limits(info: &ModuleInfo) -> String {
    let limits = &info.limits;
    let parts = [
        limits
            .memory_bytes
            .map(|memory| format!("memory {}", bytes(memory))),
        limits
            .deadline_ms
            .map(|deadline| format!("deadline {deadline} ms")),
        limits
            .batch_events
            .map(|events| format!("batch {}", counted(events.into(), "event"))),
        limits
            .state_bytes
            .map(|state| format!("state {}", bytes(state))),
    ];
    asked_for(parts)
}

/// What a module asks for; it may leave everything to the host.
fn asked_for<const N: usize>(parts: [Option<String>; N]) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "the host's".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EventVersion;

    #[test]
    fn module_is_shown_with_all_that_it_says() {
        assert_eq!(
            lines(&crate::cli::commands::deployments::show::tests::deployment().module),
            "\
kind           projection
name           order-totals
description    Totals per customer
size           100.0 KiB (102400)
digest         abcdef0123456789
subjects       orders.>
headers        not wanted
key            subject-token:2
error policy   3 attempts, first pause 10 ms
limits         memory 32.0 MiB, deadline 1000 ms
state version  1
query          top-customers: those who spent most
import         foldstream:module/state@0.1.0"
        );
    }

    #[test]
    fn module_that_asks_for_nothing_takes_what_the_host_has() {
        let mut info = crate::cli::commands::deployments::show::tests::deployment().module;
        info.error_policy = crate::api::ErrorPolicy::default();
        info.limits = crate::api::ModuleLimits::default();
        assert_eq!(
            (error_policy(&info).as_str(), limits(&info).as_str()),
            ("the host's", "the host's")
        );
    }

    #[test]
    fn module_that_recognises_duplicates_says_how() {
        let mut info = crate::cli::commands::deployments::show::tests::deployment().module;
        info.inbox = Some(Inbox {
            id: "message-id".to_owned(),
            window_ms: 86_400_500,
            ids_max: 1_000_000,
        });
        let shown = lines(&info);
        let line = "\ninbox          message-id within 1day 500ms, at most 1,000,000 ids\n";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn module_that_sets_timers_says_so() {
        let mut info = crate::cli::commands::deployments::show::tests::deployment().module;
        assert!(!lines(&info).contains("timers"));
        info.sets_timers = true;
        let shown = lines(&info);
        assert!(shown.contains("\ntimers         set by it; "), "{shown}");
    }

    #[test]
    fn module_with_schemas_says_for_which_events() {
        let mut info = crate::cli::commands::deployments::show::tests::deployment().module;
        let event = |event: &str, version, direction| EventVersion {
            event: event.to_owned(),
            version,
            direction,
        };
        info.events = vec![
            event("placed", 1, Direction::Reads),
            event("placed", 2, Direction::Reads),
            event("shipped", 1, Direction::Publishes),
        ];
        let shown = lines(&info);
        assert!(
            shown.contains("\nread schemas       placed, placed v2\n"),
            "{shown}"
        );
        assert!(shown.contains("\npublished schemas  shipped\n"), "{shown}");
    }

    #[test]
    fn module_that_migrates_says_so() {
        let mut info = crate::cli::commands::deployments::show::tests::deployment().module;
        info.migrates = true;
        let shown = lines(&info);
        assert!(
            shown.contains("\nstate version  1\nmigrates       state of older versions\nquery "),
            "{shown}"
        );
    }
}
