//! The queue of batches read ahead, and the memory budget that all such queues of a host share.
//!
//! Half of that budget is for queues. Batches over it wait in their stream. Each pipeline may
//! always queue one batch, so that none waits for another that rests with a full queue.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::Input;
use crate::event::Event;
use crate::memory::read_ahead::{ReadAhead, UNIT};
use crate::progress::{BatchTurn, Progress};
use crate::source::Reader;

/// Batches read ahead of the current one: enough to keep both stages busy, and few enough to limit
/// memory to about this many times the largest batch.
const QUEUE: usize = 3;

impl ReadAhead {
    /// The queue of one pipeline.
    pub(super) fn queue(&self) -> (Outbox, Inbox) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let large = watch::Sender::default();
        (
            Outbox {
                ahead: self.clone(),
                large: large.clone(),
                sender,
            },
            Inbox {
                ahead: self.clone(),
                large,
                receiver,
                held: Vec::new(),
                bytes: 0,
            },
        )
    }
}

/// A waiting batch, and the memory that it holds meanwhile.
type Queued = (Input, Option<OwnedSemaphorePermit>);

/// The end for the reading stage.
pub(super) struct Outbox {
    ahead: ReadAhead,
    /// How many batches with large events are in the queue, or wait for a place in it.
    large: watch::Sender<usize>,
    sender: mpsc::Sender<Queued>,
}

impl Outbox {
    /// Waits until there is room; returns whether the queue is still open.
    pub(super) async fn send(&self, input: Input) -> bool {
        let bytes = bytes_of(&input);
        if has_large(&input) {
            // Before it waits, so that the applying stage knows of it while it rests.
            self.large.send_modify(|large| *large += 1);
        }
        // Units, because a semaphore counts to 2^32 only. A batch above the whole budget takes all
        // of it.
        let units = u32::try_from(bytes / UNIT)
            .unwrap_or(u32::MAX)
            .min(self.ahead.total);
        // Both arms are cancel-safe: what was acquired is released.
        tokio::select! {
            // Memory first, so that the exception below stays one.
            biased;
            memory = Arc::clone(&self.ahead.units).acquire_many_owned(units) => {
                // A closed semaphore gives no permit; the batch is sent without.
                self.sender.send((input, memory.ok())).await.is_ok()
            }
            // All places are free: nothing of this pipeline waits.
            // With one batch always allowed no pipeline starves while others hold all units.
            places = self.sender.reserve_many(QUEUE) => match places {
                Ok(mut places) => {
                    places.next().expect("there are some").send((input, None));
                    true
                }
                Err(_) => false,
            },
        }
    }
}

/// The end for the applying stage.
pub(super) struct Inbox {
    ahead: ReadAhead,
    /// As in [`Outbox`].
    large: watch::Sender<usize>,
    receiver: mpsc::Receiver<Queued>,
    /// The memory of inputs that were taken and are not applied yet.
    held: Vec<OwnedSemaphorePermit>,
    /// Their size, with or without a permit, in bytes.
    bytes: u64,
}

impl Inbox {
    /// The next input, if one is waiting.
    pub(super) fn take(&mut self) -> Option<Input> {
        let queued = self.receiver.try_recv().ok()?;
        Some(self.taken(queued))
    }

    /// The next input, once there is one; none at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Input> {
        let queued = self.receiver.recv().await?;
        Some(self.taken(queued))
    }

    fn taken(&mut self, (input, memory): Queued) -> Input {
        // The permit is kept until the batch is applied: it is in memory until then.
        self.held.extend(memory);
        self.bytes += bytes_of(&input);
        if has_large(&input) {
            self.large.send_modify(|large| *large -= 1);
        }
        input
    }

    /// Changes with the number of batches with large events that are in the queue, or wait for a place
    /// in it.
    pub(super) fn large(&self) -> watch::Receiver<usize> {
        self.large.subscribe()
    }

    /// Releases the memory of inputs that are applied.
    pub(super) fn applied(&mut self) {
        self.held.clear();
        self.ahead.freed(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // What was queued goes as well.
        while self.take().is_some() {}
        self.applied();
    }
}

fn bytes_of(input: &Input) -> u64 {
    match input {
        Input::Batch(batch) => batch.bytes() as u64,
        Input::Failed(_) => 0,
    }
}

/// Whether it may hold the memory of a large event.
pub(super) fn has_large(input: &Input) -> bool {
    matches!(input, Input::Batch(batch) if batch.events.iter().any(Event::is_large))
}

/// The reading stage: reads ahead until the pipeline ends or the source can't continue.
pub(super) async fn read(
    mut reader: Reader,
    mut turn: BatchTurn,
    outbox: Outbox,
    progress: Arc<Progress>,
) {
    // Numbers this run, so that reports of an earlier one do not count.
    let run = progress.begin_reading();
    loop {
        let (input, last) = match reader.next().await {
            Ok(batch) => {
                let turn = std::mem::replace(&mut turn, BatchTurn::Later);
                progress.note_read(run, &batch, turn);
                (Input::Batch(batch), false)
            }
            Err(error) => (Input::Failed(error), true),
        };
        // After an error there is nothing more to read; the queue passes it on in its place.
        if !outbox.send(input).await || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::batch::Batch;
    use crate::event::Payload;
    use crate::position::StreamIdentity;

    fn batch(kibibytes: usize) -> Input {
        let event = Event {
            sequence: 1,
            time_ns: 1,
            subject: "s".into(),
            kind: "".into(),
            headers: Vec::new(),
            data: Payload::Bytes(vec![0; kibibytes << 10].into()),
        };
        let stream = Arc::new(StreamIdentity {
            name: "s".to_owned(),
            created_ns: 1,
        });
        let (missing, passed_over) = (Vec::new(), Vec::new());
        Input::Batch(Batch {
            events: vec![event],
            after: 0,
            through: 1,
            head: 1,
            pending: 0,
            stream,
            last_seen: None,
            missing,
            overlooked: 0,
            passed_over,
            left_out: Vec::new(),
        })
    }

    /// Sends until nothing more is let in; how many were.
    async fn fill(outbox: &Outbox, kibibytes: usize) -> usize {
        let mut sent = 0;
        // The clock only moves while all wait.
        while tokio::time::timeout(Duration::from_secs(1), outbox.send(batch(kibibytes))).await
            == Ok(true)
        {
            sent += 1;
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn queues_together_stay_within_their_memory_and_each_has_one_batch() {
        let ahead = ReadAhead::new(2_000 << 10);
        let queues: Vec<_> = (0..10).map(|_| ahead.queue()).collect();
        let mut sent = Vec::new();
        for (outbox, _) in &queues {
            sent.push(fill(outbox, 300).await);
        }
        assert_eq!(sent, [3, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        let (mut first, mut rest) = (queues.into_iter(), 0);
        let (outbox, mut inbox) = first.next().expect("there are ten");
        while inbox.take().is_some() {
            rest += 1;
        }
        assert_eq!(
            ahead.used(),
            900 << 10,
            "what is being applied is still in memory"
        );
        inbox.applied();
        assert_eq!(
            (rest, ahead.units.available_permits()),
            (3, 1_000),
            "what is taken is given back"
        );
        assert_eq!(
            fill(&outbox, 5_000).await,
            1,
            "what is larger than all there is goes alone"
        );
        drop(inbox);
        assert!(!outbox.send(batch(1)).await, "nobody takes it any more");
    }
}
