//! A handler whose state is restored from a backup, next to targets that have what it sent since:
//! each message is stored once, and none is taken for another.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use foldstream_tests::nats::Version;
use foldstream_tests::reactor::{self, REACTOR, event, published};
use foldstream_tests::{cli, guests};

use crate::deliveries::{Stage, Target};

/// The targets whose claim does not end with their window.
const TARGETS: [Target; 3] = [Target::Log, Target::Plain(Version::Newest), Target::Cursors];

/// Longer than the window of the streams.
const FORGOTTEN: Duration = Duration::from_millis(300);

/// A copy of the state of a handler.
struct Copy {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Copy {
    /// Copies the state while the host is down for a moment.
    async fn of(stage: &mut Stage) -> Self {
        stage.host.stop();
        let path = stage.host.data_dir().join("state/reactor/1.redb");
        let bytes = std::fs::read(&path).expect("it is there");
        stage.host.restart().await;
        Self { path, bytes }
    }

    /// Kills the host, and starts it again with the copy once its streams have forgotten their ids.
    async fn restore(&self, stage: &mut Stage) {
        stage.host.kill();
        std::fs::write(&self.path, &self.bytes).expect("it is written");
        tokio::time::sleep(FORGOTTEN).await;
        stage.host.restart().await;
    }
}

/// Retries the parked events of a key, and waits until all that was made has left.
async fn retry(stage: &Stage, key: &str, last: u64) {
    // The deployment may still be starting.
    stage.client().reached(REACTOR, last).await;
    cli::on(&stage.host, &["parked", "retry", REACTOR, key]).expect(0);
    published(stage.client(), last).await;
}

/// Parks events of two keys, with code that can answer them since. Their sequences, and those of an
/// event before and behind them.
async fn parked(stage: &Stage) -> (Vec<u64>, [u64; 2]) {
    let reactor = guests::module(REACTOR);
    stage
        .client()
        .deploy_with(REACTOR, &reactor, "&on-failure=park")
        .await;
    let first = stage.append(3, "one").await;
    let told = [
        (1, "fail"),
        (2, "fail"),
        (1, "three"),
        (2, "first"),
        (1, "past"),
        (2, "one"),
    ];
    let told = told.map(|(key, what)| event(key, what));
    let appended = stage.client().append(&told).await;
    let last = stage.append(3, "one").await;
    published(stage.client(), last).await;
    let fixed = guests::module("reactor-fixed");
    stage
        .client()
        .deploy_with(REACTOR, &fixed, "&strategy=inherit")
        .await;
    (appended.sequences, [first, last])
}

/// Each message is stored once under the id of its event, and those of a key in the order of events.
async fn assert_each_once(stage: &Stage, others: &[u64], parked: &[u64], target: Target) {
    let stored = stage.stored().await;
    let shown = stage.client().show(REACTOR).await;
    let lineage = shown.outbox.expect("it is a handler").lineage;
    let three = (0..3).map(|number| (parked[2], number));
    let single = parked.iter().chain(others).map(|cause| (*cause, 0));
    let wanted: BTreeSet<_> = single.chain(three).collect();
    let places: Vec<_> = stored.iter().map(|message| message.place).collect();
    println!("{target:?}: {places:?}");
    // One of them has no order.
    let ordered: Vec<_> = stored
        .into_iter()
        .map(|message| reactor::Stored {
            is_delayed: message.is_delayed || message.place.0 == parked[4],
            ..message
        })
        .collect();
    reactor::assert_each_once(&ordered, &wanted, &lineage);
}

#[tokio::test]
async fn parked_events_that_are_retried_in_another_order_after_a_restore_are_answered_once() {
    for target in TARGETS {
        let mut stage = Stage::start(target).await;
        let (events, others) = parked(&stage).await;
        let [first, last] = others;
        let copy = Copy::of(&mut stage).await;
        retry(&stage, "1", last).await;
        let half = stage.stored().await.len();
        assert_eq!(half, others.len() + 5, "{target:?}");

        copy.restore(&mut stage).await;
        for key in ["2", "1"] {
            retry(&stage, key, last).await;
        }
        assert_each_once(&stage, &others, &events, target).await;

        // Later than before, and in one go.
        copy.restore(&mut stage).await;
        let later = stage.append(3, "one").await;
        for key in ["1", "2"] {
            retry(&stage, key, later).await;
        }
        assert_each_once(&stage, &[first, last, later], &events, target).await;
    }
}
