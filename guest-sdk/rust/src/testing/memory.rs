//! The state, the timers and the messages of a harness, in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::backend::{Backend, ScanRequest, Selection, Writes};
use crate::effects::{Message, TimerChange};
use crate::event::Payload;
use crate::time::Timestamp;
use crate::timer::Timer;

/// A key with the value that it had, if any.
type Overwritten = (String, Option<String>);

/// A state in memory. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Memory {
    pub(super) entries: Rc<RefCell<BTreeMap<String, String>>>,
    /// What the batch overwrote, oldest first.
    undo: Rc<RefCell<Vec<Overwritten>>>,
    /// What a handler published, with the index of its cause in the batch; and how much before the
    /// batch.
    pub(super) published: Rc<RefCell<Published>>,
    pub(super) timers: Rc<RefCell<Timers>>,
}

/// The pending timers by name, and what they were before the batch.
#[derive(Clone, Default)]
pub(super) struct Timers {
    pub(super) pending: BTreeMap<String, Timer>,
    before: BTreeMap<String, Timer>,
}

#[derive(Default)]
pub(super) struct Published {
    pub(super) messages: Vec<(u32, Message)>,
    before: usize,
}

impl Memory {
    /// A state that begins with entries.
    pub(super) fn over(entries: BTreeMap<String, String>) -> Self {
        Self {
            entries: Rc::new(RefCell::new(entries)),
            ..Self::default()
        }
    }

    /// Takes the timer of a name, if it is due.
    pub(super) fn take_timer(&self, name: &str, time: Timestamp) -> Option<Timer> {
        let mut timers = self.timers.borrow_mut();
        let is_due = timers
            .pending
            .get(name)
            .is_some_and(|timer| timer.at <= time);
        is_due.then(|| timers.pending.remove(name)).flatten()
    }

    pub(super) fn begin(&self) {
        self.undo.borrow_mut().clear();
        let mut published = self.published.borrow_mut();
        published.before = published.messages.len();
        let mut timers = self.timers.borrow_mut();
        // Copied whole, as tests have few.
        timers.before = timers.pending.clone();
    }

    pub(super) fn roll_back(&self) {
        let mut published = self.published.borrow_mut();
        let before = published.before;
        published.messages.truncate(before);
        let mut timers = self.timers.borrow_mut();
        timers.pending = timers.before.clone();
        drop(timers);
        let mut entries = self.entries.borrow_mut();
        // Backwards, so that the first value of a key that was written twice comes back.
        for (key, value) in self.undo.borrow_mut().drain(..).rev() {
            match value {
                Some(value) => entries.insert(key, value),
                None => entries.remove(&key),
            };
        }
    }
}

impl Backend for Memory {
    fn publish(&self, cause: u32, messages: Vec<Message>) {
        self.published
            .borrow_mut()
            .messages
            .extend(messages.into_iter().map(|message| (cause, message)));
    }

    fn change_timers(&self, changes: Vec<TimerChange>) {
        let mut timers = self.timers.borrow_mut();
        for change in changes {
            match change {
                TimerChange::Set(timer) => timers.pending.insert(timer.name.clone(), timer),
                TimerChange::Cancel(name) => timers.pending.remove(&name),
            };
        }
    }

    fn get(&self, key: &str, show: &mut dyn FnMut(Option<Payload<'_>>)) {
        show(
            self.entries
                .borrow()
                .get(key)
                .map(|value| Payload::Text(value)),
        );
    }

    fn get_many(&self, keys: &[String], show: &mut dyn FnMut(usize, Option<Payload<'_>>)) {
        for (index, key) in keys.iter().enumerate() {
            self.get(key, &mut |value| show(index, value));
        }
    }

    fn put_many(&self, writes: &Writes) {
        let mut entries = self.entries.borrow_mut();
        for (key, value) in writes.iter() {
            let before = match value {
                Some(value) => entries.insert(key.to_owned(), value.to_owned()),
                None => entries.remove(key),
            };
            self.undo.borrow_mut().push((key.to_owned(), before));
        }
    }

    fn scan(&self, request: &ScanRequest<'_>, show: &mut dyn FnMut(&str, Payload<'_>)) -> bool {
        let entries = self.entries.borrow();
        let behind = |key: &str| {
            request.after.is_none_or(|after| {
                if request.backwards {
                    key < after
                } else {
                    key > after
                }
            })
        };
        let covered = |key: &str| match request.selection {
            Selection::Prefix(prefix) => key.starts_with(prefix),
            Selection::Range(start, end) => start <= key && key < end,
        };
        let mut left = request.limit;
        let mut page = |(key, value): (&String, &String)| {
            if left == 0 {
                // One more than the limit exists, and ends the search: it is not shown.
                return true;
            }
            left -= 1;
            show(key, Payload::Text(value));
            false
        };
        let mut selected = entries
            .iter()
            .filter(|(key, _)| covered(key) && behind(key));
        if request.backwards {
            selected.rev().any(&mut page)
        } else {
            selected.any(&mut page)
        }
    }
}
