//! The workload: order events of about 200 bytes, five types, published once to a server of our
//! own.

use std::time::Instant;

use bytes::Bytes;
use foldstream::api::NewEvent;
use foldstream::source::jetstream::{JetStream, Options};
use foldstream_tests::nats::{self, NatsServer};

/// Name of the stream.
pub const STREAM: &str = "ORDERS";

/// This many events of this many customers: the same in every run.
pub fn messages(events: usize, customers: u32) -> impl Iterator<Item = (String, Bytes)> {
    (0..events as u64).map(move |number| {
        let (subject, data) = customer_totals::sample(number, customers.into());
        (subject, Bytes::from(data))
    })
}

/// One of them for the embedded log.
pub fn new_event() -> NewEvent {
    let (subject, data) = customer_totals::sample(0, 1);
    NewEvent {
        subject,
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: serde_json::from_str(&data).expect("samples are JSON"),
    }
}

/// A server with the events of this many customers.
pub async fn publish(events: usize, customers: u32) -> NatsServer {
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let started = Instant::now();
    nats::publish(&context, messages(events, customers)).await;
    eprintln!(
        "published {events} events of {customers} customers in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    server
}

/// The stream as a source of the host.
pub fn source(server: &NatsServer) -> JetStream {
    let options = Options {
        name: "orders".to_owned(),
        stream: STREAM.to_owned(),
        servers: vec![server.url()],
        ..Options::default()
    };
    JetStream::new(options).expect("a plain address is usable")
}
