//! Claims about when a state answers reads, over real state files. What a runner folds is shown by the pipeline's tests
//! and the suite.

use tempfile::TempDir;

use super::*;
use crate::api::Start;
use crate::batch::Limits;
use crate::caches::Caches;
use crate::metrics::Metrics;
use crate::pipeline::Budget;
use crate::pipeline::Settings;
use crate::position::{Checkpoint, StreamIdentity};

/// A state file that reflects position 5.
fn state_at_five() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("1.redb");
    let (store, mut writer) = Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
    writer.begin();
    writer.put("key", Some(Payload::from("value"))).expect("within limits");
    let stream = StreamIdentity { name: "events".to_owned(), created_ns: 1 };
    writer.publish(Checkpoint::at(5, stream));
    store.flush().expect("it is durable");
    (folder, path)
}

/// A runner whose module is missing, so that it stops as soon as it folds.
fn parts(path: PathBuf, paused: bool) -> Parts {
    let budget = Arc::new(Budget::new(1 << 30));
    Parts {
        deployment: "test".to_owned(),
        program: Program {
            generation: 1,
            module: Err("there is none".to_owned()),
            source_name: "events".to_owned(),
            source: Err("there is none".to_owned()),
            start: Start::Beginning,
            accepts_missing_through: 0,
            on_probation: false,
            part: None,
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
            budget,
            shuffle: None,
        },
        metrics: Metrics::new().deployment("test"),
        paused,
        pace: (Ceiling::None, Throttle::default()),
        catches_up_to: None,
        floor: 0,
        catch_up_wait: Duration::from_millis(10),
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_takes_long_to_open_is_waited_for_no_less() {
    let (_folder, path) = state_at_five();
    // As long as another has it, it can't be opened.
    let held = Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
    let runner = Runner::start(parts(path, true));
    let attempts = || runner.now().failure.map_or(0, |failure| failure.attempts);
    until("more attempts than the wait is long", || attempts() >= 2).await;
    assert_eq!(runner.shared.progress.answers_from(), None, "the wait begins when the state is open");
    drop(held);
    until("the state to be read", || runner.try_snapshot(None).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_answers_without_a_wait() {
    let (_folder, path) = state_at_five();
    for (paused, state) in [(true, DeploymentState::Paused), (false, DeploymentState::Failed)] {
        let runner = Runner::start(Parts { catch_up_wait: Duration::from_secs(3_600), ..parts(path.clone(), paused) });
        until("the state to stand still", || runner.now().state == state).await;
        until("the state to be read", || runner.try_snapshot(None).is_ok()).await;
        runner.ask_to_stop();
        runner.join();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_shown_from_before_what_clients_have_seen() {
    let (_folder, path) = state_at_five();
    for (floor, answers) in [(5, true), (7, false)] {
        let runner = Runner::start(Parts { floor, ..parts(path.clone(), true) });
        until("the wait to be over", || runner.shared.progress.answers_from().is_some()).await;
        until("the state to be open", || runner.position() == 5).await;
        match runner.try_snapshot(None) {
            Ok(snapshot) => assert!(answers && snapshot.position() == 5, "floor {floor}"),
            Err(error) => {
                let is_behind = matches!(error, ReadError::Behind(Behind { wanted: 7, position: 5 }));
                assert!(!answers && is_behind, "floor {floor}: {error}");
            }
        }
        runner.ask_to_stop();
        runner.join();
    }
}
