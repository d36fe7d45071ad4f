//! Keys keep their order and their values, whatever they are.

use std::fmt::Debug;

use foldstream_sdk::key::Key;
use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{Harness, event, json};

/// Encodes a key as a table does, without the table's name.
fn encode<K: Key>(key: K::Ref<'_>) -> String {
    foldstream_sdk::key::encode::<K>(key)
}

fn decode<K: Key>(text: &str) -> K {
    foldstream_sdk::key::decode(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Checks one pair: each key reads back, and both sort alike.
fn check<K: Key + Ord + Debug>(keys: &[K], lend: for<'a> fn(&'a K) -> K::Ref<'a>) {
    for left in keys {
        let text = encode::<K>(lend(left));
        assert_eq!(&decode::<K>(&text), left, "{text}");
        for right in keys {
            assert_eq!(
                text.cmp(&encode::<K>(lend(right))),
                left.cmp(right),
                "{left:?} and {right:?}"
            );
        }
    }
}

/// Numbers of all magnitudes, with their neighbours.
fn numbers(chance: &mut fastrand::Rng) -> Vec<u64> {
    let mut numbers = vec![
        0,
        1,
        9,
        10,
        11,
        99,
        100,
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        (1 << 63) - 1,
    ];
    numbers.extend((0..60).map(|_| chance.u64(..) >> chance.u32(..64)));
    numbers
}

#[test]
fn numbers_sort_as_numbers() {
    let chance = &mut fastrand::Rng::with_seed(1);
    let numbers = numbers(chance);
    check::<u64>(&numbers, |key| *key);
    check::<i64>(
        &numbers
            .iter()
            .map(|number| *number as i64)
            .collect::<Vec<_>>(),
        |key| *key,
    );
    check::<u32>(
        &numbers
            .iter()
            .map(|number| *number as u32)
            .collect::<Vec<_>>(),
        |key| *key,
    );
    check::<i32>(
        &numbers
            .iter()
            .map(|number| *number as i32)
            .collect::<Vec<_>>(),
        |key| *key,
    );
    check::<u16>(
        &numbers
            .iter()
            .map(|number| *number as u16)
            .collect::<Vec<_>>(),
        |key| *key,
    );
    check::<i16>(
        &numbers
            .iter()
            .map(|number| *number as i16)
            .collect::<Vec<_>>(),
        |key| *key,
    );
    check::<u8>(&(0..=255).collect::<Vec<u8>>(), |key| *key);
    check::<i8>(&(-128..=127).collect::<Vec<i8>>(), |key| *key);
    check::<bool>(&[false, true], |key| *key);
}

#[test]
fn dates_and_times_sort_by_time() {
    let chance = &mut fastrand::Rng::with_seed(2);
    let times: Vec<_> = numbers(chance)
        .into_iter()
        .map(Timestamp::from_nanoseconds)
        .collect();
    check::<Timestamp>(&times, |key| *key);
    check::<Date>(
        &times.iter().map(|time| time.date()).collect::<Vec<_>>(),
        |key| *key,
    );
}

#[test]
fn text_of_letters_and_digits_sorts_exactly_in_every_place() {
    let chance = &mut fastrand::Rng::with_seed(3);
    let letters: Vec<char> = "09AZ_az~äß€𝄞".chars().collect();
    let mut text = || -> String {
        (0..chance.usize(..6))
            .map(|_| letters[chance.usize(..letters.len())])
            .collect()
    };
    let pairs: Vec<(String, String)> = (0..150).map(|_| (text(), text())).collect();
    check::<(String, String)>(&pairs, |(first, second)| (first, second));
}

#[test]
fn any_text_reads_back_and_stays_inside_its_part() {
    let chance = &mut fastrand::Rng::with_seed(4);
    let mut keys = std::collections::BTreeMap::new();
    for _ in 0..5_000 {
        let odd = ["", "/", "%", "%2F", "\0", "\u{7f}"][chance.usize(..6)];
        let mut text = || -> String { (0..chance.usize(..8)).map(|_| chance.char(..)).collect() };
        let pair = (text() + odd, text());
        let key = encode::<(String, String)>((&pair.0, &pair.1));
        assert_eq!(decode::<(String, String)>(&key), pair);
        assert_eq!(key.matches('/').count(), 2, "{key:?}");
        assert!(
            !key.contains(|character: char| character.is_ascii_control()),
            "{key:?}"
        );
        assert_eq!(
            keys.insert(key, pair.clone()).unwrap_or(pair.clone()),
            pair,
            "two keys have one text"
        );
    }
}

#[test]
fn plain_text_sorts_exactly_at_the_end_of_a_key() {
    let chance = &mut fastrand::Rng::with_seed(5);
    // All printable characters but the two that are escaped.
    let mut character = || char::from(chance.u8(b' '..=b'~'));
    let mut plain =
        || std::iter::repeat_with(&mut character).find(|character| !"%/".contains(*character));
    let mut text = |length: usize| -> String { (0..length).filter_map(|_| plain()).collect() };
    let texts: Vec<String> = (0..200).map(|number| text(number % 5)).collect();
    check::<String>(&texts, |key| key);
}

#[test]
fn keys_look_as_documented() {
    let date = Date::new(2026, 11, 23).expect("a day");
    assert_eq!(encode::<(String, Date)>(("42", date)), "/42/2026-11-23");
    assert_eq!(encode::<(u32, bool)>((7, true)), "/0000000007/1");
    assert_eq!(encode::<(i16, i8)>((7, -1)), "/p00007/n127");
    assert_eq!(encode::<String>("a/b 100%\n"), "/a%2Fb 100%25%0A");
    let time = Timestamp::from_nanoseconds(1_795_442_706_123_456_789);
    assert_eq!(encode::<Timestamp>(time), "/2026-11-23T14:05:06.123456789Z");
    assert_eq!(encode::<()>(()), "");
}

#[test]
fn foreign_keys_are_refused_with_what_was_expected() {
    for text in [
        "/7",
        "/00000000000000000007/1",
        "/99999999999999999999",
        "/+0000000000000000007",
        "",
    ] {
        assert!(foldstream_sdk::key::decode::<u64>(text).is_err(), "{text}");
    }
    for text in ["/a%2", "/a%zz", "/a%FF", "/%+1"] {
        assert!(
            foldstream_sdk::key::decode::<String>(text).is_err(),
            "{text}"
        );
    }
    for text in ["/p128", "/n256", "/m001", "/é01", "/p01"] {
        assert!(foldstream_sdk::key::decode::<i8>(text).is_err(), "{text}");
    }
    assert!(foldstream_sdk::key::decode::<Date>("/2026-02-30").is_err());
}

/// Keeps each visit under page, time and number.
struct Visits {
    visits: Table<(String, Timestamp, u64), u64>,
}

impl Projection for Visits {
    fn manifest() -> Manifest<Self> {
        Manifest::new("visits").subjects(["visits.>"])
    }

    fn open(state: &State) -> Self {
        Self {
            visits: state.table("visit"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        Ok(self.visits.put(
            (event.token(2)?, event.time(), event.sequence()),
            event.json()?,
        )?)
    }
}

#[test]
fn entries_are_in_the_order_of_their_parts() {
    let mut visits = Harness::<Visits>::new();
    visits.given([
        event("visits.b", json!(1)).at("2026-01-02T00:00:00Z"),
        event("visits.a", json!(2)).at("2026-01-03T00:00:00Z"),
        event("visits.b", json!(3)).at("2026-01-01T00:00:00Z"),
    ]);
    let values: Vec<_> = visits
        .entries("visit/")
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    assert_eq!(values, [json!(2), json!(3), json!(1)]);
}

/// The texts that every SDK of ours writes: `guest-sdk/conformance/keys.json`.
#[derive(Deserialize)]
struct Vectors {
    written: Vec<Vector>,
    refused: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    types: Vec<String>,
    #[serde(default)]
    key: Vec<foldstream_sdk::testing::Value>,
    text: String,
}

/// One part of a key, of a type by its name: its text if there is a value, else what the text reads
/// as.
fn part(name: &str, value: Option<&foldstream_sdk::testing::Value>, text: &str) -> Option<String> {
    macro_rules! part {
        ($kind:ty, $lend:expr) => {{
            match value {
                Some(value) => {
                    let key: $kind = serde_json::from_value(value.clone()).expect("is one");
                    let written = encode::<$kind>($lend(&key));
                    assert_eq!(decode::<$kind>(&written), key);
                    Some(written)
                }
                None => foldstream_sdk::key::decode::<$kind>(text)
                    .ok()
                    .map(|_| text.to_owned()),
            }
        }};
    }
    match name {
        "u8" => part!(u8, |key: &u8| *key),
        "u16" => part!(u16, |key: &u16| *key),
        "u32" => part!(u32, |key: &u32| *key),
        "u64" => part!(u64, |key: &u64| *key),
        "i8" => part!(i8, |key: &i8| *key),
        "i16" => part!(i16, |key: &i16| *key),
        "i32" => part!(i32, |key: &i32| *key),
        "i64" => part!(i64, |key: &i64| *key),
        "bool" => part!(bool, |key: &bool| *key),
        "date" => part!(Date, |key: &Date| *key),
        "time" => part!(Timestamp, |key: &Timestamp| *key),
        "text" => part!(String, String::as_str),
        other => panic!("no type {other}"),
    }
}

#[test]
fn keys_have_the_texts_that_every_sdk_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/keys.json");
    let text = std::fs::read_to_string(path).expect("our own files can be read");
    let vectors: Vectors = serde_json::from_str(&text).expect("is sound");
    for Vector { types, key, text } in &vectors.written {
        // A tuple's text is that of its parts, one after another, as a test above shows.
        let parts = types.iter().zip(key);
        let written: String = parts
            .map(|(name, value)| part(name, Some(value), "").expect("is written"))
            .collect();
        assert_eq!(written, *text);
    }
    for Vector { types, text, .. } in &vectors.refused {
        let refused = match types.as_slice() {
            [one] => part(one, None, text).is_none(),
            _ => foldstream_sdk::key::decode::<(String, String)>(text).is_err(),
        };
        assert!(refused, "{text} is no key of {types:?}");
    }
}
