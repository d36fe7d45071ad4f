//! Claims about a store as a whole, on real files, against a map as the model.

use std::collections::BTreeMap;

use super::*;
use crate::position::{Checkpoint, StreamIdentity};

type Model = BTreeMap<String, String>;

fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint::at(
        position,
        StreamIdentity {
            name: "events".to_owned(),
            created_ns: 1,
        },
    )
}

fn open(path: &std::path::Path) -> (Store, Writer) {
    Store::open(path, Options::default(), |_| ()).expect("the state opens")
}

fn expected(model: &Model, scan: &Scan) -> Vec<(String, String)> {
    let covered = |key: &str| match &scan.selection {
        Selection::Prefix(prefix) => key.starts_with(prefix.as_str()),
        Selection::Range { start, end } => {
            start.as_deref().is_none_or(|start| key >= start)
                && end.as_deref().is_none_or(|end| key < end)
        }
    };
    let behind = |key: &str| match (&scan.after, scan.direction) {
        (None, _) => true,
        (Some(after), Direction::Forwards) => key > after.as_str(),
        (Some(after), Direction::Backwards) => key < after.as_str(),
    };
    let mut entries: Vec<_> = model
        .iter()
        .filter(|(key, _)| covered(key) && behind(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if scan.direction == Direction::Backwards {
        entries.reverse();
    }
    entries
}

fn random_scan(random: &mut fastrand::Rng) -> Scan {
    let key = |random: &mut fastrand::Rng| random.bool().then(|| random_key(random));
    let selection = if random.bool() {
        Selection::Prefix(["", "a", "b/", "c"][random.usize(..4)].to_owned())
    } else {
        Selection::Range {
            start: key(random),
            end: key(random),
        }
    };
    let direction = if random.bool() {
        Direction::Forwards
    } else {
        Direction::Backwards
    };
    Scan {
        selection,
        after: key(random),
        direction,
        limit: random.usize(1..400),
    }
}

fn random_key(random: &mut fastrand::Rng) -> String {
    format!(
        "{}/{}",
        ["a", "b", "c"][random.usize(..3)],
        random.u32(..300)
    )
}

fn assert_scan(page: &Page, model: &Model, scan: &Scan) {
    let expected = expected(model, scan);
    let found: Vec<_> = page
        .entries
        .iter()
        .map(|(key, value)| (key.to_string(), value.as_str().expect("text").to_owned()))
        .collect();
    assert_eq!(
        found,
        expected[..expected.len().min(scan.limit)],
        "{scan:?}"
    );
    assert_eq!(page.more, expected.len() > scan.limit, "{scan:?}");
}

/// A store and its writer, and the map that it must equal.
struct Twin {
    path: std::path::PathBuf,
    store: Store,
    writer: Writer,
    model: Model,
    durable: Model,
    position: u64,
    held: Vec<(Snapshot, Model)>,
}

impl Twin {
    fn write(&mut self, random: &mut fastrand::Rng) {
        let mut batch = self.model.clone();
        self.writer.begin();
        for _ in 0..random.usize(..60) {
            let key = random_key(random);
            let value = (random.u8(..4) != 0).then(|| format!("{}", random.u32(..)));
            self.writer
                .put(&key, value.clone().map(Payload::from))
                .expect("within limits");
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(&key),
            };
        }
        let scan = random_scan(random);
        assert_scan(&self.writer.scan(&scan).expect("scans"), &batch, &scan);
        if random.u8(..8) == 0 {
            self.writer.discard();
        } else {
            self.position += random.u64(1..5);
            self.writer.publish(checkpoint(self.position));
            self.model = batch;
        }
    }

    fn flush(&mut self) {
        self.store.flush().expect("commits");
        self.durable.clone_from(&self.model);
        let durable = self
            .store
            .checkpoint()
            .map(|checkpoint| checkpoint.position);
        assert_eq!(durable, (self.position > 0).then_some(self.position));
        let bytes = self
            .model
            .iter()
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum::<u64>();
        assert_eq!(self.store.sizes().state_bytes, bytes);
    }

    /// Goes back to what is durable, as a crash would: what is in memory only is lost.
    fn reopen(self) -> Self {
        let Self {
            path,
            store,
            writer,
            durable,
            held,
            ..
        } = self;
        drop((store, writer, held));
        let (store, writer) = open(&path);
        assert!(
            durable_matches(&store, &durable),
            "a reopened store is the last committed state"
        );
        let position = store.position();
        Self {
            path,
            store,
            writer,
            model: durable.clone(),
            durable,
            position,
            held: Vec::new(),
        }
    }

    fn look(&mut self, random: &mut fastrand::Rng) {
        self.held.push((self.store.snapshot(), self.model.clone()));
        for (snapshot, model) in &self.held {
            let scan = random_scan(random);
            assert_scan(&snapshot.scan(&scan).expect("scans"), model, &scan);
            let key = random_key(random);
            let found = snapshot
                .get(&key)
                .expect("reads")
                .and_then(|value| value.as_str().map(str::to_owned));
            assert_eq!(found, model.get(&key).cloned());
        }
        self.held.pop();
    }
}

#[test]
fn whatever_is_written_frozen_committed_and_reopened_reads_as_a_map_would() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("state.redb");
        let (store, writer) = open(&path);
        let (model, durable) = (Model::new(), Model::new());
        let mut twin = Twin {
            path,
            store,
            writer,
            model,
            durable,
            position: 0,
            held: Vec::new(),
        };
        for _ in 0..120 {
            twin.write(&mut random);
            match random.u8(..8) {
                0 => drop(twin.store.freeze()),
                1 => twin.flush(),
                2 => twin.held.push((twin.store.snapshot(), twin.model.clone())),
                3 if !twin.held.is_empty() => {
                    drop(twin.held.swap_remove(random.usize(..twin.held.len())));
                }
                4 if twin.held.is_empty() => twin = twin.reopen(),
                _ => {}
            }
            twin.look(&mut random);
        }
    }
}

fn durable_matches(store: &Store, durable: &Model) -> bool {
    let scan = Scan {
        selection: Selection::Prefix(String::new()),
        after: None,
        direction: Direction::Forwards,
        limit: SCAN_ENTRIES_MAX,
    };
    let page = store.snapshot().scan(&scan).expect("scans");
    page.entries
        .iter()
        .map(|(key, value)| (key.to_string(), value.as_str().expect("text").to_owned()))
        .collect::<Model>()
        == *durable
}

#[test]
fn a_state_over_its_limit_is_refused_and_overwriting_is_no_growth() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options {
        state_bytes_max: 1_000,
        ..Options::default()
    };
    let (store, mut writer) =
        Store::open(&folder.path().join("state.redb"), options, |_| ()).expect("opens");
    let value = || Some(Payload::from("x".repeat(400)));
    for position in 1..20 {
        writer.begin();
        writer.put("a", value()).expect("within limits");
        writer.put("b", value()).expect("within limits");
        writer
            .check_size()
            .expect("two values fit, however often they are written");
        writer.publish(checkpoint(position));
        if position % 3 == 0 {
            store.flush().expect("commits");
        }
    }
    writer.begin();
    writer
        .put("c", value())
        .expect("the size is checked at the end");
    assert!(matches!(
        writer.check_size(),
        Err(Error::Limit {
            limit: "state-bytes",
            ..
        })
    ));
    writer.discard();
    assert_eq!(store.snapshot().get("c").expect("reads"), None);
}

#[test]
fn a_state_that_is_full_names_the_limit_that_it_met() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options {
        state_bytes_max: 1_000,
        ..Options::default()
    };
    let (_store, mut writer) =
        Store::open(&folder.path().join("state.redb"), options, |_| ()).expect("opens");
    let mut refused = |of_module: u64, bytes: usize| {
        writer.limit_state_bytes(of_module);
        writer.begin();
        writer
            .put("a", Some(Payload::from("x".repeat(bytes))))
            .expect("the size is checked at the end");
        let error = writer.check_size().expect_err("is too large").to_string();
        writer.discard();
        error
    };
    let error = refused(500, 600);
    assert!(
        error.contains("the module's manifest allows 500"),
        "{error}"
    );
    // Both limits are met: the host's has to be raised first.
    for of_module in [500, u64::MAX] {
        let error = refused(of_module, 1_200);
        let advice = "1000 are allowed; delete old entries, or raise state.state_bytes_max";
        assert!(error.contains(advice), "{error}");
    }
}

#[test]
fn keys_and_values_beyond_their_limits_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_store, mut writer) = open(&folder.path().join("state.redb"));
    let limit_of = |result: Result<(), Error>| match result {
        Err(Error::Limit { limit, .. }) => limit,
        other => panic!("expected a limit, found {other:?}"),
    };
    assert_eq!(limit_of(writer.put("", None)), "key-bytes");
    assert_eq!(
        limit_of(writer.put(&"k".repeat(KEY_BYTES_MAX + 1), None)),
        "key-bytes"
    );
    assert_eq!(
        limit_of(writer.put("k", Some(Payload::Bytes(vec![0; (1 << 20) + 1].into())))),
        "value-bytes"
    );
}

#[test]
fn a_second_opener_and_a_newer_format_are_refused_with_advice() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let opened = open(&path);
    let error = Store::open(&path, Options::default(), |_| ())
        .expect_err("the file is in use")
        .to_string();
    assert!(error.contains("another foldstream uses it"), "{error}");
    drop(opened);
    let database = redb::Database::open(&path).expect("opens");
    let transaction = database.begin_write().expect("begins");
    {
        let mut meta = transaction
            .open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))
            .expect("opens");
        meta.insert("format", (FORMAT_OWNED + 1).to_be_bytes().as_slice())
            .expect("writes");
    }
    transaction.commit().expect("commits");
    drop(database);
    let error = Store::open(&path, Options::default(), |_| ())
        .expect_err("the format is newer")
        .to_string();
    assert!(
        error.contains("written by format 4, this build reads 1 to 3"),
        "{error}"
    );
}

#[test]
fn a_file_that_the_system_refuses_is_not_called_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let refused = |path: &std::path::Path| {
        Store::open(path, Options::default(), |_| ())
            .expect_err("it cannot be opened")
            .to_string()
    };
    // Whatever the system says: too many open files, no permission, or, as here, that it is a
    // folder.
    let told = refused(folder.path());
    assert!(told.contains("the file itself may be sound"), "{told}");
    assert!(!told.contains("remove it"), "{told}");
    let damaged = folder.path().join("1.redb");
    std::fs::write(&damaged, [7; 8192]).expect("the folder is writable");
    let told = refused(&damaged);
    assert!(told.contains("restore the file from a backup"), "{told}");
}

/// Writes a state file as format 1 laid it out.
fn write_format_1(path: &std::path::Path) {
    let database = redb::Database::create(path).expect("is created");
    let transaction = database.begin_write().expect("begins");
    {
        let mut entries = transaction
            .open_table(redb::TableDefinition::<&str, &[u8]>::new("entries"))
            .expect("opens");
        entries.insert("a", b"\x01one".as_slice()).expect("writes");
        let mut meta = transaction
            .open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))
            .expect("opens");
        let digest = serde_json::to_string(&[7_u8; 32]).expect("is plain data");
        let checkpoint = format!(
            r#"{{"position":42,"stream":{{"name":"ORDERS","created_ns":5}},"last_event":{{"sequence":40,"time_ns":6,"digest":{digest}}}}}"#
        );
        meta.insert("format", 1_u32.to_be_bytes().as_slice())
            .expect("writes");
        meta.insert("checkpoint", checkpoint.as_bytes())
            .expect("writes");
        meta.insert("bytes", 4_u64.to_be_bytes().as_slice())
            .expect("writes");
    }
    transaction.commit().expect("commits");
}

#[test]
fn a_state_of_format_1_is_read_and_becomes_one_of_format_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    write_format_1(&path);
    let (store, mut writer) = open(&path);
    let old = store.published().expect("it had a checkpoint");
    assert_eq!(
        (
            old.position,
            old.stream.name.as_str(),
            old.stream.created_ns
        ),
        (42, "ORDERS", 5)
    );
    assert_eq!(
        old.last_event
            .as_ref()
            .map(|mark| (mark.sequence, mark.digest)),
        Some((40, [7; 32]))
    );
    assert_eq!(
        (old.last_seen.as_ref(), old.begins_after, old.missing),
        (None, None, 0),
        "nobody noted it"
    );
    assert_eq!(
        store.snapshot().get("a").expect("reads"),
        Some(Payload::from("one"))
    );
    let seen = crate::position::EventMark {
        sequence: 50,
        time_ns: 9,
        digest: [1; 32],
    };
    let new = Checkpoint {
        position: 50,
        last_seen: Some(seen),
        missing: 3,
        begins_after: Some(0),
        ..old
    };
    writer.begin();
    writer
        .put("b", Some(Payload::from("two")))
        .expect("within limits");
    writer.publish(new.clone());
    store.flush().expect("commits");
    drop((store, writer));
    let (store, _writer) = open(&path);
    assert_eq!(store.published(), Some(new));
    assert_eq!(
        store.snapshot().get("a").expect("reads"),
        Some(Payload::from("one"))
    );
    assert_eq!(
        store.snapshot().get("b").expect("reads"),
        Some(Payload::from("two"))
    );
    drop((store, _writer));
    let database = redb::Database::open(&path).expect("opens");
    let transaction = redb::ReadableDatabase::begin_read(&database).expect("begins");
    let meta = transaction
        .open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))
        .expect("opens");
    let format = meta
        .get("format")
        .expect("reads")
        .expect("is there")
        .value()
        .to_vec();
    assert_eq!(
        format,
        FORMAT.to_be_bytes(),
        "an older build refuses what it would not understand"
    );
}

#[test]
fn a_sound_file_passes_the_integrity_check_and_a_damaged_one_does_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("state.redb");
    let (store, mut writer) = open(&path);
    for position in 1..200 {
        writer.begin();
        writer
            .put(
                &format!("key/{position}"),
                Some(Payload::from("x".repeat(1_000))),
            )
            .expect("within limits");
        writer.publish(checkpoint(position));
    }
    store.flush().expect("commits");
    drop((store, writer));
    assert!(check(&path).expect("checks"));
    let mut bytes = std::fs::read(&path).expect("reads");
    let place = bytes
        .windows(8)
        .rposition(|window| window == b"xxxxxxxx")
        .expect("a value is somewhere");
    bytes[place] = b'y';
    std::fs::write(&path, bytes).expect("writes");
    assert!(!matches!(check(&path), Ok(true)));
}

#[test]
fn scan_over_deleted_entries_looks_at_the_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("state.redb"));
    writer.begin();
    (0..1_000).for_each(|key| writer.put(&format!("{key}"), None).expect("within limits"));
    let scan = Scan {
        selection: Selection::Prefix(String::new()),
        after: None,
        direction: Direction::Forwards,
        limit: 1,
    };
    let past = std::time::Instant::now();
    assert!(matches!(writer.scan_until(&scan, past), Err(Error::Late)));
    writer.publish(checkpoint(1));
    assert!(matches!(
        store.snapshot().scan_until(&scan, past),
        Err(Error::Late)
    ));
    assert_eq!(
        store.snapshot().scan(&scan).expect("nobody is in a hurry"),
        Page::default()
    );
}

#[test]
fn state_near_its_limit_is_refused_exactly_when_it_would_exceed_it() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = Options {
            state_bytes_max: 2_000,
            ..Options::default()
        };
        let (store, mut writer) =
            Store::open(&folder.path().join("state.redb"), options, |_| ()).expect("opens");
        let (mut model, mut refused) = (Model::new(), 0);
        for position in 1..400 {
            let mut batch = model.clone();
            writer.begin();
            for _ in 0..random.usize(..6) {
                let key = random.u8(..40).to_string();
                let value = (random.u8(..4) != 0).then(|| "x".repeat(random.usize(..120)));
                writer
                    .put(&key, value.clone().map(Payload::from))
                    .expect("within limits");
                match value {
                    Some(value) => drop(batch.insert(key, value)),
                    None => drop(batch.remove(&key)),
                }
            }
            let bytes: usize = batch
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .sum();
            if writer.check_size().is_ok() {
                assert!(bytes <= 2_000, "{bytes} bytes at {position}");
                writer.publish(checkpoint(position));
                model = batch;
            } else {
                assert!(bytes > 2_000, "{bytes} bytes at {position}");
                refused += 1;
                writer.discard();
            }
            match random.u8(..10) {
                0 => drop(store.freeze()),
                1 => store.flush().expect("commits"),
                _ => {}
            }
        }
        assert!(refused > 10, "the limit was met {refused} times");
    }
}

#[test]
fn a_state_near_its_limit_looks_up_keys_in_memory_once_and_not_with_each_batch() {
    const KEYS: usize = 5_000;
    const BATCH: usize = 50;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options {
        // A tenth more than the keys and values below.
        state_bytes_max: 110 * KEYS as u64,
        ..Options::default()
    };
    let (store, mut writer) =
        Store::open(&folder.path().join("state.redb"), options, |_| ()).expect("opens");
    let mut position = 0;
    let mut write = |keys: std::ops::Range<usize>| {
        writer.begin();
        for key in keys {
            let value = Payload::from("x".repeat(95));
            writer
                .put(&format!("{key:05}"), Some(value))
                .expect("within limits");
        }
        writer.check_size().expect("nothing is too large");
        position += 1;
        writer.publish(checkpoint(position));
    };
    write(0..KEYS);
    store.flush().expect("commits");
    let before = file::LOOKS.get();
    // Each key once more: the file has all of them, and memory has more and more.
    for first in (0..KEYS).step_by(BATCH) {
        write(first..first + BATCH);
    }
    let looks = file::LOOKS.get() - before;
    // One to see what a write replaces, one when memory is first counted, and some in between.
    assert!(looks < 4 * KEYS as u64, "{looks} looks for {KEYS} writes");
}

#[test]
fn changes_are_searched_while_others_are_noted() {
    const KEYS: usize = 50_000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("state.redb"));
    let search = || store.snapshot().changed_since(0, "");
    assert!(search().is_some(), "from now on more is remembered");
    writer.begin();
    for key in 0..KEYS {
        writer
            .put(&format!("{key:05}"), None)
            .expect("within limits");
    }
    writer.publish(checkpoint(1));
    let (mut looks, mut locked) = (0_u64, 0_u64);
    std::thread::scope(|scope| {
        let searches = scope.spawn(|| {
            for _ in 0..10 {
                assert_eq!(search().map(|keys| keys.len()), Some(KEYS));
            }
        });
        while !searches.is_finished() {
            looks += 1;
            locked += u64::from(store.inner.changes.is_locked());
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    });
    // A search takes milliseconds, and what it needs is taken out within microseconds.
    assert!(
        locked * 5 < looks,
        "{locked} of {looks} looks found it locked"
    );
}

#[test]
fn a_snapshot_can_be_taken_while_a_batch_is_written_and_shows_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("state.redb"));
    let put = |writer: &mut Writer, position: u64| {
        writer.begin();
        writer
            .put("a", Some(Payload::from(position.to_string())))
            .expect("within limits");
        writer.publish(checkpoint(position));
    };
    put(&mut writer, 1);
    let active = Arc::clone(&store.inner.view.read().active);
    let (begin, begun) = std::sync::mpsc::channel();
    let (ask, asked) = std::sync::mpsc::channel();
    let (sender, snapshots) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.into_iter().take(1).for_each(|()| put(&mut writer, 2));
        });
        scope.spawn(|| {
            asked
                .into_iter()
                .take(1)
                .for_each(|()| sender.send(store.snapshot()).expect("it is waited for"));
        });
        // A reader that walks a memtable keeps batches from being written into it.
        let walked = active.for_each(|_, _| {
            begin.send(()).expect("the writer waits");
            while !store.inner.is_writing() {
                std::thread::yield_now();
            }
            ask.send(()).expect("the reader waits");
            snapshots
                .recv_timeout(std::time::Duration::from_secs(30))
                .map(|snapshot| {
                    assert_eq!((snapshot.position(), store.position()), (1, 1));
                })
        });
        walked.expect("a snapshot is taken while a batch waits to be written");
    });
    assert_eq!(
        store.snapshot().get("a").expect("reads"),
        Some(Payload::from("2"))
    );
}

#[test]
fn every_snapshot_sees_whole_batches_however_many_are_taken_meanwhile() {
    const KEYS: u64 = 200;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("state.redb"));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let look = |snapshot: &Snapshot| {
        let position = snapshot.position();
        let expected = (position > 0).then(|| Payload::from(position.to_string()));
        for key in 0..KEYS {
            assert_eq!(
                snapshot.get(&format!("{key}")).expect("reads"),
                expected,
                "key {key} at {position}"
            );
        }
        let selection = Selection::Prefix(String::new());
        let scan = Scan {
            selection,
            after: None,
            direction: Direction::Forwards,
            limit: 1_000,
        };
        let page = snapshot.scan(&scan).expect("scans");
        assert_eq!(
            page.entries.len() as u64,
            if position > 0 { KEYS } else { 0 }
        );
        assert!(
            page.entries
                .iter()
                .all(|(_, value)| Some(value) == expected.as_ref()),
            "at {position}"
        );
    };
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (store, is_over) = (&store, &is_over);
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    held.push_back(store.snapshot());
                    look(held.back().expect("one was taken"));
                    if held.len() > reader * 4 {
                        look(&held.pop_front().expect("one was taken"));
                    }
                }
            });
        }
        for position in 1..=300 {
            writer.begin();
            for key in 0..KEYS {
                writer
                    .put(&key.to_string(), Some(Payload::from(position.to_string())))
                    .expect("within limits");
            }
            writer.publish(checkpoint(position));
            match position % 10 {
                3 => drop(store.freeze()),
                5 => store.commit().expect("commits"),
                _ => {}
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    store.flush().expect("commits");
    assert_eq!(store.sizes().memtable_bytes, 0);
    assert_eq!(store.pinned_bytes(), 0, "all snapshots are gone");
}

#[test]
fn memory_that_only_an_old_snapshot_holds_is_counted_until_it_ends() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("state.redb"));
    let mut publish = |position: u64| {
        writer.begin();
        writer
            .put("a", Some(Payload::from("x".repeat(100_000))))
            .expect("within limits");
        writer.publish(checkpoint(position));
    };
    publish(1);
    let held = store.snapshot();
    let before = store.memory_bytes();
    publish(2);
    assert!(
        store.memory_bytes() >= before + 100_000,
        "the value that the snapshot sees counts as well"
    );
    store.flush().expect("commits");
    assert_eq!(store.memtable_bytes(), 0);
    assert!(
        store.memory_bytes() >= before + 100_000,
        "it is durable, and still held"
    );
    assert_eq!(held.position(), 1);
    drop(held);
    assert_eq!(store.memory_bytes(), 0);
}

#[test]
fn the_number_of_entries_is_known_without_reading_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, mut writer) = open(&folder.path().join("1.redb"));
    let mut write = |position: u64, keys: std::ops::Range<u32>, value: Option<&str>| {
        writer.begin();
        keys.for_each(|key| {
            writer
                .put(&key.to_string(), value.map(Payload::from))
                .expect("within limits");
        });
        writer.publish(checkpoint(position));
    };
    let about = || store.snapshot().entries_about().expect("it is known");
    assert_eq!(about(), 0);
    write(1, 0..300, Some("one"));
    assert_eq!(about(), 300, "none of them is in the file");
    store.flush().expect("it is durable");
    assert_eq!(about(), 300);
    write(2, 200..300, Some("two"));
    assert_eq!(about(), 300, "they replace others");
    write(3, 100..300, None);
    store.flush().expect("it is durable");
    assert_eq!(about(), 100);
}
