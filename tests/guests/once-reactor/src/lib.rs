//! A handler that answers each order once, however often it was published.

use std::time::Duration;

use foldstream_sdk::prelude::*;

struct OnceReactor {
    answered: Table<String, u64>,
}

impl Handler for OnceReactor {
    fn manifest() -> Manifest<Self> {
        Manifest::new("once-reactor")
            .subjects(["orders.*"])
            .publishes(["answers.*"])
            .replies()
            .key(KeyRule::SubjectToken(2))
            .inbox_by(
                EventId::Header("x-order".to_owned()),
                Duration::from_secs(86_400),
            )
    }

    fn open(state: &State) -> Self {
        Self {
            answered: state.table("answered"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let order = event.token(2)?;
        self.answered.update(order, |count| *count += 1)?;
        effects.publish(Message::to(format!("answers.{order}")).json(&event.sequence())?);
        effects.reply(event, &order)?;
        Ok(())
    }
}

handler!(OnceReactor);
