//! What an effect asks of its delivery: not before a time, for how long, and on what condition.

use serde::{Deserialize, Serialize};

use super::check::Refused;
use super::reply::is_reply;
use crate::subject::Pattern;

/// What an effect asks of its delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// It is not sent before this time, in nanoseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ns: Option<u64>,
    /// How long its target keeps it, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_live_s: Option<u32>,
    /// On what condition its target stores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// Why the condition did not hold, if its target said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
}

/// The last sequence that some subjects must have in the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A pattern that matches the subject of the effect.
    pub subjects: String,
    /// The sequence; 0 if there must not be any message.
    pub sequence: u64,
}

/// Where an effect waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Queue {
    /// In the order of the places: effects of one key leave one after the other.
    Ordered,
    /// For a time, without an order of keys.
    Delayed,
    /// For an operator: its condition did not hold.
    Conflict,
}

impl Delivery {
    /// Where the effect waits.
    pub fn queue(&self) -> Queue {
        match self {
            Self {
                conflict: Some(_), ..
            } => Queue::Conflict,
            Self {
                not_before_ns: Some(_),
                ..
            } => Queue::Delayed,
            _ => Queue::Ordered,
        }
    }

    /// Whether it asks for nothing.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks what the guest asks of the delivery of a message to a subject.
pub fn check_delivery(delivery: &Delivery, subject: &str) -> Result<(), Refused> {
    let refused = |message: String| Err(Refused::of("outbox-delivery", message));
    if is_reply(subject) && !delivery.is_plain() {
        return refused(format!(
            "a reply to {subject} has a time or a condition, but no stream stores it; leave them \
             out"
        ));
    }
    if delivery.time_to_live_s == Some(0) {
        return refused(format!(
            "a message to {subject} has a time to live of 0 s; give at least 1 s, or none"
        ));
    }
    let Some(Condition { subjects, .. }) = &delivery.condition else {
        return Ok(());
    };
    match Pattern::parse(subjects) {
        // Only then a message that is stored is the first one that the condition excludes.
        Ok(pattern) if pattern.matches(subject) => Ok(()),
        Ok(pattern) => refused(format!(
            "a message to {subject} expects the last sequence of {pattern}, which does not cover \
             its subject; expect one that does"
        )),
        Err(error) => refused(format!(
            "a message to {subject} expects the last sequence of no subject: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(delivery: &Delivery, subject: &str) -> Option<&'static str> {
        check_delivery(delivery, subject)
            .err()
            .map(|refused| refused.limit)
    }

    fn on(subjects: &str) -> Delivery {
        Delivery {
            condition: Some(Condition {
                subjects: subjects.to_owned(),
                sequence: 1,
            }),
            ..Delivery::default()
        }
    }

    #[test]
    fn what_no_target_could_keep_is_refused() {
        let lives = |time_to_live_s| Delivery {
            time_to_live_s,
            ..Delivery::default()
        };
        let later = Delivery {
            not_before_ns: Some(u64::MAX),
            ..Delivery::default()
        };
        for sound in [&lives(Some(1)), &later, &on("a.b"), &on("a.*"), &on(">")] {
            assert_eq!(limit(sound, "a.b"), None, "{sound:?}");
        }
        for unsound in [
            &lives(Some(0)),
            &on("a.c"),
            &on(""),
            &on("a..b"),
            &on("b.>"),
        ] {
            assert_eq!(
                limit(unsound, "a.b"),
                Some("outbox-delivery"),
                "{unsound:?}"
            );
        }
        for unsound in [&later, &lives(Some(9)), &on("_INBOX.1")] {
            assert_eq!(
                limit(unsound, "_INBOX.1"),
                Some("outbox-delivery"),
                "{unsound:?}"
            );
        }
    }

    #[test]
    fn conflict_waits_for_an_operator_whatever_its_time() {
        let mut delivery = on("a.b");
        assert_eq!(delivery.queue(), Queue::Ordered);
        delivery.not_before_ns = Some(1);
        assert_eq!(delivery.queue(), Queue::Delayed);
        delivery.conflict = Some("it did not hold".to_owned());
        assert_eq!(delivery.queue(), Queue::Conflict);
    }
}
