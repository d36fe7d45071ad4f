//! Claims about a pipeline, over a real embedded log and real state files, with folds that fail on
//! purpose. What modules do is shown by the suite.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU32;

use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::*;
use crate::api::{DeploymentState, Start};
use crate::event::Payload;
use crate::log::{Expectation, Log, NewEvent, Options};
use crate::source::embedded::Embedded;
use crate::state::{Direction, Scan, Selection};
use crate::subject::SubjectSet;

/// What a test fold does when it meets an event.
type Mischief = Arc<dyn Fn(&Event, usize) -> Option<ApplyError> + Send + Sync>;

/// Counts events per subject, and notes how large the batches were.
struct Counting {
    mischief: Mischief,
    batches: Arc<Mutex<Vec<usize>>>,
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
                .map_or(0, |value| value.as_str().expect("text").parse().expect("a count"));
            writer.put(&event.subject, Some(Payload::from((before + 1).to_string()))).expect("within limits");
        }
        (writer, Ok(()))
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
}

impl Stage {
    fn with_events(count: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = Log::open(&folder.path().join("log.redb"), Options::default()).expect("the log opens");
        let stage = Self {
            runtime: Runtime::new().expect("a runtime"),
            folder,
            log,
            batches: Arc::default(),
            progress: Arc::new(Progress::new(Some(0))),
            control: watch::Sender::new(Desired::Run(0)),
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
            self.log.append(&events, &Expectation::default()).expect("appends");
        }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state.redb")
    }

    fn start(&self, mischief: Mischief) -> std::thread::JoinHandle<Ended> {
        let (store, writer) = Store::open(&self.state(), state::Options::default(), |_| ()).expect("the state opens");
        let batches = Arc::clone(&self.batches);
        let pipeline = Pipeline {
            source: Source::Embedded(Embedded::new(self.log.clone())),
            request: Request {
                resume: None,
                start: Start::Beginning,
                subjects: SubjectSet::parse(&["s.>"]).expect("sound"),
                wants_headers: false,
                limits: Limits::default(),
            },
            source_status: watch::Sender::new(source::initial_status()),
            make_fold: Box::new(move || {
                Ok(Box::new(Counting { mischief: Arc::clone(&mischief), batches: Arc::clone(&batches) }))
            }),
            store,
            writer,
            settings: Settings {
                batch: Limits::default(),
                attempts: 3,
                initial_backoff: Duration::from_millis(1),
                max_backoff: Duration::from_millis(4),
                flush_interval: Duration::from_millis(20),
                memtable_bytes: 1 << 20,
                budget: Arc::new(Budget::new(1 << 30)),
            },
            progress: Arc::clone(&self.progress),
            metrics: crate::metrics::Metrics::new().deployment("test"),
            control: self.control.subscribe(),
            runtime: self.runtime.handle().clone(),
        };
        std::thread::spawn(move || pipeline.run().1)
    }

    /// Runs until everything was applied, or the pipeline ended by itself.
    fn run(&self, mischief: Mischief) -> Ended {
        let running = self.start(mischief);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !running.is_finished() && self.progress.now().state != DeploymentState::Live {
            assert!(Instant::now() < deadline, "the pipeline is stuck: {:?}", self.progress.now());
            std::thread::yield_now();
        }
        self.control.send_replace(Desired::Stop);
        running.join().expect("the pipeline does not panic")
    }

    fn restart(&mut self) {
        self.progress = Arc::new(Progress::new(Some(0)));
        self.progress.started();
        self.control.send_replace(Desired::Run(0));
    }
}

/// What is durable in a state file: counts by subject, and the position.
fn durable(path: &Path) -> (BTreeMap<String, u64>, u64) {
    let (store, _writer) = Store::open(path, state::Options::default(), |_| ()).expect("the state opens");
    let scan =
        Scan { selection: Selection::Prefix(String::new()), after: None, direction: Direction::Forwards, limit: 1_000 };
    let page = store.snapshot().scan(&scan).expect("scans");
    let counts = page
        .entries
        .iter()
        .map(|(key, value)| (key.to_string(), value.as_str().expect("text").parse().expect("a count")))
        .collect();
    (counts, store.position())
}

fn fold_of(count: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    (1..=count).for_each(|number| *counts.entry(format!("s.{}", number % 7)).or_default() += 1);
    counts
}

fn peaceful() -> Mischief {
    Arc::new(|_, _| None)
}

fn rejected(index: usize) -> ApplyError {
    ApplyError::Rejected { index, message: "no".to_owned() }
}

#[test]
fn what_was_applied_is_durable_once_the_pipeline_was_asked_to_end() {
    let stage = Stage::with_events(5_000);
    stage.progress.started();
    assert!(matches!(stage.run(peaceful()), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(5_000), 5_000));
}

#[test]
fn events_before_a_rejected_one_are_kept_and_no_later_one_is_applied() {
    let stage = Stage::with_events(100);
    stage.progress.started();
    let ended = stage.run(Arc::new(|event, index| (event.sequence == 42).then(|| rejected(index))));
    assert!(matches!(ended, Ended::Failed));
    assert_eq!(durable(&stage.state()), (fold_of(41), 41));
    let failure = stage.progress.now().failure.expect("the failure is kept");
    assert_eq!((failure.kind.as_str(), failure.sequence, failure.attempts), ("rejected", Some(42), 1));
}

#[test]
fn a_trap_is_narrowed_down_to_its_event_and_tried_as_often_as_allowed() {
    let stage = Stage::with_events(1_000);
    stage.progress.started();
    let alone = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&alone);
    let ended = stage.run(Arc::new(move |event, index| {
        (event.sequence == 777).then(|| {
            if index == 0 {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            ApplyError::Trap("unreachable".to_owned())
        })
    }));
    assert!(matches!(ended, Ended::Failed));
    assert_eq!(durable(&stage.state()), (fold_of(776), 776));
    let failure = stage.progress.now().failure.expect("the failure is kept");
    assert_eq!((failure.kind.as_str(), failure.sequence, failure.attempts), ("trap", Some(777), 3));
    assert!(alone.load(std::sync::atomic::Ordering::Relaxed) >= 3);
    let calls = stage.batches.lock().len();
    assert!(calls < 60, "halving takes logarithmically many calls, found {calls}");
}

#[test]
fn a_passing_failure_is_tried_again_and_leaves_no_trace() {
    let stage = Stage::with_events(300);
    stage.progress.started();
    let left = Arc::new(AtomicU32::new(2));
    let mischief: Mischief = Arc::new(move |event, index| {
        let fails = event.sequence == 200
            && left
                .fetch_update(std::sync::atomic::Ordering::Relaxed, std::sync::atomic::Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
        fails.then(|| ApplyError::Retry { index, message: "later".to_owned() })
    });
    assert!(matches!(stage.run(mischief), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(300), 300));
    assert_eq!(stage.progress.now().failure, None);
}

#[test]
fn a_failed_pipeline_goes_on_at_the_event_that_failed() {
    let mut stage = Stage::with_events(100);
    stage.progress.started();
    assert!(matches!(
        stage.run(Arc::new(|event, index| (event.sequence == 42).then(|| rejected(index)))),
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
                1 => Some(ApplyError::Retry { index, message: "chance".to_owned() }),
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
