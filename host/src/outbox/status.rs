//! What a releaser reports about its targets.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::effects::{Place, Promise};
use crate::state::Mark;
use parking_lot::Mutex;

/// Most messages of a target of which it is known why they are refused: the oldest ones.
const REFUSALS_MAX: usize = 1_000;
/// Most different reasons that are shown of a target.
const REASONS_MAX: usize = 3;

/// The state of the targets of an owner, for people.
#[derive(Debug, Default)]
pub struct Status {
    targets: Mutex<BTreeMap<String, Target>>,
    /// Why messages are refused, by target. Not with the targets, which are copied for each report.
    refusals: Mutex<BTreeMap<String, BTreeMap<Place, Refusal>>>,
}

/// Why a target does not take a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The subject of the message.
    pub subject: String,
    /// The reason, which may name the subject.
    pub why: String,
}

impl Refusal {
    /// The reason without what differs from message to message.
    fn kind(&self) -> String {
        self.why.replace(&self.subject, "")
    }
}

/// How far a look at what a target has stored has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// Messages that were passed.
    pub passed: u64,
    /// Of this many.
    pub of: u64,
}

/// Reports how far a look at a target has come, for as long as it exists.
pub(super) struct Reading<'a> {
    status: &'a Status,
    target: &'a str,
}

impl Reading<'_> {
    /// The look has passed this many messages of this many.
    pub(super) fn passed(&self, passed: u64, of: u64) {
        let read = Some(ReadBack { passed, of });
        self.status
            .change(self.target, |target| target.reads_back = read);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.status
            .change(self.target, |target| target.reads_back = None);
    }
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
    /// Different reasons for that: that of the target, and those for which it refuses its oldest
    /// messages.
    reasons: Vec<String>,
    /// How far the host is in reading what the target has, while it does.
    pub reads_back: Option<ReadBack>,
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
        let refusals = std::mem::take(&mut *other.refusals.lock());
        *self.refusals.lock() = refusals;
    }

    /// Why a target refused a message when it was last sent.
    pub fn refusal(&self, target: &str, place: Place) -> Option<String> {
        let refusals = self.refusals.lock();
        let refusal = refusals.get(target)?.get(&place)?;
        Some(refusal.why.clone())
    }

    /// Forgets why messages were refused that were dropped.
    pub fn forget_dropped<'a>(&self, dropped: impl IntoIterator<Item = (&'a str, Place)>) {
        for (target, place) in dropped {
            self.judged(target, (vec![place], Vec::new()), None);
        }
    }

    /// Notes which of the messages that were tried a target refused, and why it takes none at all, if
    /// it does not.
    pub(super) fn judged(
        &self,
        target: &str,
        (tried, refused): (Vec<Place>, Vec<(Place, Refusal)>),
        trouble: Option<&str>,
    ) {
        // A reason of its own, such as a server that is away.
        let is_of_one = |why: &&str| refused.iter().any(|(_, refusal)| refusal.why == **why);
        let own = trouble.filter(|why| !is_of_one(why)).map(str::to_owned);
        let mut reasons: Vec<String> = own.into_iter().collect();
        {
            let mut refusals = self.refusals.lock();
            let known = match refusals.get_mut(target) {
                Some(known) => known,
                // The name is copied only for the first one.
                None if !refused.is_empty() => refusals.entry(target.to_owned()).or_default(),
                None => &mut BTreeMap::new(),
            };
            for place in tried {
                known.remove(&place);
            }
            known.extend(refused);
            while known.len() > REFUSALS_MAX {
                known.pop_last();
            }
            let mut kinds = HashSet::new();
            let different = known
                .values()
                .filter(|refusal| kinds.insert(refusal.kind()));
            let left = REASONS_MAX - reasons.len();
            reasons.extend(different.take(left).map(|refusal| refusal.why.clone()));
        }
        self.change(target, |known| known.reasons = reasons);
    }

    /// Notes that nothing waits for a target that could be sent.
    pub(super) fn nothing_waits(&self, target: &str) {
        self.refusals.lock().remove(target);
        self.change(target, |known| known.reasons.clear());
        self.troubled(target, None);
    }

    /// Begins to report a look at what a target has.
    pub(super) fn reading<'a>(&'a self, target: &'a str) -> Reading<'a> {
        Reading {
            status: self,
            target,
        }
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

    /// Shows whether a target lacks what it had confirmed, by its mark.
    pub(super) fn show_mark(&self, target: &str, mark: Option<Mark>) {
        let has_lost = mark.is_some_and(|mark| mark.has_lost);
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

    /// Different reasons why some messages wait; none if none does for one.
    pub fn reasons(&self) -> Vec<String> {
        match &self.trouble {
            None => Vec::new(),
            Some((trouble, _)) if self.reasons.is_empty() => vec![trouble.clone()],
            Some(_) => self.reasons.clone(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u64) -> Place {
        Place {
            sequence,
            ..Place::default()
        }
    }

    fn refused(sequence: u64, why: &str) -> (Place, Refusal) {
        let subject = format!("out.{sequence}");
        let why = format!("{subject} {why}");
        (place(sequence), Refusal { subject, why })
    }

    fn reasons(status: &Status) -> Vec<String> {
        status.targets()["out"].reasons()
    }

    /// A round in which these messages were tried and refused.
    fn round(status: &Status, tried: &[u64], new: Vec<(Place, Refusal)>, trouble: Option<&str>) {
        let tried = tried.iter().copied().map(place).collect();
        status.judged("out", (tried, new), trouble);
        status.troubled("out", trouble.map(str::to_owned));
    }

    #[test]
    fn reasons_of_one_kind_are_named_once_and_the_oldest_messages_first() {
        let status = Status::default();
        let new = vec![
            refused(4, "is nowhere"),
            refused(3, "is too large"),
            refused(1, "is too large"),
            refused(5, "is denied"),
            refused(6, "is odd"),
        ];
        round(&status, &[1, 2, 3, 4, 5, 6], new, Some("out.4 is nowhere"));
        let wanted = ["out.1 is too large", "out.4 is nowhere", "out.5 is denied"];
        assert_eq!(reasons(&status), wanted);
        assert_eq!(
            status.refusal("out", place(3)).as_deref(),
            Some("out.3 is too large")
        );
        assert_eq!(status.refusal("out", place(2)), None);

        // The first one is sent, and the second one dropped.
        round(&status, &[1], Vec::new(), Some("the server is away"));
        assert_eq!(
            reasons(&status)[..2],
            ["the server is away", "out.3 is too large"]
        );
        status.forget_dropped([("out", place(3)), ("nowhere", place(4))]);
        assert_eq!(reasons(&status)[0], "out.4 is nowhere");
        status.nothing_waits("out");
        assert_eq!(reasons(&status), [""; 0]);
        assert_eq!(status.refusal("out", place(4)), None);
    }

    #[test]
    fn refusals_of_a_target_have_a_limit() {
        let status = Status::default();
        let new = (1..=2_000).map(|sequence| refused(sequence, "is too large"));
        round(&status, &[], new.collect(), Some("it is too large"));
        assert_eq!(status.refusal("out", place(1_001)), None);
        assert!(status.refusal("out", place(1_000)).is_some());
    }

    #[test]
    fn look_is_reported_for_as_long_as_it_lasts() {
        let status = Status::default();
        let reading = status.reading("out");
        reading.passed(3, 9);
        let read = ReadBack { passed: 3, of: 9 };
        assert_eq!(status.targets()["out"].reads_back, Some(read));
        drop(reading);
        assert_eq!(status.targets()["out"].reads_back, None);
    }
}
