//! The guest `reactor`: a handler that publishes as many messages as an event asks for, and readers
//! of what is stored of them.

use std::collections::BTreeMap;

use foldstream::api;
use serde_json::json;

use crate::client::Client;
use crate::host::Host;
use crate::nats::NatsServer;

/// Name of the guest, and of its deployment.
pub const REACTOR: &str = "reactor";
/// Options of a deploy that publishes to the embedded log which it reads.
pub const TO_LOG: &str = "&allow-publish=out.%3E%40events";
/// Options of a deploy that reads the embedded log and publishes to the stream.
pub const TO_STREAM: &str = "&source=events&allow-publish=out.%3E%40out";

/// The place of a message: the sequence of the event that caused it, and its number.
pub type Place = (u64, u64);

/// A message of the stream, as an independent reader finds it.
#[derive(Debug)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: String,
    /// Its place.
    pub place: Place,
}

/// An event that asks for something, such as `one` message.
pub fn event(key: u64, what: &str) -> api::NewEvent {
    serde_json::from_value(json!({ "subject": format!("in.{key}.{what}"), "data": {} }))
        .expect("an event")
}

/// This many such events, with seven keys in turn.
pub fn events(count: u64, what: &str) -> Vec<api::NewEvent> {
    (0..count).map(|number| event(number % 7, what)).collect()
}

/// A host with an embedded log to read and a stream to publish to, at the address of its server or
/// of a proxy; with more lines of configuration.
pub async fn host_with_stream(url: &str, more: &str) -> Host {
    Host::start_with(&format!(
        "[sources.events]\nkind = \"embedded\"\n\
         [sources.out]\nkind = \"jetstream\"\nstream = \"OUT\"\nservers = [{url:?}]\n{more}"
    ))
    .await
}

/// Waits until everything is published that events up to a sequence cause.
pub async fn published(client: &Client, sequence: u64) -> api::Deployment {
    client
        .show_when(REACTOR, "publish everything", |deployment| {
            let outbox = deployment.outbox.as_ref();
            deployment.position >= sequence && outbox.is_some_and(|outbox| outbox.entries == 0)
        })
        .await
}

/// Everything in the stream, by sequence.
pub async fn stored(server: &NatsServer) -> Vec<Stored> {
    let stream = server.jetstream().await.get_stream("OUT").await;
    let mut stream = stream.expect("it is there");
    let last = stream.info().await.expect("it answers").state.last_sequence;
    let mut all = Vec::new();
    // Message by message and not by a consumer: nothing of what is tested takes part.
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await;
        let message = message.expect("nothing is deleted");
        let id = message.headers.get("Nats-Msg-Id");
        let data = serde_json::from_slice(&message.payload).expect("the guest writes JSON");
        all.push(Stored {
            id: id.expect("each message has an id").to_string(),
            key: key_of(&message.subject),
            place: place_in(&data),
        });
    }
    all
}

/// The key of a message, by its subject.
pub fn key_of(subject: &str) -> String {
    subject.split('.').nth(1).expect("a key").to_owned()
}

/// The place that the guest writes into a message.
pub fn place_in(data: &serde_json::Value) -> Place {
    (
        data["of"].as_u64().expect("a cause"),
        data["number"].as_u64().expect("a number"),
    )
}

/// The messages of each key are stored in the order of their places.
pub fn assert_in_order(messages: impl IntoIterator<Item = (String, Place)>) {
    let mut last: BTreeMap<String, Place> = BTreeMap::new();
    for (key, place) in messages {
        if let Some(before) = last.insert(key, place) {
            assert!(before < place, "{before:?} is stored before {place:?}");
        }
    }
}
