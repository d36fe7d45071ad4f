//! Sagas: processes of several steps that others carry out, each of which can be undone.
//!
//! A [`Saga`] defines steps. Each has a command, the events that answer it, a time-out, a retry
//! policy, and a compensation. [`Sagas`] is the part of a handler's state that runs the instances,
//! one for each correlation key: it publishes commands, takes answers, and sets timers. If a step
//! fails, it undoes the steps before it, the last one first.
//!
//! ```
//! use std::time::Duration;
//!
//! use foldstream_sdk::prelude::*;
//! use foldstream_sdk::saga::{Compensation, RetryPolicy, Saga, Sagas, Step};
//! use foldstream_sdk::testing::{HandlerHarness, event, json};
//!
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Order {
//!     cents: u64,
//! }
//!
//! fn saga() -> Saga<Order> {
//!     let payment = Step::new("payment")
//!         .command(|call| Message::to(format!("payment.{}.charge", call.key())).json(call.data()))
//!         .succeeds_on("paid.*.charged")
//!         .fails_on("paid.*.declined")
//!         .timeout(Duration::from_secs(60))
//!         .retry(RetryPolicy::attempts(3))
//!         .compensation(
//!             Compensation::new(|call| Ok(Message::to(format!("payment.{}.refund", call.key()))))
//!                 .succeeds_on("paid.*.refunded"),
//!         );
//!     let shipping = Step::new("shipping")
//!         .command(|call| Ok(Message::to(format!("shipping.{}.send", call.key()))))
//!         .succeeds_on("shipped.*.sent")
//!         .fails_on("shipped.*.refused");
//!     Saga::new("orders")
//!         .starts_on("orders.*.placed", |event| event.json())
//!         .step(payment)
//!         .step(shipping)
//! }
//!
//! struct Orders {
//!     sagas: Sagas<Order>,
//! }
//!
//! impl Handler for Orders {
//!     fn manifest() -> Manifest<Self> {
//!         Manifest::new("orders")
//!             .saga(&saga())
//!             .publishes(["payment.*.charge", "payment.*.refund", "shipping.*.send"])
//!             .key(KeyRule::SubjectToken(2))
//!     }
//!
//!     fn open(state: &State) -> Self {
//!         Self { sagas: Sagas::open(state, saga()) }
//!     }
//!
//!     fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
//!         self.sagas.handle(event, effects)?;
//!         Ok(())
//!     }
//!
//!     fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
//!         self.sagas.on_timer(timer, effects)?;
//!         Ok(())
//!     }
//! }
//! # handler!(Orders);
//!
//! let mut orders = HandlerHarness::<Orders>::new();
//! orders.given([
//!     event("orders.7.placed", json!({"cents": 500})),
//!     event("paid.7.charged", json!({})),
//!     event("shipped.7.refused", json!({})),
//!     event("paid.7.refunded", json!({})),
//! ]);
//! let subjects: Vec<_> = orders.published().into_iter().map(|message| message.subject).collect();
//! assert_eq!(subjects, ["payment.7.charge", "shipping.7.send", "payment.7.refund"]);
//! assert_eq!(orders.get("saga/orders/7").expect("is kept")["status"], "compensated");
//! ```

mod definition;
mod instance;
mod listing;
mod transition;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use definition::{Call, Compensation, Pattern, RetryPolicy, Saga, Step};
pub use instance::{Instance, Status};

use crate::effects::Effects;
use crate::event::Event;
use crate::failure::{Failure, TableError};
use crate::key::encode;
use crate::scan::Scan;
use crate::state::State;
use crate::table::Table;
use crate::time::Timestamp;
use crate::timer::Fired;
use instance::FORMAT;
use listing::{Listing, Place};
use transition::Transition;

/// Longest correlation key as it is stored, in bytes: names of timers and keys of entries have it.
const KEY_BYTES_MAX: usize = 400;

/// What an event or a timer meant to a saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is not about this saga.
    Unrelated,
    /// It changed its instance, which now has this status.
    Changed(Status),
    /// Its instance had ended long enough ago, and is removed.
    Removed,
    /// It changed nothing.
    Ignored(Ignored),
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It was there before.
    Duplicate,
    /// It answers a step that was given up or undone.
    Late,
    /// It answers a step that was not begun.
    Early,
    /// There is no instance with its key: it never started, or was removed after its end.
    Unknown,
    /// Its instance has ended.
    Ended,
    /// A timer that its instance does not wait for any more.
    StaleTimer,
}

impl Ignored {
    /// Its name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Early => "early",
            Self::Unknown => "unknown",
            Self::Ended => "ended",
            Self::StaleTimer => "stale-timer",
        }
    }
}

/// The names of an instance.
#[derive(Clone, Copy)]
struct Names<'a> {
    /// Its correlation key.
    key: &'a str,
    timer: &'a str,
}

/// The instances of a saga, in the state of a handler.
pub struct Sagas<D> {
    saga: Saga<D>,
    /// `saga/<saga>/<key>`
    instances: Table<String, Instance<D>>,
    listing: Listing,
}

impl<D: Clone + Serialize + DeserializeOwned + 'static> Sagas<D> {
    /// Opens them.
    ///
    /// # Panics
    /// If a saga of that name is open, or a table named `saga`, `saga-index` or `saga-count`.
    pub fn open(state: &State, saga: Saga<D>) -> Self {
        Self {
            instances: state.part("saga", saga.name),
            listing: Listing::open(state, saga.name),
            saga,
        }
    }

    /// Starts an instance or lets one continue, if the event is about this saga.
    ///
    /// Events that come twice, late or early change nothing but a count. An error means that the
    /// event has no sound correlation key, or that a closure of the saga failed.
    pub fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<Handled, Failure> {
        if !self.saga.concerns(event) {
            return Ok(Handled::Unrelated);
        }
        let key = self.saga.key_of(event)?;
        let names = Names {
            key: &key,
            timer: &timer_name(self.saga.name, &key)?,
        };
        let handled = match self.read(&key)? {
            Some(instance) => self.meet(event, names, instance, effects)?,
            None => self.start(event, names, effects)?,
        };
        if let Handled::Ignored(what) = handled {
            self.ignore(what, event.subject())?;
        }
        Ok(handled)
    }

    /// Lets an instance continue, if the timer is one of this saga.
    pub fn on_timer(
        &mut self,
        timer: &Fired<'_>,
        effects: &mut Effects,
    ) -> Result<Handled, Failure> {
        let Some(key) = key_of_timer(self.saga.name, timer.name()) else {
            return Ok(Handled::Unrelated);
        };
        let current = self.read(&key)?;
        let is_due = |instance: &Instance<D>| {
            // To the microsecond: JavaScript sets and meets timers no more exactly.
            instance.due.is_some_and(|due| is_nearly(due, timer.at()))
        };
        let Some(mut instance) = current.filter(is_due) else {
            self.ignore(Ignored::StaleTimer, timer.name())?;
            return Ok(Handled::Ignored(Ignored::StaleTimer));
        };
        let before = Place::of(&instance, &key);
        if instance.status.has_ended() {
            self.listing.moved(Some(&before), None)?;
            self.instances.delete(&key)?;
            return Ok(Handled::Removed);
        }
        let names = Names {
            key: &key,
            timer: timer.name(),
        };
        self.transition(names, timer.time(), &mut instance, effects)
            .fire()?;
        let status = instance.status;
        self.write(&key, Some(&before), instance)?;
        Ok(Handled::Changed(status))
    }

    /// The instance of a correlation key.
    pub fn get(&self, key: &str) -> Result<Option<Instance<D>>, TableError> {
        self.instances.get(key)
    }

    /// A scan of the instances by their keys, to narrow and read.
    pub fn scan(&self) -> Scan<'_, String, Instance<D>> {
        self.instances.scan()
    }

    fn read(&self, key: &str) -> Result<Option<Instance<D>>, Failure> {
        let instance = self.instances.get(key)?;
        match &instance {
            Some(found) if found.format > FORMAT => Err(Failure::reject(format_args!(
                "saga {} of {key} was written in format {}, and this version of the module knows \
                 {FORMAT}; deploy the newer one again",
                self.saga.name, found.format
            ))),
            _ => Ok(instance),
        }
    }

    fn start(
        &mut self,
        event: &Event<'_>,
        names: Names<'_>,
        effects: &mut Effects,
    ) -> Result<Handled, Failure> {
        let mut starts = self.saga.starts.iter();
        let Some((_, data)) = starts.find(|(pattern, _)| pattern.matches(event)) else {
            return Ok(Handled::Ignored(Ignored::Unknown));
        };
        let mut instance = Instance::new(data(event)?, event.time());
        self.transition(names, event.time(), &mut instance, effects)
            .start(event)?;
        let status = instance.status;
        self.write(names.key, None, instance)?;
        Ok(Handled::Changed(status))
    }

    fn meet(
        &mut self,
        event: &Event<'_>,
        names: Names<'_>,
        mut instance: Instance<D>,
        effects: &mut Effects,
    ) -> Result<Handled, Failure> {
        let before = Place::of(&instance, names.key);
        let is_stuck = instance.status == Status::Stuck;
        let mut transition = self.transition(names, event.time(), &mut instance, effects);
        if !is_stuck && !transition.is_known() {
            transition.lost_step()?;
            // Met as by any other stuck instance: a cancellation, or an answer to another step, must
            // not be lost because it came first.
            transition.meet(event)?;
            let status = instance.status;
            self.write(names.key, Some(&before), instance)?;
            return Ok(Handled::Changed(status));
        }
        let handled = transition.meet(event)?;
        if let Handled::Changed(_) = handled {
            self.write(names.key, Some(&before), instance)?;
        }
        Ok(handled)
    }

    fn transition<'a>(
        &'a self,
        names: Names<'a>,
        time: Timestamp,
        instance: &'a mut Instance<D>,
        effects: &'a mut Effects,
    ) -> Transition<'a, D> {
        instance.updated = instance.updated.max(time);
        Transition {
            saga: &self.saga,
            key: names.key,
            timer: names.timer,
            now: instance.updated,
            instance,
            effects,
        }
    }

    fn write(
        &mut self,
        key: &str,
        before: Option<&Place>,
        instance: Instance<D>,
    ) -> Result<(), TableError> {
        let after = Place::of(&instance, key);
        self.listing.moved(before, Some(&after))?;
        self.instances.put(key, instance)
    }

    fn ignore(&mut self, what: Ignored, by: &str) -> Result<(), TableError> {
        crate::debug!("saga {} ignores {by}: {}", self.saga.name, what.name());
        self.listing.ignored(what)
    }
}

impl<D> fmt::Debug for Sagas<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Sagas({})", self.saga.name)
    }
}

/// Whether two times are at most a microsecond apart.
fn is_nearly(one: Timestamp, other: Timestamp) -> bool {
    one.nanoseconds().abs_diff(other.nanoseconds()) <= 1_000
}

/// The name of the timer of an instance: `saga/<saga>/<key>`.
fn timer_name(saga: &str, key: &str) -> Result<String, Failure> {
    let stored = encode::<String>(key);
    let mut name = format!("saga/{saga}/");
    for character in key.chars() {
        // Names of timers have no control characters, and these are more than keys escape.
        if character.is_control() || character == '%' {
            for octet in character.encode_utf8(&mut [0; 4]).bytes() {
                name.push_str(&format!("%{octet:02X}"));
            }
        } else {
            name.push(character);
        }
    }
    if key.is_empty() || stored.len().max(name.len()) > KEY_BYTES_MAX {
        return Err(Failure::reject(format_args!(
            "a correlation key of saga {saga} has {} bytes; use 1 to about {KEY_BYTES_MAX}: {:.64?}",
            key.len(),
            key.chars().take(64).collect::<String>()
        )));
    }
    Ok(name)
}

/// The correlation key in the name of a timer; none if the timer is not one of this saga.
fn key_of_timer(saga: &str, name: &str) -> Option<String> {
    let text = name
        .strip_prefix("saga/")?
        .strip_prefix(saga)?
        .strip_prefix('/')?;
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            octets.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            octets.push(*first);
        }
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_returns_from_the_name_of_its_timer() {
        for key in [
            "7",
            "a/b",
            "50%",
            "%2F",
            "\u{85}\n\t",
            "ключ",
            " ",
            "..",
            "saga/x/",
        ] {
            let name = timer_name("orders", key).expect("is short enough");
            assert!(!name.chars().any(char::is_control), "{name:?}");
            assert_eq!(key_of_timer("orders", &name).as_deref(), Some(key));
            assert_eq!(key_of_timer("order", &name), None);
        }
    }

    #[test]
    fn a_timer_that_another_language_set_is_met_at_its_microsecond() {
        let due = Timestamp::from_nanoseconds(1_795_788_306_123_456_000);
        // A number of JavaScript has 53 bits: the nearest of 256 nanoseconds.
        let set = Timestamp::from_nanoseconds(1_795_788_306_123_456_128);
        assert!(is_nearly(due, set) && is_nearly(set, due));
        let next = Timestamp::from_nanoseconds(1_795_788_306_123_457_001);
        assert!(!is_nearly(due, next) && !is_nearly(next, due));
    }

    #[test]
    fn keys_that_fit_no_name_are_rejected() {
        for key in [String::new(), "x".repeat(500), "/".repeat(200)] {
            assert!(timer_name("orders", &key).is_err(), "{} bytes", key.len());
        }
    }
}
