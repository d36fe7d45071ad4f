//! What becomes of an order when nobody coordinates: checkout, stock and shipping react to each
//! other's events. They run together, without a host.

use std::time::Duration;

use foldstream_sdk::Handler;
use foldstream_sdk::testing::{GivenEvent, HandlerHarness, Value, event, json};
use saga_checkout::Checkout;
use saga_participants::Participants;
use saga_shipping::Shipping;
use saga_stock::Stock;

/// A handler, and how much of what it published has reached the others.
struct Service<H: Handler> {
    handler: HandlerHarness<H>,
    passed: usize,
}

impl<H: Handler> Service<H> {
    fn new() -> Self {
        Self {
            handler: HandlerHarness::new(),
            passed: 0,
        }
    }

    fn news(&mut self) -> Vec<GivenEvent> {
        let news = self.handler.published().split_off(self.passed);
        self.passed += news.len();
        news.into_iter().map(GivenEvent::from).collect()
    }
}

/// All services on one stream.
struct World {
    checkout: Service<Checkout>,
    stock: Service<Stock>,
    shipping: Service<Shipping>,
    payment: Service<Participants>,
    /// Everything that was published, without the number of the order.
    stream: Vec<String>,
    /// How often each event arrives.
    copies: usize,
}

impl World {
    fn new() -> Self {
        Self {
            checkout: Service::new(),
            stock: Service::new(),
            shipping: Service::new(),
            payment: Service::new(),
            stream: Vec::new(),
            copies: 1,
        }
    }

    fn placed(&mut self, changes: &[(&str, &str)]) -> &mut Self {
        let mut order = json!({
            "cents": 4_200, "item": "lamp", "card": "valid", "address": "1 Main Street",
        });
        for (field, value) in changes {
            order[*field] = json!(value);
        }
        self.happens(vec![event("orders.1.placed", order)])
    }

    /// Passes events to everybody, and what they publish because of them, until all is quiet.
    fn happens(&mut self, mut events: Vec<GivenEvent>) -> &mut Self {
        while !events.is_empty() {
            let arriving = events
                .iter()
                .flat_map(|event| std::iter::repeat_n(event.clone(), self.copies));
            self.checkout.handler.given(arriving.clone());
            self.stock.handler.given(arriving.clone());
            self.shipping.handler.given(arriving.clone());
            self.payment.handler.given(arriving);
            events = self.news();
        }
        self
    }

    fn news(&mut self) -> Vec<GivenEvent> {
        let mut news = self.checkout.news();
        news.extend(self.stock.news());
        news.extend(self.shipping.news());
        news.extend(self.payment.news());
        let all = [
            self.checkout.handler.published(),
            self.stock.handler.published(),
            self.shipping.handler.published(),
        ];
        self.stream = all
            .iter()
            .flatten()
            .map(|message| message.subject.replace(".1.", " "))
            .collect();
        news
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds * 4 {
            self.checkout.handler.after(Duration::from_millis(250));
            self.payment.handler.after(Duration::from_millis(250));
            let news = self.news();
            self.happens(news);
        }
        self
    }

    fn instance(&self) -> Value {
        let instance = self.checkout.handler.get("saga/checkout/1");
        instance.expect("the order has a saga")
    }

    fn assert_ended(&self, status: &str, published: &[&str]) {
        assert_eq!(self.instance()["status"], status, "{:#}", self.instance());
        assert_eq!(self.stream, published);
        self.checkout.handler.assert_same_for_any_batching();
        self.stock.handler.assert_same_for_any_batching();
        self.shipping.handler.assert_same_for_any_batching();
    }
}

#[test]
fn an_order_is_paid_reserved_and_shipped() {
    let mut world = World::new();
    world.placed(&[]).assert_ended(
        "completed",
        &[
            "payment charge",
            "orders paid",
            "stock reserved",
            "shipping sent",
        ],
    );
}

#[test]
fn a_declined_payment_ships_nothing() {
    let mut world = World::new();
    world
        .placed(&[("card", "declined")])
        .assert_ended("compensated", &["payment charge", "orders rejected"]);
}

#[test]
fn an_answer_of_payment_after_the_time_out_ships_nothing() {
    for card in ["silent", "slow"] {
        let mut world = World::new();
        world.placed(&[("card", card)]).after(30).assert_ended(
            "compensated",
            &[
                "payment charge",
                "payment charge",
                "payment refund",
                "orders rejected",
            ],
        );
    }
}

#[test]
fn goods_that_are_sold_out_lead_to_a_refund() {
    let mut world = World::new();
    world.placed(&[("item", "sold-out")]).assert_ended(
        "compensated",
        &[
            "payment charge",
            "orders paid",
            "payment refund",
            "orders rejected",
            "stock out-of-stock",
        ],
    );
}

#[test]
fn goods_that_cannot_be_shipped_are_released_and_refunded() {
    let mut world = World::new();
    world.placed(&[("address", "nowhere")]).assert_ended(
        "compensated",
        &[
            "payment charge",
            "orders paid",
            "payment refund",
            "orders rejected",
            "stock reserved",
            "stock released",
            "shipping refused",
        ],
    );
}

#[test]
fn events_that_come_twice_are_taken_once() {
    for changes in [&[][..], &[("address", "nowhere")], &[("item", "sold-out")]] {
        let (mut once, mut twice) = (World::new(), World::new());
        twice.copies = 2;
        once.placed(changes);
        twice.placed(changes);
        assert_eq!(once.stream, twice.stream);
    }
}

#[test]
fn a_refund_that_fails_is_tried_again_and_then_waits_for_an_operator() {
    let mut world = World::new();
    world
        .placed(&[("card", "refund-later"), ("item", "sold-out")])
        .after(3);
    assert_eq!(world.instance()["status"], "compensated");
    let mut world = World::new();
    world
        .placed(&[("card", "no-refund"), ("item", "sold-out")])
        .after(10);
    assert_eq!(world.instance()["status"], "stuck");
    world.happens(vec![event("orders.1.skip", json!({}))]);
    assert_eq!(world.instance()["status"], "compensated");
}
