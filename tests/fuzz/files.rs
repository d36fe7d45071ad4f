//! State, catalogue and log on a bad disk: files of a real host, with bytes flipped, pages swapped
//! and ends cut off.
//!
//! Opening such a file gives correct content or an error with a reason. It never panics and never
//! hangs. Damage that opening does not notice (only a full check reads every page) is found by
//! `foldstream doctor --data`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use foldstream::api::Entry;
use foldstream::event::Event;
use foldstream::log::{self, Log};
use foldstream::state::catalogue::{Audit, Catalogue, Record};
use foldstream::state::{self, Direction, Scan, Selection, Store};
use foldstream_tests::fuzz::drive;
use foldstream_tests::model::Ledger;
use foldstream_tests::stage::{Kind, Stage};
use tokio::runtime::Runtime;

/// A page of redb.
const PAGE: usize = 4_096;
/// What fits into the first pages of a file says where everything else is.
const HEADER: usize = 512;

/// The files of a data folder that damage is done to.
pub const FILES: [&str; 3] = ["catalog.redb", "log/events.redb", "state/ledger/1.redb"];

/// The files of a data folder, and what they hold.
pub struct Sound {
    /// Each of [`FILES`].
    pub files: [Vec<u8>; 3],
    /// The events of the log.
    pub events: Vec<Event>,
    /// What the ledger holds at each position.
    pub folds: BTreeMap<u64, Vec<Entry>>,
    records: Vec<Record>,
    audit: Vec<Audit>,
}

/// A host that is down, its files after a stop in order, and its files after a kill.
pub fn sound(folder: &Path) -> (Stage, [Sound; 2]) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut stage = Stage::with_ledger(Kind::Embedded).await;
        for _ in 0..4 {
            stage.publish(400).await;
            stage.assert_ledger_equals_model().await;
        }
        stage.host.stop();
        let stopped = Sound::read(&stage.host.data_dir(), folder);
        stage.host.restart().await;
        stage.publish(300).await;
        stage.assert_ledger_equals_model().await;
        stage.host.kill();
        let killed = Sound::read(&stage.host.data_dir(), folder);
        (stage, [stopped, killed])
    })
}

impl Sound {
    fn read(data: &Path, folder: &Path) -> Self {
        let bytes = |file: &str| std::fs::read(data.join(file)).expect("the host is down");
        let files = FILES.map(bytes);
        let copy = |bytes: &[u8]| {
            let path = folder.join("sound.redb");
            replace(&path, bytes);
            path
        };
        let events = read_log(&copy(&files[1])).expect("it is sound");
        let (records, audit) = read_catalogue(&copy(&files[0])).expect("it is sound");
        let mut ledger = Ledger::default();
        let mut folds = BTreeMap::from([(0, Vec::new())]);
        for event in &events {
            ledger.apply(event.sequence, &event.subject, event.data.as_bytes());
            folds.insert(event.sequence, ledger.entries());
        }
        Self {
            files,
            events,
            folds,
            records,
            audit,
        }
    }
}

fn read_log(path: &Path) -> Result<Vec<Event>, String> {
    let log = Log::open(path, log::Options::default()).map_err(|error| error.to_string())?;
    let (mut events, mut after) = (Vec::new(), 0);
    while after < log.info().last_sequence {
        let (page, through) = log
            .read(after, None, 1_000, 1 << 20)
            .map_err(|error| error.to_string())?;
        assert!(through > after, "reading moves on");
        events.extend(page);
        after = through;
    }
    Ok(events)
}

fn read_catalogue(path: &Path) -> Result<(Vec<Record>, Vec<Audit>), String> {
    let catalogue = Catalogue::open(path).map_err(|error| error.to_string())?;
    let records = catalogue.deployments().map_err(|error| error.to_string())?;
    let audit = catalogue
        .audit(1_000, None)
        .map_err(|error| error.to_string())?;
    Ok((records, audit))
}

/// All that a state file holds, and the position that it says to be at.
fn read_state(path: &Path) -> Result<(u64, Vec<Entry>), String> {
    let (store, _writer) =
        Store::open(path, state::Options::default(), |_| ()).map_err(|error| error.to_string())?;
    let snapshot = store.snapshot();
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let all = Selection::Prefix(String::new());
        let scan = Scan {
            selection: all,
            after,
            direction: Direction::Forwards,
            limit: 100,
        };
        let page = snapshot.scan(&scan).map_err(|error| error.to_string())?;
        after = page.entries.last().map(|(key, _)| key.to_string());
        for (key, value) in page.entries {
            // What is one thing in a scan and another by itself is wrong, and so is this state.
            let again = snapshot.get(&key).map_err(|error| error.to_string())?;
            if again.as_ref() != Some(&value) {
                entries.push(Entry {
                    key: key.to_string(),
                    value: serde_json::Value::Null,
                });
            }
            entries.push(Entry {
                key: key.to_string(),
                value: value.to_json(),
            });
        }
        if !page.more {
            return Ok((snapshot.position(), entries));
        }
        assert!(entries.len() < 100_000, "a scan without an end");
    }
}

/// A file with some of its bytes changed, as a bad disk, a bad copy or a bad restore would.
pub fn damaged(rng: &mut Rng, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let pages = bytes.len() / PAGE;
    for _ in 0..rng.usize(1..=3) {
        let (one, other) = (rng.usize(..pages) * PAGE, rng.usize(..pages) * PAGE);
        let end = bytes.len();
        match rng.u8(0..9) {
            0 if end > 0 => {
                for _ in 0..rng.usize(1..9) {
                    bytes[rng.usize(..end)] ^= 1 << rng.u8(0..8);
                }
            }
            1 => bytes[rng.usize(..HEADER)] = rng.u8(..),
            2 if other + PAGE <= end && one + PAGE <= end => {
                bytes.copy_within(one..one + PAGE, other);
            }
            3 if one + PAGE <= end => {
                bytes[one..one + PAGE].fill(*rng.choice(&[0, 0xff]).expect("some"));
            }
            4 if one + PAGE <= end => rng.fill(&mut bytes[one..one + PAGE]),
            5 if rng.u8(0..3) == 0 => bytes.truncate(rng.usize(..end)),
            5 => bytes.resize(end + rng.usize(1..3 * PAGE), 0),
            // The first bytes of a page say what it holds, and how much of it.
            6 if one + 64 <= end => bytes[one + rng.usize(..64)] = rng.u8(..),
            7 if one + 64 <= end => {
                bytes[one + rng.usize(..16)] = *rng.choice(&[0, 1, 2, 0x7f, 0xff]).expect("some");
            }
            _ if one + PAGE <= end && other + PAGE <= end => {
                let page = bytes[one..one + PAGE].to_vec();
                bytes.copy_within(other..other + PAGE, one);
                bytes[other..other + PAGE].copy_from_slice(&page);
            }
            _ => {}
        }
        if bytes.len() < 2 * PAGE {
            break;
        }
    }
    bytes
}

#[test]
fn damaged_files_open_with_correct_content_or_an_error() {
    let folder = tempfile::tempdir_in(memory()).expect("a temporary folder");
    let (_stage, sound) = sound(folder.path());
    drive::run("files", 250, |rng| {
        let sound = rng.choice(&sound).expect("some");
        match rng.u8(0..3) {
            0 => log_of(rng, sound, folder.path()),
            1 => catalogue_of(rng, sound, folder.path()),
            _ => state_of(rng, sound, folder.path()),
        }
    });
}

/// Where files cost no disk, if there is such a place.
fn memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() {
        shared
    } else {
        std::env::temp_dir()
    }
}

fn write(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("damaged.redb");
    replace(&path, bytes);
    path
}

/// Puts another file in the place of one. Notes say how far that one had come.
fn replace(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("our folder can be written");
    let _ = std::fs::remove_file(path.with_extension("newest"));
}

fn assert_words(words: &str) -> &'static str {
    assert!(words.len() > 20 && words.len() < 2_048, "{words}");
    "words"
}

/// What was read is wrong, and nobody said so: then the check has to.
fn unnoticed(what: &str, checked: &Result<bool, String>) {
    assert_ne!(
        *checked,
        Ok(true),
        "{what} is wrong, and a check of all checksums finds it sound"
    );
}

fn state_of(rng: &mut Rng, sound: &Sound, folder: &Path) -> &'static str {
    let bytes = damaged(rng, &sound.files[2]);
    let path = write(folder, &bytes);
    match read_state(&path) {
        Err(words) => assert_words(&words),
        Ok((position, entries)) if sound.folds.get(&position) == Some(&entries) => "right state",
        Ok((position, _)) => {
            let path = write(folder, &bytes);
            unnoticed(
                &format!("a state at {position}"),
                &state::check(&path).map_err(|error| error.to_string()),
            );
            "state that only a check finds wrong"
        }
    }
}

fn catalogue_of(rng: &mut Rng, sound: &Sound, folder: &Path) -> &'static str {
    let bytes = damaged(rng, &sound.files[0]);
    let path = write(folder, &bytes);
    match read_catalogue(&path) {
        Err(words) => assert_words(&words),
        Ok((records, audit)) if records == sound.records && audit == sound.audit => {
            "right catalogue"
        }
        // An older commit, which has fewer changes.
        Ok((_, audit)) if sound.audit.ends_with(&audit) => "older catalogue",
        Ok(_) => {
            let path = write(folder, &bytes);
            unnoticed(
                "a catalogue",
                &state::check(&path).map_err(|error| error.to_string()),
            );
            "catalogue that only a check finds wrong"
        }
    }
}

fn log_of(rng: &mut Rng, sound: &Sound, folder: &Path) -> &'static str {
    let bytes = damaged(rng, &sound.files[1]);
    let path = write(folder, &bytes);
    match read_log(&path) {
        Err(words) => assert_words(&words),
        Ok(events) if events == sound.events => "right log",
        Ok(events) if sound.events.starts_with(&events) => "older log",
        Ok(_) => {
            let path = write(folder, &bytes);
            unnoticed(
                "a log",
                &log::check(&path).map_err(|error| error.to_string()),
            );
            "log that only a check finds wrong"
        }
    }
}
