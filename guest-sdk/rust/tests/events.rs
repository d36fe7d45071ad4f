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

#[test]
fn an_event_that_no_line_names_is_rejected_with_its_subject() {
    let mut goods = Harness::<Goods>::new();
    let failure = goods
        .apply([event("strict.1.thing", json!({}))])
        .expect_err("it is of no line");
    assert!(failure.to_string().contains("strict.1.thing"), "{failure}");
}
