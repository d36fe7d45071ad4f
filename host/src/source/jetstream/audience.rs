//! To whom a reader reports the state of its source: to its deployment, or to all that follow it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::source::{self, SourceState, Status, StatusSender, doubt, report};

/// To whom a reader reports.
#[derive(Clone, Debug)]
pub(super) enum Audience {
    /// The deployment that owns the reader.
    One(StatusSender),
    /// All deployments that follow the reader.
    Followers(Arc<Followers>),
}

/// The deployments that follow a reader.
#[derive(Debug)]
pub(super) struct Followers {
    /// The state of the reader itself, with or without followers.
    own: StatusSender,
    each: Mutex<Vec<(u64, StatusSender)>>,
}

impl Followers {
    /// Nobody yet, of a reader in this state.
    pub(super) fn new(status: Status) -> Self {
        Self {
            own: StatusSender::new(status),
            each: Mutex::default(),
        }
    }

    /// One more, by the number of its seat.
    pub(super) fn add(&self, seat: u64, status: StatusSender) {
        self.each.lock().push((seat, status));
    }

    /// One less.
    pub(super) fn remove(&self, seat: u64) {
        self.each.lock().retain(|(known, _)| *known != seat);
    }

    /// What the reader is doing.
    pub(super) fn state(&self) -> SourceState {
        self.own.borrow().state
    }
}

impl Audience {
    /// What the reader is doing, as reported.
    pub(super) fn state(&self) -> SourceState {
        match self {
            Self::One(status) => status.borrow().state,
            Self::Followers(followers) => followers.state(),
        }
    }

    /// Reports the state of the source.
    pub(super) fn report(&self, state: SourceState, message: Option<String>) {
        self.each(|status| report(status, state, message.clone()));
    }

    /// Reports a problem that would stop the reader, unless a second check finds otherwise.
    pub(super) fn doubt(&self, message: &str) {
        self.each(|status| doubt(status, message.to_owned()));
    }

    /// Reports a problem that stops the reader. Its followers check themselves whether it stops
    /// them.
    pub(super) fn stop(&self, message: String) {
        match self {
            Self::One(status) => report(status, SourceState::Stopped, Some(message)),
            Self::Followers(_) => self.doubt(&message),
        }
    }

    /// Records that the source answered at a time.
    pub(super) fn heard(&self, at: Instant) {
        match self {
            Self::One(status) => {
                source::heard(status, at);
            }
            // Nearly always it was recorded a moment ago, and there may be hundreds.
            Self::Followers(followers) if source::heard(&followers.own, at) => {
                for (_, status) in &*followers.each.lock() {
                    source::heard(status, at);
                }
            }
            Self::Followers(_) => {}
        }
    }

    /// Counts a lost connection or consumer.
    pub(super) fn lost(&self) {
        self.each(source::lost);
    }

    fn each(&self, tell: impl Fn(&StatusSender)) {
        match self {
            Self::One(status) => tell(status),
            Self::Followers(followers) => {
                tell(&followers.own);
                for (_, status) in &*followers.each.lock() {
                    tell(status);
                }
            }
        }
    }
}
