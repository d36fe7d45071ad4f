//! Failures of deployments: what failed, and whose fault it was.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error that stopped or delays a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A name that never changes: `invalid`, `rejected`, `retry`, `trap`, `deadline`, `limit`, `state`,
    /// `source-diverged`, …
    pub kind: String,
    /// What kind of failure to apply events it was; none for all other failures.
    pub class: Option<FailureClass>,
    /// What happened, and what to do next.
    pub message: String,
    /// The sequence of the event that failed, if there is one.
    pub sequence: Option<u64>,
    /// When the failure first happened in this streak, in RFC 3339.
    pub first_at: String,
    /// How often the host has tried.
    pub attempts: u32,
    /// When the host tries the event again, in RFC 3339; none if it does not, or does not know
    /// when.
    pub next_attempt_at: Option<String>,
    /// Whether that is later than usual, because the retries of the deployment take more time than
    /// `pipeline.retry_percent` allows.
    pub breaker_open: bool,
}

/// The generation of a deployment that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The active generation.
    Active,
    /// A candidate; commands about it have `--candidate`.
    Candidate,
}

/// The class of a failure to apply events decides who is charged, and how often the host tries. The
/// names never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// The module asked for another attempt. The host tries the event as often as the error policy
    /// says.
    Retry,
    /// The module can never apply the event. The host tries it once.
    Rejected,
    /// The module trapped. The host stops after the same trap three times, each on a fresh
    /// instance.
    Trap,
    /// The call took too long, which depends on the load of the machine. The host tries the event
    /// as often as the error policy says.
    Deadline,
    /// A fresh instance used up its memory, its stack or its tables. The host stops after the same
    /// failure three times.
    Memory,
    /// The host refused what the module asked of it, such as a value that is too large or a message
    /// without a grant. The host stops after the same refusal three times.
    Refused,
    /// The state would grow beyond its limit. That is charged to the deployment, not to the event:
    /// the next event would fail as well. The host tries once.
    StateLimit,
    /// The host had no instance or no memory left. Nobody is charged, and the host waits.
    Busy,
}

impl FailureClass {
    /// All classes.
    pub const ALL: [Self; 8] = [
        Self::Retry,
        Self::Rejected,
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::Refused,
        Self::StateLimit,
        Self::Busy,
    ];

    /// The class with a name, as in JSON.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Rejected => "rejected",
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Refused => "refused",
            Self::StateLimit => "state-limit",
            Self::Busy => "busy",
        }
    }
}

/// The state could not be opened, read or written.
pub(crate) const STATE: &str = "state";
/// The host could not start what a deployment needs, such as a thread.
pub(crate) const HOST: &str = "host";
/// Too many messages wait in the outbox.
pub(crate) const OUTBOX: &str = "outbox";
/// The stream was made again, with other events.
pub(crate) const SOURCE_DIVERGED: &str = "source-diverged";
/// The stream ends before what was applied.
pub(crate) const SOURCE_TRUNCATED: &str = "source-truncated";
/// A message of the stream cannot be read as an event.
pub(crate) const SOURCE_UNREADABLE: &str = "source-unreadable";

/// Kinds of failures that concern a single event, so that skipping it lets the deployment continue.
const OF_AN_EVENT: [&str; 7] = [
    "invalid",
    "rejected",
    "retry",
    "trap",
    "deadline",
    "limit",
    SOURCE_UNREADABLE,
];

impl Failure {
    /// A failure at an event of which only the beginning counts.
    pub(crate) fn begun(kind: &str, sequence: u64, first_at: String) -> Self {
        Self {
            kind: kind.to_owned(),
            class: None,
            message: String::new(),
            sequence: Some(sequence),
            first_at,
            attempts: 0,
            next_attempt_at: None,
            breaker_open: false,
        }
    }

    /// Whether the state could not be opened, read or written.
    pub(crate) fn is_of_state(&self) -> bool {
        self.kind == STATE
    }

    /// Whether the host could not start what the deployment needs.
    pub(crate) fn is_of_host(&self) -> bool {
        self.kind == HOST
    }

    /// Whether the stream was made again, with other events.
    pub(crate) fn is_of_diverged_source(&self) -> bool {
        self.kind == SOURCE_DIVERGED
    }

    /// Whether the stream lacks what the state was built from.
    pub(crate) fn is_of_another_history(&self) -> bool {
        self.is_of_diverged_source() || self.kind == SOURCE_TRUNCATED
    }

    /// Whether a message of the stream cannot be read as an event.
    pub(crate) fn is_of_unreadable_event(&self) -> bool {
        self.kind == SOURCE_UNREADABLE
    }

    /// The command that skips the failing event, if that would help.
    pub fn way_past(&self, deployment: &str, whose: Whose) -> Option<String> {
        let is_of_event = OF_AN_EVENT.contains(&self.kind.as_str())
            && self.class != Some(FailureClass::StateLimit);
        let sequence = self.sequence.filter(|_| is_of_event)?;
        let candidate = match whose {
            Whose::Active => "",
            Whose::Candidate => " --candidate",
        };
        Some(format!(
            "foldstream resume {deployment}{candidate} --skip {sequence} --reason TEXT"
        ))
    }

    /// The same failure with that command in its message.
    pub fn with_way_past(mut self, deployment: &str, whose: Whose) -> Self {
        if let Some(command) = self.way_past(deployment, whose) {
            self.message = format!(
                "{}; deploy a corrected module, or leave the event out: `{command}`",
                self.message
            );
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_named_in_json_as_everywhere_else() {
        for class in FailureClass::ALL {
            assert_eq!(
                serde_json::to_value(class).expect("plain data"),
                class.name()
            );
        }
    }

    #[test]
    fn skipping_an_event_is_no_way_past_a_state_that_is_full() {
        let failure = |class| Failure {
            kind: "limit".to_owned(),
            class: Some(class),
            message: String::new(),
            sequence: Some(7),
            first_at: String::new(),
            attempts: 1,
            next_attempt_at: None,
            breaker_open: false,
        };
        assert!(
            failure(FailureClass::Refused)
                .way_past("orders", Whose::Active)
                .is_some()
        );
        assert_eq!(
            failure(FailureClass::StateLimit).way_past("orders", Whose::Active),
            None
        );
    }
}
