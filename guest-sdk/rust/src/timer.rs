//! Timers: what a handler asks to be called for at a time.

use std::time::Duration;

use crate::event::Event;
use crate::time::Timestamp;

/// A timer to set. [`Timer::at`] and [`Timer::after`] create one;
/// [`Effects::set_timer`](crate::Effects::set_timer) sets it.
///
/// ```
/// use foldstream_sdk::prelude::*;
/// use std::time::Duration;
///
/// # fn example(event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
/// let order = event.token(2)?;
/// effects.set_timer(Timer::after(event, Duration::from_secs(30 * 60), format!("payment/{order}")));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub(crate) name: String,
    pub(crate) at: Timestamp,
    pub(crate) key: Option<String>,
}

impl Timer {
    /// A timer that fires at a time, or at once if that is in the past. The name has 1 to 512
    /// bytes.
    pub fn at(time: Timestamp, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            at: time,
            key: None,
        }
    }

    /// A timer that fires some time after an event.
    pub fn after(event: &Event<'_>, span: Duration, name: impl Into<String>) -> Self {
        Self::at(event.time() + span, name)
    }

    /// Sets its key, which is that of messages that it causes, and behind whose parked events it
    /// waits. Without it, a timer has the key of the event that sets it.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// A timer that fires. It is pending no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired<'a> {
    pub(crate) name: &'a str,
    pub(crate) at: Timestamp,
    pub(crate) time: Timestamp,
    pub(crate) sequence: u64,
    pub(crate) key: Option<&'a str>,
}

impl<'a> Fired<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// A part of its name between slashes, counted from 1: the second of `payment/42` is `42`. Empty
    /// if the name has fewer.
    pub fn part(&self, number: usize) -> &'a str {
        let mut parts = self.name.split('/');
        parts.nth(number.saturating_sub(1)).unwrap_or_default()
    }

    /// The time that it was set to.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// When it fired, by the clock of the stream: not before [`Fired::at`], and later if the host
    /// was stopped or the stream away.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// The sequence of its firing, which has a place in the stream like any event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its key.
    pub fn key(&self) -> Option<&'a str> {
        self.key
    }
}
