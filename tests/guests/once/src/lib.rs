//! A projection that counts the events of each customer, and leaves out those that were published
//! twice within an hour.

use std::time::Duration;

use foldstream_sdk::prelude::*;

struct Once {
    counts: Table<String, u64>,
}

impl Projection for Once {
    fn manifest() -> Manifest<Self> {
        Manifest::new("once")
            .subjects(["orders.*.*"])
            .key(KeyRule::SubjectToken(2))
            .inbox(Duration::from_secs(3_600))
            .inbox_limit(50_000)
    }

    fn open(state: &State) -> Self {
        Self {
            counts: state.table("counts"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.counts.update(event.token(2)?, |count| *count += 1)?;
        Ok(())
    }
}

projection!(Once);
