//! Claims about parking, over real state files: nothing is lost, per-key order holds, and a crash
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::*;
use crate::state::ParkedCounts;
use crate::state::exceptions::Exception;

/// Sequences by key.
pub(super) type Sequences = BTreeMap<String, Vec<u64>>;
/// How a call fails at the event with an index.
type Fails = fn(usize) -> ApplyError;

/// Appends the sequence of each event to the entry of its key; events in `bad` are rejected. Data
/// such as `set tea 50` and `cancel tea` is about timers of the key.
struct Noting {
    bad: Arc<Mutex<BTreeSet<u64>>>,
    error: Fails,
    /// Whether it reads before it fails.
    reads_first: bool,
}

impl Fold for Noting {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        for (index, event) in events.iter().enumerate() {
            if self.bad.lock().contains(&event.sequence) {
                if self.reads_first {
                    writer.get(&event.subject).expect("reads");
                }
                return (writer, Err((self.error)(index)));
            }
            let Some(key) = parked_timers::key_of(event, &mut writer) else {
                continue;
            };
            let before = writer
                .get(&key)
                .expect("reads")
                .map_or_else(String::new, |value| {
                    value.as_str().expect("text").to_owned() + ","
                });
            let after = Payload::from(before + &event.sequence.to_string());
            writer.put(&key, Some(after)).expect("fits");
        }
        (writer, Ok(()))
    }
}

/// A pipeline that parks, over a log with events of seven keys.
pub(super) struct Bed {
    pub(super) stage: Stage,
    pub(super) bad: Arc<Mutex<BTreeSet<u64>>>,
    error: fn(usize) -> ApplyError,
    reads_first: bool,
}

impl Bed {
    pub(super) fn with_events(count: u64) -> Self {
        let stage = Stage::with_events(count);
        stage.parks.store(true, Ordering::Relaxed);
        Self {
            stage,
            bad: Arc::default(),
            error: rejected,
            reads_first: false,
        }
    }

    pub(super) fn open(&self) -> (Store, Writer) {
        Store::open(&self.stage.state(), state::Options::default(), |_| ())
            .expect("the state opens")
    }

    fn start(&self) -> (Store, std::thread::JoinHandle<Ended>) {
        let (store, writer) = self.open();
        let (bad, error, reads_first) = (Arc::clone(&self.bad), self.error, self.reads_first);
        let busy = Arc::clone(&self.stage.busy);
        let make: MakeFold = Box::new(move || {
            let taken = |left: u32| left.checked_sub(1);
            let is_busy = busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
            if is_busy.is_ok() {
                return Err(shortage().into());
            }
            Ok(Box::new(Noting {
                bad: Arc::clone(&bad),
                error,
                reads_first,
            }))
        });
        (store.clone(), self.stage.start_folding(store, writer, make))
    }

    /// Folds until everything is applied or parked, or the pipeline stops or waits at a limit.
    pub(super) fn fold(&mut self) -> Ended {
        self.stage.restart();
        let (_store, running) = self.start();
        let is_full = |now: &crate::progress::Now| {
            now.failure
                .as_ref()
                .is_some_and(|failure| failure.kind == "parked")
        };
        loop {
            let now = self.stage.progress.now();
            if running.is_finished() || now.state == DeploymentState::Live || is_full(&now) {
                break;
            }
            std::thread::yield_now();
        }
        self.stage.control.send_replace(Desired::Stop);
        running.join().expect("no panic")
    }

    /// Carries out a request while the pipeline is held where it is.
    pub(super) fn ask(&mut self, work: ParkedWork) -> Result<ParkedOutcome, ParkedWorkError> {
        self.stage.restart();
        let answer = self.stage.parked.hand_over(work);
        set_ceiling(&self.stage, Ceiling::Position(0), 2);
        let (_store, running) = self.start();
        let answer = self.stage.runtime.block_on(answer).expect("it answers");
        self.stage.control.send_replace(Desired::Stop);
        running.join().expect("no panic");
        set_ceiling(&self.stage, Ceiling::None, 3);
        answer
    }

    pub(super) fn retry(&mut self, keys: &[&str]) -> ParkedOutcome {
        self.ask(ParkedWork::Retry {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            dry_run: false,
        })
        .expect("it runs")
    }

    /// What another state has, besides the same timers, after it was folded from scratch, with all that this one parked,
    /// applied later and dropped.
    pub(super) fn folded_again(&mut self) -> BTreeMap<String, Vec<u64>> {
        let path = self.stage.folder.path().join("again.redb");
        let _ = std::fs::remove_file(&path);
        let (position, skips) = {
            let (store, _writer) = self.open();
            let decided = Skips::default().as_folded(&store.exceptions(), store.position());
            let past = store.past().expect("reads");
            (store.position(), decided.with_past(past))
        };
        self.stage.restart();
        self.stage.skips = skips;
        self.stage.standing.send_replace(None);
        set_ceiling(&self.stage, Ceiling::Position(position), 4);
        let (store, writer) =
            Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
        let (bad, error) = (Arc::default(), self.error);
        let make: MakeFold = Box::new(move || {
            Ok(Box::new(Noting {
                bad: Arc::clone(&bad),
                error,
                reads_first: false,
            }))
        });
        let running = self.stage.start_folding(store.clone(), writer, make);
        while self.stage.standing.borrow().is_none() && !running.is_finished() {
            std::thread::yield_now();
        }
        self.stage.control.send_replace(Desired::Stop);
        assert!(matches!(running.join().expect("no panic"), Ended::Asked));
        set_ceiling(&self.stage, Ceiling::None, 5);
        self.stage.skips = Skips::default();
        let timers = |store: &Store| store.snapshot().timers(None, 1_000).expect("reads");
        assert_eq!(timers(&store), timers(&self.open().0));
        noted(&store)
    }

    /// What is durable: sequences by key, parked sequences by key, the position.
    pub(super) fn durable(&self) -> (Sequences, Sequences, u64) {
        let (store, _writer) = self.open();
        let parked = store.parked_keys();
        let parked = parked.iter().map(|(key, found)| {
            let events = store.parked_events(key, usize::MAX).expect("reads");
            let sequences: Vec<u64> = events.iter().map(|parked| parked.event.sequence).collect();
            assert_eq!(
                sequences,
                found.sequences().collect::<Vec<_>>(),
                "rows and index agree"
            );
            (key.clone(), sequences)
        });
        (noted(&store), parked.collect(), store.position())
    }
}

/// The sequences that a state has noted, by key.
fn noted(store: &Store) -> BTreeMap<String, Vec<u64>> {
    let scan = Scan {
        selection: Selection::Prefix(String::new()),
        after: None,
        direction: Direction::Forwards,
        limit: 1_000,
    };
    let page = store.snapshot().scan(&scan).expect("scans");
    let numbers = |text: &str| -> Vec<u64> {
        text.split(',')
            .map(|number| number.parse().expect("a number"))
            .collect()
    };
    let entries = page.entries.iter();
    entries
        .map(|(key, value)| (key.to_string(), numbers(value.as_str().expect("text"))))
        .collect()
}

/// The sequences of a key among the first events.
fn of_key(key: u64, through: u64) -> Vec<u64> {
    (1..=through).filter(|number| number % 7 == key).collect()
}

#[test]
fn a_retry_that_gets_no_instance_leaves_nothing_for_the_next_batch() {
    let mut bed = Bed::with_events(14);
    *bed.bad.lock() = [3].into();
    bed.fold();
    bed.bad.lock().clear();
    bed.stage.restart();
    bed.stage.busy.store(1, Ordering::Relaxed);
    let answer = bed.stage.parked.hand_over(ParkedWork::Retry {
        keys: vec!["s.3".to_owned()],
        dry_run: false,
    });
    set_ceiling(&bed.stage, Ceiling::Position(0), 2);
    let (store, running) = bed.start();
    let answer = bed.stage.runtime.block_on(answer).expect("it answers");
    let outcome = answer.expect("it runs");
    assert!(outcome.unfinished.is_some(), "{outcome:?}");
    // The same run continues with events of other keys.
    bed.stage.append(14..16);
    set_ceiling(&bed.stage, Ceiling::None, 3);
    while store.position() < 16 && !running.is_finished() {
        std::thread::yield_now();
    }
    bed.stage.control.send_replace(Desired::Stop);
    running.join().expect("no panic");
    drop(store);
    let (store, _writer) = bed.open();
    assert_eq!(store.position(), 16);
    assert!(store.past().expect("reads").releases.is_empty());
}

#[test]
fn a_failed_event_is_parked_with_later_ones_of_its_key_and_other_keys_continue() {
    let mut bed = Bed::with_events(30);
    bed.bad.lock().insert(10);
    assert!(matches!(bed.fold(), Ended::Asked));
    let (noted, parked, position) = bed.durable();
    assert_eq!(position, 30);
    for key in 0..7 {
        let expected = if key == 3 { vec![3] } else { of_key(key, 30) };
        assert_eq!(noted[&format!("s.{key}")], expected, "key {key}");
    }
    assert_eq!(
        parked,
        BTreeMap::from([("s.3".to_owned(), vec![10, 17, 24])])
    );
    let (store, _writer) = bed.open();
    let first = &store.parked_events("s.3", 1).expect("reads")[0];
    let failure = first.failure.as_ref().expect("it failed");
    assert_eq!(
        (
            failure.class.as_str(),
            failure.attempts,
            failure.module.as_str()
        ),
        ("rejected", 1, "ab")
    );
    assert_eq!(
        (&*first.event.subject, first.event.data.as_str()),
        ("s.3", Some("{}"))
    );
    assert_eq!(
        (store.parked_counts().events, store.parked_from()),
        (3, Some(10))
    );
}

#[test]
fn a_retry_applies_a_key_in_order_up_to_what_fails_again() {
    let mut bed = Bed::with_events(30);
    bed.bad.lock().extend([10, 24]);
    bed.fold();
    bed.bad.lock().remove(&10);
    let outcome = bed.retry(&["s.3"]);
    assert_eq!(
        (outcome.events, outcome.keys, outcome.failed.len()),
        (2, 0, 1),
        "{outcome:?}"
    );
    let (noted, parked, position) = bed.durable();
    assert_eq!(
        (&noted["s.3"], &parked["s.3"], position),
        (&vec![3, 10, 17], &vec![24], 30)
    );
    // A restart changes nothing, and later events still wait.
    bed.stage.append(31..=33);
    bed.fold();
    assert_eq!(bed.durable().1["s.3"], [24, 31]);
    bed.bad.lock().clear();
    let outcome = bed.retry(&["s.3"]);
    assert_eq!(
        (outcome.events, outcome.keys, outcome.failed.len()),
        (2, 1, 0),
        "{outcome:?}"
    );
    let (noted, parked, _) = bed.durable();
    assert_eq!((&noted["s.3"], parked.len()), (&of_key(3, 33), 0));
}

#[test]
fn a_dropped_event_is_recorded_as_left_out_and_later_ones_wait_for_a_retry() {
    let mut bed = Bed::with_events(30);
    bed.bad.lock().insert(10);
    bed.fold();
    let drop = |count| ParkedWork::Drop {
        parts: vec![("s.3".to_owned(), count)],
        reason: "test data".to_owned(),
    };
    assert_eq!(bed.ask(drop(1)).expect("it runs").events, 1);
    assert_eq!(bed.durable().1["s.3"], [17, 24]);
    assert_eq!(bed.retry(&["s.3"]).keys, 1);
    let (noted, _, _) = bed.durable();
    assert_eq!(noted["s.3"], [3, 17, 24]);
    let (store, _writer) = bed.open();
    assert_eq!(store.exceptions().into_keys().collect::<Vec<_>>(), [10]);
}

#[test]
fn many_events_that_are_dropped_together_are_left_out_with_the_first_and_again_in_another_fold() {
    let mut bed = Bed::with_events(3_000);
    bed.stage.parking_limits = ParkingLimits {
        keys: 3,
        events: 1_000,
        bytes: 10 << 20,
    };
    bed.bad.lock().insert(10);
    bed.fold();
    let waiting = bed.durable().1["s.3"].len();
    // More than one portion, and not all.
    let count = waiting - 1;
    assert!(count > 256, "{count}");
    let drop = ParkedWork::Drop {
        parts: vec![("s.3".to_owned(), count)],
        reason: "test data".to_owned(),
    };
    assert_eq!(bed.ask(drop).expect("it runs").events, count as u64);
    let (noted, parked, _) = bed.durable();
    assert_eq!((&noted["s.3"][..], parked["s.3"].len()), (&[3][..], 1));
    let exceptions = bed.open().0.exceptions();
    let is_behind =
        |exception: &&Exception| matches!(exception, Exception::DroppedBehind { first: 10, .. });
    let behind = exceptions.values().filter(is_behind).count();
    assert_eq!((exceptions.len(), behind), (count, count - 1));
    assert_eq!(bed.folded_again(), noted);
}

#[test]
fn neither_a_deadline_nor_a_full_state_nor_a_candidate_parks() {
    let cases: [(Fails, bool); 3] = [
        (|_| ApplyError::Deadline(Duration::ZERO), true),
        (
            |_| ApplyError::Limit {
                limit: "state-bytes",
                message: String::new(),
            },
            true,
        ),
        (rejected, false),
    ];
    for (error, serves) in cases {
        let mut bed = Bed::with_events(30);
        bed.error = error;
        bed.bad.lock().insert(10);
        bed.stage.restart();
        if !serves {
            bed.stage.progress.stop_serving();
        }
        let (store, running) = bed.start();
        assert!(matches!(running.join().expect("no panic"), Ended::Failed));
        assert_eq!(
            (store.position(), store.parked_counts()),
            (9, ParkedCounts::default())
        );
    }
}

#[test]
fn at_a_limit_the_pipeline_waits_and_loses_nothing() {
    // Three keys and six events are allowed.
    let mut bed = Bed::with_events(100);
    bed.bad.lock().insert(50);
    bed.fold();
    let (noted, parked, position) = bed.durable();
    let failure = bed.stage.progress.now().failure.expect("it is kept");
    assert!(
        failure.kind == "parked" && failure.message.contains("state.parked_events_max"),
        "{failure:?}"
    );
    let parked: Vec<u64> = parked["s.1"].clone();
    assert!(parked.len() <= 6 && parked[0] == 50, "{parked:?}");
    let all: BTreeSet<u64> = noted.values().flatten().copied().chain(parked).collect();
    assert_eq!(
        all,
        (1..=position).collect(),
        "each event up to the position is applied or parked"
    );
    assert!(position < 100, "{position}");
    bed.bad.lock().clear();
    assert_eq!(bed.retry(&["s.1"]).keys, 1);
    bed.fold();
    assert_eq!(bed.durable().0["s.1"], of_key(1, 100));
}

#[test]
fn a_module_that_fails_everywhere_stops_instead_of_parking_everything() {
    // One event of each key, so that none has to wait behind another.
    let mut bed = Bed::with_events(6);
    bed.bad.lock().extend(1..=6);
    assert!(matches!(bed.fold(), Ended::Failed));
    let (_, parked, _) = bed.durable();
    assert!(parked.len() <= 3, "{parked:?}");
    let failure = bed.stage.progress.now().failure.expect("it is kept");
    assert!(failure.message.contains("not parked"), "{failure:?}");
}

#[test]
fn whatever_fails_is_retried_and_dropped_the_order_of_each_key_holds() {
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bed = Bed::with_events(0);
        let (mut appended, mut dropped) = (0, BTreeSet::new());
        for _ in 0..8 {
            let more = random.u64(1..20);
            bed.stage.append(appended + 1..=appended + more);
            appended += more;
            let bad = (1..=appended)
                .filter(|_| random.u32(..30) == 0)
                .take(1)
                .collect();
            *bed.bad.lock() = bad;
            bed.fold();
            let (_, parked, _) = bed.durable();
            if random.bool() {
                bed.bad.lock().clear();
            }
            let keys: Vec<String> = parked.keys().cloned().collect();
            if let Some(key) = keys.first().filter(|_| random.u32(..4) == 0) {
                dropped.insert(parked[key][0]);
                let work = ParkedWork::Drop {
                    parts: vec![(key.clone(), 1)],
                    reason: "chance".to_owned(),
                };
                bed.ask(work).expect("it runs");
            } else if !keys.is_empty() {
                let dry_run = false;
                bed.ask(ParkedWork::Retry { keys, dry_run })
                    .expect("it runs");
            }
            let (noted, parked, position) = bed.durable();
            for key in 0..7 {
                let name = format!("s.{key}");
                let waiting = parked.get(&name).cloned().unwrap_or_default();
                let seen: Vec<u64> = noted
                    .get(&name)
                    .into_iter()
                    .flatten()
                    .copied()
                    .chain(waiting)
                    .collect();
                let expected: Vec<u64> = of_key(key, position)
                    .into_iter()
                    .filter(|number| !dropped.contains(number))
                    .collect();
                assert_eq!(
                    seen, expected,
                    "seed {seed}, key {key}: applied and then parked, in order, nothing lost"
                );
            }
            assert_eq!(
                bed.folded_again(),
                noted,
                "seed {seed}: a fold from scratch"
            );
        }
        // The last release corrects everything.
        bed.bad.lock().clear();
        let (noted, position) = loop {
            let (noted, parked, position) = bed.durable();
            if parked.is_empty() && position == appended {
                break (noted, position);
            }
            let (keys, dry_run) = (parked.into_keys().collect(), false);
            let outcome = bed.ask(ParkedWork::Retry { keys, dry_run });
            assert!(outcome.expect("it runs").failed.is_empty());
            bed.fold();
        };
        for key in 0..7 {
            let expected: Vec<u64> = of_key(key, position)
                .into_iter()
                .filter(|number| !dropped.contains(number))
                .collect();
            let found = noted.get(&format!("s.{key}")).cloned().unwrap_or_default();
            assert_eq!(
                found, expected,
                "seed {seed}, key {key}: as if nothing had failed"
            );
        }
    }
}

#[test]
fn a_dry_run_tells_what_a_retry_would_do_and_changes_nothing() {
    let mut bed = Bed::with_events(30);
    bed.bad.lock().extend([10, 24]);
    bed.fold();
    bed.bad.lock().remove(&10);
    let before = bed.durable();
    let work = ParkedWork::Retry {
        keys: vec!["s.3".to_owned()],
        dry_run: true,
    };
    let outcome = bed.ask(work).expect("it runs");
    assert_eq!(
        (outcome.events, outcome.keys, outcome.failed.len()),
        (2, 0, 1),
        "{outcome:?}"
    );
    let (key, _, after) = &outcome.changes[0];
    let after = after.as_ref().and_then(Payload::as_str);
    assert_eq!((&**key, after), ("s.3", Some("3,10,17")));
    assert_eq!(bed.durable(), before);
}

#[test]
fn a_failed_event_is_parked_with_the_entries_that_it_read() {
    let mut bed = Bed::with_events(30);
    bed.error = |_| ApplyError::Trap("overflow".to_owned());
    bed.reads_first = true;
    bed.bad.lock().insert(10);
    bed.fold();
    let (store, _writer) = bed.open();
    let first = store.parked_events("s.3", 1).expect("reads").remove(0);
    let failure = first.failure.expect("it failed");
    let reads: Vec<_> = failure
        .reads
        .iter()
        .map(|read| (read.key.as_str(), read.value.as_deref()))
        .collect();
    assert_eq!(reads, [("s.3", Some("3"))]);
    assert_eq!(failure.class, "trap");
}

#[test]
fn duplicates_of_parked_skipped_and_dropped_events_are_left_out_in_every_fold() {
    let mut bed = Bed::with_events(0);
    let options = Options {
        duplicate_window: Duration::ZERO,
        ..Options::default()
    };
    bed.stage.log =
        Log::open(&bed.stage.folder.path().join("twice.redb"), options).expect("the log opens");
    bed.stage.recognises = Some(crate::module::Inbox::of_messages(
        Duration::from_secs(3_600),
        1_000,
    ));
    let append = |bed: &Bed, events: &[(u64, &str)]| {
        let events: Vec<_> = events
            .iter()
            .map(|(key, id)| NewEvent {
                subject: format!("s.{key}"),
                kind: None,
                id: Some((*id).to_owned()),
                time_ns: None,
                headers: Vec::new(),
                data: Payload::from("{}"),
            })
            .collect();
        bed.stage
            .log
            .append(&events, &Expectation::default())
            .expect("appends");
    };
    // 2 fails, 4 waits behind it, 3 is skipped, 5 is dropped; each comes again.
    bed.bad.lock().extend([2, 3, 5]);
    bed.stage.skips = Skips::new([crate::state::exceptions::Skip::new(3, "", None, None)]);
    append(
        &bed,
        &[(1, "a"), (2, "b"), (3, "c"), (2, "d"), (4, "e"), (1, "f")],
    );
    let again = [(2, "b"), (3, "c"), (2, "d"), (4, "e"), (1, "a"), (3, "g")];
    append(&bed, &again);
    assert!(matches!(bed.fold(), Ended::Asked));
    let twos = |sequences: &[u64]| BTreeMap::from([("s.2".to_owned(), sequences.to_vec())]);
    let (noted, mut parked, position) = bed.durable();
    assert_eq!(parked.remove("s.4"), Some(vec![5]));
    assert_eq!((parked, position), (twos(&[2, 4]), 12));
    assert_eq!((&noted["s.1"], &noted["s.3"]), (&vec![1, 6], &vec![12]));
    let duplicates = |bed: &Bed| bed.open().0.checkpoint().expect("it has one").duplicates;
    assert_eq!(duplicates(&bed), 5);

    // Over a restart, and once they are applied or dropped.
    append(&bed, &again);
    bed.fold();
    assert_eq!((duplicates(&bed), bed.durable().1["s.2"].len()), (11, 2));
    bed.bad.lock().clear();
    assert_eq!(bed.retry(&["s.2"]).keys, 1);
    let drop = ParkedWork::Drop {
        parts: vec![("s.4".to_owned(), 9)],
        reason: "test data".to_owned(),
    };
    assert_eq!(bed.ask(drop).expect("it runs").events, 1);
    append(&bed, &again);
    append(&bed, &[(2, "h")]);
    bed.fold();
    let (noted, parked, position) = bed.durable();
    assert_eq!((duplicates(&bed), parked.len(), position), (17, 0, 25));
    assert_eq!(
        (&noted["s.2"], noted.get("s.4"), &noted["s.1"]),
        (&vec![2, 4, 25], None, &vec![1, 6])
    );
    assert_eq!(bed.folded_again(), noted);
}
