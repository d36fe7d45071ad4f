//! Effects as rows of a state file.
//!
//! A key is the name of the target, an octet for the queue, and the place as 16 bytes, so that the
//! rows of one target and queue are together and in the order of their places. In front of the place
//! a delayed one has its time as 8 bytes, big endian, and one with an order whose event was parked
//! has its turn as 16 bytes. A value is a version byte, the length of a JSON
//! head as four bytes big endian, the head, and the data. Version 2 has a delivery in its head, which
//! releases that know none must not ignore.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Delivery, Effect, PLACE_BYTES, Place, Queue};
use crate::event::Payload;

/// The key of a row.
pub type RowKey = Box<[u8]>;

/// Version of rows without a delivery.
const PLAIN: u8 = 1;
/// Version of rows with one.
const WITH_DELIVERY: u8 = 2;
/// Octets behind the name of the target, by queue; names have none of them.
const ORDERED: u8 = 0;
const DELAYED: u8 = 1;
const CONFLICT: u8 = 2;
/// Length of a time in a key.
const TIME_BYTES: usize = 8;

/// An effect that waits to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the target.
    pub target: String,
    /// Its place.
    pub place: Place,
    /// Where it is in the order of its queue, if that is not its place: its event was parked, and
    /// was applied behind others.
    pub turn: Option<Place>,
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
    #[serde(default, skip_serializing_if = "Delivery::is_plain")]
    delivery: Delivery,
}

/// The place before and behind all others.
const ENDS: (Place, Place) = (
    Place {
        sequence: 0,
        sub: 0,
        index: 0,
    },
    Place {
        sequence: u64::MAX,
        sub: u32::MAX,
        index: u32::MAX,
    },
);

/// The key of a row. `time_ns` counts for a delayed one only.
pub fn row_key(target: &str, queue: Queue, time_ns: u64, place: Place) -> RowKey {
    let mut key = Vec::with_capacity(target.len() + 1 + TIME_BYTES + PLACE_BYTES);
    key.extend_from_slice(target.as_bytes());
    key.push(match queue {
        Queue::Ordered => ORDERED,
        Queue::Delayed => DELAYED,
        Queue::Conflict => CONFLICT,
    });
    if queue == Queue::Delayed {
        key.extend_from_slice(&time_ns.to_be_bytes());
    }
    key.extend_from_slice(&place.to_bytes());
    key.into()
}

/// The key of a row that has an order, and a turn in it.
pub fn key_of_turn(target: &str, turn: Place, place: Place) -> RowKey {
    let turn = row_key(target, Queue::Ordered, 0, turn);
    // With the place, because another file may have had the same turn.
    [&*turn, &place.to_bytes()].concat().into()
}

/// The keys that rows of a target can have in a queue.
pub fn keys_of(target: &str, queue: Queue) -> RangeInclusive<RowKey> {
    let (first, last) = ENDS;
    row_key(target, queue, 0, first)..=row_key(target, queue, u64::MAX, last)
}

/// The keys that rows of a target can have whose time is not after this one.
pub fn due_keys(target: &str, until_ns: u64) -> RangeInclusive<RowKey> {
    let (first, last) = ENDS;
    row_key(target, Queue::Delayed, 0, first)..=row_key(target, Queue::Delayed, until_ns, last)
}

/// The last key that a row of a target can have, whatever its queue.
pub fn last_key_of(target: &str) -> RowKey {
    row_key(target, Queue::Conflict, 0, ENDS.1)
}

/// What a key says.
struct Parts<'a> {
    target: &'a [u8],
    queue: Queue,
    /// Of a delayed row; otherwise 0.
    time_ns: u64,
    turn: Option<Place>,
    place: Place,
}

/// What a key says; none if it is damaged.
fn parts(key: &[u8]) -> Option<Parts<'_>> {
    // The first one ends the name, because names have no such octet.
    let end = key.iter().position(|octet| *octet <= CONFLICT)?;
    let (target, rest) = (&key[..end], &key[end + 1..]);
    let queue = match key[end] {
        ORDERED => Queue::Ordered,
        DELAYED => Queue::Delayed,
        _ => Queue::Conflict,
    };
    let (front, place) = rest.split_last_chunk::<PLACE_BYTES>()?;
    let (time_ns, turn) = match (queue, front) {
        (Queue::Delayed, time) => (u64::from_be_bytes(time.try_into().ok()?), None),
        (_, []) => (0, None),
        (Queue::Ordered, turn) => (0, Some(Place::from_bytes(turn.try_into().ok()?))),
        (Queue::Conflict, _) => return None,
    };
    Some(Parts {
        target,
        queue,
        time_ns,
        turn,
        place: Place::from_bytes(*place),
    })
}

/// The queue and the place of a row; none if its key is damaged.
pub fn queue_of_key(key: &[u8]) -> Option<(Queue, Place)> {
    parts(key).map(|parts| (parts.queue, parts.place))
}

impl Row {
    /// Its key.
    pub fn key(&self) -> RowKey {
        let delivery = &self.effect.delivery;
        let time_ns = delivery.not_before_ns.unwrap_or(0);
        match (delivery.queue(), self.turn) {
            (Queue::Ordered, Some(turn)) => key_of_turn(&self.target, turn, self.place),
            // What leaves the order has no turn in it any more.
            (queue, _) => row_key(&self.target, queue, time_ns, self.place),
        }
    }

    /// Its place in the order of its queue.
    pub fn order(&self) -> Place {
        self.turn.unwrap_or(self.place)
    }

    /// Whether something else than its place says that it is stored, because a later place says
    /// nothing about it. So it is with every delayed one.
    pub fn has_note(&self) -> bool {
        self.turn.is_some() || self.effect.has_condition()
    }

    /// Since when it could have been sent, in nanoseconds since the Unix epoch.
    pub fn ready_ns(&self) -> u64 {
        self.made_ns
            .max(self.effect.delivery.not_before_ns.unwrap_or(0))
    }

    /// Its value.
    pub fn value(&self) -> Bytes {
        let Effect {
            subject,
            kind,
            headers,
            data,
            key,
            delivery,
        } = &self.effect;
        let head = Head {
            subject: subject.clone(),
            kind: kind.clone(),
            headers: headers.clone(),
            key: key.clone(),
            text: data.as_str().is_some(),
            made_ns: self.made_ns,
            delivery: delivery.clone(),
        };
        let version = if delivery.is_plain() {
            PLAIN
        } else {
            WITH_DELIVERY
        };
        let head = serde_json::to_vec(&head).expect("a head is plain data");
        let length = u32::try_from(head.len()).expect("messages are far smaller");
        let mut value = Vec::with_capacity(5 + head.len() + data.len());
        value.push(version);
        value.extend_from_slice(&length.to_be_bytes());
        value.extend_from_slice(&head);
        value.extend_from_slice(data.as_bytes());
        value.into()
    }

    /// The row of a key and a value; none if it is damaged or written by a newer release.
    pub fn read(key: &[u8], value: Bytes) -> Option<Self> {
        let Parts {
            target,
            queue,
            time_ns,
            turn,
            place,
        } = parts(key)?;
        let target = std::str::from_utf8(target).ok()?;
        if ![PLAIN, WITH_DELIVERY].contains(value.first()?) {
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
            delivery,
            ..
        } = head;
        // Key and value agree, or one of them is damaged.
        let is_sound = delivery.queue() == queue
            && (queue != Queue::Delayed || delivery.not_before_ns == Some(time_ns));
        if !is_sound {
            return None;
        }
        let effect = Effect {
            subject,
            kind,
            headers,
            data,
            key,
            delivery,
        };
        Some(Self {
            target: target.to_owned(),
            place,
            turn,
            made_ns,
            effect,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::Condition;

    fn row(data: Payload, delivery: Delivery) -> Row {
        let effect = Effect {
            subject: "a.b".to_owned(),
            kind: "b".to_owned(),
            headers: vec![("ce-id".to_owned(), "1".to_owned())],
            data,
            key: "k".to_owned(),
            delivery,
        };
        let place = Place {
            sequence: 9,
            sub: 0,
            index: 2,
        };
        Row {
            target: "orders".to_owned(),
            place,
            turn: None,
            made_ns: 5,
            effect,
        }
    }

    fn deliveries() -> [Delivery; 3] {
        let delayed = Delivery {
            not_before_ns: Some(7),
            time_to_live_s: Some(60),
            ..Delivery::default()
        };
        let conflict = Delivery {
            condition: Some(Condition {
                subjects: "a.*".to_owned(),
                sequence: 3,
            }),
            conflict: Some("it has 4".to_owned()),
            ..delayed.clone()
        };
        [Delivery::default(), delayed, conflict]
    }

    #[test]
    fn rows_come_back_and_damaged_ones_are_not_guessed() {
        for (data, delivery) in [
            Payload::from("{\"a\":1}"),
            Payload::Bytes(Bytes::from_static(b"\xff\0")),
            Payload::from(""),
        ]
        .into_iter()
        .zip(deliveries())
        {
            let version = if delivery.is_plain() { 1 } else { 2 };
            let row = row(data, delivery);
            let (key, value) = (row.key(), row.value());
            assert_eq!(value[0], version);
            assert_eq!(Row::read(&key, value.clone()), Some(row.clone()));
            let queue = row.effect.delivery.queue();
            assert!(keys_of("orders", queue).contains(&key));
            assert!(key <= last_key_of("orders") && last_key_of("order") < key);
            assert!(last_key_of("orders") < row_key("orders2", Queue::Ordered, 0, row.place));
            assert_eq!(Row::read(&key, value.slice(..4)), None);
            let newer = Bytes::from([&[3], &value[1..]].concat());
            assert_eq!(Row::read(&key, newer), None);
            for other in [Queue::Ordered, Queue::Delayed, Queue::Conflict] {
                let elsewhere = row_key("orders", other, 99, row.place);
                let is_same = elsewhere == key;
                assert_eq!(Row::read(&elsewhere, value.clone()).is_some(), is_same);
            }
        }
    }

    #[test]
    fn delayed_rows_are_in_the_order_of_their_times() {
        let place = |sequence| Place { sequence, ..ENDS.0 };
        let key = |time_ns, sequence| row_key("a", Queue::Delayed, time_ns, place(sequence));
        assert!(key(1, 9) < key(1, 10) && key(1, 10) < key(2, 1) && key(255, 1) < key(256, 0));
        assert!(due_keys("a", 2).contains(&key(2, 7)) && !due_keys("a", 2).contains(&key(3, 1)));
        assert_eq!(queue_of_key(&key(2, 7)), Some((Queue::Delayed, place(7))));
    }

    #[test]
    fn row_with_a_turn_is_behind_those_before_its_turn_and_keeps_its_place() {
        let place = |sequence, sub| Place {
            sequence,
            sub,
            index: 0,
        };
        let of = |place, turn, delivery| Row {
            place,
            turn,
            ..row(Payload::from("{}"), delivery)
        };
        let turn = Some(place(9, 1 << 31));
        let released = of(place(3, 0), turn, Delivery::default());
        let other = of(place(4, 0), turn, Delivery::default());
        let keys = [
            of(place(9, 0), None, Delivery::default()).key(),
            released.key(),
            other.key(),
            of(place(10, 0), None, Delivery::default()).key(),
        ];
        assert!(keys.is_sorted_by(|one, next| one < next), "{keys:?}");
        assert!(
            keys.iter()
                .all(|key| keys_of("orders", Queue::Ordered).contains(key))
        );
        let found = Row::read(&released.key(), released.value());
        assert_eq!(found.as_ref(), Some(&released));
        assert_eq!(
            (released.order(), queue_of_key(&keys[1])),
            (place(9, 1 << 31), Some((Queue::Ordered, place(3, 0))))
        );
        // Whatever leaves the order has its place alone.
        for delivery in &deliveries()[1..] {
            let aside = of(place(3, 0), turn, delivery.clone());
            let found = Row::read(&aside.key(), aside.value()).expect("it is sound");
            assert_eq!((found.place, found.turn), (place(3, 0), None));
        }
    }

    /// If it fails, files that exist can't be read: an earlier release wrote this row for an event
    /// that it retried.
    #[test]
    fn row_of_an_earlier_release_keeps_its_place() {
        let place = Place {
            sequence: 9,
            sub: 1 << 31,
            index: 2,
        };
        let key = [b"orders\0".as_slice(), &place.to_bytes()].concat();
        let of_event = row(Payload::from("{}"), Delivery::default());
        let found = Row::read(&key, of_event.value()).expect("it is sound");
        assert_eq!((found.place, found.turn), (place, None));
        assert_eq!(*found.key(), *key);
    }
}
