//! What the task that fires timers reports.

use parking_lot::Mutex;

/// The state of the timers of an owner, for people.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<State>);

#[derive(Clone, Debug, Default)]
struct State {
    next_ns: Option<u64>,
    trouble: Option<(String, jiff::Timestamp)>,
    looping: Option<Loop>,
}

/// A timer of a row in which each one sets the next for at once.
#[derive(Clone, Debug)]
pub(crate) struct Loop {
    /// Its name.
    pub(crate) timer: String,
    /// How many timers in a row led to it.
    pub(crate) in_a_row: u32,
    /// When this host found the loop.
    pub(crate) since: jiff::Timestamp,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// What is reported was not there before.
    Begun,
    /// It was, or nothing is reported.
    Nothing,
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

    /// The loop that its timers make.
    pub(crate) fn timer_loop(&self) -> Option<Loop> {
        self.0.lock().looping.clone()
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

    /// Takes the timer of a loop, and how many in a row led to it.
    pub(super) fn set_loop(&self, found: Option<(&str, u32)>) -> Change {
        let mut state = self.0.lock();
        let known = state.looping.take();
        let Some((timer, in_a_row)) = found else {
            return Change::Nothing;
        };
        let change = if known.is_none() {
            Change::Begun
        } else {
            Change::Nothing
        };
        state.looping = Some(Loop {
            timer: timer.to_owned(),
            in_a_row,
            since: known.map_or_else(jiff::Timestamp::now, |known| known.since),
        });
        change
    }
}
