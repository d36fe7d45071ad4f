//! Chains of handlers that cause each other's events, and loops among them.
//!
//! Each effect names the deployments that led to it, oldest first and its own last, in the header
//! `foldstream-path`. A chain that gets too long is a loop over several deployments, which no grant
//! of a single one shows.

use crate::event::Event;
use crate::names;

/// The header.
pub const PATH: &str = "foldstream-path";
/// Most deployments in a chain. A person who waits for a step, or a timer, begins a new one.
pub const CHAIN_MAX: usize = 32;
/// Separates names, which have none.
const SEPARATOR: char = ',';

/// A chain that is too long: the deployments of its last turn, in order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Loop(String);

/// The chain of an effect that an event causes.
pub fn extended(deployment: &str, cause: &Event) -> Result<String, Loop> {
    let before: Vec<&str> = cause
        .header(PATH)
        .map(|path| path.split(SEPARATOR).collect())
        .unwrap_or_default();
    // What a stranger wrote into it is no chain.
    let is_sound =
        before.len() <= CHAIN_MAX && before.iter().all(|name| names::check(name).is_ok());
    let mut chain = if is_sound { before } else { Vec::new() };
    chain.push(deployment);
    if chain.len() <= CHAIN_MAX {
        return Ok(chain.join(&SEPARATOR.to_string()));
    }
    // The last one is this deployment itself.
    let last = chain.len() - 1;
    // Its latest turn: from where this deployment was before.
    let turn = chain[..last]
        .iter()
        .rposition(|name| *name == deployment)
        .unwrap_or(0);
    Err(Loop(chain[turn..].join(" -> ")))
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
    fn what_is_no_chain_begins_a_new_one() {
        for path in ["", "a b", "A", "a,,b", &"a,".repeat(100)] {
            assert_eq!(
                extended("a", &event(Some(path))),
                Ok("a".to_owned()),
                "{path}"
            );
        }
    }
}
