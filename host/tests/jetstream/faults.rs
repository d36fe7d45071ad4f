//! What a reader does when the server or the stream fails it.

use std::path::Path;

use async_nats::jetstream::stream::Config;
use foldstream::api::{SourceState, Start};
use foldstream::batch::Limits;
use foldstream::position::Checkpoint;
use foldstream::source::{Error, Missing, Request};

use crate::reading::{Reading, checkpoint, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, within};

const SMALL: Limits = Limits {
    events: 50,
    bytes: 1 << 20,
};

/// A server with a stream of `count` numbered events.
async fn stream_of(count: u64) -> Server {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..count)).await;
    server
}

/// A checkpoint behind the first `count` events.
async fn checkpoint_behind(server: &Server, count: usize) -> Checkpoint {
    // One event a batch: a batch that is cut by what has arrived would reach past the place.
    let limits = Limits {
        events: 1,
        bytes: 64 << 20,
    };
    let mut reading = Reading::begin(
        options(server),
        Request {
            limits,
            ..request(&[">"])
        },
    );
    let mut events = 0;
    loop {
        let batch = reading.next().await.expect("the stream is sound");
        events += batch.events.len();
        assert!(events <= count, "read past the place for the checkpoint");
        if events == count {
            return checkpoint(&batch);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder is writable");
    for entry in std::fs::read_dir(from).expect("folder is readable") {
        let entry = entry.expect("folder is readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("entry has a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("file can be copied");
        }
    }
}

#[tokio::test]
async fn server_killed_in_mid_read_loses_and_doubles_nothing() {
    let mut server = stream_of(30_000).await;
    let mut reading = Reading::begin(
        options(&server),
        Request {
            limits: SMALL,
            ..request(&[">"])
        },
    );
    let mut events = Vec::new();
    for round in 1..=3 {
        events.extend(reading.events(4_000).await.0);
        server.kill();
        // What had come before the kill is still good.
        assert_eq!(
            numbers(&events),
            (0..events.len() as u64).collect::<Vec<_>>()
        );
        server.run().await;
        assert!(events.len() >= round * 4_000);
    }
    events.extend(reading.events(30_000 - events.len()).await.0);

    assert_eq!(numbers(&events), (0..30_000).collect::<Vec<_>>());
    // What came before a kill is read first, so that one connection may have outlived several of
    // them.
    assert!(reading.status.borrow().reconnects >= 1);
    assert_eq!(reading.status.borrow().state, SourceState::Reading);
}

#[tokio::test]
async fn idle_reader_survives_a_restart_of_the_server() {
    let mut server = stream_of(10).await;
    for (round, subjects) in [&[">"], &["orders.*.placed"]].into_iter().enumerate() {
        let count = 10 + round as u64;
        let mut reading = Reading::begin(options(&server), request(subjects));
        assert_eq!(reading.events(count as usize).await.1.pending, 0);
        server.kill();
        reading.state(SourceState::Reconnecting).await;
        server.run().await;
        reading.state(SourceState::Reading).await;
        publish(&server.jetstream().await, numbered(count..count + 1)).await;
        assert_eq!(numbers(&reading.events(1).await.0), [count]);
    }
}

#[tokio::test]
async fn consumer_deleted_under_the_reader_is_created_again() {
    let server = stream_of(20_000).await;
    let mut reading = Reading::begin(
        options(&server),
        Request {
            limits: SMALL,
            ..request(&[">"])
        },
    );
    let (mut events, _) = reading.events(1_000).await;
    let stream = server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream");
    for _ in 0..3 {
        let names: Vec<String> = {
            use futures_util::TryStreamExt;
            within("consumers", stream.consumer_names().try_collect())
                .await
                .expect("consumers")
        };
        for name in names {
            stream.delete_consumer(&name).await.expect("deletion");
        }
        // More than may already have been on its way.
        events.extend(reading.events(6_000).await.0);
    }
    events.extend(reading.events(20_000 - events.len()).await.0);
    assert_eq!(numbers(&events), (0..20_000).collect::<Vec<_>>());
    assert!(reading.status.borrow().reconnects >= 1);
}

#[tokio::test]
async fn server_that_comes_up_late_is_waited_for() {
    let mut server = Server::prepare("");
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let mut status = reading.status.clone();
    let waiting = async {
        let told = status
            .wait_for(|status| status.message.is_some())
            .await
            .expect("the reader lives");
        assert_eq!(told.state, SourceState::Connecting);
        assert!(
            told.message
                .as_ref()
                .is_some_and(|message| message.contains("cannot connect"))
        );
    };
    within("the reader tells of its trouble", async {
        tokio::select! {
            () = waiting => {}
            batch = reading.reader.next() => panic!("nothing is there to read: {batch:?}"),
        }
    })
    .await;
    server.run().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..5)).await;
    assert_eq!(
        numbers(&reading.events(5).await.0),
        (0..5).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn missing_stream_is_named_and_waited_for() {
    let server = Server::start().await;
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let message = reading.state(SourceState::StreamMissing).await;
    assert!(message.contains("ORDERS does not exist"), "{message}");

    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..5)).await;
    assert_eq!(
        numbers(&reading.events(5).await.0),
        (0..5).collect::<Vec<_>>()
    );
    assert_eq!(reading.status.borrow().state, SourceState::Reading);
}

#[tokio::test]
async fn stream_deleted_and_created_again_has_diverged() {
    let server = stream_of(10).await;
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let (_, last) = reading.events(10).await;
    let jetstream = server.jetstream().await;
    jetstream.delete_stream("ORDERS").await.expect("deletion");
    reading.state(SourceState::StreamMissing).await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..20)).await;

    let (events, error) = reading.error().await;
    assert!(events.is_empty());
    assert!(
        matches!(&error, Error::Diverged(message) if message.contains("is not the one that was \
            read before")),
        "{error}"
    );
    assert_eq!(reading.status.borrow().state, SourceState::Stopped);

    // A new process with the same checkpoint comes to the same end.
    let resume = Some(checkpoint(&last));
    let mut resumed = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    let (events, error) = resumed.error().await;
    assert!(
        events.is_empty() && matches!(error, Error::Diverged(_)),
        "{error}"
    );
}

#[tokio::test]
async fn stream_created_again_before_its_first_event_is_read_on() {
    let server = stream_of(0).await;
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    let first = reading.next().await.expect("the stream is sound");
    let jetstream = server.jetstream().await;
    jetstream.delete_stream("ORDERS").await.expect("deletion");
    reading.state(SourceState::StreamMissing).await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..5)).await;
    let (events, last) = reading.events(5).await;
    assert_eq!(numbers(&events), (0..5).collect::<Vec<_>>());
    assert!(last.stream.created_ns > first.stream.created_ns);

    let resume = Some(checkpoint(&first));
    let mut resumed = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    assert_eq!(
        numbers(&resumed.events(5).await.0),
        (0..5).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn checkpoint_of_another_stream_has_diverged() {
    let server = stream_of(10).await;
    let mut resume = checkpoint_behind(&server, 10).await;
    // The name alone is a hint: what was read decides.
    resume.stream.name = "BILLS".to_owned();
    resume
        .last_event
        .as_mut()
        .expect("an event was read")
        .digest[0] ^= 1;
    resume.last_seen = None;
    let mut resumed = Reading::begin(
        options(&server),
        Request {
            resume: Some(resume),
            ..request(&[">"])
        },
    );
    let (_, error) = resumed.error().await;
    assert!(
        matches!(&error, Error::Diverged(message) if message.contains("message 10")),
        "{error}"
    );
}

#[tokio::test]
async fn event_that_differs_from_the_applied_one_has_diverged() {
    for allow_direct in [true, false] {
        let server = Server::start().await;
        let jetstream = server.jetstream().await;
        jetstream
            .create_stream(Config {
                allow_direct,
                ..orders()
            })
            .await
            .expect("stream");
        publish(&jetstream, numbered(0..9)).await;
        // Its data is only a part of what the stream holds.
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(
            "Content-Type",
            "application/cloudevents+json; charset=utf-8",
        );
        let envelope = r#"{"specversion":"1.0","id":"1","source":"/test","type":"order.placed","data":{"number":9}}"#;
        let sent = jetstream
            .publish_with_headers("orders.9.placed", headers, envelope.into())
            .await;
        within("the event is stored", async {
            sent.expect("published").await
        })
        .await
        .expect("the stream takes it");
        let sound = checkpoint_behind(&server, 10).await;

        let mut changed = sound.clone();
        changed
            .last_event
            .as_mut()
            .expect("an event was read")
            .digest[0] ^= 1;
        let mut resumed = Reading::begin(
            options(&server),
            Request {
                resume: Some(changed),
                ..request(&[">"])
            },
        );
        let (_, error) = resumed.error().await;
        assert!(
            matches!(&error, Error::Diverged(message) if message.contains("message 10")),
            "{error}"
        );

        let mut resumed = Reading::begin(
            options(&server),
            Request {
                resume: Some(sound),
                ..request(&[">"])
            },
        );
        assert_eq!(
            resumed
                .next()
                .await
                .expect("the history is the same")
                .through,
            10
        );
    }
}

#[tokio::test]
async fn truncated_stream_stops_the_reader() {
    let mut server = stream_of(100).await;
    let early = checkpoint_behind(&server, 100).await;
    server.kill();
    let backup = tempfile::tempdir().expect("temporary folder");
    copy(&server.folder().join("store"), backup.path());
    server.run().await;
    publish(&server.jetstream().await, numbered(100..200)).await;
    let mut reading = Reading::begin(
        options(&server),
        Request {
            resume: Some(early),
            ..request(&[">"])
        },
    );
    let (_, last) = reading.events(100).await;

    // The machine comes back with an older disk.
    server.kill();
    std::fs::remove_dir_all(server.folder().join("store")).expect("folder can be removed");
    copy(backup.path(), &server.folder().join("store"));
    server.run().await;

    let (events, error) = reading.error().await;
    assert!(events.is_empty());
    assert!(
        matches!(
            error,
            Error::Truncated {
                last: 100,
                position: 200,
                ..
            }
        ),
        "{error}"
    );

    // Even when it has grown beyond the position again, its history is another one.
    let jetstream = server.jetstream().await;
    publish(
        &jetstream,
        (0..300).map(|_| ("orders.other".to_owned(), "{}".to_owned())),
    )
    .await;
    let resume = Some(checkpoint(&last));
    let mut resumed = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    let (_, error) = resumed.error().await;
    assert!(matches!(error, Error::Diverged(_)), "{error}");
}

#[tokio::test]
async fn purge_in_front_of_a_stopped_reader_is_a_gap() {
    let server = stream_of(100).await;
    let resume = Some(checkpoint_behind(&server, 20).await);
    let stream = server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream");
    stream.purge().sequence(51).await.expect("purge");
    for subjects in [&[">"], &["orders.*.placed"]] {
        let request = Request {
            resume: resume.clone(),
            ..request(subjects)
        };
        let (events, error) = Reading::begin(options(&server), request).error().await;
        assert!(events.is_empty());
        assert!(missing(&error) == Some((21, 50, Some(30))), "{error}");
    }
    // Behind the position, a purge does no harm.
    let resume = Some(checkpoint_from(&server, 50).await);
    let mut reading = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    assert_eq!(
        numbers(&reading.events(50).await.0),
        (50..100).collect::<Vec<_>>()
    );
}

/// First, last and number of the events that a reader stopped for.
fn missing(error: &Error) -> Option<(u64, u64, Option<u64>)> {
    let Error::Gap { missing, .. } = error else {
        return None;
    };
    Some((missing.from, missing.to, missing.count))
}

async fn checkpoint_from(server: &Server, position: u64) -> Checkpoint {
    let start = Start::FirstAvailable;
    let mut reading = Reading::begin(
        options(server),
        Request {
            start,
            ..request(&[">"])
        },
    );
    let batch = reading.next().await.expect("the stream is sound");
    Checkpoint::at(position, (*batch.stream).clone())
}

#[tokio::test]
async fn purge_in_front_of_a_running_reader_is_a_gap() {
    // More than the server sends ahead, so that the rest is still there to be purged.
    for subjects in [&[">"][..], &["orders.*.placed", "orders.1.paid"]] {
        for later in [0, 10] {
            let server = stream_of(40_000).await;
            let jetstream = server.jetstream().await;
            let mut reading = Reading::begin(
                options(&server),
                Request {
                    limits: SMALL,
                    ..request(subjects)
                },
            );
            let (mut events, _) = reading.events(100).await;
            let stream = jetstream.get_stream("ORDERS").await.expect("stream");
            stream.purge().await.expect("purge");
            publish(&jetstream, numbered(40_000..40_000 + later)).await;

            let (more, error) = reading.error().await;
            events.extend(more);
            let count = events.len() as u64;
            assert!(count < 40_000, "all had come before the purge");
            assert!(
                numbers(&events).iter().copied().eq(0..count),
                "only what precedes the gap is handed out"
            );
            let Some((from, to, _)) = missing(&error) else {
                panic!("{error}")
            };
            assert!(
                from == count + 1 && to == 40_000,
                "{from} to {to} with {count} events read"
            );
        }
    }
}

#[tokio::test]
async fn filtered_reader_notices_a_purge_in_front_of_it() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    let stream = jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..40_000)).await;
    for later in [0, 10] {
        let mut reading = Reading::begin(
            options(&server),
            Request {
                limits: SMALL,
                ..request(&["orders.>"])
            },
        );
        reading.events(100).await;
        stream.purge().await.expect("purge");
        publish(&jetstream, numbered(40_000..40_000 + later)).await;
        let (_, error) = reading.error().await;
        assert!(matches!(error, Error::Gap { .. }), "{error}");
        jetstream.delete_stream("ORDERS").await.expect("deletion");
        let config = Config {
            subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
            ..orders()
        };
        jetstream.create_stream(config).await.expect("stream");
        publish(&jetstream, numbered(0..40_000)).await;
    }
}

#[tokio::test]
async fn purge_behind_a_running_reader_is_no_gap() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    };
    let stream = jetstream.create_stream(config).await.expect("stream");
    publish(&jetstream, numbered(0..1_000)).await;
    for (round, subjects) in [&[">"], &["orders.>"]].into_iter().enumerate() {
        let start = Start::FirstAvailable;
        let mut reading = Reading::begin(
            options(&server),
            Request {
                start,
                ..request(subjects)
            },
        );
        let already = round as u64 * 1_010;
        reading.through(1_000 + already).await;
        stream.purge().await.expect("purge");
        publish(&jetstream, numbered(0..10)).await;
        assert_eq!(
            numbers(&reading.events(10).await.0),
            (0..10).collect::<Vec<_>>(),
            "{subjects:?}"
        );
        publish(&jetstream, numbered(0..1_000)).await;
        reading.events(1_000).await;
    }
}

#[tokio::test]
async fn stream_without_its_beginning_is_incomplete() {
    let server = stream_of(100).await;
    let stream = server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream");
    stream.purge().sequence(31).await.expect("purge");
    for subjects in [&[">"], &["orders.1.placed"]] {
        let (events, error) = Reading::begin(options(&server), request(subjects))
            .error()
            .await;
        assert!(events.is_empty());
        assert!(
            matches!(
                error,
                Error::Incomplete {
                    missing: Missing {
                        from: 1,
                        to: 30,
                        ..
                    },
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn stopped_reader_continues_once_the_stream_is_restored() {
    let mut server = stream_of(100).await;
    let resume = Some(checkpoint_behind(&server, 50).await);
    server.kill();
    let store = server.folder().join("store");
    let backup = tempfile::tempdir().expect("temporary folder");
    copy(&store, backup.path());
    server.run().await;
    server
        .jetstream()
        .await
        .get_stream("ORDERS")
        .await
        .expect("stream")
        .purge()
        .await
        .expect("purge");
    let mut reading = Reading::begin(
        options(&server),
        Request {
            resume,
            ..request(&[">"])
        },
    );
    let (events, error) = reading.error().await;
    assert!(
        events.is_empty() && missing(&error) == Some((51, 100, Some(50))),
        "{error}"
    );

    server.kill();
    std::fs::remove_dir_all(&store).expect("folder can be removed");
    copy(backup.path(), &store);
    server.run().await;
    let batch = within("a batch", async {
        loop {
            match reading.reader.next().await {
                Ok(batch) if !batch.events.is_empty() => return batch,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(numbers(&batch.events)[0], 50);
}

/// Pauses every consumer of the stream, as an operator may.
async fn pause_consumers(jetstream: &async_nats::jetstream::Context) {
    use futures_util::TryStreamExt;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    let names: Vec<String> = within("consumers", stream.consumer_names().try_collect())
        .await
        .expect("consumers");
    assert!(!names.is_empty(), "the reader has a consumer");
    for name in names {
        let until = serde_json::json!({ "pause_until": "2099-01-01T00:00:00Z" });
        let subject = format!("CONSUMER.PAUSE.ORDERS.{name}");
        let answer: serde_json::Value = jetstream
            .request(subject, &until)
            .await
            .expect("the server answers");
        assert_eq!(answer["paused"], true, "{answer}");
    }
}

#[tokio::test]
async fn consumer_that_delivers_nothing_any_more_is_replaced() {
    for subjects in [&[">"], &["orders.*.placed"]] {
        let server = stream_of(10).await;
        let jetstream = server.jetstream().await;
        let mut reading = Reading::begin(options(&server), request(subjects));
        assert_eq!(reading.events(10).await.1.pending, 0);

        // It sends heartbeats as before, and none of them tells that the stream has more.
        pause_consumers(&jetstream).await;
        publish(&jetstream, numbered(10..15)).await;

        assert_eq!(
            numbers(&reading.events(5).await.0),
            (10..15).collect::<Vec<_>>()
        );
        assert_eq!(reading.status.borrow().reconnects, 1);
    }
}

#[tokio::test]
async fn consumer_without_anything_to_deliver_is_kept() {
    let server = stream_of(10).await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "other.>".to_owned()],
        ..orders()
    };
    jetstream
        .update_stream(config)
        .await
        .expect("the stream can be edited");
    let mut reading = Reading::begin(options(&server), request(&["orders.*.placed"]));
    reading.events(10).await;
    for _ in 0..3 {
        publish(&jetstream, [("other.x".to_owned(), "{}".to_owned())]).await;
        // Longer than a reader trusts a consumer that delivers nothing.
        let idle = tokio::time::sleep(std::time::Duration::from_secs(7));
        tokio::select! {
            () = idle => {}
            () = async { loop { assert!(reading.next().await.expect("the stream is sound").events.is_empty()); } } => {}
        }
    }
    assert_eq!(reading.status.borrow().reconnects, 0);
}

/// Gives every consumer of the stream another filter, as an operator may.
async fn edit_consumers(jetstream: &async_nats::jetstream::Context, filter: &str) {
    use futures_util::TryStreamExt;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    let names: Vec<String> = within("consumers", stream.consumer_names().try_collect())
        .await
        .expect("consumers");
    for name in names {
        let nothing = serde_json::json!({});
        let shown: serde_json::Value = jetstream
            .request(format!("CONSUMER.INFO.ORDERS.{name}"), &nothing)
            .await
            .expect("the server answers");
        let mut config = shown["config"].clone();
        config["filter_subject"] = filter.into();
        let body =
            serde_json::json!({ "stream_name": "ORDERS", "config": config, "action": "update" });
        let subject = format!("CONSUMER.CREATE.ORDERS.{name}.{filter}");
        let answer: serde_json::Value = jetstream
            .request(subject, &body)
            .await
            .expect("the server answers");
        assert_eq!(answer["config"]["filter_subject"], filter, "{answer}");
    }
}

#[tokio::test]
async fn consumer_with_another_filter_than_it_was_made_with_is_replaced() {
    let server = stream_of(10).await;
    let jetstream = server.jetstream().await;
    let config = Config {
        subjects: vec!["orders.>".to_owned(), "other.>".to_owned()],
        ..orders()
    };
    jetstream
        .update_stream(config)
        .await
        .expect("the stream can be edited");
    // What it passes is seen when it passes it, and what it should not deliver when it comes.
    for (first, foreign) in [(10, 0), (15, 2)] {
        let mut reading = Reading::begin(options(&server), request(&["orders.*.placed"]));
        assert_eq!(reading.events(first as usize).await.0.len(), first as usize);
        edit_consumers(&jetstream, "other.>").await;
        publish(&jetstream, numbered(first..first + 5)).await;
        publish(
            &jetstream,
            (0..foreign).map(|_| ("other.x".to_owned(), "{}".to_owned())),
        )
        .await;
        assert_eq!(
            numbers(&reading.events(5).await.0),
            (first..first + 5).collect::<Vec<_>>()
        );
        assert_eq!(reading.status.borrow().reconnects, 1);
    }
}
