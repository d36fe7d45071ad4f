//! Sagas without a coordinator, on a real host: checkout, stock and shipping know only each other's
//! events, and each order is delivered or undone.

use std::collections::{BTreeMap, BTreeSet};

use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests, wait};
use serde_json::{Value, json};

use crate::sagas::{
    FLUSHES, PARTICIPANTS, deploy_participants, grants, list_of, placed, placed_with, settled,
    stored, stories,
};

const CHECKOUT: Service = Service {
    name: "saga-checkout",
    folder: "saga-choreographed/checkout",
    publishes: &[
        "payment.*.charge",
        "payment.*.refund",
        "orders.*.paid",
        "orders.*.rejected",
    ],
};
const STOCK: Service = Service {
    name: "saga-stock",
    folder: "saga-choreographed/stock",
    publishes: &[
        "stock.*.reserved",
        "stock.*.out-of-stock",
        "stock.*.released",
    ],
};
const SHIPPING: Service = Service {
    name: "saga-shipping",
    folder: "saga-choreographed/shipping",
    publishes: &["shipping.*.sent", "shipping.*.refused"],
};

/// A module of the example.
struct Service {
    /// Of its manifest and deployment.
    name: &'static str,
    folder: &'static str,
    publishes: &'static [&'static str],
}

impl Service {
    /// Deploys it. It also publishes for what happened before.
    async fn deploy(&self, client: &Client) {
        let parameters = format!("&effects-from=beginning{}", grants(self.publishes));
        let module = guests::module(self.folder);
        client.deploy_with(self.name, &module, &parameters).await;
    }
}

/// A host with the provider of payments and some services.
async fn start(services: &[&Service]) -> Host {
    let host = Host::start_with(FLUSHES).await;
    deploy_participants(&host).await;
    for service in services {
        service.deploy(host.client()).await;
    }
    host
}

/// Waits until the only order waits for its delivery, and its goods are reserved.
async fn waits_for_delivery(client: &Client) -> api::SagaInstance {
    wait::until("goods to be reserved", async || {
        let all = stored(client).await;
        all.iter()
            .any(|event| event["subject"] == "stock.1.reserved")
            .then_some(())
    })
    .await;
    wait::until("the order to wait for its delivery", async || {
        let found = list_of(client, CHECKOUT.name, "step=delivery").await;
        found.instances.into_iter().next()
    })
    .await
}

#[tokio::test]
async fn killed_again_and_again_services_without_a_coordinator_deliver_or_undo_each_order() {
    let mut host = start(&[&CHECKOUT, &STOCK, &SHIPPING]).await;
    let fates: [&[(&str, &str)]; 7] = [
        &[],
        &[("card", "declined")],
        &[("card", "busy")],
        &[("card", "slow")],
        &[("item", "sold-out")],
        &[("address", "nowhere")],
        &[("card", "refund-later"), ("item", "sold-out")],
    ];
    let rounds = 4;
    for round in 0..rounds {
        host.client().append(&placed_with(round, &fates)).await;
        // Somewhere in the middle of what the orders cause.
        wait::until("some of it to happen", async || {
            let found = list_of(host.client(), CHECKOUT.name, "status=completed&limit=1000").await;
            (found.instances.len() > round).then_some(())
        })
        .await;
        host.kill();
        host.restart().await;
    }
    let client = host.client();
    let shown = settled(client, CHECKOUT.name, (fates.len() * rounds) as u64).await;
    assert!(
        shown.ended["completed"] > 0 && shown.ended["compensated"] > 0,
        "{shown:?}"
    );
    // The slow card answers in the end, long after everybody has given up.
    wait::until("late answers of payment", async || {
        let all = stored(client).await;
        let is_late = |event: &&serde_json::Value| {
            event["subject"]
                .as_str()
                .is_some_and(|subject| subject.ends_with("-3.charged"))
        };
        (all.iter().filter(is_late).count() == rounds).then_some(())
    })
    .await;
    let handlers = [PARTICIPANTS, CHECKOUT.name, STOCK.name, SHIPPING.name];
    let stories = stories(client, &handlers).await;
    assert_eq!(stories.len(), fates.len() * rounds);
    for (order, story) in stories {
        assert_is_delivered_or_undone(&order, &story);
    }
    cli::on(&host, &["verify", CHECKOUT.name, "--seed", "7"]).expect(0);
}

/// Goods are sent for money, or what was reserved and charged is given back, the goods first.
fn assert_is_delivered_or_undone(order: &str, story: &[String]) {
    let place = |what: &str| story.iter().rposition(|told| told == what);
    for once in [
        "orders paid",
        "stock reserved",
        "shipping sent",
        "orders rejected",
    ] {
        let count = story.iter().filter(|told| *told == once).count();
        assert!(count <= 1, "{order}: {count} of {once}: {story:?}");
    }
    if place("shipping sent").is_some() {
        let first = |what: &str| story.iter().position(|told| told == what);
        assert!(
            first("payment charged") < first("orders paid"),
            "{order}: {story:?}"
        );
        for undone in ["payment refund", "stock released", "orders rejected"] {
            assert_eq!(place(undone), None, "{order}: {undone}: {story:?}");
        }
        return;
    }
    assert!(place("orders rejected").is_some(), "{order}: {story:?}");
    let is_undone = |done: &str, undone: &str| place(done).is_none() || place(undone).is_some();
    assert!(
        is_undone("payment charged", "payment refunded"),
        "{order}: {story:?}"
    );
    assert!(
        is_undone("stock reserved", "stock released"),
        "{order}: {story:?}"
    );
    if let Some(released) = place("stock released") {
        let refund = story.iter().position(|told| told == "payment refund");
        assert!(Some(released) < refund, "{order}: {story:?}");
    }
}

#[tokio::test]
async fn a_delivery_that_nobody_mentions_is_listed_until_somebody_decides() {
    // Nobody ships.
    let host = start(&[&CHECKOUT, &STOCK]).await;
    let client = host.client();
    client.append(&[placed("1", &[])]).await;
    let waiting = waits_for_delivery(client).await;
    assert_eq!(
        (waiting.status, waiting.due.as_ref()),
        (api::SagaStatus::Running, None),
        "{waiting:?}"
    );
    let shown = cli::on(&host, &["show", CHECKOUT.name]).expect(0);
    assert!(
        shown
            .stdout
            .contains("checkout: 1 running at delivery, the oldest since"),
        "{}",
        shown.stdout
    );
    // What shipping would say: stock and checkout undo what they did.
    cli::on(&host, &["events", "append", "shipping.1.refused", "{}"]).expect(0);
    settled(client, CHECKOUT.name, 1).await;
    let told = stories(client, &[CHECKOUT.name, STOCK.name]).await;
    assert_is_delivered_or_undone("1", &told["1"]);
    assert!(told["1"].contains(&"stock released".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_service_that_is_deployed_late_delivers_what_waits_for_it() {
    let host = start(&[&CHECKOUT, &STOCK]).await;
    let client = host.client();
    client.append(&[placed("1", &[])]).await;
    waits_for_delivery(client).await;
    SHIPPING.deploy(client).await;
    let shown = settled(client, CHECKOUT.name, 1).await;
    assert_eq!(json!(shown.ended), json!({ "completed": 1 }));
    let told = stories(client, &[CHECKOUT.name, STOCK.name, SHIPPING.name]).await;
    assert_is_delivered_or_undone("1", &told["1"]);
}

/// A trace that a client began, and its state.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const STATE: &str = "shop=1";

/// Places an order with a trace, as a CloudEvent.
async fn place_traced(client: &Client) {
    let order = json!({
        "specversion": "1.0", "id": "order-1", "source": "/shop", "type": "placed",
        "correlationid": "cart-9",
        "traceparent": format!("00-{TRACE}-{SPAN}-01"), "tracestate": STATE,
        "data": placed("1", &[]).data,
    });
    let path = "/v1/events?subject=orders.1.placed";
    let kind = "application/cloudevents+json";
    client.post(path, kind, order.to_string()).await.expect(200);
}

/// A header of an event of the log.
fn header<'a>(event: &'a Value, name: &str) -> &'a str {
    event["headers"][name]
        .as_str()
        .unwrap_or_else(|| panic!("it has no {name}: {event:#}"))
}

#[tokio::test]
async fn messages_of_a_chain_of_handlers_continue_the_trace_and_name_their_causes() {
    let host = start(&[&CHECKOUT, &STOCK, &SHIPPING]).await;
    let client = host.client();
    place_traced(client).await;
    let shown = settled(client, CHECKOUT.name, 1).await;
    assert_eq!(json!(shown.ended), json!({ "completed": 1 }));
    let handlers = [PARTICIPANTS, CHECKOUT.name, STOCK.name, SHIPPING.name];
    stories(client, &handlers).await;
    let all = stored(client).await;
    assert_eq!(header(&all[0], "ce-id"), "order-1");

    // Each message has a span of its own in the same trace, and names an event before it.
    let mut spans = BTreeSet::from([SPAN.to_owned()]);
    let mut causes: BTreeMap<&str, &Value> = BTreeMap::from([("order-1", &all[0])]);
    for message in &all[1..] {
        let parent: Vec<_> = header(message, "traceparent").split('-').collect();
        assert_eq!((parent[0], parent[1], parent[3]), ("00", TRACE, "01"));
        assert!(spans.insert(parent[2].to_owned()), "{message:#}");
        assert_eq!(header(message, "tracestate"), STATE);
        assert_eq!(header(message, "ce-correlationid"), "cart-9");
        let cause = header(message, "ce-causationid");
        assert!(
            causes.contains_key(cause),
            "{cause} did not come before {message:#}"
        );
        causes.insert(header(message, "ce-id"), message);
    }

    // From the last message back to the order, through all services.
    let sent = all
        .iter()
        .find(|event| event["subject"] == "shipping.1.sent");
    let (mut event, mut path) = (sent.expect("the order is sent"), Vec::new());
    while header(event, "ce-id") != "order-1" {
        path.push(header(event, "ce-source"));
        event = causes[header(event, "ce-causationid")];
    }
    for handler in handlers {
        assert!(
            path.contains(&format!("/foldstream/{handler}").as_str()),
            "{path:?}"
        );
    }
}
