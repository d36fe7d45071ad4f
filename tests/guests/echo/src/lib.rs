//! A handler that asks the guest `reactor` again for each of its answers, and the guest `alarm` for
//! each timer `each-MILLISECONDS` that rings: together they never come to an end.

use foldstream_sdk::prelude::*;
use serde::Serialize;

/// What an alarm is asked.
#[derive(Serialize)]
struct Again<'a> {
    name: &'a str,
    after_ms: u64,
}

struct Echo;

impl Handler for Echo {
    fn manifest() -> Manifest<Self> {
        Manifest::new("echo")
            .subjects(["out.*.*", "rang.*.*"])
            .publishes(["in.>", "alarm.>"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(_: &State) -> Self {
        Self
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = event.token(2)?;
        if event.token(1)? == "out" {
            effects.publish(Message::to(format!("in.{key}.one")));
        } else if let Some(after_ms) = event.token(3)?.strip_prefix("each-") {
            let again = Again {
                name: event.token(3)?,
                after_ms: after_ms.parse().unwrap_or_default(),
            };
            effects.publish(Message::to(format!("alarm.{key}.set")).json(&again)?);
        }
        Ok(())
    }
}

handler!(Echo);
