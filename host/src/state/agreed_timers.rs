//! The timers of a state that takes over although its stream has lost events: it agrees with the
//! state before about what is pending.
//!
//! Among what is lost may be firings, and events that set or cancelled timers. A fold without them
//! has timers pending that have fired, and lacks some that have not. The state before has met all of
//! them.

use super::timers::TimerWriter;
use super::{Error, Snapshot, Store};
use crate::timers::Timer;

/// Timers read at once.
const PAGE: usize = 1_000;
/// Changes in one commit. A crash between two leaves a candidate that agrees in part, and is made to
/// agree again before it takes over.
const CHANGES_MAX: usize = 10_000;

/// How far a state agrees with the one before about its timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// In all of them: the same code made both.
    Whole,
    /// In timers that are due up to a time: other code may set others later.
    DueUntil(u64),
}

/// What a state did to agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Timers that it has no more, because they had fired or were cancelled.
    pub fired: u64,
    /// Timers that it has from the state before.
    pub kept: u64,
    /// Timers of the state before that it lacks.
    pub ended: u64,
}

type Named = (String, Timer);

/// All timers of a snapshot, by name.
struct Walk<'a> {
    snapshot: &'a Snapshot,
    page: std::vec::IntoIter<Named>,
    after: Option<String>,
}

impl<'a> Walk<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            page: Vec::new().into_iter(),
            after: None,
        }
    }

    fn next(&mut self) -> Result<Option<Named>, Error> {
        if self.page.len() == 0 {
            let page = self.snapshot.timers(self.after.as_deref(), PAGE)?;
            self.after = page
                .last()
                .map(|(name, _)| name.clone())
                .or(self.after.take());
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

impl Agreement {
    /// What becomes of a timer that only the later state has, or both have; none if it stays.
    fn change(self, own: &Timer, before: Option<&Timer>) -> Option<Option<Timer>> {
        let is_due = match self {
            Self::Whole => true,
            Self::DueUntil(until_ns) => own.at_ns <= until_ns,
        };
        let Some(before) = before else {
            return is_due.then_some(None);
        };
        let is_same = own.at_ns == before.at_ns && own.key == before.key;
        // Other code may mean another time, unless what is gone set it again.
        let is_older = self == Self::Whole || own.set_by < before.set_by;
        (is_due && !is_same && is_older).then(|| Some(before.clone()))
    }
}

impl Store {
    /// Agrees with the state before about timers. Both are held at one position, and durable.
    /// Blocking. After an error the store must be reopened.
    pub fn agree_on_timers(&self, before: &Self, agreement: Agreement) -> Result<Agreed, Error> {
        let (ours, theirs) = (self.snapshot(), before.snapshot());
        let (mut our_walk, mut their_walk) = (Walk::new(&ours), Walk::new(&theirs));
        let (mut own, mut other) = (our_walk.next()?, their_walk.next()?);
        let mut agreed = Agreed::default();
        let mut changes: Vec<(String, Option<Timer>)> = Vec::new();
        loop {
            // Both are in the order of their names.
            let order = match (&own, &other) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((own, _)), Some((other, _))) => own.cmp(other),
            };
            let ours = own.take_if(|_| order.is_le());
            let theirs = other.take_if(|_| order.is_ge());
            match (&ours, theirs) {
                (Some((name, timer)), theirs) => {
                    let theirs = theirs.map(|(_, timer)| timer);
                    if let Some(change) = agreement.change(timer, theirs.as_ref()) {
                        *(if change.is_some() {
                            &mut agreed.kept
                        } else {
                            &mut agreed.fired
                        }) += 1;
                        changes.push((name.clone(), change));
                    }
                }
                (None, Some(_)) if agreement != Agreement::Whole => agreed.ended += 1,
                (None, Some((name, timer))) => {
                    agreed.kept += 1;
                    changes.push((name, Some(timer)));
                }
                (None, None) => {}
            }
            if ours.is_some() {
                own = our_walk.next()?;
            }
            if order.is_ge() {
                other = their_walk.next()?;
            }
            if changes.len() >= CHANGES_MAX {
                self.change_timers(&std::mem::take(&mut changes))?;
            }
        }
        self.change_timers(&changes)?;
        Ok(agreed)
    }

    fn change_timers(&self, changes: &[(String, Option<Timer>)]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let written = self.inner.file.change_effects(|transaction| {
            let mut writer = TimerWriter::new(transaction)?;
            for (name, timer) in changes {
                let value = timer.as_ref().map(|timer| timer.to_text().into());
                writer.write(name, value.as_ref())?;
            }
            Ok(())
        });
        let shown = written.and_then(|()| self.show_timers_of_file());
        shown.inspect_err(|_| self.set_failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{Checkpoint, StreamIdentity};
    use crate::state::{Options, Writer};

    fn timer(at_ns: u64, set_by: u64) -> Timer {
        Timer {
            at_ns,
            set_by,
            ..Timer::default()
        }
    }

    /// A state with these timers, at position 9.
    fn state(path: &std::path::Path, timers: &[(&str, Timer)]) -> (Store, Writer) {
        let (store, mut writer) =
            Store::open(path, Options::default(), |_| ()).expect("the state opens");
        writer.begin();
        for (name, timer) in timers {
            writer.set_timer(name, timer).expect("within limits");
        }
        let stream = StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        };
        writer.publish(Checkpoint::at(9, stream));
        store.flush().expect("commits");
        (store, writer)
    }

    fn agree(agreement: Agreement) -> (Agreed, Vec<Named>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let before = [
            ("both", timer(50, 1)),
            ("moved", timer(60, 7)),
            ("only-there", timer(5, 2)),
        ];
        let built = [
            ("both", timer(50, 1)),
            ("fired", timer(8, 1)),
            ("fired-early", timer(90, 1)),
            ("moved", timer(4, 3)),
        ];
        let (before, _writer) = state(&folder.path().join("1.redb"), &before);
        let (built, mut writer) = state(&folder.path().join("2.redb"), &built);
        let agreed = built.agree_on_timers(&before, agreement).expect("agrees");
        let timers = built.snapshot().timers(None, 100).expect("reads");
        let due = built.timers_after(None, 100).expect("reads");
        let mut times: Vec<_> = timers.iter().map(|(_, timer)| timer.at_ns).collect();
        times.sort_unstable();
        assert_eq!(due.iter().map(|due| due.at_ns).collect::<Vec<_>>(), times);
        assert_eq!(built.pending_timers(), timers.len() as u64);
        let again = built.agree_on_timers(&before, agreement).expect("agrees");
        assert_eq!((again.fired, again.kept), (0, 0), "it agrees already");
        writer.begin();
        assert!(writer.timer("fired").expect("reads").is_none());
        (agreed, timers)
    }

    #[test]
    fn same_code_has_exactly_the_timers_that_are_pending() {
        let (agreed, timers) = agree(Agreement::Whole);
        let wanted = [("both", 50), ("moved", 60), ("only-there", 5)];
        let found: Vec<_> = timers
            .iter()
            .map(|(name, timer)| (&**name, timer.at_ns))
            .collect();
        assert_eq!(found, wanted);
        let wanted = Agreed {
            fired: 2,
            kept: 2,
            ended: 0,
        };
        assert_eq!(agreed, wanted);
    }

    #[test]
    fn other_code_keeps_what_is_not_due_and_counts_what_it_lacks() {
        let (agreed, timers) = agree(Agreement::DueUntil(10));
        let wanted = [("both", 50), ("fired-early", 90), ("moved", 60)];
        let found: Vec<_> = timers
            .iter()
            .map(|(name, timer)| (&**name, timer.at_ns))
            .collect();
        assert_eq!(found, wanted);
        let wanted = Agreed {
            fired: 1,
            kept: 1,
            ended: 1,
        };
        assert_eq!(agreed, wanted);
    }
}
