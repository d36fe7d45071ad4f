//! The path of an event: source, batch, instance, memtable, state file.
//!
//! Three stages overlap. A task reads batches ahead into a bounded queue; the
//! thread that runs [`Pipeline::run`] applies them and publishes each as one
//! step; a blocking task commits frozen memtables. Nothing on the path of a
//! batch awaits: the thread waits only for work, for a pause after a failure,
//! and for a commit when memory is full.

mod ahead;
mod applier;
mod budget;
mod commits;
mod duplicates;
mod firings;
mod fold;
mod growth;
mod ladder;
pub mod lanes;
mod leash;
mod pace;
mod pacing;
mod parked_work;
mod parking;
mod past;
mod portion;
mod reading;
mod recording;
mod settings;
mod shuffle;
#[cfg(test)]
mod tests;
mod waits;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Batch;
use crate::effects::Role;
use crate::failure;
use crate::memory::memtables::Share;
use crate::metrics::DeploymentMetrics;
use crate::progress::Progress;
use crate::room::Use;
use crate::source::{self, Request, Source, StatusSender};
use crate::state::exceptions::Skips;
use crate::state::{self, Store, Writer};

use ahead::Inbox;
use applier::{Applier, DueBatch, Interrupt, Obstacle, Processed};
use duplicates::Duplicates;
pub use fold::{Fold, MakeFold};
use growth::Growth;
use ladder::Ladder;
pub use ladder::Policy;
pub use leash::{Leash, NO_LEASH};
pub use pace::{Ceiling, Pace, Patches, Repair, RepairError, Standing, Throttle};
use pacing::Pacing;
pub use parked_work::{ParkedOutcome, ParkedRequests, ParkedWork, ParkedWorkError, decision};
use parking::{LeftOut, Outcomes, Separated};
pub use parking::{Parking, ParkingLimits};
use portion::Portion;
use reading::Reading;
pub use settings::{Desired, Ended, Settings, WhenFull};
pub use shuffle::SINGLES;
use shuffle::Shuffle;
use waits::Wake;

/// How often a pipeline checks for room on a full disk.
const ROOM_LOOK: Duration = Duration::from_secs(1);

/// Everything that a run needs.
pub struct Pipeline {
    /// Where events come from.
    pub source: Source,
    /// What to read; `resume` comes from the store, `limits` from the settings, and `skips` from
    /// the decisions.
    pub request: Request,
    /// Which events to skip.
    pub skips: Skips,
    /// The reader reports its state here.
    pub source_status: StatusSender,
    /// Creates folds.
    pub make_fold: MakeFold,
    /// The state.
    pub store: Store,
    /// Its writer.
    pub writer: Writer,
    /// How events are recognised that a producer published twice, if at all.
    pub recognises: Option<crate::module::Inbox>,
    /// Whether the effects of this fold are sent.
    pub role: Role,
    /// Its settings.
    pub settings: Settings,
    /// It reports its progress here.
    pub progress: Arc<Progress>,
    /// Counters and histograms.
    pub metrics: DeploymentMetrics,
    /// The operator's request.
    pub control: watch::Receiver<Desired>,
    /// The request that this run answers; it ends at the next one.
    pub wanted: Desired,
    /// How far and how fast it may go.
    pub pace: watch::Receiver<Pace>,
    /// How far it may go as long as its effects are not sent.
    pub leash: Leash,
    /// It reports here that it is held at its ceiling; none while it may move.
    pub standing: watch::Sender<Option<Standing>>,
    /// The source of repairs of the state.
    pub patches: Arc<Patches>,
    /// What happens to events after their last attempt.
    pub parking: Parking,
    /// The source of requests to change what is parked.
    pub parked: Arc<ParkedRequests>,
    /// The runtime for reading and committing.
    pub runtime: Handle,
}

/// The output of the reading stage.
enum Input {
    Batch(Batch),
    Failed(source::Error),
}

impl Pipeline {
    /// Runs until it is asked to end, or can't continue. Blocking; needs a thread of its own
    /// outside the runtime. Returns the writer for the next run.
    pub fn run(self) -> (Writer, Ended) {
        let wanted = self.wanted;
        // A newer request may have brought another program, which this run does not have.
        if !matches!(wanted, Desired::Run(_)) || *self.control.borrow() != wanted {
            return (self.writer, Ended::Asked);
        }
        // From here on it may move.
        self.standing.send_replace(None);
        let mut run = self.into_run();
        // A published position is the right one even if it is not durable: this run has the
        // memtable.
        run.reading.begin(run.store.published());
        let ended = run.until_the_end();
        run.reading.end();
        let ended = run.finish(ended);
        (run.into_writer(), ended)
    }

    /// Carries out a request that changes nothing, without reading the stream: for a state that
    /// rests, with everything durable. Blocking, like a run.
    pub fn try_parked(self) -> (Writer, Result<(), state::Error>) {
        let mut run = self.into_run();
        let done = match run.serve_parked() {
            Err(Ended::State(error)) => Err(error),
            // Something else was asked for meanwhile, and the request waits for that.
            Ok(()) | Err(Ended::Asked | Ended::Failed) => Ok(()),
        };
        (run.into_writer(), done)
    }

    /// The stages of a run. Nothing is read yet.
    fn into_run(mut self) -> Run {
        self.writer.set_role(self.role);
        let mut request = self.request;
        request.limits = self.settings.batch;
        request.skips = self.skips.sequences();
        let ahead = self.settings.budget.read_ahead().clone();
        let rest = (ahead, Arc::clone(&self.progress), self.runtime.clone());
        let (reading, inbox) = Reading::new(self.source, request, self.source_status, rest);
        let share = Share::of(&self.settings.budget);
        let ladder = Ladder::new(self.settings.retry_percent, Instant::now());
        // Verification only.
        let shuffle = self.settings.shuffle.map(Shuffle::new);
        let applier = Applier {
            make_fold: self.make_fold,
            fold: None,
            writer: Some(self.writer),
            settings: self.settings,
            progress: self.progress,
            metrics: self.metrics.clone(),
            skips: self.skips,
            duplicates: self.recognises.map(Duplicates::new),
            ladder,
            portion: Portion::default(),
            waiting: None,
            host_rests_until: None,
            lack: None,
            obstacle: None,
            parking: self.parking,
            outcomes: Outcomes::default(),
        };
        Run {
            applier,
            outbox: self.store.outbox_changes(),
            is_clogged: false,
            store: self.store,
            control: self.control,
            wanted: self.wanted,
            runtime: self.runtime,
            metrics: self.metrics,
            inbox,
            reading,
            stashed: VecDeque::new(),
            has_noted_beginning: false,
            commit: None,
            flush_at: None,
            lacks: None,
            is_full: false,
            growth: Growth::default(),
            share,
            pacing: Pacing::new(self.pace, self.standing),
            leash: self.leash,
            shuffle,
            patches: self.patches,
            parked: self.parked,
            is_parking_full: false,
        }
    }
}

/// One run: waits, and passes each piece of work to the stage that does it.
struct Run {
    applier: Applier,
    store: Store,
    /// Changes when effects leave, or become durable.
    outbox: watch::Receiver<u64>,
    /// The outbox is full.
    is_clogged: bool,
    control: watch::Receiver<Desired>,
    /// The request when the run started; any other request ends it.
    wanted: Desired,
    runtime: Handle,
    metrics: DeploymentMetrics,
    inbox: Inbox,
    reading: Reading,
    /// Batches from the inbox that can't be applied yet, in order: they did not fit into the
    /// previous batch, or are beyond the ceiling.
    stashed: VecDeque<Input>,
    /// Whether the state is known to show in which stream it begins.
    has_noted_beginning: bool,
    commit: Option<JoinHandle<Result<(), state::Error>>>,
    /// When to commit at the latest.
    flush_at: Option<Instant>,
    /// The current lack of disk space, if any.
    lacks: Option<Use>,
    /// Nothing is applied before there is room again.
    is_full: bool,
    growth: Growth,
    share: Share,
    pacing: Pacing,
    leash: Leash,
    /// Chooses random batch boundaries and restarts, if requested.
    shuffle: Option<Shuffle>,
    patches: Arc<Patches>,
    parked: Arc<ParkedRequests>,
    /// A limit keeps it from parking more.
    is_parking_full: bool,
}

impl Run {
    /// Its writer, for the next run.
    fn into_writer(mut self) -> Writer {
        let writer = self.applier.writer.take();
        writer.expect("the writer comes back from every call")
    }

    fn until_the_end(&mut self) -> Ended {
        loop {
            // Releases and the ceiling first: both are due between two batches.
            let ready = self.release_as_before().and_then(|()| self.stand_if_due());
            let done = ready.and_then(|()| match self.wait() {
                Wake::Control => Err(Ended::Asked),
                Wake::Paced => {
                    self.pacing.change();
                    // The caller that changes the pace may wait for everything to be durable.
                    self.flush_at = Some(Instant::now());
                    Ok(())
                }
                Wake::Rested => Ok(()),
                Wake::LargeWanted => {
                    self.give_large_back();
                    Ok(())
                }
                Wake::Spare => {
                    // The next event gets a new instance; an idle one is worth less than one for a
                    // fold with work, or its memory.
                    self.applier.fold = None;
                    Ok(())
                }
                Wake::Input(Input::Batch(batch)) => self.apply(batch),
                // All batches before the error were applied: the queue keeps the order.
                Wake::Input(Input::Failed(error)) => {
                    let (kind, message, sequence) =
                        (error.kind(), error.to_string(), error.sequence());
                    self.applier.obstacle = Some(Obstacle {
                        kind,
                        class: None,
                        message,
                        sequence,
                    });
                    Err(Ended::Failed)
                }
                Wake::FlushDue => {
                    // The next look decides whether there is room by now.
                    self.is_full = false;
                    self.begin_commit();
                    Ok(())
                }
                Wake::Committed(result) => result.map_err(Ended::State),
            });
            // Also after a failed call: what was applied may have filled memory.
            if let Err(ended) = done.and_then(|()| self.commit_if_large()) {
                return ended;
            }
        }
    }

    /// Holds at the ceiling, once everything is durable.
    fn stand_if_due(&mut self) -> Result<(), Ended> {
        // Reported once for each change of pace.
        if self.pacing.is_standing || !self.pacing.is_at_ceiling(self.store.position()) {
            return Ok(());
        }
        // A repair is durable when it is answered, so it needs room as well.
        let must_write =
            !self.store.is_durable() || self.patches.is_waiting() || self.parked.is_waiting();
        if must_write && !self.has_room(Use::Write) {
            self.wait_for_room();
            return Ok(());
        }
        self.flush_at = None;
        self.join_commit()
            .and_then(|()| self.store.flush())
            .map_err(Ended::State)?;
        if let Some(writer) = &mut self.applier.writer
            && self
                .patches
                .apply(writer, &self.store)
                .map_err(Ended::State)?
        {
            // The instance may remember what it read before.
            self.applier.fold = None;
        }
        self.serve_parked()?;
        self.share.set(self.store.memory_bytes());
        self.pacing.is_standing = true;
        // The promise of a standing: nothing moves before the next change of pace.
        let position = self.store.position();
        self.pacing.standing.send_replace(Some(Standing {
            position,
            change: self.pacing.pace.change,
        }));
        Ok(())
    }

    fn apply(&mut self, batch: Batch) -> Result<(), Ended> {
        let mut batch = self.merge(batch);
        self.note_overlooked(&mut batch)?;
        let Some(mut batch) = self.cut(batch) else {
            return Ok(());
        };
        if self.must_put_off()? {
            self.stashed.push_front(Input::Batch(batch));
            return Ok(());
        }
        // If the state was advanced over events of others, the source may still have to learn that.
        // Positions never go back.
        batch.through = batch.through.max(self.store.position());
        // The note says that readers have seen nothing that is not durable, which this batch would
        // make untrue.
        if batch.through > self.store.position() && self.store.is_noted_settled() {
            if !self.has_room(Use::Write) {
                self.wait_for_room();
                self.stashed.push_front(Input::Batch(batch));
                return Ok(());
            }
            self.store.unsettle().map_err(Ended::State)?;
        }
        self.note_beginning(&batch)?;
        // The throttle counts from here, including the time of the call.
        let (begun, count) = (Instant::now(), batch.events.len());
        // Before the module sees the batch: what is skipped or waits never reaches it.
        let separated = self.set_aside(&batch)?;
        let interrupt = Interrupt {
            control: &self.control,
            wanted: self.wanted,
            pace: &self.pacing.receiver,
        };
        let processed = match separated {
            Separated::None => {
                let due = DueBatch {
                    batch: &batch,
                    left_out: &LeftOut::default(),
                };
                self.applier
                    .process(&due, &self.store, &interrupt, &mut self.share)?
            }
            Separated::Some(events, left_out) => {
                let due = DueBatch {
                    batch: &batch.with_only(events),
                    left_out: &left_out,
                };
                self.applier
                    .process(&due, &self.store, &interrupt, &mut self.share)?
            }
            Separated::Full => {
                self.wait_for_room();
                self.stashed.push_front(Input::Batch(batch));
                return Ok(());
            }
        };
        self.applier.report_duplicates(self.store.position());
        if self
            .shuffle
            .as_mut()
            .is_some_and(|shuffle| shuffle.restarts_after(count))
        {
            self.applier.fold = None;
            self.applier.progress.note_shuffle();
        }
        self.plan_flush(begun, count);
        self.share.set(self.store.memory_bytes());
        match processed {
            Processed::All => {
                self.pacing.pending = Some(batch.pending);
                // Only a commit proves that there is room.
                if self.lacks.is_none() && self.store.is_durable() {
                    self.applier.progress.note_room();
                }
                self.pacing.rests_until =
                    self.pacing
                        .pace
                        .throttle
                        .next(begun, count, begun.elapsed());
            }
            Processed::Through(position) => {
                // The position of the state, not of its last event: missing events in between still
                // have to be counted.
                // `batch.after` for a batch of which nothing was applied.
                let done = position.max(batch.after);
                if done < batch.through {
                    self.stashed
                        .push_front(Input::Batch(batch.split_behind(done)));
                }
            }
        }
        Ok(())
    }

    /// Whether to apply nothing now, because others need the remaining disk space or memory.
    fn must_put_off(&mut self) -> Result<bool, Ended> {
        // Snapshots of slow readers keep pages and memtables in memory that nothing can free.
        if let Some(shortage) = self.share.pinned(self.store.pinned_bytes()) {
            self.applier.progress.note_lack("busy", &shortage);
            self.applier.waiting.get_or_insert(ROOM_LOOK);
            self.wait_for_room();
            return Ok(true);
        }
        let when_full = self
            .applier
            .settings
            .disk
            .as_ref()
            .map(|(_, when_full)| *when_full);
        match when_full {
            None => Ok(false),
            // An active generation applies in memory as long as it can: reads stay fresh.
            Some(WhenFull::Wait) if self.applier.progress.serves() => Ok(self.took_its_part()),
            Some(WhenFull::Wait) if self.is_file_full() => Ok(true),
            Some(_) if self.has_room(Use::Grow) => Ok(false),
            Some(WhenFull::Wait) => {
                self.wait_for_room();
                Ok(true)
            }
            Some(WhenFull::GiveUp) => {
                let failure = self.applier.progress.now().failure;
                let message = failure
                    .map_or_else(|| "the disk is full".to_owned(), |failure| failure.message);
                self.applier.obstacle = Some(Obstacle {
                    kind: failure::STATE,
                    class: None,
                    message,
                    sequence: None,
                });
                Err(Ended::Failed)
            }
        }
    }

    /// Adds other ready events to a batch, up to the limits.
    fn merge(&mut self, mut batch: Batch) -> Batch {
        let limits = self.applier.settings.batch;
        let mut bytes = batch.bytes();
        // Stashed inputs come first, so nothing may overtake them.
        while self.stashed.is_empty() && batch.events.len() < limits.events && bytes < limits.bytes
        {
            match self.inbox.take() {
                // What was overlooked is counted only after everything before it was applied.
                Some(Input::Batch(next))
                    if next.overlooked == 0
                        && batch.events.len() + next.events.len() <= limits.events
                        && bytes + next.bytes() <= limits.bytes =>
                {
                    bytes += next.bytes();
                    batch.append(next);
                }
                // Too large, or an error: it keeps its place behind this batch.
                Some(other) => self.stashed.push_back(other),
                None => break,
            }
        }
        batch
    }

    /// Sets aside the events of a batch that may not be applied now; none if that is all of them.
    fn cut(&mut self, batch: Batch) -> Option<Batch> {
        let (within, beyond) = self.pacing.pace.ceiling.cut(batch);
        if let Some(beyond) = beyond {
            self.pacing.is_beyond = true;
            self.stashed.push_front(Input::Batch(beyond));
        }
        let (within, beyond) = self.leash.cut(within?);
        if let Some(beyond) = beyond {
            // In front of the part beyond the ceiling, which comes later in the stream.
            self.stashed.push_front(Input::Batch(beyond));
        }
        let mut batch = self.cut_at_release(within?);
        // The smaller of both, so that a verification respects its throttle.
        let mut count = self.pacing.pace.throttle.batch_events();
        if let Some(shuffle) = &mut self.shuffle {
            count = count.min(shuffle.count(batch.events.len()));
        }
        if count < batch.events.len() {
            self.stashed
                .push_front(Input::Batch(batch.split_off(count)));
        }
        Some(batch)
    }
}
