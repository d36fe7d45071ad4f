//! What a releaser reports about its targets.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::effects::Promise;
use parking_lot::Mutex;

/// The state of the targets of an owner, for people.
#[derive(Debug, Default)]
pub struct Status {
    targets: Mutex<BTreeMap<String, Target>>,
}

#[derive(Clone, Debug, Default)]
pub struct Target {
    /// How safe publishing is; none before the stream was reached.
    promise: Option<Promise>,
    /// The stream lacks messages that it had confirmed, and nobody has accepted that.
    has_lost: bool,
    /// How long the stream recognises ids.
    pub window: Option<Duration>,
    /// The longest wait of an effect for its confirmation.
    pub longest_wait: Duration,
    /// When the oldest effect that waits was made, in nanoseconds since the Unix epoch.
    pub oldest_ns: Option<u64>,
    /// Effects confirmed.
    pub released: u64,
    /// Effects sent again.
    pub resent: u64,
    /// Why nothing is released, and since when.
    pub trouble: Option<(String, jiff::Timestamp)>,
}

impl Status {
    /// All targets that were used, by name.
    pub fn targets(&self) -> BTreeMap<String, Target> {
        self.targets.lock().clone()
    }

    /// Continues the figures of another owner, which has handed its effects over.
    pub fn continues(&self, other: &Self) {
        // Taken first: only one lock is held at a time.
        let targets = std::mem::take(&mut *other.targets.lock());
        *self.targets.lock() = targets;
    }

    pub(super) fn change(&self, target: &str, change: impl FnOnce(&mut Target)) {
        let mut targets = self.targets.lock();
        // The name is copied only for a new target.
        match targets.get_mut(target) {
            Some(known) => change(known),
            None => change(targets.entry(target.to_owned()).or_default()),
        }
    }

    /// A target of which nothing waits, and to which nothing may be sent, is shown no more.
    pub(super) fn forget(&self, target: &str) {
        self.targets.lock().remove(target);
    }

    /// Notes whether a target lacks what it had confirmed.
    pub(super) fn set_lost(&self, target: &str, has_lost: bool) {
        let mut targets = self.targets.lock();
        match targets.get_mut(target) {
            Some(known) => known.has_lost = has_lost,
            // One that was never used has no figures.
            None if has_lost => targets.entry(target.to_owned()).or_default().has_lost = true,
            None => {}
        }
    }

    /// An operator accepts what targets have lost.
    pub fn accept_lost(&self) {
        let mut targets = self.targets.lock();
        targets
            .values_mut()
            .for_each(|known| known.has_lost = false);
    }

    pub(super) fn troubled(&self, target: &str, trouble: Option<String>) {
        self.change(target, |known| match (trouble, known.trouble.take()) {
            (None, _) => {}
            // It began with the first failure, whatever the message is now.
            (Some(trouble), Some((_, since))) => known.trouble = Some((trouble, since)),
            (Some(trouble), None) => known.trouble = Some((trouble, jiff::Timestamp::now())),
        });
    }
}

impl Target {
    /// Sets how safe publishing is.
    pub(super) fn set_promise(&mut self, promise: Promise, window: Option<Duration>) {
        (self.promise, self.window) = (Some(promise), window);
    }

    /// How safe publishing is; none before the stream was reached.
    pub fn promise(&self) -> Option<Promise> {
        if self.has_lost {
            return Some(Promise::Lost);
        }
        self.promise
    }

    /// The longest wait, including that of the effect that waits now.
    pub fn longest_wait(&self) -> Duration {
        let waits = self.oldest_ns.map_or(Duration::ZERO, since_ns);
        self.longest_wait.max(waits)
    }
}

/// How long ago a time was, by this machine's clock; zero if it is ahead.
pub(super) fn since_ns(time_ns: u64) -> Duration {
    let now = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0);
    Duration::from_nanos(now.saturating_sub(time_ns))
}
