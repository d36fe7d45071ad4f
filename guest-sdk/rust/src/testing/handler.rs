//! What a harness shows of a handler: its messages and timers; and time that passes for it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{Harness, Refused, Stored, matches, refused};
use crate::effects::{Data, Message};
use crate::handler::{Handler, Handling};
use crate::time::Timestamp;

/// A handler over a state in memory, for tests.
///
/// ```
/// use foldstream_sdk::prelude::*;
/// use foldstream_sdk::testing::{HandlerHarness, event, json};
///
/// # struct Shipping;
/// # impl Handler for Shipping {
/// #     fn manifest() -> Manifest<Self> {
/// #         Manifest::new("shipping").subjects(["orders.*.placed"]).publishes(["shipping.*.cmd"])
/// #     }
/// #     fn open(_: &State) -> Self { Self }
/// #     fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
/// #         effects.publish(Message::to(format!("shipping.{}.cmd", event.token(2)?)).json(&json!({"ship": true}))?);
/// #         Ok(())
/// #     }
/// # }
/// let mut shipping = HandlerHarness::<Shipping>::new();
/// shipping.given([event("orders.7.placed", json!({}))]);
///
/// let [command] = &shipping.published()[..] else { panic!("one command") };
/// assert_eq!((command.subject.as_str(), &command.data), ("shipping.7.cmd", &json!({"ship": true})));
/// ```
pub type HandlerHarness<H> = Harness<Handling<H>>;

/// Most timers that fire while a test lets time pass.
const FIRINGS_MAX: usize = 100_000;

/// A timer that is pending in a test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PendingTimer {
    /// When it fires.
    pub at: Timestamp,
    /// Its name.
    pub name: String,
    /// The key that the handler gave it.
    pub key: Option<String>,
}

/// A message that a handler published in a test.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedMessage {
    /// Its subject.
    pub subject: String,
    /// Its type: the given one, or the last token of the subject.
    pub kind: String,
    /// The headers that the handler gave it.
    pub headers: BTreeMap<String, String>,
    /// Its data as JSON; other text as a string, octets as their text with replacements.
    pub data: Value,
    /// The key that the handler gave it.
    pub key: Option<String>,
    /// The time before which it is not sent.
    pub not_before: Option<Timestamp>,
    /// How long its stream keeps it.
    pub time_to_live: Option<Duration>,
    /// The subject or pattern on whose last sequence it depends, and that sequence.
    pub expected_last: Option<(String, u64)>,
}

impl<H: Handler> Harness<Handling<H>> {
    /// What the handler has published so far, in order.
    ///
    /// # Panics
    /// If a subject is not among those that the manifest declares with [`Manifest::publishes`](crate::Manifest::publishes): the
    /// host would refuse it.
    pub fn published(&self) -> Vec<PublishedMessage> {
        let published = self.memory.published.borrow();
        published
            .messages
            .iter()
            .map(|(_, message)| self.shown(message))
            .collect()
    }

    /// The pending timers, in the order in which they fire.
    ///
    /// # Panics
    /// If there are any and the manifest does not say so with [`Manifest::timers`](crate::Manifest::timers): the host would
    /// refuse them.
    pub fn timers(&self) -> Vec<PendingTimer> {
        let timers = self.memory.timers.borrow();
        assert!(
            self.manifest.timers || timers.pending.is_empty(),
            "it sets timers, which its manifest does not declare; add `timers()`"
        );
        let mut shown: Vec<_> = timers
            .pending
            .values()
            .map(|timer| PendingTimer {
                at: timer.at,
                name: timer.name.clone(),
                key: timer.key.clone(),
            })
            .collect();
        shown.sort();
        shown
    }

    /// Lets time pass after the last event, and fires the timers that are due meanwhile, in order.
    ///
    /// # Panics
    /// If a timer cannot be handled; see [`Harness::let_pass`].
    pub fn after(&mut self, span: Duration) -> &mut Self {
        if let Err(refused) = self.let_pass(span) {
            panic!("{refused}");
        }
        self
    }

    /// Lets time pass after the last event, and fires the timers that are due meanwhile, in order,
    /// each at its time. If one fails it stays pending, like those after it, and everything that it
    /// did is dropped.
    ///
    /// # Panics
    /// If timers set each other without end.
    pub fn let_pass(&mut self, span: Duration) -> Result<(), Refused> {
        let until = self.next_time + span;
        for _ in 0..FIRINGS_MAX {
            let first = self.timers().into_iter().next();
            let Some(timer) = first.filter(|timer| timer.at <= until) else {
                self.next_time = until;
                return Ok(());
            };
            // Never before an event that came already: time does not go back in a stream.
            let time = timer.at.max(self.next_time);
            let firing = Stored {
                sequence: self.next_sequence,
                time,
                kind: "timer".to_owned(),
                headers: BTreeMap::new(),
                subject: format!("timer {}", timer.name),
                data: String::new(),
                timer: Some(timer.name),
            };
            // Firings are stored in the stream, so they have sequences like events.
            self.next_sequence += 1;
            self.next_time = time;
            self.apply_batch(std::slice::from_ref(&firing))
                .map_err(|(_, failure)| refused(&firing, failure))?;
            self.applied.push(firing);
        }
        panic!(
            "more than {FIRINGS_MAX} timers fired within {span:?}: timers set each other without end"
        );
    }

    fn shown(&self, message: &Message) -> PublishedMessage {
        let Message {
            subject,
            kind,
            headers,
            data,
            key,
            delivery,
        } = message.clone();
        let is_declared = self
            .manifest
            .publishes
            .iter()
            .any(|pattern| matches(pattern, &subject));
        assert!(
            is_declared,
            "it publishes to {subject}, which its manifest does not declare; add it to `publishes`"
        );
        let text = match data {
            Data::Text(text) => text,
            Data::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        };
        let kind =
            kind.unwrap_or_else(|| subject.rsplit('.').next().unwrap_or_default().to_owned());
        let data = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let expected_last = delivery.expected_last.map(|last| {
            let covered = last.subject.unwrap_or_else(|| subject.clone());
            assert!(
                matches(&covered, &subject),
                "a message to {subject} expects the last sequence of {covered}, which does not \
                 cover it"
            );
            (covered, last.sequence)
        });
        assert_ne!(
            delivery.time_to_live,
            Some(0),
            "a message to {subject} has a time to live below 1 s, which the host refuses"
        );
        PublishedMessage {
            subject,
            kind,
            headers: headers.into_iter().collect(),
            data,
            key,
            not_before: delivery.not_before,
            time_to_live: delivery
                .time_to_live
                .map(|seconds| Duration::from_secs(seconds.into())),
            expected_last,
        }
    }
}
