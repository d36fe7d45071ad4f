//! Deploys a module: checks the upload, plans, and creates a deployment or its next generation.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::build::{Recipe, new_generation, set_beginning};
use super::pausing::{self, ResumeTerms};
use super::plan::{Plan, Requested};
use super::{Locked, Rollouts};
use super::{beginning, build, disk_space, inherit, lanes, plan, take_over};
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{
    Error, GenerationChoice, MissingEvents, Role, check_gate, crash_points, owners,
};
use crate::exceptions::FailureRequest;
use crate::handlers::{EffectsRequest, Handlers};
use crate::history::Accepted as AcceptedLoss;
use crate::lanes::Lanes;
use crate::module::{Accepted, Loaded, Module, Wanted};
use crate::overview;
use crate::position::Start;
use crate::progress::DeploymentState;
use crate::state::catalogue::{
    BuildSettings, EventChecks, Generation, GenerationStatus, Promotion, Record, Strategy,
};
use crate::{audit, names};

/// How long a deploy waits for an instance to try its module, and the shortest time between two
/// attempts.
const BUSY_MAX: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// What to do if a rebuild would lose what events did that the stream no longer has.
const KEEP_OR_ACCEPT: &str = "keep the existing state with --strategy inherit or migrate, or \
                              accept the loss with --accept-missing";

/// Parameters of a deploy.
#[derive(Clone, Debug, Default)]
pub struct DeployRequest {
    /// Name; absent: the module's.
    pub name: Option<String>,
    /// Source; absent: that of the existing deployment, or the only one.
    pub source: Option<String>,
    /// Where a new state begins; absent: where that of the deployment began, or the beginning.
    pub start: Option<Start>,
    /// How the state is created; absent: the host decides.
    pub strategy: Option<Strategy>,
    /// How a candidate is built, and when it takes over.
    pub build: BuildSettings,
    /// What a handler may publish.
    pub effects: EffectsRequest,
    /// What happens to events that fail.
    pub failures: FailureRequest,
    /// In how many lanes it is folded; absent: as before, or as the configuration says.
    pub lanes: Option<Lanes>,
    /// Whether events are checked against the schemas of the module; absent: as before, at first
    /// not.
    pub checks: Option<EventChecks>,
}

/// What a deploy did.
#[derive(Clone, Debug)]
pub struct Deployed {
    /// The updated deployment.
    pub deployment: overview::Deployment,
    /// In one word.
    pub outcome: DeployOutcome,
    /// The generation that the module runs or will run as.
    pub generation: u64,
    /// Why.
    pub reason: String,
    /// How long the module was compiled; none if the compiled module was in the cache.
    pub compile_time: Option<Duration>,
    /// What keeps it from being built at the moment, such as a source that can't be reached.
    pub warnings: Vec<String>,
}

/// The outcome of a deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeployOutcome {
    /// The name is new.
    Created,
    /// This module already runs under the name.
    Unchanged,
    /// The module inherited the state of the previous generation.
    Inherited,
    /// A new generation is built from the beginning of the stream, alongside the active one.
    Rebuilding,
    /// A new generation is made from the entries of the active one.
    Migrating,
}

/// A module that passed its checks, as it was uploaded and as it was compiled.
pub(super) struct Upload {
    pub(super) accepted: Accepted,
    pub(super) loaded: Loaded,
}

/// What is done about a deploy, before its warnings are looked up.
pub(super) struct Done {
    pub(super) outcome: DeployOutcome,
    pub(super) generation: u64,
    pub(super) reason: String,
    pub(super) compile_time: Option<Duration>,
}

/// A deploy of a module that a generation has already, so that no other one is made.
struct Kept<'a> {
    locked: Locked<'a>,
    generation: u64,
    reason: String,
}

impl Rollouts {
    /// Deploys a module. Its check and its compilation end when the caller no longer waits.
    pub async fn deploy(
        self: &Arc<Self>,
        upload: Bytes,
        request: DeployRequest,
        wanted: Wanted,
    ) -> Result<Deployed, Error> {
        // Before the upload is checked, which costs seconds of a processor.
        if let Some(gate) = &request.build.gate {
            check_gate(gate)?;
        }
        // Before the module is written into a folder that is not there.
        self.deployments
            .catalogue
            .check_place()
            .map_err(crate::state::Error::Displaced)?;
        let upload = accept(self, upload, wanted).await?;
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| upload.loaded.module.manifest().name.clone());
        names::check(&name)?;
        if self.deployments.is_stopping() {
            return Err(Error::Stopping);
        }
        // A name that is new needs the lock of all deployments, and one that exists only its own.
        match self.deployments.find(&name) {
            Some(existing) => deploy_over(self, existing, upload, request).await,
            None => create(self, name, upload, request).await,
        }
    }
}

/// Checks and compiles a module, outside any lock: that may take long.
async fn accept(rollouts: &Rollouts, upload: Bytes, wanted: Wanted) -> Result<Upload, Error> {
    let (engine, asked) = (rollouts.engine.clone(), wanted.clone());
    let accepted = blocking(move || engine.accept_while(upload, &asked)).await?;
    let give_up = tokio::time::Instant::now() + BUSY_MAX;
    loop {
        let (engine, module, asked) = (rollouts.engine.clone(), accepted.clone(), wanted.clone());
        let error = match blocking(move || engine.load_while(&module, &asked)).await {
            Ok(loaded) => return Ok(Upload { accepted, loaded }),
            Err(error) => error,
        };
        // Deployments without work release their instances on request.
        let Some(lack) = error.lack() else {
            return Err(error.into());
        };
        let over = async {
            // An attempt may need more than what it lacked first, and reads all of the code.
            tokio::time::sleep(BUSY_PAUSE).await;
            lack.over().await;
        };
        if tokio::time::timeout_at(give_up, over).await.is_err() {
            return Err(error.into());
        }
    }
}

async fn create(
    rollouts: &Arc<Rollouts>,
    name: String,
    upload: Upload,
    request: DeployRequest,
) -> Result<Deployed, Error> {
    let source = rollouts.sources.choose(request.source.as_deref())?;
    check_readable(rollouts, &source).await?;
    // From here on no deployment of that name can come or go.
    let changing = turn_to_create(rollouts, &name).await;
    if let Some(existing) = rollouts.deployments.find(&name) {
        // Released before its own lock is taken: locks are taken in a fixed order (`Deployments`).
        drop(changing);
        return Box::pin(deploy_over(rollouts, existing, upload, request)).await;
    }
    let Upload { accepted, loaded } = upload;
    let compile_time = loaded.compile_time;
    // Checked under the lock, so that two deploys cannot both take the last place.
    if rollouts.deployments.count() >= rollouts.config.limits.deployments {
        return Err(Error::TooMany(rollouts.config.limits.deployments));
    }
    let handler = rollouts
        .handlers
        .first_owner(&loaded.module, &source, &request.effects)
        .await?;
    let parking = rollouts
        .exceptions
        .first_policy(&request.failures, &loaded.module, &source)?;
    let start = request.start.unwrap_or_default();
    let checks = checks_of(&loaded.module, (request.checks, EventChecks::Off)).await?;
    let accepts_missing_through = rollouts
        .history
        .accepts_from(&source, request.build.accept_missing.into())
        .await?;
    let recipe = Recipe {
        module: &loaded.module,
        source,
        start,
        strategy: Strategy::Rebuild,
        build: request.build,
        checks,
    };
    let mut generation = new_generation(1, recipe);
    generation.accepts_missing_through = accepts_missing_through;
    let reason = rollouts
        .history
        .explain_new(&name, &generation, "the name is new".to_owned())
        .await;
    let reason = Handlers::explain_first(handler.as_ref(), reason);
    generation.enter(GenerationStatus::Active, reason.clone());
    let generations = vec![generation.clone()];
    let skips = Vec::new();
    let record = Record {
        name,
        active: 1,
        next: 2,
        generations,
        repairs: 0,
        skips,
        parking,
        handler,
        lanes: lanes::checked(request.lanes, &loaded.module)?,
    };
    // In the catalogue before anything runs: whatever the runner writes has an owner then.
    store(rollouts, &accepted, &record, "deploy").await?;
    let role = Role::Serve {
        // Nobody has seen anything of a new deployment, so it answers from the first moment.
        catches_up_to: Some(0),
    };
    let runner = rollouts
        .runners
        .start_with(&record, &generation, Ok(loaded.module), role);
    let deployment = rollouts.deployments.add(record, runner);
    rollouts.exceptions.publish_failures(&deployment);
    beginning::note_beginning(rollouts, &deployment);
    tracing::info!(deployment = deployment.name(), generation = 1, "deployed");
    let done = Done {
        outcome: DeployOutcome::Created,
        generation: 1,
        reason,
        compile_time,
    };
    Ok(deployed(rollouts, &deployment, done).await)
}

/// The lock to create a deployment, once nothing is left of an earlier one with its name.
async fn turn_to_create<'a>(rollouts: &'a Rollouts, name: &str) -> tokio::sync::MutexGuard<'a, ()> {
    let mut ending = rollouts.deployments.ending.subscribe();
    loop {
        // Without the lock, so that others do not wait for a guest call to end.
        let _ = ending.wait_for(|ending| !ending.contains(name)).await;
        // Asked again under the lock: a deletion may have begun in between.
        let changing = rollouts.deployments.changing.lock().await;
        if !ending.borrow().contains(name) {
            return changing;
        }
    }
}

/// Sets what a deploy says about failures and lanes; returns what that changed, in words.
async fn set_policies(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    strategy: Option<Strategy>,
    (module, request): (&Module, &DeployRequest),
) -> Result<Vec<String>, Error> {
    // Before anything changes: a deploy that is refused leaves everything as it was.
    let lanes = lanes::checked(request.lanes, module)?;
    let policy = rollouts
        .exceptions
        .set_failure_policy(deployment, strategy, module, &request.failures)
        .await?;
    let lanes = lanes::set(rollouts, deployment, lanes).await?;
    Ok([policy, lanes].into_iter().flatten().collect())
}

async fn deploy_over(
    rollouts: &Arc<Rollouts>,
    deployment: Arc<Deployment>,
    upload: Upload,
    request: DeployRequest,
) -> Result<Deployed, Error> {
    let changing = rollouts.deployments.lock(&deployment).await?;
    let record = deployment.record();
    let source = match &request.source {
        Some(source) => rollouts.sources.choose(Some(source))?,
        None => record.active().source.clone(),
    };
    let start = request.start.unwrap_or(record.active().start);
    let requested = Requested {
        module: upload.loaded.module.info(),
        source: &source,
        start,
        strategy: request.strategy,
        checks: request.checks,
        needs_own_state: request.build.gate.is_some() || request.build.promote == Promotion::Manual,
        is_owner_lost: owners::is_owner_lost(&record, &deployment.active()),
    };
    // A plan is only a decision; nothing has changed if it is refused.
    let plan = plan::decide(&record, &requested)?;
    check_owner(&deployment, &record, &plan)?;
    let checks = (request.checks, plan.checks(&record));
    let checks = checks_of(&upload.loaded.module, checks).await?;
    let changed = set_policies(
        rollouts,
        &deployment,
        plan.new_strategy(),
        (&upload.loaded.module, &request),
    )
    .await?;
    let (strategy, continued, reason) = match plan {
        Plan::Unchanged {
            generation,
            mut reason,
        } => {
            reason.extend(changed.iter().flat_map(|changed| ["; ", changed]));
            let locked = Locked {
                deployment: &deployment,
                changing,
            };
            let kept = Kept {
                locked,
                generation,
                reason,
            };
            return keep(rollouts, kept, upload, request).await;
        }
        Plan::New { strategy, reason } => (strategy, None, reason),
        Plan::Continue { generation, reason } => {
            let stopped = record
                .generation(generation)
                .expect("it is one of the record's");
            (stopped.strategy, Some(stopped), reason)
        }
    };
    check_readable(rollouts, &source).await?;
    let accept = MissingEvents::from(request.build.accept_missing);
    // A fold from the beginning needs to know what the stream has lost; the others keep what
    // the state has.
    let accepted = if continued.is_none() && strategy == Strategy::Rebuild {
        let history = &rollouts.history;
        history
            .may_replace(&deployment, &source, accept, KEEP_OR_ACCEPT)
            .await?
    } else {
        let through = rollouts.history.accepts_from(&source, accept).await?;
        AcceptedLoss::kept(through, continued.unwrap_or(record.active()))
    };
    let reason = accepted.explain(reason);
    let module: (&Module, &str) = (&upload.loaded.module, &source);
    let handlers = &rollouts.handlers;
    let reason = handlers
        .regrant(&deployment, module, &request.effects, reason)
        .await?;
    let recipe = Recipe {
        module: &upload.loaded.module,
        source,
        start,
        strategy,
        build: request.build,
        checks,
    };
    let mut generation = new_generation(record.next, recipe);
    generation.reason = reason;
    accepted.apply(&mut generation);
    set_beginning(&mut generation, &record, continued);
    let deployed = add_generation(rollouts, &deployment, upload, generation).await?;
    // Only code that takes over the state with its parked events can retry them.
    if request.failures.retry_parked && strategy == Strategy::Inherit {
        let exceptions = &rollouts.exceptions;
        exceptions.want_retry(&deployment, record.next).await?;
    }
    Ok(deployed)
}

/// Refuses other code for a handler whose state is lost, before anything changes: code restores no
/// state, and nobody knows from where on it may publish. Code for a candidate whose operator has
/// accepted the loss continues that.
fn check_owner(deployment: &Deployment, record: &Record, plan: &Plan) -> Result<(), Error> {
    let accepted = match plan {
        Plan::Unchanged { .. } => return Ok(()),
        Plan::New { .. } => None,
        Plan::Continue { generation, .. } => {
            let stopped = record.generation(*generation);
            stopped.and_then(|stopped| stopped.lost_effects_after)
        }
    };
    match accepted {
        Some(_) => Ok(()),
        None => owners::check_owner(record, &deployment.active()),
    }
}

/// Whether a module is to check events: as requested, otherwise as before. Compiles its schemas
/// then, so that one that can't is refused before anything changes.
async fn checks_of(
    module: &Arc<Module>,
    (requested, before): (Option<EventChecks>, EventChecks),
) -> Result<EventChecks, Error> {
    // Later modules of a deployment that checks events may have none.
    if requested == Some(EventChecks::On) && module.schemas().is_empty() {
        return Err(Error::Refused(format!(
            "{} carries no schemas of events, so there is nothing to check; put them into the folder \
             `schemas` of its project, or deploy it with --check-events off",
            module.manifest().name
        )));
    }
    let checks = requested.unwrap_or(before);
    if checks == EventChecks::On {
        let module = Arc::clone(module);
        blocking(move || module.checks_after(Some(0)).map(drop)).await?;
    }
    Ok(checks)
}

/// Ends a deploy of a module that a generation has already.
async fn keep(
    rollouts: &Arc<Rollouts>,
    mut kept: Kept<'_>,
    upload: Upload,
    request: DeployRequest,
) -> Result<Deployed, Error> {
    let (deployment, generation) = (kept.locked.deployment, kept.generation);
    let Upload { accepted, loaded } = upload;
    let compile_time = loaded.compile_time;
    // Also if nothing else changes: this is how an operator repairs a lost file.
    restore_module(rollouts, deployment, &accepted, &loaded.module).await?;
    let record = deployment.record();
    let source = record
        .generation(generation)
        .map_or(&record.active().source, |kept| &kept.source);
    kept.reason = rollouts
        .handlers
        .regrant(
            deployment,
            (&loaded.module, source),
            &request.effects,
            kept.reason,
        )
        .await?;
    if request.failures.retry_parked {
        let active = deployment.record().active;
        kept.reason.push_str(
            &match rollouts.exceptions.want_retry(deployment, active).await? {
                0 => "; nothing is retried, as this module has tried all that is parked".to_owned(),
                1 => "; 1 parked key is retried".to_owned(),
                keys => format!("; {keys} parked keys are retried"),
            },
        );
    }
    let reason = unchanged(rollouts, kept, request.build).await?;
    let done = Done {
        outcome: DeployOutcome::Unchanged,
        generation,
        reason,
        compile_time,
    };
    Ok(deployed(rollouts, deployment, done).await)
}

/// Gives a deployment its next generation, by its strategy.
async fn add_generation(
    rollouts: &Arc<Rollouts>,
    deployment: &Arc<Deployment>,
    upload: Upload,
    generation: Generation,
) -> Result<Deployed, Error> {
    let compile_time = upload.loaded.compile_time;
    let (number, strategy) = (generation.number, generation.strategy);
    let reason = generation.reason.clone();
    let outcome = match strategy {
        Strategy::Inherit => DeployOutcome::Inherited,
        Strategy::Rebuild => DeployOutcome::Rebuilding,
        Strategy::Migrate => DeployOutcome::Migrating,
    };
    if strategy == Strategy::Inherit {
        inherit::begin(rollouts, deployment, upload, generation).await?;
    } else {
        build::begin_candidate(rollouts, deployment, &upload.accepted, generation).await?;
    }
    tracing::info!(
        deployment = deployment.name(),
        generation = number,
        strategy = strategy.name(),
        reason,
        "deployed"
    );
    let done = Done {
        outcome,
        generation: number,
        reason,
        compile_time,
    };
    Ok(deployed(rollouts, deployment, done).await)
}

/// Handles the options of a deploy whose module is already deployed: another gate for a
/// candidate, or continuing without missing events. Returns the reason with what was done.
async fn unchanged(
    rollouts: &Arc<Rollouts>,
    kept: Kept<'_>,
    build: BuildSettings,
) -> Result<String, Error> {
    let Kept {
        locked,
        generation,
        mut reason,
    } = kept;
    let deployment = locked.deployment;
    let record = deployment.record();
    let is_candidate =
        |known: &Generation| known.number == generation && known.status.is_candidate();
    let accepts = build.accept_missing;
    let accept = accepts && generation == record.active;
    let accept_for_candidate = accepts && record.candidate().is_some_and(is_candidate);
    let asked = take_over::ask_candidate_again(rollouts, deployment, generation, build).await?;
    reason.push_str(asked.unwrap_or(""));
    if accept_for_candidate {
        pausing::accept_missing(rollouts, deployment, GenerationChoice::Candidate).await?;
        reason.push_str("; events missing from its stream are accepted");
    }
    // Missing events stop a deployment; accepting them has to start it again.
    if accept && deployment.active().now().state == DeploymentState::Failed {
        let terms = ResumeTerms {
            accept_missing: true,
            skips: None,
        };
        let choice = GenerationChoice::Active;
        pausing::resume_locked(rollouts, locked, choice, terms).await?;
        reason.push_str("; events missing from its stream are accepted");
    }
    Ok(reason)
}

/// The outcome of a deploy, with a warning if its source can't be reached, because then nothing
/// is built yet.
pub(super) async fn deployed(rollouts: &Rollouts, deployment: &Deployment, done: Done) -> Deployed {
    let record = deployment.record();
    let generation = done.generation;
    let name = record
        .generation(generation)
        .map_or(&record.active().source, |generation| &generation.source);
    let (mut warnings, mut silent) = (Vec::new(), None);
    if let Some(source) = rollouts.sources.get(name) {
        let info = source.info().await;
        silent = silent_until(&record, &done, info.last_sequence);
        warnings.extend(info.unreachable());
    }
    warnings.extend(owners::not_granted_warning(&record, generation));
    warnings.extend(silent);
    warnings.extend(
        rollouts
            .handlers
            .no_firings_warning(&record, generation)
            .await,
    );
    let Done {
        outcome,
        reason,
        compile_time,
        ..
    } = done;
    Deployed {
        deployment: deployment.info(),
        outcome,
        generation,
        reason,
        compile_time,
        warnings,
    }
}

/// A warning if the first event for which a handler publishes is later than the next one of its
/// stream: until then it publishes nothing.
fn silent_until(record: &Record, done: &Done, end: Option<u64>) -> Option<String> {
    let (handler, end) = (record.handler.as_ref()?, end?);
    let accepted = record.generation(done.generation)?.lost_effects_after;
    let after = match done.outcome {
        DeployOutcome::Created => handler.effects_after,
        DeployOutcome::Rebuilding => accepted?,
        DeployOutcome::Unchanged | DeployOutcome::Inherited | DeployOutcome::Migrating => {
            return None;
        }
    };
    (after > end).then(|| {
        format!(
            "{} publishes for events from {} on, and the stream ends at {end}: nothing is published \
             for the events between",
            record.name,
            after.saturating_add(1)
        )
    })
}

/// Refuses a source whose stream loses events by its kind, before anything is changed.
async fn check_readable(rollouts: &Rollouts, source: &str) -> Result<(), Error> {
    let Some(source) = rollouts.sources.get(source) else {
        return Ok(());
    };
    let refused =
        |error: crate::source::Error| Error::Refused(format!("{}: {error}", error.kind()));
    source.check_readable().await.map_err(refused)
}

/// Stores a module again that is already deployed: its file may be missing or damaged, and
/// runners may lack it.
async fn restore_module(
    rollouts: &Rollouts,
    deployment: &Deployment,
    accepted: &Accepted,
    module: &Arc<Module>,
) -> Result<(), Error> {
    // The lookup reads the whole file, so it runs on a blocking thread.
    let (folder, accepted) = (rollouts.deployments.folder.clone(), accepted.clone());
    let digest = accepted.digest.clone();
    blocking(move || {
        let is_there = folder
            .read_module(&accepted.digest)
            .is_ok_and(|found| found == accepted.component);
        if is_there {
            Ok(())
        } else {
            folder.store_module(&accepted.digest, &accepted.component)
        }
    })
    .await?;
    let record = deployment.record();
    for generation in record
        .generations
        .iter()
        .filter(|known| known.has_file() && known.module.digest == digest)
    {
        let runner = deployment.runner(generation.state_file);
        // A runner of another generation on the same file has its own module.
        let runner = runner.filter(|runner| runner.program().generation == generation.number);
        if runner.is_some_and(|runner| runner.give_module(module)) {
            tracing::info!(
                deployment = deployment.name(),
                generation = generation.number,
                "the module is available again"
            );
        }
    }
    Ok(())
}

/// Writes a module and a record whose newest generation runs it.
pub(super) async fn store(
    rollouts: &Rollouts,
    accepted: &Accepted,
    record: &Record,
    action: &str,
) -> Result<(), Error> {
    let (deployments, room) = (Arc::clone(&rollouts.deployments), rollouts.room.clone());
    let (accepted, record) = (accepted.clone(), record.clone());
    let newest = record.generations.last();
    let (number, reason) = newest.map_or((0, ""), |newest| (newest.number, &newest.reason));
    let audit = audit::entry(
        action,
        &record.name,
        format!(
            "generation {number} of module {}: {reason}",
            accepted.digest
        ),
    );
    // Held until the record names the files, so that they are not removed as leftovers.
    let _naming = rollouts.deployments.naming.read().await;
    blocking(move || {
        // Files first, then the record: a crash leaves files without a row at worst.
        disk_space::store_module(&deployments.folder, &room, &accepted)?;
        deployments.folder.prepare_state(&record.name)?;
        owners::create_file(&deployments.folder, &record)?;
        crash_points::reached("deploy-module-stored");
        deployments.catalogue.put(&record, &audit)?;
        crash_points::reached("deploy-recorded");
        Ok(())
    })
    .await
}
