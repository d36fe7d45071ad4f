//! The task of an owner that sends its effects to one source.

mod look;
mod pauses;
mod removals;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::removals::Removals;
use super::ahead::Ahead;
use super::cursor::{self, Cursor};
use super::jetstream::Refused;
use super::reading::{DelayedMax, Reading, Ready};
use super::releaser::Parts;
use super::status::since_ns;
use super::{Sent, embedded, jetstream};
use crate::clock::{Clock, wall_ns};
use crate::effects::{self, Grants, Place, Promise, Row, RowKey};
use crate::log::Log;
use crate::room::Use;
use crate::source::jetstream::{Description, Publisher, Terms};
use crate::source::{Outlet, Source};
use crate::state::{self, Mark, RefusedKeys};

/// Pause after a failure: it doubles up to the longest one, and varies by half.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long a task then waits for confirmations. What is not confirmed is sent again, with the same
/// ids.
const GRACE: Duration = Duration::from_secs(2);

/// What became of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All are stored.
    Done,
    /// Some are: a message that its stream refuses must not keep other keys waiting for long.
    Partly,
    /// None is.
    Nothing,
}

/// Sends the effects for one source.
pub(super) struct Task {
    parts: Arc<Parts>,
    name: String,
    outlet: Outlet,
    stopped: watch::Receiver<bool>,
    changed: watch::Receiver<u64>,
    /// Effects may be stored without our knowing: after a start, and after an answer that stayed
    /// out. Only the task of this target uses it; it is atomic because sending borrows the task.
    is_in_doubt: AtomicBool,
    /// When the stream was created; none of an embedded log, or before the first look.
    created_ns: Mutex<Option<u64>>,
    /// How far the lineage is in the stream, if the stream takes cursors.
    cursor: Mutex<Option<Cursor>>,
    /// Effects that the stream has and that the handler makes again. Until it has made all of them,
    /// the mark stays, so that they are found again after a crash.
    ahead: Mutex<Ahead>,
    /// The stream refused something with a cursor: perhaps it takes none any more.
    doubts_cursor: AtomicBool,
    /// Nothing was sent without a cursor since the last look, so the cursor says all that there is to
    /// say.
    is_all_by_cursor: AtomicBool,
    /// It was looked at since the start.
    has_looked: AtomicBool,
    /// The settings of the stream that decide what is promised, and when they were looked at.
    terms: Mutex<Option<(Instant, Terms)>>,
    /// The stream has no cursor, nor what came after the last one that the state knows: it has removed
    /// both, so messages in doubt were sent again.
    has_lost_cursor: AtomicBool,
    /// By which delayed effects are due.
    clock: Clock,
    /// When the task started: the steady clock counts from here.
    begun: Instant,
    /// When it was last looked at under which subject the stream has a message.
    subject_seen: Mutex<Option<Instant>>,
    /// Where to read on among delayed effects: those before it are refused for now, and are tried
    /// again after the others.
    delayed_after: Option<RowKey>,
    /// Whether an effect with an order waited after the last attempt.
    holds_ordered: AtomicBool,
    /// Keys of which a stream without cursors refuses an effect: no later ones are read, so that they
    /// do not take the place of other keys.
    refused: Mutex<HashSet<String>>,
    /// Behind which of their first effects to read on: there may be too many for one round.
    refused_after: Option<Place>,
    /// What comes after the effects that were sent last, read while they were on their way. Nobody
    /// else takes effects away while the task runs.
    next: Option<JoinHandle<Result<Ready, state::Error>>>,
    /// Takes confirmed effects out of the file.
    removals: Removals,
}

impl Task {
    pub(super) fn new(
        parts: Arc<Parts>,
        name: String,
        source: &Source,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            name,
            outlet: source.outlet(),
            stopped,
            changed: parts.changed.clone(),
            // After a start nobody knows what was sent before.
            is_in_doubt: AtomicBool::new(true),
            created_ns: Mutex::default(),
            cursor: Mutex::default(),
            ahead: Mutex::default(),
            doubts_cursor: AtomicBool::new(false),
            is_all_by_cursor: AtomicBool::new(false),
            has_looked: AtomicBool::new(false),
            terms: Mutex::default(),
            has_lost_cursor: AtomicBool::new(false),
            clock: Clock::default(),
            begun: Instant::now(),
            subject_seen: Mutex::default(),
            delayed_after: None,
            holds_ordered: AtomicBool::new(false),
            refused: Mutex::default(),
            refused_after: None,
            next: None,
            removals: Removals::new(Arc::clone(&parts)),
            parts,
        }
    }

    /// Runs until it is stopped.
    pub(super) async fn run(mut self) {
        let mut durable = self.parts.store.outbox_changes();
        let mut pause = PAUSE.0;
        self.continue_longest_wait();
        while !*self.stopped.borrow() {
            // Both as of before the look at the rows, so that what comes after it wakes the task.
            durable.borrow_and_update();
            self.changed.borrow_and_update();
            self.show_lost();
            // What is on its way when the pause begins still ends.
            let ready = if (self.parts.is_paused)() {
                self.next = None;
                Ok(Ready::default())
            } else {
                self.ready().await
            };
            let mut ready = match ready {
                Ok(ready) => ready,
                Err(error) => {
                    self.parts
                        .status
                        .troubled(&self.name, Some(error.to_string()));
                    self.rest(&mut durable, Some(PAUSE.1)).await;
                    continue;
                }
            };
            let sleep = ready.sleep;
            if ready.rows.is_empty() && ready.delayed.is_empty() {
                self.parts
                    .status
                    .change(&self.name, |target| target.oldest_ns = None);
                self.parts.status.nothing_waits(&self.name);
                pause = PAUSE.0;
                self.rest(&mut durable, sleep).await;
                continue;
            }
            let last_of_more = ready.last_of_more.take();
            let begins_again = ready.begins_again;
            let next = self.read_ahead(&ready);
            let (outcome, leaves_refused) = self.release(ready).await;
            self.next = next.filter(|_| outcome == Outcome::Done);
            self.delayed_after = last_of_more.filter(|_| leaves_refused);
            // Some progress is enough: the next attempt starts with what is left.
            if outcome != Outcome::Nothing {
                pause = PAUSE.0;
            }
            if self.delayed_after.is_some() && !begins_again {
                // Those behind the refused ones get their turn before the pause.
                self.rest_after_trouble(&mut durable, PAUSE.0, sleep).await;
            } else if outcome != Outcome::Done {
                // From half to all of the pause, so that owners that failed together do not retry
                // together.
                let wait = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                self.rest_after_trouble(&mut durable, wait, sleep).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        self.removals.ended().await;
    }

    /// What may be sent now.
    async fn ready(&mut self) -> Result<Ready, state::Error> {
        if let Some(next) = self.next.take() {
            let ready = state::joined(next.await)?;
            // Otherwise more may have become durable since, of which nobody tells a second time.
            if !ready.rows.is_empty() {
                return Ok(ready);
            }
        }
        let reading = self.reading(None);
        let read = tokio::task::spawn_blocking(move || reading.read()).await;
        let ready: Ready = state::joined(read)?;
        self.refused_after = ready.refused_after;
        Ok(ready)
    }

    /// What to read after an effect, or from the first one.
    fn reading(&mut self, after: Option<RowKey>) -> Reading {
        let look = self.clock.look(wall_ns(), self.begun.elapsed());
        // After a start nobody knows whether there is a cursor.
        let may_be_single = *self.is_in_doubt.get_mut() || self.cursor.get_mut().is_some();
        Reading {
            store: self.parts.store.clone(),
            target: self.name.clone(),
            after,
            refused: RefusedKeys {
                keys: self.refused.get_mut().clone(),
                after: self.refused_after.take(),
            },
            delayed_after: self.delayed_after.take(),
            look,
            delayed: if may_be_single {
                DelayedMax::Single
            } else {
                DelayedMax::Many
            },
        }
    }

    /// Reads what comes after these effects while they are sent, if that is all that there is to
    /// know: what is refused is read again otherwise, and delayed effects come first.
    fn read_ahead(&mut self, ready: &Ready) -> Option<JoinHandle<Result<Ready, state::Error>>> {
        let is_plain = ready.delayed.is_empty() && self.refused.get_mut().is_empty();
        let last = ready.rows.last().filter(|_| is_plain && ready.has_more)?;
        let reading = self.reading(Some(last.key()));
        Some(tokio::task::spawn_blocking(move || reading.read()))
    }

    /// Sends effects, and confirms what is stored. Returns also whether delayed effects were refused
    /// one by one, so that those behind them may leave.
    async fn release(&mut self, ready: Ready) -> (Outcome, bool) {
        let Ready { rows, delayed, .. } = ready;
        let oldest_ns = [rows.first(), delayed.first()];
        let oldest_ns = oldest_ns.into_iter().flatten().map(Row::ready_ns).min();
        let status = Arc::clone(&self.parts.status);
        status.change(&self.name, |target| target.oldest_ns = oldest_ns);
        let ordered: Vec<_> = rows
            .iter()
            .map(|row| (row.place, row.effect.key.clone()))
            .collect();
        let tried = rows.iter().chain(&delayed).map(|row| row.place).collect();
        let mut sent = self.send_unless_stopped(rows, delayed).await;
        let left = sent.conflicts.iter().map(|(row, _)| row);
        let left: HashSet<Place> = left.chain(&sent.confirmed).map(|row| row.place).collect();
        let is_held = |(place, _): &&(Place, String)| !left.contains(place);
        let held = ordered.iter().filter(is_held);
        let held: HashSet<String> = held.map(|(_, key)| key.clone()).collect();
        self.holds_ordered
            .store(!held.is_empty(), Ordering::Relaxed);
        {
            let mut refused = self.refused.lock();
            if self.has_places() {
                refused.clear();
            }
            for (_, key) in &ordered {
                refused.remove(key);
            }
            if !self.has_places() {
                refused.extend(held);
            }
        }
        let leaves_refused = sent.leaves_refused;
        let conflicts = std::mem::take(&mut sent.conflicts);
        let has_conflicts = !conflicts.is_empty();
        let set_aside = self.set_aside(conflicts).await;
        let progresses = !sent.confirmed.is_empty() || (has_conflicts && set_aside.is_ok());
        let failed = set_aside.err();
        let failed = failed.map(|error| format!("a conflict could not be set aside: {error}"));
        let trouble = failed.or(sent.trouble.clone());
        let outcome = match (&trouble, progresses) {
            (None, _) => Outcome::Done,
            (Some(_), true) => Outcome::Partly,
            (Some(_), false) => Outcome::Nothing,
        };
        let refused = std::mem::take(&mut sent.refused);
        status.judged(&self.name, (tried, refused), trouble.as_deref());
        status.troubled(&self.name, trouble);
        let is_answered = !sent.confirmed.is_empty();
        self.confirm(sent).await;
        if is_answered {
            self.follow_terms().await;
        }
        (outcome, leaves_refused)
    }

    /// Whether the target knows how far it has come by one place: it would pass an effect that was
    /// left out.
    fn has_places(&self) -> bool {
        match &self.outlet {
            Outlet::Log(_) => true,
            Outlet::Stream(_) => self.cursor.lock().is_some(),
        }
    }

    /// Takes out effects whose grants are missing, and says so: an operator may have withdrawn a
    /// grant since the fold had it.
    fn withhold(&self, rows: &mut Vec<Row>, delayed: &mut Vec<Row>) -> Sent {
        let grants = (self.parts.grants)();
        let mut withheld = Sent::default();
        let has_places = self.has_places();
        let (mut is_over, mut keys) = (false, HashSet::new());
        rows.retain(|row| {
            let is_reply = effects::is_reply(&row.effect.subject);
            // No order holds a reply, and one that is too late is dropped where it is sent.
            let why = self.denied(&grants, row);
            let why = why.filter(|_| !(is_reply && jetstream::is_late(row)));
            let is_behind = !is_reply && (is_over || keys.contains(&row.effect.key));
            if let Some(why) = &why {
                withheld.refuse(row, why.clone());
                // Later ones wait as well: all of them, or those with its key.
                is_over |= has_places && !is_reply;
                if !is_reply {
                    keys.insert(row.effect.key.clone());
                }
            }
            why.is_none() && !is_behind
        });
        // Delayed ones have no order, so each waits for itself.
        delayed.retain(|row| match self.denied(&grants, row) {
            None => true,
            Some(why) => {
                withheld.refuse(row, why);
                withheld.leaves_refused = true;
                false
            }
        });
        withheld
    }

    /// Why a grant for a row is missing, if it is.
    fn denied(&self, grants: &Grants, row: &Row) -> Option<String> {
        let subject = &row.effect.subject;
        let is_denied = !grants.allow(subject, &self.name);
        is_denied.then(|| {
            format!(
                "{} may no longer publish to {subject}; its message and those behind it wait; allow it \
                 with --allow-publish '{subject}@{}'",
                self.parts.deployment, self.name
            )
        })
    }

    /// Sends rows; gives up soon after a stop, because a server that is away may take long to say
    /// so.
    async fn send_unless_stopped(&self, rows: Vec<Row>, delayed: Vec<Row>) -> Sent {
        let mut stopped = self.stopped.clone();
        let late = async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(GRACE).await;
        };
        // The work first: it may be done in the same moment.
        // Dropping the first arm leaves messages unconfirmed, which is sound whenever it happens.
        tokio::select! {
            biased;
            sent = self.send(rows, delayed) => sent,
            () = late => Sent::nothing("the deployment stopped"),
        }
    }

    async fn send(&self, rows: Vec<Row>, delayed: Vec<Row>) -> Sent {
        // Rows can be read a moment before the position of their commit.
        let read = rows.iter().chain(&delayed).map(|row| row.place.sequence);
        let position = self.parts.store.durable_position();
        let position = read.max().unwrap_or(0).max(position);
        match &self.outlet {
            Outlet::Log(embedded) => match embedded.log() {
                Ok(log) => self.send_to_log(log, position, (rows, delayed)).await,
                Err(error) => Sent::nothing(error.to_string()),
            },
            Outlet::Stream(publisher) => {
                let rows = (rows, delayed);
                self.send_to_stream(publisher, position, rows).await
            }
        }
    }

    async fn send_to_log(
        &self,
        log: Log,
        position: u64,
        (mut rows, mut delayed): (Vec<Row>, Vec<Row>),
    ) -> Sent {
        // The log says exactly what it has, and in one commit.
        self.promise(Promise::Exact, None);
        let stored = match self.stored_in_log(&log, position).await {
            Ok(found) => found,
            Err(trouble) => return Sent::nothing(trouble),
        };
        let mut sent = self.take_stored(stored, &mut rows, &mut delayed);
        let withheld = self.withhold(&mut rows, &mut delayed);
        if !(rows.is_empty() && delayed.is_empty()) {
            let lineage = self.parts.lineage;
            let send = move || embedded::send(&log, lineage, rows, delayed);
            let new = tokio::task::spawn_blocking(send).await;
            sent.add(new.unwrap_or_else(|error| Sent::nothing(error.to_string())));
        }
        sent.add(withheld);
        sent
    }

    async fn send_to_stream(
        &self,
        publisher: &Publisher,
        position: u64,
        (mut rows, mut delayed): (Vec<Row>, Vec<Row>),
    ) -> Sent {
        // What the stream has already is confirmed without being sent, also if its grant is gone.
        let stored = match self.stored(publisher, position).await {
            Ok(found) => found,
            Err(trouble) => return Sent::nothing(trouble),
        };
        let mut sent = self.take_stored(stored, &mut rows, &mut delayed);
        // They were read for a stream without cursors. The next round has all of them.
        if self.has_places() && !self.refused.lock().is_empty() {
            rows.clear();
        }
        let withheld = self.withhold(&mut rows, &mut delayed);
        if !(rows.is_empty() && delayed.is_empty()) {
            sent.add(self.send_new(publisher, rows, delayed).await);
        }
        sent.add(withheld);
        sent
    }

    /// A place in the stream that was last described.
    fn mark(&self, sequence: u64) -> Mark {
        Mark::at(sequence, *self.created_ns.lock())
    }

    /// Takes out effects that the target has; `through` is up to where nothing else is.
    fn take_stored(
        &self,
        (mut stored, through): (Vec<Row>, u64),
        rows: &mut Vec<Row>,
        delayed: &mut Vec<Row>,
    ) -> Sent {
        {
            let mut ahead = self.ahead.lock();
            let made_again = rows.iter().chain(&*delayed).filter(|row| ahead.take(row));
            stored.extend(made_again.cloned());
        }
        let places: HashSet<Place> = stored.iter().map(|row| row.place).collect();
        for rows in [rows, delayed] {
            rows.retain(|row| !places.contains(&row.place));
        }
        Sent {
            again: stored.len() as u64,
            sequence: through,
            confirmed: stored,
            ..Sent::default()
        }
    }

    /// Sends effects that a stream does not have.
    async fn send_new(&self, publisher: &Publisher, rows: Vec<Row>, delayed: Vec<Row>) -> Sent {
        let abilities = match abilities(publisher, rows.iter().chain(&delayed)).await {
            Ok(abilities) => abilities,
            Err(away) => return Sent::nothing(away),
        };
        let cursor = self.cursor.lock().clone();
        if cursor.is_some() && !self.has_lost_cursor.load(Ordering::Relaxed) {
            self.promise(Promise::Exact, None);
        }
        // Until it is known what became of each, even if this is dropped half-way.
        self.is_in_doubt.store(true, Ordering::Relaxed);
        if cursor.is_none() {
            self.is_all_by_cursor.store(false, Ordering::Relaxed);
        }
        let denied = |row: &Row| {
            let denied = self.denied(&(self.parts.grants)(), row);
            denied.or_else(|| self.lacks(abilities.as_ref()?, row))
        };
        let sending = jetstream::Sending {
            publisher,
            lineage: self.parts.lineage,
            stopped: &self.stopped,
            denied: &denied,
            stored: &|row| {
                self.parts.metrics.outbox_released.inc();
                let status = &self.parts.status;
                status.change(&self.name, |target| target.released += 1);
                self.removals.note(row);
            },
            is_silent: AtomicBool::new(false),
        };
        let mut sent = self.send_in_order(&sending, cursor.clone(), rows).await;
        // A server that does not answer would not answer to these either.
        if !delayed.is_empty() && !sent.is_in_doubt {
            sent.add(match &cursor {
                None => jetstream::send(&sending, delayed, Refused::Passed).await,
                Some(cursor) => cursor::send_delayed(&sending, cursor, delayed).await,
            });
        }
        self.is_in_doubt.store(sent.is_in_doubt, Ordering::Relaxed);
        if let Some(example) = sent.example.take() {
            self.note_subject(publisher, example).await;
        }
        let is_refused = cursor.is_some() && sent.trouble.is_some();
        self.doubts_cursor.store(is_refused, Ordering::Relaxed);
        sent
    }

    /// Sends effects that have an order.
    async fn send_in_order(
        &self,
        sending: &jetstream::Sending<'_>,
        cursor: Option<Cursor>,
        rows: Vec<Row>,
    ) -> Sent {
        let Some(mut cursor) = cursor else {
            return jetstream::send(sending, rows, Refused::HoldsBack).await;
        };
        // No stream has replies, so no cursor passes them.
        let is_reply = |row: &Row| effects::is_reply(&row.effect.subject);
        let (replies, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_reply);
        let mut sent = cursor::send(sending, &mut cursor, rows).await;
        *self.cursor.lock() = Some(cursor);
        sent.add(jetstream::send(sending, replies, Refused::HoldsBack).await);
        sent
    }

    /// Why the stream would ignore what a message asks of its delivery, if it would.
    fn lacks(&self, stream: &Description, row: &Row) -> Option<String> {
        let (name, subject) = (&self.name, &row.effect.subject);
        let delivery = &row.effect.delivery;
        if delivery.time_to_live_s.is_some() && !stream.takes_ttl {
            return Some(format!(
                "a message to {subject} has a time to live, which the stream of {name} does not \
                 allow; allow it with `nats stream edit --allow-msg-ttl` (nats-server 2.11 or \
                 later), or drop the message with `foldstream outbox drop`"
            ));
        }
        let is_elsewhere = row.effect.expects_of_others();
        (is_elsewhere && !stream.takes_conditions).then(|| {
            format!(
                "a message to {subject} expects the last sequence of other subjects, which the \
                 server of {name} does not know; upgrade it to nats-server 2.12, or drop the \
                 message with `foldstream outbox drop`"
            )
        })
    }

    /// Sets effects aside whose condition does not hold, before anything passes them.
    async fn set_aside(&self, conflicts: Vec<(Row, String)>) -> Result<(), state::Error> {
        if conflicts.is_empty() {
            return Ok(());
        }
        let mut changes: Vec<(RowKey, Row)> = Vec::with_capacity(conflicts.len());
        for (mut row, why) in conflicts {
            let key = row.key();
            row.effect.delivery.conflict = Some(why);
            changes.push((key, row));
        }
        let parts = Arc::clone(&self.parts);
        let changed = tokio::task::spawn_blocking(move || {
            if let Some(room) = &parts.room {
                room.check(Use::Write, 0)?;
            }
            parts.store.replace_effects(&changes)?;
            Ok(changes)
        });
        let changes = state::joined(changed.await)?;
        for (_, row) in changes {
            tracing::warn!(
                deployment = self.parts.deployment,
                message = row.place.id(self.parts.lineage),
                subject = row.effect.subject,
                why = row.effect.delivery.conflict,
                "the condition of a message does not hold; it waits for `foldstream outbox send` \
                 or `drop`"
            );
        }
        Ok(())
    }

    /// Records what is stored, and removes it from the file if that is much.
    async fn confirm(&mut self, sent: Sent) {
        let Sent {
            confirmed,
            again,
            sequence,
            ..
        } = sent;
        let (count, waited) = (
            (confirmed.len() as u64).saturating_sub(self.removals.forget()),
            confirmed.iter().map(|row| since_ns(row.ready_ns())).max(),
        );
        // Counted as released once it is confirmed, also if a former owner sent it. What was noted on
        // the way is counted already.
        self.parts.metrics.outbox_released.inc_by(count);
        self.parts.metrics.outbox_resent.inc_by(again);
        self.parts.status.change(&self.name, |target| {
            target.released += count;
            target.resent += again;
            target.longest_wait = target.longest_wait.max(waited.unwrap_or_default());
        });
        // A reply is in no stream.
        let is_stored = |row: &Row| !effects::is_reply(&row.effect.subject);
        if again == 0 && confirmed.iter().any(is_stored) {
            // What is new comes after all that was confirmed before.
            self.check_kept(sequence);
        }
        let has_many = self
            .parts
            .store
            .confirm_effects(confirmed.iter().map(Row::key));
        let is_known = !self.is_in_doubt.load(Ordering::Relaxed) && self.ahead.lock().is_empty();
        if sequence > 0 && is_known {
            // Nothing that waits is stored, so whatever is stored from now on comes after it.
            let mark = self.mark(sequence);
            self.parts.store.set_effect_mark(&self.name, mark);
        }
        if let Some(waited) = waited {
            let (store, waited_s) = (&self.parts.store, waited.as_secs());
            store.note_effect_wait(&self.name, waited_s);
        }
        // A handler that waits for room commits nothing that would remove them. A round may take long,
        // and another one may follow it at once.
        if has_many || self.removals.is_due() || self.parts.store.is_outbox_full() {
            self.removals.remove().await;
        }
    }
}

/// What the stream can do, if one of the effects asks for what not every stream can.
async fn abilities(
    publisher: &Publisher,
    rows: impl IntoIterator<Item = &Row>,
) -> Result<Option<Description>, String> {
    let asks =
        |row: &Row| row.effect.delivery.time_to_live_s.is_some() || row.effect.expects_of_others();
    if !rows.into_iter().any(asks) {
        return Ok(None);
    }
    // In each round: a stream may be edited, and a server replaced.
    let described = publisher.describe().await;
    described.map(Some).map_err(|away| away.to_string())
}
