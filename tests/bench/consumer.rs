//! A consumer as one would write it by hand, with what a handler promises: it counts the events of
//! each key in a durable state, publishes one message for each event, in the order of each key and
//! each once the one before it is confirmed, and acknowledges an event when its message is stored.
//! After a crash the server delivers again what is not acknowledged; the state knows its position,
//! and the stream recognises the ids of messages.

use std::collections::BTreeMap;
use std::path::Path;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, Message};
use foldstream::event::Payload;
use foldstream::position::{Checkpoint, StreamIdentity};
use foldstream::state::{self, Store, Writer};
use futures_util::StreamExt;

use crate::handlers::INPUT;

/// Most events of a batch, and most messages on their way at once: as many as the host has.
const BATCH: usize = 1_000;
const IN_FLIGHT: usize = 64;
/// Events that the server sends ahead.
const AHEAD: usize = 10_000;

/// Consumes until it is aborted: what a filter lets through, or everything.
pub async fn run(context: jetstream::Context, folder: &Path, filter: Option<&str>) {
    let (store, mut writer) = Store::open(
        &folder.join("state.redb"),
        state::Options::default(),
        |_| {},
    )
    .expect("a new state opens");
    let stream = context.get_stream(INPUT).await.expect("it is there");
    let config = pull::Config {
        durable_name: Some("by-hand".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 2 * AHEAD as i64,
        filter_subject: filter.unwrap_or_default().to_owned(),
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream
        .create_consumer(config)
        .await
        .expect("a stream takes a consumer");
    let messages = consumer
        .stream()
        .max_messages_per_batch(AHEAD)
        .messages()
        .await
        .expect("the server answers");
    let mut batches = messages.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let batch: Vec<Message> = batch
            .into_iter()
            .map(|message| message.expect("the connection stays"))
            .collect();
        tokio::task::block_in_place(|| commit(&store, &mut writer, &batch));
        publish(&context, batch).await;
    }
}

/// The key of an event, and its sequence.
fn place(message: &Message) -> (String, u64) {
    let key = message.subject.split('.').nth(1).expect("a key").to_owned();
    let info = message.info().expect("a stream numbers its messages");
    (key, info.stream_sequence)
}

/// Counts the events that are new, in one durable commit.
fn commit(store: &Store, writer: &mut Writer, batch: &[Message]) {
    let position = store.position();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut last = position;
    writer.begin();
    for message in batch {
        let (key, sequence) = place(message);
        if sequence > position {
            *counts.entry(format!("handled/{key}")).or_default() += 1;
            last = last.max(sequence);
        }
    }
    for (key, count) in counts {
        let before = writer.get(&key).expect("a state can be read");
        let before = before.map_or(0, |value| {
            let text = str::from_utf8(value.as_bytes()).expect("a number is text");
            text.parse::<u64>().expect("a number")
        });
        let value = Payload::from((before + count).to_string());
        writer.put(&key, Some(value)).expect("it is small");
    }
    writer.publish(Checkpoint::at(last, identity()));
    store.flush().expect("the disk has room");
}

fn identity() -> StreamIdentity {
    StreamIdentity {
        name: INPUT.to_owned(),
        created_ns: 1,
    }
}

/// Publishes a message for each event, and acknowledges the events.
async fn publish(context: &jetstream::Context, batch: Vec<Message>) {
    let mut chains: BTreeMap<String, Vec<(u64, Message)>> = BTreeMap::new();
    for message in batch {
        let (key, sequence) = place(&message);
        chains.entry(key).or_default().push((sequence, message));
    }
    let send = |(key, chain): (String, Vec<(u64, Message)>)| async move {
        for (sequence, event) in chain {
            let message = jetstream::message::PublishMessage::build()
                .message_id(format!("by-hand.{sequence}"))
                .payload(format!("{{\"of\":{sequence},\"number\":0}}").into());
            let stored = context
                .send_publish(format!("out.{key}.{sequence}"), message)
                .await;
            stored
                .expect("the connection stays")
                .await
                .expect("the stream stores it");
            event
                .ack_with(AckKind::Ack)
                .await
                .expect("the connection stays");
        }
    };
    futures_util::stream::iter(chains.into_iter().map(send))
        .buffer_unordered(IN_FLIGHT)
        .collect::<Vec<()>>()
        .await;
}
