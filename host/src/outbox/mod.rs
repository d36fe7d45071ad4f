//! Releasing effects: sends what waits in the outbox of a state, and confirms what is stored.
//!
//! One releaser per owner, alive while its state is open. It reads durable rows only, so nothing
//! leaves before the commit that has it. It never decides what an effect is; it only moves it.

mod ahead;
mod cursor;
mod embedded;
mod jetstream;
mod reading;
mod releaser;
mod status;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use releaser::{Parts, Releaser};
pub(crate) use status::Status;

use crate::effects::{Place, Row};
use crate::source::jetstream::{Confirmed, Outgoing};
use status::Refusal;

/// Why an effect with a condition that is not stored is a conflict although later ones are stored.
const PASSED: &str = "later messages are stored and this one is not: its condition did not hold \
                      before; what was decided about it then is not in this state";

/// What sending some effects came to.
#[derive(Debug, Default)]
struct Sent {
    /// Effects that the target has.
    confirmed: Vec<Row>,
    /// How many of them were sent again, or were there already.
    again: u64,
    /// The last sequence that the stream gave one of them.
    sequence: u64,
    /// One that was confirmed alone, and its sequence.
    example: Option<(u64, Outgoing)>,
    /// Effects whose condition does not hold, and why: the target does not have them.
    conflicts: Vec<(Row, String)>,
    /// Whether some of the others may be stored.
    is_in_doubt: bool,
    /// Whether delayed effects are refused one by one, so that those behind them may leave.
    leaves_refused: bool,
    /// Effects that the target does not take, and why.
    refused: Vec<(Place, Refusal)>,
    /// Why the others are not there, or are not known to be.
    trouble: Option<String>,
}

impl Sent {
    fn nothing(trouble: impl Into<String>) -> Self {
        Self {
            trouble: Some(trouble.into()),
            ..Self::default()
        }
    }

    /// Notes that the target does not take an effect.
    fn refuse(&mut self, row: &Row, why: String) {
        let subject = row.effect.subject.clone();
        self.trouble.get_or_insert_with(|| why.clone());
        self.refused.push((row.place, Refusal { subject, why }));
    }

    /// Notes what a stream says of an effect that it has.
    fn note(&mut self, confirmed: Confirmed) {
        self.again += u64::from(confirmed.is_duplicate);
        self.sequence = self.sequence.max(confirmed.sequence);
    }

    /// Adds what became of other effects. The first trouble is shown, and the furthest sequence
    /// counts.
    fn add(&mut self, other: Self) {
        let Self {
            confirmed,
            again,
            sequence,
            example,
            conflicts,
            is_in_doubt,
            leaves_refused,
            refused,
            trouble,
        } = other;
        self.confirmed.extend(confirmed);
        self.again += again;
        self.sequence = self.sequence.max(sequence);
        self.example = self.example.take().or(example);
        self.conflicts.extend(conflicts);
        self.is_in_doubt |= is_in_doubt;
        self.leaves_refused |= leaves_refused;
        self.refused.extend(refused);
        self.trouble = self.trouble.take().or(trouble);
    }
}
