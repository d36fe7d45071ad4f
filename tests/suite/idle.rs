//! What a host takes that has no work, and that folds take less than what answers.

use std::time::Duration;

use foldstream::api;
use foldstream_tests::host::Host;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};

#[tokio::test]
async fn a_deployment_without_events_releases_its_instance_and_gets_another() {
    let mut stage = Stage::start_with(Kind::Embedded, "[modules]\nidle_after = \"300ms\"\n").await;
    stage.deploy_ledger().await;
    for _ in 0..3 {
        // Each time it continues with a new one.
        stage.publish(10).await;
        stage.assert_ledger_equals_model().await;
        let has_none = |shown: &api::Deployment| shown.instances == 0;
        let client = stage.client();
        client
            .show_when(LEDGER, "release its instance", has_none)
            .await;
    }
}

/// How often the threads of a process were switched to and from so far.
fn switches(id: u32) -> u64 {
    let tasks =
        std::fs::read_dir(format!("/proc/{id}/task")).expect("our own child may be looked at");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|status| {
            let counts = status
                .lines()
                .filter_map(|line| line.split_once("ctxt_switches:"));
            counts
                .map(|(_, count)| count.trim().parse::<u64>().expect("a number"))
                .sum::<u64>()
        })
        .sum()
}

#[tokio::test]
async fn a_host_without_work_rests() {
    let mut host = Host::start().await;
    let names: Vec<String> = (0..5).map(|number| format!("{LEDGER}-{number}")).collect();
    for name in &names {
        host.client().deploy(name, &guests::module(LEDGER)).await;
    }
    for name in &names {
        host.client()
            .show_when(name, "be live", |shown| shown.instances == 0 || shown.begun)
            .await;
    }
    // A thread that looks at deadlines every 5 ms switches 200 times a second, whatever else the
    // machine does.
    let id = host.process().id();
    wait::until("five idle deployments to rest", || async {
        let before = switches(id);
        tokio::time::sleep(Duration::from_secs(1)).await;
        (switches(id) - before < 100).then_some(())
    })
    .await;
}

/// The niceness of the threads of a process whose names begin with this.
fn niceness(id: u32, name: &str) -> Vec<i32> {
    let tasks =
        std::fs::read_dir(format!("/proc/{id}/task")).expect("our own child may be looked at");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            let (before, after) = stat.rsplit_once(") ")?;
            let (_, own) = before.split_once(" (")?;
            // Field 19, counted from the third one, which is behind the name.
            let nice = after.split(' ').nth(16)?.parse().ok()?;
            own.starts_with(name).then_some(nice)
        })
        .collect()
}

#[tokio::test]
async fn folds_give_way_to_threads_that_answer() {
    let mut host = Host::start().await;
    host.client().deploy(LEDGER, &guests::module(LEDGER)).await;
    let id = host.process().id();
    // The suite may itself have been started with a low priority.
    let normal = niceness(id, "foldstream")[0];
    let answering = niceness(id, "serve");
    assert!(!answering.is_empty());
    assert!(
        answering.iter().all(|nice| *nice == normal),
        "{answering:?}"
    );
    // It gives way as soon as it runs.
    wait::until("a fold that gives way", || async {
        let folds = niceness(id, "fold-");
        (!folds.is_empty() && folds.iter().all(|nice| *nice > normal)).then_some(())
    })
    .await;
}
