//! Deployments of one source that have caught up read it together.
//!
//! A hub has one supervised reader, and a ring of the batches that not all of its followers have
//! taken. There is no task: a follower that finds nothing new in the ring moves the reader, if
//! nobody else does, and wakes the others. So a single follower reads as fast as
//! without a hub.
//!
//! A hub saves work and decides nothing. It reads without any permission to pass over missing
//! events. If its reader finds what would stop a deployment, the hub is over, and each follower
//! opens the stream at its own position and decides for itself. So does a follower that is too
//! slow for the ring: it never slows others.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::audience::{Audience, Followers};
use super::reader::Supervised;
use super::ring::{NewBatch, Proof, Ring, Taken};
use super::trusted::Trusted;
use crate::batch::{Batch, Limits};
use crate::memory::read_ahead::ReadAhead;
use crate::position::{EventMark, StreamIdentity};
use crate::source::{Error, SourceState};
use crate::subject::SubjectSet;

/// The hubs of one source.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<Vec<(Key, Weak<Hub>)>>);

/// What readers have in common that may share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) subjects: SubjectSet,
    pub(super) wants_headers: bool,
}

/// A reader that has followers.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<State>,
    followers: Arc<Followers>,
    /// The memory for its ring, if that is limited.
    ahead: Option<ReadAhead>,
    /// There is something new in the ring, or nobody moves the reader, or the hub is over.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// None while a follower moves it, and at the end.
    reader: Option<Box<Supervised>>,
    ring: Ring,
    seats: Vec<Place>,
    seat_next: u64,
    /// What is known of the reader's session, as of its last batch.
    session: SessionFacts,
    end: Option<End>,
}

/// How many sequences a reader that joins may be ahead of the hub's reader.
const LATER_MAX: u64 = 2_048;

/// What followers have to know of the session of a shared reader.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionFacts {
    /// How many there were.
    pub(super) count: u64,
    /// When the settings of the stream were last asked for that confirmed jumps.
    pub(super) confirmed_at: Option<Instant>,
    /// Jumps that are not confirmed.
    pub(super) trusted: Trusted,
    /// The stream, as it was last proved.
    pub(super) stream: Option<Arc<StreamIdentity>>,
}

/// A follower, or one that is going to be.
#[derive(Debug)]
struct Place {
    seat: u64,
    /// What the ring must keep begins after it.
    position: u64,
    follows: bool,
    /// Whether it has found nothing, and looks again as soon as there is something.
    waits: bool,
}

/// Why the reader ended.
#[derive(Clone, Debug, Default)]
struct End {
    suspicion: Option<Suspected>,
    /// A gap in what was passed.
    passed: Option<PassedGap>,
    /// How many events were passed that turned out to be missing.
    overlooked: u64,
}

/// A problem that would stop a deployment at this position, and how many checks have shown it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspected {
    pub(super) position: u64,
    pub(super) kind: &'static str,
    pub(super) checks: u32,
}

/// The parts of [`Error::Gap`].
#[derive(Clone, Debug)]
pub(super) struct PassedGap {
    pub(super) stream: String,
    pub(super) missing: crate::source::Missing,
    pub(super) whose: crate::source::Whose,
}

/// What a follower takes along that reads alone from now on.
#[derive(Debug, Default)]
pub(super) struct Parting {
    /// Jumps up to its position that are not confirmed.
    pub(super) trusted: Trusted,
    /// What it has to check.
    pub(super) suspicion: Option<Suspected>,
    /// What it has passed although events are gone, which no check would show again.
    pub(super) passed: Option<PassedGap>,
    /// How many events it has passed that turned out to be missing.
    pub(super) overlooked: u64,
    /// Whether it was too slow.
    pub(super) is_behind: bool,
}

/// A place in a hub; dropping it leaves.
#[derive(Debug)]
pub(super) struct Seat {
    hub: Arc<Hub>,
    number: u64,
    /// The position of the follower.
    position: u64,
    /// The last event of the follower, if the reader still has to show that it read the same.
    unproved: Option<EventMark>,
    joined_at: Instant,
    /// The session of the reader at that time.
    session: u64,
}

/// What to do next for a follower.
enum Step {
    Take(Box<Taken>),
    Move(Box<Supervised>),
    Wait,
    Leave(Parting),
}

/// How a reader that has caught up gets into a hub.
pub(super) enum Entrance {
    /// It follows from now on.
    Follows(Seat),
    /// The ring keeps what it needs to follow later.
    Waits(Seat),
    /// It can't at the moment.
    Closed,
}

impl Hubs {
    /// Lets a reader that has caught up in. If it is the first one, its session becomes that of the
    /// hub. `before` is its seat if it waits for a place in a hub.
    pub(super) fn enter(
        &self,
        key: &Key,
        alone: &mut Supervised,
        before: Option<Seat>,
    ) -> Entrance {
        // Locked all the time, so that two do not make two hubs.
        let mut hubs = self.0.lock();
        hubs.retain(|(_, hub)| hub.strong_count() > 0);
        let open = hubs
            .iter()
            .filter(|(known, _)| known == key)
            .filter_map(|(_, hub)| hub.upgrade())
            .find(|hub| !hub.is_over());
        match open {
            Some(hub) => hub.admit(alone, before),
            None => match Hub::found(alone) {
                Some(seat) => {
                    hubs.push((key.clone(), Arc::downgrade(&seat.hub)));
                    Entrance::Follows(seat)
                }
                None => Entrance::Closed,
            },
        }
    }
}

impl Hub {
    /// A hub that takes over the session of its first follower.
    fn found(alone: &mut Supervised) -> Option<Seat> {
        let ahead = alone.ahead().cloned();
        let position = alone.position()?;
        let status = alone.status()?.clone();
        let followers = Arc::new(Followers::new(status.borrow().clone()));
        followers.add(0, status);
        let last = alone.last();
        let reader = alone.hand_over(Audience::Followers(Arc::clone(&followers)));
        let session = reader.session_facts();
        let count = session.count;
        let place = Place {
            seat: 0,
            position,
            follows: true,
            waits: false,
        };
        let state = State {
            reader: Some(Box::new(reader)),
            ring: Ring::new(position, last),
            seats: vec![place],
            seat_next: 1,
            session,
            end: None,
        };
        let hub = Arc::new(Self {
            state: Mutex::new(state),
            followers,
            ahead,
            changed: Notify::new(),
        });
        Some(Seat::new(hub, 0, position, count))
    }

    fn is_over(&self) -> bool {
        self.state.lock().end.is_some()
    }

    /// Lets a reader in, if the hub's reader has read the same stream, and has what follows.
    fn admit(self: Arc<Self>, alone: &mut Supervised, before: Option<Seat>) -> Entrance {
        let (Some(position), Some(status)) = (alone.position(), alone.status().cloned()) else {
            return Entrance::Closed;
        };
        let is_reading = self.followers.state() == SourceState::Reading;
        let mark = alone.mark();
        let mut state = self.state.lock();
        if state.end.is_some() {
            return Entrance::Closed;
        }
        let is_same_stream = state.session.stream == alone.session_facts().stream;
        let may_follow = is_reading && is_same_stream && position >= state.ring.start();
        let proof = match may_follow {
            true => state.ring.prove(mark.as_ref()),
            false => Proof::None,
        };
        // It would have to read all of that again over a reader that others may keep waiting.
        if let Some(mark) = &mark
            && proof == Proof::Later
            && mark.sequence - state.ring.end() > LATER_MAX
        {
            return Entrance::Closed;
        }
        let number = state.seat_next;
        state.seat_next += 1;
        let unproved = mark.filter(|_| proof == Proof::Later);
        // The ring keeps the event that proves it.
        let kept = unproved
            .as_ref()
            .map_or(position, |mark| position.min(mark.sequence - 1));
        state.seats.push(Place {
            seat: number,
            position: kept,
            follows: proof != Proof::None,
            waits: false,
        });
        let session = state.session.count;
        drop(state);
        // Only now: until then the ring has kept for it what it needs now.
        drop(before);
        if proof == Proof::None {
            return Entrance::Waits(Seat::new(self, number, position, session));
        }
        self.followers.add(number, status);
        alone.let_go();
        let mut seat = Seat::new(self, number, position, session);
        seat.unproved = unproved;
        Entrance::Follows(seat)
    }
}

impl State {
    /// What is next for a follower. `own` are its jumps that were not confirmed when it joined.
    fn step(&mut self, seat: &mut Seat, limits: Limits, own: &mut Trusted) -> Step {
        let step = self.find(seat, limits, own);
        // Who moves the reader waits as well.
        let waits = matches!(step, Step::Wait | Step::Move(_));
        let mut places = self.seats.iter_mut();
        if let Some(place) = places.find(|place| place.seat == seat.number) {
            place.waits = waits;
        }
        self.ring.looked(seat.number);
        step
    }

    fn find(&mut self, seat: &mut Seat, limits: Limits, own: &mut Trusted) -> Step {
        if self.session.confirmed_at > Some(seat.joined_at) {
            own.clear();
        }
        // They can only be doubted by a session that knows them.
        let is_doubtful = !own.is_empty() && self.session.count != seat.session;
        let is_behind = seat.position < self.ring.start();
        if is_behind || is_doubtful || !self.has_proved(seat) {
            return Step::Leave(Parting {
                is_behind,
                ..self.parting(seat)
            });
        }
        if seat.unproved.is_none()
            && let Some(taken) = self.ring.take(seat.position, limits)
        {
            self.advance(seat, taken.batch.through);
            return Step::Take(Box::new(taken));
        }
        if self.end.is_some() {
            return Step::Leave(self.parting(seat));
        }
        self.reader.take().map_or(Step::Wait, Step::Move)
    }

    /// Whether nothing shows that a follower has read another stream; proves it if that is possible
    /// by now.
    fn has_proved(&mut self, seat: &mut Seat) -> bool {
        let Some(mark) = &seat.unproved else {
            return true;
        };
        match self.ring.prove(Some(mark)) {
            Proof::Later => true,
            Proof::None => false,
            Proof::Same => {
                seat.unproved = None;
                self.advance(seat, seat.position);
                true
            }
        }
    }

    /// Moves a follower, and drops what nobody needs.
    fn advance(&mut self, seat: &mut Seat, position: u64) {
        seat.position = position;
        if let Some(place) = self
            .seats
            .iter_mut()
            .find(|place| place.seat == seat.number)
        {
            place.position = position;
        }
        self.trim();
    }

    fn trim(&mut self) {
        // One that is behind the ring reads alone once it looks again, and needs nothing of it.
        let start = self.ring.start();
        let positions = self.seats.iter().map(|place| place.position);
        let lowest = positions.filter(|position| *position >= start).min();
        self.ring.trim(lowest.unwrap_or(u64::MAX));
    }

    fn parting(&self, seat: &Seat) -> Parting {
        // A follower that has not passed all of it reads the rest again, and finds out by itself.
        let has_passed = seat.unproved.is_none() && seat.position >= self.ring.end();
        let end = self.end.clone().filter(|_| has_passed).unwrap_or_default();
        // What has become of these jumps is known by now.
        let trusted = if end.is_about_passed() {
            Trusted::default()
        } else {
            let mut trusted = self.session.trusted.clone();
            trusted.cut(seat.position);
            trusted
        };
        Parting {
            trusted,
            suspicion: end.suspicion,
            passed: end.passed,
            overlooked: end.overlooked,
            is_behind: false,
        }
    }
}

impl Seat {
    fn new(hub: Arc<Hub>, number: u64, position: u64, session: u64) -> Self {
        Self {
            hub,
            number,
            position,
            unproved: None,
            joined_at: Instant::now(),
            session,
        }
    }

    /// What follows its position, as soon as there is something; or why it has to read alone.
    /// Cancel-safe: nothing is taken before it returns, and the reader stays in the hub.
    pub(super) async fn next(
        &mut self,
        limits: Limits,
        own: &mut Trusted,
    ) -> Result<Taken, Parting> {
        let hub = Arc::clone(&self.hub);
        loop {
            let changed = hub.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that no change is missed between look and wait.
            changed.as_mut().enable();
            let step = hub.state.lock().step(self, limits, own);
            match step {
                Step::Take(taken) => return Ok(*taken),
                Step::Leave(parting) => return Err(parting),
                Step::Wait => changed.await,
                Step::Move(reader) => {
                    let mut moved = Moved {
                        hub: &hub,
                        reader: Some(reader),
                    };
                    if let Some(taken) = moved.read(self, limits).await {
                        return Ok(taken);
                    }
                }
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.followers.remove(self.number);
        let mut state = self.hub.state.lock();
        state.seats.retain(|place| place.seat != self.number);
        state.ring.looked(self.number);
        state.trim();
        let mut unused = None;
        if !state.seats.iter().any(|place| place.follows) {
            // The next reader that has caught up makes a new one.
            state.end.get_or_insert_default();
            unused = state.reader.take();
        }
        drop(state);
        // Without the lock: it deletes its consumer.
        drop(unused);
    }
}

/// The reader of a hub while a follower moves it. Dropping it, as when the follower stops, leaves it
/// to another one.
struct Moved<'a> {
    hub: &'a Hub,
    reader: Option<Box<Supervised>>,
}

impl Moved<'_> {
    /// Reads the next batch into the ring. If there is one follower only, it gets it at once.
    async fn read(&mut self, seat: &mut Seat, limits: Limits) -> Option<Taken> {
        let reader = self.reader.as_mut()?;
        let read = reader.next().await;
        let repaired = reader.take_repaired();
        let batch = match read {
            Ok(batch) => batch,
            Err(error) => {
                let end = End::of(&error, reader.position());
                self.end(end);
                return None;
            }
        };
        let last = reader.last();
        let mut state = self.hub.state.lock();
        let is_alone = state.seats.len() == 1
            && seat.unproved.is_none()
            && seat.position == batch.after
            && batch.fits(limits);
        if is_alone {
            state.ring.pass(batch.through, last.clone());
            state.advance(seat, batch.through);
            return Some(Taken {
                batch,
                last: Some(last),
                repaired,
            });
        }
        let overlooked = batch.overlooked;
        // What was overlooked may be all that it has.
        if batch.through > batch.after {
            let batch = Batch {
                overlooked: 0,
                ..batch
            };
            let read = NewBatch {
                batch,
                last,
                repaired,
            };
            let State { ring, seats, .. } = &mut *state;
            let waiting = seats.iter().filter(|place| place.waits);
            ring.push(
                read,
                self.hub.ahead.as_ref(),
                waiting.map(|place| place.seat),
            );
        }
        drop(state);
        if overlooked > 0 {
            // Each follower counts that for itself, and may have to stop.
            let failed = reader.take_failed();
            let end = failed.map(|error| End::of(&error, reader.position()));
            self.end(End {
                overlooked,
                ..end.unwrap_or_default()
            });
        }
        None
    }

    /// Ends the hub: each follower reads alone from now on.
    fn end(&mut self, end: End) {
        let reader = self.reader.take();
        let mut state = self.hub.state.lock();
        if let Some(reader) = &reader {
            let mut facts = reader.session_facts();
            // The reader has found out what became of its jumps, and forgotten them. A follower that
            // has passed some of them, and not all, has to find out for itself.
            if end.is_about_passed() {
                facts.trusted = std::mem::take(&mut state.session.trusted);
            }
            state.session = facts;
        }
        state.end = Some(end);
        drop(state);
        // Without the lock: it deletes its consumer.
        drop(reader);
        self.hub.changed.notify_waiters();
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else {
            return;
        };
        let mut state = self.hub.state.lock();
        state.session = reader.session_facts();
        state.reader = Some(reader);
        drop(state);
        self.hub.changed.notify_waiters();
    }
}

impl End {
    /// Whether it is about events that were passed.
    fn is_about_passed(&self) -> bool {
        self.passed.is_some() || self.overlooked > 0
    }

    /// The end of a reader with this error at a position.
    fn of(error: &Error, position: Option<u64>) -> Self {
        let position = position.unwrap_or_default();
        let passed = match error {
            Error::Gap {
                stream,
                missing,
                whose,
            } if missing.from <= position => Some(PassedGap {
                stream: stream.clone(),
                missing: *missing,
                whose: *whose,
            }),
            _ => None,
        };
        let suspicion = passed.is_none().then(|| Suspected {
            position,
            kind: error.kind(),
            // Each follower makes the last check itself.
            checks: error.checks() - 1,
        });
        Self {
            suspicion,
            passed,
            overlooked: 0,
        }
    }
}

impl PassedGap {
    /// As an error.
    pub(super) fn error(self) -> Error {
        let Self {
            stream,
            missing,
            whose,
        } = self;
        Error::Gap {
            stream,
            missing,
            whose,
        }
    }
}
