//! The consumer in Rust: the client library of NATS, and redb.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use customer_totals::{Aggregate, OrderEvent, fold};
use foldstream_tests::nats::NatsServer;
use futures_util::StreamExt;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::Sums;
use crate::workload::STREAM;

const CUSTOMERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("customers");
const POSITION: TableDefinition<'_, (), u64> = TableDefinition::new("position");

/// Events that the server sends ahead.
const AHEAD: usize = 10_000;
/// Time between two commits.
const INTERVAL: Duration = Duration::from_secs(1);

/// Consumes all events.
pub async fn run(server: &NatsServer, events: usize, file: &Path) -> Sums {
    let database = Database::create(file).expect("a new file can be made");
    let context = server.jetstream().await;
    let stream = context.get_stream(STREAM).await.expect("it is there");
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream
        .create_consumer(config)
        .await
        .expect("a stream takes a consumer");
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(AHEAD)
        .messages()
        .await
        .expect("the server answers");
    let mut changed = HashMap::new();
    let (mut read, mut committed) = (0, Instant::now());
    while read < events {
        let message = messages.next().await.expect("there are more");
        let message = message.expect("the connection stays");
        let sequence = apply(&database, &mut changed, &message);
        read += 1;
        if read == events || committed.elapsed() >= INTERVAL {
            tokio::task::block_in_place(|| commit(&database, &changed, sequence));
            changed.clear();
            committed = Instant::now();
        }
    }
    sums(&database)
}

/// Updates the aggregate of the event's customer; the event's sequence.
fn apply(database: &Database, changed: &mut HashMap<String, Aggregate>, message: &Message) -> u64 {
    let sequence = message
        .info()
        .expect("a stream numbers its messages")
        .stream_sequence;
    let order: OrderEvent<'_> = serde_json::from_slice(&message.payload).expect("samples are JSON");
    let kind = message.subject.rsplit('.').next().expect("a type");
    if !changed.contains_key(order.customer) {
        let aggregate = load(database, order.customer);
        changed.insert(order.customer.to_owned(), aggregate);
    }
    let aggregate = changed.get_mut(order.customer).expect("just inserted");
    fold(aggregate, kind, sequence, &order);
    sequence
}

fn load(database: &Database, customer: &str) -> Aggregate {
    let read = database.begin_read().expect("the file can be read");
    let Ok(table) = read.open_table(CUSTOMERS) else {
        return Aggregate::default();
    };
    let value = table.get(customer).expect("the file can be read");
    value
        .map(|value| serde_json::from_slice(value.value()).expect("our own types are JSON"))
        .unwrap_or_default()
}

/// Makes the aggregates and the position durable in one transaction.
fn commit(database: &Database, changed: &HashMap<String, Aggregate>, sequence: u64) {
    let write = database.begin_write().expect("the file can be written");
    {
        let mut table = write.open_table(CUSTOMERS).expect("a table of its own");
        for (customer, aggregate) in changed {
            let value = serde_json::to_vec(aggregate).expect("our own types are JSON");
            table
                .insert(customer.as_str(), value.as_slice())
                .expect("the disk has room");
        }
        let mut position = write.open_table(POSITION).expect("a table of its own");
        position.insert((), sequence).expect("the disk has room");
    }
    write.commit().expect("the disk has room");
}

fn sums(database: &Database) -> Sums {
    let read = database.begin_read().expect("the file can be read");
    let table = read.open_table(CUSTOMERS).expect("a table of its own");
    let mut sums = Sums::default();
    for entry in table.iter().expect("the file can be read") {
        let (_, value) = entry.expect("the file can be read");
        let kept: Aggregate =
            serde_json::from_slice(value.value()).expect("our own types are JSON");
        let kept = [
            kept.events,
            kept.orders,
            kept.items,
            kept.total_cents,
            kept.paid_cents,
            kept.shipped,
            kept.web_orders,
        ];
        for (sum, kept) in sums.iter_mut().zip(kept) {
            *sum += kept;
        }
    }
    sums
}
