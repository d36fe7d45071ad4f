//! Timers: what a handler asks to be called for at a time.
//!
//! Pending timers are part of a state. A timer fires by a message in the handler's own source, its
//! *firing*: so every fold meets it at the same place among the events, whether it owns the effects
//! of its deployment or not. A firing only says that a timer may be due; the fold decides. It fires
//! the timer if one is pending under that name whose time is not after the firing's, by the clock
//! of the stream, and otherwise ignores the firing. So a firing that is published twice, too early,
//! or for a timer that was cancelled or replaced meanwhile, does nothing. What an operator decides
//! about a timer is a firing as well ([`What`]).
//!
//! This module knows no state file, no stream and no Wasm.

mod firing;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use firing::{Firing, SUBJECT_PREFIX, What, deployment, subject};

/// Longest name of a timer, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 512;
/// Longest key of a timer, in bytes.
const KEY_BYTES_MAX: usize = 1_024;
/// Most timers that one event may set.
pub(crate) const SETS_PER_EVENT_MAX: u32 = 10_000;

/// A timer that waits for less than this is set for at once, in nanoseconds. What waits longer may as
/// well be a heartbeat, or a retry after a pause.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// A pending timer, without its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// When it fires, in nanoseconds since the Unix epoch.
    #[serde(rename = "at")]
    pub at_ns: u64,
    /// The sequence of the event with which it began: the one that set it, or the first one in a row
    /// of timers.
    #[serde(rename = "set")]
    pub set_by: u64,
    /// The sequence of what set it, an event or a firing: tells it from another one of its name and
    /// time. None if an earlier release set it.
    #[serde(default, rename = "by", skip_serializing_if = "Option::is_none")]
    pub set_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How many timers in a row led to it, each of which set the next for at once; 0 if an event set
    /// it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
    /// Headers of the event that set it, which what the timer causes continues: its correlation, its
    /// trace, and, if the timer is set for at once, the handlers that led to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// Why a timer is refused; the name of the limit comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Name of the limit.
    pub limit: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

/// Checks the name of a timer.
pub(crate) fn check_name(name: &str) -> Result<(), Refused> {
    let refused = |message: String| {
        Err(Refused {
            limit: "timer-name",
            message,
        })
    };
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) {
        return refused(format!(
            "the name of a timer has {} bytes, 1 to {NAME_BYTES_MAX} are allowed; shorten it",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return refused(format!(
            "the name of timer {name:?} has control characters; leave them out"
        ));
    }
    Ok(())
}

/// Checks the key of a timer.
pub(crate) fn check_key(key: &str) -> Result<(), Refused> {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(Refused {
        limit: "timer-key",
        message: format!(
            "the key of a timer has {} bytes, {KEY_BYTES_MAX} are allowed; use a shorter one",
            key.len()
        ),
    })
}

/// Whether a timer that is set at one time fires at once.
pub(crate) fn is_at_once(set_ns: u64, at_ns: u64) -> bool {
    at_ns.saturating_sub(set_ns) < AT_ONCE_NS
}

/// The id of the firing of a timer. What set it and the attempt are part of it, or the stream would
/// take the firing for a duplicate of an earlier one of that name and time.
pub(crate) fn id(deployment: &str, name: &str, timer: &Timer, attempt: u32) -> String {
    let Timer { at_ns, set_at, .. } = timer;
    let digest = Sha256::digest(name.as_bytes());
    let hash: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match set_at {
        Some(set_at) => format!("fst.{deployment}.{at_ns}.{hash}.{set_at}.{attempt}"),
        // Its firing may be under way since before the upgrade, and must not be stored twice.
        None => format!("fst.{deployment}.{at_ns}.{hash}.{attempt}"),
    }
}

fn is_zero(depth: &u32) -> bool {
    *depth == 0
}

impl Timer {
    /// The depth of a timer that this one sets when it fires.
    pub fn depth_of_next(&self, fired_ns: u64, at_ns: u64) -> u32 {
        if is_at_once(fired_ns, at_ns) {
            self.depth.saturating_add(1)
        } else {
            0
        }
    }

    /// Whether another timer of its name may have been set by the same events: an earlier release noted
    /// less of what set it.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let both_know = self.set_at.is_some() && other.set_at.is_some();
        let known = |timer: &Self| Self {
            set_at: timer.set_at.filter(|_| both_know),
            ..timer.clone()
        };
        known(self) == known(other)
    }

    /// As it is stored.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a timer is plain data")
    }

    /// From how it is stored; none if that is damaged.
    pub fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_back_from_how_they_are_stored() {
        let plain = Timer {
            at_ns: u64::MAX,
            set_by: 7,
            ..Timer::default()
        };
        let whole = Timer {
            set_at: Some(9),
            key: Some(String::new()),
            depth: 3,
            headers: vec![("ce-correlationid".to_owned(), "c\"1".to_owned())],
            ..plain.clone()
        };
        for timer in [plain.clone(), whole] {
            assert_eq!(Timer::from_text(&timer.to_text()), Some(timer));
        }
        let of_earlier_release = r#"{"at":18446744073709551615,"set":7}"#;
        assert_eq!(Timer::from_text(of_earlier_release), Some(plain.clone()));
        let set = |set_at| Timer {
            set_at,
            ..plain.clone()
        };
        let pairs = [(None, Some(9)), (Some(9), Some(9)), (Some(8), Some(9))];
        let are_same = pairs.map(|(one, other)| set(one).is_as(&set(other)));
        assert_eq!(are_same, [true, true, false]);
        assert_eq!(Timer::from_text("{"), None);
    }

    #[test]
    fn firing_of_a_timer_that_an_earlier_release_set_keeps_its_id() {
        let old = Timer {
            at_ns: 5,
            set_by: 7,
            ..Timer::default()
        };
        assert_eq!(id("ship", "a", &old, 2), "fst.ship.5.ca978112ca1bbdca.2");
        let set = |set_at| Timer {
            set_at: Some(set_at),
            ..old.clone()
        };
        assert_eq!(
            id("ship", "a", &set(9), 2),
            "fst.ship.5.ca978112ca1bbdca.9.2"
        );
        assert_ne!(id("ship", "a", &set(9), 0), id("ship", "a", &set(10), 0));
    }

    #[test]
    fn depth_counts_timers_that_set_the_next_for_at_once() {
        let timer = Timer {
            depth: 7,
            ..Timer::default()
        };
        assert_eq!(timer.depth_of_next(5_000_000_000, 0), 8);
        assert_eq!(timer.depth_of_next(5_000_000_000, 5_999_999_999), 8);
        // A heartbeat of a second is none.
        assert_eq!(timer.depth_of_next(5_000_000_000, 6_000_000_000), 0);
        assert_eq!(timer.depth_of_next(u64::MAX, u64::MAX), 8);
    }

    #[test]
    fn names_that_no_one_could_type_are_refused_by_name() {
        for name in ["", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(
                check_name(name).map_err(|refused| refused.limit),
                Err("timer-name")
            );
        }
        assert_eq!(check_name("payment/7 · überfällig"), Ok(()));
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(
            check_key(&long).map_err(|refused| refused.limit),
            Err("timer-key")
        );
    }
}
