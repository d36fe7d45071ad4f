//! A projection next to the handler `alarm`: it counts what was asked of each key, and how often
//! each timer rang.

use foldstream_sdk::prelude::*;

struct Bell {
    asked: Table<String, u64>,
    rang: Table<(String, String), u64>,
}

impl Projection for Bell {
    fn manifest() -> Manifest<Self> {
        Manifest::new("bell")
            .description("Counts what an alarm was asked, and what it rang")
            .subjects(["alarm.*.*", "rang.*.*"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            asked: state.table("asked"),
            rang: state.table("rang"),
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let key = event.token(2)?;
        if event.token(1)? == "rang" {
            self.rang
                .update((key, event.token(3)?), |count| *count += 1)?;
        } else {
            self.asked.update(key, |count| *count += 1)?;
        }
        Ok(())
    }
}

projection!(Bell);
