//! Firings: the messages by which timers fire.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Payload};

/// How the subjects of firings begin. Patterns with wildcards in their place do not match them, so
/// no module gets those of another.
pub const SUBJECT_PREFIX: &str = "_fs.timers";
/// The type of a firing.
const KIND: &str = "timer";

/// The subject of the firings of a deployment.
pub fn subject(deployment: &str) -> String {
    format!("{SUBJECT_PREFIX}.{deployment}")
}

/// What a firing says: that a timer may be due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    /// Name of the timer.
    pub name: String,
    /// Its time, as its publisher knew it. For people: the fold looks at its own
    /// timer.
    #[serde(rename = "at")]
    pub at_ns: u64,
}

impl Firing {
    /// Its type.
    pub const KIND: &str = KIND;

    /// Its data.
    pub fn data(&self) -> Payload {
        Payload::from(serde_json::to_string(self).expect("a firing is plain data"))
    }

    /// What an event says if it is a firing.
    pub fn of(event: &Event) -> Option<Self> {
        let rest = event.subject.strip_prefix(SUBJECT_PREFIX)?;
        // The dot, so that `_fs.timersX` is no firing.
        rest.starts_with('.').then(|| Self::read(event)).flatten()
    }

    /// What an event under the subject of a deployment's firings says; none if that is nonsense.
    pub fn read(event: &Event) -> Option<Self> {
        serde_json::from_slice(event.data.as_bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: Payload) -> Event {
        Event {
            sequence: 1,
            time_ns: 5,
            subject: subject("ship").into(),
            kind: KIND.into(),
            headers: Vec::new(),
            data,
        }
    }

    #[test]
    fn firing_comes_back_and_nonsense_is_none() {
        let firing = Firing {
            name: "pay/\"7\"".to_owned(),
            at_ns: u64::MAX,
        };
        assert_eq!(Firing::read(&event(firing.data())), Some(firing));
        for data in ["", "{}", "[]", "{\"name\":7,\"at\":1}"] {
            assert_eq!(Firing::read(&event(Payload::from(data))), None, "{data}");
        }
    }
}
