//! The state of a source, as its reader reports it: the current state, since when, and when the
//! source last answered.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

/// Shortest time between two records of an answer: often enough to be current, seldom enough to
/// cost nothing.
const HEARD_INTERVAL: Duration = Duration::from_millis(200);

/// What a source is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    /// Not connected yet.
    Connecting,
    /// Reading events.
    Reading,
    /// Not read at the moment, because the deployment is paused or failed. It was reachable at
    /// `last_heard`.
    Idle,
    /// The server can't be reached; trying again.
    Reconnecting,
    /// The server refuses the credentials or a permission.
    Unauthorized,
    /// The stream does not exist.
    StreamMissing,
    /// The stream can't continue this state; an operator must decide.
    Stopped,
}

impl SourceState {
    /// All states, for metrics and exhaustive handling.
    pub const ALL: [Self; 7] = [
        Self::Connecting,
        Self::Reading,
        Self::Idle,
        Self::Reconnecting,
        Self::Unauthorized,
        Self::StreamMissing,
        Self::Stopped,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Reading => "reading",
            Self::Idle => "idle",
            Self::Reconnecting => "reconnecting",
            Self::Unauthorized => "unauthorized",
            Self::StreamMissing => "stream-missing",
            Self::Stopped => "stopped",
        }
    }

    /// Whether it keeps events from arriving, for a reason that may pass.
    pub fn is_trouble(self) -> bool {
        matches!(
            self,
            Self::Reconnecting | Self::Unauthorized | Self::StreamMissing
        )
    }
}

/// A reader reports its state here.
pub type StatusSender = watch::Sender<Status>;

/// The state of a source.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it is doing.
    pub state: SourceState,
    /// Why, if there is a reason.
    pub message: Option<String>,
    /// When it entered this state.
    pub since: jiff::Timestamp,
    /// When it last answered.
    pub heard: Option<Instant>,
    /// Since when its reader can't read it; what is known from before may have changed.
    pub troubled_at: Option<Instant>,
    /// How often it had to reconnect, or to recreate its consumer.
    pub reconnects: u64,
    /// Messages that are not events, and were passed over.
    pub passed_over: u64,
    /// Messages that were delivered without their unusable parts.
    pub repaired: u64,
    /// Whether a problem was seen that would stop the reader, and awaits confirmation by a second
    /// check.
    pub in_doubt: bool,
}

/// The status before the first attempt.
pub fn initial_status() -> Status {
    Status {
        state: SourceState::Connecting,
        message: None,
        since: jiff::Timestamp::now(),
        heard: None,
        troubled_at: None,
        reconnects: 0,
        passed_over: 0,
        repaired: 0,
        in_doubt: false,
    }
}

impl Status {
    /// Whether it is read, and has answered within this time.
    pub fn is_heard_within(&self, age: Duration) -> bool {
        self.state == SourceState::Reading && self.heard.is_some_and(|heard| heard.elapsed() <= age)
    }

    /// Whether the last answer, within this time, is still valid: no connection was lost since.
    pub fn is_known_within(&self, age: Duration) -> bool {
        matches!(self.state, SourceState::Reading | SourceState::Idle)
            && self.heard.is_some_and(|heard| heard.elapsed() <= age)
    }

    /// Whether events can't arrive, for a reason that may pass. A source that was never reached has
    /// tried and said why.
    pub fn is_trouble(&self) -> bool {
        self.state.is_trouble() || (self.state == SourceState::Connecting && self.message.is_some())
    }

    /// Records when trouble begins, or that there is none.
    fn note_trouble(&mut self) {
        self.troubled_at = self
            .is_trouble()
            .then(|| self.troubled_at.unwrap_or_else(Instant::now));
    }

    /// When it last answered, by the clock.
    pub fn last_heard(&self) -> Option<jiff::Timestamp> {
        let ago = self.heard?.elapsed();
        jiff::Timestamp::now().checked_sub(ago).ok()
    }
}

/// Reports the state of the source, if it changed.
pub fn report(sender: &StatusSender, state: SourceState, message: Option<String>) {
    sender.send_if_modified(|status| {
        if state == SourceState::Reading {
            status.heard = Some(Instant::now());
        }
        let is_news = status.state != state || status.message != message || status.in_doubt;
        if status.state != state {
            status.since = jiff::Timestamp::now();
        }
        status.state = state;
        status.message = message;
        status.in_doubt = false;
        status.note_trouble();
        is_news
    });
}

/// Reports a problem that would stop the reader, unless a second check finds otherwise.
pub fn doubt(sender: &StatusSender, message: String) {
    sender.send_modify(|status| {
        if status.state != SourceState::Reconnecting {
            status.since = jiff::Timestamp::now();
        }
        status.state = SourceState::Reconnecting;
        status.message = Some(message);
        status.in_doubt = true;
        status.note_trouble();
    });
}

/// Records that the source answered at a time, unless that was done a moment ago; returns whether
/// it was recorded. Nobody is woken for that.
pub fn heard(sender: &StatusSender, at: Instant) -> bool {
    let is_news = sender
        .borrow()
        .heard
        .is_none_or(|heard| heard + HEARD_INTERVAL <= at);
    if is_news {
        sender.send_if_modified(|status| {
            status.heard = Some(at);
            false
        });
    }
    is_news
}

/// Counts a lost connection or consumer.
pub fn lost(sender: &StatusSender) {
    sender.send_if_modified(|status| {
        status.reconnects += 1;
        false
    });
}
