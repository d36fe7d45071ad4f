//! Sagas, as modules keep them in their state. `docs/sagas.md` describes the form of the entries,
//! which any SDK may write. The host only reads them, and trusts nothing in them: entries that it
//! can't read are not listed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::key_text::unescaped;
use crate::state::{Direction, Error, Page, Scan, Selection, Snapshot};

/// The version of the form that this host reads.
const FORMAT: u32 = 1;
/// Most sagas of one handler that are shown.
const SAGAS_MAX: usize = 32;
/// Most groups of one saga that are shown.
const GROUPS_MAX: usize = 100;
/// `saga-count/<saga>`: how many instances there are.
const COUNTS: &str = "saga-count/";
/// `saga-index/<saga>/<status>/<step>/<since>/<key>`: nothing.
const INDEX: &str = "saga-index/";
/// `saga/<saga>/<key>`: an instance.
const INSTANCES: &str = "saga/";

/// How far an instance of a saga is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SagaStatus {
    /// Its steps are being carried out.
    Running,
    /// What was done is being undone, the last step first.
    Compensating,
    /// It can't continue without an operator.
    Stuck,
    /// All steps are done.
    Completed,
    /// All that was done is undone.
    Compensated,
}

impl SagaStatus {
    /// Those that wait for something, the most urgent first.
    pub const WAITING: [Self; 3] = [Self::Stuck, Self::Compensating, Self::Running];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Stuck => "stuck",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
        }
    }
}

/// A saga of a handler, in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saga {
    /// Its name.
    pub name: String,
    /// Instances that have not ended, by status and step.
    pub waiting: Vec<SagaGroup>,
    /// Instances that ended, by status, with those that are not kept any more.
    pub ended: BTreeMap<String, u64>,
    /// Events and timers that changed nothing, by what they were: `duplicate`, `late`, `early`,
    /// `unknown`, `ended`, `stale-timer`.
    pub ignored: BTreeMap<String, u64>,
}

/// Instances of a saga that wait for the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaGroup {
    /// Their status.
    pub status: SagaStatus,
    /// The step that they carry out or undo, or at which they are stuck.
    pub step: String,
    /// How many they are.
    pub instances: u64,
    /// Since when the oldest of them has waited.
    pub since: Option<String>,
}

/// An instance of a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaInstance {
    /// The saga.
    pub saga: String,
    /// Its correlation key.
    pub key: String,
    /// How far it is.
    pub status: SagaStatus,
    /// The step that it carries out or undoes, or at which it is stuck; absent after its end.
    pub step: Option<String>,
    /// Since when it has had this status in this step.
    pub since: String,
    /// When it was started.
    pub started: String,
    /// Which attempt of the current command it is, from 1; 0 after its end.
    pub attempt: u32,
    /// When its timer fires: a time-out, the next attempt, or its removal.
    pub due: Option<String>,
    /// Why it compensates or is stuck.
    pub reason: String,
}

/// Which instances to list.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Only those of this saga.
    pub saga: Option<String>,
    /// Only those with this status; without one, those that have not ended.
    pub status: Option<SagaStatus>,
    /// Only those in this step.
    pub step: Option<String>,
}

/// A page of instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that have waited longest come first in each status and step.
    pub instances: Vec<SagaInstance>,
    /// Where the next page begins.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    format: u32,
    #[serde(default)]
    now: BTreeMap<String, u64>,
    #[serde(default)]
    ended: BTreeMap<String, u64>,
    #[serde(default)]
    ignored: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Instance {
    format: u32,
    status: SagaStatus,
    #[serde(default)]
    step: Option<String>,
    since: String,
    started: String,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    due: Option<String>,
    #[serde(default)]
    reason: String,
}

/// The sagas of a state, in figures. Reads a few entries per saga, however many instances it has.
pub(crate) fn figures(snapshot: &Snapshot) -> Result<Vec<Saga>, Error> {
    let mut sagas = Vec::new();
    for (key, value) in page(snapshot, COUNTS, None, SAGAS_MAX)?.entries {
        let name = key.as_ref()[COUNTS.len()..].to_owned();
        let Ok(counts) = serde_json::from_value::<Counts>(value.to_json()) else {
            continue;
        };
        if counts.format != FORMAT {
            continue;
        }
        let mut waiting = Vec::new();
        for status in SagaStatus::WAITING {
            let steps = counts.now.iter().filter_map(|(group, count)| {
                let (known, step) = group.split_once('/')?;
                (known == status.name()).then_some((step, *count))
            });
            for (step, instances) in steps.take(GROUPS_MAX) {
                let prefix = format!("{INDEX}{name}/{}/{step}/", status.name());
                let oldest = page(snapshot, &prefix, None, 1)?.entries.into_iter().next();
                waiting.push(SagaGroup {
                    status,
                    step: step.to_owned(),
                    instances,
                    since: oldest.and_then(|(key, _)| {
                        let rest = key.as_ref().strip_prefix(&prefix)?;
                        Some(rest.split_once('/')?.0.to_owned())
                    }),
                });
            }
        }
        sagas.push(Saga {
            name,
            waiting,
            ended: counts.ended,
            ignored: counts.ignored,
        });
    }
    Ok(sagas)
}

/// A page of instances. `after` is where the page before ended; none if no such page can have ended
/// there.
pub(crate) fn list(
    snapshot: &Snapshot,
    wanted: &Wanted,
    after: Option<&str>,
    limit: usize,
) -> Result<Option<Listed>, Error> {
    let mut listed = Listed::default();
    let prefixes = prefixes(snapshot, wanted)?;
    // A page ends within one of them, and the next continues there.
    let first = match after {
        None => 0,
        Some(after) => {
            let mut parts = prefixes.iter();
            match parts.position(|(_, prefix)| after.starts_with(prefix.as_str())) {
                Some(first) => first,
                None => return Ok(None),
            }
        }
    };
    let mut after = after.map(str::to_owned);
    for (saga, prefix) in &prefixes[first..] {
        let left = limit - listed.instances.len();
        if left == 0 {
            // Only if there is more: a client reads pages until there is no next one.
            if !page(snapshot, prefix, None, 1)?.entries.is_empty() {
                return Ok(Some(listed));
            }
            continue;
        }
        let page = page(snapshot, prefix, after.take(), left)?;
        for (place, _) in &page.entries {
            listed.next = Some(place.as_ref().to_owned());
            listed
                .instances
                .extend(instance_at(snapshot, saga, prefix, place.as_ref())?);
        }
        if page.more {
            return Ok(Some(listed));
        }
    }
    // All were read to their ends.
    listed.next = None;
    Ok(Some(listed))
}

/// The sagas that a state knows, if it knows any and has never had an instance of this one.
pub(crate) fn known_without(snapshot: &Snapshot, saga: &str) -> Result<Option<Vec<String>>, Error> {
    // Not only in the list, which has the first ones.
    if snapshot.get(&format!("{COUNTS}{saga}"))?.is_some() {
        return Ok(None);
    }
    let known = names(snapshot)?;
    Ok((!known.is_empty()).then_some(known))
}

/// The sagas of which there are, or were, instances.
fn names(snapshot: &Snapshot) -> Result<Vec<String>, Error> {
    let page = page(snapshot, COUNTS, None, SAGAS_MAX)?;
    let names = page.entries.iter();
    Ok(names
        .map(|(key, _)| key.as_ref()[COUNTS.len()..].to_owned())
        .collect())
}

/// The parts of the index that have what is wanted, with their sagas.
fn prefixes(snapshot: &Snapshot, wanted: &Wanted) -> Result<Vec<(String, String)>, Error> {
    let names = match &wanted.saga {
        Some(saga) => vec![saga.clone()],
        None => names(snapshot)?,
    };
    let statuses = wanted
        .status
        .map_or(SagaStatus::WAITING.to_vec(), |status| vec![status]);
    let mut prefixes = Vec::new();
    for name in names {
        for status in &statuses {
            let mut prefix = format!("{INDEX}{name}/{}/", status.name());
            if let Some(step) = &wanted.step {
                prefix.push_str(step);
                prefix.push('/');
            }
            prefixes.push((name.clone(), prefix));
        }
    }
    Ok(prefixes)
}

/// The instance at a place of the index; none if it can't be read.
fn instance_at(
    snapshot: &Snapshot,
    saga: &str,
    prefix: &str,
    place: &str,
) -> Result<Option<SagaInstance>, Error> {
    // Without a step in the prefix, a step and a time precede the key; with one, a time does.
    let behind = &place[prefix.len()..];
    let parts = if prefix.matches('/').count() == 3 {
        3
    } else {
        2
    };
    let Some(key) = behind.splitn(parts, '/').nth(parts - 1) else {
        return Ok(None);
    };
    let Some(value) = snapshot.get(&format!("{INSTANCES}{saga}/{key}"))? else {
        return Ok(None);
    };
    let Ok(instance) = serde_json::from_value::<Instance>(value.to_json()) else {
        return Ok(None);
    };
    Ok((instance.format == FORMAT).then(|| SagaInstance {
        saga: saga.to_owned(),
        key: unescaped(key),
        status: instance.status,
        step: instance.step,
        since: instance.since,
        started: instance.started,
        attempt: instance.attempt,
        due: instance.due,
        reason: instance.reason,
    }))
}

fn page(
    snapshot: &Snapshot,
    prefix: &str,
    after: Option<String>,
    limit: usize,
) -> Result<Page, Error> {
    snapshot.scan(&Scan {
        selection: Selection::Prefix(prefix.to_owned()),
        after,
        direction: Direction::Forwards,
        limit,
    })
}
