//! Parked events of a deployment: listing, retrying and dropping them, and what they rule out.
//!
//! Retrying and dropping change entries at an unchanged position, like a partial rebuild: both are
//! noted in the catalogue before and after, so that earlier reads no longer match their position.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::key_part::Keys;
use super::plan::Plan;
use super::{DeployRequest, Error, Rollouts, failure_events, skips};
use crate::actor::blocking;
use crate::api::{self, DeploymentState, FailureClass, OnFailure, Strategy};
use crate::bundle::Keeper;
use crate::deployment::{Deployment, parked_counts as counts};
use crate::event::Payload;
use crate::module::{KeyRule, Module};
use crate::pipeline::{ParkedOutcome, ParkedWork, ParkedWorkError, decision};
use crate::runner::Runner;
use crate::state::catalogue::{Generation, ParkingRecord};
use crate::state::exceptions::{Behind, REASON_BYTES_MAX, Skip};
use crate::state::{self, Parked, ParkedFailure, ParkedKey, ReadEntry, Replaced, Store};

/// Most keys in one response, and in one request.
const KEYS_MAX: usize = 1_000;
/// Most events of a key in one response.
const EVENTS_MAX: usize = 100;
/// Most events that one request drops: all keys wait meanwhile.
const DROP_EVENTS_MAX: usize = 10_000;
/// Most requests of one retry after a deploy: each is limited in time and keys.
const RETRIES_MAX: u32 = 10_000;
/// Pause after a request of it that could not be carried out.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Whether a retry after a deploy is complete.
enum Retried {
    More,
    All,
}

/// What to do with parked events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkedAction {
    /// Apply them.
    Retry,
    /// Leave them out for good.
    Drop,
}

impl From<ParkedWorkError> for Error {
    fn from(error: ParkedWorkError) -> Self {
        Self::Conflict(error.to_string())
    }
}

fn failure_shown(failure: &ParkedFailure) -> api::ParkedFailure {
    let ParkedFailure {
        kind,
        class,
        message,
        attempts,
        module,
        first_at,
        last_at,
        reads,
        reads_are_cut,
        number: _,
    } = failure.clone();
    let reads = reads.into_iter();
    api::ParkedFailure {
        kind,
        class,
        message,
        attempts,
        module,
        first_at,
        last_at,
        reads: reads
            .map(|ReadEntry { key, value }| api::ParkedRead { key, value })
            .collect(),
        reads_are_cut,
    }
}

fn key_shown(key: &str, parked: &ParkedKey) -> api::ParkedKey {
    api::ParkedKey {
        key: key.to_owned(),
        events: parked.events(),
        bytes: parked.bytes(),
        first_sequence: parked.sequences().next().unwrap_or(0),
        failure: parked.failure.as_ref().map(failure_shown),
    }
}

fn event_shown(parked: &Parked) -> api::ParkedEvent {
    let event = &parked.event;
    let time =
        jiff::Timestamp::from_nanosecond(i128::from(event.time_ns)).unwrap_or(jiff::Timestamp::MAX);
    api::ParkedEvent {
        sequence: event.sequence,
        subject: event.subject.to_string(),
        kind: event.kind.to_string(),
        time: time.to_string(),
        data: event.data.to_json(),
        digest: parked.digest(),
        failure: parked.failure.as_ref().map(failure_shown),
    }
}

/// Whether a key is one whose first event failed with a class.
fn has_class(parked: &ParkedKey, class: Option<FailureClass>) -> bool {
    class.is_none_or(|class| {
        let failure = parked.failure.as_ref();
        failure.is_some_and(|failure| failure.class == class.name())
    })
}

/// Refuses a policy that a module can't have.
fn check_policy(on_failure: OnFailure, module: &Module) -> Result<(), Error> {
    let manifest = module.manifest();
    // Without keys no order could be kept: every later event would have to wait.
    if on_failure == OnFailure::Park && manifest.key_rule == KeyRule::None {
        return Err(Error::Refused(format!(
            "{} declares no key rule, so nobody knows which later events have to wait behind a \
             parked one; declare one in its manifest, or deploy it with --on-failure stop",
            manifest.name
        )));
    }
    Ok(())
}

/// Refuses a plan that would lose what is parked, or the order of its keys.
fn check_plan(
    deployment: &Deployment,
    plan: &Plan,
    module: &Module,
    wanted: Option<OnFailure>,
) -> Result<(), Error> {
    let record = deployment.record();
    check_policy(wanted.unwrap_or(record.parking.on_failure), module)?;
    // An unchanged module and a rebuild keep nothing that could be lost.
    let Plan::New { strategy, .. } = plan else {
        return Ok(());
    };
    let parked = counts(deployment.active().store().as_ref());
    let name = deployment.name();
    if *strategy == Strategy::Migrate && parked.events > 0 {
        return Err(Error::Refused(format!(
            "{name} has {} parked events, which a migration would leave behind; retry or drop \
             them first (`foldstream parked list {name}`), or rebuild",
            parked.events
        )));
    }
    let rule = &record.active().module.key_rule;
    let is_of_other_keys = *rule != module.info().key_rule;
    // Also if nothing is parked yet: an event may be parked until the module takes over.
    let may_park = parked.events > 0 || record.parking.on_failure == OnFailure::Park;
    if *strategy == Strategy::Inherit && is_of_other_keys && may_park {
        return Err(Error::Refused(format!(
            "cannot inherit: the module has key rule {} instead of {rule}, by which {name} \
             parks events; retry or drop what is parked (`foldstream parked list {name}`) and \
             deploy the current module with --on-failure stop, or rebuild",
            module.info().key_rule
        )));
    }
    Ok(())
}

/// Refuses code that would find the keys of parked events in another way.
pub(super) fn check_same_rule(deployment: &Deployment, next: &Generation) -> Result<(), Error> {
    let record = deployment.record();
    let (rule, other) = (&record.active().module.key_rule, &next.module.key_rule);
    let parked = counts(deployment.active().store().as_ref());
    if rule == other || parked.events == 0 {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "generation {} has key rule {other} instead of {rule}, by which events of {name} are \
         parked; retry or drop them first (`foldstream parked list {name}`)",
        next.number,
        name = deployment.name()
    )))
}

/// Refuses to make another state of a handler active while events are parked in either: one of the
/// two has applied them, and the other would publish their messages again or not at all. Asked
/// before a hold, and again while nothing can be parked any more.
pub(super) fn check_switch(
    deployment: &Deployment,
    from: &Runner,
    to: &Runner,
) -> Result<(), Error> {
    // A projection publishes nothing, so nothing can be sent twice.
    if deployment.record().handler.is_none() {
        return Ok(());
    }
    let events = |runner: &Runner| counts(runner.store().as_ref()).events;
    let (ours, theirs) = (events(from), events(to));
    if (ours, theirs) == (0, 0) {
        return Ok(());
    }
    let name = deployment.name();
    Err(Error::Conflict(format!(
        "{name} has {} parked events, whose messages are not published yet; the other state has \
         applied these events without publishing, so retry or drop them first (`foldstream parked list {name}`)",
        ours.max(theirs)
    )))
}

/// Refuses to fold keys from scratch of which events are parked.
pub(super) fn refuse_part(deployment: &Deployment, keys: &Keys) -> Result<(), Error> {
    let store = deployment.active().store();
    // A state that is not open is asked again under the hold.
    let parked = store.map(|store| store.parked_keys()).unwrap_or_default();
    match parked.keys().find(|key| keys.has(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Refused(format!(
            "cannot rebuild `{key}`: events of it are parked; `foldstream parked retry {0}` \
             applies them, `foldstream \
             parked drop {0}` leaves them out, and a rebuild of all of {0} gives a state without \
             parked events",
            deployment.name()
        ))),
    }
}

/// Text to add to a message about a state with parked events.
pub(super) fn remark(parked: &api::ParkedCounts) -> String {
    match parked.events {
        0 => String::new(),
        1 => "; without 1 event that is parked".to_owned(),
        events => format!("; without {events} events that are parked"),
    }
}

/// The same about a state that became active, and the one before.
pub(super) fn remark_of_both(now: &Runner, before: &Runner) -> String {
    let (now, before) = (
        counts(now.store().as_ref()),
        counts(before.store().as_ref()),
    );
    let mut text = remark(&now);
    // The state before continues as a follower, with its own parked events.
    if now.events != before.events {
        let events = if before.events == 1 {
            "event"
        } else {
            "events"
        };
        text.push_str(&format!(
            "; the state before had {} parked {events}",
            before.events
        ));
    }
    text
}

impl Rollouts {
    /// Sets what a deploy says about events that fail; returns what that changed, in words. The
    /// caller holds the deployment's lock.
    pub(super) async fn set_failure_policy(
        &self,
        deployment: &Arc<Deployment>,
        plan: &Plan,
        module: &Module,
        request: &DeployRequest,
    ) -> Result<Option<String>, Error> {
        let before = deployment.record().parking;
        let events = request.failure_events.as_deref();
        if let Some(events) = events {
            // Before anything changes: a deploy that is refused leaves everything as it was.
            self.failure_target(events, module, &deployment.record().active().source)?;
        }
        self.set_on_failure(deployment, plan, module, request.on_failure)
            .await?;
        self.set_failure_events(deployment, module, events).await?;
        let parking = deployment.record().parking;
        let mut changed = Vec::new();
        if parking.on_failure != before.on_failure {
            changed.push(format!("on-failure is {}", parking.on_failure.name()));
        }
        if failure_events::shown(&parking) != failure_events::shown(&before) {
            let place = failure_events::shown(&parking).unwrap_or_else(|| "nowhere".to_owned());
            changed.push(format!("failure events go to {place}"));
        }
        Ok((!changed.is_empty()).then(|| changed.join(", ")))
    }

    /// Sets what happens to events that have used up their attempts, if a deploy says so, and
    /// refuses a plan that contradicts what is parked.
    async fn set_on_failure(
        &self,
        deployment: &Arc<Deployment>,
        plan: &Plan,
        module: &Module,
        wanted: Option<OnFailure>,
    ) -> Result<(), Error> {
        // Before anything is written: a refused plan must leave the policy as it was.
        check_plan(deployment, plan, module, wanted)?;
        let mut record = deployment.record();
        let before = record.parking.on_failure;
        let Some(wanted) = wanted.filter(|wanted| *wanted != before) else {
            return Ok(());
        };
        let detail = format!("{} instead of {}", wanted.name(), before.name());
        record.parking.on_failure = wanted;
        self.commit(deployment, record, "on-failure", detail)
            .await?;
        // Followers park as well, so that a rollback finds the same policy.
        deployment
            .runners()
            .iter()
            .for_each(|runner| runner.set_parks(wanted == OnFailure::Park));
        Ok(())
    }

    /// Some parked keys of a deployment, behind one of them.
    pub fn parked(
        &self,
        name: &str,
        class: Option<FailureClass>,
        after: Option<&str>,
    ) -> Result<api::ParkedList, Error> {
        let deployment = self.deployment(name)?;
        let store = open_store(&deployment)?;
        let parked = store.parked_keys();
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut chosen = parked
            .range::<str, _>((behind, Bound::Unbounded))
            .filter(|(_, parked)| has_class(parked, class));
        let keys: Vec<_> = chosen
            .by_ref()
            .take(KEYS_MAX)
            .map(|(key, parked)| key_shown(key, parked))
            .collect();
        let last = keys.last().map(|last| last.key.clone());
        Ok(api::ParkedList {
            on_failure: deployment.record().parking.on_failure,
            failure_events: failure_events::shown(&deployment.record().parking),
            counts: counts(Some(&store)),
            keys,
            next: last.filter(|_| chosen.next().is_some()),
        })
    }

    /// The parked events of a key.
    pub async fn parked_events(&self, name: &str, key: &str) -> Result<api::ParkedEvents, Error> {
        let deployment = self.deployment(name)?;
        let store = open_store(&deployment)?;
        let total = store.parked_events_of(key);
        // An unknown key is an error; events that are retried at this moment give an empty page.
        if total == 0 {
            return Err(nothing_parked(name, key));
        }
        let wanted = key.to_owned();
        let events = blocking(move || store.parked_events(&wanted, EVENTS_MAX)).await?;
        Ok(api::ParkedEvents {
            key: key.to_owned(),
            total,
            events: events.iter().map(event_shown).collect(),
        })
    }

    /// Retries or drops parked events.
    pub async fn change_parked(
        &self,
        name: &str,
        action: ParkedAction,
        selection: api::ParkedSelection,
    ) -> Result<api::ParkedOutcome, Error> {
        let deployment = self.deployment(name)?;
        // For the whole change: a deploy in between could bring other code.
        let changing = self.lock(&deployment).await?;
        let store = open_store(&deployment)?;
        let (mut keys, is_cut) = chosen(name, &store, &selection)?;
        if action == ParkedAction::Drop && !selection.whole_keys {
            keep_failed(name, &store, &mut keys, selection.all)?;
        }
        let dry_run = selection.dry_run;
        let work = match action {
            ParkedAction::Retry => ParkedWork::Retry {
                keys: keys.clone(),
                dry_run,
            },
            ParkedAction::Drop => ParkedWork::Drop {
                parts: parts_of(&store, &keys, selection.whole_keys),
                reason: reason_of(&selection)?,
            },
        };
        let runner = deployment.active();
        if action == ParkedAction::Retry && runner.now().state == DeploymentState::Paused {
            // Before anything is noted: nothing changes.
            return Err(ParkedWorkError::NotRunning.into());
        }
        let outcome = match action {
            _ if keys.is_empty() => ParkedOutcome::default(),
            ParkedAction::Drop if dry_run => would_drop(&store, &keys, selection.whole_keys),
            // Nothing changes that anybody could have read.
            ParkedAction::Retry if dry_run => self.work_on_parked(&deployment, work).await?,
            ParkedAction::Retry | ParkedAction::Drop => {
                let (begun, done) = match action {
                    ParkedAction::Retry => ("parked-retry-begun", "parked-retry"),
                    ParkedAction::Drop => ("parked-drop-begun", "parked-drop"),
                };
                // Before and after: a reader in between may have read the old entries.
                // If the work fails in between, the note stays, which only makes readers start
                // again.
                self.note_repair(&deployment, begun, of_keys(&keys)).await?;
                let dropped = match &work {
                    ParkedWork::Drop { parts, .. } => to_drop(&store, parts),
                    _ => Vec::new(),
                };
                let mut outcome = self.work_on_parked(&deployment, work).await?;
                if outcome.unfinished.is_none() && selection.whole_keys {
                    outcome.unfinished = left_of(&store, &keys);
                }
                let keeper = Keeper::new(self.inner.folder.clone(), name);
                let gone = dropped.into_iter().flat_map(|(_, sequences)| sequences);
                let gone: Vec<u64> = gone.collect();
                blocking(move || keeper.forget(gone.into_iter())).await;
                // States of the past may lack what was released, or have what was dropped, at a
                // position that is the same as before.
                self.inner.past_states.forget(name);
                let detail = describe(&keys, &outcome, selection.reason.as_deref());
                self.note_repair(&deployment, done, detail).await?;
                outcome
            }
        };
        // The counts below are read without it.
        drop(changing);
        let mut outcome = outcome_of(&deployment, outcome, is_cut);
        outcome.dry_run = dry_run;
        Ok(outcome)
    }

    /// Lets the active generation work on parked events while all generations are held. The caller
    /// holds the deployment's lock.
    async fn work_on_parked(
        &self,
        deployment: &Arc<Deployment>,
        work: ParkedWork,
    ) -> Result<ParkedOutcome, Error> {
        // Followers are held as well: their states must not park or pass anything meanwhile.
        let held = skips::hold(deployment).await?;
        let runner = deployment.active();
        match &work {
            // It begins at its ceiling, so it applies nothing else meanwhile.
            ParkedWork::Retry { dry_run: false, .. }
                if runner.now().state == DeploymentState::Failed =>
            {
                runner.resume();
            }
            // Nothing else changes a deployment that has stopped.
            ParkedWork::Retry { .. } | ParkedWork::Record { .. } => {}
            ParkedWork::Drop { parts, reason } => {
                let decided = decided(deployment, parts, reason).await?;
                // Before the state drops them: after a crash in between, a state that is built
                // from scratch leaves out what the operator wanted to be left out.
                self.record_decisions(deployment, decided).await?;
            }
        }
        // Awaited while all are held; dropping `held` lets them continue.
        let outcome = runner.change_parked(work).await?;
        drop(held);
        Ok(outcome)
    }

    /// A failure bundle: of a parked key, or of the last first error of the deployment.
    pub async fn failure_bundle(&self, name: &str, key: Option<&str>) -> Result<Bytes, Error> {
        let deployment = self.deployment(name)?;
        let keeper = Keeper::new(self.inner.folder.clone(), name);
        // Like a retry, it needs the instance of the deployment.
        let _changing = self.lock(&deployment).await?;
        let Some(key) = key else {
            let newest = blocking(move || keeper.newest()).await;
            let newest = newest.map_err(|error| {
                Error::Conflict(format!(
                    "cannot read the failure bundles of {name}: {error}"
                ))
            })?;
            let bundle = newest.ok_or_else(|| {
                Error::Missing(format!(
                    "no failure of {name} was recorded; name a parked key (`foldstream parked \
                     list {name}`) to record how it fails now"
                ))
            })?;
            // Before the bundle leaves: an export that is not recorded does not happen.
            self.note_export(&deployment, "the last first error".to_owned())
                .await?;
            let bytes = blocking(move || bundle.to_bytes()).await;
            return Ok(bytes.into());
        };
        if !open_store(&deployment)?.is_parked(key) {
            return Err(nothing_parked(name, key));
        }
        let key = key.to_owned();
        let work = ParkedWork::Record { key: key.clone() };
        let outcome = self.work_on_parked(&deployment, work).await?;
        let bundle = outcome.recorded.ok_or_else(|| nothing_parked(name, &key))?;
        self.note_export(&deployment, of_keys(&[key])).await?;
        let bytes = blocking(move || keeper.completed(*bundle).to_bytes()).await;
        Ok(bytes.into())
    }

    /// Records that somebody took a bundle, which has data of events and entries.
    async fn note_export(&self, deployment: &Arc<Deployment>, detail: String) -> Result<(), Error> {
        let record = deployment.record();
        self.commit(deployment, record, "parked-export", detail)
            .await
    }

    /// Has a generation retry what earlier ones have parked, now or after a restart; returns how
    /// many keys. The caller holds the deployment's lock.
    pub(super) async fn want_retry(
        &self,
        deployment: &Arc<Deployment>,
        generation: u64,
    ) -> Result<u64, Error> {
        let mut record = deployment.record();
        let module = record
            .generation(generation)
            .map_or_else(String::new, |generation| generation.module.digest.clone());
        let store = deployment.active().store();
        let parked = store.map(|store| store.parked_keys()).unwrap_or_default();
        let untried = parked.values().filter(|key| is_untried(key, &module));
        let keys = untried.count() as u64;
        if keys == 0 {
            return Ok(0);
        }
        record.parking.retry_by = Some(generation);
        self.commit(
            deployment,
            record,
            "parked-retry-wanted",
            format!("by generation {generation}"),
        )
        .await?;
        self.retry_what_is_parked(deployment);
        Ok(keys)
    }

    /// Retries everything that other code has parked, as a deploy wished.
    pub(super) fn retry_what_is_parked(&self, deployment: &Arc<Deployment>) {
        let (host, deployment) = (self.clone(), Arc::clone(deployment));
        let name = deployment.name().to_owned();
        self.chore("parked-retry", &name, async move {
            for _ in 0..RETRIES_MAX {
                // A paused deployment retries when it is resumed.
                let is_paused = |runner: &Runner| runner.now().state == DeploymentState::Paused;
                deployment
                    .active()
                    .until(|runner| (!is_paused(runner)).then_some(()))
                    .await;
                let begun = Instant::now();
                match host.retry_some(&deployment).await {
                    // The deployment was held meanwhile: other keys get as much time.
                    Ok(Retried::More) => tokio::time::sleep(begun.elapsed()).await,
                    Ok(Retried::All) => break,
                    Err(error) => {
                        tracing::warn!(
                            deployment = deployment.name(),
                            %error,
                            "parked events could not be retried yet"
                        );
                        // A paused deployment, or a state that is still opening.
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
                if deployment.is_gone() {
                    return;
                }
            }
            if let Err(error) = host.retried_all(&deployment).await {
                tracing::warn!(
                    deployment = deployment.name(),
                    %error,
                    "the end of a retry could not be recorded"
                );
            }
        });
    }

    async fn retry_some(&self, deployment: &Arc<Deployment>) -> Result<Retried, Error> {
        let record = deployment.record();
        // The deploy that wished it was rolled back, or another came after it.
        if record.parking.retry_by != Some(record.active) {
            return Ok(Retried::All);
        }
        let digest = record.active().module.digest.clone();
        let store = open_store(deployment)?;
        let keys: Vec<String> = store
            .parked_keys()
            .into_iter()
            .filter(|(_, parked)| is_untried(parked, &digest))
            .map(|(key, _)| key)
            .take(KEYS_MAX)
            .collect();
        if keys.is_empty() {
            return Ok(Retried::All);
        }
        let selection = api::ParkedSelection {
            keys,
            ..api::ParkedSelection::default()
        };
        let outcome = self
            .change_parked(deployment.name(), ParkedAction::Retry, selection)
            .await?;
        tracing::info!(
            deployment = deployment.name(),
            events = outcome.events,
            failed = outcome.failed.len(),
            "parked events were retried by newer code"
        );
        Ok(Retried::More)
    }

    async fn retried_all(&self, deployment: &Arc<Deployment>) -> Result<(), Error> {
        let _changing = self.lock(deployment).await?;
        let mut record = deployment.record();
        // Nothing to record: an earlier run of this did.
        if record.parking.retry_by.take().is_none() {
            return Ok(());
        }
        let left = counts(deployment.active().store().as_ref()).events;
        let detail = format!("{left} parked events left");
        self.commit(deployment, record, "parked-retry-done", detail)
            .await
    }
}

/// Keeps the keys whose first event has failed. Another one may be sound, and is not dropped by a
/// command that was sent twice.
fn keep_failed(name: &str, store: &Store, keys: &mut Vec<String>, all: bool) -> Result<(), Error> {
    let parked = store.parked_keys();
    let has_failed = |key: &String| {
        let found = parked.get(key);
        found.is_some_and(|found| found.failure.is_some())
    };
    match keys.iter().find(|key| !has_failed(key)) {
        Some(key) if !all => Err(Error::Conflict(format!(
            "the first parked event of `{key}` has not been tried since the one before it was \
             dropped; retry the key (`foldstream parked retry {name} KEY`), or drop all its events \
             with --whole-keys"
        ))),
        _ => {
            keys.retain(has_failed);
            Ok(())
        }
    }
}

/// How many events of each key one request drops: the first one, or all as far as it may.
fn parts_of(store: &Store, keys: &[String], whole_keys: bool) -> Vec<(String, usize)> {
    let mut room = DROP_EVENTS_MAX;
    let mut parts = Vec::new();
    for key in keys {
        let events = if whole_keys {
            usize::try_from(store.parked_events_of(key)).unwrap_or(usize::MAX)
        } else {
            1
        };
        let events = events.min(room);
        room -= events;
        // What is left over is for another request.
        if events > 0 {
            parts.push((key.clone(), events));
        }
    }
    parts
}

/// What a request that drops whole keys has left of them, in words; none if nothing.
fn left_of(store: &Store, keys: &[String]) -> Option<String> {
    let left: u64 = keys.iter().map(|key| store.parked_events_of(key)).sum();
    (left > 0).then(|| {
        format!(
            "{left} events of these keys are left, as one request drops at most {DROP_EVENTS_MAX}; \
             continue with another"
        )
    })
}

/// The sequences of the first parked events of keys.
fn to_drop(store: &Store, parts: &[(String, usize)]) -> Vec<(String, Vec<u64>)> {
    let parked = store.parked_keys();
    let found = parts.iter().filter_map(|(key, count)| {
        let sequences = parked.get(key)?.sequences().take(*count);
        Some((key.clone(), sequences.collect()))
    });
    found.collect()
}

/// The decisions to leave out the first parked events of keys: one for each key.
async fn decided(
    deployment: &Deployment,
    parts: &[(String, usize)],
    reason: &str,
) -> Result<Vec<Skip>, Error> {
    let store = open_store(deployment)?;
    let chosen = to_drop(&store, parts);
    let reason = reason.to_owned();
    let read = move || {
        let decided = chosen.iter().map(|(key, sequences)| {
            let mut decided: Option<Skip> = None;
            let mut behind = Vec::new();
            // One event in memory at a time.
            for sequence in sequences {
                let Some(parked) = store.parked_of(key, &[*sequence])?.pop() else {
                    continue;
                };
                match decided {
                    None => decided = Some(decision(&parked, &reason)),
                    Some(_) => behind.push(Behind::entry(&parked.event)),
                }
            }
            Ok(decided.map(|decided| Skip {
                behind: behind.into(),
                ..decided
            }))
        });
        decided
            .filter_map(Result::transpose)
            .collect::<Result<Vec<_>, state::Error>>()
    };
    Ok(blocking(read).await?)
}

/// Whether a module has not tried the first event of a parked key.
fn is_untried(parked: &ParkedKey, module: &str) -> bool {
    let failure = parked.failure.as_ref();
    failure.is_none_or(|failure| failure.module != module)
}

/// What a drop would do.
fn would_drop(store: &Store, keys: &[String], whole_keys: bool) -> ParkedOutcome {
    let parked = store.parked_keys();
    let mut outcome = ParkedOutcome::default();
    // A drop without `whole_keys` takes the first event of each key only.
    for found in keys.iter().filter_map(|key| parked.get(key)) {
        let events = if whole_keys { found.events() } else { 1 };
        outcome.events += events;
        outcome.keys += u64::from(events == found.events());
    }
    outcome
}

/// An outcome in words, for the audit log.
fn describe(keys: &[String], outcome: &ParkedOutcome, reason: Option<&str>) -> String {
    let reason = reason.map(|reason| format!(": {reason}"));
    format!(
        "{}: events {}, keys no longer parked {}, keys that failed again {}{}",
        of_keys(keys),
        outcome.events,
        outcome.keys,
        outcome.failed.len(),
        reason.unwrap_or_default()
    )
}

fn nothing_parked(name: &str, key: &str) -> Error {
    Error::Missing(format!(
        "{name} has no parked events of key `{key}`; `foldstream parked list {name}` shows the keys"
    ))
}

fn change_shown((key, before, after): &Replaced) -> api::ParkedChange {
    let shown = |value: &Option<Payload>| value.as_ref().map(Payload::to_json);
    api::ParkedChange {
        key: key.to_string(),
        before: shown(before),
        after: shown(after),
    }
}

fn outcome_of(deployment: &Deployment, outcome: ParkedOutcome, is_cut: bool) -> api::ParkedOutcome {
    let more = || format!("only the first {KEYS_MAX} keys were tried");
    let failed = outcome
        .failed
        .into_iter()
        .map(|(key, error)| api::ParkedAgain { key, error });
    api::ParkedOutcome {
        events: outcome.events,
        keys: outcome.keys,
        failed: failed.collect(),
        // Both texts may apply; what stopped the work comes first.
        unfinished: outcome.unfinished.or_else(|| is_cut.then(more)),
        left: counts(deployment.active().store().as_ref()),
        dry_run: false,
        changes: outcome.changes.iter().map(change_shown).collect(),
        more_changes: outcome.more_changes,
        messages: outcome.effects,
    }
}

/// The keys as text for the audit log.
fn of_keys(keys: &[String]) -> String {
    let named: Vec<&str> = keys.iter().take(10).map(String::as_str).collect();
    let more = keys.len().saturating_sub(named.len());
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("keys {}{more}", named.join(", "))
}

fn open_store(deployment: &Deployment) -> Result<Store, Error> {
    let opening = || {
        Error::Conflict(format!(
            "the state of {} is not open; try again",
            deployment.name()
        ))
    };
    deployment.active().store().ok_or_else(opening)
}

fn reason_of(selection: &api::ParkedSelection) -> Result<String, Error> {
    // Recorded with each event, so its size is limited.
    let reason = selection.reason.as_deref().unwrap_or_default().trim();
    match reason.len() {
        0 => Err(Error::Refused(
            "give a reason to drop events: it is recorded with them".to_owned(),
        )),
        bytes if bytes > REASON_BYTES_MAX => Err(Error::Refused(format!(
            "the reason has {bytes} bytes, {REASON_BYTES_MAX} are allowed; shorten it"
        ))),
        _ => Ok(reason.to_owned()),
    }
}

/// The keys that a selection means, and whether there are more than one request may have.
fn chosen(
    name: &str,
    store: &Store,
    selection: &api::ParkedSelection,
) -> Result<(Vec<String>, bool), Error> {
    let parked = store.parked_keys();
    match (selection.keys.is_empty(), selection.all) {
        (true, false) => Err(Error::Refused("name the keys, or choose all".to_owned())),
        (false, true) => Err(Error::Refused(
            "name the keys or choose all, not both".to_owned(),
        )),
        (false, false) if selection.class.is_some() => Err(Error::Refused(
            "a class goes with all, not with keys".to_owned(),
        )),
        (false, false) if selection.keys.len() > KEYS_MAX => Err(Error::Refused(format!(
            "{} keys at once, {KEYS_MAX} are allowed; send several requests",
            selection.keys.len()
        ))),
        (false, false) => match selection.keys.iter().find(|key| !parked.contains_key(*key)) {
            Some(key) => Err(nothing_parked(name, key)),
            None => {
                // A key that is named twice is dropped or retried once.
                let mut named = BTreeSet::new();
                let keys = selection.keys.iter().filter(|key| named.insert(*key));
                Ok((keys.cloned().collect(), false))
            }
        },
        (true, true) => {
            let of_class = parked
                .iter()
                .filter(|(_, parked)| has_class(parked, selection.class));
            // The ones that were tried last come last: further requests reach the others, whatever
            // fails again.
            let tried_at = |parked: &ParkedKey| {
                parked
                    .failure
                    .as_ref()
                    .map(|failure| failure.last_at.clone())
            };
            let mut keys: Vec<(Option<String>, String)> = of_class
                .map(|(key, parked)| (tried_at(parked), key.clone()))
                .collect();
            keys.sort();
            let mut keys: Vec<String> = keys.into_iter().map(|(_, key)| key).collect();
            let is_cut = keys.len() > KEYS_MAX;
            keys.truncate(KEYS_MAX);
            Ok((keys, is_cut))
        }
    }
}

/// The policy of a new record.
pub(super) fn first_policy(
    wanted: Option<OnFailure>,
    module: &Module,
) -> Result<ParkingRecord, Error> {
    let on_failure = wanted.unwrap_or_default();
    check_policy(on_failure, module)?;
    Ok(ParkingRecord {
        on_failure,
        ..ParkingRecord::default()
    })
}
