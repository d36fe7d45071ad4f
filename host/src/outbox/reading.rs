//! Reading what an outbox may send next.

use std::time::Duration;

use crate::clock::Look;
use crate::effects::{Place, Row, RowKey};
use crate::state::{self, Delayed, RefusedKeys, Store};

/// Most effects read at once.
const ROWS_MAX: usize = 1_000;
/// Most bytes of them; a single effect may exceed it. The effects after them are read meanwhile, so
/// twice as much is in memory.
const BYTES_MAX: usize = 2 << 20;
/// Most delayed effects read at once if each needs a batch of its own: those with an order get their
/// turn behind them.
const SINGLE_MAX: usize = 100;
/// Longest sleep until a delayed effect is due: this machine's clock may jump meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// How many delayed effects are read at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum DelayedMax {
    /// A few: each may need a batch of its own.
    Single,
    /// As many as others.
    Many,
}

/// What may be sent now.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Effects in the order of their places.
    pub(super) rows: Vec<Row>,
    /// Whether a limit ended the search for them.
    pub(super) has_more: bool,
    /// Behind which of the first effects of refused keys to read on.
    pub(super) refused_after: Option<Place>,
    /// Delayed effects that are due, in the order of their times.
    pub(super) delayed: Vec<Row>,
    /// After which time to look again.
    pub(super) sleep: Option<Duration>,
    /// The last of the delayed effects, if more are due.
    pub(super) last_of_more: Option<RowKey>,
    /// All delayed ones were tried, and these are the first again.
    pub(super) begins_again: bool,
}

/// What to read.
pub(super) struct Reading {
    pub(super) store: Store,
    pub(super) target: String,
    /// Only effects after this one, of those with an order.
    pub(super) after: Option<RowKey>,
    pub(super) refused: RefusedKeys,
    /// Only delayed effects after this one, unless there are none.
    pub(super) delayed_after: Option<RowKey>,
    /// The clock by which delayed effects are due.
    pub(super) look: Look,
    pub(super) delayed: DelayedMax,
}

impl Reading {
    /// Reads durable effects. Blocking.
    pub(super) fn read(self) -> Result<Ready, state::Error> {
        // While the clock is in doubt, nothing is due; what has no time does not depend on it.
        let (until_ns, settles) = match self.look {
            Look::Now(now_ns) => (now_ns, None),
            Look::Jumped(settles) => (0, Some(settles)),
        };
        let (store, target) = (&self.store, self.target.as_str());
        let limits = (ROWS_MAX, BYTES_MAX);
        let (rows, refused_after) = store.effects(target, self.after, &self.refused, limits)?;
        let bytes: usize = rows.iter().map(|row| row.effect.data.len()).sum();
        let has_more = rows.len() >= ROWS_MAX || bytes >= BYTES_MAX;
        let entries_max = match self.delayed {
            DelayedMax::Single => SINGLE_MAX,
            DelayedMax::Many => ROWS_MAX,
        };
        let limits = (entries_max, BYTES_MAX);
        let mut delayed =
            store.delayed_effects(target, self.delayed_after.as_ref(), until_ns, limits)?;
        let begins_again = delayed.due.is_empty() && self.delayed_after.is_some();
        if begins_again {
            delayed = store.delayed_effects(target, None, until_ns, limits)?;
        }
        let Delayed {
            due,
            next_ns,
            has_more: more_are_due,
        } = delayed;
        Ok(Ready {
            rows,
            has_more,
            refused_after,
            last_of_more: due.last().filter(|_| more_are_due).map(Row::key),
            sleep: next_ns.map(|next_ns| {
                let left = Duration::from_nanos(next_ns.saturating_sub(until_ns));
                settles.unwrap_or(left).min(SLEEP_MAX)
            }),
            delayed: due,
            begins_again,
        })
    }
}
