//! What proves that a stream is the one that was read, and what becomes of events that it has lost.

use std::path::Path;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Source};
use foldstream::api::{SourceState, Start};
use foldstream::batch::Limits;
use foldstream::position::Checkpoint;
use foldstream::source::jetstream::Options;
use foldstream::source::{Error, OnMissing, Request};

use crate::reading::{Reading, options, request};
use crate::server::{Server, numbered, orders, publish, until, within};

const MINE: &[&str] = &["orders.>"];
const ALL: &[&str] = &[">"];

/// A stream of orders and of others, filled with so many orders.
async fn mixed(server: &Server, count: u64) -> jetstream::Context {
    let jetstream = server.jetstream().await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    jetstream.create_stream(Config { subjects, ..orders() }).await.expect("stream");
    publish(&jetstream, numbered(0..count)).await;
    jetstream
}

async fn publish_others(jetstream: &jetstream::Context, count: u64) {
    publish(jetstream, (0..count).map(|_| ("audit.noise".to_owned(), "{}".to_owned()))).await;
}

/// Reads through a sequence; the checkpoint that this leads to.
async fn folded(options: Options, request: Request, sequence: u64) -> Checkpoint {
    let mut checkpoint = request.resume.clone();
    let mut reading = Reading::begin(options, request);
    while checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.position < sequence) {
        let batch = reading.next().await.expect("the stream is sound");
        checkpoint = Some(batch.checkpoint(checkpoint.as_ref(), batch.events.last(), batch.through));
    }
    checkpoint.expect("something was read")
}

fn resuming(checkpoint: &Checkpoint, subjects: &[&str]) -> Request {
    Request { resume: Some(checkpoint.clone()), ..request(subjects) }
}

async fn error(server: &Server, request: Request) -> Error {
    let (events, error) = Reading::begin(options(server), request).error().await;
    assert!(events.is_empty(), "nothing is handed out: {error}");
    error
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("folder can be read").flatten() {
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
async fn backup(server: &mut Server) -> tempfile::TempDir {
    server.kill();
    let backup = tempfile::tempdir().expect("temporary folder");
    copy(&server.folder().join("store"), backup.path());
    server.run().await;
    backup
}

/// Puts a copy in the place of what a server stores.
async fn restore(server: &mut Server, backup: &tempfile::TempDir) {
    server.kill();
    let store = server.folder().join("store");
    std::fs::remove_dir_all(&store).expect("folder can be removed");
    std::fs::create_dir_all(&store).expect("folder can be made");
    copy(backup.path(), &store);
    server.run().await;
}

#[tokio::test]
async fn a_stream_that_lost_messages_of_others_and_grew_again_is_another_history() {
    let mut server = Server::start().await;
    mixed(&server, 5).await;
    let backup = backup(&mut server).await;
    publish_others(&server.jetstream().await, 4).await;
    let checkpoint = folded(options(&server), request(MINE), 9).await;
    assert_eq!(checkpoint.last_event.as_ref().map(|mark| mark.sequence), Some(5));
    assert_eq!(checkpoint.last_seen.as_ref().map(|mark| mark.sequence), Some(9), "seen, though of others");

    restore(&mut server, &backup).await;
    let truncated = error(&server, resuming(&checkpoint, MINE)).await;
    assert!(matches!(truncated, Error::Truncated { last: 5, position: 9, .. }), "{truncated}");
    publish(&server.jetstream().await, numbered(5..15)).await;
    for subjects in [MINE, ALL] {
        let diverged = error(&server, resuming(&checkpoint, subjects)).await;
        assert!(matches!(&diverged, Error::Diverged(message) if message.contains("message 9")), "{diverged}");
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
        assert_eq!((batch.through, &*batch.stream), (6, &known.stream), "its identity is the new one");
    }
    let unproved = moved(|checkpoint| (checkpoint.last_event, checkpoint.last_seen) = (None, None));
    let diverged = error(&server, resuming(&unproved, MINE)).await;
    assert!(matches!(&diverged, Error::Diverged(message) if message.contains("created again")), "{diverged}");
}

/// What servers are known to move the creation time at; on those that do not, nothing may happen either.
#[tokio::test]
async fn restarts_edits_and_idempotent_creates_keep_a_state() {
    let mut server = Server::start().await;
    let jetstream = mixed(&server, 5).await;
    let known = folded(options(&server), request(MINE), 5).await;
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.events(5).await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    let config = Config { subjects, ..orders() };
    jetstream.create_stream(config.clone()).await.expect("the same again");
    server.kill();
    server.run().await;
    let edited = Config { description: Some("edited".to_owned()), ..config };
    server.jetstream().await.update_stream(edited).await.expect("is edited");
    server.kill();
    server.run().await;
    publish(&server.jetstream().await, numbered(5..6)).await;
    assert_eq!(reading.events(1).await.1.through, 6);
    let mut resumed = Reading::begin(options(&server), resuming(&known, MINE));
    assert_eq!(resumed.events(1).await.1.through, 6);
}

#[tokio::test]
async fn a_promoted_mirror_continues_what_was_read_from_its_origin() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 10).await;
    let known = folded(options(&server), request(MINE), 10).await;
    let mirror = Some(Source { name: "ORDERS".to_owned(), ..Source::default() });
    let edge = Config { name: "EDGE".to_owned(), mirror, ..Config::default() };
    jetstream.create_stream(edge).await.expect("mirror");
    until("the mirror is whole", async || {
        let info = jetstream.get_stream("EDGE").await.expect("mirror").cached_info().clone();
        (info.state.last_sequence == 10).then_some(())
    })
    .await;
    publish(&jetstream, numbered(11..12)).await;
    let edge = Options { stream: "EDGE".to_owned(), ..options(&server) };
    let checkpoint = folded(edge, resuming(&known, MINE), 11).await;
    assert_eq!((checkpoint.position, checkpoint.stream.name.as_str()), (11, "EDGE"));
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
            status.message.as_ref().is_some_and(|message| message.contains("source-truncated"))
        };
        let found = status.wait_for(suspects).await.expect("the reader lives").clone();
        assert_eq!(found.state, SourceState::Reconnecting, "nothing is stopped yet");
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
    let at = |position| Checkpoint { position, last_event: None, ..early[0].clone() };
    punch(&jetstream).await;
    for subjects in [MINE, ALL] {
        // A new state.
        let incomplete = error(&server, request(subjects)).await;
        assert!(matches!(incomplete, Error::Incomplete { .. }), "{incomplete}");
        assert!(incomplete.to_string().contains("3 events (between 7 and 20) are gone"), "{incomplete}");
        // One that has some of them, or all.
        for (position, told) in
            [(6, "3 events (between 7 and 20)"), (7, "2 events (between 8 and 20)"), (8, "1 event (20)")]
        {
            let gap = error(&server, resuming(&at(position), subjects)).await;
            assert!(matches!(&gap, Error::Gap { .. }) && gap.to_string().contains(told), "{subjects:?}: {gap}");
        }
        let partly = Request { accepts_missing_through: 8, ..request(subjects) };
        assert!(error(&server, partly).await.to_string().contains("1 event (20) is gone"));
        // Accepted, they are counted, once.
        for (resume, missing) in [(None, 3), (Some(at(7)), 2), (Some(at(20)), 0)] {
            let accepted = Request { resume: resume.clone(), accepts_missing_through: 20, ..request(subjects) };
            let checkpoint = folded(options(&server), accepted, 20).await;
            assert_eq!((checkpoint.position, checkpoint.missing), (20, missing), "{subjects:?} after {resume:?}");
            assert_eq!(checkpoint.begins_after, if resume.is_none() { Some(0) } else { early[0].begins_after });
        }
    }
}

#[tokio::test]
async fn a_purge_by_subject_while_a_reader_is_away_is_told_with_its_number() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 2).await;
    let known = folded(options(&server), request(MINE), 2).await;
    publish(&jetstream, (0..20).flat_map(|_| ["bob", "ada"].map(|name| (format!("orders.{name}"), "{}".to_owned()))))
        .await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    stream.purge().filter("orders.ada").await.expect("purge");
    for subjects in [MINE, ALL] {
        let gap = error(&server, resuming(&known, subjects)).await;
        assert!(gap.to_string().starts_with("20 events (between 4 and 42) are gone from stream ORDERS"), "{gap}");
        let counting = Options { on_missing: OnMissing::Count, ..options(&server) };
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
        let limits = Limits { events: 100, bytes: 64 << 10 };
        let mut reading = Reading::begin(options(&server), Request { limits, ..request(subjects) });
        reading.events(100).await;
        let stream = jetstream.get_stream("ORDERS").await.expect("stream");
        for sequence in [39_000, 39_001, 40_000] {
            stream.delete_message(sequence).await.expect("is deleted");
        }
        let (events, gap) = reading.error().await;
        assert_eq!(events.last().map(|event| event.sequence), Some(38_999), "all that precedes it is handed out");
        assert!(gap.to_string().contains("39000"), "{gap}");
    }
}

#[tokio::test]
async fn a_limit_on_subjects_makes_no_loss_silent() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config { max_messages_per_subject: 1_000_000, ..orders() };
    let stream = jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..20)).await;
    let known = folded(options(&server), request(ALL), 5).await;
    let known = Checkpoint { position: 5, last_event: None, ..known };
    stream.purge().sequence(11).await.expect("purge");
    let gap = error(&server, resuming(&known, ALL)).await;
    assert!(gap.to_string().contains("5 events (6 to 10) are gone"), "{gap}");
}

#[tokio::test]
async fn messages_of_others_that_go_while_a_reader_is_live_are_nothing_to_it() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 3).await;
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.events(3).await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    for round in 0..3 {
        publish_others(&jetstream, 5).await;
        stream.purge().filter("audit.>").await.expect("purge");
        publish(&jetstream, numbered(3 + round..4 + round)).await;
        let (_, last) = reading.events(1).await;
        assert_eq!(last.through, 9 + round * 6, "it goes on");
        assert!(last.missing.is_empty());
    }
    // One that begins now has to ask, as they may have been for it.
    let incomplete = error(&server, request(MINE)).await;
    assert!(incomplete.to_string().contains("15 events (between 4 and 20) are gone"), "{incomplete}");
}

#[tokio::test]
async fn a_mirror_of_some_subjects_has_gaps_by_design() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 0).await;
    publish_others(&jetstream, 3).await;
    publish(&jetstream, numbered(0..2)).await;
    publish_others(&jetstream, 3).await;
    publish(&jetstream, numbered(2..4)).await;
    let mirror =
        Some(Source { name: "ORDERS".to_owned(), filter_subject: Some("orders.>".to_owned()), ..Source::default() });
    let edge = Config { name: "EDGE".to_owned(), mirror, ..Config::default() };
    jetstream.create_stream(edge).await.expect("mirror");
    let edge = Options { stream: "EDGE".to_owned(), ..options(&server) };
    for subjects in [MINE, ALL] {
        let checkpoint = folded(edge.clone(), request(subjects), 10).await;
        assert_eq!((checkpoint.position, checkpoint.missing), (10, 0), "{subjects:?}");
    }
}

#[tokio::test]
async fn what_went_in_front_is_not_missed_by_who_begins_at_what_is_there() {
    let server = Server::start().await;
    let jetstream = mixed(&server, 20).await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    stream.purge().sequence(6).await.expect("purge");
    let first = Request { start: Start::FirstAvailable, ..request(ALL) };
    let checkpoint = folded(options(&server), first.clone(), 20).await;
    assert_eq!((checkpoint.begins_after, checkpoint.missing), (Some(5), 0));
    stream.delete_message(9).await.expect("is deleted");
    let incomplete = error(&server, first.clone()).await;
    assert!(incomplete.to_string().contains("1 event (9) is gone"), "{incomplete}");
    let accepted = folded(options(&server), Request { accepts_missing_through: 20, ..first }, 20).await;
    assert_eq!((accepted.begins_after, accepted.missing), (Some(5), 1));
}
