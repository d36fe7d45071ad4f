//! A defect in the host itself: what a runner does whose reader or fold panics.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use foldstream::api::{DeploymentState, Start};
use foldstream::batch::Limits;
use foldstream::event::{Event, Payload};
use foldstream::log::{self, Expectation, Log, NewEvent};
use foldstream::memory::caches::Caches;
use foldstream::memory::memtables::Budget;
use foldstream::metrics::Metrics;
use foldstream::module::ApplyError;
use foldstream::pipeline::{Ceiling, Fold, Policy, Settings, Throttle};
use foldstream::runner::{LoadError, Options, Part, Program, Runner};
use foldstream::source::Source;
use foldstream::source::embedded::Embedded;
use foldstream::source::jetstream::{self, JetStream};
use foldstream::state::{self, Writer};
use foldstream::subject::SubjectSet;

use crate::bed::{load, shared};

fn parts(path: std::path::PathBuf) -> Options {
    let options = jetstream::Options {
        name: "orders".to_owned(),
        stream: "ORDERS".to_owned(),
        servers: vec!["nats://127.0.0.1:1".to_owned()],
        ..jetstream::Options::default()
    };
    Options {
        runtime: tokio::runtime::Handle::current(),
        deployment: "probe".to_owned(),
        program: Program {
            generation: 1,
            module: Ok(load(shared(), "")),
            load: Arc::new(|| {
                Err(LoadError {
                    message: "it is loaded".to_owned(),
                    is_passing: false,
                })
            }),
            source_name: "orders".to_owned(),
            source: Ok(Source::JetStream(
                JetStream::new(options).expect("the settings are sound"),
            )),
            start: Start::Beginning,
            begins_after: None,
            accepts_missing_through: 0,
            on_probation: false,
            subjects_from: 0,
            checks_events_after: None,
            part: None,
            role: Ok(foldstream::effects::Role::Mute),
            ownership: None,
            first_lineage: None,
            skips: state::exceptions::Skips::default(),
            lanes: 1,
        },
        path,
        succeeds_lost_owner: false,
        state: state::Options::default(),
        cache: Caches::new(1 << 20, 0).share(u64::MAX),
        settings: Settings {
            batch: Limits::default(),
            policy: Policy {
                attempts: 1,
                initial_backoff: Duration::ZERO,
                max_backoff: Duration::ZERO,
            },
            build_attempts: 1,
            build_backoff: Duration::ZERO,
            retry_percent: 100,
            keeper: None,
            parking: foldstream::pipeline::ParkingLimits::default(),
            flush_interval: Duration::from_secs(1),
            memtable_bytes: 1 << 20,
            idle_after: Duration::ZERO,
            budget: Arc::new(Budget::new(1 << 30)),
            disk: None,
            shuffle: None,
        },
        metrics: Metrics::new().deployment("probe"),
        paused: false,
        pace: (Ceiling::None, Throttle::default()),
        leash: foldstream::pipeline::NO_LEASH,
        catches_up_to: None,
        floor: 0,
        outlets: Arc::default(),
        parks: false,
    }
}

#[test]
fn a_reader_that_panics_is_reported_and_started_again_not_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    // A runtime without network: the reader panics at its first connection.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let runner = {
        let _guard = runtime.enter();
        Runner::start(parts(folder.path().join("1.redb")))
    };
    let begin = Instant::now();
    let mut seen = Vec::new();
    // Each start resets the failure that the last one left.
    while runner.now().starts < 3 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "it is not started again: {:?}",
            runner.now()
        );
        seen.extend(
            runner
                .now()
                .failure
                .filter(|failure| failure.message.contains("a defect in the host")),
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let failure = seen.last().expect("it says what happened");
    assert_eq!(failure.kind, "host", "{failure:?}");
    assert!(matches!(
        runner.now().state,
        DeploymentState::Retrying | DeploymentState::CatchingUp
    ));
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "three starts within {:?}",
        begin.elapsed()
    );
    runner.ask_to_stop();
    runner.join();
}

/// In the place of each fold, one that panics once at each event.
#[derive(Default)]
struct Brittle(Arc<Mutex<BTreeSet<u64>>>);

impl Part for Brittle {
    fn subjects(&self) -> SubjectSet {
        SubjectSet::parse(&["probe.>"]).expect("it is sound")
    }

    fn narrow(&self, _fold: Box<dyn Fold>) -> Box<dyn Fold> {
        Box::new(Self(Arc::clone(&self.0)))
    }

    fn needs_headers(&self) -> bool {
        false
    }
}

impl Fold for Brittle {
    fn apply(&mut self, events: &[Event], writer: Writer) -> (Writer, Result<(), ApplyError>) {
        let met = |event: &Event| {
            !self
                .0
                .lock()
                .expect("nobody panics with it")
                .insert(event.sequence)
        };
        assert!(events.iter().all(met), "as ordered");
        (writer, Ok(()))
    }
}

#[test]
fn a_fold_that_panics_now_and_then_is_started_again_and_never_stops_for_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let log =
        Log::open(&folder.path().join("log.redb"), log::Options::default()).expect("the log opens");
    let runner = {
        let _guard = runtime.enter();
        let mut parts = parts(folder.path().join("1.redb"));
        parts.program.source = Ok(Source::Embedded(Embedded::new(log.clone())));
        parts.program.part = Some(Arc::new(Brittle::default()));
        Runner::start(parts)
    };
    let event = NewEvent {
        subject: "probe.subject".to_owned(),
        kind: None,
        id: None,
        time_ns: None,
        headers: Vec::new(),
        data: Payload::from("{}"),
    };
    let begin = Instant::now();
    // More often than a state may be damaged in a row.
    for sequence in 1..=5 {
        log.append(std::slice::from_ref(&event), &Expectation::default())
            .expect("it is appended");
        let mut seen = None;
        while runner.position() < sequence {
            let now = runner.now();
            assert!(
                now.state != DeploymentState::Failed,
                "it stops at {sequence}: {now:?}"
            );
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "it is not started again: {now:?}"
            );
            seen = now.failure.or(seen);
            std::thread::sleep(Duration::from_millis(5));
        }
        let failure = seen.expect("it says what happened");
        assert_eq!(failure.kind, "state", "{failure:?}");
        assert!(
            failure
                .message
                .contains("a defect in the host ended the fold"),
            "{failure:?}"
        );
    }
    runner.ask_to_stop();
    runner.join();
}
