//! Releasing from a real state to a real embedded log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Parts, Releaser, Status};
use crate::effects::{Delivery, Effect, Grants, Lineage, Owner, Place, Role, Row};
use crate::event::Payload;
use crate::log::{self, Log};
use crate::metrics::Metrics;
use crate::position::{Checkpoint, StreamIdentity};
use crate::source::Source;
use crate::source::embedded::Embedded;
use crate::state::{Options, Ownership, Store, Writer, create_owned};

const OWNERSHIP: Ownership = Ownership {
    lineage: Lineage(7),
    epoch: 1,
};

/// A state that owns its effects.
fn state(path: &Path) -> (Store, Writer) {
    create_owned(path, OWNERSHIP).expect("is created");
    let (store, mut writer) =
        Store::open(path, Options::default(), |_| ()).expect("the state opens");
    writer.set_role(Role::Owner(Arc::new(Owner {
        deployment: "test".to_owned(),
        lineage: OWNERSHIP.lineage,
        epoch: OWNERSHIP.epoch,
        effects_after: 0,
        timers_after: 0,
        grants: Grants::default(),
        publishes: Arc::default(),
        logs: Arc::default(),
    })));
    (store, writer)
}

/// Makes the effect of an event durable.
fn emit(store: &Store, writer: &mut Writer, (sequence, key): (u64, &str), delivery: Delivery) {
    let effect = Effect {
        subject: format!("out.{key}.{sequence}"),
        kind: "out".to_owned(),
        headers: Vec::new(),
        data: Payload::from("{}"),
        key: key.to_owned(),
        delivery,
    };
    writer.begin();
    let row = Row {
        target: "log".to_owned(),
        place: Place {
            sequence,
            sub: 0,
            index: 0,
        },
        turn: None,
        made_ns: sequence,
        effect,
    };
    writer.emit(&row).expect("within limits");
    let stream = StreamIdentity {
        name: "s".to_owned(),
        created_ns: 1,
    };
    writer.publish(Checkpoint::at(sequence, stream));
    store.flush().expect("commits");
}

/// Sends what waits to a log, as far as the grants say.
fn start(
    store: &Store,
    log: &Log,
    changed: watch::Receiver<u64>,
    grants: impl Fn() -> Grants + Send + Sync + 'static,
) -> (Releaser, Arc<Status>) {
    let status = Arc::new(Status::default());
    let source = Source::Embedded(Embedded::new(log.clone()));
    let parts = Parts {
        deployment: "test".to_owned(),
        lineage: OWNERSHIP.lineage,
        store: store.clone(),
        sources: Arc::new(BTreeMap::from([("log".to_owned(), source)])),
        grants: Arc::new(grants),
        publishes: Arc::new(Arc::default),
        changed,
        is_paused: Arc::new(|| false),
        room: None,
        status: Arc::clone(&status),
        metrics: Metrics::new().deployment("test"),
    };
    let releaser = Releaser::start(parts, &tokio::runtime::Handle::current());
    (releaser, status)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_that_waited_for_a_grant_are_all_appended_in_their_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = log::Options::default();
    let log = Log::open(&folder.path().join("log.redb"), options).expect("the log opens");
    let (store, mut writer) = state(&folder.path().join("state.redb"));
    for sequence in 1..=20 {
        emit(
            &store,
            &mut writer,
            (sequence, ["b", "a", "a"][sequence as usize % 3]),
            Delivery::default(),
        );
    }
    let grants = Arc::new(Mutex::new(Grants::default()));
    let (changes, changed) = watch::channel(0);
    let granted = Arc::clone(&grants);
    let (releaser, status) = start(&store, &log, changed, move || granted.lock().clone());
    let is_withheld = || {
        let targets = status.targets();
        targets
            .get("log")
            .is_some_and(|target| target.trouble.is_some())
    };
    until("trouble", is_withheld).await;
    // More than one attempt.
    tokio::time::sleep(Duration::from_millis(500)).await;
    *grants.lock() = Grants::parse(&["out.>@log"]).expect("a grant");
    changes.send_replace(1);
    until("all to leave", || store.waiting_effects().entries == 0).await;
    let (events, _) = log.read(0, None, 100, usize::MAX).expect("reads");
    let subjects: Vec<&str> = events.iter().map(|event| &*event.subject).collect();
    let wanted: Vec<String> = (1..=20)
        .map(|sequence| format!("out.{}.{sequence}", ["b", "a", "a"][sequence % 3]))
        .collect();
    assert_eq!(subjects, wanted);
    let stopped = tokio::task::spawn_blocking(move || releaser.stop());
    stopped.await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_delayed_effects_are_tried_less_and_less_often_also_if_they_fill_a_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = log::Options::default();
    let log = Log::open(&folder.path().join("log.redb"), options).expect("the log opens");
    let (store, mut writer) = state(&folder.path().join("state.redb"));
    for sequence in 1..=100 {
        let due = Delivery {
            not_before_ns: Some(1),
            ..Delivery::default()
        };
        emit(&store, &mut writer, (sequence, "a"), due);
    }
    let looks = Arc::new(AtomicUsize::new(0));
    let (_changes, changed) = watch::channel(0);
    let counted = Arc::clone(&looks);
    let (releaser, _status) = start(&store, &log, changed, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Grants::default()
    });
    // Two pages, one of them empty, and a pause that doubles: 0.1 s, 0.2 s, 0.4 s and so on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let looks = looks.load(Ordering::Relaxed);
    assert!((3..25).contains(&looks), "{looks} looks");
    let stopped = tokio::task::spawn_blocking(move || releaser.stop());
    stopped.await.expect("it stops");
}
