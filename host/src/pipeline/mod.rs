//! The way of an event: source, batch, instance, memtable, state file.
//!
//! Three stages overlap. A task reads batches ahead into a bounded queue; the
//! thread that runs [`Pipeline::run`] applies them and publishes each as one
//! step; a blocking task commits what was set aside. Nothing here awaits on the
//! way of a batch: the thread waits only for work, for a pause after a failure,
//! and for a commit when memory is full.

mod ahead;
mod applier;
mod fold;
mod growth;
mod pace;
mod portion;
mod settings;
mod shuffle;
#[cfg(test)]
mod tests;
mod way;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Batch;
use crate::memory::memtables::Share;
use crate::metrics::DeploymentMetrics;
use crate::progress::Progress;
use crate::room::Use;
use crate::source::{self, Request, Source, StatusSender};
use crate::state::exceptions::Skips;
use crate::state::{self, Store, Writer};

use ahead::{Inbox, Outbox};
use applier::{Alike, Applier, Interrupt, Living, Obstacle, Processed};
pub use fold::{Fold, MakeFold};
use growth::Growth;
pub use pace::{Ceiling, Pace, Patches, Repair, Standing, Throttle};
use portion::Portion;
pub use settings::{Desired, Ended, Settings, WhenFull};
pub use shuffle::SINGLES;
use shuffle::Shuffle;
use way::Way;

/// How often a pipeline that lacks room on the disk looks for some.
const ROOM_LOOK: Duration = Duration::from_secs(1);

/// A state that nobody is answered from is committed this many times less often: a commit writes every page that it touches
/// once, and all that a crash costs is to fold a little more again.
const UNREAD_FLUSH_FACTOR: u32 = 10;

/// A checkpoint that only moved over events of others is committed this many times less often.
const IDLE_FLUSH_FACTOR: u32 = 30;

/// Everything that a run needs.
pub struct Pipeline {
    /// Where events come from.
    pub source: Source,
    /// What is read; `resume` is taken from the store, `limits` from the settings, and `skips` from the decisions.
    pub request: Request,
    /// Which events are left out.
    pub skips: Skips,
    /// Where the reader tells how it is.
    pub source_status: StatusSender,
    /// Who folds.
    pub make_fold: MakeFold,
    /// The state.
    pub store: Store,
    /// Its writer.
    pub writer: Writer,
    /// How it behaves.
    pub settings: Settings,
    /// Where it tells how far it is.
    pub progress: Arc<Progress>,
    /// Counters and histograms.
    pub metrics: DeploymentMetrics,
    /// What the operator wants.
    pub control: watch::Receiver<Desired>,
    /// How far and how fast it may go.
    pub pace: watch::Receiver<Pace>,
    /// Where it tells that it stands still at its ceiling; none while it may move.
    pub standing: watch::Sender<Option<Standing>>,
    /// Where patches of the state come from.
    pub patches: Arc<Patches>,
    /// Where reading and committing run.
    pub runtime: Handle,
}

/// What the reading stage hands over.
enum Input {
    Batch(Batch),
    Failed(source::Error),
}

/// What woke the applying thread.
enum Wake {
    Control,
    Paced,
    /// A pause of the throttle is over.
    Rested,
    /// Another fold lacks an instance.
    Wanted,
    Input(Input),
    FlushDue,
    Committed(Result<(), state::Error>),
}

impl Pipeline {
    /// Runs until it is asked to end, or can't go on. Blocking; needs a thread of its own outside of
    /// the runtime. The writer comes back for the next run.
    pub fn run(self) -> (Writer, Ended) {
        let wanted = *self.control.borrow();
        if !matches!(wanted, Desired::Run(_)) {
            return (self.writer, Ended::Asked);
        }
        self.standing.send_replace(None);
        let mut request = self.request;
        request.resume = self.store.published();
        request.limits = self.settings.batch;
        request.skips = self.skips.sequences();
        let (outbox, inbox) = self.settings.budget.read_ahead().queue();
        let reading = {
            let _guard = self.runtime.enter();
            let progress = Arc::clone(&self.progress);
            AbortOnDrop(self.runtime.spawn(read(self.source, request, self.source_status, outbox, progress)))
        };
        let share = Share::of(&self.settings.budget);
        let shuffle = self.settings.shuffle.map(Shuffle::new);
        let applier = Applier {
            make_fold: self.make_fold,
            fold: None,
            writer: Some(self.writer),
            settings: self.settings,
            progress: self.progress,
            metrics: self.metrics.clone(),
            skips: self.skips,
            attempts: 0,
            portion: Portion::default(),
            alike: Alike::default(),
            waiting: None,
            obstacle: None,
        };
        let mut run = Run {
            applier,
            store: self.store,
            control: self.control,
            wanted,
            runtime: self.runtime,
            metrics: self.metrics,
            inbox,
            stashed: VecDeque::new(),
            commit: None,
            flush_at: None,
            lacks: None,
            is_full: false,
            growth: Growth::default(),
            share,
            way: Way::new(self.pace, self.standing),
            shuffle,
            patches: self.patches,
        };
        let ended = run.until_the_end();
        drop(reading);
        run.applier.progress.reads_no_more();
        let ended = run.finish(ended);
        (run.applier.writer.take().expect("the writer comes back from every call"), ended)
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read(source: Source, request: Request, status: StatusSender, outbox: Outbox, progress: Arc<Progress>) {
    let run = progress.begins_to_read();
    let mut is_first = request.resume.is_none();
    let mut reader = source.read(request, status);
    loop {
        let (input, last) = match reader.next().await {
            Ok(batch) => {
                progress.read(run, &batch, std::mem::take(&mut is_first));
                (Input::Batch(batch), false)
            }
            Err(error) => (Input::Failed(error), true),
        };
        if !outbox.send(input).await || last {
            return;
        }
    }
}

/// One run: waits, and hands each piece of work to the stage that does it.
struct Run {
    applier: Applier,
    store: Store,
    control: watch::Receiver<Desired>,
    /// What was wanted when the run began; anything else ends it.
    wanted: Desired,
    runtime: Handle,
    metrics: DeploymentMetrics,
    inbox: Inbox,
    /// What was taken from the inbox and can't be applied yet, in order: it did not fit into the batch before, or lies
    /// beyond the ceiling.
    stashed: VecDeque<Input>,
    commit: Option<JoinHandle<Result<(), state::Error>>>,
    /// When what was applied is to be committed at the latest.
    flush_at: Option<Instant>,
    /// The room that is lacking on the disk, while it is.
    lacks: Option<Use>,
    /// Nothing is applied before there is room again.
    is_full: bool,
    growth: Growth,
    share: Share,
    way: Way,
    /// Chooses where batches end and modules begin again, where chance is wanted.
    shuffle: Option<Shuffle>,
    patches: Arc<Patches>,
}

impl Run {
    fn until_the_end(&mut self) -> Ended {
        loop {
            let done = self.stand_if_due().and_then(|()| match self.wait() {
                Wake::Control => Err(Ended::Asked),
                Wake::Paced => {
                    self.way.change();
                    self.flush_at = Some(Instant::now());
                    Ok(())
                }
                Wake::Rested => Ok(()),
                Wake::Wanted => {
                    self.applier.fold = None;
                    Ok(())
                }
                Wake::Input(Input::Batch(batch)) => self.apply(batch),
                Wake::Input(Input::Failed(error)) => {
                    let (kind, message, sequence) = (error.kind(), error.to_string(), error.sequence());
                    self.applier.obstacle = Some(Obstacle { kind, message, sequence });
                    Err(Ended::Failed)
                }
                Wake::FlushDue => {
                    self.is_full = false;
                    self.begin_commit();
                    Ok(())
                }
                Wake::Committed(result) => result.map_err(Ended::State),
            });
            if let Err(ended) = done.and_then(|()| self.commit_if_large()) {
                return ended;
            }
        }
    }

    /// Stands still at the ceiling, once everything is durable.
    fn stand_if_due(&mut self) -> Result<(), Ended> {
        if self.way.is_standing || !self.way.is_at_ceiling(self.store.position()) {
            return Ok(());
        }
        let must_write = !self.store.is_durable() || self.patches.is_waiting();
        if must_write && !self.has_room(Use::Write) {
            self.wait_for_room();
            return Ok(());
        }
        self.flush_at = None;
        self.join_commit().and_then(|()| self.store.flush()).map_err(Ended::State)?;
        if let Some(writer) = &mut self.applier.writer
            && self.patches.apply(writer, &self.store).map_err(Ended::State)?
        {
            // The instance may remember what it read before.
            self.applier.fold = None;
        }
        self.share.set(self.store.memory_bytes());
        self.way.is_standing = true;
        let position = self.store.position();
        self.way.standing.send_replace(Some(Standing { position, epoch: self.way.pace.epoch }));
        Ok(())
    }

    fn apply(&mut self, batch: Batch) -> Result<(), Ended> {
        let batch = self.merge(batch);
        let Some(mut batch) = self.cut(batch) else { return Ok(()) };
        if self.must_put_off()? {
            self.stashed.push_front(Input::Batch(batch));
            return Ok(());
        }
        // Where the state was advanced over events of others, the source may still have to learn of it.
        batch.through = batch.through.max(self.store.position());
        if batch.through > self.store.position() && self.store.is_noted_settled() {
            if !self.has_room(Use::Write) {
                self.wait_for_room();
                self.stashed.push_front(Input::Batch(batch));
                return Ok(());
            }
            self.store.unsettle().map_err(Ended::State)?;
        }
        let (begun, count) = (Instant::now(), batch.events.len());
        let interrupt =
            Interrupt { control: &self.control, wanted: self.wanted, pace: &self.way.receiver, runtime: &self.runtime };
        let processed = match self.applier.skips.leave_out(&batch.events) {
            None => self.applier.process(&batch, &[], &self.store, &interrupt)?,
            Some((events, left_out)) => {
                let without = Batch { events, ..batch.clone() };
                self.applier.process(&without, &left_out, &self.store, &interrupt)?
            }
        };
        if self.shuffle.as_mut().is_some_and(|shuffle| shuffle.restarts_after(count)) {
            self.applier.fold = None;
            self.applier.progress.shuffled();
        }
        let due = Instant::now() + self.applier.settings.flush_interval * self.flush_factor(count);
        self.flush_at = Some(self.flush_at.map_or(due, |earlier| earlier.min(due)));
        self.share.set(self.store.memory_bytes());
        match processed {
            Processed::All => {
                self.way.pending = Some(batch.pending);
                if self.lacks.is_none() && self.store.is_durable() {
                    self.applier.progress.has_room();
                }
                self.way.rests_until = self.way.pace.throttle.next(begun, count, begun.elapsed());
            }
            Processed::Through(position) => {
                // Where the state is, not where its last event is: what is missing in between is still to be counted.
                let done = position.max(batch.after);
                if done < batch.through {
                    self.stashed.push_front(Input::Batch(batch.split_behind(done)));
                }
            }
        }
        Ok(())
    }

    /// Whether nothing is to be applied now, as others need the room that is left on the disk.
    fn must_put_off(&mut self) -> Result<bool, Ended> {
        let when_full = self.applier.settings.disk.as_ref().map(|(_, when_full)| *when_full);
        match when_full {
            None => Ok(false),
            Some(WhenFull::Wait) if self.applier.progress.serves() => Ok(self.took_its_part()),
            Some(_) if self.has_room(Use::Grow) => Ok(false),
            Some(WhenFull::Wait) => {
                self.wait_for_room();
                Ok(true)
            }
            Some(WhenFull::GiveUp) => {
                let failure = self.applier.progress.now().failure;
                let message = failure.map_or_else(|| "the disk is full".to_owned(), |failure| failure.message);
                self.applier.obstacle = Some(Obstacle { kind: "state", message, sequence: None });
                Err(Ended::Failed)
            }
        }
    }

    /// Whether there is room on the disk; tells when there is none any more, and when there is some again.
    fn has_room(&mut self, purpose: Use) -> bool {
        let Some((room, _)) = &self.applier.settings.disk else { return true };
        match room.check(purpose, 0) {
            Ok(()) => {
                if self.lacks == Some(purpose) {
                    self.lacks = None;
                    self.applier.progress.has_room();
                }
                true
            }
            Err(shortage) => {
                self.applier.progress.waiting("state", &shortage.to_string());
                self.lacks.get_or_insert(purpose);
                false
            }
        }
    }

    fn flush_factor(&self, events: usize) -> u32 {
        match events {
            0 => IDLE_FLUSH_FACTOR,
            _ if self.applier.progress.serves() => 1,
            _ => UNREAD_FLUSH_FACTOR,
        }
    }

    /// Applies nothing more, and looks again in a while.
    fn wait_for_room(&mut self) {
        self.is_full = true;
        self.flush_at = Some(Instant::now() + ROOM_LOOK);
    }

    /// Whether the next batch may be applied.
    fn may_apply(&self) -> bool {
        !self.is_full && self.way.may_apply()
    }

    /// Adds to a batch what else is ready, up to the limits.
    fn merge(&mut self, mut batch: Batch) -> Batch {
        let limits = self.applier.settings.batch;
        let mut bytes = batch.bytes();
        while self.stashed.is_empty() && batch.events.len() < limits.events && bytes < limits.bytes {
            match self.inbox.take() {
                Some(Input::Batch(next))
                    if batch.events.len() + next.events.len() <= limits.events
                        && bytes + next.bytes() <= limits.bytes =>
                {
                    bytes += next.bytes();
                    batch.append(next);
                }
                Some(other) => self.stashed.push_back(other),
                None => break,
            }
        }
        batch
    }

    /// Sets aside what of a batch may not be applied now; none where that is all of it.
    fn cut(&mut self, batch: Batch) -> Option<Batch> {
        let (within, beyond) = self.way.pace.ceiling.cut(batch);
        if let Some(beyond) = beyond {
            self.way.is_beyond = true;
            self.stashed.push_front(Input::Batch(beyond));
        }
        let mut batch = within?;
        let mut count = self.way.pace.throttle.batch_events();
        if let Some(shuffle) = &mut self.shuffle {
            count = count.min(shuffle.count(batch.events.len()));
        }
        if count < batch.events.len() {
            self.stashed.push_front(Input::Batch(batch.split_off(count)));
        }
        Some(batch)
    }

    fn wait(&mut self) -> Wake {
        if *self.control.borrow() != self.wanted {
            return Wake::Control;
        }
        if self.way.receiver.has_changed().unwrap_or(false) {
            return Wake::Paced;
        }
        if self.commit.as_ref().is_some_and(JoinHandle::is_finished) {
            return Wake::Committed(self.join_commit());
        }
        // Before more work is taken: a replay that always has some would put it off without end.
        if self.flush_is_due() {
            return Wake::FlushDue;
        }
        let may_apply = self.may_apply();
        if may_apply && let Some(input) = self.stashed.pop_front() {
            return Wake::Input(input);
        }
        if may_apply && let Some(input) = self.inbox.take() {
            return Wake::Input(input);
        }
        self.wait_long()
    }

    fn flush_is_due(&self) -> bool {
        self.commit.is_none() && self.flush_at.is_some_and(|at| at <= Instant::now())
    }

    /// Every arm is cancel-safe: a receive that did not happen takes nothing, and a commit goes on by itself.
    fn wait_long(&mut self) -> Wake {
        let may_apply = self.may_apply();
        let wanted_elsewhere = self.applier.fold.as_ref().and_then(Living::wanted);
        let Self { control, inbox, commit, flush_at, wanted, runtime, way, is_full, .. } = self;
        let committing = commit.is_some();
        let rests_until = way.rests_until.filter(|_| !may_apply && !way.is_standing && !*is_full);
        let woken = runtime.block_on(async {
            let flush = async {
                match *flush_at {
                    Some(at) if !committing => tokio::time::sleep_until(at.into()).await,
                    _ => std::future::pending().await,
                }
            };
            let committed = async {
                match commit {
                    Some(commit) => commit.await,
                    None => std::future::pending().await,
                }
            };
            let rested = async {
                match rests_until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            let needed = async {
                match wanted_elsewhere {
                    Some(mut wanted) => drop(wanted.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = control.wait_for(|desired| *desired != *wanted) => Some(Wake::Control),
                Ok(()) = way.receiver.changed() => Some(Wake::Paced),
                joined = committed => Some(Wake::Committed(joined.unwrap_or_else(|error| Err(state::Error::Storage(error.to_string()))))),
                input = inbox.next(), if may_apply => input.map(Wake::Input),
                () = flush => Some(Wake::FlushDue),
                () = rested => Some(Wake::Rested),
                () = needed => Some(Wake::Wanted),
            }
        });
        if let Some(Wake::Committed(result)) = &woken {
            self.commit = None;
            if result.is_ok() {
                self.applier.progress.made_durable();
            }
            self.share.set(self.store.memory_bytes());
        }
        // The reading task ends only after it sent its error, so an empty, closed inbox means that
        // the runtime is going down.
        woken.unwrap_or(Wake::Control)
    }

    fn join_commit(&mut self) -> Result<(), state::Error> {
        let Some(commit) = self.commit.take() else { return Ok(()) };
        let joined = self.runtime.block_on(commit);
        self.share.set(self.store.memory_bytes());
        let committed = joined.unwrap_or_else(|error| Err(state::Error::Storage(error.to_string())));
        if committed.is_ok() {
            self.applier.progress.made_durable();
        }
        committed
    }

    /// Commits early when memory asks for it, and waits for a commit when there is no room to go on.
    fn commit_if_large(&mut self) -> Result<(), Ended> {
        let active = self.store.active_bytes();
        let limit = self.applier.settings.memtable_bytes;
        if active < limit && !self.share.must_yield(active) {
            return Ok(());
        }
        if self.commit.is_some() {
            self.join_commit().map_err(Ended::State)?;
        }
        self.begin_commit();
        if self.commit.is_none() && !self.store.is_durable() {
            self.wait_for_room();
        }
        Ok(())
    }

    fn begin_commit(&mut self) {
        if self.commit.is_some() {
            return;
        }
        self.flush_at = None;
        if !self.store.is_durable() && !self.has_room(Use::Write) {
            self.flush_at = Some(Instant::now() + ROOM_LOOK);
            return;
        }
        if !self.store.freeze() {
            return;
        }
        let (store, seconds) = (self.store.clone(), self.metrics.commit_seconds.clone());
        let commit = move || {
            let started = Instant::now();
            let committed = store.commit();
            seconds.observe(started.elapsed().as_secs_f64());
            committed
        };
        // By a thread of the runtime: one that this thread starts would inherit its low priority, and later serve with it.
        self.commit = Some(self.runtime.spawn(async move {
            let committed = tokio::task::spawn_blocking(commit).await;
            committed.unwrap_or_else(|error| Err(state::Error::Storage(error.to_string())))
        }));
    }

    /// Makes everything durable that was applied, whatever ended the run, and only then tells that it can't go on: what was
    /// shown beside a failure must not be lost, least of all when the stream is gone that could bring it back.
    fn finish(&mut self, ended: Ended) -> Ended {
        if let Some(writer) = &mut self.applier.writer {
            writer.discard();
        }
        // Without room a flush would fail, and what can be read in memory would be lost with it.
        let disk = self.applier.settings.disk.as_ref();
        let has_room = disk.is_none_or(|(room, _)| self.store.is_durable() || room.check(Use::Write, 0).is_ok());
        let flushed = self.join_commit().and_then(|()| if has_room { self.store.flush() } else { Ok(()) });
        self.share.set(self.store.memory_bytes());
        if let Some(Obstacle { kind, message, sequence }) = self.applier.obstacle.take() {
            self.applier.progress.stopped(kind, &message, sequence);
        }
        match (ended, flushed) {
            (Ended::State(error), _) | (_, Err(error)) => Ended::State(error),
            (ended, Ok(())) => ended,
        }
    }
}
