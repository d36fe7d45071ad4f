//! Pauses after failures: what happens meanwhile, how long they last, and how many there are.

use super::*;

/// Long enough that no test sees its end.
const HOUR: Duration = Duration::from_secs(3_600);

fn later(index: usize) -> ApplyError {
    ApplyError::Retry {
        index,
        message: "later".to_owned(),
    }
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A pipeline that fails at event 42, and pauses for an hour.
fn pausing() -> (Stage, Store, std::thread::JoinHandle<Ended>) {
    let mut stage = Stage::with_events(100);
    (stage.attempts, stage.backoff) = (1_000, HOUR);
    let (store, writer) =
        Store::open(&stage.state(), state::Options::default(), |_| ()).expect("the state opens");
    let mischief: Mischief = Arc::new(|event, index| (event.sequence == 42).then(|| later(index)));
    let running = stage.start_over(store.clone(), writer, mischief);
    until("the event fails", || stage.progress.now().failure.is_some());
    (stage, store, running)
}

#[test]
fn what_precedes_a_failing_event_is_durable_during_its_pause() {
    let (stage, store, running) = pausing();
    until("a checkpoint before the event", || {
        store
            .checkpoint()
            .is_some_and(|checkpoint| checkpoint.position == 41)
    });
    let now = stage.progress.now();
    let failure = now.failure.expect("it was just there");
    assert_eq!(
        (now.state, failure.attempts),
        (DeploymentState::Retrying, 1)
    );
    let next: jiff::Timestamp = failure
        .next_attempt_at
        .expect("it is known")
        .parse()
        .expect("a time");
    let minutes = next.duration_since(jiff::Timestamp::now()).as_secs() / 60;
    assert!(
        (28..=60).contains(&minutes),
        "half an hour to an hour: {minutes} minutes"
    );
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
}

#[test]
fn a_pause_lasts_also_if_the_pace_changes_meanwhile() {
    let (stage, _store, running) = pausing();
    for change in 1..100 {
        let ceiling = if change % 2 == 0 {
            Ceiling::Position(0)
        } else {
            Ceiling::None
        };
        set_ceiling(&stage, ceiling, change);
        match ceiling {
            Ceiling::None => std::thread::sleep(Duration::from_millis(1)),
            _ => assert_eq!(
                held_at(&stage, change),
                41,
                "a pause does not keep it from standing"
            ),
        }
    }
    assert_eq!(
        stage.progress.now().failure.map(|failure| failure.attempts),
        Some(1)
    );
    stage.control.send_replace(Desired::Stop);
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
}

#[test]
fn retries_beyond_their_budget_wait_for_the_breaker_and_an_operator_does_not() {
    let mut stage = Stage::with_events(15);
    stage.retry_percent = 0;
    // Each event fails until it has failed once as the first of a call, which is when it is
    // charged.
    let charged = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let once: Mischief = Arc::new(move |event, index| {
        let mut charged = charged.lock();
        let fails = if index == 0 {
            charged.insert(event.sequence)
        } else {
            !charged.contains(&event.sequence)
        };
        fails.then(|| later(index))
    });
    let running = stage.start(Arc::clone(&once));
    let is_open = || {
        stage
            .progress
            .now()
            .failure
            .is_some_and(|failure| failure.breaker_open)
    };
    until("the breaker opens", is_open);
    let failure = stage.progress.now().failure.expect("it was just there");
    assert_eq!(
        (failure.sequence, failure.attempts),
        (Some(11), 1),
        "ten retries are free: {failure:?}"
    );
    // A resume.
    stage.control.send_replace(Desired::Run(1));
    assert!(matches!(running.join().expect("no panic"), Ended::Asked));
    assert!(matches!(stage.run_again(once), Ended::Asked));
    assert_eq!(durable(&stage.state()), (fold_of(15), 15));
}

#[test]
fn a_state_that_answers_no_reads_has_attempts_of_its_own() {
    for (serves, attempts) in [(true, 4), (false, 2)] {
        let mut stage = Stage::with_events(10);
        (stage.attempts, stage.build_attempts) = (4, 2);
        if !serves {
            stage.progress.stop_serving();
        }
        let ended = stage.run(Arc::new(|event, index| {
            (event.sequence == 7).then(|| later(index))
        }));
        assert!(matches!(ended, Ended::Failed));
        assert_eq!(
            stage.progress.now().failure.map(|failure| failure.attempts),
            Some(attempts),
            "serves: {serves}"
        );
    }
}
