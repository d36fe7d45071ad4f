//! What proves that a stream is the one that was read, and what becomes of events that it has lost.

use std::path::Path;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Source};
use foldstream::api::{SourceState, Start};
use foldstream::batch::Limits;
use foldstream::position::{Checkpoint, EarlierMarks};
use foldstream::source::jetstream::Options;
use foldstream::source::{Error, OnMissing, Request};

use crate::reading::{Reading, options, request};
use crate::server::{Server, Version, numbered, on_both_versions, orders, publish, until, within};

on_both_versions! {
    a_stream_that_lost_messages_of_others_and_grew_again_is_another_history
    a_backup_that_has_all_that_was_read_is_read_on
    restarts_edits_and_idempotent_creates_keep_a_state
    a_mirror_takes_the_place_of_its_origin
}

const MINE: &[&str] = &["orders.>"];
const ALL: &[&str] = &[">"];

/// A stream of orders and of others, filled with this many orders.
async fn mixed(server: &Server, count: u64) -> jetstream::Context {
    let jetstream = server.jetstream().await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    jetstream
        .create_stream(Config {
            subjects,
            ..orders()
        })
        .await
        .expect("stream");
    publish(&jetstream, numbered(0..count)).await;
    jetstream
}

async fn publish_others(jetstream: &jetstream::Context, count: u64) {
    publish(
        jetstream,
        (0..count).map(|_| ("audit.noise".to_owned(), "{}".to_owned())),
    )
    .await;
}

/// Reads through a sequence; the checkpoint that this leads to.
async fn folded(options: Options, request: Request, sequence: u64) -> Checkpoint {
    let mut checkpoint = request.resume.clone();
    let mut reading = Reading::begin(options, request);
    while checkpoint
        .as_ref()
        .is_none_or(|checkpoint| checkpoint.position < sequence)
    {
        let batch = reading.next().await.expect("the stream is sound");
        checkpoint =
            Some(batch.checkpoint(checkpoint.as_ref(), batch.events.last(), batch.through));
    }
    checkpoint.expect("something was read")
}

fn resuming(checkpoint: &Checkpoint, subjects: &[&str]) -> Request {
    Request {
        resume: Some(checkpoint.clone()),
        ..request(subjects)
    }
}

async fn error(server: &Server, request: Request) -> Error {
    error_of(options(server), request).await
}

async fn error_of(options: Options, request: Request) -> Error {
    let (events, error) = Reading::begin(options, request).error().await;
    assert!(events.is_empty(), "nothing is handed out: {error}");
    error
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from)
        .expect("folder can be read")
        .flatten()
    {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("folder can be made");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("file can be copied");
        }
    }
}

/// A copy of what a server stores; it is stopped for that.
pub(crate) async fn backup(server: &mut Server) -> tempfile::TempDir {
    server.kill();
    let backup = tempfile::tempdir().expect("temporary folder");
    copy(&server.folder().join("store"), backup.path());
    server.run().await;
    backup
}

/// Puts a copy in the place of what a server stores.
pub(crate) async fn restore(server: &mut Server, backup: &tempfile::TempDir) {
    server.kill();
    let store = server.folder().join("store");
    std::fs::remove_dir_all(&store).expect("folder can be removed");
    std::fs::create_dir_all(&store).expect("folder can be made");
    copy(backup.path(), &store);
    server.run().await;
}

async fn a_stream_that_lost_messages_of_others_and_grew_again_is_another_history(version: Version) {
    let mut server = Server::start_of(version).await;
    mixed(&server, 5).await;
    let backup = backup(&mut server).await;
    publish_others(&server.jetstream().await, 4).await;
    let checkpoint = folded(options(&server), request(MINE), 9).await;
    assert_eq!(
        checkpoint.last_event.as_ref().map(|mark| mark.sequence),
        Some(5)
    );
    assert_eq!(
        checkpoint.last_seen.as_ref().map(|mark| mark.sequence),
        Some(9),
        "seen, though of others"
    );

    restore(&mut server, &backup).await;
    let truncated = error(&server, resuming(&checkpoint, MINE)).await;
    assert!(
        matches!(
            truncated,
            Error::Truncated {
                last: 5,
                position: 9,
                ..
            }
        ),
        "{truncated}"
    );
    publish(&server.jetstream().await, numbered(5..15)).await;
    for subjects in [MINE, ALL] {
        let diverged = error(&server, resuming(&checkpoint, subjects)).await;
        assert!(
            matches!(&diverged, Error::Diverged(message) if message.contains("message 9")),
            "{diverged}"
        );
    }
}

#[tokio::test]
async fn another_creation_time_or_name_is_the_same_stream_while_it_has_what_was_read() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 5).await;
    publish_others(&jetstream, 1).await;
    let known = folded(options(&server), request(MINE), 6).await;
    let moved = |change: fn(&mut Checkpoint)| {
        let mut moved = known.clone();
        moved.stream.created_ns -= 1;
        change(&mut moved);
        moved
    };
    let changes: [fn(&mut Checkpoint); 3] = [
        |checkpoint| checkpoint.stream.name = "HUB".to_owned(),
        |checkpoint| checkpoint.last_seen = None,
        |checkpoint| checkpoint.last_event = None,
    ];
    for change in changes {
        let mut reading = Reading::begin(options(&server), resuming(&moved(change), MINE));
        let batch = reading.next().await.expect("it is the same stream");
        assert_eq!(
            (batch.through, &*batch.stream),
            (6, &known.stream),
            "its identity is the new one"
        );
    }
    let unproved = moved(|checkpoint| {
        (checkpoint.last_event, checkpoint.last_seen) = (None, None);
        checkpoint.earlier = EarlierMarks::default();
    });
    let diverged = error(&server, resuming(&unproved, MINE)).await;
    assert!(
        matches!(&diverged, Error::Diverged(message) if message.contains("created again")),
        "{diverged}"
    );
}

/// A backup that is restored under a running reader, and while one is away.
async fn a_backup_that_has_all_that_was_read_is_read_on(version: Version) {
    let mut server = Server::start_of(version).await;
    mixed(&server, 5).await;
    publish_others(&server.jetstream().await, 2).await;
    let known = folded(options(&server), request(MINE), 7).await;
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.through(7).await;
    let backup = backup(&mut server).await;
    restore(&mut server, &backup).await;
    publish(&server.jetstream().await, numbered(5..6)).await;
    assert_eq!(reading.events(1).await.1.through, 8);
    for subjects in [MINE, ALL] {
        let mut resumed = Reading::begin(options(&server), resuming(&known, subjects));
        assert_eq!(resumed.events(1).await.1.through, 8);
    }
}

/// When the stream was created, as the server says.
async fn created(server: &Server) -> i128 {
    let stream = server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream");
    stream.cached_info().created.unix_timestamp_nanos()
}

/// Everything at which servers are known to move the creation time.
async fn restarts_edits_and_idempotent_creates_keep_a_state(version: Version) {
    let mut server = Server::start_of(version).await;
    mixed(&server, 5).await;
    let known = folded(options(&server), request(MINE), 5).await;
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.events(5).await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    let config = Config {
        subjects,
        ..orders()
    };
    let edited = Config {
        description: Some("edited".to_owned()),
        ..config.clone()
    };
    let mut moves = Vec::new();
    for (number, is_edit) in (5..).zip([false, false, true, true, false]) {
        server.kill();
        server.run().await;
        let before = created(&server).await;
        let jetstream = server.jetstream().await;
        match is_edit {
            true => drop(
                jetstream
                    .update_stream(edited.clone())
                    .await
                    .expect("is edited"),
            ),
            false if number < 7 => drop(
                jetstream
                    .create_stream(config.clone())
                    .await
                    .expect("the same again"),
            ),
            false => drop(
                jetstream
                    .create_stream(edited.clone())
                    .await
                    .expect("the same again"),
            ),
        }
        server.kill();
        server.run().await;
        moves.push((is_edit, created(&server).await != before));
        publish(&server.jetstream().await, numbered(number..number + 1)).await;
        assert_eq!(reading.events(1).await.1.through, number + 1);
        let mut resumed = Reading::begin(options(&server), resuming(&known, MINE));
        assert_eq!(
            resumed.events(number as usize - 4).await.1.through,
            number + 1
        );
    }
    assert_eq!(
        moves.contains(&(true, true)),
        version == Version::Oldest,
        "by an edit: {moves:?}"
    );
}

#[tokio::test]
async fn a_stream_with_another_creation_time_is_the_same_also_if_what_was_read_last_is_gone() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 10).await;
    let known = folded(options(&server), request(MINE), 10).await;
    // As if a server had changed the time since, as those of 2.10 do.
    let mut known = known;
    known.stream.created_ns += 1;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    let continues = async |number: u64| {
        publish(&jetstream, numbered(number..number + 1)).await;
        let mut reading = Reading::begin(options(&server), resuming(&known, MINE));
        let (_, last) = reading.events(1 + number as usize - 10).await;
        assert_eq!(last.through, number + 1);
    };

    stream.delete_message(10).await.expect("is deleted");
    continues(10).await;
    // All that was read, and nothing else.
    stream.purge().sequence(11).await.expect("purge");
    continues(11).await;
    // Something else as well: nothing shows any more that it is the same.
    stream.purge().sequence(12).await.expect("purge");
    let stopped = error(&server, resuming(&known, MINE)).await;
    assert!(matches!(stopped, Error::Diverged(_)), "{stopped}");
    // A new stream has something else in the place of what was read.
    jetstream.delete_stream("ORDERS").await.expect("is deleted");
    mixed(&server, 0).await;
    publish_others(&jetstream, 9).await;
    publish(&jetstream, numbered(10..12)).await;
    let stopped = error(&server, resuming(&known, MINE)).await;
    assert!(matches!(stopped, Error::Diverged(_)), "{stopped}");
}

/// A mirror is read in the place of its origin, and then promoted: it becomes a stream of its own,
/// whose origin is gone.
async fn a_mirror_takes_the_place_of_its_origin(version: Version) {
    let server = Server::start_of(version).await;
    let jetstream = mixed(&server, 10).await;
    let known = folded(options(&server), request(MINE), 10).await;
    let mirror = Some(Source {
        name: "ORDERS".to_owned(),
        ..Source::default()
    });
    let edge = Config {
        name: "EDGE".to_owned(),
        mirror,
        ..Config::default()
    };
    jetstream.create_stream(edge.clone()).await.expect("mirror");
    let mirrored = async |sequence: u64| {
        until("the mirror is whole", async || {
            let info = jetstream
                .get_stream("EDGE")
                .await
                .expect("mirror")
                .cached_info()
                .clone();
            (info.state.last_sequence == sequence).then_some(())
        })
        .await;
    };
    mirrored(10).await;
    publish(&jetstream, numbered(10..11)).await;
    mirrored(11).await;
    let of_edge = Options {
        stream: "EDGE".to_owned(),
        ..options(&server)
    };
    let checkpoint = folded(of_edge.clone(), resuming(&known, MINE), 11).await;
    assert_eq!(
        (checkpoint.position, checkpoint.stream.name.as_str()),
        (11, "EDGE")
    );
    let mut live = [MINE, ALL]
        .map(|subjects| Reading::begin(of_edge.clone(), resuming(&checkpoint, subjects)));
    for reading in &mut live {
        reading.through(11).await;
    }

    jetstream
        .delete_stream("ORDERS")
        .await
        .expect("the origin is gone");
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    let promoted = jetstream
        .update_stream(Config {
            mirror: None,
            subjects,
            ..edge
        })
        .await;
    if version == Version::Oldest {
        assert!(promoted.is_err(), "it can't promote a mirror");
        return;
    }
    promoted.expect("the mirror is promoted");
    publish(&jetstream, numbered(11..12)).await;
    for reading in &mut live {
        assert_eq!(
            reading.events(1).await.1.through,
            12,
            "who was there all the time"
        );
    }
    for (from, subjects) in [(&known, MINE), (&checkpoint, MINE), (&checkpoint, ALL)] {
        let checkpoint = folded(of_edge.clone(), resuming(from, subjects), 12).await;
        assert_eq!((checkpoint.position, checkpoint.missing), (12, 0));
    }
}

/// How events vanish while nobody reads.
#[derive(Clone, Copy, Debug)]
enum Way {
    Keep,
    RollUpOne,
    RollUpAll,
    Expire,
}

/// Publishes one message with a header.
async fn send(jetstream: &jetstream::Context, subject: &str, (name, value): (&str, &str)) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(name, value);
    let sent = jetstream
        .publish_with_headers(subject.to_owned(), headers, "{\"number\":1}".into())
        .await;
    within("it is stored", async { sent.expect("published").await })
        .await
        .expect("the stream takes it");
}

#[tokio::test]
async fn whatever_removes_events_while_a_reader_is_away_is_reported_with_their_number() {
    // After 3 events that were read come those under 10 subjects, 3 of each, and what removes some
    // of them.
    for (way, wanted) in [
        (Way::Keep, "29 events (4 to 32) are gone"),
        (Way::RollUpOne, "3 events (between 5 and 25) are gone"),
        (Way::RollUpAll, "30 events (4 to 33) are gone"),
        (Way::Expire, "1 event (34) is gone"),
    ] {
        let server = Server::start().await;
        let jetstream = server.jetstream().await;
        let config = Config {
            allow_rollup: true,
            allow_message_ttl: true,
            ..orders()
        };
        let stream = jetstream.create_stream(config).await.expect("stream");
        publish(&jetstream, numbered(0..3)).await;
        let known = folded(options(&server), request(ALL), 3).await;
        publish(&jetstream, numbered(0..30)).await;
        match way {
            Way::Keep => drop(stream.purge().keep(1).await.expect("purge")),
            Way::RollUpOne => send(&jetstream, "orders.1.placed", ("Nats-Rollup", "sub")).await,
            Way::RollUpAll => send(&jetstream, "orders.1.placed", ("Nats-Rollup", "all")).await,
            Way::Expire => send(&jetstream, "orders.1.placed", ("Nats-TTL", "1s")).await,
        }
        publish(&jetstream, numbered(30..31)).await;
        if matches!(way, Way::Expire) {
            until("it has expired", async || {
                stream.get_raw_message(34).await.is_err().then_some(())
            })
            .await;
        }
        for subjects in [&[">"][..], &["orders.*.*", "none.>"]] {
            let gap = error(&server, resuming(&known, subjects)).await;
            assert!(matches!(&gap, Error::Gap { .. }), "{way:?}: {gap}");
            assert!(
                gap.to_string().contains(wanted),
                "{way:?}, {subjects:?}: {gap}"
            );
        }
    }
}

#[tokio::test]
async fn what_a_schedule_publishes_is_an_event_now_and_in_a_replay() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let stream = Config {
        allow_message_ttl: true,
        allow_message_schedules: true,
        ..orders()
    };
    jetstream.create_stream(stream).await.expect("stream");
    let mut live = Reading::begin(options(&server), request(ALL));
    publish(&jetstream, numbered(0..1)).await;
    assert_eq!(live.events(1).await.0.len(), 1);
    let soon = jiff::Timestamp::now() + std::time::Duration::from_secs(2);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(
        "Nats-Schedule",
        format!("@at {}", soon.strftime("%Y-%m-%dT%H:%M:%SZ")).as_str(),
    );
    headers.insert("Nats-Schedule-Target", "orders.later.placed");
    let sent = jetstream
        .publish_with_headers("orders.plan", headers, "{\"number\":7}".into())
        .await;
    within("it is stored", async { sent.expect("published").await })
        .await
        .expect("the stream takes it");
    let (events, last) = live.events(1).await;
    assert_eq!(
        (events[0].subject.as_ref(), events[0].data.as_str()),
        ("orders.later.placed", Some("{\"number\":7}"))
    );

    // The schedule itself is removed by the server once it has fired, which no reader may mistake
    // for a loss that it does not have to accept.
    let accepting = Request {
        accepts_missing_through: last.through,
        ..request(ALL)
    };
    let replayed = Reading::begin(options(&server), accepting)
        .through(last.through)
        .await;
    let numbers: Vec<_> = replayed
        .iter()
        .map(|event| event.subject.to_string())
        .collect();
    assert_eq!(numbers, ["orders.0.placed", "orders.later.placed"]);
}

#[tokio::test]
async fn a_verdict_that_does_not_repeat_stops_nothing() {
    let mut server = Server::start().await;
    mixed(&server, 5).await;
    let old = backup(&mut server).await;
    publish(&server.jetstream().await, numbered(5..9)).await;
    let known = folded(options(&server), request(MINE), 9).await;
    let whole = backup(&mut server).await;
    restore(&mut server, &old).await;
    let mut reading = Reading::begin(options(&server), resuming(&known, MINE));
    let mut status = reading.status.clone();
    let suspects = async {
        let suspects = |status: &foldstream::source::Status| {
            status
                .message
                .as_ref()
                .is_some_and(|message| message.contains("source-truncated"))
        };
        let found = status
            .wait_for(suspects)
            .await
            .expect("the reader lives")
            .clone();
        assert_eq!(
            found.state,
            SourceState::Reconnecting,
            "nothing is stopped yet"
        );
    };
    within("the reader suspects", async {
        tokio::select! {
            () = suspects => {}
            batch = reading.reader.next() => panic!("nothing is there to read: {batch:?}"),
        }
    })
    .await;
    // As if the leader had only now read all of its disk.
    restore(&mut server, &whole).await;
    publish(&server.jetstream().await, numbered(9..10)).await;
    assert_eq!(reading.events(1).await.1.through, 10);
}

/// Deletes orders in the middle and at the end.
async fn punch(jetstream: &jetstream::Context) {
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    for sequence in [7, 8, 20] {
        stream.delete_message(sequence).await.expect("is deleted");
    }
}

#[tokio::test]
async fn events_deleted_in_the_middle_or_at_the_end_stop_a_reader_unless_accepted() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 20).await;
    let early = [folded(options(&server), request(MINE), 1).await];
    let at = |position| Checkpoint {
        position,
        last_event: None,
        ..early[0].clone()
    };
    punch(&jetstream).await;
    for subjects in [MINE, ALL] {
        // A new state.
        let incomplete = error(&server, request(subjects)).await;
        assert!(
            matches!(incomplete, Error::Incomplete { .. }),
            "{incomplete}"
        );
        assert!(
            incomplete
                .to_string()
                .contains("3 events (between 7 and 20) are gone"),
            "{incomplete}"
        );
        // One that has some of them, or all.
        for (position, told) in [
            (6, "3 events (between 7 and 20)"),
            (7, "2 events (between 8 and 20)"),
            (8, "1 event (20)"),
        ] {
            let gap = error(&server, resuming(&at(position), subjects)).await;
            assert!(
                matches!(&gap, Error::Gap { .. }) && gap.to_string().contains(told),
                "{subjects:?}: {gap}"
            );
        }
        let partly = Request {
            accepts_missing_through: 8,
            ..request(subjects)
        };
        assert!(
            error(&server, partly)
                .await
                .to_string()
                .contains("1 event (20) is gone")
        );
        // Accepted, they are counted, once.
        for (resume, missing) in [(None, 3), (Some(at(7)), 2), (Some(at(20)), 0)] {
            let accepted = Request {
                resume: resume.clone(),
                accepts_missing_through: 20,
                ..request(subjects)
            };
            let checkpoint = folded(options(&server), accepted, 20).await;
            assert_eq!(
                (checkpoint.position, checkpoint.missing),
                (20, missing),
                "{subjects:?} after {resume:?}"
            );
            assert_eq!(
                checkpoint.begins_after,
                if resume.is_none() {
                    Some(0)
                } else {
                    early[0].begins_after
                }
            );
        }
    }
}

#[tokio::test]
async fn a_purge_by_subject_while_a_reader_is_away_is_reported_with_its_number() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 2).await;
    let known = folded(options(&server), request(MINE), 2).await;
    publish(
        &jetstream,
        (0..20)
            .flat_map(|_| ["bob", "ada"].map(|name| (format!("orders.{name}"), "{}".to_owned()))),
    )
    .await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    stream.purge().filter("orders.ada").await.expect("purge");
    for subjects in [MINE, ALL] {
        let gap = error(&server, resuming(&known, subjects)).await;
        assert!(
            gap.to_string()
                .starts_with("20 events (between 4 and 42) are gone from stream ORDERS"),
            "{gap}"
        );
        let counting = Options {
            on_missing: OnMissing::Count,
            ..options(&server)
        };
        let checkpoint = folded(counting, resuming(&known, subjects), 42).await;
        assert_eq!(checkpoint.missing, 20, "{subjects:?}");
    }
}

#[tokio::test]
async fn events_deleted_in_front_of_a_running_reader_are_a_gap() {
    // More than the server sends ahead, so that the rest is still there to be deleted.
    for subjects in [MINE, ALL] {
        let server = Server::start().await;
        let jetstream = mixed(&server, 40_000).await;
        let limits = Limits {
            events: 100,
            bytes: 64 << 10,
        };
        let mut reading = Reading::begin(
            options(&server),
            Request {
                limits,
                ..request(subjects)
            },
        );
        reading.events(100).await;
        let stream = jetstream.get_stream("ORDERS").await.expect("stream");
        for sequence in [39_000, 39_001, 40_000] {
            stream.delete_message(sequence).await.expect("is deleted");
        }
        let (events, gap) = reading.error().await;
        assert_eq!(
            events.last().map(|event| event.sequence),
            Some(38_999),
            "all that precedes it is handed out"
        );
        assert!(gap.to_string().contains("39000"), "{gap}");
    }
}

#[tokio::test]
async fn a_limit_on_subjects_makes_no_loss_silent() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        max_messages_per_subject: 1_000_000,
        ..orders()
    };
    let stream = jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..20)).await;
    let known = folded(options(&server), request(ALL), 5).await;
    let known = Checkpoint {
        position: 5,
        last_event: None,
        ..known
    };
    stream.purge().sequence(11).await.expect("purge");
    let gap = error(&server, resuming(&known, ALL)).await;
    assert!(
        gap.to_string().contains("5 events (6 to 10) are gone"),
        "{gap}"
    );
}

#[tokio::test]
async fn messages_of_others_that_go_while_a_reader_is_live_are_nothing_to_it() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 3).await;
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.events(3).await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    for round in 0..6 {
        publish_others(&jetstream, 5).await;
        stream.purge().filter("audit.>").await.expect("purge");
        // An event of ours passes over them, or a heartbeat.
        if round % 2 == 0 {
            publish(&jetstream, numbered(3 + round..4 + round)).await;
        } else {
            publish_others(&jetstream, 1).await;
        }
        let last = reading.batch_through(9 + round * 6).await;
        assert_eq!(last.through, 9 + round * 6, "it continues");
        assert!(last.missing.is_empty());
    }
    stream.purge().filter("audit.>").await.expect("purge");
    // One that begins now has to ask, as they may have been for it.
    let incomplete = error(&server, request(MINE)).await;
    assert!(
        incomplete
            .to_string()
            .contains("33 events (between 4 and 39) are gone"),
        "{incomplete}"
    );
}

#[tokio::test]
async fn a_mirror_of_some_subjects_has_gaps_by_design() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 0).await;
    publish_others(&jetstream, 3).await;
    publish(&jetstream, numbered(0..2)).await;
    publish_others(&jetstream, 3).await;
    publish(&jetstream, numbered(2..4)).await;
    let mirror = Some(Source {
        name: "ORDERS".to_owned(),
        filter_subject: Some("orders.>".to_owned()),
        ..Source::default()
    });
    let edge = Config {
        name: "EDGE".to_owned(),
        mirror,
        ..Config::default()
    };
    jetstream.create_stream(edge).await.expect("mirror");
    let edge = Options {
        stream: "EDGE".to_owned(),
        ..options(&server)
    };
    for subjects in [MINE, ALL] {
        let checkpoint = folded(edge.clone(), request(subjects), 10).await;
        assert_eq!(
            (checkpoint.position, checkpoint.missing),
            (10, 0),
            "{subjects:?}"
        );
    }
}

#[tokio::test]
async fn a_promoted_mirror_of_some_subjects_is_read_on_and_what_it_never_had_is_gone() {
    // The mirror has 1, 2, 6 and 7; the others are not of its subjects.
    let server = Server::start().await;
    let jetstream = mixed(&server, 2).await;
    publish_others(&jetstream, 3).await;
    publish(&jetstream, numbered(2..4)).await;
    let mirror = Source {
        name: "ORDERS".to_owned(),
        filter_subject: Some("orders.>".to_owned()),
        ..Source::default()
    };
    let edge = Config {
        name: "EDGE".to_owned(),
        mirror: Some(mirror),
        ..Config::default()
    };
    jetstream.create_stream(edge.clone()).await.expect("mirror");
    let of_edge = Options {
        stream: "EDGE".to_owned(),
        ..options(&server)
    };
    let half = Request {
        limits: Limits {
            events: 2,
            bytes: 1 << 20,
        },
        ..request(MINE)
    };
    let half = folded(of_edge.clone(), half, 2).await;
    assert_eq!(half.position, 2);
    let whole = folded(of_edge.clone(), request(MINE), 7).await;
    let mut live = [MINE, ALL].map(|subjects| Reading::begin(of_edge.clone(), request(subjects)));
    for reading in &mut live {
        reading.through(7).await;
    }

    jetstream
        .delete_stream("ORDERS")
        .await
        .expect("the origin is gone");
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    jetstream
        .update_stream(Config {
            mirror: None,
            subjects,
            ..edge
        })
        .await
        .expect("the mirror is promoted");
    publish(&jetstream, numbered(4..5)).await;
    publish_others(&jetstream, 1).await;
    publish(&jetstream, numbered(5..6)).await;
    let sequences = |events: &[foldstream::event::Event]| {
        events
            .iter()
            .map(|event| event.sequence)
            .collect::<Vec<_>>()
    };
    let [mine, all] = &mut live;
    assert_eq!(
        sequences(&mine.through(10).await),
        [8, 10],
        "who was there all the time"
    );
    assert_eq!(sequences(&all.through(10).await), [8, 9, 10]);
    for subjects in [MINE, ALL] {
        let resumed = folded(of_edge.clone(), resuming(&whole, subjects), 10).await;
        assert_eq!((resumed.position, resumed.missing), (10, 0), "{subjects:?}");
        // Nothing says any more that it never had them.
        let gap = error_of(of_edge.clone(), resuming(&half, subjects)).await;
        assert!(
            gap.to_string()
                .starts_with("3 events (3 to 5) are gone from stream EDGE"),
            "{subjects:?}: {gap}"
        );
        let incomplete = error_of(of_edge.clone(), request(subjects)).await;
        assert!(
            matches!(incomplete, Error::Incomplete { .. }),
            "{subjects:?}: {incomplete}"
        );
        for resume in [None, Some(half.clone())] {
            let accepting = Request {
                resume,
                accepts_missing_through: 7,
                ..request(subjects)
            };
            let accepted = folded(of_edge.clone(), accepting, 10).await;
            assert_eq!(
                (accepted.position, accepted.missing),
                (10, 3),
                "{subjects:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_went_in_front_is_not_missed_by_who_begins_at_what_is_there() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 20).await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    stream.purge().sequence(6).await.expect("purge");
    let first = Request {
        start: Start::FirstAvailable,
        ..request(ALL)
    };
    let checkpoint = folded(options(&server), first.clone(), 20).await;
    assert_eq!((checkpoint.begins_after, checkpoint.missing), (Some(5), 0));
    stream.delete_message(9).await.expect("is deleted");
    let incomplete = error(&server, first.clone()).await;
    assert!(
        incomplete.to_string().contains("1 event (9) is gone"),
        "{incomplete}"
    );
    let accepted = folded(
        options(&server),
        Request {
            accepts_missing_through: 20,
            ..first
        },
        20,
    )
    .await;
    assert_eq!((accepted.begins_after, accepted.missing), (Some(5), 1));
}
