//! Parked events of a deployment: listing, retrying and dropping them.
//!
//! Retrying and dropping change entries at an unchanged position, like a partial rebuild: both are
//! noted in the catalogue before and after, so that earlier reads no longer match their position.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::{Exceptions, skips};
use crate::actor::blocking;
use crate::bundle::Keeper;
use crate::deployment::{Deployment, parked_counts as counts};
use crate::deployments::{DryRun, Error};
use crate::failure::FailureClass;
use crate::overview;
use crate::pipeline::{ParkedOutcome, ParkedWork, ParkedWorkError, decision};
use crate::progress::DeploymentState;
use crate::state::catalogue::ParkingRecord;
use crate::state::exceptions::{Behind, REASON_BYTES_MAX, Skip};
use crate::state::{self, Parked, ParkedKey, Store};

/// Most keys in one response, and in one request.
pub(super) const KEYS_MAX: usize = 1_000;
/// Most events of a key in one response.
const EVENTS_MAX: usize = 100;
/// Most events that one request drops: all keys wait meanwhile.
const DROP_EVENTS_MAX: usize = 10_000;

/// How much of each key a drop takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// The first event, which has failed.
    #[default]
    FirstEvent,
    /// All its events.
    WholeKey,
}

impl Extent {
    /// Out of this many events.
    fn events(self, all: u64) -> u64 {
        match self {
            Self::FirstEvent => 1,
            Self::WholeKey => all,
        }
    }
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

/// Which parked keys are meant: some, or all; of all, only those whose first event failed with a
/// class.
#[derive(Clone, Debug, Default)]
pub struct ParkedSelection {
    /// These keys.
    pub keys: Vec<String>,
    /// All keys.
    pub all: bool,
    /// Only keys whose first event failed with this class; with `all`.
    pub class: Option<FailureClass>,
    /// Why, for the audit log; required to drop events.
    pub reason: Option<String>,
    /// How much of each key a drop takes.
    pub extent: Extent,
}

/// The parked keys of a deployment.
#[derive(Clone, Debug)]
pub struct ParkedList {
    /// What happens to further events that fail.
    pub policy: ParkingRecord,
    /// All that is parked.
    pub counts: overview::Parked,
    /// The keys of this page, in order.
    pub keys: Vec<(String, ParkedKey)>,
    /// Where the next page begins; none if this is the last one.
    pub next: Option<String>,
}

/// What a retry or a drop did.
#[derive(Clone, Debug)]
pub struct ParkedChange {
    /// What came of the work.
    pub outcome: ParkedOutcome,
    /// What is parked now.
    pub left: overview::Parked,
    /// Whether nothing was changed: the numbers say what would happen.
    pub dry_run: DryRun,
    /// Whether the deployment had stopped, and this resumed it.
    pub has_resumed: bool,
}

/// Whether a key is one whose first event failed with a class.
fn has_class(parked: &ParkedKey, class: Option<FailureClass>) -> bool {
    class.is_none_or(|class| {
        let failure = parked.failure.as_ref();
        failure.is_some_and(|failure| failure.class == class.name())
    })
}

impl Exceptions {
    /// Some parked keys of a deployment, behind one of them.
    pub fn parked(
        &self,
        name: &str,
        class: Option<FailureClass>,
        after: Option<&str>,
    ) -> Result<ParkedList, Error> {
        let deployment = self.deployments.get(name)?;
        let store = deployment.open_store()?;
        let parked = store.parked_keys();
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut chosen = parked
            .range::<str, _>((behind, Bound::Unbounded))
            .filter(|(_, parked)| has_class(parked, class));
        let keys: Vec<_> = chosen
            .by_ref()
            .take(KEYS_MAX)
            .map(|(key, parked)| (key.clone(), parked.clone()))
            .collect();
        let last = keys.last().map(|(key, _)| key.clone());
        Ok(ParkedList {
            policy: deployment.record().parking.clone(),
            counts: counts(Some(&store)),
            keys,
            next: last.filter(|_| chosen.next().is_some()),
        })
    }

    /// How many events of a key are parked, and the first of them, in order.
    pub async fn parked_events(&self, name: &str, key: &str) -> Result<(u64, Vec<Parked>), Error> {
        let deployment = self.deployments.get(name)?;
        let store = deployment.open_store()?;
        let total = store.parked_events_of(key);
        // An unknown key is an error; events that are retried at this moment give an empty page.
        if total == 0 {
            return Err(nothing_parked(name, key));
        }
        let wanted = key.to_owned();
        let events = blocking(move || store.parked_events(&wanted, EVENTS_MAX)).await?;
        Ok((total, events))
    }

    /// Retries or drops parked events.
    pub async fn change_parked(
        &self,
        name: &str,
        action: ParkedAction,
        selection: ParkedSelection,
        dry_run: DryRun,
    ) -> Result<ParkedChange, Error> {
        let deployment = self.deployments.get(name)?;
        // For the whole change: a deploy in between could bring other code.
        let changing = self.deployments.lock(&deployment).await?;
        let store = deployment.open_store()?;
        let (mut keys, is_cut) = chosen(name, &store, &selection)?;
        let (extent, is_dry) = (selection.extent, dry_run == DryRun::Yes);
        if action == ParkedAction::Drop && extent == Extent::FirstEvent {
            keep_failed(name, &store, &mut keys, &selection)?;
        }
        let work = match action {
            ParkedAction::Retry => ParkedWork::Retry {
                keys: keys.clone(),
                dry_run: is_dry,
            },
            ParkedAction::Drop => ParkedWork::Drop {
                parts: parts_of(&store, &keys, extent),
                reason: reason_of(&selection)?,
            },
        };
        let runner = deployment.active();
        let changes_by_fold = action == ParkedAction::Retry && !is_dry;
        if changes_by_fold && runner.now().state == DeploymentState::Paused {
            // Before anything is noted: nothing changes.
            return Err(ParkedWorkError::NotRunning.into());
        }
        let has_stopped = runner.now().state == DeploymentState::Failed;
        let has_resumed = changes_by_fold && has_stopped && !keys.is_empty();
        let outcome = match action {
            _ if keys.is_empty() => ParkedOutcome::default(),
            ParkedAction::Drop if is_dry => would_drop(&store, &keys, extent),
            // Nothing changes that anybody could have read.
            ParkedAction::Retry if is_dry => self.work_on_parked(&deployment, work).await?,
            ParkedAction::Retry | ParkedAction::Drop => {
                let (begun, done) = match action {
                    ParkedAction::Retry => ("parked-retry-begun", "parked-retry"),
                    ParkedAction::Drop => ("parked-drop-begun", "parked-drop"),
                };
                // Before and after: a reader in between may have read the old entries.
                // If the work fails in between, the note stays, which only makes readers start
                // again.
                self.deployments
                    .note_repair(&deployment, begun, of_keys(&keys))
                    .await?;
                let dropped = match &work {
                    ParkedWork::Drop { parts, .. } => to_drop(&store, parts),
                    _ => Vec::new(),
                };
                let mut outcome = self.work_on_parked(&deployment, work).await?;
                if outcome.unfinished.is_none() && extent == Extent::WholeKey {
                    outcome.unfinished = left_of(&store, &keys);
                }
                let keeper = Keeper::new(self.deployments.folder.clone(), name);
                let gone = dropped.into_iter().flat_map(|(_, sequences)| sequences);
                let gone: Vec<u64> = gone.collect();
                blocking(move || keeper.forget(gone.into_iter())).await;
                // States of the past may lack what was released, or have what was dropped, at a
                // position that is the same as before.
                self.history.forget(name);
                let detail = describe(&keys, &outcome, selection.reason.as_deref());
                self.deployments
                    .note_repair(&deployment, done, detail)
                    .await?;
                outcome
            }
        };
        // The counts below are read without it.
        drop(changing);
        // Both texts may apply; what stopped the work comes first.
        let more = || format!("only the first {KEYS_MAX} keys were tried");
        let unfinished = outcome.unfinished.or_else(|| is_cut.then(more));
        Ok(ParkedChange {
            outcome: ParkedOutcome {
                unfinished,
                ..outcome
            },
            left: counts(deployment.active().store().as_ref()),
            dry_run,
            has_resumed,
        })
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
        let deployment = self.deployments.get(name)?;
        let keeper = Keeper::new(self.deployments.folder.clone(), name);
        // A deploy in between could bring other code.
        let _changing = self.deployments.lock(&deployment).await?;
        let Some(key) = key else {
            let newest = blocking(move || keeper.newest()).await;
            let newest = newest.map_err(|source| Error::Files {
                what: "cannot read the newest failure bundle",
                source,
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
        if !deployment.open_store()?.is_parked(key) {
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
        self.deployments
            .commit(deployment, deployment.draft(), "parked-export", detail)
            .await
    }
}

/// Keeps the keys whose first event has failed. Another one may be sound, and is not dropped by a
/// command that was sent twice.
fn keep_failed(
    name: &str,
    store: &Store,
    keys: &mut Vec<String>,
    selection: &ParkedSelection,
) -> Result<(), Error> {
    let parked = store.parked_keys();
    let has_failed = |key: &String| {
        let found = parked.get(key);
        found.is_some_and(|found| found.failure.is_some())
    };
    match keys.iter().find(|key| !has_failed(key)) {
        Some(key) if !selection.all => Err(Error::Conflict(format!(
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
fn parts_of(store: &Store, keys: &[String], extent: Extent) -> Vec<(String, usize)> {
    let mut room = DROP_EVENTS_MAX;
    let mut parts = Vec::new();
    for key in keys {
        let events = extent.events(store.parked_events_of(key));
        let events = usize::try_from(events).unwrap_or(usize::MAX).min(room);
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
    let store = deployment.open_store()?;
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

/// What a drop would do.
fn would_drop(store: &Store, keys: &[String], extent: Extent) -> ParkedOutcome {
    let parked = store.parked_keys();
    let mut outcome = ParkedOutcome::default();
    for found in keys.iter().filter_map(|key| parked.get(key)) {
        let events = extent.events(found.events());
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

fn reason_of(selection: &ParkedSelection) -> Result<String, Error> {
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
    selection: &ParkedSelection,
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
