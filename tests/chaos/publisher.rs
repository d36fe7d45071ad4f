//! Publishes orders at a steady rate, and tells the oracle what the stream has. If a server dies
//! under it, nobody knows what became of the last messages: then it reads the stream itself.

use std::time::Duration;

use async_nats::jetstream;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use foldstream_tests::orders::{Order, Orders};
use foldstream_tests::wait;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Phase, STREAM, World, admin};

/// Customers of the orders: all of a state fits into one page.
pub const CUSTOMERS: u32 = 60;

/// Time between two parts.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long the server has to acknowledge, before the stream itself is looked at.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(2);

/// Publishes until the round is at rest.
pub async fn run(world: &World, rate: usize, noise: bool) {
    let mut orders = Orders::new(world.seed, CUSTOMERS);
    let part = (rate / 20).max(1);
    let mut connection = connect(world).await;
    while world.is_until(Phase::Calm) {
        {
            let _turn = world.publishing.lock().await;
            let mut messages: Vec<_> = orders
                .by_ref()
                .take(part)
                .map(|order| order.message())
                .collect();
            if noise {
                // Messages that no deployment wants lie between those that they want.
                messages.insert(
                    part / 2,
                    ("noise.a".to_owned(), Bytes::from_static(b"noise")),
                );
            }
            if !publish(world, &connection, &messages).await {
                connection = connect(world).await;
                catch_up(world, &connection, None).await;
            }
        }
        world.sleep_until_after(Phase::Calm, INTERVAL).await;
    }
}

/// Publishes one message as the next of the stream, whatever else is published; its sequence.
pub async fn publish_one(world: &World, subject: &str, data: &[u8]) -> u64 {
    let _turn = world.publishing.lock().await;
    let message = [(subject.to_owned(), Bytes::copy_from_slice(data))];
    loop {
        if publish(world, &connect(world).await, &message).await {
            return world.oracle.through();
        }
        // Messages of others may have come late, and this one not at all.
        let found = catch_up(world, &connect(world).await, Some(subject)).await;
        if let Some(sequence) = found {
            return sequence;
        }
    }
}

/// Publishes an order with a header that no client of the server would write, through a socket.
pub async fn publish_raw(world: &World, order: &Order, header: &[u8]) -> std::io::Result<()> {
    let _turn = world.publishing.lock().await;
    let address = world.nats_url().trim_start_matches("nats://").to_owned();
    let (headers, data) = (
        [b"NATS/1.0\r\n", header, b"\r\n\r\n"].concat(),
        order.data(),
    );
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    let hello =
        b"CONNECT {\"verbose\":false,\"headers\":true,\"user\":\"admin\",\"pass\":\"admin\"}\r\n";
    socket.write_all(hello).await?;
    let line = format!(
        "HPUB {} {} {}\r\n",
        order.subject(),
        headers.len(),
        headers.len() + data.len()
    );
    socket
        .write_all(&[line.as_bytes(), &headers, data.as_bytes(), b"\r\nPING\r\n"].concat())
        .await?;
    let mut answer = Vec::new();
    let mut part = [0; 4_096];
    while !answer.windows(4).any(|window| window == b"PONG") {
        let length = socket.read(&mut part).await?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&part[..length]);
    }
    catch_up(world, &connect(world).await, None).await;
    Ok(())
}

/// Deletes a stream, if it is there, and creates it again, empty.
pub async fn create_again(world: &World, config: jetstream::stream::Config) {
    wait::until("the stream to be created again", || async {
        let context = connect(world).await;
        let deleted = context.delete_stream(&config.name).await;
        let is_gone = deleted.is_ok() || context.get_stream(&config.name).await.is_err();
        if !is_gone {
            return None;
        }
        // A server that was away just then may still have it, and a creation succeeds then too.
        let created = context.create_stream(config.clone()).await.ok()?;
        (created.cached_info().state.last_sequence == 0).then_some(())
    })
    .await;
}

/// A connection of its own, so that nothing that was on the way in an older one arrives behind it.
pub async fn connect(world: &World) -> jetstream::Context {
    wait::until("the server to take a connection", || async {
        let options = admin().request_timeout(Some(ACKNOWLEDGEMENT));
        let client = options.connect(world.nats_url()).await.ok()?;
        let mut context = jetstream::new(client);
        context.set_timeout(ACKNOWLEDGEMENT);
        Some(context)
    })
    .await
}

/// Whether all messages were stored one behind the other, right behind what the oracle knows. If so
/// it knows them too.
async fn publish(
    world: &World,
    context: &jetstream::Context,
    messages: &[(String, Bytes)],
) -> bool {
    let mut acknowledgements = Vec::with_capacity(messages.len());
    for (subject, data) in messages {
        match context.publish(subject.clone(), data.clone()).await {
            Ok(acknowledgement) => acknowledgements.push(acknowledgement),
            Err(_) => return false,
        }
    }
    for (acknowledgement, (subject, data)) in acknowledgements.into_iter().zip(messages) {
        match acknowledgement.await {
            Ok(stored) if stored.sequence == world.oracle.through() + 1 => {
                world.oracle.take(stored.sequence, subject, data);
            }
            _ => return false,
        }
    }
    true
}

/// A stored message, as `STREAM.MSG.GET` answers it.
#[derive(Deserialize)]
struct Stored {
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Info {
    state: State,
}

#[derive(Deserialize)]
struct State {
    last_seq: u64,
}

/// Reads what the stream has behind what the oracle knows; the last of it under a subject.
async fn catch_up(
    world: &World,
    context: &jetstream::Context,
    subject: Option<&str>,
) -> Option<u64> {
    let mut found = None;
    let info: Info = request(context, &format!("STREAM.INFO.{STREAM}"), &json!({})).await;
    let begin = world.oracle.through() + 1;
    for sequence in begin..=info.state.last_seq {
        let stored: Stored = request(
            context,
            &format!("STREAM.MSG.GET.{STREAM}"),
            &json!({ "seq": sequence }),
        )
        .await;
        // A message that is not there was deleted; it is nothing that a fold could have.
        let Some(message) = stored.message else {
            continue;
        };
        let data = BASE64_STANDARD
            .decode(&message.data)
            .expect("the server encodes data");
        world.oracle.take(sequence, &message.subject, &data);
        if subject == Some(&*message.subject) {
            found = Some(sequence);
        }
    }
    world.note(&format!(
        "read {begin} to {} from the stream",
        info.state.last_seq
    ));
    found
}

/// Asks the server until it answers.
async fn request<T: serde::de::DeserializeOwned>(
    context: &jetstream::Context,
    subject: &str,
    payload: &serde_json::Value,
) -> T {
    wait::until(subject, || async {
        context.request(subject.to_owned(), payload).await.ok()
    })
    .await
}
