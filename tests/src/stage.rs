//! A host with its source, and a model that is fed the same events: the start of most tests.

use async_nats::jetstream;
use foldstream::api;

use crate::client::Client;
use crate::host::Host;
use crate::model::Ledger;
use crate::nats::{self, NatsServer};
use crate::orders::{Order, Orders};
use crate::{guests, wait};

/// Name of the stream and of the deployment in all of them.
pub const STREAM: &str = "ORDERS";
/// Name of the deployment of the guest `ledger`.
pub const LEDGER: &str = "ledger";

/// Most events in one append to the embedded log.
const APPEND: usize = 1_000;

/// Customers of the orders: few enough that keys are hot, many enough that a batch has several.
const CUSTOMERS: u32 = 100;

/// The sources that claims about delivery hold for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream of a real nats-server.
    JetStream,
    /// The host's own log.
    Embedded,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::JetStream, Self::Embedded];
}

/// A server, and the context of the stream on it.
type Stream = (NatsServer, jetstream::Context);

/// A running host with its source.
#[derive(Debug)]
pub struct Stage {
    /// The host.
    pub host: Host,
    /// What the ledger has to be.
    pub model: Ledger,
    /// The server and the context of the stream, on JetStream.
    stream: Option<Stream>,
    orders: Orders,
}

impl Stage {
    /// A host on a source, with nothing deployed.
    pub async fn start(kind: Kind) -> Self {
        Self::start_with(kind, "").await
    }

    /// The same with lines of configuration, which must not begin a source.
    pub async fn start_with(kind: Kind, config: &str) -> Self {
        let (config, stream) = prepare(kind, config).await;
        Self::of(Host::start_with(&config).await, stream)
    }

    fn of(host: Host, stream: Option<Stream>) -> Self {
        let orders = Orders::new(crate::seed(), CUSTOMERS);
        Self {
            host,
            model: Ledger::default(),
            stream,
            orders,
        }
    }

    /// A host on a source with the ledger deployed.
    pub async fn with_ledger(kind: Kind) -> Self {
        let stage = Self::start(kind).await;
        stage.deploy_ledger().await;
        stage
    }

    /// Deploys the ledger.
    pub async fn deploy_ledger(&self) -> api::Deployed {
        self.client()
            .deploy(LEDGER, &guests::module("ledger"))
            .await
    }

    /// Deploys the next version of the ledger, whose state is another one, and waits until that
    /// generation has a status.
    pub async fn deploy_next(&self, number: u64, status: api::GenerationStatus) -> api::Generation {
        self.client()
            .deploy(LEDGER, &guests::module("ledger-next"))
            .await;
        self.client().becomes(LEDGER, number, status).await
    }

    /// The client of the running host.
    pub fn client(&self) -> &Client {
        self.host.client()
    }

    /// The server, on JetStream.
    pub fn server(&mut self) -> &mut NatsServer {
        &mut self
            .stream
            .as_mut()
            .expect("the embedded log has no server")
            .0
    }

    /// The context of the stream, on JetStream.
    pub fn context(&self) -> &jetstream::Context {
        &self
            .stream
            .as_ref()
            .expect("the embedded log has no context")
            .1
    }

    /// Orders that nobody has seen yet.
    pub fn draw(&mut self, count: usize) -> Vec<Order> {
        self.orders.by_ref().take(count).collect()
    }

    /// Publishes this many orders and folds them into the model; returns the last sequence.
    pub async fn publish(&mut self, count: usize) -> u64 {
        let orders = self.draw(count);
        let last = match &self.stream {
            Some((_, context)) => nats::publish(context, orders.iter().map(Order::message)).await,
            None => append(self.host.client(), &orders).await,
        };
        // One publisher, so the sequences follow each other.
        let first = last + 1 - orders.len() as u64;
        for (sequence, order) in (first..).zip(&orders) {
            self.model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
        last
    }

    /// Waits until the ledger is where the model is, and compares all of its state.
    pub async fn assert_ledger_equals_model(&self) {
        self.assert_equals_model(LEDGER).await;
    }

    /// The same for another deployment of the ledger, of either version.
    pub async fn assert_equals_model(&self, name: &str) {
        // A candidate may take over between the two questions.
        let (shown, found) = loop {
            let shown = self.client().reached(name, self.model.last()).await;
            let found = self.client().entries(name, "").await;
            // The same before and after: both answers are of one generation.
            if self.client().show(name).await.generation == shown.generation {
                break (shown, found);
            }
        };
        let is_next = shown.module.state_version == 2;
        let wanted = if is_next {
            self.model.next_entries()
        } else {
            self.model.entries()
        };
        let difference = wanted
            .iter()
            .zip(&found)
            .find(|(wanted, found)| wanted != found);
        assert!(
            difference.is_none(),
            "state is not the fold: (wanted, found) = {difference:?}"
        );
        assert_eq!(
            found.len(),
            wanted.len(),
            "state has other keys than the fold"
        );
    }

    /// Waits until the ledger has applied at least this many events in this process.
    pub async fn applied(&self, count: u64) {
        let client = self.client();
        wait::until("events to be applied", || async {
            (client.show(LEDGER).await.events_applied >= count).then_some(())
        })
        .await;
    }
}

/// What a host is to be configured with, and the stream that it reads.
async fn prepare(kind: Kind, config: &str) -> (String, Option<Stream>) {
    if kind == Kind::Embedded {
        return (config.to_owned(), None);
    }
    let server = NatsServer::start().await;
    let context = server.jetstream().await;
    nats::create_stream(&context, STREAM, "orders.>").await;
    let config = format!(
        "{config}\n{}",
        crate::host::jetstream_source(&server.url(), STREAM)
    );
    (config, Some((server, context)))
}

async fn append(client: &Client, orders: &[Order]) -> u64 {
    let mut last = 0;
    for part in orders.chunks(APPEND) {
        let events: Vec<api::NewEvent> = part.iter().map(Order::new_event).collect();
        last = client.append(&events).await.last_sequence;
    }
    last
}
