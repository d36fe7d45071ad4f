//! Migrating: the new module converts the entries of the active state into a new file.
//!
//! The entries come from one snapshot; the active state continues meanwhile. The new file reflects
//! the snapshot's position, so the candidate continues from there. The old file stays unchanged: a
//! rollback remains possible.

use std::sync::Arc;
use std::time::Duration;

use super::Rollouts;
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Error, crash_points};
use crate::module::{self, Identity, MIGRATION_ENTRIES_MAX, Migration, Module};
use crate::runner::Runner;
use crate::state;
use crate::state::catalogue::{Generation, Record};

/// Pause before the next request for an instance, or another resource that the host lacked.
const HOST_PAUSE: Duration = Duration::from_millis(200);
/// How long a state may take to become durable.
const DURABLE_MAX: Duration = Duration::from_secs(30);
/// How long a newly started host may take to open a state, including a repair.
const OPEN_MAX: Duration = Duration::from_secs(600);

/// Creates the state file of a generation, unless it exists; returns the position that it
/// reflects if it was created now.
pub(super) async fn prepare(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    generation: &Generation,
) -> Result<Option<u64>, Error> {
    let path = rollouts
        .deployments
        .folder
        .state(deployment.name(), generation.state_file);
    // A crash may have come between the file and its record: the file is complete, because it
    // got its name last.
    if path.exists() {
        return Ok(None);
    }
    let record = deployment.record();
    // The old version of the entries, which `migrate` of the new module is called with.
    let from_version = record.active().module.state_version;
    let refused = |error: String| Error::Conflict(format!("cannot migrate: {error}"));
    let serving = deployment.active();
    let opened = tokio::time::timeout(OPEN_MAX, serving.opened()).await;
    let store = opened
        .map_err(|_| refused("the state can't be opened; see `foldstream show`".to_owned()))?;
    // The copy would lack parked events, and nobody would know: so before and after.
    let parked = store.parked_counts().events;
    // Taken between the two counts, so that an event that is parked or released meanwhile is
    // noticed.
    let snapshot = store.snapshot();
    if parked.max(store.parked_counts().events) > 0 {
        return Err(refused(
            "events are parked, which the new state would lack; retry or drop them \
             (`foldstream parked list`), and \
             deploy again"
                .to_owned(),
        ));
    }
    if snapshot.checkpoint().is_none() {
        return Err(refused("there is no state yet; rebuild instead".to_owned()));
    }
    // The candidate reads on after this position.
    let position = snapshot.position();
    if record.handler.is_some() && !is_durable(&serving, position).await {
        // After a crash the owner would handle events again that the new state already has.
        return Err(refused(
            "the state could not be made durable; see `foldstream show`, and try again".to_owned(),
        ));
    }
    let (runners, digest) = (
        Arc::clone(&rollouts.runners),
        generation.module.digest.clone(),
    );
    let identity = Identity {
        deployment: deployment.name().to_owned(),
        generation: generation.number,
    };
    // Only its limits matter: the new file is written through a separate cache, and closed.
    let options = rollouts.config.state_options(0, &rollouts.memory);
    let (watched, number) = (Arc::clone(deployment), generation.number);
    // Asked between pages: an abort, or the end of the host, ends a conversion that may take
    // hours.
    let is_wanted = move || is_wanted(&watched, number);
    let module = blocking(move || runners.load(&digest)).await?;
    let mut migration = begin(&module, &identity, from_version, deployment).await?;
    blocking(move || {
        let mut map = |page: &[(state::Key, crate::event::Payload)]| {
            if !is_wanted() {
                return Err(state::Error::Refused(
                    "the candidate was discarded".to_owned(),
                ));
            }
            let entries = migration
                .page(page)
                .map_err(|error| state::Error::Refused(error.to_string()));
            // With half of the entries in a temporary file, which the next start removes.
            crash_points::reached("migrate-half");
            entries
        };
        let conversion = state::Conversion {
            page_entries: MIGRATION_ENTRIES_MAX,
            map: &mut map,
        };
        state::map(&snapshot, &path, &options, conversion)?;
        crash_points::reached("migrate-made");
        Ok(Some(position))
    })
    .await
}

/// Begins a migration once the host has what it takes. Fails if the candidate is discarded meanwhile.
async fn begin(
    module: &Arc<Module>,
    identity: &Identity,
    from_version: u32,
    deployment: &Deployment,
) -> Result<Migration, module::Error> {
    loop {
        let (module, identity) = (Arc::clone(module), identity.clone());
        let number = identity.generation;
        let made = blocking(move || module.migration(&identity, from_version)).await;
        let error = match made {
            // Others use what it needs at the moment; the module is not at fault.
            Err(error) if error.is_passing() && is_wanted(deployment, number) => error,
            made => return made,
        };
        let over = async {
            tokio::time::sleep(HOST_PAUSE).await;
            // What the machine lacks announces nothing: it is tried again after the pause.
            if let Some(lack) = error.lack() {
                lack.over().await;
            }
        };
        // Whatever ends the wait, the next attempt says what to do.
        tokio::select! {
            () = over => {}
            _ = deployment.until(|record| (!is_candidate(record, number)).then_some(())) => {}
        }
    }
}

/// Whether a generation is still to be built.
fn is_wanted(deployment: &Deployment, number: u64) -> bool {
    deployment.with_record(|record| is_candidate(record, number)) && !deployment.is_gone()
}

fn is_candidate(record: &Record, number: u64) -> bool {
    let generation = record.generation(number);
    generation.is_some_and(|generation| generation.status.is_candidate())
}

/// Makes a state durable; returns whether it is, up to a position.
async fn is_durable(runner: &Runner, position: u64) -> bool {
    // A flush may be on its way or impossible; the checkpoint says what became of it.
    runner.flush_soon(DURABLE_MAX).await;
    let checkpoint = runner.store().and_then(|store| store.checkpoint());
    checkpoint.is_some_and(|checkpoint| checkpoint.position >= position)
}
