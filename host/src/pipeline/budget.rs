//! The retry budget of one pipeline, and the breaker that opens when it is used up.
//!
//! Each event has a limited number of attempts. The budget limits what many failing events cost
//! together: a module that needs a second attempt for every other event would spend its thread, and
//! its share of the machine, on failures. An open breaker delays the next attempt; it never takes
//! an attempt from an event, and never stops a deployment that still makes progress.

use std::time::{Duration, Instant};

/// Retries per minute that are always allowed.
const RETRIES_PER_MINUTE: f64 = 10.0;
/// Pause when the breaker opens; it doubles up to the maximum.
const BREAKER_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// What retries may still take: two buckets that fill up within a minute.
#[derive(Debug)]
pub(super) struct Budget {
    /// The part of its time that a pipeline may lose in failed calls, from 0 to 1.
    share: f64,
    /// Seconds that failed calls may still take.
    seconds: f64,
    /// Retries that are allowed whatever they take.
    retries: f64,
    /// When the buckets were filled last.
    filled_at: Instant,
}

impl Budget {
    pub(super) fn new(percent: u32, now: Instant) -> Self {
        let share = f64::from(percent.min(100)) / 100.0;
        Self {
            share,
            // A minute's worth to begin with, so that the first failures are not delayed.
            seconds: share * 60.0,
            retries: RETRIES_PER_MINUTE,
            filled_at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        // The clock is monotonic, but callers may pass an older time.
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.seconds = (self.seconds + elapsed * self.share).min(self.share * 60.0);
        self.retries = (self.retries + elapsed * RETRIES_PER_MINUTE / 60.0).min(RETRIES_PER_MINUTE);
    }

    /// A call that took this long has failed.
    pub(super) fn lose(&mut self, took: Duration, now: Instant) {
        self.fill(now);
        // Never below 0: one long call must not be paid for with minutes of pause.
        self.seconds = (self.seconds - took.as_secs_f64()).max(0.0);
    }

    /// Takes one retry; returns whether the budget allows it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let is_free = self.retries >= 1.0;
        if is_free {
            self.retries -= 1.0;
        }
        is_free || self.seconds > 0.0
    }
}

/// Delays retries once the budget is used up.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The last pause, and when it ended.
    last: Option<(Duration, Instant)>,
    /// No event was applied since the last pause.
    is_trying: bool,
}

impl Breaker {
    /// Whether the first attempt after a pause failed, so that it must open again.
    pub(super) fn is_trying(&self) -> bool {
        self.is_trying
    }

    /// Opens; returns for how long.
    pub(super) fn open(&mut self, now: Instant) -> Duration {
        let (first, longest) = BREAKER_PAUSE;
        let pause = match self.last {
            // A failure long after the last pause is a new one.
            Some((pause, ended)) if now.saturating_duration_since(ended) < longest => {
                (pause * 2).min(longest)
            }
            _ => first,
        };
        // The end is in the future; until then the pause counts as not over.
        self.last = Some((pause, now + pause));
        self.is_trying = true;
        pause
    }

    /// Events were applied.
    pub(super) fn passed(&mut self) {
        self.is_trying = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn retries_that_cost_little_are_allowed_without_end() {
        let mut now = Instant::now();
        let mut budget = Budget::new(20, now);
        for _ in 0..10_000 {
            now += SECOND / 10;
            budget.lose(SECOND / 100, now);
            assert!(budget.take(now), "a tenth of the time is within a fifth");
        }
    }

    #[test]
    fn retries_that_take_more_than_their_share_use_the_budget_up_and_time_restores_it() {
        let mut now = Instant::now();
        let mut budget = Budget::new(20, now);
        let taken = (0..100).take_while(|_| {
            now += SECOND;
            budget.lose(SECOND, now);
            budget.take(now)
        });
        let taken = taken.count();
        assert!(
            (10..25).contains(&taken),
            "12 seconds, what comes back meanwhile, and 10 in any case: {taken}"
        );
        assert!(!budget.take(now));
        now += SECOND;
        assert!(budget.take(now), "a fifth of a second came back");
    }

    #[test]
    fn ten_retries_a_minute_are_allowed_however_long_they_take() {
        for percent in [0, 20] {
            let mut now = Instant::now();
            let mut budget = Budget::new(percent, now);
            for _ in 0..100 {
                now += SECOND * 6;
                budget.lose(SECOND * 6, now);
                assert!(budget.take(now), "{percent} %");
            }
        }
    }

    #[test]
    fn without_a_limit_the_budget_never_ends() {
        let mut now = Instant::now();
        let mut budget = Budget::new(100, now);
        for _ in 0..1_000 {
            now += SECOND;
            budget.lose(SECOND, now);
            budget.fill(now + SECOND / 100);
            now += SECOND / 100;
            assert!(budget.take(now));
        }
    }

    #[test]
    fn a_breaker_that_opens_again_and_again_opens_for_longer_and_forgets_that_after_a_while() {
        let (mut now, mut breaker) = (Instant::now(), Breaker::default());
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = breaker.open(now);
            assert!(breaker.is_trying());
            now += pause + SECOND;
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        breaker.passed();
        assert!(!breaker.is_trying());
        now += SECOND * 601;
        assert_eq!(breaker.open(now).as_secs(), 30);
    }
}
