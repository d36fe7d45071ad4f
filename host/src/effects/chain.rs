//! Chains of handlers that cause each other's events, and loops among them.
//!
//! Each effect names the deployments that led to it, oldest first and its own last, in the header
//! `foldstream-path`. A chain that gets too long is a loop over several deployments, which no grant
//! of a single one shows.

use std::collections::HashMap;

use crate::event::Event;
use crate::names;

/// The header.
pub const PATH: &str = "foldstream-path";
/// Most deployments in a chain. A person who waits for a step begins a new one, and so does a timer
/// that is not set for at once: no heartbeat and no retry after a pause is a loop.
pub const CHAIN_MAX: usize = 32;
/// Turns of a chain through one handler that are not counted yet.
const TURNS_FREE: usize = 3;
/// Most events of one origin that may come back to a handler after that within a minute. If handlers
/// publish several messages for each event, a loop fills the disk long before one chain is long.
pub const RETURNS_MAX: u32 = 20_000;
/// A minute of the times of events, in nanoseconds: many sagas that one import begins may have one
/// origin, and a loop is faster than they are.
const RETURNS_TIME_NS: u64 = 60_000_000_000;
/// Most origins that are counted at once. Beyond that, counting starts again.
const ORIGINS_MAX: usize = 1_000;
/// The header that events of one origin share.
const ORIGIN: &str = "ce-correlationid";
/// Separates names, which have none.
const SEPARATOR: char = ',';

/// A chain that is too long, or comes back too often: the deployments of its last turn, in order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Loop(String);

/// The deployments that led to an event, oldest first.
fn chain_of(event: &Event) -> Vec<&str> {
    let chain: Vec<&str> = event
        .header(PATH)
        .map(|path| path.split(SEPARATOR).collect())
        .unwrap_or_default();
    // What a stranger wrote into it is no chain.
    let is_sound = chain.len() <= CHAIN_MAX && chain.iter().all(|name| names::check(name).is_ok());
    if is_sound { chain } else { Vec::new() }
}

/// The latest turn of a chain that ends with this deployment: from where it was before.
fn turn(chain: &[&str], deployment: &str) -> Loop {
    let begin = chain.iter().rposition(|name| *name == deployment);
    let mut turn = chain[begin.unwrap_or(0)..].to_vec();
    turn.push(deployment);
    Loop(turn.join(" -> "))
}

/// The header with the chain of an event, for what continues the event later; none if it has no
/// chain.
pub fn chain(cause: &Event) -> Option<(String, String)> {
    let chain = chain_of(cause);
    (!chain.is_empty()).then(|| (PATH.to_owned(), chain.join(&SEPARATOR.to_string())))
}

/// The chain of an effect that an event causes.
pub fn extended(deployment: &str, cause: &Event) -> Result<String, Loop> {
    let mut chain = chain_of(cause);
    if chain.len() >= CHAIN_MAX {
        return Err(turn(&chain, deployment));
    }
    chain.push(deployment);
    Ok(chain.join(&SEPARATOR.to_string()))
}

/// Counts events that come back to a handler, until it is resumed after a failure.
#[derive(Debug, Default)]
pub struct Returns(HashMap<String, Count>);

#[derive(Debug, Default)]
struct Count {
    events: u32,
    /// The time of the first one.
    since_ns: u64,
    /// The last event that was counted: it may cause several messages.
    last: u64,
}

impl Returns {
    /// Counts an event that causes a message; an error if too many of its origin have come back.
    pub fn note(&mut self, deployment: &str, cause: &Event) -> Result<(), Loop> {
        let chain = chain_of(cause);
        let turns = chain.iter().filter(|name| **name == deployment).count();
        let Some(origin) = cause.header(ORIGIN).filter(|_| turns >= TURNS_FREE) else {
            return Ok(());
        };
        if self.0.len() >= ORIGINS_MAX && !self.0.contains_key(origin) {
            self.0.clear();
        }
        let count = self.0.entry(origin.to_owned()).or_default();
        if cause.sequence > count.last {
            count.last = cause.sequence;
            if cause.time_ns.saturating_sub(count.since_ns) > RETURNS_TIME_NS {
                (count.events, count.since_ns) = (0, cause.time_ns);
            }
            count.events = count.events.saturating_add(1);
        }
        if count.events > RETURNS_MAX {
            return Err(turn(&chain, deployment));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(path: Option<&str>) -> Event {
        Event {
            sequence: 1,
            time_ns: 0,
            subject: "a.b".into(),
            kind: "b".into(),
            headers: path
                .map(|path| (PATH.into(), path.into()))
                .into_iter()
                .collect(),
            data: Payload::from(""),
        }
    }

    #[test]
    fn chain_grows_until_it_names_its_loop() {
        assert_eq!(extended("a", &event(None)), Ok("a".to_owned()));
        assert_eq!(extended("b", &event(Some("a"))), Ok("a,b".to_owned()));
        let mut path = "start".to_owned();
        for index in 1..CHAIN_MAX {
            path = extended(if index % 2 == 0 { "a" } else { "b" }, &event(Some(&path)))
                .expect("is short enough");
        }
        assert_eq!(
            extended("a", &event(Some(&path))),
            Err(Loop("a -> b -> a".to_owned()))
        );
    }

    #[test]
    fn origin_whose_events_come_back_too_often_is_a_loop() {
        let mut returns = Returns::default();
        let from = |sequence, path: &str, origin: &str| {
            let mut event = event(Some(path));
            event.sequence = sequence;
            event.headers.push((ORIGIN.into(), origin.into()));
            event
        };
        let path = "a,b,a,c,a,b";
        for sequence in 1..=u64::from(RETURNS_MAX) {
            // Each of them twice, as it causes two messages.
            for _ in 0..2 {
                assert_eq!(returns.note("a", &from(sequence, path, "one")), Ok(()));
            }
        }
        let next = u64::from(RETURNS_MAX) + 1;
        let others = [
            ("a", "a,b,a,b", "one"),
            ("b", path, "one"),
            ("a", path, "two"),
        ];
        for (deployment, path, origin) in others {
            let event = from(next, path, origin);
            assert_eq!(returns.note(deployment, &event), Ok(()), "{path} {origin}");
        }
        assert_eq!(
            returns.note("a", &from(next, path, "one")),
            Err(Loop("a -> b -> a".to_owned()))
        );
        let mut later = from(next + 1, path, "one");
        later.time_ns = RETURNS_TIME_NS + 1;
        assert_eq!(returns.note("a", &later), Ok(()), "they took long");
    }

    #[test]
    fn what_is_no_chain_begins_a_new_one() {
        let longest = ["a"; CHAIN_MAX].join(",");
        let found = chain(&event(Some(&longest)));
        assert_eq!(found, Some((PATH.to_owned(), longest)));
        for path in ["", "a b", "A", "a,,b", &"a,".repeat(100)] {
            assert_eq!(chain(&event(Some(path))), None, "{path}");
            assert_eq!(
                extended("a", &event(Some(path))),
                Ok("a".to_owned()),
                "{path}"
            );
        }
    }
}
