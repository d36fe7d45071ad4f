//! A handler that asks the guest `reactor` again for each of its answers: together they never come
//! to an end.

use foldstream_sdk::prelude::*;

struct Echo;

impl Handler for Echo {
    fn manifest() -> Manifest<Self> {
        Manifest::new("echo")
            .subjects(["out.*.*"])
            .publishes(["in.>"])
            .key(KeyRule::SubjectToken(2))
    }

    fn open(_: &State) -> Self {
        Self
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        effects.publish(Message::to(format!("in.{}.one", event.token(2)?)));
        Ok(())
    }
}

handler!(Echo);
