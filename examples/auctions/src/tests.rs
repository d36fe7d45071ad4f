//! Scenarios: events in, entries and answers out, without Wasm.

use foldstream_sdk::testing::{GivenEvent, Harness, event, events_from_ndjson, json};

use super::*;

#[path = "../examples/auction-samples.rs"]
mod samples;

const SAMPLES: &str = include_str!("../events.ndjson");

fn person(id: u64, name: &str) -> GivenEvent {
    event(
        &format!("auctions.{id}.person"),
        json!({"name": name, "city": "Bern"}),
    )
    .at("2026-10-01T08:00:00Z")
}

fn auction(id: u64, seller: u64, reserve: u64, expires: &str) -> GivenEvent {
    let data = json!({"item": "lamp", "category": 3, "seller": seller, "reserve_cents": reserve, "expires": expires});
    event(&format!("auctions.{id}.auction"), data).at("2026-10-01T09:00:00Z")
}

fn bid(id: u64, bidder: u64, price: u64, time: &str) -> GivenEvent {
    event(
        &format!("auctions.{id}.bid"),
        json!({"bidder": bidder, "price_cents": price}),
    )
    .at(time)
}

#[test]
fn of_equal_bids_the_first_one_is_the_highest() {
    let mut auctions = Harness::<Auctions>::new();
    auctions.given([
        person(1, "Ada"),
        person(2, "Grace"),
        auction(1001, 7, 0, "2026-10-01T12:00:00Z"),
        bid(1001, 1, 500, "2026-10-01T10:00:00Z"),
        bid(1001, 2, 500, "2026-10-01T10:00:01Z"),
        bid(1001, 2, 400, "2026-10-01T10:00:02Z"),
    ]);

    let highest = json!({"item": "lamp", "price_cents": 500, "bidder": "Ada", "settled": false});
    assert_eq!(
        auctions.query("highest-bid", json!({"auction": 1001})),
        Ok(highest)
    );
    assert_eq!(
        auctions.query("highest-bid", json!({"auction": 1002})),
        Err(QueryError::NotFound)
    );
}

#[test]
fn an_auction_is_settled_by_the_first_event_after_it_expired() {
    let mut auctions = Harness::<Auctions>::new();
    auctions.given([
        person(7, "Hedy"),
        auction(1001, 7, 300, "2026-10-01T12:00:00Z"),
        auction(1002, 7, 300, "2026-10-01T12:00:00Z"),
        auction(1003, 7, 0, "2026-10-02T12:00:00Z"),
        bid(1001, 1, 500, "2026-10-01T10:00:00Z"),
        bid(1002, 1, 200, "2026-10-01T10:00:00Z"),
        bid(1003, 1, 900, "2026-10-01T10:00:00Z"),
    ]);
    assert_eq!(
        auctions.query("seller", json!({"seller": 7})),
        Err(QueryError::NotFound)
    );

    // This bid comes too late for the auction that it is for, and settles it.
    auctions.given([bid(1001, 2, 9_999, "2026-10-01T12:00:00Z")]);

    let hedy = json!({"seller": 7, "name": "Hedy", "ended": 2, "sold": 1, "total_cents": 500});
    assert_eq!(
        auctions.query("seller", json!({"seller": 7})),
        Ok(hedy.clone())
    );
    assert_eq!(auctions.query("sellers", json!(null)), Ok(json!([hedy])));
    assert_eq!(
        auctions.query("sellers", json!({"after": 7})),
        Ok(json!([]))
    );
    let average = json!([{"category": 3, "sold": 1, "average_cents": 500}]);
    assert_eq!(
        auctions.query("average-price", json!({"category": 3})),
        Ok(average.clone())
    );
    assert_eq!(auctions.query("average-price", json!({})), Ok(average));
    assert_eq!(auctions.entries("open/").len(), 1);
    auctions.assert_same_for_any_batching();
}

#[test]
fn a_subject_without_a_number_is_rejected() {
    let refused = Harness::<Auctions>::new().apply([event("auctions.lamp.bid", json!({}))]);
    assert!(
        refused
            .expect_err("lamp is no number")
            .to_string()
            .contains("rejected")
    );
}

#[test]
fn samples_are_what_the_generator_writes_and_all_are_applied() {
    assert_eq!(
        SAMPLES,
        samples::events(),
        "run: cargo run -p auctions --example auction-samples > events.ndjson"
    );
    let mut auctions = Harness::<Auctions>::new();
    auctions
        .given(events_from_ndjson(SAMPLES))
        .assert_same_for_any_batching();

    let (all, open) = (
        auctions.entries("auction/").len() as u64,
        auctions.entries("open/").len() as u64,
    );
    let ended = |prefix: &str| -> u64 {
        auctions
            .entries(prefix)
            .iter()
            .map(|(_, sales)| sales["ended"].as_u64().expect("a number"))
            .sum()
    };
    assert_eq!(all, samples::AUCTIONS);
    assert!(open > 0 && open < all, "{open} of {all} are open");
    assert_eq!(
        (ended("category/"), ended("seller/")),
        (all - open, all - open)
    );
}
