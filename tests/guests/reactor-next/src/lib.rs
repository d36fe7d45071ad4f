//! The next version of the guest `reactor`: it stores its counts in another table, migrates those
//! of version 1, and answers the events that version 1 rejects once. Written with the SDK, so that
//! a migration of a handler through the SDK is tried on a real component.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use serde::Serialize;

struct Next {
    answered: Table<String, u64>,
}

/// The data of a message.
#[derive(Serialize)]
struct Answer {
    of: u64,
    number: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    later: bool,
}

/// How long a message is delayed.
const DELAY: Duration = Duration::from_secs(4);

impl Handler for Next {
    fn manifest() -> Manifest<Self> {
        Manifest::new("reactor")
            .description("Answers each event with messages")
            .subjects(["in.*.*"])
            .publishes(["out.>", "elsewhere.>"])
            .key(KeyRule::SubjectToken(2))
            .state_version(2)
    }

    fn open(state: &State) -> Self {
        Self {
            answered: state.table("answered"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = event.token(2)?;
        self.answered.update(key, |count| *count += 1)?;
        let later = event.token(3)? == "later";
        let count = match event.token(3)? {
            "one" | "fail" | "later" => 1,
            "three" => 3,
            _ => 0,
        };
        let of = event.sequence();
        for number in 0..count {
            let message = Message::to(format!("out.{key}.{of}"))
                .kind("answer")
                .header("x-number", number.to_string())
                .json(&Answer { of, number, later })?;
            effects.publish(if later {
                message.not_before(event.time() + DELAY)
            } else {
                message
            });
        }
        Ok(())
    }
}

impl Migrate for Next {
    fn migrate(
        from_version: u32,
        old: &OldEntry<'_>,
        new: &mut NewEntries,
    ) -> Result<(), MigrateError> {
        if from_version != 1 {
            return Err(MigrateError::unknown_version(from_version));
        }
        if let Some((key, count)) = old.of_table::<String, u64>("handled")? {
            new.put::<String>("answered", &key, &count)?;
        }
        Ok(())
    }
}

handler!(Next, migrate);
