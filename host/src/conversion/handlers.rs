//! What waits in a handler: messages, timers, instances of sagas.

use super::each;
use crate::api;
use crate::effects::Condition;
use crate::handlers::{
    DroppedMessages, PendingTimer, PendingTimers, TimerChanged, WaitingMessage, WaitingMessages,
};
use crate::sagas::Listed;
use crate::timestamp;

impl From<WaitingMessage> for api::WaitingMessage {
    fn from(message: WaitingMessage) -> Self {
        let id = message.id();
        let (row, refused) = (message.row, message.refused);
        let delivery = &row.effect.delivery;
        let time = |ns: u64| {
            let time = jiff::Timestamp::from_nanosecond(i128::from(ns));
            time.map(|time| time.to_string()).unwrap_or_default()
        };
        let expected = |condition: &Condition| api::ExpectedLast {
            subject: condition.subjects.clone(),
            sequence: condition.sequence,
        };
        Self {
            id,
            source: row.target.clone(),
            subject: row.effect.subject.clone(),
            kind: row.effect.kind.clone(),
            key: row.effect.key.clone(),
            sequence: row.place.sequence,
            made_at: time(row.made_ns),
            bytes: row.effect.data.len() as u64,
            not_before: delivery.not_before_ns.map(time),
            time_to_live_seconds: delivery.time_to_live_s,
            expected_last: delivery.condition.as_ref().map(expected),
            conflict: delivery.conflict.clone(),
            refused,
        }
    }
}

impl From<WaitingMessages> for api::WaitingMessages {
    fn from(waiting: WaitingMessages) -> Self {
        let WaitingMessages { messages, next } = waiting;
        Self {
            messages: each(messages),
            next,
        }
    }
}

impl From<DroppedMessages> for api::DroppedMessages {
    fn from(gone: DroppedMessages) -> Self {
        let DroppedMessages { dropped, left } = gone;
        Self {
            dropped: each(dropped),
            left,
        }
    }
}

impl From<Vec<WaitingMessage>> for api::SentMessages {
    fn from(messages: Vec<WaitingMessage>) -> Self {
        Self {
            messages: each(messages),
        }
    }
}

impl From<PendingTimer> for api::PendingTimer {
    fn from(pending: PendingTimer) -> Self {
        let PendingTimer { name, timer } = pending;
        Self {
            name,
            at: timestamp::format_ns(timer.at_ns),
            set_by: timer.set_by,
            key: timer.key,
        }
    }
}

impl From<PendingTimers> for api::PendingTimers {
    fn from(pending: PendingTimers) -> Self {
        let PendingTimers { timers, next } = pending;
        Self {
            timers: each(timers),
            next,
        }
    }
}

impl From<TimerChanged> for api::TimerChanged {
    fn from(changed: TimerChanged) -> Self {
        let TimerChanged {
            timer,
            sequence,
            waits,
        } = changed;
        Self {
            timer: timer.into(),
            sequence,
            waits,
        }
    }
}

impl From<(u64, Listed)> for api::SagaInstances {
    /// With the position that they reflect.
    fn from((position, listed): (u64, Listed)) -> Self {
        let Listed { instances, next } = listed;
        Self {
            position,
            instances: each(instances),
            next,
        }
    }
}
