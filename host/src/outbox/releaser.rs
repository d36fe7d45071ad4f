//! The tasks of an owner that send its effects: one per source, so that a stream that is away holds
//! back no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cursor::{self, Cursor};
use super::status::{Status, since_ns};
use super::{Sent, embedded, jetstream};
use crate::api::Promise;
use crate::effects::{self, Grants, Lineage, Row};
use crate::metrics::DeploymentMetrics;
use crate::room::{Room, Use};
use crate::source::Source;
use crate::source::jetstream::Publisher;
use crate::state::{self, Store};

/// Most effects read at once.
const ROWS_MAX: usize = 1_000;
/// Most bytes of them; a single effect may exceed it.
const BYTES_MAX: usize = 4 << 20;
/// Pause after a failure: it doubles up to the longest one, and varies by half.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long confirmed effects may stay in the file. A crash within that time sends them again, so
/// it is far shorter than any stream's window.
const CONFIRMED_MAX: Duration = Duration::from_secs(1);
/// How long a stop waits for messages on their way.
const STOP_MAX: Duration = Duration::from_secs(4);
/// How long a task then waits for confirmations. What is not confirmed is sent again, with the same
/// ids.
const GRACE: Duration = Duration::from_secs(2);

/// What a releaser needs.
pub(crate) struct Parts {
    /// Name of the deployment, for its log.
    pub deployment: String,
    /// The lineage of the effects.
    pub lineage: Lineage,
    /// The state that has them.
    pub store: Store,
    /// All sources of the host, by name.
    pub sources: Arc<BTreeMap<String, Source>>,
    /// What may be published now.
    pub grants: Arc<dyn Fn() -> Grants + Send + Sync>,
    /// Changes when grants do, or `is_paused`.
    pub changed: watch::Receiver<u64>,
    /// Whether an operator paused the deployment.
    pub is_paused: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The disk of the state.
    pub room: Option<Room>,
    /// Where it reports.
    pub status: Arc<Status>,
    /// Counters.
    pub metrics: DeploymentMetrics,
}

impl Parts {
    /// Removes confirmed effects, unless the disk has too little room for a commit: then they are
    /// sent again after a crash, which is sound.
    fn remove_confirmed(&self) -> Result<(), state::Error> {
        let has_room = self
            .room
            .as_ref()
            .is_none_or(|room| room.check(Use::Write, 0).is_ok());
        if has_room {
            self.store.remove_confirmed_effects()
        } else {
            Ok(())
        }
    }
}

/// Runs until it is stopped.
pub(crate) struct Releaser {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Handle,
    parts: Arc<Parts>,
}

impl Releaser {
    /// Starts the tasks.
    pub(crate) fn start(parts: Parts, runtime: &Handle) -> Self {
        let (stop, stopped) = watch::channel(false);
        let parts = Arc::new(parts);
        let mut tasks = Vec::new();
        // One for each source of the host, because a grant may be added while they run.
        for (name, source) in parts.sources.iter() {
            let task = Task {
                parts: Arc::clone(&parts),
                name: name.clone(),
                outlet: Outlet::of(source),
                stopped: stopped.clone(),
                changed: parts.changed.clone(),
                // After a start nobody knows what was sent before.
                is_in_doubt: AtomicBool::new(true),
                cursor: Mutex::default(),
            };
            tasks.push(runtime.spawn(task.run()));
        }
        tasks.push(runtime.spawn(report_unknown(Arc::clone(&parts), stopped)));
        Self {
            stop,
            tasks,
            runtime: runtime.clone(),
            parts,
        }
    }

    /// Ends all tasks and removes what is confirmed. Blocking; not to be called on a thread of the
    /// runtime.
    pub(crate) fn stop(mut self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut self.tasks);
        let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let ended = self.runtime.block_on(async {
            tokio::time::timeout(STOP_MAX, futures_util::future::join_all(tasks)).await
        });
        if ended.is_err() {
            // Another owner may send the same effects from now on.
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
            tracing::warn!(
                "messages were on their way when a deployment stopped; they are sent again, with \
                 the same ids"
            );
        }
        if let Err(error) = self.parts.remove_confirmed() {
            tracing::warn!(
                %error,
                "confirmed messages could not be removed; they are sent again, with the same ids"
            );
        }
    }
}

impl Drop for Releaser {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

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

/// Where effects go.
enum Outlet {
    Embedded(crate::source::embedded::Embedded),
    JetStream(Box<Publisher>),
}

impl Outlet {
    fn of(source: &Source) -> Self {
        match source {
            Source::Embedded(embedded) => Self::Embedded(embedded.clone()),
            Source::JetStream(jetstream) => Self::JetStream(Box::new(jetstream.publisher())),
        }
    }
}

/// Sends the effects for one source.
struct Task {
    parts: Arc<Parts>,
    name: String,
    outlet: Outlet,
    stopped: watch::Receiver<bool>,
    changed: watch::Receiver<u64>,
    /// Effects may be stored without our knowing: after a start, and after an answer that stayed
    /// out. Only the task of this target uses it; it is atomic because sending borrows the task.
    is_in_doubt: AtomicBool,
    /// How far the lineage is in the stream, if the stream takes cursors.
    cursor: Mutex<Option<Cursor>>,
}

impl Task {
    async fn run(mut self) {
        let mut durable = self.parts.store.outbox_changes();
        let mut pause = PAUSE.0;
        while !*self.stopped.borrow() {
            // Both as of before the look at the rows, so that what comes after it wakes the task.
            durable.borrow_and_update();
            self.changed.borrow_and_update();
            // What is on its way when the pause begins still ends.
            let rows = if (self.parts.is_paused)() {
                Ok(Vec::new())
            } else {
                self.rows().await
            };
            let rows = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    self.parts
                        .status
                        .troubled(&self.name, Some(error.to_string()));
                    self.rest(&mut durable, Some(PAUSE.1)).await;
                    continue;
                }
            };
            if rows.is_empty() {
                self.parts
                    .status
                    .change(&self.name, |target| target.oldest_ns = None);
                self.parts.status.troubled(&self.name, None);
                pause = PAUSE.0;
                self.rest(&mut durable, None).await;
                continue;
            }
            let outcome = self.release(rows).await;
            // Some progress is enough: the next attempt starts with what is left.
            if outcome != Outcome::Nothing {
                pause = PAUSE.0;
            }
            if outcome != Outcome::Done {
                // From half to all of the pause, so that owners that failed together do not retry
                // together.
                self.rest_after_trouble(pause.mul_f64(0.5 + fastrand::f64() / 2.0))
                    .await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }

    async fn rows(&self) -> Result<Vec<Row>, state::Error> {
        let (store, name) = (self.parts.store.clone(), self.name.clone());
        let read = move || store.effects(&name, ROWS_MAX, BYTES_MAX);
        state::joined(tokio::task::spawn_blocking(read).await)
    }

    /// Sends rows, and confirms what is stored.
    async fn release(&self, mut rows: Vec<Row>) -> Outcome {
        let status = &self.parts.status;
        let oldest_ns = rows.first().map(|row| row.made_ns);
        status.change(&self.name, |target| target.oldest_ns = oldest_ns);
        // Checked again: an operator may have withdrawn a grant since the fold had it.
        let grants = (self.parts.grants)();
        let denied = rows
            .iter()
            .position(|row| self.denied(&grants, row).is_some());
        let withdrawn = denied.and_then(|index| self.denied(&grants, &rows[index]));
        // Later ones wait as well: their order is that of their places.
        rows.truncate(denied.unwrap_or(rows.len()));
        let sent = if rows.is_empty() {
            Sent::default()
        } else {
            self.send_unless_stopped(rows).await
        };
        if withdrawn.is_some() {
            // One of those that wait may be stored.
            self.is_in_doubt.store(true, Ordering::Relaxed);
        }
        let trouble = sent.trouble.clone().or(withdrawn);
        let outcome = match (&trouble, sent.confirmed.is_empty()) {
            (None, _) => Outcome::Done,
            (Some(_), false) => Outcome::Partly,
            (Some(_), true) => Outcome::Nothing,
        };
        status.troubled(&self.name, trouble);
        self.confirm(sent).await;
        outcome
    }

    /// Why a grant for a row is missing, if it is.
    fn denied(&self, grants: &Grants, row: &Row) -> Option<String> {
        let subject = &row.effect.subject;
        let is_denied = !grants.allow(subject, &self.name);
        is_denied.then(|| {
            format!(
                "{} may no longer publish to {subject}; its message and later ones wait; allow it \
                 with --allow-publish '{subject}@{}'",
                self.parts.deployment, self.name
            )
        })
    }

    /// Sends rows; gives up soon after a stop, because a server that is away may take long to say
    /// so.
    async fn send_unless_stopped(&self, rows: Vec<Row>) -> Sent {
        let mut stopped = self.stopped.clone();
        let late = async {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(GRACE).await;
        };
        // The work first: it may be done in the same moment.
        // Dropping the first arm leaves messages unconfirmed, which is sound whenever it happens.
        tokio::select! {
            biased;
            sent = self.send(rows) => sent,
            () = late => Sent::nothing("the deployment stopped"),
        }
    }

    async fn send(&self, rows: Vec<Row>) -> Sent {
        let (lineage, status) = (self.parts.lineage, &self.parts.status);
        match &self.outlet {
            Outlet::Embedded(embedded) => {
                // The log says exactly what it has, and in one commit.
                status.change(&self.name, |target| target.promise = Some(Promise::Exact));
                let log = match embedded.log() {
                    Ok(log) => log,
                    Err(error) => return Sent::nothing(error.to_string()),
                };
                let sent =
                    tokio::task::spawn_blocking(move || embedded::send(&log, lineage, rows)).await;
                sent.unwrap_or_else(|error| Sent::nothing(error.to_string()))
            }
            Outlet::JetStream(publisher) => self.send_to_stream(publisher, rows).await,
        }
    }

    async fn send_to_stream(&self, publisher: &Publisher, rows: Vec<Row>) -> Sent {
        let lineage = self.parts.lineage;
        if self.is_in_doubt.load(Ordering::Relaxed) {
            match cursor::find(publisher, lineage, &self.name).await {
                Ok(found) => *self.cursor.lock() = found,
                Err(error) => return Sent::nothing(error.to_string()),
            }
        }
        let cursor = self.cursor.lock().clone();
        let is_known = cursor
            .as_ref()
            .is_some_and(|cursor| cursor.through.is_some());
        let (mut found, new) = match self.look(publisher, rows, is_known).await {
            Ok(sorted) => sorted,
            Err(trouble) => return Sent::nothing(trouble),
        };
        if cursor.is_some() {
            self.parts.status.change(&self.name, |target| {
                (target.window, target.promise) = (None, Some(Promise::Exact));
            });
        }
        let again = found.len() as u64;
        // Until it is known what became of each, even if this is dropped half-way.
        self.is_in_doubt.store(true, Ordering::Relaxed);
        let denied = |row: &Row| self.denied(&(self.parts.grants)(), row);
        let conditions = jetstream::Conditions {
            stopped: &self.stopped,
            denied: &denied,
        };
        let mut sent = match cursor {
            None => jetstream::send(publisher, lineage, new, &conditions).await,
            Some(mut cursor) => {
                // No stream has replies, so no cursor passes them.
                let is_reply = |row: &Row| effects::is_reply(&row.effect.subject);
                let (replies, new) = new.into_iter().partition(is_reply);
                let mut sent =
                    cursor::send(publisher, lineage, &mut cursor, new, &conditions).await;
                *self.cursor.lock() = Some(cursor);
                let replied = jetstream::send(publisher, lineage, replies, &conditions).await;
                sent.confirmed.extend(replied.confirmed);
                sent.trouble = sent.trouble.or(replied.trouble);
                sent
            }
        };
        sent.again += again;
        sent.confirmed.append(&mut found);
        self.is_in_doubt.store(sent.is_in_doubt, Ordering::Relaxed);
        sent
    }

    /// Separates rows that the stream has from others, as far as that is in doubt and no cursor says
    /// it.
    async fn look(
        &self,
        publisher: &Publisher,
        rows: Vec<Row>,
        has_cursor: bool,
    ) -> Result<(Vec<Row>, Vec<Row>), String> {
        if has_cursor || !self.is_in_doubt.load(Ordering::Relaxed) {
            return Ok((Vec::new(), rows));
        }
        let lineage = self.parts.lineage;
        let place = (&self.parts.store, self.name.as_str());
        let known = jetstream::look(publisher, place, lineage, &(self.parts.grants)()).await;
        let known = known.map_err(|error| error.to_string())?;
        self.parts.status.change(&self.name, |target| {
            (target.window, target.promise) = (Some(known.description.window), Some(known.promise));
        });
        // What the stream has already is confirmed without being sent.
        Ok(rows
            .into_iter()
            .partition(|row| known.stored.contains(&row.place.id(lineage))))
    }

    /// Records what is stored, and removes it from the file if that is much.
    async fn confirm(&self, sent: Sent) {
        let Sent {
            confirmed,
            again,
            sequence,
            ..
        } = sent;
        let (count, waited) = (
            confirmed.len() as u64,
            confirmed.iter().map(|row| since_ns(row.made_ns)).max(),
        );
        // Counted as released once it is confirmed, also if a former owner sent it.
        self.parts.metrics.outbox_released.inc_by(count);
        self.parts.metrics.outbox_resent.inc_by(again);
        self.parts.status.change(&self.name, |target| {
            target.released += count;
            target.resent += again;
            target.longest_wait = target.longest_wait.max(waited.unwrap_or_default());
        });
        let has_many = self
            .parts
            .store
            .confirm_effects(confirmed.iter().map(Row::key));
        if sequence > 0 && !self.is_in_doubt.load(Ordering::Relaxed) {
            // Nothing that waits is stored, so whatever is stored from now on comes after it.
            let mark = self.parts.store.effect_mark(&self.name).unwrap_or(0);
            self.parts
                .store
                .set_effect_mark(&self.name, mark.max(sequence));
        }
        // A handler that waits for room commits nothing that would remove them.
        if has_many || self.parts.store.is_outbox_full(true) {
            self.remove().await;
        }
    }

    async fn remove(&self) {
        let parts = Arc::clone(&self.parts);
        let removed = tokio::task::spawn_blocking(move || parts.remove_confirmed()).await;
        if let Ok(Err(error)) = removed {
            // The next commit fails as well, and reopens the state.
            tracing::warn!(
                deployment = self.parts.deployment,
                %error,
                "confirmed messages could not be removed"
            );
        }
    }

    /// Waits for effects or for another request; removes confirmed effects if no commit does. Every
    /// arm only observes.
    async fn rest(&mut self, durable: &mut watch::Receiver<u64>, at_most: Option<Duration>) {
        // Confirmed rows should not stay for long: a crash would send them again.
        let limit = if self.parts.store.has_confirmed_effects() {
            Some(CONFIRMED_MAX)
        } else {
            at_most
        };
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let is_over = tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => false,
            _ = self.changed.changed() => false,
            _ = durable.changed() => false,
            () = over => true,
        };
        if is_over && self.parts.store.has_confirmed_effects() {
            self.remove().await;
        }
    }

    /// Waits before the next attempt.
    async fn rest_after_trouble(&mut self, pause: Duration) {
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => {}
            _ = self.changed.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
        // The pause may be long, and the rows have left.
        if self.parts.store.has_confirmed_effects() {
            self.remove().await;
        }
    }
}

/// Reports effects for sources that the configuration no longer has.
async fn report_unknown(parts: Arc<Parts>, mut stopped: watch::Receiver<bool>) {
    let store = parts.store.clone();
    let targets = tokio::task::spawn_blocking(move || store.effect_targets()).await;
    // Only a report, so an error is left to the tasks that send.
    let Ok(Ok(mut targets)) = targets else { return };
    // A grant without a source is worth a warning before its first message.
    targets.extend((parts.grants)().iter().map(|grant| grant.source.clone()));
    targets.sort_unstable();
    targets.dedup();
    for target in targets
        .iter()
        .filter(|target| !parts.sources.contains_key(*target))
    {
        let trouble = format!(
            "the configuration has no source {target} any more; add it again, its messages wait"
        );
        tracing::warn!(deployment = parts.deployment, target, "{trouble}");
        parts.status.troubled(target, Some(trouble));
    }
    // So that a stop waits for all tasks in the same way.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
