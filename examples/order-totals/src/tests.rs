//! Scenarios: events in, entries and answers out, without Wasm.

use foldstream_sdk::testing::{GivenEvent, Harness, event, events_from_ndjson, json};

use super::*;

#[path = "../examples/order-samples.rs"]
mod samples;

const SAMPLES: &str = include_str!("../events.ndjson");

fn placed(customer: &str, order: &str, cents: u64) -> GivenEvent {
    event(
        &format!("orders.{customer}.placed"),
        json!({"order": order, "total_cents": cents}),
    )
}

#[test]
fn orders_add_up_per_customer_and_day() {
    let mut orders = Harness::<OrderTotals>::new();
    orders.given([
        placed("ada", "1", 1_000).at("2026-10-01T23:59:59Z"),
        placed("ada", "2", 500).at("2026-10-02T00:00:00Z"),
        placed("grace", "3", 700),
        event("orders.ada.paid", json!({"order": "1", "method": "card"})),
        event(
            "orders.ada.shipped",
            json!({"order": "1", "carrier": "post"}),
        ),
    ]);

    assert_eq!(
        orders.query("customer", json!({"customer": "ada"})),
        Ok(json!({"orders": 2, "total_cents": 1_500, "paid_cents": 1_000, "shipped": 1}))
    );
    assert_eq!(
        orders.query(
            "days",
            json!({"customer": "ada", "from": "2026-10-02", "to": "2026-10-30"})
        ),
        Ok(
            json!([["2026-10-02", {"orders": 1, "total_cents": 500, "paid_cents": 0, "shipped": 0}]])
        )
    );
    orders.assert_same_for_any_batching();
}

#[test]
fn cancelled_and_returned_orders_count_on_the_day_they_were_placed() {
    let mut orders = Harness::<OrderTotals>::new();
    orders.given([
        placed("ada", "1", 1_000).at("2026-10-01T10:00:00Z"),
        placed("ada", "2", 500).at("2026-10-01T11:00:00Z"),
        event("orders.ada.cancelled", json!({"order": "1"})).at("2026-10-03T00:00:00Z"),
        event(
            "orders.ada.returned",
            json!({"order": "2", "refund_cents": 200}),
        ),
    ]);

    // A second cancellation finds no order.
    orders.given([event("orders.ada.cancelled", json!({"order": "1"}))]);
    let totals = json!({"orders": 1, "total_cents": 300, "paid_cents": 0, "shipped": 0});
    assert_eq!(
        orders.entries("day/"),
        [("day/ada/2026-10-01".to_owned(), totals)]
    );
}

#[test]
fn ranking_has_each_customer_once_and_the_largest_total_first() {
    let mut orders = Harness::<OrderTotals>::new();
    orders.given([
        placed("ada", "1", 100),
        placed("grace", "2", 900),
        placed("ada", "3", 5_000),
    ]);
    orders.given([event("orders.ada.cancelled", json!({"order": "3"}))]);

    let [grace, ada] = [
        json!({"customer": "grace", "total_cents": 900}),
        json!({"customer": "ada", "total_cents": 100}),
    ];
    assert_eq!(
        orders.query("top-customers", json!({"limit": 1})),
        Ok(json!([grace]))
    );
    assert_eq!(
        orders.query("top-customers", json!(null)),
        Ok(json!([grace, ada]))
    );
}

#[test]
fn an_order_that_was_never_placed_changes_nothing() {
    let mut orders = Harness::<OrderTotals>::new();
    orders.given([
        event("orders.ada.paid", json!({"order": "1"})),
        event("orders.ada.praised", json!({})),
    ]);
    assert_eq!(orders.entries(""), []);
}

#[test]
fn an_event_without_its_fields_is_rejected() {
    let refused = Harness::<OrderTotals>::new()
        .apply([placed("ada", "1", 1), event("orders.ada.placed", json!({}))]);
    let message = refused.expect_err("the second has no order").to_string();
    assert!(
        message.starts_with("event 2 (orders.ada.placed) was not applied: rejected"),
        "{message}"
    );
}

#[test]
fn samples_are_what_the_generator_writes_and_all_are_applied() {
    assert_eq!(
        SAMPLES,
        samples::events(),
        "run: cargo run -p order-totals --example order-samples > events.ndjson"
    );
    let mut orders = Harness::<OrderTotals>::new();
    orders
        .given(events_from_ndjson(SAMPLES))
        .assert_same_for_any_batching();

    let customers = orders.entries("customer/");
    assert_eq!(customers.len(), samples::CUSTOMERS.len());
    let sum = |entries: &[(String, foldstream_sdk::testing::Value)]| -> u64 {
        entries
            .iter()
            .map(|(_, totals)| totals["total_cents"].as_u64().expect("a number"))
            .sum()
    };
    assert_eq!(sum(&customers), sum(&orders.entries("day/")));
    assert_eq!(orders.entries("rank/").len(), customers.len());
}
