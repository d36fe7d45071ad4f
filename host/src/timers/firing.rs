//! Firings: the messages by which timers fire.

use serde::{Deserialize, Serialize};

use crate::event::{Event, Payload};

/// How the subjects of firings begin. Patterns with wildcards in their place do not match them, so
/// no module gets those of another.
pub(crate) const SUBJECT_PREFIX: &str = "_fs.timers";
/// The type of a firing.
const KIND: &str = "timer";

/// The subject of the firings of a deployment.
pub(crate) fn subject(deployment: &str) -> String {
    format!("{SUBJECT_PREFIX}.{deployment}")
}

/// The deployment whose firings have this subject.
pub(crate) fn deployment(subject: &str) -> Option<&str> {
    // The dot, so that `_fs.timersX` is no firing.
    subject.strip_prefix(SUBJECT_PREFIX)?.strip_prefix('.')
}

/// What a firing says: that a timer may be due, or what an operator decided about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Data", into = "Data")]
pub struct Firing {
    /// Name of the timer.
    pub name: String,
    /// Its time, as its publisher knew it.
    pub at_ns: u64,
    /// The key of the timer, as parked events are named by it: the firing waits behind those of its
    /// key. None of a firing that an earlier release published.
    pub key: Option<String>,
    /// What happens to the timer.
    pub what: What,
    /// The first lineage of the deployment for which an operator decided this: others of its name
    /// read the same stream. None of what is due, and of what an earlier release published; these
    /// concern each of them.
    pub lineage: Option<u64>,
}

/// What a firing does to its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It fires if its time has come, by the clock of the stream.
    Due,
    /// It fires, whatever its time, because an operator wants it. Only a timer that is still set to
    /// the time that the operator saw.
    Now,
    /// It is dropped, because an operator wants it; likewise.
    Drop,
}

/// The data of a firing. What an operator decides has another form, so that an earlier release takes
/// it for nonsense, which does nothing.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Data {
    Due {
        name: String,
        at: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    Now {
        fire: String,
        at: u64,
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "lineage")]
        lineage: Option<u64>,
    },
    Drop {
        drop: String,
        at: u64,
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "lineage")]
        lineage: Option<u64>,
    },
}

impl From<Data> for Firing {
    fn from(data: Data) -> Self {
        match data {
            Data::Due { name, at, key } => Self {
                name,
                at_ns: at,
                key,
                what: What::Due,
                lineage: None,
            },
            Data::Now {
                fire,
                at,
                key,
                lineage,
            } => Self {
                name: fire,
                at_ns: at,
                key: Some(key),
                what: What::Now,
                lineage,
            },
            Data::Drop {
                drop,
                at,
                key,
                lineage,
            } => Self {
                name: drop,
                at_ns: at,
                key: Some(key),
                what: What::Drop,
                lineage,
            },
        }
    }
}

impl From<Firing> for Data {
    fn from(firing: Firing) -> Self {
        let Firing {
            name,
            at_ns: at,
            key,
            what,
            lineage,
        } = firing;
        match what {
            What::Due => Self::Due { name, at, key },
            What::Now => Self::Now {
                fire: name,
                at,
                key: key.unwrap_or_default(),
                lineage,
            },
            What::Drop => Self::Drop {
                drop: name,
                at,
                key: key.unwrap_or_default(),
                lineage,
            },
        }
    }
}

impl Firing {
    /// Its type.
    pub const KIND: &str = KIND;

    pub fn data(&self) -> Payload {
        Payload::from(serde_json::to_string(self).expect("a firing is plain data"))
    }

    /// Whether it concerns a deployment with this first lineage. A fold that does not know its own
    /// is not one of a host, and is concerned by all.
    pub fn concerns(&self, lineage: Option<u64>) -> bool {
        match (self.lineage, lineage) {
            (Some(meant), Some(own)) => meant == own,
            _ => true,
        }
    }

    /// What an event says if it is a firing.
    pub fn of(event: &Event) -> Option<Self> {
        Self::parse(&event.subject, event.data.as_bytes())
    }

    /// The same, by subject and data of the event.
    pub fn parse(subject: &str, data: &[u8]) -> Option<Self> {
        deployment(subject)?;
        serde_json::from_slice(data).ok()
    }
}

/// A lineage is written as 16 hexadecimal digits, as in the ids of effects: JSON readers lose digits
/// of large numbers.
mod lineage {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        lineage: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match lineage {
            Some(lineage) => serializer.collect_str(&format_args!("{lineage:016x}")),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lineage = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Some(lineage))
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
        for key in [None, Some(String::new()), Some("7".to_owned())] {
            let firing = Firing {
                name: "pay/\"7\"".to_owned(),
                at_ns: u64::MAX,
                key,
                what: What::Due,
                lineage: None,
            };
            assert_eq!(Firing::of(&event(firing.data())), Some(firing.clone()));
            for (what, lineage) in [
                (What::Now, None),
                (What::Now, Some(u64::MAX)),
                (What::Drop, None),
                (What::Drop, Some(0)),
            ] {
                let key = Some("7".to_owned());
                let decided = Firing {
                    key,
                    what,
                    lineage,
                    ..firing.clone()
                };
                assert_eq!(Firing::of(&event(decided.data())), Some(decided));
            }
        }
        let nonsense = [
            "",
            "{}",
            "[]",
            "{\"name\":7,\"at\":1}",
            // What names a lineage in another way must not concern every deployment.
            "{\"drop\":\"a\",\"at\":1,\"key\":\"\",\"lineage\":7}",
            "{\"drop\":\"a\",\"at\":1,\"key\":\"\",\"lineage\":\"\"}",
            "{\"fire\":\"a\",\"at\":1,\"key\":\"\",\"lineage\":null}",
        ];
        for data in nonsense {
            assert_eq!(Firing::of(&event(Payload::from(data))), None, "{data}");
        }
    }
}
