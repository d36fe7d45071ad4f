//! What a target has, what it has lost, and what its settings promise.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Task;
use crate::effects::{Promise, Row};
use crate::log::Log;
use crate::outbox::ahead::{self, Ahead};
use crate::outbox::cursor::{self, Cursor};
use crate::outbox::{embedded, jetstream};
use crate::source::Outlet;
use crate::source::jetstream::{Description, Outgoing, Publisher};
use crate::state::Mark;

/// How often it is looked at under which subject the stream has a message: an account may begin to map
/// subjects at any time.
const SUBJECT_LOOKS: Duration = Duration::from_secs(1);
/// How often a stream that messages are sent to is asked whether its settings still allow the same
/// promise.
const TERMS_LOOKS: Duration = Duration::from_secs(5);

impl Task {
    /// Looks at the stream again if it was edited, so that what is promised is what it allows.
    pub(super) async fn follow_terms(&mut self) {
        let Outlet::Stream(publisher) = &self.outlet else {
            return;
        };
        if !self.has_new_terms(publisher).await {
            return;
        }
        self.is_in_doubt.store(true, Ordering::Relaxed);
        let position = self.parts.store.durable_position();
        // Otherwise the next round looks.
        if let Ok(stored) = self.stored(publisher, position).await {
            let found = self.take_stored(stored, &mut Vec::new(), &mut Vec::new());
            self.confirm(found).await;
        }
    }

    /// Notes how safe publishing is.
    pub(super) fn promise(&self, promise: Promise, window: Option<Duration>) {
        let status = &self.parts.status;
        status.change(&self.name, |target| target.set_promise(promise, window));
    }

    /// Notes that the target gave a new message a sequence before that of one that it has confirmed.
    /// Nothing less shows that it has lost its end: what a stream says of itself may be of a leader
    /// that was just elected, and its cursor may have expired.
    pub(super) fn check_kept(&self, sequence: u64) {
        let mark = self.parts.store.effect_mark(&self.name);
        let confirmed = mark.map_or(0, Mark::highest);
        if sequence < confirmed {
            self.note_lost(confirmed, sequence);
        }
    }

    /// Notes that a stream that was made again ends before what its former self had confirmed. It may
    /// also have been restored, with all that it had.
    fn check_made_again(&self, stream: &Description) {
        let mark = self.parts.store.effect_mark(&self.name);
        let former = mark.filter(|mark| !mark.is_within(stream.created_ns));
        let confirmed = former.map_or(0, Mark::highest);
        if stream.last < confirmed {
            self.note_lost(confirmed, stream.last);
        }
    }

    /// Notes that messages up to a sequence are gone, from behind another one on.
    fn note_lost(&self, confirmed: u64, sequence: u64) {
        // From here on the next loss counts, or this one would be found again. What else the stream
        // has stored since is in doubt, unless all is known: then the mark is set next.
        self.parts.store.set_lost(&self.name, self.mark(0));
        tracing::warn!(
            deployment = self.parts.deployment,
            target = self.name,
            confirmed,
            sequence,
            "the stream lacks messages that it had confirmed: it has lost its end, or somebody has \
             removed them or made the stream again; they are not sent again"
        );
        self.show_lost();
    }

    /// Reports whether the target has lost what it had confirmed, as the state knows, also from
    /// before a restart.
    pub(super) fn show_lost(&self) {
        let mark = self.parts.store.effect_mark(&self.name);
        self.parts.status.show_mark(&self.name, mark);
    }

    /// Shows how long messages waited before the start.
    pub(super) fn continue_longest_wait(&self) {
        let mark = self.parts.store.effect_mark(&self.name);
        let waited_s = mark.map_or(0, |mark| mark.longest_wait_s);
        if waited_s > 0 {
            self.parts.status.change(&self.name, |target| {
                target.longest_wait = target.longest_wait.max(Duration::from_secs(waited_s));
            });
        }
    }

    /// Effects that wait although an embedded log has them. Its cursor says nothing about effects
    /// with a turn, so a state from a backup is one more reason to look. Nobody else stores any.
    pub(super) async fn stored_in_log(
        &self,
        log: &Log,
        position: u64,
    ) -> Result<(Vec<Row>, u64), String> {
        if !self.is_in_doubt.load(Ordering::Relaxed) {
            return self.made_again(position).await;
        }
        let store = &self.parts.store;
        let last = log.info().last_sequence;
        let places = match store.effect_mark(&self.name) {
            None => {
                let begun = ahead::begin_mark(store, &self.name, self.mark(last)).await;
                begun.map_err(|error| error.to_string())?;
                BTreeSet::new()
            }
            Some(Mark { sequence: mark, .. }) => {
                let (log, lineage) = (log.clone(), self.parts.lineage);
                let look = move || {
                    let stored = embedded::stored_between(&log, lineage, (mark, last))?;
                    Ok::<_, crate::log::Error>((stored, embedded::reached(&log, lineage)?))
                };
                let looked = tokio::task::spawn_blocking(look).await;
                let looked = looked.map_err(|error| error.to_string())?;
                let (stored, reached) = looked.map_err(|error| error.to_string())?;
                // Otherwise the state has all that it ever had: nothing is in doubt, and a handler
                // that publishes seldom would be warned at each start.
                let is_from_backup = reached > store.durable_position();
                if let Some(gap) = stored.gap.filter(|_| is_from_backup) {
                    tracing::warn!(
                        deployment = self.parts.deployment,
                        target = self.name,
                        mark,
                        last,
                        "the state is older than what it has published, and not all events behind \
                         its mark could be looked at: {gap}; messages of events that are parked \
                         since then may be stored again"
                    );
                }
                stored.places
            }
        };
        let position = store.durable_position();
        let sorted = Ahead::sort(store, &self.name, places, position).await;
        let (stored, ahead) = sorted.map_err(|error| error.to_string())?;
        *self.ahead.lock() = ahead;
        self.is_in_doubt.store(false, Ordering::Relaxed);
        Ok((stored, last))
    }

    /// Effects that wait although the stream has them, as far as that is in doubt, and up to which
    /// sequence nothing else is. A cursor says nothing about effects that were sent without one: a
    /// stream may be edited to take none for a while.
    pub(super) async fn stored(
        &self,
        publisher: &Publisher,
        position: u64,
    ) -> Result<(Vec<Row>, u64), String> {
        let is_in_doubt = self.is_in_doubt.load(Ordering::Relaxed);
        if !is_in_doubt && !self.doubts_cursor.load(Ordering::Relaxed) {
            return self.made_again(position).await;
        }
        let lineage = self.parts.lineage;
        let description = publisher.describe().await;
        let description = description.map_err(|error| error.to_string())?;
        *self.terms.lock() = Some((Instant::now(), description.terms()));
        *self.created_ns.lock() = description.created_ns;
        self.check_made_again(&description);
        let found = cursor::find(publisher, &description, lineage, &self.name).await;
        let found = found.map_err(|error| error.to_string())?;
        let found = found.map(|cursor| cursor.following(self.cursor.lock().as_ref()));
        self.doubts_cursor.store(false, Ordering::Relaxed);
        if found.as_ref().and_then(Cursor::sequence).is_some() {
            self.has_lost_cursor.store(false, Ordering::Relaxed);
            self.promise(Promise::Exact, None);
        }
        let is_known = !is_in_doubt || self.is_all_by_cursor.load(Ordering::Relaxed);
        if is_known && found.is_some() {
            *self.cursor.lock() = found;
            self.is_in_doubt.store(false, Ordering::Relaxed);
            return self.made_again(position).await;
        }
        let sequence = found.as_ref().and_then(Cursor::sequence);
        *self.cursor.lock() = found;
        let place = (&self.parts.store, self.name.as_str());
        let (grants, publishes) = ((self.parts.grants)(), (self.parts.publishes)());
        let reading = self.parts.status.reading(&self.name);
        // A state from a backup is one that was just opened.
        let is_from_backup =
            !self.has_looked.load(Ordering::Relaxed) || !self.ahead.lock().is_empty();
        let looked = jetstream::Looked {
            lineage,
            grants: &grants,
            publishes: if is_from_backup { &publishes } else { &[] },
            passed: &|passed, of| reading.passed(passed, of),
        };
        let stream = (publisher, description);
        let known = jetstream::look(stream, place, looked, sequence).await;
        let known = known.map_err(|error| error.to_string())?;
        drop(reading);
        self.has_looked.store(true, Ordering::Relaxed);
        let has_cursor = self.cursor.lock().is_some();
        self.is_all_by_cursor.store(has_cursor, Ordering::Relaxed);
        if sequence.is_none() {
            self.promise(known.promise, Some(description.window));
        }
        // What it passed can't be looked up any more.
        let is_gone =
            sequence.is_none() && has_cursor && !(known.is_read || description.transforms);
        self.has_lost_cursor.store(is_gone, Ordering::Relaxed);
        *self.ahead.lock() = known.ahead;
        self.is_in_doubt.store(false, Ordering::Relaxed);
        let through = if known.is_read { description.last } else { 0 };
        Ok((known.stored, through))
    }

    /// Whether the stream was edited since it was looked at, asked now and then. What can't be asked now
    /// is asked again after the next effects.
    async fn has_new_terms(&self, publisher: &Publisher) -> bool {
        let before = *self.terms.lock();
        // Otherwise it is in doubt, and everything is looked at.
        let Some((_, terms)) = before.filter(|(at, _)| at.elapsed() >= TERMS_LOOKS) else {
            return false;
        };
        let Ok(description) = publisher.describe().await else {
            return false;
        };
        *self.terms.lock() = Some((Instant::now(), terms));
        description.terms() != terms
    }

    /// Effects up to a position that the handler has made again, and that the stream has.
    async fn made_again(&self, position: u64) -> Result<(Vec<Row>, u64), String> {
        let left = self.parts.store.parked_left();
        let made = self.ahead.lock().made(position, left);
        if made.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let sorted = Ahead::sort(&self.parts.store, &self.name, made, position).await;
        let (rows, left) = sorted.map_err(|error| error.to_string())?;
        self.ahead.lock().replace_made(position, left);
        Ok((rows, 0))
    }

    /// Notes whether the stream has a message under the subject to which it was sent, now and then.
    pub(super) async fn note_subject(
        &self,
        publisher: &Publisher,
        (sequence, message): (u64, Outgoing),
    ) {
        let is_soon = |at: Instant| at.elapsed() < SUBJECT_LOOKS;
        if self.subject_seen.lock().is_some_and(is_soon) {
            return;
        }
        // What can't be read now is looked at again with the next message.
        let Ok(Some(keeps_subjects)) = publisher.has_as_sent(sequence, &message).await else {
            return;
        };
        *self.subject_seen.lock() = Some(Instant::now());
        let store = &self.parts.store;
        let Some(mark) = store.effect_mark(&self.name) else {
            return;
        };
        if !keeps_subjects && mark.keeps_subjects != Some(false) {
            tracing::warn!(
                deployment = self.parts.deployment,
                target = self.name,
                sequence,
                subject = message.subject,
                "the stream has messages under other subjects than they were sent to, perhaps by a \
                 mapping of the account; after a crash all its messages are looked at"
            );
        }
        let mark = Mark {
            keeps_subjects: Some(keeps_subjects),
            ..mark
        };
        store.set_effect_mark(&self.name, mark);
    }
}
