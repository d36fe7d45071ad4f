//! The reader of a deployment: its own until it has caught up, and then one that it shares with
//! other deployments of the source (`hub`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::hub::{Entrance, Hubs, Key, Parting, Seat};
use super::reader::Supervised;
use crate::batch::Batch;
use crate::source::Error;

/// How long a reader that was too slow reads alone, at first and at most: each change makes a
/// consumer.
const ALONE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// A reader that was not too slow for this long counts as quick again.
const QUICK: Duration = Duration::from_secs(600);

/// A supervised reader of a JetStream stream, which shares what it reads.
#[derive(Debug)]
pub struct Reader {
    alone: Supervised,
    hubs: Arc<Hubs>,
    key: Key,
    place: Place,
    slowness: Slowness,
}

/// Its place in a hub.
#[derive(Debug)]
enum Place {
    None,
    /// It reads alone, and the hub keeps what it needs to follow.
    Waits(Seat),
    Follows(Seat),
}

/// How often a follower was too slow.
#[derive(Debug, Default)]
struct Slowness {
    /// Until when it reads alone, and for how long.
    until: Option<(Instant, Duration)>,
}

impl Slowness {
    fn note(&mut self, now: Instant) {
        let before = self.until.filter(|(until, _)| now < *until + QUICK);
        let pause = before.map_or(ALONE.0, |(_, pause)| (pause * 2).min(ALONE.1));
        self.until = Some((now + pause, pause));
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|(until, _)| until <= now)
    }
}

impl Reader {
    /// One that has no place in a hub yet.
    pub(super) fn new(alone: Supervised, hubs: Arc<Hubs>) -> Self {
        Self {
            key: alone.key(),
            alone,
            hubs,
            place: Place::None,
            slowness: Slowness::default(),
        }
    }

    /// See [`super::super::Reader::next`].
    pub async fn next(&mut self) -> Result<Batch, Error> {
        // A caller who always finds something would otherwise never let other tasks run.
        tokio::task::consume_budget().await;
        loop {
            let Place::Follows(seat) = &mut self.place else {
                let batch = self.alone.next().await?;
                self.join();
                return Ok(batch);
            };
            let limits = self.alone.limits();
            match seat.next(limits, self.alone.trusted_mut()).await {
                Ok(taken) => {
                    self.alone.follow(&taken);
                    return Ok(taken.batch);
                }
                Err(parting) => self.part(parting),
            }
        }
    }

    /// Follows a hub, if it has caught up and that is possible.
    fn join(&mut self) {
        let before = match std::mem::replace(&mut self.place, Place::None) {
            Place::Waits(seat) => Some(seat),
            Place::None | Place::Follows(_) => None,
        };
        if !self.slowness.is_over(Instant::now()) || !self.alone.has_caught_up() {
            return;
        }
        self.place = match self.hubs.enter(&self.key, &mut self.alone, before) {
            Entrance::Follows(seat) => Place::Follows(seat),
            Entrance::Waits(seat) => Place::Waits(seat),
            Entrance::Closed => Place::None,
        };
    }

    /// Reads alone again.
    fn part(&mut self, parting: Parting) {
        if parting.is_behind {
            self.slowness.note(Instant::now());
        }
        debug!(
            position = self.alone.position(),
            is_behind = parting.is_behind,
            "reading alone again"
        );
        // First the place: from now on its status is its own.
        self.place = Place::None;
        self.alone.part(parting);
    }
}
