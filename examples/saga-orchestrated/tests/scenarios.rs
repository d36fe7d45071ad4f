//! What becomes of an order, for each thing that can go wrong. The coordinator and the participants
//! run together, without a host.

use std::time::Duration;

use foldstream_sdk::testing::{GivenEvent, HandlerHarness, Value, event, json};
use saga_orchestrated::Fulfilment;
use saga_participants::Participants;

/// Both modules, and how much of what each published has reached the other.
struct World {
    fulfilment: HandlerHarness<Fulfilment>,
    participants: HandlerHarness<Participants>,
    passed: (usize, usize),
    /// How often each answer arrives.
    copies: usize,
}

impl World {
    fn new() -> Self {
        Self {
            fulfilment: HandlerHarness::new(),
            participants: HandlerHarness::new(),
            passed: (0, 0),
            copies: 1,
        }
    }

    /// Places an order, and lets everybody react.
    fn placed(&mut self, changes: &[(&str, &str)]) -> &mut Self {
        let mut order = json!({
            "cents": 4_200, "item": "lamp", "card": "valid", "address": "1 Main Street",
        });
        for (field, value) in changes {
            order[*field] = json!(value);
        }
        self.happens(event("orders.1.placed", order))
    }

    fn happens(&mut self, event: GivenEvent) -> &mut Self {
        self.fulfilment.given([event]);
        self.settle()
    }

    /// Passes messages on until nobody says anything.
    fn settle(&mut self) -> &mut Self {
        loop {
            let commands = self.fulfilment.published().split_off(self.passed.0);
            let answers = self.participants.published().split_off(self.passed.1);
            if commands.is_empty() && answers.is_empty() {
                return self;
            }
            self.passed.0 += commands.len();
            self.passed.1 += answers.len();
            self.participants
                .given(commands.into_iter().map(GivenEvent::from));
            for answer in answers {
                let copies = std::iter::repeat_n(GivenEvent::from(answer), self.copies);
                self.fulfilment.given(copies);
            }
        }
    }

    /// Lets time pass, in steps that are short enough for all time-outs.
    fn after(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds * 4 {
            self.fulfilment.after(Duration::from_millis(250));
            self.participants.after(Duration::from_millis(250));
            self.settle();
        }
        self
    }

    fn instance(&self) -> Value {
        let instance = self.fulfilment.get("saga/order-fulfilment/1");
        instance.expect("the order has a saga")
    }

    /// What was published about the order, without its number.
    fn published(&self) -> Vec<String> {
        let published = self.fulfilment.published().into_iter();
        published
            .map(|message| message.subject.replace(".1.", " "))
            .collect()
    }

    fn assert_published(&self, wanted: &[&str]) {
        assert_eq!(self.published(), wanted);
        self.fulfilment.assert_same_for_any_batching();
    }

    fn assert_rejected(&self, reason: &str) {
        let instance = self.instance();
        assert_eq!(
            (&instance["status"], &instance["reason"]),
            (&json!("compensated"), &json!(reason)),
            "{instance:#}"
        );
    }
}

#[test]
fn an_order_is_charged_reserved_and_shipped() {
    let mut world = World::new();
    world.placed(&[]);
    world.assert_published(&[
        "payment charge",
        "stock reserve",
        "shipping send",
        "orders fulfilled",
    ]);
    assert_eq!(world.instance()["data"]["payment"], "payment-of-1");
}

#[test]
fn a_declined_payment_rejects_the_order_and_there_is_nothing_to_undo() {
    let mut world = World::new();
    world.placed(&[("card", "declined")]);
    world.assert_published(&["payment charge", "orders rejected"]);
    world.assert_rejected("payment: declined");
}

#[test]
fn a_payment_that_is_busy_is_tried_again() {
    let mut world = World::new();
    world.placed(&[("card", "busy")]).after(3);
    world.assert_published(&[
        "payment charge",
        "payment charge",
        "stock reserve",
        "shipping send",
        "orders fulfilled",
    ]);
}

#[test]
fn a_payment_that_never_answers_is_tried_again_and_then_refunded_in_case() {
    let mut world = World::new();
    world.placed(&[("card", "silent")]);
    assert_eq!(world.instance()["step"], "payment");
    world.after(10);
    world.assert_published(&[
        "payment charge",
        "payment charge",
        "payment refund",
        "orders rejected",
    ]);
    world.assert_rejected("payment: no answer within 3s");
}

#[test]
fn an_answer_after_the_time_out_changes_nothing_any_more() {
    let mut world = World::new();
    world.placed(&[("card", "slow")]).after(30);
    world.assert_published(&[
        "payment charge",
        "payment charge",
        "payment refund",
        "orders rejected",
    ]);
    let counts = world.fulfilment.get("saga-count/order-fulfilment");
    assert_eq!(counts.expect("it counts")["ignored"], json!({ "ended": 1 }));
}

#[test]
fn goods_that_are_sold_out_after_the_payment_lead_to_a_refund() {
    let mut world = World::new();
    world.placed(&[("item", "sold-out")]);
    world.assert_published(&[
        "payment charge",
        "stock reserve",
        "payment refund",
        "orders rejected",
    ]);
    world.assert_rejected("stock: out-of-stock");
}

#[test]
fn goods_that_cannot_be_shipped_are_restocked_and_then_refunded() {
    let mut world = World::new();
    world.placed(&[("address", "nowhere")]);
    world.assert_published(&[
        "payment charge",
        "stock reserve",
        "shipping send",
        "stock release",
        "payment refund",
        "orders rejected",
    ]);
    world.assert_rejected("shipping: refused");
}

#[test]
fn answers_that_come_twice_are_taken_once() {
    for changes in [&[][..], &[("address", "nowhere")], &[("item", "sold-out")]] {
        let (mut once, mut twice) = (World::new(), World::new());
        twice.copies = 2;
        once.placed(changes);
        twice.placed(changes);
        assert_eq!(once.published(), twice.published());
    }
}

#[test]
fn a_refund_that_fails_is_tried_again() {
    let mut world = World::new();
    world
        .placed(&[("card", "refund-later"), ("item", "sold-out")])
        .after(3);
    world.assert_published(&[
        "payment charge",
        "stock reserve",
        "payment refund",
        "payment refund",
        "orders rejected",
    ]);
}

#[test]
fn a_refund_that_always_fails_waits_for_an_operator() {
    for (operator, end) in [("resume", "orders stuck"), ("skip", "orders rejected")] {
        let mut world = World::new();
        world
            .placed(&[("card", "no-refund"), ("item", "sold-out")])
            .after(10);
        assert_eq!(world.instance()["status"], "stuck");
        assert_eq!(
            world.published().last().map(String::as_str),
            Some("orders stuck")
        );
        world
            .happens(event(&format!("orders.1.{operator}"), json!({})))
            .after(10);
        assert_eq!(
            world.published().last().map(String::as_str),
            Some(end),
            "{operator}"
        );
    }
}

#[test]
fn an_order_that_is_cancelled_in_the_middle_is_undone() {
    let mut world = World::new();
    world.placed(&[("card", "silent")]);
    world.happens(event("orders.1.cancelled", json!({})));
    world.assert_published(&["payment charge", "payment refund", "orders rejected"]);
    world.assert_rejected("cancelled: cancelled");
}

#[test]
fn an_order_that_is_being_shipped_is_not_cancelled() {
    let mut world = World::new();
    let order = json!({ "cents": 1, "item": "lamp", "card": "valid", "address": "1 Main Street" });
    // Shipping has not answered yet.
    world.fulfilment.given([
        event("orders.1.placed", order),
        event("payment.1.charged", json!({ "payment": "p" })),
        event("stock.1.reserved", json!({})),
        event("orders.1.cancelled", json!({})),
    ]);
    assert_eq!(world.instance()["step"], "shipping");
    world.settle();
    assert_eq!(world.instance()["status"], "completed");
}

#[test]
fn an_order_that_is_placed_twice_is_fulfilled_once() {
    let mut world = World::new();
    world.placed(&[]).placed(&[]);
    assert_eq!(world.published().len(), 4);
}
