//! How far a runner is behind the end of its stream, and what the host tells it about that end.

use std::time::{Duration, Instant};

use super::Runner;
use crate::progress::{DeploymentState, Now};
use crate::source::{self, SourceState, Waiting};

/// How long information about a stream counts as current.
const KNOWN_FOR: Duration = Duration::from_secs(6);
/// After how long without news of a stream it is checked outside the reader.
const HEARD_FOR: Duration = Duration::from_secs(2);

/// How far a state is behind the end of its stream. Unknown values are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lag {
    /// The last sequence in the stream.
    pub head: Option<u64>,
    /// Events that may match and are not applied yet.
    pub events: Option<u64>,
    /// Age of the oldest of them, in seconds; 0 if there is none.
    pub seconds: Option<f64>,
}

impl Runner {
    /// Its state at a progress that was read before, including what is known about its source. A
    /// progress that is read again may be another one, of which the rest of an answer knows nothing.
    pub fn state(&self, now: &Now) -> DeploymentState {
        let state = now.state;
        let would_read = matches!(state, DeploymentState::CatchingUp | DeploymentState::Live);
        if would_read && self.source_status().is_trouble() {
            DeploymentState::Disconnected
        } else {
            state
        }
    }

    /// How far it is behind the end of its stream at a progress that was read before, as far as
    /// known.
    pub fn lag(&self, now: &Now) -> Lag {
        // While it reads, its own reader says where the stream ends; otherwise the look of the host
        // does.
        let status = self.source_status();
        let reads = now.has_read && status.is_known_within(KNOWN_FOR);
        // A look from before the source was lost says nothing about now.
        let is_current = |at: &Instant| {
            at.elapsed() <= KNOWN_FOR && status.troubled_at.is_none_or(|since| since < *at)
        };
        let was_looked_at = now.looked_at.as_ref().is_some_and(is_current);
        let is_unknown = now.head_is_doubtful || (!reads && !was_looked_at);
        if is_unknown || now.is_of_another_history() {
            return Lag::default();
        }
        // The age of the last event is an upper bound of the age of the next one.
        // Events on their way to us follow the last applied event.
        let is_running = matches!(
            now.state,
            DeploymentState::CatchingUp | DeploymentState::Live
        );
        let next_ns = now.oldest_ns.or_else(|| {
            (reads && is_running && now.last_event_ns > 0).then_some(now.last_event_ns)
        });
        let seconds = if now.pending == 0 {
            Some(0.0)
        } else {
            // The stream has its own clock: if that is ahead, nobody knows for how long they wait.
            next_ns.map(age_seconds).and_then(wait_seconds)
        };
        Lag {
            // The head was reported earlier, and may lie behind the position by now.
            head: Some(now.head.max(self.last_position())),
            events: Some(now.pending),
            seconds,
        }
    }

    /// Whether the end of the stream is out of date, because the stream is not read at the moment
    /// or read events are waiting.
    pub fn asks_for_head(&self) -> bool {
        !self.source_status().is_heard_within(HEARD_FOR)
    }

    /// The position after which somebody must look up the next event: it is not read, so its age is
    /// unknown.
    pub fn asks_for_age(&self) -> Option<u64> {
        let position = self.store()?.position();
        self.shared.progress.asks_for_age().then_some(position)
    }

    /// Records what its source reported outside the reader, which a runner that does not read would
    /// not learn.
    pub fn source_says(&self, info: &source::Info) {
        // Only an operator ends this state; a look from outside proves nothing about its cause.
        let is_stopped = self.source_status().state == SourceState::Stopped;
        let rests = !matches!(
            self.now().state,
            DeploymentState::CatchingUp | DeploymentState::Live
        );
        let status = &self.shared.source_status;
        match (info.first_sequence, info.last_sequence) {
            (Some(first), Some(last)) if info.reachable => {
                source::heard(status, Instant::now());
                if rests && !is_stopped {
                    source::report(status, SourceState::Idle, None);
                }
                // An empty stream names no first event: it has none up to its last sequence.
                let first = if first == 0 { last + 1 } else { first };
                self.stream_reaches(first, last);
            }
            _ if rests && !is_stopped => {
                source::report(
                    status,
                    info.state.unwrap_or(SourceState::Reconnecting),
                    info.message.clone(),
                );
            }
            _ => {}
        }
    }

    /// Records where the stream begins and ends, which a runner that does not read would not learn.
    pub fn stream_reaches(&self, first: u64, head: u64) {
        if let Some(store) = self.store() {
            self.shared
                .progress
                .note_stream(first, head, store.position());
        }
    }

    /// Records what waits in the stream, which had this head before it was asked.
    pub fn next_event_is(&self, waiting: Waiting, head: u64) {
        let progress = &self.shared.progress;
        match waiting {
            Waiting::Since(time_ns) => progress.note_oldest(time_ns),
            Waiting::Nothing => progress.note_nothing_waits(head),
            Waiting::Unknown => {}
        }
    }
}

/// For how long an event waits whose time was this many seconds ago; none if that is unknown.
fn wait_seconds(age_seconds: f64) -> Option<f64> {
    (age_seconds > 0.0).then_some(age_seconds)
}

/// How long ago a time was, in seconds.
pub(crate) fn age_seconds(time_ns: u64) -> f64 {
    // Signed, because a time of the future is possible, and has the age 0.
    let age_ns = jiff::Timestamp::now().as_nanosecond() - i128::from(time_ns);
    (age_ns as f64 / 1e9).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_from_a_clock_that_is_ahead_waits_for_an_unknown_time() {
        let now_ns = crate::clock::wall_ns();
        let hour_ns = 3_600_000_000_000;
        let waits = |time_ns| wait_seconds(age_seconds(time_ns));
        assert_eq!(waits(now_ns + hour_ns), None);
        assert!(waits(now_ns - hour_ns).is_some_and(|seconds| seconds >= 3_600.0));
    }
}
