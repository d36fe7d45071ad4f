//! Releases: parked events that were applied behind later ones.
//!
//! Which events, and at which position of the state, is a row of its own in the commit that applies
//! them, so that a fold of the same stream can do the same.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::exceptions::Past;
use super::file::storage;
use super::parked::{ParkedKey, RowKey, damaged, opened};
use super::store::StoreState;
use super::{Error, Store};
use crate::effects::{EFFECTS_PER_EVENT_MAX, Place, RELEASE_SUB};

/// Releases: position and number, each big endian, to key and sequences as JSON.
pub(super) const RELEASED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("released");
/// Length of the keys of releases. Those of parked events are longer.
pub(super) const RELEASE_KEY_BYTES: usize = 12;

/// Parked events of a key that were applied together, behind later events of other keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The position of the state.
    pub position: u64,
    /// Counts the releases at that position, from 0.
    pub number: u32,
    /// The key.
    pub key: String,
    /// The sequences of the events, in order.
    pub sequences: Vec<u64>,
    /// They are firings that were left out: nothing is applied, and their timers are pending no
    /// more. Other events that are left out change nothing, so that no release says when.
    pub is_drop: bool,
}

#[derive(Serialize, Deserialize)]
struct ReleaseRow {
    key: String,
    sequences: Vec<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_drop: bool,
}

impl Release {
    /// The turn that an effect has because its event is released: behind all effects of the
    /// position, and of earlier releases at it.
    pub(super) fn turn_of(&self, place: Place) -> Place {
        // In order, because they come from the index.
        let found = self.sequences.binary_search(&place.sequence);
        let event = u32::try_from(found.unwrap_or(0)).unwrap_or(u32::MAX);
        Place {
            sequence: self.position,
            // The highest bit is that of releases, so they come after events of the same position.
            sub: RELEASE_SUB | self.number,
            // Each event has its own range of indexes.
            index: event
                .saturating_mul(EFFECTS_PER_EVENT_MAX)
                .saturating_add(place.index),
        }
    }

    pub(super) fn row_key(&self) -> RowKey {
        let position = self.position.to_be_bytes();
        position
            .into_iter()
            .chain(self.number.to_be_bytes())
            .collect()
    }

    pub(super) fn row(&self) -> Bytes {
        let row = ReleaseRow {
            key: self.key.clone(),
            sequences: self.sequences.clone(),
            is_drop: self.is_drop,
        };
        serde_json::to_vec(&row).expect("plain data").into()
    }

    fn read(key: &[u8], row: &[u8]) -> Option<Self> {
        let (position, number) = place_of(key)?;
        let ReleaseRow {
            key,
            sequences,
            is_drop,
        } = serde_json::from_slice(row).ok()?;
        Some(Self {
            position,
            number,
            key,
            sequences,
            is_drop,
        })
    }
}

/// Position and number of a release, by the key of its row.
pub(super) fn place_of(key: &[u8]) -> Option<(u64, u32)> {
    let (position, number) = key.split_first_chunk::<8>()?;
    let number = number.try_into().ok().map(u32::from_be_bytes)?;
    Some((u64::from_be_bytes(*position), number))
}

impl StoreState {
    /// The next release of a key's events.
    pub(super) fn next_release(&self, key: &str, sequences: Vec<u64>) -> Release {
        let position = self.view.read().position();
        let number = match self.parked.lock().last_release {
            // Two releases at one position are told apart by number.
            Some((last, number)) if last == position => number + 1,
            _ => 0,
        };
        Release {
            position,
            number,
            key: key.to_owned(),
            sequences,
            is_drop: false,
        }
    }
}

impl Store {
    /// What this state did with parked events, for another that should equal it. Blocking.
    pub fn past(&self) -> Result<Past, Error> {
        if self.parked_from().is_none() {
            return Ok(Past::default());
        }
        // First: what is parked meanwhile comes after it.
        let position = self.position();
        let keys = self.parked_keys();
        let releases = self.releases()?;
        let released = releases.iter().flat_map(|release| &release.sequences);
        let parked = keys
            .values()
            .flat_map(ParkedKey::sequences)
            .chain(released.copied())
            .collect();
        Ok(Past {
            position,
            parked,
            releases,
        })
    }

    /// How many releases there were.
    pub fn releases_count(&self) -> u64 {
        self.inner.parked.lock().releases
    }

    /// All durable releases, in order. Blocking.
    pub fn releases(&self) -> Result<Vec<Release>, Error> {
        let transaction = self.inner.file.begin_read()?;
        let Some(table) = opened(transaction.open_table(RELEASED))? else {
            return Ok(Vec::new());
        };
        let mut releases = Vec::new();
        for row in table.iter().map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            releases.push(Release::read(key.value(), row.value()).ok_or_else(damaged)?);
        }
        Ok(releases)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::{Options, Writer};

    fn advance(writer: &mut Writer, position: u64) {
        writer.begin();
        writer.publish(Checkpoint::at(
            position,
            StreamIdentity {
                name: "s".to_owned(),
                created_ns: 1,
            },
        ));
    }

    fn release(writer: &mut Writer, key: &str, sequences: &[u64]) -> Place {
        writer.release(key, sequences.to_vec());
        writer.begin();
        let turn = writer.turn_of(Place {
            sequence: sequences[0],
            sub: 0,
            index: 3,
        });
        writer.publish_in_place(BTreeMap::new());
        turn.expect("it is released")
    }

    #[test]
    fn releases_are_counted_at_their_position_and_their_effects_come_behind_all_others() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let open = || Store::open(&path, Options::default(), |_| ()).expect("the state opens");
        let (store, mut writer) = open();
        advance(&mut writer, 9);
        let first = release(&mut writer, "ada", &[2, 5]);
        let second = release(&mut writer, "bob", &[1]);
        store.flush().expect("commits");
        drop((store, writer));
        let (store, mut writer) = open();
        let third = release(&mut writer, "ada", &[7]);
        advance(&mut writer, 12);
        let fourth = release(&mut writer, "eve", &[8]);
        store.flush().expect("commits");
        let own = |sequence| Place {
            sequence,
            sub: 0,
            index: 0,
        };
        let places = [
            own(9),
            first,
            second,
            third,
            own(10),
            own(12),
            fourth,
            own(13),
        ];
        assert!(
            places.windows(2).all(|pair| pair[0] < pair[1]),
            "{places:?}"
        );
        let releases = store.releases().expect("reads");
        let found: Vec<_> = releases
            .iter()
            .map(|release| (release.position, release.number, release.key.as_str()))
            .collect();
        assert_eq!(
            found,
            [(9, 0, "ada"), (9, 1, "bob"), (9, 2, "ada"), (12, 0, "eve")]
        );
        assert_eq!(releases[0].sequences, [2, 5]);
        assert_eq!(store.releases_count(), 4);
    }

    #[test]
    fn effects_of_events_that_are_released_together_keep_the_order_of_their_events() {
        let release = Release {
            position: 9,
            number: 0,
            key: "ada".to_owned(),
            sequences: vec![2, 5],
            is_drop: false,
        };
        let turn = |sequence, index| {
            release.turn_of(Place {
                sequence,
                sub: 0,
                index,
            })
        };
        let places = [
            turn(2, 0),
            turn(2, EFFECTS_PER_EVENT_MAX - 1),
            turn(5, 0),
            turn(5, 1),
        ];
        assert!(
            places.windows(2).all(|pair| pair[0] < pair[1]),
            "{places:?}"
        );
    }
}
