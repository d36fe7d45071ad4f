//! Old versions of events are read as in every SDK: `guest-sdk/conformance/upcasts.json`.

use std::collections::BTreeMap;

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{GivenEvent, Harness, Value, event};

#[derive(Deserialize)]
struct PlacedV1 {
    order: String,
    total_cents: i64,
}

#[derive(Deserialize)]
struct PlacedV2 {
    order: String,
    total_cents: i64,
    currency: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Placed {
    order: String,
    total: Total,
    lines: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Total {
    cents: i64,
    currency: String,
}

impl TryFrom<PlacedV1> for PlacedV2 {
    type Error = &'static str;

    fn try_from(old: PlacedV1) -> Result<Self, Self::Error> {
        if old.total_cents < 0 {
            return Err("the total is below zero");
        }
        Ok(Self {
            order: old.order,
            total_cents: old.total_cents,
            currency: "EUR".to_owned(),
        })
    }
}

impl TryFrom<PlacedV2> for Placed {
    type Error = &'static str;

    fn try_from(old: PlacedV2) -> Result<Self, Self::Error> {
        if old.currency.is_empty() {
            return Err("the currency is missing");
        }
        Ok(Self {
            order: old.order,
            total: Total {
                cents: old.total_cents,
                currency: old.currency,
            },
            lines: Vec::new(),
        })
    }
}

events! {
    enum OrderEvent {
        "placed.v3" => Placed(Placed, "placed.v2" => PlacedV2, "placed" => PlacedV1 as PlacedV2),
        _ => Other,
    }
}

struct Orders {
    orders: Table<String, Placed>,
}

impl Projection for Orders {
    fn manifest() -> Manifest<Self> {
        Manifest::new("orders").subjects(["orders.>"])
    }

    fn open(state: &State) -> Self {
        Self {
            orders: state.table("order"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        if let OrderEvent::Placed(placed) = event.decode()? {
            self.orders.put(event.token(2)?, placed)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Vectors {
    events: Vec<Stored>,
    entries: BTreeMap<String, String>,
    rejected: Vec<Rejected>,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    r#type: String,
    data: String,
}

#[derive(Deserialize)]
struct Rejected {
    event: Stored,
    message: String,
}

impl Stored {
    fn given(self) -> GivenEvent {
        // A text is the data as it is.
        event(&self.subject, Value::String(self.data)).kind(&self.r#type)
    }
}

fn vectors() -> Vectors {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/upcasts.json");
    let text = std::fs::read_to_string(path).expect("our own files can be read");
    serde_json::from_str(&text).expect("is sound")
}

#[test]
fn all_versions_of_an_event_give_the_entries_of_every_language() {
    let vectors = vectors();
    let mut orders = Harness::<Orders>::new();
    orders.given(vectors.events.into_iter().map(Stored::given));
    // The harness parses what is stored, and this writes it as the tables do.
    let written = |value| {
        let placed: Placed = serde_json::from_value(value).expect("it was stored");
        serde_json::to_string(&placed).expect("it can be written")
    };
    let entries = orders.entries("").into_iter();
    let entries: BTreeMap<_, _> = entries.map(|(key, value)| (key, written(value))).collect();
    assert_eq!(entries, vectors.entries);
    orders.assert_same_for_any_batching();
}

#[test]
fn old_events_are_rejected_as_in_every_language() {
    for Rejected { event, message } in vectors().rejected {
        let mut orders = Harness::<Orders>::new();
        let failure = orders.apply([event.given()]).expect_err("it is rejected");
        let failure = failure.to_string();
        assert!(failure.contains(&message), "{failure}");
        assert!(orders.entries("").is_empty());
    }
}
