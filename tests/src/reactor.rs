//! The guest `reactor`: a handler that publishes as many messages as an event asks for, and readers
//! of what is stored of them.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream;
use foldstream::api;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::client::Client;
use crate::host::Host;
use crate::nats::NatsServer;

/// Name of the guest, and of its deployment.
pub const REACTOR: &str = "reactor";
/// Options of a deploy that publishes to the embedded log which it reads.
pub const TO_LOG: &str = "&allow-publish=out.%3E%40events";
/// Options of a deploy that reads the embedded log and publishes to the stream.
pub const TO_STREAM: &str = "&source=events&allow-publish=out.%3E%40out";

/// Messages of a stream that are asked for at once.
const READS: usize = 64;

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
    /// It was not to leave before a time, so it has no place in the order of its key.
    pub is_delayed: bool,
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

/// The place of each message that an event asks for; `what` is the last token of its subject.
pub fn wanted(sequence: u64, what: &str) -> impl Iterator<Item = Place> {
    let messages = match what {
        "one" | "fail" | "later" => 1,
        "three" => 3,
        _ => 0,
    };
    (0..messages).map(move |number| (sequence, number))
}

/// Everything in the stream `OUT`, by sequence.
pub async fn stored(server: &NatsServer) -> Vec<Stored> {
    let messages = messages(&server.jetstream().await, "OUT").await;
    let messages = messages.iter();
    messages
        .filter(|message| !is_cursor(&message.subject))
        .map(in_stream)
        .collect()
}

/// Whether a message is of the host, and says what is stored.
pub fn is_cursor(subject: &str) -> bool {
    subject.starts_with("_fs.")
}

/// A message as a stream has it.
pub fn in_stream(message: &jetstream::message::StreamMessage) -> Stored {
    let id = message.headers.get("Nats-Msg-Id");
    let data = serde_json::from_slice(&message.payload).expect("the guest writes JSON");
    Stored {
        id: id.expect("each message has an id").to_string(),
        key: key_of(&message.subject),
        place: place_in(&data),
        is_delayed: data["later"] == true,
    }
}

/// All messages of a stream, message by message and not by a consumer: nothing of what is tested
/// takes part.
pub async fn messages(
    context: &jetstream::Context,
    stream: &str,
) -> Vec<jetstream::message::StreamMessage> {
    let mut stream = context.get_stream(stream).await.expect("it is there");
    let last = stream.info().await.expect("it answers").state.last_sequence;
    let message = async |sequence| {
        let message = stream.get_raw_message(sequence).await;
        message.expect("nothing is deleted")
    };
    futures_util::stream::iter(1..=last)
        .map(message)
        .buffered(READS)
        .collect()
        .await
}

/// All events under a pattern in an embedded log, read as any client reads them.
pub async fn logged(client: &Client, source: &str, pattern: &str) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/v1/events?source={source}&after={after}&limit=1000&subject={pattern}");
        let page = client.get(&path).await.expect(200).value();
        all.extend(page["events"].as_array().expect("a list").iter().cloned());
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return all,
        }
    }
}

/// A message as an embedded log has it.
pub fn in_log(message: &Value) -> Stored {
    let id = message["headers"]["ce-id"].as_str();
    Stored {
        id: id.expect("each message has an id").to_owned(),
        key: key_of(message["subject"].as_str().expect("a subject")),
        place: place_in(&message["data"]),
        is_delayed: message["data"]["later"] == true,
    }
}

/// Each of the wanted messages is stored once, in the order of its key, and nothing else is.
pub fn assert_each_once(stored: &[Stored], wanted: &BTreeSet<Place>, lineage: &str) {
    let mut counts: BTreeMap<Place, usize> = BTreeMap::new();
    for message in stored {
        let (cause, number) = message.place;
        assert_eq!(message.id, format!("fs.{lineage}.{cause}.0.{number}"));
        *counts.entry(message.place).or_default() += 1;
    }
    let missing: Vec<_> = wanted
        .iter()
        .filter(|place| !counts.contains_key(place))
        .collect();
    assert!(
        missing.is_empty(),
        "{} of {} are missing: {:?}",
        missing.len(),
        wanted.len(),
        &missing[..missing.len().min(5)]
    );
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        twice.is_empty(),
        "{} are stored more than once: {:?}",
        twice.len(),
        &twice[..twice.len().min(5)]
    );
    assert_eq!(stored.len(), wanted.len(), "nothing else is stored");
    let places = stored
        .iter()
        .filter(|message| !message.is_delayed)
        .map(|message| (message.key.clone(), message.place));
    assert_in_order(places);
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
