//! What depends on batches, and what must not.

use super::*;

#[test]
fn where_batches_end_changes_nothing() {
    let mut stage = Stage::with_events(4_000);
    for seed in 0..3 {
        stage.restart();
        stage.shuffle = Some(seed);
        let _ = std::fs::remove_file(stage.state());
        stage.batches.lock().clear();
        assert!(matches!(stage.run(peaceful()), Ended::Asked));
        assert_eq!(durable(&stage.state()), (fold_of(4_000), 4_000));
        assert!(
            stage.batches.lock().len() > 4,
            "batches were cut: {:?}",
            stage.batches.lock()
        );
    }
}

#[test]
fn age_makes_a_replay_durable_also_while_it_always_has_more_to_apply() {
    let stage = Stage::with_events(0);
    let event = |number: u64| NewEvent {
        subject: format!("s.{}", number % 7),
        kind: None,
        id: None,
        time_ns: None,
        headers: Vec::new(),
        data: Payload::from("x".repeat(4_000)),
    };
    for part in 0..20 {
        let events: Vec<_> = (1..=500).map(|number| event(part * 500 + number)).collect();
        stage
            .log
            .append(&events, &Expectation::default())
            .expect("appends");
    }
    let (store, writer) =
        Store::open(&stage.state(), state::Options::default(), |_| ()).expect("the state opens");
    let slow: Mischief = Arc::new(|event, _| {
        if event.sequence % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    });
    let running = stage.start_over(store.clone(), writer, slow);
    let mut moved_before_the_end = false;
    while stage.progress.now().state != DeploymentState::Live {
        let checkpoint = store
            .checkpoint()
            .map_or(0, |checkpoint| checkpoint.position);
        moved_before_the_end |= (1..9_000).contains(&checkpoint);
        std::thread::yield_now();
    }
    stage.control.send_replace(Desired::Stop);
    running.join().expect("no panic");
    assert!(
        moved_before_the_end,
        "the checkpoint moves while events are applied"
    );
}
