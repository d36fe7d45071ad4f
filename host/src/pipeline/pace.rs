//! How far and how fast a pipeline may go: its ceiling and its throttle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::state::{self, Patch, Store, Writer};

/// A throttled pipeline applies at most the events of this fraction of a second at once, so that it
/// progresses evenly.
const SLICES_PER_SECOND: u64 = 20;

/// How far a pipeline may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ceiling {
    /// As far as there are events.
    #[default]
    None,
    /// Through this sequence. A pipeline that is already beyond it stays at its position.
    Position(u64),
    /// Through the last event stored at or before this time, in nanoseconds since the Unix epoch;
    /// through all events if no later event exists.
    Time(u64),
}

impl Ceiling {
    /// Splits off the part of a batch beyond the ceiling; the first part is none if nothing may be
    /// applied.
    pub(super) fn cut(self, mut batch: Batch) -> (Option<Batch>, Option<Batch>) {
        match self {
            Self::None => (Some(batch), None),
            Self::Position(position) if batch.through <= position => (Some(batch), None),
            // The rest keeps the events after the position, and the claim up to where the stream
            // was read.
            Self::Position(position) => {
                let rest = batch.split_behind(position);
                (Some(batch), Some(rest))
            }
            // Up to the first younger event: times may go back when servers or their clocks change.
            Self::Time(time_ns) => match first_younger(&batch, time_ns) {
                // Nothing before the moment is left in this batch.
                0 if !batch.events.is_empty() => (None, Some(batch)),
                within if within < batch.events.len() => {
                    let rest = batch.split_off(within);
                    (Some(batch), Some(rest))
                }
                _ => (Some(batch), None),
            },
        }
    }
}

/// How many events of a batch come before the first younger one.
fn first_younger(batch: &Batch, time_ns: u64) -> usize {
    batch
        .events
        .iter()
        .position(|event| event.time_ns > time_ns)
        .unwrap_or(batch.events.len())
}

/// How fast a pipeline may go. Without limits, as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Most events per second, at least 1.
    pub events_per_second: Option<u64>,
    /// Share of one core that applying may take, in percent, 1 to 100.
    pub cpu_percent: Option<u8>,
}

impl Throttle {
    /// Most events in one batch, so that the pauses between batches stay short.
    pub(super) fn batch_events(&self) -> usize {
        let slice = self
            .events_per_second
            .map(|rate| (rate / SLICES_PER_SECOND).max(1));
        slice.map_or(usize::MAX, |slice| {
            usize::try_from(slice).unwrap_or(usize::MAX)
        })
    }

    /// When the next batch may be applied, after a batch of this many events that took this long.
    pub(super) fn next(&self, begun: Instant, events: usize, took: Duration) -> Option<Instant> {
        let by_rate = self
            .events_per_second
            .map(|rate| begun + Duration::from_secs_f64(events as f64 / rate as f64));
        let by_share = self
            .cpu_percent
            .map(|percent| begun + took.mul_f64(100.0 / f64::from(percent.clamp(1, 100))));
        // `None` is smaller than any time, so a single limit counts alone.
        by_rate.max(by_share)
    }
}

/// The requested pace of a pipeline, in addition to whether it runs at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How far it may go.
    pub ceiling: Ceiling,
    /// How fast it may go.
    pub throttle: Throttle,
    /// Number of the latest change: a pipeline that reports its position says which change it has seen.
    pub change: u64,
}

/// Where a pipeline is held, with everything that it applied durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The last sequence that its state reflects.
    pub position: u64,
    /// The change of pace that it has seen; it does not move before it sees another one.
    pub change: u64,
}

/// A change of a state by other means than folding, carried out by the owner of the writer: while
/// the pipeline is held at its ceiling, or does not run.
#[derive(Debug, Default)]
pub struct Patches(parking_lot::Mutex<Option<Pending>>);

/// Why a state was not changed by other means than folding.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The change exceeds a limit; nothing was changed.
    #[error(transparent)]
    Limit(state::Error),
    /// The state failed, and is reopened at its last checkpoint.
    #[error(transparent)]
    State(state::Error),
    /// The owner of the state was busy for too long; nothing was changed.
    #[error("the state could not be changed within {} s; try again", .0.as_secs())]
    Late(Duration),
    /// The state was closed before it could be changed.
    #[error("the state was closed meanwhile; try again")]
    Closed,
}

/// A requested repair. Dropping it before it begins withdraws it, because its premises may no
/// longer hold.
#[derive(Debug)]
pub struct HandedOver {
    patches: Arc<Patches>,
    done: tokio::sync::oneshot::Receiver<Result<(), RepairError>>,
}

impl HandedOver {
    /// Waits until it is done, or the state was closed before. Cancel-safe: a received value is not
    /// lost.
    pub async fn done(&mut self) -> Result<(), RepairError> {
        (&mut self.done).await.unwrap_or(Err(RepairError::Closed))
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        // Closed first: a repair that ends after this sees that nobody wants it.
        self.done.close();
        // A repair that has begun is not in the slot any more, and runs to its end.
        drop(
            self.patches
                .0
                .lock()
                .take_if(|pending| pending.done.is_closed()),
        );
    }
}

/// The repair to carry out.
#[derive(Debug)]
pub enum Repair {
    /// Replace entries. They may lack this many events that the stream has lost, as accepted.
    Patch(Patch, u64),
    /// Record that the state lacks at least this many events, as accepted.
    Missing(u64),
    /// Record that nothing up to this position would have changed the state.
    Advance(u64),
}

/// A repair, and the one who waits for it.
#[derive(Debug)]
struct Pending {
    repair: Repair,
    done: tokio::sync::oneshot::Sender<Result<(), RepairError>>,
}

impl Patches {
    /// Requests a repair; the returned value reports its outcome.
    pub fn hand_over(self: &Arc<Self>, repair: Repair) -> HandedOver {
        let (done, receiver) = tokio::sync::oneshot::channel();
        *self.0.lock() = Some(Pending { repair, done });
        HandedOver {
            patches: Arc::clone(self),
            done: receiver,
        }
    }

    /// Whether a repair is requested and not done yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Withdraws a repair that has not begun; returns whether there was one.
    pub fn withdraw(&self) -> bool {
        self.0.lock().take().is_some()
    }

    /// Carries out the requested repair, durably; returns whether it changed entries. Errors of the
    /// state are also returned to the caller.
    pub fn apply(&self, writer: &mut Writer, store: &Store) -> Result<bool, state::Error> {
        let Some(Pending { repair, done }) = self
            .0
            .lock()
            .take()
            .filter(|pending| !pending.done.is_closed())
        else {
            return Ok(false);
        };
        let repaired = match &repair {
            Repair::Patch(patch, missing) => writer.patch(patch, *missing),
            Repair::Missing(missing) => {
                writer.note_missing(*missing);
                Ok(())
            }
            Repair::Advance(position) => {
                writer.advance(*position);
                Ok(())
            }
        };
        // Durable before it is answered.
        let applied = repaired.and_then(|()| store.flush());
        let (answer, outcome) = match applied {
            Ok(()) => (Ok(()), Ok(())),
            // Refused before anything changed, so the state is sound.
            Err(error @ state::Error::Limit { .. }) => (Err(RepairError::Limit(error)), Ok(())),
            Err(error) => (Err(RepairError::State(error.clone())), Err(error)),
        };
        // The requester may have stopped waiting.
        let _ = done.send(answer);
        outcome.map(|()| matches!(repair, Repair::Patch(..)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Payload};
    use crate::position::StreamIdentity;

    /// Events 2, 4, 6 of a batch through 7, each stored at ten times its sequence.
    fn batch() -> Batch {
        let event = |sequence: u64| Event {
            sequence,
            time_ns: sequence * 10,
            subject: "s".into(),
            kind: "s".into(),
            headers: Vec::new(),
            data: Payload::from("{}"),
        };
        Batch {
            events: [2, 4, 6].map(event).to_vec(),
            through: 7,
            head: 9,
            pending: 2,
            stream: Arc::new(StreamIdentity {
                name: "S".to_owned(),
                created_ns: 1,
            }),
            after: 0,
            last_seen: None,
            missing: vec![1..=1, 3..=3, 5..=5],
            overlooked: 0,
            passed_over: vec![7],
            left_out: Vec::new(),
        }
    }

    fn shape(batch: &Batch) -> (Vec<u64>, u64, u64) {
        (
            batch.events.iter().map(|event| event.sequence).collect(),
            batch.through,
            batch.pending,
        )
    }

    #[test]
    fn a_position_cuts_to_the_sequence() {
        for (position, kept, left) in [
            (1, (vec![], 1, 5), Some((vec![2, 4, 6], 7, 2))),
            (4, (vec![2, 4], 4, 3), Some((vec![6], 7, 2))),
            (5, (vec![2, 4], 5, 3), Some((vec![6], 7, 2))),
            (6, (vec![2, 4, 6], 6, 2), Some((vec![], 7, 2))),
            (7, (vec![2, 4, 6], 7, 2), None),
        ] {
            let (within, beyond) = Ceiling::Position(position).cut(batch());
            assert_eq!(within.as_ref().map(shape), Some(kept), "at {position}");
            assert_eq!(beyond.as_ref().map(shape), left, "at {position}");
        }
    }

    #[test]
    fn a_time_cuts_behind_the_last_event_that_is_old_enough() {
        let (within, beyond) = Ceiling::Time(45).cut(batch());
        assert_eq!(within.as_ref().map(shape), Some((vec![2, 4], 5, 3)));
        assert_eq!(beyond.as_ref().map(shape), Some((vec![6], 7, 2)));
        let (within, beyond) = Ceiling::Time(19).cut(batch());
        assert!(within.is_none() && beyond.is_some());
        let (within, beyond) = Ceiling::Time(60).cut(batch());
        assert!(within.is_some() && beyond.is_none());
    }

    #[test]
    fn a_time_that_goes_back_does_not_reach_over_a_younger_event() {
        let mut batch = batch();
        batch.events[1].time_ns = 90;
        let (within, beyond) = Ceiling::Time(65).cut(batch);
        assert_eq!(within.as_ref().map(shape), Some((vec![2], 3, 4)));
        assert_eq!(beyond.as_ref().map(shape), Some((vec![4, 6], 7, 2)));
    }

    /// A state at position 5.
    fn state(path: &std::path::Path) -> (Store, Writer) {
        let (store, mut writer) =
            Store::open(path, state::Options::default(), |_| ()).expect("the state opens");
        writer.begin();
        let stream = StreamIdentity {
            name: "S".to_owned(),
            created_ns: 1,
        };
        writer.publish(crate::position::Checkpoint::at(5, stream));
        store.flush().expect("it is durable");
        (store, writer)
    }

    #[test]
    fn a_repair_that_nobody_wants_any_more_is_not_carried_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (store, mut writer) = state(&folder.path().join("1.redb"));
        let patches = Arc::new(Patches::default());
        let withdrawals: [&dyn Fn(HandedOver) -> Option<HandedOver>; 2] = [
            &|handed_over| {
                drop(handed_over);
                None
            },
            &|handed_over| {
                assert!(patches.withdraw());
                Some(handed_over)
            },
        ];
        for withdraw in withdrawals {
            let kept = withdraw(patches.hand_over(Repair::Advance(9)));
            assert!(!patches.is_waiting());
            patches
                .apply(&mut writer, &store)
                .expect("there is nothing to do");
            assert_eq!(store.position(), 5);
            if let Some(mut kept) = kept {
                assert!(
                    kept.done.try_recv().is_err(),
                    "the requester hears that it was not done"
                );
            }
        }
        let mut handed_over = patches.hand_over(Repair::Advance(9));
        patches
            .apply(&mut writer, &store)
            .expect("it is carried out");
        assert_eq!(store.position(), 9);
        assert!(
            matches!(handed_over.done.try_recv(), Ok(Ok(()))),
            "the requester hears that it was done"
        );
    }

    #[test]
    fn a_throttle_spreads_batches_over_time() {
        let begun = Instant::now();
        let ms = Duration::from_millis;
        let rate = Throttle {
            events_per_second: Some(1_000),
            cpu_percent: None,
        };
        assert_eq!(rate.batch_events(), 50);
        assert_eq!(rate.next(begun, 50, ms(1)), Some(begun + ms(50)));
        let share = Throttle {
            events_per_second: None,
            cpu_percent: Some(25),
        };
        assert_eq!(share.next(begun, 50, ms(2)), Some(begun + ms(8)));
        assert_eq!(Throttle::default().next(begun, 50, ms(2)), None);
        assert_eq!(
            Throttle {
                events_per_second: Some(3),
                cpu_percent: None
            }
            .batch_events(),
            1
        );
    }
}
