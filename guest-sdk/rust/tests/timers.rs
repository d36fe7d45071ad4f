//! Timers of a handler in a test without a host.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{HandlerHarness, event, json};

const MINUTE: Duration = Duration::from_secs(60);

/// Sends a reminder when an order was not paid for half an hour, twice at most.
struct Reminder {
    /// How many reminders an order got.
    sent: Table<String, u64>,
}

impl Handler for Reminder {
    fn manifest() -> Manifest<Self> {
        Manifest::new("reminder")
            .subjects(["orders.*.*"])
            .publishes(["reminders.*"])
            .timers()
    }

    fn open(state: &State) -> Self {
        Self {
            sent: state.table("sent"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = event.token(2)?;
        match event.token(3)? {
            "placed" => effects.set_timer(Timer::after(event, 30 * MINUTE, format!("pay/{order}"))),
            "paid" => effects.cancel_timer(format!("pay/{order}")),
            _ => {}
        }
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = timer.part(2);
        if order == "broken" {
            return Err(Failure::reject("it is broken"));
        }
        let mut count = 0;
        self.sent.update(order, |sent| {
            *sent += 1;
            count = *sent;
        })?;
        effects.publish(Message::to(format!("reminders.{order}")));
        if count < 2 {
            effects.set_timer(Timer::at(timer.time() + 30 * MINUTE, timer.name()));
        }
        Ok(())
    }
}

fn happened(order: &str, what: &str) -> foldstream_sdk::testing::GivenEvent {
    event(&format!("orders.{order}.{what}"), json!({}))
}

#[test]
fn timers_fire_in_order_while_time_passes_and_may_be_set_again() {
    let mut reminder = HandlerHarness::<Reminder>::new();
    reminder.given([
        happened("1", "placed"),
        happened("2", "placed"),
        happened("3", "placed"),
        happened("2", "paid"),
    ]);
    let pending: Vec<_> = reminder
        .timers()
        .into_iter()
        .map(|timer| timer.name)
        .collect();
    assert_eq!(pending, ["pay/1", "pay/3"]);
    assert_eq!(reminder.published(), []);
    reminder.after(20 * MINUTE);
    assert_eq!(reminder.published(), []);
    reminder.after(20 * MINUTE).given([happened("1", "paid")]);
    reminder.after(60 * MINUTE);
    let subjects: Vec<_> = reminder
        .published()
        .into_iter()
        .map(|message| message.subject)
        .collect();
    assert_eq!(subjects, ["reminders.1", "reminders.3", "reminders.3"]);
    assert_eq!(reminder.timers(), []);
    assert_eq!(reminder.get("sent/3"), Some(json!(2)));
    reminder.assert_same_for_any_batching();
}

#[test]
fn timer_that_fails_stays_pending_and_changes_nothing() {
    let mut reminder = HandlerHarness::<Reminder>::new();
    reminder.given([happened("broken", "placed")]);
    let refused = reminder.let_pass(60 * MINUTE).expect_err("it is broken");
    assert!(refused.to_string().contains("pay/broken"), "{refused}");
    assert_eq!(reminder.timers().len(), 1);
    assert_eq!(reminder.published(), []);
}
