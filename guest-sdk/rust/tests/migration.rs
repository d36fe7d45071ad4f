//! Migrations: what an old entry gives, and what a new one is stored as.

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{Harness, event, json};

/// Version 1: all in one table, amounts as text.
struct First {
    rows: Table<(String, u32), String>,
    total: Value<u64>,
}

impl Projection for First {
    fn manifest() -> Manifest<Self> {
        Manifest::new("amounts").subjects(["add.*"])
    }

    fn open(state: &State) -> Self {
        Self {
            rows: state.table("row"),
            total: state.value("total"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let (name, day, amount): (String, u32, u64) = event.json()?;
        self.total.update(|total| *total += amount)?;
        self.rows.edit((&name, day), |row| {
            let before = row.as_ref().map_or(0, |row| row.parse().unwrap_or(0));
            *row = Some((before + amount).to_string());
        })?;
        Ok(())
    }
}

/// Version 2: by day and name, amounts as numbers; the total has another name.
struct Second {
    days: Table<(u32, String), u64>,
    sum: Value<u64>,
}

impl Projection for Second {
    fn manifest() -> Manifest<Self> {
        Manifest::new("amounts")
            .subjects(["add.*"])
            .state_version(2)
    }

    fn open(state: &State) -> Self {
        Self {
            days: state.table("day"),
            sum: state.value("sum"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let (name, day, amount): (String, u32, u64) = event.json()?;
        self.days.update((day, &name), |sum| *sum += amount)?;
        Ok(self.sum.update(|sum| *sum += amount)?)
    }
}

impl Migrate for Second {
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError> {
        if from_version != 1 {
            return Err(MigrateError::unknown_version(from_version));
        }
        if let Some(((name, day), amount)) = old.of_table::<(String, u32), String>("row")? {
            new.put::<(u32, String)>("day", (day, &name), &amount.parse::<u64>()?)?;
        }
        if let Some(total) = old.of_value::<u64>("total")? {
            new.put_value("sum", &total)?;
        }
        Ok(())
    }
}

projection!(Second, migrate);

fn refusal(from_version: u32, key: &str, value: foldstream_sdk::testing::Value) -> String {
    Harness::<Second>::migrated(from_version, [(key, value)])
        .expect_err("is refused")
        .to_string()
}

#[test]
fn migrating_gives_what_folding_gives_and_continues_from_there() {
    let mut old = Harness::<First>::new();
    let mut folded = Harness::<Second>::new();
    // Names that are escaped in keys, and an entry that a later version has in another order.
    let events = ["b", "a/b", "a", "100 %", "b"]
        .map(|name| event("add.x", json!([name, 7 - name.len(), 5])));
    old.given(events.clone());
    folded.given(events);

    let mut migrated = Harness::<Second>::migrated(1, old.entries("")).expect("version 1 is known");
    assert_eq!(migrated.entries(""), folded.entries(""));
    assert_eq!(migrated.get("day/0000000006/b"), Some(json!(10)));

    migrated.given([event("add.x", json!(["b", 6, 1]))]);
    assert_eq!(
        (migrated.get("day/0000000006/b"), migrated.get("sum")),
        (Some(json!(11)), Some(json!(26)))
    );
    migrated.assert_same_for_any_batching();
}

#[test]
fn refusals_say_why() {
    assert_eq!(
        refusal(7, "total", json!(1)),
        "state version 7 is unknown to this version of the projection"
    );
    let error = refusal(1, "row/a/1", json!("5"));
    assert_eq!(
        error,
        "the key row/a/1 does not match its old type: expected a number of fixed width"
    );
    let error = refusal(1, "row/a/0000000001", json!(5));
    assert!(
        error
            .starts_with("the value of row/a/0000000001 does not match its old type: invalid type"),
        "{error}"
    );
    assert_eq!(
        refusal(1, "row/a/0000000001", json!("five")),
        "invalid digit found in string"
    );
}

/// Does with an entry what its value says.
struct Anything;

impl Projection for Anything {
    fn manifest() -> Manifest<Self> {
        Manifest::new("anything").subjects([">"])
    }

    fn open(_: &State) -> Self {
        Self
    }

    fn apply(&mut self, _: &Event<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

impl Migrate for Anything {
    fn migrate(_: u32, old: &OldEntry<'_>, new: &mut NewEntries) -> Result<(), MigrateError> {
        match old.json::<&str>()? {
            "keep" => new.keep(old),
            "where" => new.put::<String>(
                "where",
                old.key(),
                &["t", "t-x"].map(|name| old.is_in(name)),
            )?,
            "same" => new.put_value("same", &old.key())?,
            "long" => new.put::<String>("long", &"x".repeat(1_020), &())?,
            "unwritable" => new.put_value(
                "unwritable",
                &std::collections::HashMap::from([([0_u8; 2], 0)]),
            )?,
            "misnamed" => new.put_value("Mis named", &())?,
            _ => {}
        }
        Ok(())
    }
}

fn anything(old: &[(&str, &str)]) -> Result<Harness<Anything>, MigrateError> {
    Harness::migrated(1, old.iter().map(|(key, value)| (*key, json!(value))))
}

#[test]
fn entries_are_kept_as_they_are_or_left_out() {
    let harness = anything(&[("a/1", "keep"), ("a/2", "drop"), ("b", "keep")]).expect("migrates");
    assert_eq!(
        harness.entries(""),
        [
            ("a/1".to_owned(), json!("keep")),
            ("b".to_owned(), json!("keep"))
        ]
    );
}

#[test]
fn a_table_has_what_follows_its_name_and_a_slash() {
    let harness = anything(&[
        ("t", "where"),
        ("t-x/1", "where"),
        ("t/1", "where"),
        ("tt/1", "where"),
    ])
    .expect("migrates");
    assert_eq!(harness.get("where/t"), Some(json!([true, false])));
    assert_eq!(harness.get("where/t%2F1"), Some(json!([true, false])));
    assert_eq!(harness.get("where/t-x%2F1"), Some(json!([false, true])));
    assert_eq!(harness.get("where/tt%2F1"), Some(json!([false, false])));
}

#[test]
fn later_entries_of_one_key_win_in_the_order_of_the_old_keys() {
    let harness = anything(&[("b", "same"), ("a", "same")]).expect("migrates");
    assert_eq!(harness.entries(""), [("same".to_owned(), json!("b"))]);
}

#[test]
fn what_no_table_could_store_is_refused() {
    let error = anything(&[("a", "long")])
        .expect_err("1,025 bytes")
        .to_string();
    assert_eq!(
        error,
        "a new key of table long has 1025 bytes; at most 1024 are allowed"
    );
    let error = anything(&[("a", "unwritable")])
        .expect_err("no JSON")
        .to_string();
    assert_eq!(
        error,
        "the new value of unwritable cannot be encoded as JSON: key must be a string"
    );
}

#[test]
#[should_panic(expected = "table name \"Mis named\"")]
fn names_that_no_table_can_have_are_refused() {
    let _ = anything(&[("a", "misnamed")]);
}
