//! Data of events is checked as in every SDK: `guest-sdk/conformance/data.json`.

use std::collections::BTreeMap;

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{Harness, event};
use serde_json::Value as Json;

#[derive(Serialize, Deserialize)]
struct Placed {
    order: String,
    cents: u64,
    #[serde(default)]
    delta: i64,
    #[serde(default = "half")]
    rate: f64,
    by: Option<Person>,
}

#[derive(Serialize, Deserialize)]
struct Person {
    name: String,
}

fn half() -> f64 {
    0.5
}

#[derive(Serialize, Deserialize)]
struct Mapped {
    counts: BTreeMap<String, u64>,
    note: Json,
}

events! {
    enum OrderEvent {
        "placed" => Placed(Placed),
        "mapped" => Mapped(Mapped),
    }
}

struct Orders {
    placed: Value<Placed>,
    mapped: Value<Mapped>,
}

impl Projection for Orders {
    fn manifest() -> Manifest<Self> {
        Manifest::new("orders").subjects(["orders.>"])
    }

    fn open(state: &State) -> Self {
        Self {
            placed: state.value("placed"),
            mapped: state.value("mapped"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        match event.decode()? {
            OrderEvent::Placed(placed) => self.placed.put(placed)?,
            OrderEvent::Mapped(mapped) => self.mapped.put(mapped)?,
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Vectors {
    accepted: Vec<Accepted>,
    rejected: Vec<String>,
}

#[derive(Deserialize)]
struct Accepted {
    data: String,
    stored: Json,
}

fn vectors() -> [(&'static str, Vectors); 2] {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/data.json");
    let text = std::fs::read_to_string(path).expect("our own files can be read");
    let mut all: Json = serde_json::from_str(&text).expect("is sound");
    let of = |part| serde_json::from_value(part).expect("is sound");
    let maps = all["maps"].take();
    [("placed", of(all)), ("mapped", of(maps))]
}

/// JSON in which each number is a fraction, so that equal ones are equal.
fn numbers_alike(value: Json) -> Json {
    match value {
        Json::Number(number) => number.as_f64().into(),
        Json::Array(items) => items.into_iter().map(numbers_alike).collect(),
        Json::Object(members) => members
            .into_iter()
            .map(|(name, value)| (name, numbers_alike(value)))
            .collect(),
        other => other,
    }
}

#[test]
fn data_is_taken_as_in_every_language() {
    for (kind, vectors) in vectors() {
        for Accepted { data, stored } in vectors.accepted {
            let mut orders = Harness::<Orders>::new();
            let given = event(&format!("orders.1.{kind}"), Json::String(data.clone()));
            orders.apply([given]).expect(&data);
            let found = orders.get(kind).map(numbers_alike);
            assert_eq!(found, Some(numbers_alike(stored)), "{data}");
        }
    }
}

#[test]
fn data_is_rejected_as_in_every_language() {
    for (kind, vectors) in vectors() {
        for data in vectors.rejected {
            let mut orders = Harness::<Orders>::new();
            let given = event(&format!("orders.1.{kind}"), Json::String(data.clone()));
            let rejected = orders.apply([given]);
            assert!(
                rejected.is_err() && orders.entries("").is_empty(),
                "{data}: {:?}",
                orders.entries("")
            );
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Color {
    Red,
    Blue,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Id(u64);

#[derive(Debug, PartialEq, Deserialize)]
struct Point {
    x: i8,
}

#[derive(Debug, PartialEq, Deserialize)]
enum Shape {
    Nothing,
    Circle(u8),
    Line(u8, Point),
    Square { at: Point },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Paid {
    Card { point: Point },
}

#[derive(Debug, PartialEq, Deserialize)]
struct Flat<'a> {
    #[serde(flatten)]
    point: Point,
    #[serde(borrow)]
    text: std::borrow::Cow<'a, str>,
    octets: Option<[u8; 2]>,
    pair: (i64, f32, char, bool, ()),
}

/// What JSON becomes by a type, or why it does not.
fn read<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T, String> {
    foldstream_sdk::event::Payload::Text(data)
        .json()
        .map_err(|error| error.to_string())
}

#[test]
fn all_that_serde_can_describe_is_still_read() {
    assert_eq!(
        read(r#"{"Red":1,"Blue":2}"#),
        Ok(BTreeMap::from([(Color::Red, 1), (Color::Blue, 2)]))
    );
    assert_eq!(
        read(r#"{"1":[1,null],"2":[]}"#),
        Ok(BTreeMap::from([
            (Id(1), vec![Some(1), None]),
            (Id(2), vec![])
        ]))
    );
    assert_eq!(
        read(r#"["Nothing",{"Circle":1},{"Line":[1,{"x":2}]},{"Square":{"at":{"x":-1}}}]"#),
        Ok(vec![
            Shape::Nothing,
            Shape::Circle(1),
            Shape::Line(1, Point { x: 2 }),
            Shape::Square {
                at: Point { x: -1 }
            },
        ])
    );
    assert_eq!(
        read(r#"{"kind":"card","point":{"x":1}}"#),
        Ok(Paid::Card {
            point: Point { x: 1 }
        })
    );
    let flat = r#"{"x":1,"text":"a","octets":[1,2],"pair":[-1,0.5,"c",true,null],"more":{}}"#;
    let found = read::<Flat<'_>>(flat).expect("is sound");
    assert!(matches!(found.text, std::borrow::Cow::Borrowed("a")));
    assert_eq!(found.pair, (-1, 0.5, 'c', true, ()));
    assert_eq!((found.point, found.octets), (Point { x: 1 }, Some([1, 2])));
}

#[test]
fn a_list_is_no_record_and_no_name_occurs_twice_wherever_they_are() {
    let list = "invalid type: sequence, expected struct Point";
    for (told, wanted) in [
        (read::<Point>("[1]").map(drop), list),
        (read::<Vec<Point>>("[[1]]").map(drop), list),
        (read::<Option<Box<Point>>>("[1]").map(drop), list),
        (read::<(u8, Point)>("[1,[1]]").map(drop), list),
        (
            read::<BTreeMap<String, Point>>(r#"{"a":[1]}"#).map(drop),
            list,
        ),
        (read::<Shape>(r#"{"Line":[1,[2]]}"#).map(drop), list),
        (
            read::<Shape>(r#"{"Square":[{"x":1}]}"#).map(drop),
            "invalid type: sequence",
        ),
        (
            read::<Shape>(r#"{"Square":{"at":{"x":1},"at":{"x":1}}}"#).map(drop),
            "duplicate field `at`",
        ),
        (
            read::<BTreeMap<Id, u8>>(r#"{"1":1,"1":2}"#).map(drop),
            "duplicate field `1`",
        ),
        (
            read::<BTreeMap<Color, u8>>(r#"{"Red":1,"Red":2}"#).map(drop),
            "duplicate field `Red`",
        ),
        (
            read::<Paid>(r#"{"kind":"card","point":{"x":1,"x":1}}"#).map(drop),
            "duplicate field `x`",
        ),
        (
            read::<Json>(r#"[{"a":{"b":1,"b":1}}]"#).map(drop),
            "duplicate field `b`",
        ),
        (read::<Point>(r#"{"x":1} 1"#).map(drop), "trailing"),
    ] {
        let told = told.expect_err(wanted);
        assert!(told.contains(wanted), "{told} and not {wanted}");
    }
}
