//! What a handler publishes, and the timers that it sets.

use std::time::Duration;

use serde::Serialize;

use crate::event::Event;
use crate::failure::Failure;
use crate::json;
use crate::time::Timestamp;
use crate::timer::Timer;

/// A message to publish. [`Message::to`] creates one.
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// # fn example(order: &str) -> Result<Message, Failure> {
/// let command = Message::to(format!("shipping.{order}.cmd")).kind("ship").json(&("parcel", 1))?;
/// # Ok(command)
/// # }
/// # assert_eq!(example("7").expect("it is JSON").subject(), "shipping.7.cmd");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(crate) subject: String,
    pub(crate) kind: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) data: Data,
    pub(crate) key: Option<String>,
    pub(crate) delivery: Delivery,
}

/// What a message asks of its delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) not_before: Option<Timestamp>,
    /// In seconds.
    pub(crate) time_to_live: Option<u32>,
    pub(crate) expected_last: Option<ExpectedLast>,
}

/// The last sequence that a subject or pattern must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExpectedLast {
    /// None means the subject of the message.
    pub(crate) subject: Option<String>,
    pub(crate) sequence: u64,
}

/// The data of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Text(String),
    Bytes(Vec<u8>),
}

impl Message {
    /// A message to a subject, with empty data.
    pub fn to(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            kind: None,
            headers: Vec::new(),
            data: Data::Text(String::new()),
            key: None,
            delivery: Delivery::default(),
        }
    }

    /// Sets the type; without it, the type is the last token of the subject.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Adds a header. The host refuses those that it sets itself, and those that steer the server.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the key: messages with one key are stored in order. Without it, a message has the key
    /// of its event.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The message is not sent before this time. Until then it waits in the outbox, through restarts
    /// and new code, and holds back no other message of its key. A [timer](Effects::set_timer)
    /// decides when its time has come; this decides now.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use foldstream_sdk::prelude::*;
    ///
    /// # fn example(event: &Event<'_>) -> Message {
    /// Message::to("mails.7.remind").not_before(event.time() + Duration::from_secs(3_600))
    /// # }
    /// ```
    pub fn not_before(mut self, time: Timestamp) -> Self {
        self.delivery.not_before = Some(time);
        self
    }

    /// The stream keeps the message for this long, in whole seconds, at least 1. The stream must
    /// allow that; an embedded log can't, and the host refuses the message.
    pub fn time_to_live(mut self, span: Duration) -> Self {
        // 0 is refused by the host, which names the limit.
        self.delivery.time_to_live = Some(u32::try_from(span.as_secs()).unwrap_or(u32::MAX));
        self
    }

    /// The message is stored only if the last message of its subject has this sequence in the stream
    /// that it goes to; 0 if there must not be any.
    ///
    /// The state is committed by then, and is not undone: a message whose condition does not hold is
    /// set aside as a conflict, for an operator to send or drop, and later messages continue.
    pub fn expected_last(mut self, sequence: u64) -> Self {
        self.delivery.expected_last = Some(ExpectedLast {
            subject: None,
            sequence,
        });
        self
    }

    /// The same for all subjects of a pattern, which must match that of the message. A JetStream
    /// stream needs nats-server 2.12 for it.
    pub fn expected_last_of(mut self, pattern: impl Into<String>, sequence: u64) -> Self {
        self.delivery.expected_last = Some(ExpectedLast {
            subject: Some(pattern.into()),
            sequence,
        });
        self
    }

    /// Sets the data to a value, as JSON.
    pub fn json(mut self, value: &impl Serialize) -> Result<Self, Failure> {
        let text = json::text(value);
        let text = text.map_err(|error| {
            Failure::reject(format!("a message cannot be written as JSON: {error}"))
        })?;
        self.data = Data::Text(text);
        Ok(self)
    }

    /// Sets the data to text.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.data = Data::Text(text.into());
        self
    }

    /// Sets the data to octets.
    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.data = Data::Bytes(bytes.into());
        self
    }

    /// Its subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

/// What one event, or one timer, causes: messages in order, and changes to timers.
///
/// The host stores them together with what the handler writes into its tables, and sends the
/// messages after that. If the handler returns an error, nothing is sent, set or cancelled.
#[derive(Debug, Default)]
pub struct Effects {
    pub(crate) messages: Vec<Message>,
    pub(crate) timers: Vec<TimerChange>,
}

/// What is done to a timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TimerChange {
    Set(Timer),
    Cancel(String),
}

impl Effects {
    /// Publishes a message.
    pub fn publish(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Sets a timer. One that is pending under the same name is replaced.
    ///
    /// The manifest must say so with [`Manifest::timers`](crate::Manifest::timers).
    pub fn set_timer(&mut self, timer: Timer) {
        self.timers.push(TimerChange::Set(timer));
    }

    /// Cancels a timer: it does not fire, whatever its time. Does nothing if none is pending under
    /// that name.
    pub fn cancel_timer(&mut self, name: impl Into<String>) {
        self.timers.push(TimerChange::Cancel(name.into()));
    }

    /// Replies to the publisher of the event, if it named its inbox in its header
    /// `foldstream-reply-to`. Otherwise, and if the operator has granted no replies, it does
    /// nothing. [`Manifest::replies`](crate::Manifest::replies) declares it.
    ///
    /// A reply leaves after the commit of what the event changed, over plain NATS. Nobody confirms
    /// it: it may be lost, and come twice after a crash.
    pub fn reply(&mut self, event: &Event<'_>, value: &impl Serialize) -> Result<(), Failure> {
        let Some(inbox) = event.header(REPLY_TO).filter(|inbox| is_inbox(inbox)) else {
            return Ok(());
        };
        self.publish(Message::to(inbox).kind("reply").json(value)?);
        Ok(())
    }
}

/// The header of an event that names the inbox of its requester.
const REPLY_TO: &str = "foldstream-reply-to";

/// Whether the host sends a message to this subject: a stranger wrote it.
fn is_inbox(subject: &str) -> bool {
    let is_token = |token: &str| {
        !token.is_empty()
            && token
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte))
    };
    subject.len() <= 256 && subject.starts_with("_INBOX.") && subject.split('.').all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inboxes_are_replied_to() {
        assert!(is_inbox("_INBOX.abc.1"));
        let long = format!("_INBOX.{}", "a".repeat(300));
        for other in [
            "",
            "_INBOX",
            "_INBOX.",
            "_INBOX.a..b",
            "_INBOX.*",
            "_INBOX.>",
            "_INBOX.a b",
            "_INBOX.ä",
            "$JS.API.STREAM.DELETE.A",
            "orders.1",
            &long,
        ] {
            assert!(!is_inbox(other), "{other}");
        }
    }
}
