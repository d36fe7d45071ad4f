//! Order events as the suite and the bench publish them: drawn by a seed, about 200 bytes each.

use std::fmt::Write as _;

use bytes::Bytes;
use foldstream::api::NewEvent;

/// The types of events, as the last token of their subject.
pub const KINDS: [&str; 5] = ["placed", "paid", "shipped", "cancelled", "refunded"];

/// One order event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Number of the customer.
    pub customer: u32,
    /// Its type.
    pub kind: &'static str,
    /// Amount in cents; negative for money that goes back.
    pub amount: i64,
    /// Its number.
    pub number: u64,
}

impl Order {
    /// `orders.<customer>.<type>`.
    pub fn subject(&self) -> String {
        format!("orders.{}.{}", self.customer, self.kind)
    }

    /// Its JSON, about 200 bytes.
    pub fn data(&self) -> String {
        let mut text = String::with_capacity(224);
        let Self {
            customer,
            kind,
            amount,
            number,
        } = self;
        let (day, hour, minute, second) = (
            number / 86_400 % 28 + 1,
            number / 3_600 % 24,
            number / 60 % 60,
            number % 60,
        );
        write!(
            text,
            r#"{{"order":"o-{number:010}","customer":{customer},"type":"{kind}","amount":{amount},"currency":"EUR","#
        )
        .expect("a string takes text");
        write!(
            text,
            r#""placed_at":"2026-03-{day:02}T{hour:02}:{minute:02}:{second:02}Z","items":[{{"sku":"sku-{:05}","quantity":{}}}],"channel":"web"}}"#,
            number % 99_991,
            number % 5 + 1,
        )
        .expect("a string takes text");
        text
    }

    /// As a message for a stream.
    pub fn message(&self) -> (String, Bytes) {
        (self.subject(), Bytes::from(self.data()))
    }

    /// As an event for the embedded log.
    pub fn new_event(&self) -> NewEvent {
        NewEvent {
            subject: self.subject(),
            kind: None,
            id: None,
            time: None,
            headers: std::collections::BTreeMap::new(),
            data: serde_json::from_str(&self.data()).expect("our data is JSON"),
        }
    }
}

/// An endless row of orders: the same seed draws the same row.
#[derive(Clone, Debug)]
pub struct Orders {
    random: fastrand::Rng,
    customers: u32,
    number: u64,
}

impl Orders {
    /// Orders of this many customers.
    pub fn new(seed: u64, customers: u32) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            customers,
            number: 0,
        }
    }
}

impl Iterator for Orders {
    type Item = Order;

    fn next(&mut self) -> Option<Order> {
        self.number += 1;
        let kind = KINDS[self.random.usize(..KINDS.len())];
        let amount = self.random.i64(1..100_000);
        let amount = if kind == "refunded" { -amount } else { amount };
        Some(Order {
            customer: self.random.u32(..self.customers),
            kind,
            amount,
            number: self.number,
        })
    }
}
