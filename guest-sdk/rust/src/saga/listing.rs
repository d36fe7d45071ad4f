//! What hosts list of sagas: an index by status, step and time, and counts. Its form is described
//! in `docs/sagas.md`, so that hosts and SDKs of other languages agree about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Ignored;
use super::instance::{FORMAT, Instance, Status};
use crate::failure::TableError;
use crate::key::{Key, KeyError, KeyReader, KeyWriter};
use crate::state::State;
use crate::table::Table;
use crate::time::Timestamp;

/// In place of a step, for instances that have none.
const NO_STEP: &str = "-";

/// Where an instance is listed: `<status>/<step>/<since>/<key>`, so that those that have waited
/// longest for a step come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    status: Status,
    step: String,
    since: Timestamp,
    key: String,
}

impl Place {
    pub(super) fn of<D>(instance: &Instance<D>, key: &str) -> Self {
        Self {
            status: instance.status,
            step: instance.step.clone().unwrap_or(NO_STEP.to_owned()),
            since: instance.since,
            key: key.to_owned(),
        }
    }

    /// Under which it is counted.
    fn group(&self) -> String {
        format!("{}/{}", self.status, self.step)
    }
}

type PlaceText = (String, String, Timestamp, String);

impl Key for Place {
    type Ref<'a> = &'a Self;

    fn write(place: &Self, writer: &mut KeyWriter<'_>) {
        let Self {
            status,
            step,
            since,
            key,
        } = place;
        PlaceText::write((status.name(), step, *since, key), writer);
    }

    fn read(reader: &mut KeyReader<'_>) -> Result<Self, KeyError> {
        let (status, step, since, key) = PlaceText::read(reader)?;
        let status = serde_json::from_value(serde_json::Value::String(status));
        Ok(Self {
            status: status.map_err(|_| KeyError::expected("a status"))?,
            step,
            since,
            key,
        })
    }
}

/// How many instances there are, and what was ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    format: u32,
    /// Instances by `<status>/<step>`.
    #[serde(default)]
    now: BTreeMap<String, u64>,
    /// Instances that ended, by status, with those that are not kept any more.
    #[serde(default)]
    ended: BTreeMap<String, u64>,
    /// Events that changed nothing, by what they were.
    #[serde(default)]
    ignored: BTreeMap<String, u64>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            format: FORMAT,
            now: BTreeMap::new(),
            ended: BTreeMap::new(),
            ignored: BTreeMap::new(),
        }
    }
}

/// The index and the counts of a saga.
#[derive(Debug)]
pub(super) struct Listing {
    /// `saga-index/<saga>/<status>/<step>/<since>/<key>`
    index: Table<Place, ()>,
    /// `saga-count/<saga>`
    counts: Table<(), Counts>,
}

impl Listing {
    pub(super) fn open(state: &State, saga: &str) -> Self {
        Self {
            index: state.part("saga-index", saga),
            counts: state.part("saga-count", saga),
        }
    }

    /// An instance moves from one place to another, is new, or is removed.
    pub(super) fn moved(
        &mut self,
        from: Option<&Place>,
        to: Option<&Place>,
    ) -> Result<(), TableError> {
        if from == to {
            return Ok(());
        }
        if let Some(from) = from {
            self.index.delete(from)?;
        }
        if let Some(to) = to {
            self.index.put(to, ())?;
        }
        self.counts.update((), |counts| {
            if let Some(from) = from {
                let group = from.group();
                let left = counts
                    .now
                    .get(&group)
                    .map_or(0, |count| count.saturating_sub(1));
                if left == 0 {
                    counts.now.remove(&group);
                } else {
                    counts.now.insert(group, left);
                }
            }
            if let Some(to) = to {
                *counts.now.entry(to.group()).or_default() += 1;
            }
            let has_ended = |place: &&Place| place.status.has_ended();
            match (from.filter(has_ended), to) {
                (None, Some(to)) if has_ended(&to) => {
                    *counts.ended.entry(to.status.name().to_owned()).or_default() += 1;
                }
                // An operator must deal with it after all.
                (Some(from), Some(to)) if !has_ended(&to) => {
                    let ended = counts.ended.entry(from.status.name().to_owned());
                    ended.and_modify(|count| *count = count.saturating_sub(1));
                }
                _ => {}
            }
        })
    }

    /// An event changed nothing.
    pub(super) fn ignored(&mut self, what: Ignored) -> Result<(), TableError> {
        self.counts.update((), |counts| {
            *counts.ignored.entry(what.name().to_owned()).or_default() += 1;
        })
    }
}
