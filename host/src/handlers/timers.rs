//! Timers of a handler that are pending, for people, and what they decide about them.

use super::Handlers;
use crate::actor::blocking;
use crate::deployments::{DryRun, Error};
use crate::effects;
use crate::log::NewEvent;
use crate::state::catalogue::Record;
use crate::state::{Due, Parked};
use crate::timers::{Firing, Timer, What};
use crate::timestamp;

/// A pending timer.
#[derive(Clone, Debug)]
pub struct PendingTimer {
    /// Its name.
    pub name: String,
    /// The rest of it.
    pub timer: Timer,
}

/// Pending timers, in the order in which they fire.
#[derive(Clone, Debug)]
pub struct PendingTimers {
    /// One page of them.
    pub timers: Vec<PendingTimer>,
    /// Where the next page begins; none if this is the last one.
    pub next: Option<String>,
}

/// A timer that an operator fires or drops.
#[derive(Clone, Debug)]
pub struct TimerChanged {
    /// The timer.
    pub timer: PendingTimer,
    /// The sequence of the message in the handler's stream that does it, once the handler gets
    /// there; none of a dry run.
    pub sequence: Option<u64>,
    /// Whether events of its key are parked: it waits behind them, until they are retried or
    /// dropped.
    pub waits: bool,
}

impl Handlers {
    /// A page of the timers that are pending and durable, in the order in which they fire.
    pub async fn pending_timers(
        &self,
        name: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<PendingTimers, Error> {
        let deployment = self.deployments.get(name)?;
        // A projection has no tables of timers.
        if deployment.with_record(|record| record.handler.is_none()) {
            return Err(Error::Refused(format!(
                "{name} is a projection, which sets no timers"
            )));
        }
        let after = after.map(place_of).transpose()?;
        let store = deployment.open_store()?;
        let timers = blocking(move || {
            let snapshot = store.snapshot();
            let mut timers = Vec::new();
            let page = store.timers_after(after.as_ref(), limit)?;
            // A full page may have a successor; a short one is the last.
            let next = (page.len() == limit)
                .then(|| page.last().map(text_of))
                .flatten();
            for due in page {
                // One that was cancelled or replaced since the last commit is not there any more.
                let known = snapshot.timer(&due.name)?;
                let known = known.filter(|timer| timer.at_ns == due.at_ns);
                timers.extend(known.map(|timer| PendingTimer {
                    name: due.name,
                    timer,
                }));
            }
            Ok::<_, crate::state::Error>(PendingTimers { timers, next })
        });
        Ok(timers.await?)
    }
}

/// What an operator decides about a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerAction {
    /// It fires now.
    Fire,
    /// It never fires.
    Drop,
}

impl TimerAction {
    fn what(self) -> What {
        match self {
            Self::Fire => What::Now,
            Self::Drop => What::Drop,
        }
    }

    /// In the audit log.
    fn name(self) -> &'static str {
        match self {
            Self::Fire => "timer-fire",
            Self::Drop => "timer-drop",
        }
    }

    /// The same if it was not published, or nobody knows whether it was.
    fn failed(self) -> &'static str {
        match self {
            Self::Fire => "timer-fire-failed",
            Self::Drop => "timer-drop-failed",
        }
    }
}

impl Handlers {
    /// Fires a timer now, or drops it. That is a message in the handler's stream, like any firing,
    /// so that every fold of the stream meets the decision at the same place.
    pub async fn change_timer(
        &self,
        name: &str,
        action: TimerAction,
        timer: String,
        dry_run: DryRun,
    ) -> Result<TimerChanged, Error> {
        let deployment = self.deployments.get(name)?;
        // A change of owner in between would publish into another stream than the new one reads.
        let _changing = self.deployments.lock(&deployment).await?;
        let record = deployment.record();
        if !record.active().module.sets_timers {
            return Err(Error::Refused(format!("{name} sets no timers")));
        }
        let store = deployment.open_store()?;
        let (reading, wanted) = (store.clone(), timer.clone());
        let pending = blocking(move || reading.snapshot().timer(&wanted)).await?;
        let pending = pending.ok_or_else(|| {
            Error::Missing(format!(
                "{name} has no pending timer `{timer}`; `foldstream timers list {name}` shows them"
            ))
        })?;
        let firing = Firing {
            name: timer.clone(),
            at_ns: pending.at_ns,
            key: Some(Parked::name_of(pending.key.clone())),
            what: action.what(),
            lineage: record
                .handler
                .as_ref()
                .map(|handler| handler.first_lineage().0),
        };
        let subject = crate::timers::subject(name);
        // It would come behind that firing, and do nothing.
        if store.is_parked_firing(&subject, &timer) {
            return Err(Error::Conflict(format!(
                "a firing of timer `{timer}` is parked with the events of its key, so the timer \
                 fires once they are retried (`foldstream parked retry {name} KEY`), and never if \
                 they are dropped (`foldstream parked drop {name} KEY --whole-keys`)"
            )));
        }
        let waits = firing.key.as_ref().is_some_and(|key| store.is_parked(key));
        let mut changed = TimerChanged {
            timer: PendingTimer {
                name: timer,
                timer: pending,
            },
            sequence: None,
            waits,
        };
        if dry_run == DryRun::Yes {
            return Ok(changed);
        }
        let source = &record.active().source;
        let source = self.sources.known(source)?;
        // It would be stored where the handler does not meet it, or nowhere.
        if let Some(why) = self.no_firings_warning(&record, record.active).await {
            return Err(Error::Refused(why));
        }
        let outlet = source.outlet();
        // Before it is published: what is not recorded does not happen.
        let due = timestamp::format_ns(firing.at_ns);
        let detail = format!("{}, which is due at {due}", firing.name);
        self.deployments
            .commit(&deployment, deployment.draft(), action.name(), detail)
            .await?;
        // Each request has an id of its own: a timer may be set to the same time again.
        let id = format!("fst.{name}.{}.{:016x}", action.name(), fastrand::u64(..));
        let event = NewEvent {
            subject,
            kind: Some(Firing::KIND.to_owned()),
            id: Some(id),
            time_ns: None,
            headers: effects::caused_by(&changed.timer.timer.headers),
            data: firing.data(),
        };
        changed.sequence = Some(match outlet.publish(event).await {
            Ok(sequence) => sequence,
            Err(error) => {
                let detail = format!("{}: {error}", changed.timer.name);
                self.deployments
                    .commit(&deployment, deployment.draft(), action.failed(), detail)
                    .await?;
                return Err(error.into());
            }
        });
        Ok(changed)
    }

    /// A warning if a handler sets timers, and its stream does not take their firings.
    pub(crate) async fn no_firings_warning(
        &self,
        record: &Record,
        generation: u64,
    ) -> Option<String> {
        let generation = record.generation(generation)?;
        let source = self.sources.get(&generation.source)?;
        if !generation.module.sets_timers {
            return None;
        }
        let subject = crate::timers::subject(&record.name);
        let (stores, stream) = (source.stores(&subject).await, source.stream());
        (!stores).then(|| {
            format!(
                "stream {stream} does not take {subject}, so no timer of {} can fire; add it to the subjects of the stream: \
                 `nats stream edit {stream} --subjects '…,{}.>'`, and leave it out of a subject transform",
                record.name,
                crate::timers::SUBJECT_PREFIX
            )
        })
    }
}

/// Where a page ended, as text: the time in nanoseconds and the name.
fn text_of(due: &Due) -> String {
    format!("{}/{}", due.at_ns, due.name)
}

fn place_of(text: &str) -> Result<Due, Error> {
    let place = text.split_once('/').and_then(|(at, name)| {
        // The first slash: a time has none, and a name may have one.
        Some(Due {
            at_ns: at.parse().ok()?,
            name: name.to_owned(),
            // Only time and name are the place; the depth is not compared.
            depth: 0,
        })
    });
    place.ok_or_else(|| {
        Error::Refused(format!(
            "`{text}` is not from an earlier page; pass what the page before returned as `next`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_continues_behind_any_name() {
        let due = Due {
            at_ns: u64::MAX,
            name: "a/b ü/".to_owned(),
            depth: 0,
        };
        assert_eq!(place_of(&text_of(&due)).ok(), Some(due));
        assert!(place_of("a/b").is_err() && place_of("7").is_err());
    }
}
