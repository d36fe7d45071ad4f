//! Events are told apart by type, or by subject.

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{Harness, event, json};

#[derive(Deserialize)]
struct Parcel {
    grams: u64,
}

events! {
    /// What moves goods.
    #[derive(Debug)]
    pub(crate) enum Moved by subject {
        "orders.*.shipped" => Out(Parcel),
        "returns.*.shipped" | "returns.*.brought" => In(Parcel),
        "audits.>" => Audit,
        _ => Other,
    }
}

events! {
    enum Told<'a> by subject {
        "orders.*.noted" => Note(Note<'a>),
    }
}

#[derive(Deserialize)]
struct Note<'a> {
    text: &'a str,
}

impl std::fmt::Debug for Parcel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} g", self.grams)
    }
}

struct Goods {
    grams: Value<i64>,
    audits: Value<u64>,
}

impl Projection for Goods {
    fn manifest() -> Manifest<Self> {
        Manifest::new("goods").subjects([">"])
    }

    fn open(state: &State) -> Self {
        Self {
            grams: state.value("grams"),
            audits: state.value("audits"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        if event.is_under("orders.*.noted") {
            let Told::Note(note) = event.decode()?;
            assert_eq!(note.text, "fragile");
            return Ok(());
        }
        if event.is_under("strict.>") {
            event.decode::<Told<'_>>()?;
        }
        match event.decode()? {
            Moved::Out(parcel) => self.grams.update(|grams| *grams -= parcel.grams as i64)?,
            Moved::In(parcel) => self.grams.update(|grams| *grams += parcel.grams as i64)?,
            Moved::Audit => self.audits.update(|audits| *audits += 1)?,
            Moved::Other => {}
        }
        Ok(())
    }
}

#[test]
fn a_subject_of_another_kind_with_the_same_last_token_is_another_event() {
    let mut goods = Harness::<Goods>::new();
    goods.given([
        event("orders.1.shipped", json!({"grams": 5})),
        event("returns.1.shipped", json!({"grams": 7})),
        event("returns.1.brought", json!({"grams": 1})),
        event("orders.1.noted", json!({"text": "fragile"})),
        event("orders.shipped", json!("of no line")),
        event("orders.1.2.shipped", json!("of no line")),
        event("audits.a", json!(null)),
        event("audits.a.b.c", json!(null)),
        event("audits", json!("of no line")),
    ]);
    assert_eq!(
        (goods.get("grams"), goods.get("audits")),
        (Some(json!(3)), Some(json!(2)))
    );
}

/// The weight in grams, since version 3.
#[derive(Debug, PartialEq, Deserialize)]
struct Weighed {
    grams: u64,
}

/// In version 2 it was in kilograms.
#[derive(Deserialize)]
struct WeighedV2 {
    kilograms: u64,
}

/// In version 1 it was a text.
#[derive(Deserialize)]
struct WeighedV1 {
    weight: String,
}

impl From<WeighedV2> for Weighed {
    fn from(old: WeighedV2) -> Self {
        Self {
            grams: old.kilograms * 1_000,
        }
    }
}

impl TryFrom<WeighedV1> for WeighedV2 {
    type Error = String;

    fn try_from(old: WeighedV1) -> Result<Self, String> {
        let kilograms = old
            .weight
            .strip_suffix(" kg")
            .and_then(|text| text.parse().ok());
        let kilograms = kilograms.ok_or_else(|| format!("{} is no weight", old.weight))?;
        Ok(Self { kilograms })
    }
}

events! {
    #[derive(Debug, PartialEq)]
    enum Scales {
        "weighed.v3" => Weighed(
            Weighed,
            "weighed.v2" => WeighedV2,
            "weighed" | "weighed.v1" => WeighedV1 as WeighedV2,
        ),
        "tared" => Tared,
    }
}

events! {
    enum Stored by subject {
        "now.>" => Weighed(Weighed, "before.*" | "then.*" => WeighedV1 as WeighedV2),
        _ => Other,
    }
}

/// Decodes each event, and keeps what it says.
struct Keeps {
    grams: Table<u64, u64>,
}

impl Projection for Keeps {
    fn manifest() -> Manifest<Self> {
        Manifest::new("keeps").subjects([">"])
    }

    fn open(state: &State) -> Self {
        Self {
            grams: state.table("grams"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let weighed = if event.is_under("scales.*") {
            match event.decode()? {
                Scales::Weighed(weighed) => weighed,
                Scales::Tared => return Ok(()),
            }
        } else {
            match event.decode()? {
                Stored::Weighed(weighed) => weighed,
                Stored::Other => return Ok(()),
            }
        };
        Ok(self.grams.put(event.sequence(), weighed.grams)?)
    }
}

#[test]
fn an_old_event_is_read_as_if_it_were_a_new_one() {
    let mut keeps = Harness::<Keeps>::new();
    let of_kind = |kind: &str, data| event("scales.1", data).kind(kind);
    keeps.given([
        of_kind("weighed.v3", json!({"grams": 3_000})),
        of_kind("weighed.v2", json!({"kilograms": 3})),
        of_kind("weighed.v1", json!({"weight": "3 kg"})),
        of_kind("weighed", json!({"weight": "3 kg"})),
        of_kind("tared", json!(null)),
        event("now.1.2", json!({"grams": 3_000})),
        event("then.1", json!({"weight": "3 kg"})),
        event("then.1.2", json!("of no line")),
    ]);
    let kept: Vec<_> = (1..=8)
        .map(|sequence| keeps.get(&format!("grams/{sequence:020}")))
        .collect();
    let three = || Some(json!(3_000));
    let wanted = [
        three(),
        three(),
        three(),
        three(),
        None,
        three(),
        three(),
        None,
    ];
    assert_eq!(kept, wanted);
    keeps.assert_same_for_any_batching();
}

#[test]
fn an_old_event_without_a_current_form_is_rejected_with_the_reason() {
    let mut keeps = Harness::<Keeps>::new();
    for (kind, data, wanted) in [
        (
            "weighed",
            json!({"weight": "three"}),
            "of type weighed does not become the current version: three is no weight",
        ),
        ("weighed", json!({"grams": 1}), "missing field `weight`"),
        (
            "weighed.v2",
            json!({"grams": 1}),
            "missing field `kilograms`",
        ),
        (
            "weighed.v3",
            json!({"kilograms": 1}),
            "missing field `grams`",
        ),
        ("weighed.v4", json!({"grams": 1}), "none that events! lists"),
    ] {
        let failure = keeps.apply([event("scales.1", data).kind(kind)]);
        let failure = failure.expect_err("it is rejected").to_string();
        assert!(failure.contains(wanted), "{failure}");
    }
}

#[test]
fn an_event_that_no_line_names_is_rejected_with_its_subject() {
    let mut goods = Harness::<Goods>::new();
    let failure = goods
        .apply([event("strict.1.thing", json!({}))])
        .expect_err("it is of no line");
    assert!(failure.to_string().contains("strict.1.thing"), "{failure}");
}
