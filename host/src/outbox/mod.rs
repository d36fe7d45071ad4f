//! Releasing effects: sends what waits in the outbox of a state, and confirms what is stored.
//!
//! One releaser per owner, alive while its state is open. It reads durable rows only, so nothing
//! leaves before the commit that has it. It never decides what an effect is; it only moves it.

mod cursor;
mod embedded;
mod jetstream;
mod releaser;
mod status;

pub(crate) use releaser::{Parts, Releaser};
pub(crate) use status::Status;

/// What sending some effects came to.
#[derive(Debug, Default)]
struct Sent {
    /// Effects that the target has.
    confirmed: Vec<crate::effects::Row>,
    /// How many of them were sent again, or were there already.
    again: u64,
    /// The last sequence that the stream gave one of them.
    sequence: u64,
    /// Whether some of the others may be stored.
    is_in_doubt: bool,
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
}
