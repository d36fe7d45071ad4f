//! What a source is doing, as its reader tells it: the truth of the moment, with since when it is so and when anything
//! was heard last.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::api::{SourceState, SourceStatus};

/// How often it is noted at most that something was heard: often enough to be called now, seldom enough to cost nothing.
const HEARD_INTERVAL: Duration = Duration::from_millis(200);

/// Where a reader tells how it is.
pub type StatusSender = watch::Sender<Status>;

/// What a source is doing.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it is doing.
    pub state: SourceState,
    /// Why, if there is something to say.
    pub message: Option<String>,
    /// Since when it has this state.
    pub since: jiff::Timestamp,
    /// When anything was heard last.
    pub heard: Option<Instant>,
    /// How often it had to reconnect, or to make its consumer again.
    pub reconnects: u64,
    /// Messages that are no events, and were passed over.
    pub passed_over: u64,
    /// Messages that were handed on without what of them is unusable.
    pub repaired: u64,
    /// Whether something was seen that would stop the reader, and a second look is to confirm it.
    pub in_doubt: bool,
}

/// The status before anything was tried.
pub fn initial_status() -> Status {
    Status {
        state: SourceState::Connecting,
        message: None,
        since: jiff::Timestamp::now(),
        heard: None,
        reconnects: 0,
        passed_over: 0,
        repaired: 0,
        in_doubt: false,
    }
}

impl Status {
    /// Whether it is read, and was heard within so long.
    pub fn is_heard_within(&self, age: Duration) -> bool {
        self.state == SourceState::Reading && self.heard.is_some_and(|heard| heard.elapsed() <= age)
    }

    /// Whether what was heard last, within so long, still holds: nothing was lost since.
    pub fn is_known_within(&self, age: Duration) -> bool {
        matches!(self.state, SourceState::Reading | SourceState::Idle)
            && self.heard.is_some_and(|heard| heard.elapsed() <= age)
    }

    /// Whether events can't come, for a reason that may pass. One that was never reached has tried and said why.
    pub fn is_trouble(&self) -> bool {
        self.state.is_trouble() || (self.state == SourceState::Connecting && self.message.is_some())
    }

    /// When anything was heard last, by the clock.
    pub fn last_heard(&self) -> Option<jiff::Timestamp> {
        let ago = self.heard?.elapsed();
        jiff::Timestamp::now().checked_sub(ago).ok()
    }
}

impl From<&Status> for SourceStatus {
    fn from(status: &Status) -> Self {
        Self {
            state: status.state,
            message: status.message.clone(),
            since: Some(status.since.to_string()),
            last_heard: status.last_heard().map(|time| time.to_string()),
            reconnects: status.reconnects,
            passed_over: status.passed_over,
            repaired: status.repaired,
        }
    }
}

/// Tells how the source is, if that is news.
pub fn tell(sender: &StatusSender, state: SourceState, message: Option<String>) {
    sender.send_if_modified(|status| {
        if state == SourceState::Reading {
            status.heard = Some(Instant::now());
        }
        let is_news = status.state != state || status.message != message;
        if status.state != state {
            status.since = jiff::Timestamp::now();
        }
        status.state = state;
        status.message = message;
        status.in_doubt = false;
        is_news
    });
}

/// Tells what was seen that would stop the reader, unless a second look finds otherwise.
pub fn doubt(sender: &StatusSender, message: String) {
    sender.send_modify(|status| {
        if status.state != SourceState::Reconnecting {
            status.since = jiff::Timestamp::now();
        }
        status.state = SourceState::Reconnecting;
        status.message = Some(message);
        status.in_doubt = true;
    });
}

/// Notes that something was heard at a time. Nobody is woken for that.
pub fn heard(sender: &StatusSender, at: Instant) {
    let is_news = sender.borrow().heard.is_none_or(|heard| heard + HEARD_INTERVAL <= at);
    if is_news {
        sender.send_if_modified(|status| {
            status.heard = Some(at);
            false
        });
    }
}

/// Counts a connection or a consumer that was lost.
pub fn lost(sender: &StatusSender) {
    sender.send_if_modified(|status| {
        status.reconnects += 1;
        false
    });
}
