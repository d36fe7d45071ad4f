//! Claims about a pipeline, over a real embedded log and real state files, with folds that fail on
//! purpose. What modules do is shown by the suite.

mod batches;
mod duplicates;
mod lanes;
mod parked_timers;
mod parking;
mod pauses;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::lanes::{Lanes, MakeLane, Plan, Record};
use super::*;
use crate::batch::Limits;
use crate::effects;
use crate::event::{Event, Payload};
use crate::log::{Expectation, Log, NewEvent, Options};
use crate::memory::memtables::Budget;
use crate::memory::{self, Memory, Purpose};
use crate::module::{ApplyError, KeyRule};
use crate::position::Start;
use crate::progress::DeploymentState;
use crate::source::embedded::Embedded;
use crate::state::{Direction, RefusedKeys, Scan, Selection};
use crate::subject::SubjectSet;

/// What a state may park.
const LIMITS: ParkingLimits = ParkingLimits {
    keys: 3,
    events: 6,
    bytes: 100_000,
};

/// The host had no memory left, and has some again by the time this returns.
fn shortage() -> memory::Shortage {
    let memory = Memory::new(1);
    let mut taken = memory.reservation(Purpose::Fold);
    taken.grow_to(1).expect("there is that much");
    let refused = memory.reservation(Purpose::Fold).grow_to(1);
    refused.expect_err("all is taken")
}

/// What a test fold does when it meets an event.
type Mischief = Arc<dyn Fn(&Event, usize) -> Option<ApplyError> + Send + Sync>;

/// Counts events per subject, and notes how large the batches were.
struct Counting {
    mischief: Mischief,
    batches: Arc<Mutex<Vec<usize>>>,
    emits: bool,
}

impl Fold for Counting {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        self.batches.lock().push(events.len());
        for (index, event) in events.iter().enumerate() {
            if let Some(error) = (self.mischief)(event, index) {
                return (writer, Err(error));
            }
            let before: u64 = writer
                .get(&event.subject)
                .expect("reads")
                .map_or(0, |value| {
                    value.as_str().expect("text").parse().expect("a count")
                });
            writer
                .put(
                    &event.subject,
                    Some(Payload::from((before + 1).to_string())),
                )
                .expect("within limits");
            if self.emits {
                writer.emit(&effect_of(event)).expect("within limits");
            }
        }
        (writer, Ok(()))
    }
}

/// A message that an event causes.
fn effect_of(event: &Event) -> effects::Row {
    effects::Row {
        target: "out".to_owned(),
        place: effects::Place {
            sequence: event.sequence,
            sub: 0,
            index: 0,
        },
        turn: None,
        made_ns: 1,
        effect: effects::Effect {
            subject: "out".to_owned(),
            kind: "out".to_owned(),
            headers: Vec::new(),
            data: Payload::from("{}"),
            key: String::new(),
            delivery: effects::Delivery::default(),
        },
    }
}

/// A log with events, a state file, and a runtime: all that a pipeline needs.
struct Stage {
    runtime: Runtime,
    folder: tempfile::TempDir,
    log: Log,
    batches: Arc<Mutex<Vec<usize>>>,
    progress: Arc<Progress>,
    control: watch::Sender<Desired>,
    pace: watch::Sender<Pace>,
    standing: watch::Sender<Option<Standing>>,
    shuffle: Option<u64>,
    /// How often the host has no free instance yet.
    busy: Arc<AtomicU32>,
    /// The memory from which a fold needs one byte to start.
    memory: Memory,
    attempts: u32,
    backoff: Duration,
    build_attempts: u32,
    retry_percent: u32,
    leash: watch::Sender<u64>,
    skips: Skips,
    parks: Arc<std::sync::atomic::AtomicBool>,
    parking_limits: ParkingLimits,
    parked: Arc<ParkedRequests>,
    flush_interval: Duration,
    /// Whether each event causes a message, which nobody sends.
    emits: bool,
    recognises: Option<crate::module::Inbox>,
    lanes: usize,
    /// What became of batches that were split.
    record: Arc<Record>,
}

impl Stage {
    fn with_events(count: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log =
            Log::open(&folder.path().join("log.redb"), Options::default()).expect("the log opens");
        let stage = Self {
            runtime: Runtime::new().expect("a runtime"),
            folder,
            log,
            batches: Arc::default(),
            progress: Arc::new(Progress::new(Some(0), 0)),
            control: watch::Sender::new(Desired::Run(0)),
            pace: watch::Sender::new(Pace::default()),
            standing: watch::Sender::new(None),
            shuffle: None,
            busy: Arc::default(),
            memory: Memory::new(1),
            attempts: 3,
            backoff: Duration::from_millis(1),
            build_attempts: u32::MAX,
            retry_percent: 100,
            leash: watch::Sender::new(NO_LEASH),
            skips: Skips::default(),
            parks: Arc::default(),
            parking_limits: LIMITS,
            parked: Arc::default(),
            flush_interval: Duration::from_millis(20),
            emits: false,
            recognises: None,
            lanes: 1,
            record: Arc::new(Record::impatient()),
        };
        stage.append(1..=count);
        stage
    }

    fn append(&self, numbers: impl Iterator<Item = u64>) {
        let events: Vec<_> = numbers
            .map(|number| NewEvent {
                subject: format!("s.{}", number % 7),
                kind: None,
                id: None,
                time_ns: None,
                headers: Vec::new(),
                data: Payload::from("{}"),
            })
            .collect();
        if !events.is_empty() {
            self.log
                .append(&events, &Expectation::default())
                .expect("appends");
        }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state.redb")
    }

    fn start(&self, mischief: Mischief) -> std::thread::JoinHandle<Ended> {
        let (store, writer) =
            Store::open(&self.state(), state::Options::default(), |_| ()).expect("the state opens");
        self.start_over(store, writer, mischief)
    }

    fn start_over(
        &self,
        store: Store,
        writer: Writer,
        mischief: Mischief,
    ) -> std::thread::JoinHandle<Ended> {
        let (batches, busy) = (Arc::clone(&self.batches), Arc::clone(&self.busy));
        let memory = self.memory.clone();
        let emits = self.emits;
        let make_fold = Box::new(move || {
            let relaxed = std::sync::atomic::Ordering::Relaxed;
            if busy
                .fetch_update(relaxed, relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                return Err(shortage().into());
            }
            memory.reservation(Purpose::Fold).grow_to(1)?;
            let fold = Counting {
                mischief: Arc::clone(&mischief),
                batches: Arc::clone(&batches),
                emits,
            };
            Ok(Box::new(fold) as Box<dyn Fold>)
        });
        self.start_folding(store, writer, make_fold)
    }

    fn start_folding(
        &self,
        store: Store,
        writer: Writer,
        make_fold: MakeFold,
    ) -> std::thread::JoinHandle<Ended> {
        self.progress.note_started(1);
        let make_fold = self.in_lanes(make_fold);
        let pipeline = Pipeline {
            source: Source::Embedded(Embedded::new(self.log.clone())),
            request: Request {
                resume: None,
                start: Start::Beginning,
                subjects: SubjectSet::parse(&["s.>"])
                    .expect("sound")
                    .with(&crate::timers::subject("test")),
                wants_headers: self.recognises.is_some(),
                limits: Limits::default(),
                begins_after: None,
                accepts_missing_through: 0,
                skips: Arc::default(),
            },
            skips: self.skips.clone(),
            source_status: watch::Sender::new(source::initial_status()),
            make_fold,
            store,
            writer,
            recognises: self.recognises.clone(),
            role: if self.emits {
                owner()
            } else {
                effects::Role::Mute
            },
            settings: Settings {
                batch: Limits::default(),
                policy: Policy {
                    attempts: self.attempts,
                    initial_backoff: self.backoff,
                    max_backoff: self.backoff * 4,
                },
                build_attempts: self.build_attempts,
                build_backoff: Duration::MAX,
                retry_percent: self.retry_percent,
                keeper: None,
                parking: LIMITS,
                flush_interval: self.flush_interval,
                memtable_bytes: 1 << 20,
                idle_after: Duration::ZERO,
                budget: Arc::new(Budget::new(1 << 30)),
                disk: None,
                shuffle: self.shuffle,
            },
            progress: Arc::clone(&self.progress),
            metrics: crate::metrics::Metrics::new().deployment("test"),
            control: self.control.subscribe(),
            wanted: *self.control.borrow(),
            pace: self.pace.subscribe(),
            leash: Leash::new(self.leash.subscribe()),
            standing: self.standing.clone(),
            patches: Arc::default(),
            parking: Parking {
                deployment: "test".to_owned(),
                rule: KeyRule::Subject,
                firings: Some(crate::timers::subject("test")),
                generation: 1,
                checks_events_after: None,
                module: "ab".to_owned(),
                keeper: None,
                parks: Arc::clone(&self.parks),
                limits: self.parking_limits,
            },
            parked: Arc::clone(&self.parked),
            runtime: self.runtime.handle().clone(),
        };
        std::thread::spawn(move || pipeline.run().1)
    }

    /// The same folds, in several lanes if it has any.
    fn in_lanes(&self, make_fold: MakeFold) -> MakeFold {
        if self.lanes == 1 {
            return make_fold;
        }
        let plan = Plan {
            events_min: 2,
            ..Plan::new(self.lanes, KeyRule::Subject)
        };
        let (make, record) = (MakeLane::from(make_fold), Arc::clone(&self.record));
        Box::new(move || {
            let lanes = Lanes::new(plan.clone(), Arc::clone(&make), Arc::clone(&record))?;
            Ok(Box::new(lanes))
        })
    }

    /// Runs until everything was applied, or the pipeline ended by itself.
    fn run(&self, mischief: Mischief) -> Ended {
        let running = self.start(mischief);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !running.is_finished() && self.progress.now().state != DeploymentState::Live {
            assert!(
                Instant::now() < deadline,
                "the pipeline is stuck: {:?}",
                self.progress.now()
            );
            std::thread::yield_now();
        }
        self.control.send_replace(Desired::Stop);
        running.join().expect("the pipeline does not panic")
    }

    /// Runs after a request that ended the last run.
    fn run_again(&mut self, mischief: Mischief) -> Ended {
        self.restart();
        self.run(mischief)
    }

    fn restart(&mut self) {
        self.progress = Arc::new(Progress::new(Some(0), 0));
        self.control.send_replace(Desired::Run(0));
    }
}

/// What is durable in a state file: counts by subject, and the position.
fn durable(path: &Path) -> (BTreeMap<String, u64>, u64) {
    let (store, _writer) =
        Store::open(path, state::Options::default(), |_| ()).expect("the state opens");
    let scan = Scan {
        selection: Selection::Prefix(String::new()),
        after: None,
        direction: Direction::Forwards,
        limit: 1_000,
    };
    let page = store.snapshot().scan(&scan).expect("scans");
    let counts = page
        .entries
        .iter()
        .map(|(key, value)| {
            (
                key.to_string(),
                value.as_str().expect("text").parse().expect("a count"),
            )
        })
        .collect();
    (counts, store.position())
}

fn fold_of(count: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    (1..=count).for_each(|number| *counts.entry(format!("s.{}", number % 7)).or_default() += 1);
    counts
}

fn owner() -> effects::Role {
    effects::Role::Owner(Arc::new(effects::Owner {
        deployment: "test".to_owned(),
        lineage: effects::Lineage(7),
        epoch: 1,
        effects_after: 0,
        timers_after: 0,
        grants: effects::Grants::default(),
        publishes: Arc::default(),
        logs: Arc::default(),
    }))
}

fn peaceful() -> Mischief {
    Arc::new(|_, _| None)
}

fn rejected(index: usize) -> ApplyError {
    ApplyError::Rejected {
        index,
        message: "no".to_owned(),
    }
}

#[test]
fn what_was_applied_is_durable_once_the_pipeline_was_asked_to_end() {
    let stage = Stage::with_events(5_000);
    assert!(matches!(stage.run(peaceful()), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(5_000), 5_000));
}

#[test]
fn fold_on_a_leash_stops_at_exactly_its_end_and_continues_when_it_moves() {
    let stage = Stage::with_events(1_000);
    stage.leash.send_replace(40);
    let (store, writer) =
        Store::open(&stage.state(), state::Options::default(), |_| ()).expect("the state opens");
    let running = stage.start_over(store.clone(), writer, peaceful());
    let await_position = |position| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.checkpoint().map(|checkpoint| checkpoint.position) != Some(position) {
            assert!(Instant::now() < deadline, "stuck at {}", store.position());
            std::thread::yield_now();
        }
    };
    await_position(40);
    // More events, and a change of pace, do not take it further.
    stage.append(1_001..=1_010);
    stage.pace.send_modify(|pace| pace.change += 1);
    stage.leash.send_replace(41);
    await_position(41);
    assert_ne!(stage.progress.now().state, DeploymentState::Live);
    stage.leash.send_replace(NO_LEASH);
    await_position(1_010);
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(
        running.join().expect("the pipeline does not panic"),
        Ended::Asked
    ));
    drop(store);
    assert_eq!(durable(&stage.state()), (fold_of(1_010), 1_010));
}

#[test]
fn events_before_a_rejected_one_are_kept_and_no_later_one_is_applied() {
    let stage = Stage::with_events(100);
    let ended = stage.run(Arc::new(|event, index| {
        (event.sequence == 42).then(|| rejected(index))
    }));
    assert!(matches!(ended, Ended::Failed));
    assert_eq!(durable(&stage.state()), (fold_of(41), 41));
    let failure = stage.progress.now().failure.expect("the failure is kept");
    assert_eq!(
        (failure.kind.as_str(), failure.sequence, failure.attempts),
        ("rejected", Some(42), 1)
    );
}

#[test]
fn a_trap_is_narrowed_down_to_its_event_and_tried_as_often_as_allowed() {
    let stage = Stage::with_events(1_000);
    let alone = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&alone);
    let ended = stage.run(Arc::new(move |event, index| {
        (event.sequence == 777).then(|| {
            if index == 0 {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            ApplyError::Trap("unreachable".to_owned())
        })
    }));
    assert!(matches!(ended, Ended::Failed));
    assert_eq!(durable(&stage.state()), (fold_of(776), 776));
    let failure = stage.progress.now().failure.expect("the failure is kept");
    assert_eq!(
        (failure.kind.as_str(), failure.sequence, failure.attempts),
        ("trap", Some(777), 3)
    );
    assert!(alone.load(Ordering::Relaxed) >= 3);
    let calls = stage.batches.lock().len();
    assert!(
        calls < 60,
        "halving takes logarithmically many calls, found {calls}"
    );
}

#[test]
fn a_module_that_is_too_slow_for_its_deadline_finds_out_once_how_many_events_it_manages() {
    let stage = Stage::with_events(10_000);
    let ended = stage.run(Arc::new(|_, index| {
        (index == 900).then_some(ApplyError::Deadline(Duration::ZERO))
    }));
    assert!(matches!(ended, Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(10_000), 10_000));
    let too_large = stage
        .batches
        .lock()
        .iter()
        .filter(|events| **events > 900)
        .count();
    assert!((1..=2).contains(&too_large), "{too_large} calls in vain");
}

#[test]
fn a_free_instance_is_waited_for_and_no_event_is_to_blame() {
    let stage = Stage::with_events(100);
    stage.busy.store(u32::MAX, Ordering::Relaxed);
    let running = stage.start(peaceful());
    let deadline = Instant::now() + Duration::from_secs(20);
    while stage.progress.now().failure.is_none() {
        assert!(Instant::now() < deadline, "it never says that it waits");
        std::thread::yield_now();
    }
    let now = stage.progress.now();
    let failure = now.failure.expect("it was just there");
    assert_eq!(
        (now.state, failure.kind.as_str()),
        (DeploymentState::Retrying, "busy")
    );
    assert_eq!((failure.sequence, failure.attempts), (None, 0));
    // More often than an event may be tried.
    stage.busy.store(5, Ordering::Relaxed);
    while stage.progress.now().state != DeploymentState::Live {
        assert!(
            !running.is_finished() && Instant::now() < deadline,
            "{:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
    assert_eq!(stage.progress.now().failure, None);
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(100), 100));
}

#[test]
fn a_pipeline_that_lacks_memory_continues_when_another_holder_releases_it() {
    let stage = Stage::with_events(100);
    let mut held = stage.memory.reservation(Purpose::Fold);
    held.grow_to(1).expect("there is one byte");
    let running = stage.start(peaceful());
    let deadline = Instant::now() + Duration::from_secs(20);
    while stage.progress.now().failure.is_none() {
        assert!(Instant::now() < deadline, "it never says that it waits");
        std::thread::yield_now();
    }
    let refused = stage.memory.refused_for(Purpose::Fold);
    // Longer than the pause after the first attempt: what was not released is not tried again.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(stage.memory.refused_for(Purpose::Fold), refused);
    drop(held);
    while stage.progress.now().state != DeploymentState::Live {
        assert!(
            !running.is_finished() && Instant::now() < deadline,
            "{:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(100), 100));
}

#[test]
fn what_was_applied_becomes_durable_while_the_host_is_busy() {
    let mut stage = Stage::with_events(10);
    // Long enough that the next batch waits before the first one is due.
    stage.flush_interval = Duration::from_secs(2);
    let (store, writer) =
        Store::open(&stage.state(), state::Options::default(), |_| ()).expect("the state opens");
    let running = stage.start_over(
        store.clone(),
        writer,
        Arc::new(|event, _| (event.sequence > 10).then(|| ApplyError::Busy(shortage()))),
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut positions = store.positions();
    stage
        .runtime
        .block_on(positions.wait_for(|position| *position == 10))
        .expect("it is open");
    stage.append(11..=20);
    while store.checkpoint().map(|checkpoint| checkpoint.position) != Some(10) {
        assert!(
            Instant::now() < deadline,
            "nothing is durable: {:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
    while stage.progress.now().failure.is_none() {
        assert!(Instant::now() < deadline, "it never says that it waits");
        std::thread::yield_now();
    }
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
}

#[test]
fn failure_between_two_attempts_outlives_a_full_outbox() {
    let mut stage = Stage::with_events(0);
    (stage.emits, stage.attempts, stage.backoff) = (true, 1_000, Duration::from_millis(50));
    let options = state::Options {
        outbox_entries_max: 5,
        ..state::Options::default()
    };
    let (store, writer) = Store::open(&stage.state(), options, |_| ()).expect("the state opens");
    stage.append(1..=6);
    let running = stage.start_over(
        store.clone(),
        writer,
        Arc::new(|event, index| {
            (event.sequence == 6).then(|| ApplyError::Retry {
                index,
                message: "not yet".to_owned(),
            })
        }),
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    let failure = |attempts| {
        loop {
            let now = stage.progress.now();
            if let Some(failure) = now.failure.clone().filter(|it| it.attempts >= attempts) {
                return failure;
            }
            assert!(Instant::now() < deadline, "{now:?}");
            std::thread::yield_now();
        }
    };
    let first = failure(1);
    assert_eq!((first.kind.as_str(), first.sequence), ("retry", Some(6)));
    // Once the outbox keeps it from trying, no next attempt is due.
    let is_clogged = || {
        let failure = stage.progress.now().failure;
        failure.is_some_and(|failure| failure.next_attempt_at.is_none())
    };
    while !is_clogged()
        || store
            .effects("out", None, &RefusedKeys::default(), (9, usize::MAX))
            .expect("reads")
            .0
            .len()
            < 5
    {
        assert!(
            Instant::now() < deadline,
            "nothing is durable, or it is tried"
        );
        std::thread::yield_now();
    }
    let (sent, _) = store
        .effects("out", None, &RefusedKeys::default(), (9, usize::MAX))
        .expect("reads");
    store.confirm_effects(sent.iter().map(effects::Row::key));
    store.remove_confirmed_effects().expect("commits");
    let later = failure(3);
    assert_eq!(
        (later.first_at, later.message),
        (first.first_at, first.message),
        "it is the same streak"
    );
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
}

#[test]
fn a_search_for_a_failing_event_ends_with_the_call_that_runs_when_something_else_is_wanted() {
    let stage = Stage::with_events(2_048);
    let slow = || {
        std::thread::sleep(Duration::from_millis(20));
        ApplyError::Deadline(Duration::from_millis(20))
    };
    let running = stage.start(Arc::new(move |_, _| Some(slow())));
    while stage.batches.lock().is_empty() {
        std::thread::yield_now();
    }
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
    let calls = stage.batches.lock().len();
    assert!(calls <= 2, "{calls} calls before it stopped");
}

#[test]
fn a_search_that_was_interrupted_continues_where_it_was() {
    let stage = Stage::with_events(2_048);
    let running = stage.start(Arc::new(|event, _| {
        (event.sequence == 2_000).then(|| {
            std::thread::sleep(Duration::from_millis(5));
            ApplyError::Deadline(Duration::from_millis(5))
        })
    }));
    let mut change = 0;
    while !running.is_finished() {
        change += 1;
        stage.pace.send_modify(|pace| pace.change = change);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(running.join().expect("no panic"), Ended::Failed));
    assert_eq!(durable(&stage.state()), (fold_of(1_999), 1_999));
}

#[test]
fn the_same_trap_three_times_is_enough_and_a_deadline_gets_all_its_attempts() {
    for (error, attempts) in [
        (
            Box::new(|_| ApplyError::Trap("unreachable".to_owned()))
                as Box<dyn Fn(u32) -> ApplyError + Send + Sync>,
            3,
        ),
        (
            Box::new(|count| ApplyError::Trap(format!("other words {count}"))),
            6,
        ),
        (
            Box::new(|_| ApplyError::Deadline(Duration::from_secs(1))),
            6,
        ),
    ] {
        let mut stage = Stage::with_events(10);
        stage.attempts = 6;
        let count = AtomicU32::new(0);
        let ended = stage.run(Arc::new(move |event, _| {
            let next = || count.fetch_add(1, Ordering::Relaxed);
            (event.sequence == 7).then(|| error(next()))
        }));
        assert!(matches!(ended, Ended::Failed));
        let failure = stage.progress.now().failure.expect("the failure is kept");
        assert_eq!(
            (failure.sequence, failure.attempts),
            (Some(7), attempts),
            "{failure:?}"
        );
    }
}

#[test]
fn a_passing_failure_is_tried_again_and_leaves_no_trace() {
    let stage = Stage::with_events(300);
    let left = Arc::new(AtomicU32::new(2));
    let mischief: Mischief = Arc::new(move |event, index| {
        let fails = event.sequence == 200
            && left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
        fails.then(|| ApplyError::Retry {
            index,
            message: "later".to_owned(),
        })
    });
    assert!(matches!(stage.run(mischief), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(300), 300));
    assert_eq!(stage.progress.now().failure, None);
}

#[test]
fn a_failed_pipeline_continues_at_the_event_that_failed() {
    let mut stage = Stage::with_events(100);
    assert!(matches!(
        stage.run(Arc::new(
            |event, index| (event.sequence == 42).then(|| rejected(index))
        )),
        Ended::Failed
    ));
    stage.restart();
    assert!(matches!(stage.run(peaceful()), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(100), 100));
}

#[test]
fn whatever_fails_along_the_way_the_state_equals_the_fold() {
    for seed in 0..8 {
        let mut stage = Stage::with_events(0);
        let mut appended = 0;
        for round in 0..4 {
            let more = fastrand::Rng::with_seed(seed * 10 + round).u64(1..2_000);
            stage.append(appended + 1..=appended + more);
            appended += more;
            stage.restart();
            let random = Mutex::new(fastrand::Rng::with_seed(seed * 100 + round));
            let ended = stage.run(Arc::new(move |_, index| match random.lock().u32(..2_000) {
                0 => Some(ApplyError::Trap("chance".to_owned())),
                1 => Some(ApplyError::Retry {
                    index,
                    message: "chance".to_owned(),
                }),
                2 => Some(rejected(index)),
                _ => None,
            }));
            let (counts, position) = durable(&stage.state());
            assert_eq!(counts, fold_of(position), "seed {seed}, round {round}");
            assert!(
                matches!(ended, Ended::Failed) || position == appended,
                "seed {seed}, round {round}: {ended:?} at {position} of {appended}"
            );
        }
    }
}

/// Waits until the pipeline says that it is held after a change of pace. Returns its position.
fn held_at(stage: &Stage, change: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(standing) = *stage.standing.borrow()
            && standing.change >= change
        {
            return standing.position;
        }
        assert!(
            Instant::now() < deadline,
            "the pipeline is not held: {:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
}

fn set_ceiling(stage: &Stage, ceiling: Ceiling, change: u64) {
    stage
        .pace
        .send_modify(|pace| (pace.ceiling, pace.change) = (ceiling, change));
}

#[test]
fn a_pipeline_is_durable_at_its_ceiling_and_continues_when_it_is_lifted() {
    let stage = Stage::with_events(5_000);
    set_ceiling(&stage, Ceiling::Position(1_234), 1);
    let running = stage.start(peaceful());
    assert_eq!(held_at(&stage, 1), 1_234);
    stage.append(5_001..=5_100);
    assert_eq!(
        *stage.standing.borrow(),
        Some(Standing {
            position: 1_234,
            change: 1
        }),
        "it is held"
    );
    set_ceiling(&stage, Ceiling::Position(0), 2);
    assert_eq!(
        held_at(&stage, 2),
        1_234,
        "a ceiling below it does not move it"
    );
    set_ceiling(&stage, Ceiling::Position(2_000), 3);
    assert_eq!(held_at(&stage, 3), 2_000);
    set_ceiling(&stage, Ceiling::None, 4);
    // What was read ahead ends before the later events, so it is live there for a moment.
    let is_done =
        |now: crate::progress::Now| now.state == DeploymentState::Live && now.head >= 5_100;
    while !is_done(stage.progress.now()) {
        std::thread::yield_now();
    }
    assert_eq!(*stage.standing.borrow(), None);
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(5_100), 5_100));
}

#[test]
fn a_pipeline_at_its_ceiling_is_durable_even_if_the_process_dies_then() {
    let stage = Stage::with_events(3_000);
    set_ceiling(&stage, Ceiling::Position(999), 1);
    let running = stage.start(peaceful());
    assert_eq!(held_at(&stage, 1), 999);
    // What a crash would leave: the file as it is now.
    let copy = stage.folder.path().join("copy.redb");
    std::fs::copy(stage.state(), &copy).expect("copied");
    assert_eq!(durable(&copy), (fold_of(999), 999));
    stage.control.send_replace(Desired::Stop);
    running.join().expect("no panic");
}

#[test]
fn a_pipeline_goes_up_to_a_time_and_no_further() {
    let stage = Stage::with_events(500);
    let scan = || stage.log.info().last_sequence;
    assert_eq!(scan(), 500);
    std::thread::sleep(Duration::from_millis(5));
    let time_ns = u64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("after 1970");
    std::thread::sleep(Duration::from_millis(5));
    stage.append(501..=900);
    set_ceiling(&stage, Ceiling::Time(time_ns), 1);
    let running = stage.start(peaceful());
    assert_eq!(held_at(&stage, 1), 500);
    stage.control.send_replace(Desired::Stop);
    running.join().expect("no panic");
    assert_eq!(durable(&stage.state()), (fold_of(500), 500));
}

#[test]
fn an_event_that_fails_does_not_keep_the_pipeline_from_standing() {
    let mut stage = Stage::with_events(100);
    stage.attempts = u32::MAX;
    let (fails, failed_alone) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (failing, counted) = (Arc::clone(&fails), Arc::clone(&failed_alone));
    let running = stage.start(Arc::new(move |event, index| {
        let fails = event.sequence == 42 && failing.load(Ordering::Relaxed);
        if fails && index == 0 {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        fails.then(|| ApplyError::Retry {
            index,
            message: "later".to_owned(),
        })
    }));
    // Once it fails as the first of its batch, the events before it are applied.
    let deadline = Instant::now() + Duration::from_secs(20);
    while failed_alone.load(Ordering::Relaxed) == 0 {
        assert!(
            Instant::now() < deadline,
            "it is never alone: {:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
    set_ceiling(&stage, Ceiling::Position(0), 1);
    assert_eq!(
        held_at(&stage, 1),
        41,
        "before the event that fails, with all before it"
    );
    assert_eq!(
        *stage.standing.borrow(),
        Some(Standing {
            position: 41,
            change: 1
        })
    );
    fails.store(false, Ordering::Relaxed);
    set_ceiling(&stage, Ceiling::None, 2);
    while stage.progress.now().state != DeploymentState::Live {
        assert!(
            Instant::now() < deadline,
            "it does not continue: {:?}",
            stage.progress.now()
        );
        std::thread::yield_now();
    }
    stage.control.send_replace(Desired::Stop);
    running.join().expect("no panic");
    assert_eq!(durable(&stage.state()), (fold_of(100), 100));
}
