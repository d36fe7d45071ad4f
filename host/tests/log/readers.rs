use std::time::Duration;

use foldstream::api::{SourceState, Start};
use foldstream::batch::{Batch, Limits};
use foldstream::event::Event;
use foldstream::log::{Log, NewEvent, Options};
use foldstream::position::{Checkpoint, EventMark};
use foldstream::source::embedded::{Embedded, Reader};
use foldstream::source::{Error, Missing, OnMissing, Request, Status, initial_status};
use foldstream::subject::SubjectSet;
use redb::{ReadableTable as _, TableDefinition};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{DEADLINE, Place, append, append_numbered, event, fresh, read_all, trim};

struct Reading {
    reader: Reader,
    status: watch::Receiver<Status>,
}

fn request(subjects: &[&str]) -> Request {
    Request {
        resume: None,
        start: Start::Beginning,
        subjects: SubjectSet::parse(subjects).expect("sound"),
        wants_headers: false,
        limits: Limits::default(),
        begins_after: None,
        accepts_missing_through: 0,
        skips: std::sync::Arc::default(),
    }
}

fn resuming(checkpoint: &Checkpoint) -> Request {
    Request {
        resume: Some(checkpoint.clone()),
        ..request(&[">"])
    }
}

fn read(log: &Log, request: Request) -> Reading {
    let (sender, status) = watch::channel(initial_status());
    Reading {
        reader: Embedded::new(log.clone()).read(request, sender),
        status,
    }
}

impl Reading {
    async fn batch(&mut self) -> Batch {
        timeout(DEADLINE, self.reader.next())
            .await
            .expect("a batch in time")
            .expect("no error")
    }

    async fn error(&mut self) -> Error {
        let error = timeout(DEADLINE, self.reader.next())
            .await
            .expect("an outcome in time")
            .expect_err("an error");
        assert_eq!(self.status.borrow().state, SourceState::Stopped);
        assert_eq!(
            self.status.borrow().message.as_deref(),
            Some(format!("{}: {error}", error.kind()).as_str())
        );
        error
    }

    /// Reads through a sequence; checks that batches follow each other.
    async fn through(&mut self, sequence: u64) -> Vec<Event> {
        let (mut events, mut through) = (Vec::<Event>::new(), 0);
        while through < sequence {
            let batch = self.batch().await;
            assert!(batch.through >= through && batch.head >= batch.through);
            assert_eq!(batch.pending, batch.head - batch.through);
            assert!(
                batch
                    .events
                    .iter()
                    .all(|event| event.sequence > through && event.sequence <= batch.through)
            );
            through = batch.through;
            events.extend(batch.events);
        }
        events
    }
}

fn checkpoint(log: &Log, position: u64) -> Checkpoint {
    let event = read_all(log)
        .into_iter()
        .find(|event| event.sequence == position);
    Checkpoint {
        last_event: event.as_ref().map(EventMark::of),
        ..Checkpoint::at(position, log.identity())
    }
}

/// Ten events, of which retention has removed the first five.
fn trimmed(place: &Place) -> Log {
    let log = place.open();
    append(
        &log,
        &(0..10)
            .map(|number| event("a.b", &format!("{number:097}")))
            .collect::<Vec<_>>(),
    );
    assert_eq!(trim(&log).expect("trims"), 5);
    log
}

fn small() -> Place {
    Place::with(Options {
        max_bytes: Some(500),
        ..Options::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_hands_out_all_events_in_order_within_limits() {
    let log = fresh();
    append_numbered(&log, 5_000);
    let limits = Limits {
        events: 300,
        bytes: 20_000,
    };
    let mut reading = read(
        &log,
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let (mut next, mut batches) = (1, 0);
    while next <= 5_000 {
        let batch = reading.batch().await;
        assert!(batch.events.len() <= 300 && batch.bytes() <= 20_000);
        for event in &batch.events {
            assert_eq!(
                (event.sequence, event.data.as_str()),
                (next, Some(next.to_string().as_str()))
            );
            next += 1;
        }
        assert_eq!((batch.head, &*batch.stream), (5_000, &log.identity()));
        batches += 1;
    }
    assert!(batches > 5_000 / 300);
    assert_eq!(reading.status.borrow().state, SourceState::Reading);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_larger_than_the_limit_comes_alone() {
    let log = fresh();
    append(
        &log,
        &[
            event("a", "1"),
            event("a", &"x".repeat(100_000)),
            event("a", "3"),
        ],
    );
    let mut reading = read(
        &log,
        Request {
            limits: Limits {
                events: 10,
                bytes: 1_000,
            },
            ..request(&[">"])
        },
    );
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 3 {
        sizes.push(reading.batch().await.events.len());
    }
    assert_eq!(sizes, [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn position_passes_events_that_do_not_match() {
    let log = fresh();
    append_numbered(&log, 9_999);
    append(&log, &[event("rare.one", "x")]);
    append_numbered(&log, 50);
    let limits = Limits {
        events: 10,
        bytes: 1 << 20,
    };
    let mut reading = read(
        &log,
        Request {
            limits,
            ..request(&["rare.>", "none.*"])
        },
    );
    let first = reading.batch().await;
    assert_eq!(
        (first.events.len(), first.through, first.pending),
        (0, 160, 10_050 - 160)
    );
    let events = reading.through(10_050).await;
    assert_eq!(
        events
            .iter()
            .map(|event| event.sequence)
            .collect::<Vec<_>>(),
        [10_000]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_follows_live_appends() {
    let log = fresh();
    let mut reading = read(&log, request(&[">"]));
    let empty = reading.batch().await;
    assert_eq!(
        (empty.events.len(), empty.through, empty.head, empty.pending),
        (0, 0, 0, 0)
    );
    for number in 1..=50 {
        append_numbered(&log, 1);
        let batch = reading.batch().await;
        assert_eq!(
            (batch.events.len(), batch.through, batch.pending),
            (1, number, 0)
        );
    }
    let writer = {
        let log = log.clone();
        move || (0..200).for_each(|_| append_numbered(&log, 7))
    };
    let writer = tokio::task::spawn_blocking(writer);
    let events = reading.through(1_450).await;
    writer.await.expect("appends");
    assert!(events.iter().map(|event| event.sequence).eq(51..=1_450));
    // Nothing more is there, so the reader waits.
    timeout(Duration::from_millis(20), reading.reader.next())
        .await
        .expect_err("waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_calls_lose_nothing() {
    let log = fresh();
    let mut reading = read(
        &log,
        Request {
            limits: Limits {
                events: 7,
                bytes: 1 << 20,
            },
            ..request(&[">"])
        },
    );
    let writer = {
        let log = log.clone();
        move || (0..300).for_each(|_| append_numbered(&log, 5))
    };
    let writer = tokio::task::spawn_blocking(writer);
    let (mut next, mut cancelled) = (1, 0);
    while next <= 1_500 {
        tokio::select! {
            biased;
            outcome = reading.reader.next() => {
                for event in outcome.expect("no error").events {
                    assert_eq!(event.sequence, next);
                    next += 1;
                }
            }
            () = tokio::task::yield_now() => cancelled += 1,
        }
    }
    writer.await.expect("appends");
    assert!(cancelled > 0, "some calls were cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_resumes_behind_its_checkpoint() {
    let place = Place::new();
    let log = place.open();
    append_numbered(&log, 3_000);
    let checkpoint = checkpoint(&log, 1_234);
    drop(log);
    let log = place.open();
    let events = read(&log, resuming(&checkpoint)).through(3_000).await;
    assert!(events.iter().map(|event| event.sequence).eq(1_235..=3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn resuming_at_the_end_tells_the_head_and_waits() {
    let log = fresh();
    append_numbered(&log, 10);
    let mut reading = read(&log, resuming(&checkpoint(&log, 10)));
    let batch = reading.batch().await;
    assert_eq!((batch.events.len(), batch.through, batch.head), (0, 10, 10));
    append_numbered(&log, 1);
    assert_eq!(reading.batch().await.through, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_history_is_diverged() {
    let (place, other) = (Place::new(), Place::new());
    let (log, other) = (place.open(), other.open());
    append_numbered(&log, 10);
    append_numbered(&other, 10);
    let error = read(&other, resuming(&checkpoint(&log, 5))).error().await;
    assert_eq!(error.kind(), "source-diverged");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_event_under_the_same_sequence_is_diverged() {
    let place = Place::new();
    let log = place.open();
    append_numbered(&log, 5);
    let backup = place.folder.path().join("backup.redb");
    drop(log);
    std::fs::copy(place.path(), &backup).expect("copies");
    let log = place.open();
    append_numbered(&log, 5);
    let checkpoint = checkpoint(&log, 8);
    drop(log);
    std::fs::copy(&backup, place.path()).expect("copies");
    let log = place.open();

    let error = read(&log, resuming(&checkpoint)).error().await;
    assert!(
        matches!(
            error,
            Error::Truncated {
                last: 5,
                position: 8,
                ..
            }
        ),
        "{error}"
    );
    append(
        &log,
        &(0..5).map(|_| event("a", "other")).collect::<Vec<_>>(),
    );
    let error = read(&log, resuming(&checkpoint)).error().await;
    assert_eq!(error.kind(), "source-diverged");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_beginning_is_incomplete_unless_accepted() {
    let place = small();
    let log = trimmed(&place);
    let error = read(&log, request(&[">"])).error().await;
    assert!(
        matches!(
            error,
            Error::Incomplete {
                missing: Missing { from: 1, to: 5, .. },
                ..
            }
        ),
        "{error}"
    );
    let accepted = Request {
        start: Start::FirstAvailable,
        ..request(&[">"])
    };
    let events = read(&log, accepted).through(10).await;
    assert!(events.iter().map(|event| event.sequence).eq(6..=10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_the_place_where_a_state_began_is_truncated() {
    let place = small();
    let log = trimmed(&place);
    let again = |after| Request {
        start: Start::FirstAvailable,
        begins_after: Some(after),
        ..request(&[">"])
    };
    let error = read(&log, again(12)).error().await;
    assert!(
        matches!(
            error,
            Error::Truncated {
                last: 10,
                position: 12,
                ..
            }
        ),
        "{error}"
    );
    let events = read(&log, again(7)).through(10).await;
    assert!(events.iter().map(|event| event.sequence).eq(8..=10));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_gone_behind_a_checkpoint_are_a_gap() {
    let place = small();
    let log = trimmed(&place);
    let at = |position| Checkpoint::at(position, log.identity());
    let error = read(&log, resuming(&at(3))).error().await;
    assert!(
        matches!(
            error,
            Error::Gap {
                missing: Missing { from: 4, to: 5, .. },
                ..
            }
        ),
        "{error}"
    );
    // Behind position 5 nothing is missing.
    let events = read(&log, resuming(&at(5))).through(10).await;
    assert!(events.iter().map(|event| event.sequence).eq(6..=10));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_was_emptied_is_a_gap_for_who_is_behind() {
    let place = Place::with(Options {
        max_age: Some(Duration::from_secs(60)),
        ..Options::default()
    });
    let log = place.open();
    append(
        &log,
        &[
            NewEvent {
                time_ns: Some(1),
                ..event("a", "")
            },
            NewEvent {
                time_ns: Some(1),
                ..event("a", "")
            },
        ],
    );
    let (behind, done) = (checkpoint(&log, 1), checkpoint(&log, 2));
    assert_eq!(trim(&log).expect("trims"), 2);
    let error = read(&log, resuming(&behind)).error().await;
    assert!(
        matches!(
            error,
            Error::Gap {
                missing: Missing { from: 2, to: 2, .. },
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(read(&log, resuming(&done)).batch().await.through, 2);
    let error = read(&log, request(&[">"])).error().await;
    assert!(
        matches!(
            error,
            Error::Incomplete {
                missing: Missing { from: 1, to: 2, .. },
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_overtakes_a_reader_is_a_gap() {
    let place = Place::with(Options {
        max_bytes: Some(50_000),
        ..Options::default()
    });
    let log = place.open();
    let events: Vec<_> = (0..10_000)
        .map(|number| event("a.b", &format!("{number:097}")))
        .collect();
    append(&log, &events);
    let mut reading = read(
        &log,
        Request {
            limits: Limits {
                events: 10,
                bytes: 1 << 20,
            },
            ..request(&[">"])
        },
    );
    assert_eq!(reading.batch().await.through, 10);
    assert_eq!(trim(&log).expect("trims"), 9_500);
    // What was read ahead may still come; then the gap is reported, with its exact bounds.
    let mut through = 10;
    let error = loop {
        match timeout(DEADLINE, reading.reader.next())
            .await
            .expect("in time")
        {
            Ok(batch) => through = batch.through,
            Err(error) => break error,
        }
    };
    assert!(through < 9_500);
    assert!(
        matches!(error, Error::Gap { missing: Missing { from, to: 9_500, .. }, .. } if from == through + 1),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_events_that_retention_removed_are_counted() {
    let place = small();
    let log = trimmed(&place);
    for (resume, gone) in [(None, 5), (Some(Checkpoint::at(3, log.identity())), 2)] {
        let request = Request {
            resume,
            ..request(&[">"])
        };
        // Up to 4 is not up to 5.
        let error = read(
            &log,
            Request {
                accepts_missing_through: 4,
                ..request.clone()
            },
        )
        .error()
        .await;
        assert!(error.to_string().contains("1 event (5) is gone"), "{error}");
        let accepted = Request {
            accepts_missing_through: 5,
            ..request.clone()
        };
        let batch = read(&log, accepted).batch().await;
        assert_eq!(
            (batch.after, batch.through, batch.missing_between(0, 10)),
            (5 - gone, 10, gone)
        );
        let (sender, _status) = watch::channel(initial_status());
        let counting = Embedded::new(log.clone()).on_missing(OnMissing::Count);
        let batch = timeout(DEADLINE, counting.read(request, sender).next())
            .await
            .expect("in time")
            .expect("counts");
        assert_eq!(batch.missing_between(0, 10), gone);
    }
}

/// Reads a log for a subject through a sequence; the checkpoint that this leads to.
async fn folded(log: &Log, subject: &str, sequence: u64) -> Checkpoint {
    let mut reading = read(log, request(&[subject]));
    let mut checkpoint: Option<Checkpoint> = None;
    while checkpoint
        .as_ref()
        .is_none_or(|checkpoint| checkpoint.position < sequence)
    {
        let batch = reading.batch().await;
        checkpoint =
            Some(batch.checkpoint(checkpoint.as_ref(), batch.events.last(), batch.through));
    }
    checkpoint.expect("something was read")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_events_of_others_and_grew_again_is_another_history() {
    let place = Place::new();
    let log = place.open();
    append(&log, &[event("mine", "1"), event("others", "2")]);
    drop(log);
    let backup = place.folder.path().join("backup.redb");
    std::fs::copy(place.path(), &backup).expect("copies");
    let log = place.open();
    append(&log, &[event("others", "3"), event("others", "4")]);
    let checkpoint = folded(&log, "mine", 4).await;
    assert_eq!(
        checkpoint.last_event.as_ref().map(|mark| mark.sequence),
        Some(1)
    );
    assert_eq!(
        checkpoint.last_seen.as_ref().map(|mark| mark.sequence),
        Some(4)
    );
    drop(log);
    std::fs::copy(&backup, place.path()).expect("copies");
    let log = place.open();
    append(
        &log,
        &[event("mine", "5"), event("mine", "6"), event("mine", "7")],
    );

    let resumed = Request {
        resume: Some(checkpoint),
        ..request(&["mine"])
    };
    let error = read(&log, resumed).error().await;
    assert!(
        matches!(&error, Error::Diverged(message) if message.contains("event 4")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_another_creation_time_is_the_same_while_it_has_what_was_read() {
    let log = fresh();
    append_numbered(&log, 10);
    let mut moved = checkpoint(&log, 8);
    moved.stream.created_ns += 1;
    let batch = read(&log, resuming(&moved)).batch().await;
    assert_eq!(
        (batch.through, &*batch.stream),
        (10, &log.identity()),
        "its identity is the new one"
    );
    moved.last_event = None;
    let error = read(&log, resuming(&moved)).error().await;
    assert!(
        error.to_string().contains("nothing that was read is in it"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_only_when_wanted() {
    let log = fresh();
    let headers = vec![
        ("Event-Type".to_owned(), "Placed".to_owned()),
        ("X".to_owned(), "1".to_owned()),
    ];
    append(
        &log,
        &[NewEvent {
            headers,
            ..event("orders.1.a", "{}")
        }],
    );
    let without = read(&log, request(&[">"])).through(1).await;
    let with = read(
        &log,
        Request {
            wants_headers: true,
            ..request(&[">"])
        },
    )
    .through(1)
    .await;
    assert_eq!((&*without[0].kind, without[0].headers.len()), ("Placed", 0));
    assert_eq!(
        (
            &*with[0].kind,
            with[0].header("x"),
            with[0].header("event-type")
        ),
        ("Placed", Some("1"), Some("Placed"))
    );
    assert_eq!(EventMark::of(&with[0]), EventMark::of(&without[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudevents_are_the_same_in_both_forms() {
    let log = fresh();
    let pairs = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let binary = NewEvent {
        headers: pairs(&[
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/shop%20one"),
            ("ce-type", "shop.placed"),
            ("ce-correlationid", "c"),
            ("traceparent", "00-1-2-00"),
            ("Content-Type", "application/json"),
        ]),
        ..event("orders.1.x", "{\"total\":1}")
    };
    let envelope = r#"{"specversion":"1.0","id":"7","source":"/shop one","type":"shop.placed","correlationid":"c",
        "traceparent":"00-1-2-00","data":{"total":1}}"#;
    let structured = NewEvent {
        headers: pairs(&[("Content-Type", "application/cloudevents+json")]),
        ..event("orders.1.x", envelope)
    };
    append(&log, &[binary, structured]);
    for wants_headers in [true, false] {
        let events = read(
            &log,
            Request {
                wants_headers,
                ..request(&[">"])
            },
        )
        .through(2)
        .await;
        assert_eq!(events[0].headers, events[1].headers);
        assert_eq!(events[0].headers.is_empty(), !wants_headers);
        assert_eq!(events[0].data, events[1].data);
        assert_eq!(
            (&*events[0].kind, &*events[1].kind),
            ("shop.placed", "shop.placed")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn info_names_the_stream() {
    let log = fresh();
    append_numbered(&log, 3);
    let info = Embedded::new(log.clone()).info();
    assert_eq!((info.kind, info.stream.as_str()), ("embedded", "events"));
    assert_eq!(
        (info.first_sequence, info.last_sequence, info.events),
        (Some(1), Some(3), Some(3))
    );
    assert!(info.reachable && info.warnings.is_empty() && info.bytes > Some(0));
}

/// Cuts off the end of the first run of events in a file, and notes that all subjects are known, as
/// they are after many more events, so that opening does not read it. Returns the first sequence
/// after it.
fn damage_first_run(place: &Place, last: u64) -> u64 {
    const RUNS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("chunks");
    const SETTINGS: TableDefinition<'static, &'static str, &'static [u8]> =
        TableDefinition::new("log");
    let database = redb::Database::open(place.path()).expect("nobody has it open");
    let transaction = database.begin_write().expect("it can be written");
    let second = {
        let mut runs = transaction.open_table(RUNS).expect("it is there");
        let whole = runs
            .get(1)
            .expect("it can be read")
            .expect("it begins at 1")
            .value()
            .to_vec();
        runs.insert(1, &whole[..whole.len() - 10])
            .expect("it can be written");
        runs.iter()
            .expect("it can be read")
            .nth(1)
            .expect("there is another")
            .expect("it can be read")
            .0
            .value()
    };
    let mut settings = transaction.open_table(SETTINGS).expect("it is there");
    settings
        .insert("indexed_through", last.to_le_bytes().as_slice())
        .expect("it can be written");
    drop(settings);
    transaction.commit().expect("it is written");
    second
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_event_stops_the_readers_that_reach_it_and_no_others() {
    let place = Place::new();
    let log = place.open();
    for _ in 0..10 {
        append(
            &log,
            &(0..100)
                .map(|_| event("a.b", &"x".repeat(1_000)))
                .collect::<Vec<_>>(),
        );
    }
    let behind = checkpoint(&log, 900);
    drop(log);
    let second = damage_first_run(&place, 1_000);
    assert!(second < 900, "there are several runs");

    let log = place.open();
    let mut reading = read(&log, request(&[">"]));
    let mut events = 0;
    let error = loop {
        match timeout(DEADLINE, reading.reader.next())
            .await
            .expect("an outcome in time")
        {
            Ok(batch) => events += batch.events.len() as u64,
            Err(error) => break error,
        }
    };
    assert!(
        events < second - 1,
        "none is handed out that is damaged: {events} of {}",
        second - 1
    );
    assert_eq!(error.kind(), "source-log");
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert_eq!(reading.status.borrow().state, SourceState::Stopped);

    let mut other = read(&log, resuming(&behind));
    assert_eq!(other.through(1_000).await.len(), 100);
}
