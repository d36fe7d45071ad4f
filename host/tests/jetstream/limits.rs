//! What a server, an account or a stream limits, and streams that are of another kind.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use foldstream::api::SourceState;
use foldstream::source::Error;
use foldstream::source::jetstream::{JetStream, Options};

use crate::reading::{Reading, numbers, options, request};
use crate::server::{Server, numbered, orders, publish, until, within};

#[tokio::test]
async fn server_that_limits_requests_is_read_to_its_end_and_live() {
    let count = 3_000;
    for limits in [
        "max_request_batch: 7",
        "max_request_batch: 1000",
        "max_request_batch: 1",
    ] {
        let server = Server::start_with(&format!(
            "jetstream {{ store_dir: \"$FOLDER/store\", limits {{ {limits}, max_ack_pending: 5 }} \
             }}"
        ))
        .await;
        let jetstream = server.jetstream().await;
        jetstream.create_stream(orders()).await.expect("stream");
        publish(&jetstream, numbered(0..count)).await;
        for subjects in [&[">"][..], &["orders.*.placed"]] {
            let mut reading = Reading::begin(options(&server), request(subjects));
            let (events, _) = reading.events(count as usize).await;
            assert_eq!(numbers(&events), (0..count).collect::<Vec<_>>(), "{limits}");
            assert_eq!(reading.status.borrow().reconnects, 0, "{limits}");
        }
        let mut reading = Reading::begin(options(&server), request(&["orders.none.*"]));
        assert_eq!(reading.through(count).await.len(), 0);
        publish(
            &jetstream,
            [("orders.none.1".to_owned(), "{\"number\":1}".to_owned())],
        )
        .await;
        assert_eq!(numbers(&reading.events(1).await.0), [1]);
    }
}

#[tokio::test]
async fn stream_without_room_for_a_consumer_says_what_to_do_and_is_read_once_there_is_room() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream
        .create_stream(Config {
            max_consumers: 1,
            ..orders()
        })
        .await
        .expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    let mut first = Reading::begin(options(&server), request(&[">"]));
    first.events(3).await;
    let mut second = Reading::begin(options(&server), request(&[">"]));
    let message = second.state(SourceState::Reconnecting).await;
    assert!(
        message.contains("no room for another consumer") && message.contains("max_consumers"),
        "{message}"
    );
    drop(first);
    assert_eq!(second.events(3).await.0.len(), 3);
}

#[tokio::test]
async fn streams_that_drop_what_others_acknowledge_are_refused_for_good() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    for (retention, word) in [
        (RetentionPolicy::Interest, "interest"),
        (RetentionPolicy::WorkQueue, "workqueue"),
    ] {
        let stream = Config {
            retention,
            ..orders()
        };
        jetstream.create_stream(stream).await.expect("stream");
        publish(&jetstream, numbered(0..3)).await;
        let mut reading = Reading::begin(options(&server), request(&[">"]));
        let (events, error) = reading.error().await;
        assert!(events.is_empty());
        assert!(
            matches!(&error, Error::Unsupported { .. }) && error.to_string().contains(word),
            "{error}"
        );
        assert_eq!(error.kind(), "source-unsupported");
        assert_eq!(reading.status.borrow().state, SourceState::Stopped);
        let source = JetStream::new(options(&server)).expect("the settings are sound");
        assert!(source.check_readable().await.is_err());
        jetstream.delete_stream("ORDERS").await.expect("deletion");
    }
    jetstream.create_stream(orders()).await.expect("stream");
    let source = JetStream::new(options(&server)).expect("the settings are sound");
    assert!(source.check_readable().await.is_ok());
}

#[tokio::test]
async fn sequences_beyond_floating_point_are_exact_and_a_stream_near_their_end_is_refused() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let beginning_with = |sequence: u64| Config {
        first_sequence: Some(sequence),
        ..orders()
    };
    let first = (1 << 53) + 1;
    let stream = beginning_with(first);
    jetstream.create_stream(stream).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    for subjects in [&[">"][..], &["orders.*.placed"]] {
        let (events, last) = Reading::begin(options(&server), request(subjects))
            .events(3)
            .await;
        let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, [first, first + 1, first + 2]);
        assert_eq!(last.through, first + 2);
    }
    jetstream.delete_stream("ORDERS").await.expect("deletion");

    let stream = beginning_with(1 << 63);
    jetstream.create_stream(stream).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    let (events, error) = Reading::begin(options(&server), request(&["orders.*.placed"]))
        .error()
        .await;
    assert!(events.is_empty());
    assert!(
        matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("2^63"),
        "{error}"
    );
}

#[tokio::test]
async fn stream_that_is_edited_to_drop_events_stops_its_reader() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    let mut reading = Reading::begin(options(&server), request(&["orders.1.*"]));
    reading.through(3).await;
    let edited = Config {
        retention: RetentionPolicy::Interest,
        ..orders()
    };
    jetstream.update_stream(edited).await.expect("update");
    publish(&jetstream, numbered(3..9)).await;
    let (_, error) = reading.error().await;
    assert!(matches!(&error, Error::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn account_without_room_for_a_consumer_says_what_to_do() {
    let account = "jetstream { store_dir: \"$FOLDER/store\" }
        accounts { A { jetstream { max_file: 100MB, max_consumers: 1 }, users: [ { user: a, password: p } ] } }";
    let server = Server::start_with(account).await;
    let administrator =
        async_nats::ConnectOptions::with_user_and_password("a".to_owned(), "p".to_owned());
    let jetstream = server.jetstream_as(administrator).await;
    jetstream
        .create_stream(Config {
            max_bytes: 1 << 20,
            ..orders()
        })
        .await
        .expect("stream");
    publish(&jetstream, numbered(0..3)).await;
    let granted = Options {
        user: Some("a".to_owned()),
        password: Some("p".to_owned()),
        ..options(&server)
    };
    let mut first = Reading::begin(granted.clone(), request(&[">"]));
    first.events(3).await;
    let mut second = Reading::begin(granted, request(&[">"]));
    let message = second.state(SourceState::Reconnecting).await;
    assert!(
        message.contains("no room for another consumer") && message.contains("the account"),
        "{message}"
    );
}

#[tokio::test]
async fn bookkeeping_of_the_broker_is_passed_over_and_counted() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let stream = Config {
        allow_message_ttl: true,
        allow_message_schedules: true,
        ..orders()
    };
    jetstream.create_stream(stream).await.expect("stream");
    let send = async |subject: &str, headers: &[(&str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = subject.to_owned();
        let sent = jetstream
            .publish_with_headers(subject, map, "{\"number\":9}".into())
            .await
            .expect("publishing");
        within("an answer", async { sent.await })
            .await
            .expect("the stream takes it");
    };
    publish(&jetstream, numbered(0..1)).await;
    send("orders.a.deleted", &[("KV-Operation", "DEL")]).await;
    send("orders.a.purged", &[("KV-Operation", "PURGE")]).await;
    send("orders.a.placed", &[("KV-Operation", "PUT")]).await;
    let later = "@at 2100-01-01T00:00:00Z";
    send(
        "orders.a.later",
        &[
            ("Nats-Schedule", later),
            ("Nats-Schedule-Target", "orders.b.placed"),
        ],
    )
    .await;
    send("orders.a.marked", &[("Nats-Marker-Reason", "MaxAge")]).await;
    publish(&jetstream, numbered(2..3)).await;
    for subjects in [&[">"][..], &["orders.*.*"], &["orders.*.*", "none.>"]] {
        let mut reading = Reading::begin(options(&server), request(subjects));
        let (events, last) = reading.events(3).await;
        assert_eq!(numbers(&events), [0, 9, 2]);
        assert_eq!((last.through, last.pending), (7, 0));
        assert_eq!(reading.status.borrow().passed_over, 4);
    }

    // One live and last, so that only the position moves.
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    reading.events(3).await;
    send("orders.a.deleted", &[("KV-Operation", "DEL")]).await;
    assert_eq!(reading.through(8).await.len(), 0);
    until("it is counted", async || {
        (reading.status.borrow().passed_over == 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn marker_that_the_server_makes_of_an_expired_event_is_no_event() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let stream = Config {
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(std::time::Duration::from_secs(3_600)),
        max_age: std::time::Duration::from_secs(2),
        ..orders()
    };
    jetstream.create_stream(stream).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(&[">"]));
    reading.state(SourceState::Reading).await;
    publish(&jetstream, numbered(0..1)).await;
    assert_eq!(numbers(&reading.events(1).await.0), [0]);
    assert_eq!(reading.through(2).await.len(), 0);
    assert_eq!(reading.status.borrow().passed_over, 1);
}
