//! Streams that remove events of a burst before their consumers get them.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use foldstream::source::jetstream::Options;
use foldstream::source::{Error, OnMissing, Whose};
use futures_util::StreamExt;

use crate::reading::{Reading, options, request};
use crate::server::{Server, Version, numbered, on_both_versions, orders, publish, within};

on_both_versions! {
    a_burst_that_removes_its_own_events_is_counted_however_few_subjects_are_read
    a_limit_that_is_set_right_before_a_burst_loses_nothing_in_silence
    what_a_limit_removes_right_after_it_is_set_is_counted_if_that_is_meant
    a_connection_that_is_lost_right_after_a_limit_was_set_hides_no_loss
    what_is_replaced_within_a_burst_for_others_is_no_gap
    what_is_replaced_for_others_after_a_quiet_time_is_no_gap
}

const MINE: &[&str] = &["orders.>"];

/// Orders and others.
fn mixed() -> Config {
    Config {
        subjects: vec!["orders.>".to_owned(), "audit.>".to_owned()],
        ..orders()
    }
}

/// What removes events of a burst before a live reader gets them.
#[derive(Clone, Copy, Debug)]
enum Removal {
    FewMessages,
    FewPerSubject,
    RollUp,
}

async fn a_burst_that_removes_its_own_events_is_counted_however_few_subjects_are_read(
    version: Version,
) {
    for removal in [
        Removal::FewMessages,
        Removal::FewPerSubject,
        Removal::RollUp,
    ] {
        let server = Server::start_of(version).await;
        let jetstream = server.jetstream().await;
        let config = Config {
            max_messages: if matches!(removal, Removal::FewMessages) {
                10
            } else {
                -1
            },
            max_messages_per_subject: if matches!(removal, Removal::FewPerSubject) {
                1
            } else {
                -1
            },
            allow_rollup: matches!(removal, Removal::RollUp),
            ..mixed()
        };
        jetstream.create_stream(config).await.expect("stream");
        let options = Options {
            on_missing: OnMissing::Count,
            ..options(&server)
        };
        let mut reading = Reading::begin(options, request(MINE));
        reading.next().await.expect("it is live");
        // All in one write, as a busy publisher sends them.
        let client = jetstream.client();
        for number in 0..3_000 {
            let subject = format!("orders.{}.placed", number % 50);
            let data = format!(r#"{{"number":{number}}}"#);
            client
                .publish(subject, data.into())
                .await
                .expect("published");
        }
        let mut headers = async_nats::HeaderMap::new();
        if matches!(removal, Removal::RollUp) {
            headers.insert("Nats-Rollup", "all");
        }
        client
            .publish_with_headers("orders.0.placed", headers, r#"{"number":3000}"#.into())
            .await
            .expect("published");
        client.flush().await.expect("the server is there");

        let (mut read, mut missing, mut through) = (0, 0, 0);
        while through < 3_001 {
            let batch = reading.next().await.expect("what is gone is accepted");
            read += batch.events.len() as u64;
            missing += batch.missing_between(through, batch.through);
            through = batch.through;
        }
        assert_eq!(read + missing, 3_001, "{removal:?}: {read} were read");
    }
}

#[tokio::test]
async fn a_stream_that_is_edited_to_remove_at_once_is_read_whole_from_then_on() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(mixed()).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.next().await.expect("it is live");
    let config = Config {
        max_messages: 10,
        ..mixed()
    };
    jetstream.update_stream(config).await.expect("edited");
    let mut number = 0;
    // It is noticed with one of the next events, as the stream is looked at every second.
    within("it opens the stream again", async {
        while reading.status.borrow().reconnects == 0 {
            publish(&jetstream, numbered(number..number + 1)).await;
            reading.events(1).await;
            number += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let info = jetstream.get_stream("ORDERS").await.expect("stream");
    let consumer = info.consumer_names().next().await;
    let name = consumer.expect("there is one").expect("it is named");
    let consumer = info.consumer_info(name).await.expect("it is there");
    assert_eq!(consumer.config.filter_subject, "");
}

async fn burst(jetstream: &async_nats::jetstream::Context, subject: &str, count: u64) {
    // All in one write, as a busy publisher sends them.
    let client = jetstream.client();
    for number in 0..count {
        let data = format!(r#"{{"number":{number}}}"#);
        client
            .publish(subject.to_owned(), data.into())
            .await
            .expect("published");
    }
    client.flush().await.expect("the server is there");
}

async fn a_limit_that_is_set_right_before_a_burst_loses_nothing_in_silence(version: Version) {
    let server = Server::start_of(version).await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(mixed()).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.next().await.expect("it is live");
    for number in 0..5 {
        publish(&jetstream, numbered(number..number + 1)).await;
        reading.events(1).await;
        burst(&jetstream, "audit.noise", 1).await;
    }
    let config = Config {
        max_messages_per_subject: 1,
        ..mixed()
    };
    jetstream.update_stream(config).await.expect("edited");
    burst(&jetstream, "orders.1.placed", 2_000).await;
    if let Some(error) = all_or_gap(&mut reading, 2_000).await {
        assert!(
            matches!(
                error,
                Error::Gap {
                    whose: Whose::PerhapsOthers,
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains("perhaps some or all of them"), "{text}");
    }
}

async fn what_a_limit_removes_right_after_it_is_set_is_counted_if_that_is_meant(version: Version) {
    let server = Server::start_of(version).await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(mixed()).await.expect("stream");
    let options = Options {
        on_missing: OnMissing::Count,
        ..options(&server)
    };
    let mut reading = Reading::begin(options, request(MINE));
    reading.next().await.expect("it is live");
    publish(&jetstream, numbered(0..1)).await;
    reading.events(1).await;
    let config = Config {
        max_messages_per_subject: 1,
        ..mixed()
    };
    jetstream.update_stream(config).await.expect("edited");
    burst(&jetstream, "orders.1.placed", 2_000).await;
    let (mut read, mut missing, mut after) = (1, 0, 1);
    within("all of them to be read or missed", async {
        while read + missing < 2_001 {
            let batch = reading.next().await.expect("what is gone is accepted");
            read += batch.events.len() as u64;
            missing += batch.missing_between(after, batch.through) + batch.overlooked;
            after = batch.through;
        }
    })
    .await;
    assert_eq!(read + missing, 2_001, "{read} were read");
    // None is counted twice.
    publish(&jetstream, numbered(2..3)).await;
    let batch = reading.next().await.expect("the reader continues");
    assert_eq!((batch.events.len(), batch.overlooked), (1, 0));
}

async fn a_connection_that_is_lost_right_after_a_limit_was_set_hides_no_loss(version: Version) {
    let mut server = Server::start_of(version).await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(mixed()).await.expect("stream");
    let options = Options {
        on_missing: OnMissing::Count,
        ..options(&server)
    };
    let mut reading = Reading::begin(options, request(MINE));
    reading.next().await.expect("it is live");
    // The first one makes the reader look at the stream, and the second one lets it get the answer:
    // its next look is a second later.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for number in 0..2 {
        publish(&jetstream, numbered(number..number + 1)).await;
        reading.events(1).await;
    }
    let config = Config {
        max_messages_per_subject: 1,
        ..mixed()
    };
    jetstream.update_stream(config).await.expect("edited");
    burst(&jetstream, "orders.7.placed", 2_000).await;
    let (mut read, mut missing, mut after) = (2, 0, 2);
    let mut is_lost = false;
    within("all of them to be read or missed", async {
        while read + missing < 2_002 {
            let batch = reading.next().await.expect("what is gone is accepted");
            read += batch.events.len() as u64;
            missing += batch.missing_between(after, batch.through) + batch.overlooked;
            after = batch.through;
            if after == 2_002 && !std::mem::replace(&mut is_lost, true) {
                server.kill();
                server.run().await;
            }
        }
    })
    .await;
    assert_eq!(read + missing, 2_002, "{read} were read");
}

async fn what_is_replaced_within_a_burst_for_others_is_no_gap(version: Version) {
    let server = Server::start_of(version).await;
    let jetstream = server.jetstream().await;
    let config = Config {
        max_messages_per_subject: 1,
        ..mixed()
    };
    jetstream.create_stream(config).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.next().await.expect("it is live");
    publish(&jetstream, numbered(0..1)).await;
    reading.events(1).await;
    burst(&jetstream, "audit.noise", 2_000).await;
    misses_nothing(&mut reading, 1, 2_001).await;
    // What is its own is still missed.
    burst(&jetstream, "orders.7.placed", 2_000).await;
    if let Some(error) = all_or_gap(&mut reading, 2_000).await {
        assert!(matches!(error, Error::Gap { .. }), "{error}");
    }
}

async fn what_is_replaced_for_others_after_a_quiet_time_is_no_gap(version: Version) {
    let server = Server::start_of(version).await;
    let jetstream = server.jetstream().await;
    let config = Config {
        max_messages_per_subject: 1,
        ..mixed()
    };
    jetstream.create_stream(config).await.expect("stream");
    let mut reading = Reading::begin(options(&server), request(MINE));
    reading.next().await.expect("it is live");
    publish(&jetstream, numbered(0..1)).await;
    reading.events(1).await;
    // Nobody writes anything for longer than what counts as a moment, and the reader is awake.
    let quiet = tokio::time::timeout(std::time::Duration::from_secs(4), reading.next()).await;
    assert!(quiet.is_err(), "there is nothing to read: {quiet:?}");
    burst(&jetstream, "audit.noise", 2_000).await;
    misses_nothing(&mut reading, 1, 2_001).await;
}

/// Reads from one position to another, between which nothing of its own is gone.
async fn misses_nothing(reading: &mut Reading, after: u64, to: u64) {
    let (mut missing, mut through) = (0, after);
    while through < to {
        let batch = reading.next().await.expect("none of its own is gone");
        missing += batch.missing_between(through, batch.through);
        through = batch.through;
    }
    assert_eq!(missing, 0);
}

/// Reads this many events; the error if that ends it before. Nothing else may happen.
async fn all_or_gap(reading: &mut Reading, wanted: usize) -> Option<Error> {
    within("all events, or an error", async {
        let mut read = 0;
        while read < wanted {
            match reading.next().await {
                Ok(batch) => read += batch.events.len(),
                Err(error) => return Some(error),
            }
        }
        None
    })
    .await
}
