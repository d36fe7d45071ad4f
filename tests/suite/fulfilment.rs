//! The example handler does what its README says.

use foldstream_tests::guests;
use foldstream_tests::host::Host;
use foldstream_tests::wait;
use serde_json::{Value, json};

#[tokio::test]
async fn each_order_that_is_placed_and_paid_is_sent_once() {
    let mut host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(
            "fulfilment",
            &guests::module("fulfilment"),
            "&allow-publish=shipping.*.send%40events",
        )
        .await;
    let events = std::fs::read(guests::folder("fulfilment").join("events.ndjson"))
        .expect("the example has events");
    client
        .post("/v1/events", "application/x-ndjson", events)
        .await
        .expect(200);
    let sent = async |host: &Host| -> Vec<Value> {
        let page = host
            .client()
            .get("/v1/events?subject=shipping.%3E")
            .await
            .expect(200)
            .value();
        page["events"].as_array().expect("a list").clone()
    };
    wait::until("two orders to be sent", || async {
        (sent(&host).await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(host.stop().code(), Some(0));
    host.restart().await;
    host.client().reached("fulfilment", 6).await;
    let sent = sent(&host).await;
    let subjects: Vec<_> = sent
        .iter()
        .map(|event| event["subject"].as_str().expect("a subject"))
        .collect();
    assert_eq!(subjects, ["shipping.1001.send", "shipping.1003.send"]);
    assert_eq!(
        sent[0]["data"],
        json!({ "order": "1001", "address": "1 Main Street" })
    );
    let order = host
        .client()
        .query("fulfilment", "order", &json!("1002"))
        .await
        .expect(200)
        .value();
    assert_eq!(
        (&order["cancelled"], &order["asked"]),
        (&json!(true), &json!(false))
    );
}
