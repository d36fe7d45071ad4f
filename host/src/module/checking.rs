//! Checks of events and messages against the schemas of a module, while it folds.

use std::sync::Arc;

use super::chosen::Chosen;
use super::sandbox::Refusal;
use super::{ApplyError, Error, Module};
use crate::event::Payload;
use crate::memory::Reservation;
use crate::schemas::{self, Direction, LiveChecks, Uncompiled};

/// The compiled schemas of a module.
#[derive(Debug)]
pub(super) struct Compiled {
    schemas: LiveChecks,
    _memory: Reservation,
}

/// What an instance checks.
#[derive(Clone, Debug)]
pub(crate) struct Checking {
    compiled: Arc<Compiled>,
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
            if let Some(message) =
                self.compiled
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
        match self
            .compiled
            .schemas
            .misfit(Direction::Publishes, kind, data)
        {
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
        let compiled = match &*known {
            Some(compiled) => Arc::clone(compiled),
            None => Arc::clone(known.insert(Arc::new(self.compiled()?))),
        };
        Ok(Some(Checking { compiled, after }))
    }

    fn compiled(&self) -> Result<Compiled, Error> {
        let refused =
            |error: schemas::Error| Error::Refused(format!("it can't check events: {error}"));
        let uncompiled = Uncompiled::new(self.schemas()).map_err(refused)?;
        let mut memory = self.code.another();
        // Before they are compiled: that is when the memory is allocated.
        memory.grow_to(uncompiled.bytes())?;
        Ok(Compiled {
            schemas: uncompiled.compile().map_err(refused)?,
            _memory: memory,
        })
    }
}
