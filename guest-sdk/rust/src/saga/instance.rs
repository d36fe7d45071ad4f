//! What is stored of an instance of a saga. Its form is described in `docs/sagas.md`, so that hosts
//! and SDKs of other languages agree about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The version of the stored form.
pub(super) const FORMAT: u32 = 1;
/// Most notes in the history of an instance; older ones are dropped and counted.
const NOTES_MAX: usize = 32;
/// Longest text of a note or a reason, in characters.
const TEXT_CHARACTERS_MAX: usize = 200;

/// How far an instance of a saga is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Its steps are being carried out.
    Running,
    /// What was done is being undone, the last step first.
    Compensating,
    /// It cannot continue without an operator.
    Stuck,
    /// All steps are done.
    Completed,
    /// All that was done is undone.
    Compensated,
}

impl Status {
    /// Its name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Stuck => "stuck",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
        }
    }

    /// Whether nothing more happens.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What an instance waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Wait {
    /// The answer to its command.
    Answer,
    /// The next attempt.
    Retry,
    /// An operator, or its removal.
    Nothing,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fate {
    /// It is the current step.
    Waiting,
    /// It was done.
    Done,
    /// It may have been done, and is undone like one that was.
    InDoubt,
    /// It was not done.
    Failed,
    /// It was done, or perhaps, and is undone.
    Undone,
}

/// A step that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) step: String,
    pub(super) fate: Fate,
}

/// A step without a command that failed before its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EarlyFailure {
    pub(super) step: String,
    pub(super) why: String,
}

/// A note in the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) at: Timestamp,
    pub(super) what: String,
}

/// An instance of a saga.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance<D> {
    pub(super) format: u32,
    pub(super) status: Status,
    /// The current step; absent after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<String>,
    /// Since when it has had this status in this step.
    pub(super) since: Timestamp,
    pub(super) started: Timestamp,
    /// The latest time that it met, because streams may have times that go back.
    pub(super) updated: Timestamp,
    #[serde(default)]
    pub(super) attempt: u32,
    pub(super) wait: Wait,
    /// Whether the current step is being undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) undoing: bool,
    /// When its timer fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) due: Option<Timestamp>,
    /// Why it compensates or is stuck.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    /// The reason before it got stuck.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) reason_before: String,
    #[serde(default)]
    pub(super) steps: Vec<Record>,
    /// Steps without a command whose event came before their turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) early: Vec<String>,
    /// Steps without a command whose failure came before their turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) early_failures: Vec<EarlyFailure>,
    #[serde(default)]
    pub(super) history: Vec<Note>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) history_dropped: u64,
    pub(super) data: D,
}

impl<D> Instance<D> {
    pub(super) fn new(data: D, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            status: Status::Running,
            step: None,
            since: now,
            started: now,
            updated: now,
            attempt: 0,
            wait: Wait::Nothing,
            undoing: false,
            due: None,
            reason: String::new(),
            reason_before: String::new(),
            steps: Vec::new(),
            early: Vec::new(),
            early_failures: Vec::new(),
            history: Vec::new(),
            history_dropped: 0,
            data,
        }
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The step that it carries out or undoes, or at which it is stuck; none after its end.
    pub fn step(&self) -> Option<&str> {
        self.step.as_deref()
    }

    /// Since when it has had this status in this step.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// When it was started.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Which attempt of the current command it is, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Why it compensates or is stuck; empty while it runs.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What it keeps.
    pub fn data(&self) -> &D {
        &self.data
    }

    pub(super) fn fate(&self, step: &str) -> Option<Fate> {
        let record = self.steps.iter().find(|record| record.step == step)?;
        Some(record.fate)
    }

    pub(super) fn set_fate(&mut self, step: &str, fate: Fate) {
        match self.steps.iter_mut().find(|record| record.step == step) {
            Some(record) => record.fate = fate,
            None => self.steps.push(Record {
                step: step.to_owned(),
                fate,
            }),
        }
    }

    /// Adds to the history.
    pub(super) fn note(&mut self, now: Timestamp, what: &str) {
        if self.history.len() >= NOTES_MAX {
            // The first one says how it began, and is worth keeping.
            self.history.remove(1);
            self.history_dropped += 1;
        }
        let what = shortened(what);
        self.history.push(Note { at: now, what });
    }
}

/// A text of limited length.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
