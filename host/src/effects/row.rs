//! Effects as rows of a state file.
//!
//! A key is the name of the target, a zero byte, and the place as 16 bytes, so that the rows of one
//! target are together and in the order of their places. A value is a version byte (1), the length
//! of a JSON head as four bytes big endian, the head, and the data.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Effect, PLACE_BYTES, Place};
use crate::event::Payload;

/// The key of a row.
pub type RowKey = Box<[u8]>;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Separates the name of the target from the place; names have none.
const SEPARATOR: u8 = 0;

/// An effect that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the target.
    pub target: String,
    /// Its place.
    pub place: Place,
    /// When it was made, in nanoseconds since the Unix epoch, by this machine's clock.
    pub made_ns: u64,
    /// The effect.
    pub effect: Effect,
}

#[derive(Serialize, Deserialize)]
struct Head {
    subject: String,
    kind: String,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key: String,
    text: bool,
    made_ns: u64,
}

/// The key of an effect's row.
pub fn key_of_row(target: &str, place: Place) -> RowKey {
    let mut key = Vec::with_capacity(target.len() + 1 + PLACE_BYTES);
    key.extend_from_slice(target.as_bytes());
    key.push(SEPARATOR);
    key.extend_from_slice(&place.to_bytes());
    key.into()
}

/// The first key that a row of a target can have.
pub fn first_key(target: &str) -> RowKey {
    key_of_row(
        target,
        Place {
            sequence: 0,
            sub: 0,
            index: 0,
        },
    )
}

/// The last key that a row of a target can have.
pub fn last_key(target: &str) -> RowKey {
    key_of_row(
        target,
        Place {
            sequence: u64::MAX,
            sub: u32::MAX,
            index: u32::MAX,
        },
    )
}

impl Row {
    /// Its key.
    pub fn key(&self) -> RowKey {
        key_of_row(&self.target, self.place)
    }

    /// Its value.
    pub fn value(&self) -> Bytes {
        let Effect {
            subject,
            kind,
            headers,
            data,
            key,
        } = &self.effect;
        let head = Head {
            subject: subject.clone(),
            kind: kind.clone(),
            headers: headers.clone(),
            key: key.clone(),
            text: data.as_str().is_some(),
            made_ns: self.made_ns,
        };
        let head = serde_json::to_vec(&head).expect("a head is plain data");
        let length = u32::try_from(head.len()).expect("messages are far smaller");
        let mut value = Vec::with_capacity(5 + head.len() + data.len());
        value.push(VERSION);
        value.extend_from_slice(&length.to_be_bytes());
        value.extend_from_slice(&head);
        value.extend_from_slice(data.as_bytes());
        value.into()
    }

    /// The row of a key and a value; none if it is damaged or written by a newer release.
    pub fn read(key: &[u8], value: Bytes) -> Option<Self> {
        // From the end, because the place has a fixed length and the name has none.
        let (target, place) = key.split_at_checked(key.len().checked_sub(PLACE_BYTES)?)?;
        let target = std::str::from_utf8(target.strip_suffix(&[SEPARATOR])?).ok()?;
        let place = Place::from_bytes(place.try_into().ok()?);
        if *value.first()? != VERSION {
            return None;
        }
        let length = u32::from_be_bytes(value.get(1..5)?.try_into().ok()?) as usize;
        // A length beyond the row is damage.
        let head: Head = serde_json::from_slice(value.get(5..5 + length)?).ok()?;
        let data = value.slice(5 + length..);
        let data = if head.text {
            Payload::detect(data)
        } else {
            Payload::Bytes(data)
        };
        let Head {
            subject,
            kind,
            headers,
            key,
            made_ns,
            ..
        } = head;
        let effect = Effect {
            subject,
            kind,
            headers,
            data,
            key,
        };
        Some(Self {
            target: target.to_owned(),
            place,
            made_ns,
            effect,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_damaged_ones_are_not_guessed() {
        for data in [
            Payload::from("{\"a\":1}"),
            Payload::Bytes(Bytes::from_static(b"\xff\0")),
            Payload::from(""),
        ] {
            let effect = Effect {
                subject: "a.b".to_owned(),
                kind: "b".to_owned(),
                headers: vec![("ce-id".to_owned(), "1".to_owned())],
                data,
                key: "k".to_owned(),
            };
            let place = Place {
                sequence: 9,
                sub: 0,
                index: 2,
            };
            let row = Row {
                target: "orders".to_owned(),
                place,
                made_ns: 5,
                effect,
            };
            let (key, value) = (row.key(), row.value());
            assert_eq!(Row::read(&key, value.clone()), Some(row));
            assert!(
                first_key("orders") < key && key < last_key("orders") && last_key("order") < key
            );
            assert_eq!(Row::read(&key, value.slice(..4)), None);
            let newer = Bytes::from([&[2], &value[1..]].concat());
            assert_eq!(Row::read(&key, newer), None);
        }
    }
}
