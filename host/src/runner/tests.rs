//! Claims about when a state answers reads, over real state files. What a runner folds is shown by
//! the pipeline's tests and the suite.

use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::batch::Limits;
use crate::event::Payload;
use crate::memory::caches::Caches;
use crate::memory::memtables::Budget;
use crate::metrics::Metrics;
use crate::module::Manifest;
use crate::pipeline::{ParkingLimits, Policy, Settings};
use crate::position::{Checkpoint, Start, StreamIdentity};
use crate::state;

/// A state file that reflects position 5, as a crash leaves it.
fn state_at_five() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("1.redb");
    let (store, mut writer) =
        Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
    writer.begin();
    writer
        .put("key", Some(Payload::from("value")))
        .expect("within limits");
    let stream = StreamIdentity {
        name: "events".to_owned(),
        created_ns: 1,
    };
    writer.publish(Checkpoint::at(5, stream));
    store.flush().expect("it is durable");
    (folder, path)
}

/// The same, as a stop in good order leaves it.
fn settled_at_five() -> (TempDir, PathBuf) {
    let (folder, path) = state_at_five();
    let (store, _writer) =
        Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
    store.settle().expect("it is noted");
    (folder, path)
}

/// A runner whose module is missing, so that it stops as soon as it folds.
pub(crate) fn parts(path: PathBuf) -> Options {
    let budget = Arc::new(Budget::new(1 << 30));
    Options {
        runtime: tokio::runtime::Handle::current(),
        deployment: "test".to_owned(),
        program: Program {
            generation: 1,
            module: Err(NotLoaded::Yet),
            load: Arc::new(|| {
                Err(LoadError {
                    message: "there is none".to_owned(),
                    is_passing: false,
                })
            }),
            source_name: "events".to_owned(),
            source: Err(source::Unknown {
                name: "events".to_owned(),
                configured: String::new(),
            }),
            start: Start::Beginning,
            begins_after: None,
            accepts_missing_through: 0,
            on_probation: false,
            subjects_from: 0,
            checks_events_after: None,
            part: None,
            skips: crate::state::exceptions::Skips::default(),
            lanes: 1,
            role: Ok(crate::effects::Role::Mute),
            ownership: None,
            first_lineage: None,
        },
        path,
        state: state::Options::default(),
        cache: Caches::new(1 << 20, 0).share(u64::MAX),
        outlets: Arc::default(),
        parks: false,
        settings: Settings {
            batch: Limits::default(),
            policy: Policy {
                attempts: 1,
                initial_backoff: Duration::ZERO,
                max_backoff: Duration::ZERO,
            },
            build_attempts: 1,
            build_backoff: Duration::ZERO,
            retry_percent: 20,
            keeper: None,
            parking: ParkingLimits {
                keys: 1,
                events: 1,
                bytes: 1,
            },
            flush_interval: Duration::from_secs(1),
            memtable_bytes: 1 << 20,
            idle_after: Duration::ZERO,
            budget,
            disk: None,
            shuffle: None,
        },
        metrics: Metrics::new().deployment("test"),
        paused: false,
        pace: (Ceiling::None, Throttle::default()),
        leash: crate::pipeline::NO_LEASH,
        succeeds_lost_owner: false,
        catches_up_to: None,
        floor: 0,
    }
}

/// The same for a runner that starts paused.
pub(crate) fn paused(path: PathBuf) -> Options {
    Options {
        paused: true,
        ..parts(path)
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "waited in vain for {what}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Starts a runner and waits until it is idle: paused, or without a module.
async fn resting(parts: Options) -> Arc<Runner> {
    let state = if parts.paused {
        DeploymentState::Paused
    } else {
        DeploymentState::Failed
    };
    let runner = Runner::start(parts);
    until("the state to rest", || {
        runner.now().state == state && runner.is_held()
    })
    .await;
    runner
}

fn end(runner: &Runner) {
    runner.ask_to_stop();
    runner.join();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_in_good_order_answers_whether_or_not_it_folds() {
    let (_folder, path) = settled_at_five();
    for paused in [true, false] {
        let runner = resting(Options {
            paused,
            ..parts(path.clone())
        })
        .await;
        assert_eq!(runner.try_snapshot(None).expect("it answers").position(), 5);
        end(&runner);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_nothing_is_answered_before_the_end_of_the_stream_is_known() {
    for paused in [true, false] {
        let (_folder, path) = state_at_five();
        let runner = resting(Options {
            paused,
            ..parts(path.clone())
        })
        .await;
        let refused = runner
            .try_snapshot(None)
            .expect_err("it may have shown more");
        assert!(
            matches!(&refused, ReadError::NotReady(message) if !message.is_empty()),
            "{refused}"
        );
        runner.stream_reaches(1, 7);
        let refused = runner.try_snapshot(None).expect_err("it may have shown 7");
        assert!(
            matches!(
                refused,
                ReadError::Behind(Behind {
                    wanted: 7,
                    position: 5
                })
            ),
            "{refused}"
        );
        // A stop in good order doesn't make it any better.
        end(&runner);
        let runner = resting(Options {
            paused,
            ..parts(path.clone())
        })
        .await;
        assert!(runner.try_snapshot(None).is_err());
        runner.stream_reaches(1, 5);
        assert_eq!(
            runner
                .try_snapshot(None)
                .expect("all that there is")
                .position(),
            5
        );
        drop(runner);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_shown_from_before_what_clients_have_seen() {
    let (_folder, path) = settled_at_five();
    for (floor, answers) in [(5, true), (7, false)] {
        let runner = resting(Options {
            floor,
            ..paused(path.clone())
        })
        .await;
        match runner.try_snapshot(None) {
            Ok(snapshot) => assert!(answers && snapshot.position() == 5, "floor {floor}"),
            Err(error) => {
                let is_behind = matches!(
                    error,
                    ReadError::Behind(Behind {
                        wanted: 7,
                        position: 5
                    })
                );
                assert!(!answers && is_behind, "floor {floor}: {error}");
            }
        }
        end(&runner);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_its_module_can_be_held_repaired_paused_and_resumed() {
    for takes_long in [true, false] {
        let (_folder, path) = settled_at_five();
        let (let_go, held_back) = std::sync::mpsc::channel::<()>();
        let held_back = Mutex::new(held_back);
        let mut parts = parts(path);
        parts.program.load = Arc::new(move || {
            if takes_long {
                // An error says that the test has let go.
                let _ = held_back.lock().recv();
            }
            Err(LoadError {
                message: "there is no room for it".to_owned(),
                is_passing: true,
            })
        });
        let runner = Runner::start(parts);
        let change = runner.set_ceiling(Ceiling::Position(0));
        let held = runner.held_at(change);
        let position = tokio::time::timeout(Duration::from_secs(20), held).await;
        assert_eq!(
            position.expect("it is held while it waits"),
            5,
            "takes long: {takes_long}"
        );
        runner
            .advance(7)
            .await
            .expect("it is repaired while it waits");
        assert_eq!(runner.position(), 7);
        // The place where it is held moves as well, right after the answer.
        let moved = async {
            while runner.held_at(change).await != 7 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let moved = tokio::time::timeout(Duration::from_secs(20), moved).await;
        moved.expect("it is held at 7");
        runner.pause();
        until("it to be paused", || {
            runner.now().state == DeploymentState::Paused
        })
        .await;
        runner.resume();
        until("it to wait again", || {
            runner.now().state != DeploymentState::Paused
        })
        .await;
        drop(let_go);
        end(&runner);
    }
}

#[test]
fn a_state_is_settled_until_more_is_shown() {
    let (_folder, path) = state_at_five();
    let open = || Store::open(&path, state::Options::default(), |_| ()).expect("the state opens");
    let (store, writer) = open();
    assert!(!store.is_settled());
    store.settle().expect("it is noted");
    drop((store, writer));
    let (store, writer) = open();
    assert!(store.is_settled());
    store.unsettle().expect("it is noted");
    drop((store, writer));
    let (store, writer) = open();
    assert!(
        !store.is_settled(),
        "it was taken back before anything else was shown"
    );
    drop((store, writer));
    let (store, mut again) = open();
    store.settle().expect("it is noted");
    again.advance(6);
    assert!(store.is_dirty());
    store.flush().expect("it is durable");
    assert!(
        !store.is_settled(),
        "another checkpoint is not what was noted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_as_soon_as_a_request_takes_effect() {
    // The wait itself would be far longer, so one that is not woken fails.
    let (in_time, longer) = (Duration::from_secs(60), Duration::from_secs(3_600));
    let (_folder, path) = settled_at_five();
    let runner = resting(paused(path)).await;
    let before = runner.now();
    runner.resume();
    tokio::time::timeout(in_time, runner.wait_until_stopped())
        .await
        .expect("it stops without a module");
    tokio::time::timeout(in_time, runner.wait_until_begun(longer))
        .await
        .expect("its failure is known");
    runner.pause();
    tokio::time::timeout(in_time, runner.wait_until_settled(&before, longer))
        .await
        .expect("it pauses");
    assert_eq!(runner.now().state, DeploymentState::Paused);
    tokio::time::timeout(in_time, runner.flush_soon(longer))
        .await
        .expect("everything is durable");
    let closed = runner.until(|runner| runner.store().is_none().then_some(()));
    let stop = async { runner.ask_to_stop() };
    let ended = tokio::time::timeout(in_time, async { tokio::join!(closed, stop) }).await;
    ended.expect("its state is closed");
    runner.join();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_thread_cannot_start_says_so_and_starts_later_by_itself() {
    let (_folder, path) = settled_at_five();
    let deployment = "without-threads";
    threads::refusals::refuse(&format!("fold-{deployment}"), 2);
    let runner = Runner::start(Options {
        deployment: deployment.to_owned(),
        ..paused(path)
    });
    let failure = runner.now().failure.expect("it says why it does nothing");
    assert_eq!(
        (runner.now().state, failure.kind.as_str()),
        (DeploymentState::Retrying, "host")
    );
    assert!(
        failure.message.contains("cannot start a thread"),
        "{failure:?}"
    );
    until("the thread to start", || {
        runner.now().state == DeploymentState::Paused && runner.shared.standing.borrow().is_some()
    })
    .await;
    assert_eq!(runner.now().failure, None, "it is over");
    assert_eq!(runner.try_snapshot(None).expect("it answers").position(), 5);
    end(&runner);
}

/// A manifest that asks for nothing.
fn manifest() -> Manifest {
    Manifest {
        name: "test".to_owned(),
        kind: crate::module::ModuleKind::Projection,
        publishes: Vec::new(),
        sets_timers: false,
        description: String::new(),
        subjects: crate::subject::SubjectSet::parse(&[">"]).expect("they are sound"),
        wants_headers: false,
        key_rule: crate::module::KeyRule::None,
        state_version: 1,
        attempts: None,
        initial_backoff: None,
        max_backoff: None,
        memory_bytes: None,
        deadline: None,
        batch_events: None,
        state_bytes: None,
        queries: Vec::new(),
        inbox: None,
    }
}

#[tokio::test]
async fn what_a_manifest_asks_for_is_kept_within_limits() {
    let settings = parts(PathBuf::new()).settings;
    let overridden = |change: fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        worker::overridden(&settings, &manifest)
    };
    let ms = Duration::from_millis;
    let plain = overridden(|_| ());
    assert_eq!(
        (plain.policy.attempts, plain.policy.initial_backoff),
        (settings.policy.attempts, settings.policy.initial_backoff)
    );
    let greedy = overridden(|manifest| {
        (manifest.attempts, manifest.batch_events) = (Some(u32::MAX), Some(u32::MAX));
        (manifest.initial_backoff, manifest.max_backoff) =
            (Some(Duration::ZERO), Some(Duration::ZERO));
    });
    assert_eq!(
        (
            greedy.policy.attempts,
            greedy.policy.initial_backoff,
            greedy.policy.max_backoff
        ),
        (1_000, ms(10), ms(10))
    );
    assert_eq!(greedy.batch.events, settings.batch.events);
    let none =
        overridden(|manifest| (manifest.attempts, manifest.batch_events) = (Some(0), Some(0)));
    assert_eq!((none.policy.attempts, none.batch.events), (1, 1));
    let usual = overridden(|manifest| {
        (manifest.attempts, manifest.initial_backoff) = (Some(7), Some(Duration::from_secs(1)));
        manifest.max_backoff = Some(Duration::from_secs(9));
    });
    let pauses = (usual.policy.initial_backoff, usual.policy.max_backoff);
    assert_eq!(
        (usual.policy.attempts, pauses),
        (7, (Duration::from_secs(1), Duration::from_secs(9)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_that_of_the_progress_that_was_read() {
    let (_folder, path) = settled_at_five();
    let runner = resting(parts(path)).await;
    let before = runner.now();
    runner.shared.progress.set_state(DeploymentState::Live);
    assert_eq!(runner.state(&before), DeploymentState::Failed);
    end(&runner);
}
