//! The events of a call, which the messages that a handler publishes refer to.

use super::KeyRule;
use crate::effects::{EFFECTS_PER_EVENT_MAX, Place};
use crate::event::Event;
use crate::timers::{SETS_PER_EVENT_MAX, Timer};

/// The events of one call of `handle`, or the timer of one call of `on-timer`.
#[derive(Debug)]
pub(super) struct Causes {
    events: Vec<Event>,
    /// How many messages each has caused.
    caused: Vec<u32>,
    /// How many timers each has set.
    set: Vec<u32>,
    rule: Keys,
}

/// Where keys come from.
#[derive(Debug)]
enum Keys {
    /// From each event.
    Rule(KeyRule),
    /// From the timer that fires, which is the only cause.
    Timer(Timer),
}

/// Why a message has no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// There is no such event in the call.
    NoEvent { count: usize },
    /// The event has caused too many.
    TooMany { sequence: u64 },
}

impl Causes {
    pub(super) fn new(events: &[Event], rule: KeyRule) -> Self {
        // Cloning an event shares its memory.
        Self {
            events: events.to_vec(),
            caused: vec![0; events.len()],
            set: vec![0; events.len()],
            rule: Keys::Rule(rule),
        }
    }

    /// The cause is a timer that fires: `event` is its firing, with the headers that what it causes
    /// continues.
    pub(super) fn of_timer(event: Event, timer: Timer) -> Self {
        Self {
            events: vec![event],
            caused: vec![0],
            set: vec![0],
            rule: Keys::Timer(timer),
        }
    }

    /// The event of a cause that sets one more timer.
    pub(super) fn sets(&mut self, cause: u32) -> Result<&Event, NoPlace> {
        let count = self.events.len();
        // The number comes from the guest: one that fits no index is like one beyond the events.
        let index = usize::try_from(cause).unwrap_or(usize::MAX);
        let (Some(event), Some(set)) = (self.events.get(index), self.set.get_mut(index)) else {
            return Err(NoPlace::NoEvent { count });
        };
        if *set >= SETS_PER_EVENT_MAX {
            return Err(NoPlace::TooMany {
                sequence: event.sequence,
            });
        }
        *set += 1;
        Ok(event)
    }

    /// Whether there is such an event.
    pub(super) fn exists(&self, cause: u32) -> Result<(), NoPlace> {
        let count = self.events.len();
        let index = usize::try_from(cause).unwrap_or(usize::MAX);
        if index < count {
            Ok(())
        } else {
            Err(NoPlace::NoEvent { count })
        }
    }

    /// The sequence of the input that set the timer, if the cause is one.
    pub(super) fn timer_set_by(&self) -> Option<u64> {
        match &self.rule {
            Keys::Rule(_) => None,
            Keys::Timer(timer) => Some(timer.set_by),
        }
    }

    /// The depth of a timer that the cause sets.
    pub(super) fn depth_of_next(&self, at_ns: u64) -> u32 {
        match (&self.rule, self.events.first()) {
            (Keys::Timer(timer), Some(firing)) => timer.depth_of_next(firing.time_ns, at_ns),
            // What an event sets begins a chain; only timers that set timers make it longer.
            _ => 0,
        }
    }

    /// The place of the next message of an event, and the event.
    pub(super) fn next(&mut self, cause: u32) -> Result<(Place, &Event), NoPlace> {
        let count = self.events.len();
        let index = usize::try_from(cause).unwrap_or(usize::MAX);
        let (Some(event), Some(caused)) = (self.events.get(index), self.caused.get_mut(index))
        else {
            return Err(NoPlace::NoEvent { count });
        };
        if *caused >= EFFECTS_PER_EVENT_MAX {
            return Err(NoPlace::TooMany {
                sequence: event.sequence,
            });
        }
        let place = Place {
            sequence: event.sequence,
            sub: 0,
            index: *caused,
        };
        *caused += 1;
        Ok((place, event))
    }

    /// The key of an event.
    pub(super) fn key_of(&self, cause: u32) -> Option<String> {
        let event = self.events.get(usize::try_from(cause).ok()?)?;
        match &self.rule {
            Keys::Rule(rule) => rule.key_of(event),
            Keys::Timer(timer) => timer.key.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(sequence: u64) -> Event {
        let subject = format!("orders.{sequence}");
        let kind = subject.as_str().into();
        Event {
            sequence,
            time_ns: 1,
            subject: subject.into(),
            kind,
            headers: Vec::new(),
            data: Payload::from("{}"),
        }
    }

    #[test]
    fn places_count_the_messages_of_each_event_whatever_their_order() {
        let mut causes = Causes::new(&[event(5), event(9)], KeyRule::SubjectToken(2));
        let mut place = |cause| {
            causes
                .next(cause)
                .map(|(place, _)| (place.sequence, place.index))
        };
        assert_eq!(place(1), Ok((9, 0)));
        assert_eq!(place(0), Ok((5, 0)));
        assert_eq!(place(1), Ok((9, 1)));
        assert_eq!(place(2), Err(NoPlace::NoEvent { count: 2 }));
        assert_eq!(causes.key_of(1).as_deref(), Some("9"));
    }
}
