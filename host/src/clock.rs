//! The clock by which timers and delayed effects are due.
//!
//! It is the clock of the stream: what the fold compares with the time of a timer is the time of
//! the firing, which the stream sets. So it is this machine's clock, shifted by how far that of a
//! server is ahead. If this machine's clock jumps, nothing fires until it has run evenly for a
//! while, or was compared with the server again: a jump that is corrected at once should fire
//! nothing early.
//!
//! What is removed by age waits in the same way ([`RemovalClock`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

/// A jump is at least this large.
const JUMP_MIN: Duration = Duration::from_secs(60);
/// How long the clock has to run evenly after a jump.
const STEADY: Duration = Duration::from_secs(10);
/// How long a comparison with a server counts.
const COMPARED: Duration = Duration::from_secs(60);

/// The time of this machine's clock, in nanoseconds since the Unix epoch.
pub(crate) fn wall_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// What the clocks of this machine show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// That of the day, in nanoseconds since the Unix epoch.
    pub(crate) wall_ns: u64,
    /// The steady one, which is never set: it counts from any fixed moment.
    pub(crate) steady: Duration,
}

/// Reads both clocks.
pub(crate) type Clocks = Arc<dyn Fn() -> Reading + Send + Sync>;

/// The clocks of this machine.
pub(crate) fn of_this_machine() -> Clocks {
    let begun = Instant::now();
    Arc::new(move || Reading {
        wall_ns: wall_ns(),
        steady: begun.elapsed(),
    })
}

/// Watches this machine's clock. Times of the steady clock count from any fixed moment.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Both clocks at the last look.
    last: Option<(u64, Duration)>,
    /// Nothing fires before this time of the steady clock.
    settles_at: Option<Duration>,
    /// How far the server is ahead, in nanoseconds.
    ahead_ns: i128,
    /// When that was found out, by the steady clock.
    compared_at: Option<Duration>,
}

/// The clock at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The time of the stream, in nanoseconds since the Unix epoch.
    Now(u64),
    /// This machine's clock has jumped: look again after this time.
    Jumped(Duration),
}

impl Clock {
    /// Looks at the clock.
    pub(crate) fn look(&mut self, wall_ns: u64, steady: Duration) -> Look {
        // Both clocks should have moved by the same; the difference is a jump.
        if let Some((last_wall, last_steady)) = self.last.replace((wall_ns, steady)) {
            let passed = steady.saturating_sub(last_steady).as_nanos() as i128;
            let moved = i128::from(wall_ns) - i128::from(last_wall);
            if (moved - passed).unsigned_abs() >= JUMP_MIN.as_nanos() {
                self.settles_at = Some(steady + STEADY);
                // What was known of the server's clock says nothing about the new one.
                self.compared_at = None;
            }
        }
        match self.settles_at {
            Some(at) if steady < at => Look::Jumped(at - steady),
            _ => {
                self.settles_at = None;
                // Signed, because the server may be behind.
                let now = i128::from(wall_ns) + self.ahead_ns;
                Look::Now(u64::try_from(now.max(0)).unwrap_or(u64::MAX))
            }
        }
    }

    /// Whether the clock should be compared with that of a server.
    pub(crate) fn must_compare(&self, steady: Duration) -> bool {
        self.compared_at
            .is_none_or(|at| steady.saturating_sub(at) >= COMPARED)
    }

    /// The server's time was this between two looks at this machine's clock.
    pub(crate) fn compared(
        &mut self,
        server_ns: u64,
        before_ns: u64,
        after_ns: u64,
        steady: Duration,
    ) {
        // As if the server had looked as late as possible: rather late than early.
        self.ahead_ns = i128::from(server_ns) - i128::from(after_ns.max(before_ns));
        self.compared_at = Some(steady);
        // The server has confirmed the new time, so nothing has to settle.
        self.settles_at = None;
    }

    /// The comparison failed, and is made again after a while.
    pub(crate) fn not_compared(&mut self, steady: Duration) {
        // A server that does not answer is not asked in each round.
        self.compared_at = Some(steady);
    }
}

/// This machine's clock for what is removed by age: a wrong time, even for a moment, would remove
/// what should stay. A machine may also start with a wrong time, which is corrected soon after.
#[derive(Debug)]
pub(crate) struct RemovalClock {
    clock: Clock,
    begun: Instant,
}

impl RemovalClock {
    /// A clock that counts once it has run evenly for a while.
    pub(crate) fn new() -> Self {
        Self {
            clock: Clock {
                settles_at: Some(STEADY),
                ..Clock::default()
            },
            begun: Instant::now(),
        }
    }

    /// Looks at the clock: its time in nanoseconds since the Unix epoch, or none if it has jumped,
    /// or has not run for long enough.
    pub(crate) fn look(&mut self) -> Option<u64> {
        match self.clock.look(wall_ns(), self.begun.elapsed()) {
            Look::Now(now_ns) => Some(now_ns),
            Look::Jumped(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn small_corrections_pass_and_jumps_wait_until_the_clock_is_steady() {
        let mut clock = Clock::default();
        assert_eq!(clock.look(1_000 * SECOND, at(0)), Look::Now(1_000 * SECOND));
        assert_eq!(
            clock.look(1_012 * SECOND, at(10)),
            Look::Now(1_012 * SECOND)
        );
        // A day ahead, and back a second later: nothing was due by the wrong time.
        assert_eq!(clock.look(87_412 * SECOND, at(11)), Look::Jumped(at(10)));
        assert_eq!(clock.look(1_014 * SECOND, at(12)), Look::Jumped(at(10)));
        assert_eq!(clock.look(1_020 * SECOND, at(18)), Look::Jumped(at(4)));
        assert_eq!(
            clock.look(1_024 * SECOND, at(22)),
            Look::Now(1_024 * SECOND)
        );
        // An hour back: timers are late by that, and none fires again.
        assert_eq!(clock.look(0, at(23)), Look::Jumped(at(10)));
        assert_eq!(clock.look(10 * SECOND, at(33)), Look::Now(10 * SECOND));
    }

    #[test]
    fn nothing_is_removed_by_a_clock_that_has_just_begun() {
        let mut removals = RemovalClock::new();
        assert_eq!(removals.look(), None);
        // As if it had run for longer than it has to.
        removals.begun -= 2 * STEADY;
        assert!(removals.look().is_some_and(|now_ns| now_ns > SECOND));
        // As if the clock of the day had been set back.
        removals.begun -= 2 * JUMP_MIN;
        assert_eq!(removals.look(), None);
    }

    #[test]
    fn server_decides_what_time_it_is() {
        let mut clock = Clock::default();
        assert!(clock.must_compare(at(0)));
        clock.compared(1_000 * SECOND, 990 * SECOND, 994 * SECOND, at(0));
        assert_eq!(clock.look(995 * SECOND, at(1)), Look::Now(1_001 * SECOND));
        assert!(!clock.must_compare(at(59)) && clock.must_compare(at(60)));
        // After a jump it is asked again, and then counts at once.
        assert_eq!(clock.look(87_395 * SECOND, at(2)), Look::Jumped(at(10)));
        assert!(clock.must_compare(at(2)));
        clock.compared(1_003 * SECOND, 87_395 * SECOND, 87_396 * SECOND, at(3));
        assert_eq!(
            clock.look(87_396 * SECOND, at(3)),
            Look::Now(1_003 * SECOND)
        );
    }
}
