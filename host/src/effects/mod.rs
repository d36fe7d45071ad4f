//! Effects: the messages that handlers publish.
//!
//! An effect is a function of the fold: its id comes from its [`Place`], and never from batches,
//! restarts or the clock. Only the owner of a deployment keeps effects; every other fold is mute.
//! This module knows no state file, no stream and no Wasm.

mod chain;
mod check;
mod delivery;
mod grants;
mod headers;
mod promise;
mod reply;
mod row;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::Payload;

pub use chain::{CHAIN_MAX, Loop, PATH, RETURNS_MAX, Returns, chain, extended};
pub use check::{Draft, EFFECTS_PER_EVENT_MAX, MESSAGE_BYTES_MAX, Refused, check};
pub use delivery::{Condition, Delivery, Queue, check_delivery};
pub use grants::{GRANTS_MAX, Grant, GrantError, Grants, overlap};
pub use headers::{Outgoing, caused_by, continued, outgoing, reserved};
pub use promise::{EffectsFrom, InvalidEffectsFrom, Promise};
pub use reply::{REPLY_AGE_MAX, answers, is_reply};
pub use row::{Row, RowKey, due_keys, key_of_turn, keys_of, last_key_of, queue_of_key, row_key};

/// 64 random bits given to a deployment when it is created. Ids of effects begin with it, so that
/// another deployment of the same name, here or elsewhere, never has the same ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lineage(pub u64);

impl fmt::Display for Lineage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Lineage {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

// As text, because JSON readers lose digits of large numbers.
impl Serialize for Lineage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lineage {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The place of an effect: the input that caused it, and how many effects that input caused before
/// it. An input that was parked and is retried has the same place as ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Sequence of the input.
    pub sequence: u64,
    /// 0, except in a turn ([`Row::turn`]).
    pub sub: u32,
    /// Counts the effects of the input, from 0.
    pub index: u32,
}

/// In the turn of an effect whose event was parked and is retried. Earlier releases had no turns, and
/// used such a place instead.
pub const RELEASE_SUB: u32 = 1 << 31;

/// Length of a [`Place`] as bytes.
pub const PLACE_BYTES: usize = 16;

impl Place {
    /// Whether an earlier release gave it to an effect of an event that it retried. Such a place
    /// depends on when that was, so two effects may have the same one.
    pub fn is_of_release(self) -> bool {
        self.sub >= RELEASE_SUB
    }

    /// As bytes, in the order of the places.
    pub fn to_bytes(self) -> [u8; PLACE_BYTES] {
        // Big endian, so that the order of the bytes is that of the places.
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.sub.to_be_bytes());
        bytes[12..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    /// The place that bytes represent.
    pub fn from_bytes(bytes: [u8; PLACE_BYTES]) -> Self {
        let word =
            |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sequence = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
        Self {
            sequence,
            sub: word(8),
            index: word(12),
        }
    }

    /// The id of the effect, by which streams recognise that it is stored already.
    pub fn id(self, lineage: Lineage) -> String {
        let Self {
            sequence,
            sub,
            index,
        } = self;
        format!("fs.{lineage}.{sequence}.{sub}.{index}")
    }

    /// The place of an effect of a lineage, by its id.
    pub fn of_id(id: &str, lineage: Lineage) -> Option<Self> {
        let rest = id.strip_prefix(&format!("fs.{lineage}."))?;
        let mut numbers = rest.split('.');
        let mut next = || numbers.next();
        let place = Self {
            sequence: next()?.parse().ok()?,
            sub: next()?.parse().ok()?,
            index: next()?.parse().ok()?,
        };
        // Written in one way only.
        (place.id(lineage) == id).then_some(place)
    }
}

/// Whether an id has the form of ids of effects, of whatever lineage.
pub fn is_id(id: &str) -> bool {
    let lineage = id
        .strip_prefix("fs.")
        .and_then(|rest| rest.split('.').next());
    let lineage = lineage.and_then(|lineage| lineage.parse().ok());
    lineage.is_some_and(|lineage| Place::of_id(id, lineage).is_some())
}

/// A message that a handler publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Its subject.
    pub subject: String,
    /// Its type.
    pub kind: String,
    /// Headers, those of the guest and those of the host.
    pub headers: Vec<(String, String)>,
    /// Its data.
    pub data: Payload,
    /// Effects with one key are stored in order; without a key, in order among themselves.
    pub key: String,
    /// When, for how long and on what condition it is stored.
    pub delivery: Delivery,
}

impl Effect {
    /// Whether it is stored on a condition.
    pub fn has_condition(&self) -> bool {
        self.delivery.condition.is_some()
    }

    /// Whether its condition is about other subjects than its own.
    pub fn expects_of_others(&self) -> bool {
        let condition = self.delivery.condition.as_ref();
        condition.is_some_and(|condition| condition.subjects != self.subject)
    }
}

/// The one fold of a deployment whose effects are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Name of the deployment.
    pub deployment: String,
    /// Its lineage.
    pub lineage: Lineage,
    /// Counts changes of ownership.
    pub epoch: u64,
    /// Effects of inputs up to this sequence are dropped: they belong to the time before the first
    /// deploy.
    pub effects_after: u64,
    /// Effects of timers are dropped if an input up to this sequence set the timer. Not more than
    /// `effects_after`: timers that were set before a hand-over pass on.
    pub timers_after: u64,
    /// What it may publish.
    pub grants: Grants,
    /// The subjects that its module declares to publish.
    pub publishes: Arc<[String]>,
    /// Targets that are embedded logs, which know no time to live.
    pub logs: Arc<BTreeSet<String>>,
}

/// Catalogue and state file do not agree on who owns the effects of a deployment. Nothing is sent
/// until an operator has decided.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OwnerMismatch(String);

impl OwnerMismatch {
    /// With what differs, and what to do.
    pub fn new(message: String) -> Self {
        Self(message)
    }
}

/// Whether the effects of a fold are sent. There is no default: each fold is given its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its effects are kept and sent.
    Owner(Arc<Owner>),
    /// Its effects are checked and dropped.
    Mute,
}

impl Role {
    /// The owner, if the fold has that role.
    pub fn owner(&self) -> Option<&Arc<Owner>> {
        match self {
            Self::Owner(owner) => Some(owner),
            Self::Mute => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ordered_like_their_bytes_and_come_back() {
        let place = |sequence, sub, index| Place {
            sequence,
            sub,
            index,
        };
        let places = [
            place(1, 0, 9),
            place(1, 1, 0),
            place(2, 0, 0),
            place(256, 0, 0),
            place(u64::MAX, 0, 1),
        ];
        assert!(
            places
                .windows(2)
                .all(|pair| pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes())
        );
        assert!(
            places
                .iter()
                .all(|place| Place::from_bytes(place.to_bytes()) == *place)
        );
    }

    #[test]
    fn id_depends_on_lineage_and_place_alone() {
        let place = Place {
            sequence: 42,
            sub: 0,
            index: 3,
        };
        assert_eq!(place.id(Lineage(0xab)), "fs.00000000000000ab.42.0.3");
        assert_eq!(
            Place::of_id("fs.00000000000000ab.42.0.3", Lineage(0xab)),
            Some(place)
        );
        for other in [
            "fs.00000000000000ac.42.0.3",
            "fs.00000000000000ab.42.0",
            "fs.00000000000000ab.042.0.3",
            "42.0.3",
        ] {
            assert_eq!(Place::of_id(other, Lineage(0xab)), None, "{other}");
        }
        let lineage: Lineage = "00000000000000ab".parse().expect("hexadecimal");
        assert_eq!(lineage, Lineage(0xab));
    }
}
