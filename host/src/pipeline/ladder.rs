//! The ladder of failures: how often an event that fails is tried, when, and when that ends.
//!
//! | Class | Charged to | Attempts |
//! |---|---|---|
//! | `retry`, `deadline` | the event | as the policy says |
//! | `rejected` | the event | 1 |
//! | `trap`, `memory`, `refused` | the event | 3 with the same message, at most as the policy says |
//! | `state-limit` | the deployment | 1 |
//! | `busy` | nobody | no end: the pipeline waits, and never asks here |
//!
//! After the last attempt the deployment stops at the event. A deadline depends on the load of the
//! machine, so nothing else may ever follow from one.

use std::time::{Duration, Instant};

use super::budget::{Breaker, Budget};
use crate::failure::FailureClass;

/// Attempts at an event that fails with the same message each time, for a reason that does not
/// depend on load.
const ATTEMPTS_ALIKE: u32 = 3;
/// Attempts for a module on probation before the previous module is restored.
const ATTEMPTS_ON_PROBATION: u32 = 3;

/// Longest pause of all, whatever manifests and settings say.
const PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// How often the host tries an event that fails, and how long it pauses in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Total attempts, including the first.
    pub attempts: u32,
    /// Pause before the second attempt; each further one doubles, with jitter.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
}

impl Policy {
    /// The policy while a generation answers no reads: at most this many attempts, and no longer
    /// pauses.
    pub fn capped(self, attempts: u32, max_backoff: Duration) -> Self {
        Self {
            attempts: self.attempts.min(attempts),
            initial_backoff: self.initial_backoff.min(max_backoff),
            max_backoff: self.max_backoff.min(max_backoff),
        }
    }

    /// The policy for a module on probation.
    pub(super) fn on_probation(self) -> Self {
        Self {
            attempts: self.attempts.min(ATTEMPTS_ON_PROBATION),
            ..self
        }
    }

    /// Doubles with each attempt up to the maximum, and varies by half, so that deployments that
    /// failed together do not retry together.
    fn backoff(&self, attempts: u32) -> Duration {
        let doubled = self
            .initial_backoff
            .saturating_mul(1 << attempts.saturating_sub(1).min(20));
        varied(doubled.min(self.max_backoff).min(PAUSE_MAX))
    }
}

fn varied(pause: Duration) -> Duration {
    // From half to all of it.
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// A failed attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    /// The kind of the failure, as operators see it.
    pub(super) kind: &'static str,
    /// None if no event could be tried, because the module does not start.
    pub(super) class: Option<FailureClass>,
    pub(super) sequence: Option<u64>,
    pub(super) message: &'a str,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Try again after a pause.
    Retry { pause: Duration, is_open: bool },
    /// Nothing more is tried until an operator asks for it.
    Stop,
}

/// Failures of one event with the same message.
#[derive(Debug, Default)]
struct Alike {
    sequence: Option<u64>,
    message: String,
    count: u32,
}

impl Alike {
    /// Counts a failure; returns how many in a row were equal.
    fn count(&mut self, sequence: Option<u64>, message: &str) -> u32 {
        // Other events in between end a streak.
        if self.sequence == sequence && self.message == message {
            self.count += 1;
        } else {
            *self = Self {
                sequence,
                message: message.to_owned(),
                count: 1,
            };
        }
        self.count
    }
}

/// Where a pipeline is on the ladder.
#[derive(Debug)]
pub(super) struct Ladder {
    /// Attempts at the failing event.
    attempts: u32,
    alike: Alike,
    budget: Budget,
    breaker: Breaker,
    /// Nothing is tried before this time.
    rests_until: Option<Instant>,
}

impl Ladder {
    /// The bottom of the ladder, with a full budget: failed calls may take this much of a minute.
    pub(super) fn new(percent: u32, now: Instant) -> Self {
        Self {
            attempts: 0,
            alike: Alike::default(),
            budget: Budget::new(percent, now),
            breaker: Breaker::default(),
            rests_until: None,
        }
    }

    /// Failed attempts at the failing event; 0 if none fails.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Until when nothing is tried.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// A call that took this long has failed, no matter who is charged.
    pub(super) fn lose(&mut self, took: Duration, now: Instant) {
        self.budget.lose(took, now);
    }

    /// An attempt has failed: what follows. Counts it.
    pub(super) fn failed(&mut self, attempt: Attempt<'_>, policy: Policy, now: Instant) -> Step {
        self.attempts += 1;
        let Attempt {
            class,
            sequence,
            message,
            ..
        } = attempt;
        let is_last = match class {
            // The first is the guest's own verdict, and a state at its limit stays there.
            Some(FailureClass::Rejected | FailureClass::StateLimit) => true,
            Some(FailureClass::Trap | FailureClass::Memory | FailureClass::Refused) => {
                self.alike.count(sequence, message) >= ATTEMPTS_ALIKE
            }
            Some(FailureClass::Retry | FailureClass::Deadline | FailureClass::Busy) | None => false,
        };
        if is_last || self.attempts >= policy.attempts {
            return Step::Stop;
        }
        // The budget is charged even if the breaker is open anyway: the attempt costs the same.
        let is_open = !self.budget.take(now) || self.breaker.is_trying();
        let pause = if is_open {
            varied(self.breaker.open(now))
        } else {
            policy.backoff(self.attempts)
        };
        self.rests_until = Some(now + pause);
        Step::Retry { pause, is_open }
    }

    /// Events were applied; returns whether one of them had failed before.
    pub(super) fn passed(&mut self) -> bool {
        // Success ends everything that failures have left.
        self.breaker.passed();
        self.rests_until = None;
        self.alike = Alike::default();
        std::mem::take(&mut self.attempts) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        attempts: 6,
        initial_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_millis(400),
    };

    fn attempt(class: FailureClass, message: &str) -> Attempt<'_> {
        Attempt {
            kind: class.name(),
            class: Some(class),
            sequence: Some(7),
            message,
        }
    }

    /// How often an event that always fails like this is tried.
    fn attempts(class: FailureClass, message: impl Fn(u32) -> String) -> u32 {
        let mut ladder = Ladder::new(100, Instant::now());
        for count in 1..100 {
            if ladder.failed(attempt(class, &message(count)), POLICY, Instant::now()) == Step::Stop
            {
                return count;
            }
        }
        panic!("it never ends")
    }

    #[test]
    fn each_class_has_its_number_of_attempts() {
        use FailureClass::{Deadline, Memory, Refused, Rejected, Retry, StateLimit, Trap};
        for (class, alike, differing) in [
            (Rejected, 1, 1),
            (StateLimit, 1, 1),
            (Trap, 3, 6),
            (Memory, 3, 6),
            (Refused, 3, 6),
            (Retry, 6, 6),
            (Deadline, 6, 6),
        ] {
            assert_eq!(
                attempts(class, |_| "the same".to_owned()),
                alike,
                "{class:?}"
            );
            assert_eq!(
                attempts(class, |count| format!("words {count}")),
                differing,
                "{class:?}"
            );
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_between_deployments() {
        let mut all = Vec::new();
        for _ in 0..100 {
            let mut ladder = Ladder::new(100, Instant::now());
            for longest in [100, 200, 400, 400, 400] {
                let step = ladder.failed(attempt(FailureClass::Retry, ""), POLICY, Instant::now());
                let Step::Retry {
                    pause,
                    is_open: false,
                } = step
                else {
                    panic!("{step:?}")
                };
                assert!(
                    (longest / 2..=longest).contains(&pause.as_millis()),
                    "{pause:?} of {longest} ms"
                );
                all.push(pause);
            }
        }
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 300, "jitter: {} pauses", all.len());
    }

    #[test]
    fn no_number_of_attempts_and_no_setting_makes_a_pause_overflow() {
        let most = Policy {
            attempts: u32::MAX,
            initial_backoff: Duration::MAX,
            max_backoff: Duration::MAX,
        };
        for attempts in [1, 2, 64, u32::MAX] {
            assert!(
                (PAUSE_MAX / 2..=PAUSE_MAX).contains(&most.backoff(attempts)),
                "{attempts}"
            );
        }
        assert!(POLICY.backoff(u32::MAX) >= POLICY.max_backoff / 2);
    }

    #[test]
    fn a_build_has_no_more_attempts_and_no_longer_pauses_than_its_caps() {
        let capped = POLICY.capped(2, Duration::from_millis(50));
        let ms = Duration::from_millis;
        assert_eq!(
            capped,
            Policy {
                attempts: 2,
                initial_backoff: ms(50),
                max_backoff: ms(50)
            }
        );
        assert_eq!(POLICY.capped(9, ms(900)), POLICY);
    }

    #[test]
    fn a_used_up_budget_opens_the_breaker_and_the_event_keeps_its_attempts() {
        let (mut now, policy) = (
            Instant::now(),
            Policy {
                attempts: 1_000,
                ..POLICY
            },
        );
        let mut ladder = Ladder::new(0, now);
        let fail =
            |ladder: &mut Ladder, now| ladder.failed(attempt(FailureClass::Retry, ""), policy, now);
        for _ in 0..10 {
            assert!(matches!(
                fail(&mut ladder, now),
                Step::Retry { is_open: false, .. }
            ));
            assert!(ladder.passed());
        }
        let Step::Retry {
            pause,
            is_open: true,
        } = fail(&mut ladder, now)
        else {
            panic!("the breaker stays closed")
        };
        assert!((15..=30).contains(&pause.as_secs()), "{pause:?}");
        now += pause;
        let Step::Retry {
            pause,
            is_open: true,
        } = fail(&mut ladder, now)
        else {
            panic!("one attempt, no more")
        };
        assert!((30..=60).contains(&pause.as_secs()), "{pause:?}");
        assert_eq!(ladder.attempts(), 2);
        now += pause;
        assert!(ladder.passed());
        assert!(
            matches!(fail(&mut ladder, now), Step::Retry { is_open: false, .. }),
            "some of the budget came back"
        );
    }
}
