//! A defect in the host itself: what a runner does whose reader panics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldstream::api::{DeploymentState, Start};
use foldstream::batch::Limits;
use foldstream::memory::caches::Caches;
use foldstream::memory::memtables::Budget;
use foldstream::metrics::Metrics;
use foldstream::pipeline::{Ceiling, Settings, Throttle};
use foldstream::runner::{LoadError, Options, Program, Runner};
use foldstream::source::Source;
use foldstream::source::jetstream::{self, JetStream};
use foldstream::state;

use crate::bed::{load, shared};

fn parts(path: std::path::PathBuf) -> Options {
    let options = jetstream::Options {
        name: "orders".to_owned(),
        stream: "ORDERS".to_owned(),
        servers: vec!["nats://127.0.0.1:1".to_owned()],
        ..jetstream::Options::default()
    };
    Options {
        deployment: "probe".to_owned(),
        program: Program {
            generation: 1,
            module: Ok(load(shared(), "")),
            load: Arc::new(|| Err(LoadError { message: "it is loaded".to_owned(), is_passing: false })),
            source_name: "orders".to_owned(),
            source: Ok(Source::JetStream(JetStream::new(options).expect("the settings are sound"))),
            start: Start::Beginning,
            accepts_missing_through: 0,
            on_probation: false,
            subjects_from: 0,
            part: None,
            role: Ok(foldstream::effects::Role::Mute),
            skips: state::exceptions::Skips::default(),
        },
        path,
        state: state::Options::default(),
        cache: Caches::new(1 << 20, 0).share(u64::MAX),
        settings: Settings {
            batch: Limits::default(),
            attempts: 1,
            initial_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            flush_interval: Duration::from_secs(1),
            memtable_bytes: 1 << 20,
            budget: Arc::new(Budget::new(1 << 30)),
            disk: None,
            shuffle: None,
        },
        metrics: Metrics::new().deployment("probe"),
        paused: false,
        pace: (Ceiling::None, Throttle::default()),
        catches_up_to: None,
        floor: 0,
        outlets: Arc::default(),
    }
}

#[test]
fn a_reader_that_panics_is_told_and_started_again_not_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    // A runtime without network: the reader panics at its first connection.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    let runner = {
        let _guard = runtime.enter();
        Runner::start(parts(folder.path().join("1.redb")))
    };
    let begin = Instant::now();
    let mut seen = Vec::new();
    // Each start resets the failure that the last one left.
    while runner.now().starts < 3 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it is not started again: {:?}", runner.now());
        seen.extend(runner.now().failure.filter(|failure| failure.message.contains("a defect in the host")));
        std::thread::sleep(Duration::from_millis(5));
    }
    let failure = seen.last().expect("it says what happened");
    assert_eq!(failure.kind, "host", "{failure:?}");
    assert!(matches!(runner.now().state, DeploymentState::Retrying | DeploymentState::CatchingUp));
    assert!(begin.elapsed() >= Duration::from_secs(2), "three starts within {:?}", begin.elapsed());
    runner.ask_to_stop();
    runner.join();
}
