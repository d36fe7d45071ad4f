//! Checks of events and messages against the schemas of a module, while it folds.

use std::sync::Arc;

use super::chosen::Chosen;
use super::sandbox::Refusal;
use super::{ApplyError, Error, Module};
use crate::event::Payload;
use crate::schemas::{Direction, LiveChecks, NotCompiled};

/// What an instance checks.
#[derive(Clone, Debug)]
pub(crate) struct Checking {
    schemas: Arc<LiveChecks>,
    /// Events up to this sequence are not checked, nor what they publish.
    after: u64,
}

impl Checking {
    /// The first event that does not fit its schema.
    pub(super) fn check(&self, events: Chosen<'_>) -> Result<(), ApplyError> {
        for (index, event) in events.iter().enumerate() {
            if event.sequence <= self.after {
                continue;
            }
            if let Some(message) = self
                .schemas
                .misfit(Direction::Reads, &event.kind, &event.data)
            {
                return Err(ApplyError::Invalid { index, message });
            }
        }
        Ok(())
    }

    /// Whether a message, by its subject and its type, fits its schema. `cause` is the sequence of
    /// the event or firing that publishes it.
    pub(super) fn check_message(
        &self,
        cause: u64,
        (subject, kind): (&str, &str),
        data: &Payload,
    ) -> Result<(), Refusal> {
        if cause <= self.after {
            return Ok(());
        }
        match self.schemas.misfit(Direction::Publishes, kind, data) {
            None => Ok(()),
            Some(misfit) => Err(Refusal::Limit {
                limit: "event-schema",
                message: format!("a message to {subject}: {misfit}"),
            }),
        }
    }
}

impl Module {
    /// What an instance checks if it checks events after a sequence; none checks nothing. Blocking
    /// the first time: compiles the schemas, once for all deployments of the module.
    pub(crate) fn checks_after(&self, after: Option<u64>) -> Result<Option<Checking>, Error> {
        let Some(after) = after else {
            return Ok(None);
        };
        // Held while they are compiled, so that another deployment does not compile them as well.
        let mut known = self.checks.lock();
        let schemas = match &*known {
            Some(schemas) => Arc::clone(schemas),
            None => {
                let memory = self.code.another();
                let compiled =
                    LiveChecks::new(self.schemas(), memory).map_err(|error| match error {
                        NotCompiled::Unsound(error) => {
                            Error::Refused(format!("it can't check events: {error}"))
                        }
                        NotCompiled::Short(shortage) => Error::Short(shortage),
                    })?;
                Arc::clone(known.insert(Arc::new(compiled)))
            }
        };
        Ok(Some(Checking { schemas, after }))
    }
}
