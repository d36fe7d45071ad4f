//! A handler whose state is restored from a backup, next to targets that have what it sent since:
//! each message is stored once, and none is taken for another.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use foldstream::api::{self, Promise};
use foldstream_tests::nats::{self, Version};
use foldstream_tests::reactor::{self, REACTOR, event, published};
use foldstream_tests::{cli, guests};

use crate::deliveries::{Stage, Target, full, plain, trouble, with_cursors, without_their_subject};

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
        let copy = Self::of_stopped(stage);
        stage.host.restart().await;
        copy
    }

    /// Copies the state of a host that is down.
    fn of_stopped(stage: &Stage) -> Self {
        let path = stage.host.data_dir().join("state/reactor/1.redb");
        let bytes = std::fs::read(&path).expect("it is there");
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

/// What the handler may publish from now on.
async fn grant(stage: &Stage, subjects: &str) {
    let grant = format!("&allow-publish={subjects}%40out");
    let module = guests::module(REACTOR);
    stage.client().deploy_with(REACTOR, &module, &grant).await;
}

#[tokio::test]
async fn message_that_left_without_a_cursor_is_found_behind_one_of_an_earlier_place() {
    let mut stage = Stage::start(Target::Cursors).await;
    stage.edit(without_their_subject()).await;
    let first = stage.append(3, "one").await;
    published(stage.client(), first).await;
    stage.edit(full(without_their_subject(), 1)).await;
    let held = stage.append(1, "one").await;
    let sent = stage.append(2, "one").await;
    stage
        .waits_until("have both", |outbox| outbox.entries == 2)
        .await;
    grant(&stage, "out.2.%2A").await;
    // No attempt comes in between: its lost answer would make the host ask before it sends.
    stage.client().act(REACTOR, "pause").await.expect(200);
    stage.edit(without_their_subject()).await;
    stage.swallow();
    stage.client().act(REACTOR, "resume").await.expect(200);
    stage.stores_more_than(1).await;
    stage.host.kill();
    let copy = Copy::of_stopped(&stage);
    stage.let_through();
    stage.edit(with_cursors()).await;
    stage.host.restart().await;
    grant(&stage, "out.%3E").await;
    let shown = published(stage.client(), sent).await;
    let promise = shown.outbox.expect("it is a handler").targets[0].promise;
    assert_eq!(promise, Some(Promise::Exact));
    assert_eq!(stage.causes().await, [first, sent, held]);

    // As if it had been killed before it could record that.
    copy.restore(&mut stage).await;
    published(stage.client(), sent).await;
    assert_eq!(stage.causes().await, [first, sent, held]);
}

#[tokio::test]
async fn nothing_is_sent_again_while_a_refused_message_puts_the_cursor_in_question() {
    // Far from everything waits when the host looks at the stream.
    let few = "[state]\noutbox_entries_max = 5\n[pipeline]\nbatch_events = 2\n";
    let mut stage = Stage::start_with(Target::Cursors, few).await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    stage.append(1, "overdue").await;
    let why = trouble(&stage).await;
    assert!(why.contains("--allow-msg-ttl"), "{why}");
    let copy = Copy::of(&mut stage).await;
    // These leave without a cursor.
    stage.edit(without_their_subject()).await;
    stage.host.kill();
    stage.host.restart().await;
    let events: Vec<_> = (0..200)
        .map(|number| event(2 + number % 7, "one"))
        .collect();
    let last = stage.client().append(&events).await.last_sequence;
    let all_but_one = |shown: &api::Deployment| {
        let outbox = shown.outbox.as_ref();
        shown.position >= last && outbox.is_some_and(|outbox| outbox.entries == 1)
    };
    let client = stage.client();
    client
        .show_when(REACTOR, "publish the others", all_but_one)
        .await;
    let before = stage.stored().await.len();
    assert_eq!(before, 201);
    stage.edit(with_cursors()).await;
    copy.restore(&mut stage).await;
    let client = stage.client();
    client
        .show_when(REACTOR, "make them again", all_but_one)
        .await;
    assert_eq!(stage.stored().await.len(), before);
}

#[tokio::test]
async fn grant_that_is_given_again_after_a_restore_sends_nothing_again() {
    let mut stage = Stage::start(Target::Plain(Version::Newest)).await;
    grant(&stage, "out.1.%2A").await;
    let first = stage.append(1, "one").await;
    published(stage.client(), first).await;
    let copy = Copy::of(&mut stage).await;
    grant(&stage, "out.%3E").await;
    let (second, third) = (stage.append(1, "one").await, stage.append(2, "one").await);
    published(stage.client(), third).await;
    grant(&stage, "out.1.%2A").await;
    copy.restore(&mut stage).await;
    let (shown, failure) = stage.client().failed(REACTOR).await;
    assert_eq!((shown.position, failure.sequence), (second, Some(third)));
    stage
        .waits_until("find what it has", |outbox| outbox.entries == 0)
        .await;
    grant(&stage, "out.%3E").await;
    published(stage.client(), third).await;
    assert_eq!(stage.causes().await, [first, second, third]);
}

#[tokio::test]
async fn later_events_of_a_key_that_went_on_after_its_retry_are_answered_once_after_a_restore() {
    for target in TARGETS {
        let mut stage = Stage::start(target).await;
        let (events, [first, last]) = parked(&stage).await;
        let copy = Copy::of(&mut stage).await;
        retry(&stage, "1", last).await;
        let on = stage.append(1, "one").await;
        let other = stage.append(3, "one").await;
        published(stage.client(), other).await;
        // The next one comes once the state is restored: it has no message yet.
        copy.restore(&mut stage).await;
        let behind = stage.append(1, "one").await;
        for key in ["1", "2"] {
            retry(&stage, key, behind).await;
        }
        let others = [first, last, on, other, behind];
        assert_each_once(&stage, &others, &events, target).await;
    }
}

#[tokio::test]
async fn dropped_event_of_a_restored_state_keeps_nobody_from_finding_what_is_stored() {
    let mut stage = Stage::start(Target::Plain(Version::Newest)).await;
    let (_, [_, last]) = parked(&stage).await;
    let copy = Copy::of(&mut stage).await;
    retry(&stage, "1", last).await;
    copy.restore(&mut stage).await;
    let next = stage.append(3, "one").await;
    published(stage.client(), next).await;
    let drop = ["parked", "drop", REACTOR, "1", "--whole-keys"];
    let drop = [&drop[..], &["--reason", "a test"]].concat();
    cli::on(&stage.host, &drop).expect(0);
    let next = stage.append(3, "one").await;
    published(stage.client(), next).await;
    // What came before is gone, which matters only if the host still looks there.
    stage.host.stop();
    let context = stage.server().0.jetstream().await;
    let stream = context.get_stream("OUT").await.expect("is there");
    stream.purge().await.expect("is purged");
    stage.host.restart().await;
    let next = stage.append(3, "one").await;
    let shown = published(stage.client(), next).await;
    let promise = shown.outbox.expect("it is a handler").targets[0].promise;
    assert_eq!(promise, Some(Promise::ReadBack));
}

#[tokio::test]
async fn stream_that_was_made_again_since_a_backup_gets_no_message_twice() {
    let mut stage = Stage::start(Target::Plain(Version::Newest)).await;
    for key in 0..20 {
        stage.append(key, "one").await;
    }
    let last = stage.append(20, "one").await;
    published(stage.client(), last).await;
    let copy = Copy::of(&mut stage).await;
    let context = stage.server().0.jetstream().await;
    context.delete_stream("OUT").await.expect("is deleted");
    nats::create_stream_with(&context, plain()).await;
    // More than the stream had before: the end of the former one is in the middle of this one.
    let mut later = Vec::new();
    for key in 0..50 {
        later.push(stage.append(key, "one").await);
    }
    published(stage.client(), later[49]).await;
    assert_eq!(stage.causes().await, later);
    copy.restore(&mut stage).await;
    stage.client().reached(REACTOR, later[49]).await;
    published(stage.client(), later[49]).await;
    assert_eq!(stage.causes().await, later, "{}", stage.host.output());
}
