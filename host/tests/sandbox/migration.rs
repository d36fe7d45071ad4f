//! Migration: pages of old entries through real components, and what a module may not do with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldstream::event::{Event, Payload};
use foldstream::module::{ApplyError, Engine, Error, MigrateError, Migration, Module};
use foldstream::position::{Checkpoint, EventMark, StreamIdentity};
use foldstream::state::{Direction, Key, Scan, Selection, Snapshot};

use crate::bed::*;

type Entries = BTreeMap<String, Payload>;

fn migration() -> Migration {
    load(shared(), "migrate")
        .migration(&identity(), 3)
        .expect("an instance")
}

fn page(entries: &[(&str, &str)]) -> Vec<(Key, Payload)> {
    entries
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

fn error(deed: &str, value: &str) -> MigrateError {
    let mut migration = migration();
    // What comes instead of an error may be long, so it is not shown.
    let Err(error) = migration.page(&page(&[("keep/1", "x"), (deed, value)])) else {
        panic!("{deed} does not fail")
    };
    let again = migration
        .page(&page(&[("keep/1", "x")]))
        .expect_err("is spent");
    assert!(again.to_string().contains("start another one"), "{again}");
    error
}

#[test]
fn pages_are_mapped_on_one_instance() {
    let mut migration = migration();
    let mut first = page(&[("drop/1", "gone"), ("keep/1", "täxt"), ("twice", "x")]);
    first.insert(
        1,
        (
            "keep/0".into(),
            Payload::Bytes(Bytes::from_static(&[0, 255])),
        ),
    );
    let expected = [
        ("keep/0", Payload::Bytes(Bytes::from_static(&[0, 255]))),
        ("keep/1", "täxt".into()),
        ("v3/1/twice", "x".into()),
        ("v3/2/twice", "x".into()),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value));
    assert_eq!(migration.page(&first).expect("migrates"), expected);
    assert_eq!(
        migration.page(&page(&[("drop", "")])).expect("migrates"),
        []
    );
    assert_eq!(
        migration.page(&[]).expect("migrates"),
        [],
        "nothing gives nothing"
    );
    assert_eq!(migration.page(&first).expect("migrates"), expected);
}

#[test]
fn module_says_whether_it_migrates() {
    let plain = load(shared(), "");
    assert!(!plain.migrates() && !plain.info().migrates);
    let error = plain.migration(&identity(), 1).expect_err("cannot");
    assert!(
        matches!(&error, Error::Refused(text) if text.contains("no export `migrate`")),
        "{error}"
    );
    let migrating = load(shared(), "migrate");
    assert!(migrating.migrates() && migrating.info().migrates);
    // Apart from migrating it is a projection like any other.
    Bed::new(migrating).works_again();
}

#[test]
fn refusal_has_the_words_of_the_guest() {
    let error = error("refuse", "version 3 is unknown");
    assert!(
        matches!(&error, MigrateError::Refused(text) if text == "version 3 is unknown"),
        "{error:?}"
    );
    let long = self::error("refuse", &"ü".repeat(4_000));
    assert!(
        matches!(&long, MigrateError::Refused(text) if text.len() == 4_096),
        "{long:?}"
    );
}

#[test]
fn trap_in_a_migration_says_where() {
    let error = error("trap", "");
    let MigrateError::Failed(ApplyError::Trap(text)) = &error else {
        panic!("{error:?}")
    };
    assert!(
        text.contains("unreachable") && text.contains("\n  at "),
        "{text}"
    );
}

#[test]
fn endless_migration_is_cut_off() {
    let begin = Instant::now();
    let error = error("loop", "");
    let MigrateError::Failed(ApplyError::Deadline(deadline)) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        deadline,
        Duration::from_millis(300),
        "the manifest's deadline"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "after {:?}",
        begin.elapsed()
    );
}

#[test]
fn each_page_has_the_whole_deadline() {
    let mut migration = migration();
    std::thread::sleep(Duration::from_millis(400));
    migration
        .page(&page(&[("keep", "x")]))
        .expect("the time between two pages does not count");
}

#[test]
fn state_is_not_there_in_a_migration() {
    for deed in ["get", "put"] {
        let error = error(deed, "");
        let refused = matches!(&error, MigrateError::Failed(ApplyError::Trap(text)) if text.contains("in `migrate`"));
        assert!(refused, "{deed}: {error:?}");
    }
}

#[test]
fn migration_has_the_same_limits() {
    let limit = |deed: &str, value: &str| {
        let error = error(deed, value);
        let MigrateError::Failed(ApplyError::Limit { limit, message }) = error else {
            panic!("{error:?}")
        };
        assert!(!message.is_empty());
        limit
    };
    assert_eq!(limit("grow", ""), "memory-bytes");
    assert_eq!(limit("overlap", "70"), "transfer-bytes");
    assert_eq!(
        limit("many", "65536"),
        "migrated-entries",
        "one more than allowed, with the one before it"
    );
    let as_many = migration()
        .page(&page(&[("many", "65536")]))
        .expect("as many as allowed");
    assert_eq!(as_many.len(), 65_536);
    let log = logged(|| {
        drop(
            migration()
                .page(&page(&[("log", "10000")]))
                .expect("migrates"),
        );
    });
    assert_eq!(log.matches("the rest was dropped").count(), 1, "{log}");
}

#[test]
fn migrations_count_as_instances() {
    let (engine, _folder) = engine(|options| options.instances_max = 1);
    let module = load(&engine, "migrate");
    let first = module.migration(&identity(), 1).expect("the first");
    let error = module.migration(&identity(), 1).expect_err("no second");
    assert!(matches!(&error, Error::Busy(_)), "{error}");
    assert!(error.to_string().contains("all 1 places"), "{error}");
    drop(first);
    module
        .migration(&identity(), 1)
        .expect("there is room again");
}

// ---- the ledger and its next version ----

fn suite_module(engine: &Engine, name: &str) -> Arc<Module> {
    load_upload(engine, suite_guest(name))
}

/// Orders of enough customers for a state of several pages; the SDK escapes the names of some.
fn orders(sequences: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    let order = |sequence: u64| {
        let (name, number) = (["c", "a%b", "x/y"][sequence as usize % 3], sequence % 1_700);
        let subject = format!("orders.{name}{number}.placed").as_str().into();
        let data = format!(r#"{{"order":"o{sequence}","amount":{}}}"#, sequence % 97);
        Event {
            subject,
            ..event(sequence, "placed", &data)
        }
    };
    sequences.map(order).collect()
}

fn folded(module: &Arc<Module>, events: &[Event]) -> Bed {
    let mut bed = Bed::new(Arc::clone(module));
    for batch in events.chunks(1_000) {
        bed.apply(batch).expect("applies");
    }
    bed
}

/// The old state as a host reads it, in pages of `limit` entries.
fn pages(snapshot: &Snapshot, limit: usize) -> Vec<Vec<(Key, Payload)>> {
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let selection = Selection::Prefix(String::new());
        let scan = Scan {
            selection,
            after,
            direction: Direction::Forwards,
            limit,
        };
        let page = snapshot.scan(&scan).expect("state answers");
        after = page.entries.last().map(|(key, _)| key.to_string());
        pages.push(page.entries);
        if !page.more {
            return pages;
        }
    }
}

fn entries(bed: &Bed) -> Entries {
    let entries = pages(&bed.store.snapshot(), 1_000).concat();
    entries
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect()
}

fn migrated(module: &Module, old: &Bed, limit: usize) -> Entries {
    let mut migration = module.migration(&identity(), 1).expect("an instance");
    let pages = pages(&old.store.snapshot(), limit);
    pages
        .iter()
        .flat_map(|page| migration.page(page).expect("migrates"))
        .collect()
}

/// A state that begins with what was migrated, at the position of the old one.
fn over(module: &Arc<Module>, entries: &Entries, last: &Event) -> Bed {
    let mut bed = Bed::new(Arc::clone(module));
    let writer = bed.writer.as_mut().expect("it is here");
    writer.begin();
    for (key, value) in entries {
        writer
            .put(key, Some(value.clone()))
            .expect("fits the limits");
    }
    let stream = StreamIdentity {
        name: "s".to_owned(),
        created_ns: 1,
    };
    writer.publish(Checkpoint {
        last_event: Some(EventMark::of(last)),
        ..Checkpoint::at(last.sequence, stream)
    });
    bed
}

/// Shows the first entry that differs, as there are many.
fn assert_same(found: &Entries, expected: &Entries) {
    let key = found
        .keys()
        .chain(expected.keys())
        .find(|key| found.get(*key) != expected.get(*key));
    assert_eq!(
        key.map(|key| (key, found.get(key), expected.get(key))),
        None,
        "the first entry that differs"
    );
}

#[test]
fn migrating_the_ledger_gives_what_folding_gives() {
    let (ledger, next) = (
        suite_module(shared(), "ledger"),
        suite_module(shared(), "ledger-next"),
    );
    assert_eq!((ledger.migrates(), next.migrates()), (false, true));
    let before = orders(1..=5_000);
    let old = folded(&ledger, &before);
    assert!(
        pages(&old.store.snapshot(), 1_000).len() > 1,
        "the state has several pages"
    );

    let expected = entries(&folded(&next, &before));
    let migrated_entries = migrated(&next, &old, 1_000);
    assert_same(&migrated_entries, &expected);
    // Wherever the pages end.
    assert_same(&migrated(&next, &old, 7), &expected);

    // And it continues from there as if it had folded all of it.
    let behind = orders(5_001..=6_000);
    let mut bed = over(&next, &migrated_entries, &before[4_999]);
    bed.apply(&behind).expect("applies");
    assert_same(
        &entries(&bed),
        &entries(&folded(&next, &[before, behind].concat())),
    );

    let bytes = [(
        "of-bytes".into(),
        Payload::Bytes(Bytes::from_static(&[0, 255])),
    )];
    let kept = next
        .migration(&identity(), 1)
        .expect("an instance")
        .page(&bytes)
        .expect("migrates");
    assert_eq!(
        kept,
        [("of-bytes".to_owned(), bytes[0].1.clone())],
        "bytes stay bytes"
    );

    let unknown = next
        .migration(&identity(), 9)
        .expect("an instance")
        .page(&page(&[("head", "{}")]));
    let error = unknown.expect_err("of an unknown version");
    assert!(
        matches!(&error, MigrateError::Refused(text) if text.contains("version 9 is unknown")),
        "{error:?}"
    );
}
