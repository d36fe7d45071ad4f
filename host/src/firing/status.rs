//! What the task that fires timers reports.

use parking_lot::Mutex;

/// The state of the timers of an owner, for people.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    next_ns: Option<u64>,
    trouble: Option<(String, jiff::Timestamp)>,
}

impl Status {
    /// When the next timer is due, in nanoseconds since the Unix epoch; none if no timer is pending
    /// or it is not known.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.0.lock().next_ns
    }

    /// Why a timer that is due cannot fire, and since when.
    pub(crate) fn trouble(&self) -> Option<(String, jiff::Timestamp)> {
        self.0.lock().trouble.clone()
    }

    pub(super) fn set_next(&self, next_ns: Option<u64>) {
        self.0.lock().next_ns = next_ns;
    }

    pub(super) fn troubled(&self, trouble: Option<String>) {
        let mut state = self.0.lock();
        state.trouble = match (trouble, state.trouble.take()) {
            (None, _) => None,
            (Some(trouble), Some((_, since))) => Some((trouble, since)),
            (Some(trouble), None) => Some((trouble, jiff::Timestamp::now())),
        };
    }
}
