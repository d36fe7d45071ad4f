//! Effects that a target has and that the handler makes again, because its state is from a backup.

use std::collections::BTreeSet;

use crate::effects::{Place, Row};
use crate::state::{self, Mark, Store};

/// Their places: these effects are not sent again.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Of events behind the position of the state.
    later: BTreeSet<Place>,
    /// Of parked events: nobody knows when they are retried, or whether they are dropped.
    parked: BTreeSet<Place>,
    /// How many events had left durably when these were found to be parked.
    left: u64,
}

impl Ahead {
    /// Sorts places of effects that the target has. Returns the effects that wait, and which ones the
    /// handler may make again, as far as its state is at a durable position.
    pub(super) async fn sort(
        store: &Store,
        target: &str,
        places: BTreeSet<Place>,
        position: u64,
    ) -> Result<(Vec<Row>, Self), state::Error> {
        if places.is_empty() {
            return Ok((Vec::new(), Self::default()));
        }
        let (store, target) = (store.clone(), target.to_owned());
        let sorted = tokio::task::spawn_blocking(move || {
            let before = places.iter().map(|place| place.sequence);
            let before = before.filter(|sequence| *sequence <= position).collect();
            // Before the look at what is parked, so that what leaves during it is noticed later.
            let events_left = store.parked_left();
            // Before the rows are read, so that none is in neither: what is parked no longer has
            // become a row, or has left.
            let still = store.parked_among(&before)?;
            let mut rows = store.rows_at(&places)?;
            rows.retain(|row| row.target == target);
            let waiting: BTreeSet<Place> = rows.iter().map(|row| row.place).collect();
            // Those that an earlier release gave to retried events say nothing.
            let left = places.difference(&waiting).copied();
            let left = left.filter(|place| !place.is_of_release());
            let (later, mut parked): (BTreeSet<_>, BTreeSet<_>) =
                left.partition(|place| place.sequence > position);
            parked.retain(|place| still.contains(&place.sequence));
            let ahead = Self {
                later,
                parked,
                left: events_left,
            };
            Ok((rows, ahead))
        });
        state::joined(sorted.await)
    }

    /// Whether the handler makes nothing again, as far as is known.
    pub(super) fn is_empty(&self) -> bool {
        self.later.is_empty() && self.parked.is_empty()
    }

    /// Whether an effect that waits is one of them. Then it is none any more.
    pub(super) fn take(&mut self, row: &Row) -> bool {
        self.later.remove(&row.place) || self.parked.remove(&row.place)
    }

    /// What the handler may have made by now, or makes no more: effects of later events that it has
    /// handled, and of parked ones. None if neither has changed; `left` is how many parked events
    /// have left durably.
    pub(super) fn made(&self, position: u64, left: u64) -> BTreeSet<Place> {
        let mut handled = self.later.range(..behind(position)).copied().peekable();
        let have_left = !self.parked.is_empty() && self.left != left;
        if handled.peek().is_none() && !have_left {
            return BTreeSet::new();
        }
        handled.chain(self.parked.iter().copied()).collect()
    }

    /// Has what is left of them instead.
    pub(super) fn replace_made(&mut self, position: u64, left: Self) {
        self.later = self.later.split_off(&behind(position));
        self.later.extend(left.later);
        (self.parked, self.left) = (left.parked, left.left);
    }
}

/// Sets the first mark of a target. Durable before the first message: after a crash behind it, the
/// whole target would have to be searched.
pub(super) async fn begin_mark(
    store: &Store,
    target: &str,
    mark: Mark,
) -> Result<(), state::Error> {
    store.set_effect_mark(target, mark);
    let store = store.clone();
    let written = tokio::task::spawn_blocking(move || store.remove_confirmed_effects());
    state::joined(written.await)
}

/// The first place behind all of a position.
fn behind(position: u64) -> Place {
    Place {
        sequence: position.saturating_add(1),
        ..Place::default()
    }
}
