//! Firing timers: publishes a firing for each timer that is due, into the stream that its handler
//! reads.
//!
//! One task per owner, alive while its state is open. It reads durable timers only, the first ones
//! by time. It decides nothing: the fold removes a timer when it meets the firing. So a firing that
//! is stored twice, or by two hosts, or of which the answer is lost, fires a timer once. While a
//! firing is parked, its timer stays pending, and no other one is published for it.

mod ready;
mod status;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::effects;
use crate::log::{Expectation, Log, NewEvent};
use crate::metrics::DeploymentMetrics;
use crate::source::jetstream::{Outgoing, PublishError, Publisher};
use crate::source::{Outlet, Source};
use crate::state::{self, Due, Parked, Store};
use crate::timers::{self, Firing, Timer, What};

use crate::clock::{Clock, Clocks, Look};
use status::Change;
pub(crate) use status::Status;
use sweep::{LOOPS_MAX, Part, Sweep, Turns};

/// Most firings published at once, besides one of a loop.
const FIRINGS_MAX: usize = 256;
/// Most firings that are published and not folded durably; a fold that is behind gets no more.
const UNDER_WAY_MAX: usize = 4_096;
/// Pause after trouble, and before a timer whose firing was ignored fires again: it doubles up to
/// the longest one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Most firings that the stream refuses before the others wait as well.
const REFUSALS_MAX: usize = 16;
/// Most characters of a timer's name in a report.
const NAME_MAX: usize = 60;
/// The pause between timers of a loop.
const LOOP_PAUSE: Duration = Duration::from_secs(1);
/// The pause between parts of the pending timers: millions may be in loops, and should not cost a
/// whole processor.
const PART_PAUSE: Duration = Duration::from_millis(5);
/// How long the task sleeps at most while a timer is pending: nothing announces that the clock was
/// set.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What a handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It handles nothing at the moment.
    Rests,
    /// Events wait that may cancel timers.
    CatchesUp,
    /// It handles events as they come.
    Lives,
}

/// What the task needs.
pub(crate) struct Parts {
    /// Name of the deployment.
    pub(crate) deployment: String,
    /// The state that has the timers.
    pub(crate) store: Store,
    /// The source that the handler reads, or why timers wait, if that is known.
    pub(crate) source: Arc<dyn Fn() -> Result<Source, Option<&'static str>> + Send + Sync>,
    /// What the handler does.
    pub(crate) activity: Arc<dyn Fn() -> Activity + Send + Sync>,
    /// Changes when an operator wants something else.
    pub(crate) changed: watch::Receiver<u64>,
    /// Where it reports.
    pub(crate) status: Arc<Status>,
    /// Counters.
    pub(crate) metrics: DeploymentMetrics,
    /// The clocks of this machine.
    pub(crate) clocks: Clocks,
}

/// Fires timers until it is dropped.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn start(parts: Parts, runtime: &Handle) -> Self {
        // What was fired while the effects belonged to others is not reported.
        drop(parts.store.take_fired());
        let work = Work {
            subject: timers::subject(&parts.deployment),
            checkpoints: parts.store.checkpoints(),
            parts,
            under_way: BTreeMap::new(),
            refused: BTreeMap::new(),
            outlet: None,
            is_stored: false,
            clock: Clock::default(),
            is_bare: false,
            looped_at: None,
            sweep: Sweep::default(),
            turns: Turns::default(),
        };
        Self(runtime.spawn(work.run()))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A firing that is stored in the stream.
struct Published {
    sequence: u64,
    /// What had set the timer, as the timer says.
    set_at: Option<u64>,
    /// How often the timer's firings were ignored before.
    attempt: u32,
    /// When it was published.
    at: Instant,
}

/// A firing that the stream refuses, for example because its name is too long. It holds no other
/// back.
struct Refused {
    /// How often it was refused before.
    attempt: u32,
    /// When it was refused.
    at: Instant,
    why: String,
}

/// A firing to publish.
struct Ready {
    due: Due,
    attempt: u32,
    timer: Timer,
}

struct Work {
    parts: Parts,
    /// Of its firings.
    subject: String,
    checkpoints: watch::Receiver<Option<crate::position::Checkpoint>>,
    /// Firings whose timers are still pending in the file.
    under_way: BTreeMap<Due, Published>,
    /// Firings that the stream refuses, while their timers are pending.
    refused: BTreeMap<Due, Refused>,
    outlet: Option<Outlet>,
    /// Whether the stream takes firings, as far as is known.
    is_stored: bool,
    clock: Clock,
    /// The last attempt failed. The next firings go without headers, which nothing depends on: with
    /// them, they may be larger than the stream takes.
    is_bare: bool,
    /// When the last timer of a loop fired.
    looped_at: Option<Instant>,
    /// What is known of the pending timers since it began with the first one.
    sweep: Sweep,
    turns: Turns,
}

impl Work {
    async fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            // Before the look at the timers, so that a change after it ends the rest.
            self.checkpoints.borrow_and_update();
            self.parts.changed.borrow_and_update();
            self.report_fired();
            let source = match (self.parts.source)() {
                // A handler that rests would not fold the firing.
                Ok(source) if (self.parts.activity)() != Activity::Rests => source,
                known => {
                    let why = known
                        .err()
                        .flatten()
                        .filter(|_| self.parts.store.pending_timers() > 0);
                    self.parts.status.troubled(why.map(str::to_owned));
                    self.rest(SLEEP_MAX).await;
                    continue;
                }
            };
            let part = match self.pending().await {
                Ok(part) => part,
                Err(error) => {
                    self.parts.status.troubled(Some(error.to_string()));
                    self.rest(PAUSE.1).await;
                    continue;
                }
            };
            self.report_pending(&part);
            // Only if something may fire: an idle owner should not keep a connection.
            if !part.timers.is_empty() {
                self.compare_clocks(&source).await;
            }
            let shown = (self.parts.clocks)();
            let now_ns = match self.clock.look(shown.wall_ns, shown.steady) {
                Look::Now(now_ns) => now_ns,
                Look::Jumped(settles) => {
                    // It has not looked at what may fire in this part.
                    self.sweep = Sweep::default();
                    self.rest(settles.min(SLEEP_MAX)).await;
                    continue;
                }
            };
            let until_ns = self.due_until(now_ns);
            let (ready, sleep) = self.ready(part, until_ns);
            if ready.is_empty() {
                self.parts.status.troubled(self.refusal());
                pause = PAUSE.0;
                self.rest(sleep).await;
                continue;
            }
            let published = match self.still_pending(ready).await {
                // A commit changed them: the next look finds what is pending now.
                Ok(ready) if ready.is_empty() => {
                    self.rest(PAUSE.0).await;
                    continue;
                }
                Ok(ready) => self.publish(&source, ready).await,
                Err(error) => Err(error.to_string()),
            };
            self.is_bare = published.is_err();
            match published {
                Ok(()) => {
                    self.parts.status.troubled(self.refusal());
                    pause = PAUSE.0;
                }
                Err(trouble) => {
                    self.parts.status.troubled(Some(trouble));
                    self.rest(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    fn report_fired(&self) {
        for late in self.parts.store.take_fired() {
            self.parts
                .metrics
                .timer_lateness
                .observe(Duration::from_nanos(late).as_secs_f64());
        }
    }

    fn report_pending(&mut self, part: &Part) {
        let (store, subject) = (&self.parts.store, &self.subject);
        // The timer of a parked firing may be fired by an operator, and is not late because of its
        // host.
        let is_parked = |due: &Due| store.is_parked_firing(subject, &due.name);
        self.sweep.see(part, is_parked);
        // The longest row may be in the next part.
        if !part.is_cut {
            self.parts.status.set_next(self.sweep.next_ns);
            self.note_loop(self.sweep.longest.as_ref());
        }
    }

    /// Finds out how far the clock of a server is ahead, now and then. Without an answer it stays
    /// as it was: the fold ignores what comes too early.
    async fn compare_clocks(&mut self, source: &Source) {
        // Taken out, because the call borrows it across an await.
        let outlet = self.outlet.take().unwrap_or_else(|| source.outlet());
        let before = (self.parts.clocks)();
        if outlet.has_other_clock() && self.clock.must_compare(before.steady) {
            // Without an answer the comparison is made again later; timers fire by the clock that
            // is known.
            let time_ns = outlet.time_ns().await;
            let after = (self.parts.clocks)();
            match time_ns {
                Some(time_ns) => {
                    let (before_ns, after_ns) = (before.wall_ns, after.wall_ns);
                    self.clock
                        .compared(time_ns, before_ns, after_ns, after.steady);
                }
                None => self.clock.not_compared(after.steady),
            }
        }
        self.outlet = Some(outlet);
    }

    /// The next durable timers: as many as are under way and some more, and timers of loops among them.
    async fn pending(&mut self) -> Result<Part, state::Error> {
        // Their firings have been folded, and yet they may be pending: set again to the same time.
        let folded = self.parts.store.durable_position();
        let passed = self.under_way.iter();
        let passed = passed.filter(|(_, published)| published.sequence <= folded);
        let passed: Vec<Due> = passed.map(|(due, _)| due.clone()).collect();
        let (store, max) = (
            self.parts.store.clone(),
            // One more than may be published, to know when the next one is due, whatever is in
            // front of it.
            self.under_way.len()
                + self.refused.len()
                + self.parts.store.parked_firings()
                + FIRINGS_MAX
                + 1,
        );
        let after = self.sweep.after.clone();
        let read = move || {
            let found = store.still_pending(&passed)?;
            let found = passed.into_iter().zip(found).collect::<Vec<_>>();
            let timers = store.timers_among_loops(after.as_ref(), max, LOOPS_MAX)?;
            Ok((found, Part::new(timers, after, store.timers_in_a_row_max())))
        };
        let (found, part) = state::joined(tokio::task::spawn_blocking(read).await)?;
        for (due, timer) in found {
            let known = self.under_way.get(&due).map(|known| known.set_at);
            // Its firing was another one's, so it has not been ignored.
            if timer.is_some_and(|timer| known != Some(timer.set_at)) {
                self.under_way.remove(&due);
            }
        }
        Ok(part)
    }

    /// The time up to which timers fire. Events that a handler is behind with may cancel those that
    /// are due after the last event that it has handled.
    fn due_until(&self, now_ns: u64) -> u64 {
        if (self.parts.activity)() == Activity::Lives {
            // Behind, it fires only what its last event has passed: later ones may cancel the rest.
            return now_ns;
        }
        let checkpoint = self.parts.store.checkpoint();
        let last = checkpoint.and_then(|checkpoint| checkpoint.last_event);
        // No event yet: nothing is late by the clock of the stream.
        last.map_or(0, |event| event.time_ns).min(now_ns)
    }

    /// Reads the timers that are still pending at their time.
    async fn still_pending(&self, ready: Vec<(Due, u32)>) -> Result<Vec<Ready>, state::Error> {
        let store = self.parts.store.clone();
        let read = move || -> Result<Vec<Ready>, state::Error> {
            let timers: Vec<Due> = ready.iter().map(|(due, _)| due.clone()).collect();
            let found = store.still_pending(&timers)?;
            let found = ready.into_iter().zip(found);
            let ready = found.filter_map(|((due, attempt), timer)| {
                timer.map(|timer| Ready {
                    due,
                    attempt,
                    timer,
                })
            });
            Ok(ready.collect())
        };
        state::joined(tokio::task::spawn_blocking(read).await)
    }

    /// Publishes firings, in order; an error says why some are not known to be stored.
    async fn publish(&mut self, source: &Source, ready: Vec<Ready>) -> Result<(), String> {
        let outlet = self.outlet.take().unwrap_or_else(|| source.outlet());
        let outcome = match &outlet {
            Outlet::Log(embedded) => match embedded.log() {
                Ok(log) => self.append(log, ready).await,
                Err(error) => Err(error.to_string()),
            },
            Outlet::Stream(publisher) => self.send(publisher, &source.stream(), ready).await,
        };
        self.outlet = Some(outlet);
        outcome
    }

    async fn append(&mut self, log: Log, ready: Vec<Ready>) -> Result<(), String> {
        let events: Vec<NewEvent> = ready.iter().map(|ready| self.event(ready)).collect();
        let appended =
            tokio::task::spawn_blocking(move || log.append(&events, &Expectation::default())).await;
        let appended = appended.map_err(|error| error.to_string())?;
        let appended = appended.map_err(|error| error.to_string())?;
        for (ready, sequence) in ready.into_iter().zip(appended.sequences) {
            self.note(ready, sequence);
        }
        Ok(())
    }

    async fn send(
        &mut self,
        publisher: &Publisher,
        stream: &str,
        ready: Vec<Ready>,
    ) -> Result<(), String> {
        // The first ones, and those that did not come back.
        if !self.is_stored || ready.iter().any(|ready| ready.attempt > 0) {
            let stores = publisher.stores(&self.subject).await;
            self.is_stored = stores.map_err(|error| error.to_string())?;
            if !self.is_stored {
                let subject = &self.subject;
                return Err(format!(
                    "stream {stream} stores no messages under subject {subject}, so no timer can fire; add it to the \
                     subjects of the stream, and leave it out of its subject transform; a mirror has no subjects, so let the \
                     handler read a stream that has the original as a source"
                ));
            }
        }
        let mut refusals = 0;
        for ready in ready {
            let event = self.event(&ready);
            let message = Outgoing {
                id: event.id.expect("a firing has an id"),
                subject: event.subject,
                headers: event.headers,
                data: bytes::Bytes::copy_from_slice(event.data.as_bytes()),
                ..Outgoing::default()
            };
            // One at a time: their order is that of their times.
            match publisher.publish(&message).await {
                Ok(confirmed) => self.note(ready, confirmed.sequence),
                // It may be this one alone that the stream refuses.
                Err(PublishError::NotStored(why)) if publisher.is_up() => {
                    refusals += 1;
                    self.note_refused(ready.due, why.clone());
                    // It may be any, and each attempt costs the server an answer.
                    if refusals == REFUSALS_MAX {
                        return Err(why);
                    }
                }
                // Those before it are noted, and not published again.
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Lets the others go before a firing that is refused.
    fn note_refused(&mut self, due: Due, why: String) {
        // As many as are read with each look: beyond that the stream is likely to refuse any.
        if self.refused.len() >= UNDER_WAY_MAX && !self.refused.contains_key(&due) {
            return;
        }
        let before = self.refused.get(&due);
        let refused = Refused {
            attempt: before.map_or(0, |before| before.attempt.saturating_add(1)),
            at: Instant::now(),
            why,
        };
        self.refused.insert(due, refused);
    }

    /// Why a timer can't fire although others may.
    fn refusal(&self) -> Option<String> {
        let (due, refused) = self.refused.first_key_value()?;
        let name: String = due.name.chars().take(NAME_MAX).collect();
        let more = match self.refused.len() - 1 {
            0 => String::new(),
            more => format!("; so are {more} more"),
        };
        Some(format!(
            "the firing of timer {name:?} is refused: {}{more}",
            refused.why
        ))
    }

    /// Reports the timer of the longest row, if that is a loop. Its end is in the commit that has
    /// no such timer any more.
    fn note_loop(&self, longest: Option<&Due>) {
        let max = self.parts.store.timers_in_a_row_max();
        let found = longest.filter(|due| due.depth >= max);
        let named = found.map(|due| (due.name.as_str(), due.depth));
        if self.parts.status.set_loop(named) == Change::Begun {
            tracing::warn!(
                deployment = self.parts.deployment,
                timer = named.map(|(name, _)| name),
                "timers set each other for less than a second later, {max} times in a row, which is a loop; from now on \
                 one of them fires a second; correct the module, or drop the timer with `foldstream timers drop`"
            );
        }
    }

    fn note(&mut self, ready: Ready, sequence: u64) {
        let Ready {
            due,
            attempt,
            timer,
        } = ready;
        let published = Published {
            sequence,
            set_at: timer.set_at,
            attempt,
            at: Instant::now(),
        };
        self.refused.remove(&due);
        self.under_way.insert(due, published);
    }

    /// A firing. Its id spares the stream a firing that is published again after a crash.
    fn event(
        &self,
        Ready {
            due,
            attempt,
            timer,
        }: &Ready,
    ) -> NewEvent {
        let Due { at_ns, name, .. } = due;
        let firing = Firing {
            name: name.clone(),
            at_ns: *at_ns,
            key: Some(Parked::name_of(timer.key.clone())),
            what: What::Due,
            lineage: None,
        };
        let deployment = &self.parts.deployment;
        NewEvent {
            subject: self.subject.clone(),
            kind: Some(Firing::KIND.to_owned()),
            id: Some(timers::id(deployment, name, timer, *attempt)),
            time_ns: None,
            headers: if self.is_bare || self.refused.contains_key(due) {
                Vec::new()
            } else {
                effects::caused_by(&timer.headers)
            },
            data: firing.data(),
        }
    }

    /// Waits for a commit, for another request, or until a time has passed. Every arm only
    /// observes.
    async fn rest(&mut self, sleep: Duration) {
        let store = self.parts.store.clone();
        let over = async {
            // Nothing is pending, so only a commit or a request can bring something.
            if store.pending_timers() == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(sleep).await;
        };
        tokio::select! {
            // A channel without a sender is ready at once and for ever; only time ends the wait then.
            biased;
            changed = self.parts.changed.changed() => if changed.is_err() { std::future::pending().await },
            changed = self.checkpoints.changed() => if changed.is_err() { std::future::pending().await },
            () = over => {}
        }
    }
}
