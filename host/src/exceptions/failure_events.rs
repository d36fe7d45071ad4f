//! Failure events: an event on a subject of the operator's choice for each event that is parked, for
//! other tools.
//!
//! A failure event is published at least once, and again with the same id if it is unknown whether
//! it arrived. How far the host has come is in the catalogue. Nothing waits for failure events: a
//! target that is away delays only them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Exceptions;
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::Error;
use crate::effects::{self, Grant};
use crate::event::{Event, Payload};
use crate::log::NewEvent;
use crate::module::Module;
use crate::source::{NotPublished, Outlet};
use crate::state::catalogue::{FailureEvents, Generation};
use crate::state::{Parked, Store};
use crate::subject::SubjectSet;

/// Type of failure events.
const KIND: &str = "foldstream.event-parked";
/// Most failure events between two marks in the catalogue.
const PORTION: usize = 256;
/// Pause between two looks: a burst of failures makes one mark, and not hundreds.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after the target took nothing.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a change of the state, as a state may have been replaced meanwhile.
const LOOK: Duration = Duration::from_secs(5);

/// Checks where failure events should go; an empty text means nowhere.
pub(crate) fn target(
    text: &str,
    module: &Module,
    reads: &str,
) -> Result<Option<FailureEvents>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let grant: Result<Grant, _> = text.parse();
    let grant = grant.map_err(|error| Error::Refused(error.to_string()))?;
    let subject = grant.subjects.as_str();
    crate::subject::validate(subject).map_err(|error| {
        Error::Refused(format!(
            "failure events need one subject, such as `ops.failures@orders`: {error}"
        ))
    })?;
    // 0: published from the first parked event on; events that are parked already are reported too.
    let target = FailureEvents {
        subject: subject.to_owned(),
        source: grant.source,
        state_file: 0,
        through: 0,
    };
    check_reader(&target, &module.manifest().subjects, reads)?;
    Ok(Some(target))
}

/// Refuses a target from which a module with these subjects would read its own failure events.
pub(super) fn check_reader(
    target: &FailureEvents,
    subjects: &SubjectSet,
    reads: &str,
) -> Result<(), Error> {
    let FailureEvents {
        subject, source, ..
    } = target;
    // The target is one subject, so matching it against the module's patterns is exact.
    if source == reads && subjects.matches(subject) {
        return Err(Error::Refused(format!(
            "the module itself reads {subject} of {reads}, so each failure event could make another \
             one; choose another subject or source with --failure-events, or give it an empty \
             text for none"
        )));
    }
    Ok(())
}

/// Refuses a generation whose code would read the failure events of its deployment.
pub(crate) fn check_generation(
    target: Option<&FailureEvents>,
    generation: &Generation,
) -> Result<(), Error> {
    // Subjects of a stored module were checked when it was deployed.
    let subjects = SubjectSet::parse(&generation.module.subjects).ok();
    match target.zip(subjects) {
        Some((target, subjects)) => check_reader(target, &subjects, &generation.source),
        None => Ok(()),
    }
}

impl Exceptions {
    /// Sets where failure events of a deployment go. The caller holds its lock.
    pub(crate) async fn set_failure_events(
        self: &Arc<Self>,
        deployment: &Arc<Deployment>,
        module: &Module,
        wanted: Option<&str>,
    ) -> Result<(), Error> {
        let Some(wanted) = wanted else { return Ok(()) };
        let mut record = deployment.draft();
        let target = self.failure_target(wanted, module, &record.active().source)?;
        let place = |events: &Option<FailureEvents>| {
            events
                .as_ref()
                .map_or_else(|| "nowhere".to_owned(), FailureEvents::place)
        };
        let before = place(&record.parking.events);
        if before == place(&target) {
            return Ok(());
        }
        let detail = format!("to {} instead of {before}", place(&target));
        // A new target forgets the marks of the old one, so it gets everything that is parked now.
        record.parking.events = target;
        self.deployments
            .commit(deployment, record, "failure-events", detail)
            .await?;
        self.publish_failures(deployment);
        Ok(())
    }

    /// The target of failure events, if its source is configured.
    pub(crate) fn failure_target(
        &self,
        wanted: &str,
        module: &Module,
        reads: &str,
    ) -> Result<Option<FailureEvents>, Error> {
        let target = target(wanted, module, reads)?;
        if let Some(FailureEvents { source, .. }) = &target {
            self.sources.known(source)?;
        }
        Ok(target)
    }

    /// Publishes failure events of a deployment for as long as it has a target for them.
    pub(crate) fn publish_failures(self: &Arc<Self>, deployment: &Arc<Deployment>) {
        if deployment.with_record(|record| record.parking.events.is_none()) {
            return;
        }
        let (exceptions, deployment) = (Arc::clone(self), Arc::clone(deployment));
        let name = deployment.name().to_owned();
        self.deployments.chore("failure-events", &name, async move {
            // The outlet is kept between rounds: a publisher has a connection.
            let (mut round, mut pause) = (Round::default(), PAUSE);
            while let Some(events) = deployment.with_record(|record| record.parking.events.clone())
            {
                if deployment.is_gone() || exceptions.deployments.is_stopping() {
                    return;
                }
                match exceptions
                    .publish_some(&deployment, &events, &mut round)
                    .await
                {
                    Ok(true) => pause = PAUSE,
                    Ok(false) => {
                        pause = PAUSE;
                        deployment.note_failure_events(None);
                        changed(&deployment).await;
                    }
                    Err(error) => {
                        // After any error it is made again; the connection may be the cause.
                        round.outlet = None;
                        pause = (pause * 2).min(PAUSE_MAX);
                        deployment.note_failure_events(Some(error.to_string()));
                        tracing::warn!(
                            deployment = deployment.name(),
                            to = events.place(),
                            %error,
                            "failure events can't be published; trying again"
                        );
                    }
                }
                // A target that was away does not announce that it is back.
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Publishes the next failure events; returns whether there were any.
    async fn publish_some(
        &self,
        deployment: &Arc<Deployment>,
        events: &FailureEvents,
        round: &mut Round,
    ) -> Result<bool, Error> {
        let record = deployment.record();
        let state_file = record.active().state_file;
        let Some(store) = deployment.active().store() else {
            return Ok(false);
        };
        // Another state parks its own events.
        let after = if events.state_file == state_file {
            events.through
        } else {
            0
        };
        let newest = store.parked_failures();
        if newest <= after {
            return Ok(false);
        }
        let place = (state_file, events.place());
        if round.place != place {
            *round = Round {
                place,
                ..Round::default()
            };
        }
        let reading = store.clone();
        let tried = round.tried();
        let read = move || failed_between(&reading, (after, newest), &tried);
        let failed = blocking(read).await?;
        if failed.is_empty() && round.is_new() {
            return Ok(false);
        }
        let outlet = match round.outlet.take() {
            Some(outlet) => outlet,
            None => self.sources.known(&events.source)?.outlet(),
        };
        // At least once: a crash between publishing and the mark publishes these again, with the same
        // ids.
        let origin = Origin {
            deployment: deployment.name(),
            generation: record.active,
            state_file,
        };
        let has_sent = round.publish(&outlet, &failed, (&origin, events)).await?;
        round.outlet = Some(outlet);
        let is_all = failed.len() < PORTION;
        let through = match failed.iter().map(number).max() {
            Some(last) if !is_all => last,
            _ => newest,
        };
        let through = round.complete_until(through);
        // Once all others were tried, what is refused is tried again, after a pause.
        let refusal = if is_all && !has_sent {
            round.forget_refused()
        } else {
            None
        };
        let outcome = refusal.map_or(Ok(true), |error| Err(error.into()));
        if through > after {
            self.mark(deployment, events, (state_file, through)).await?;
        }
        outcome
    }

    /// Records up to which failure of a state the failure events are published.
    async fn mark(
        &self,
        deployment: &Arc<Deployment>,
        events: &FailureEvents,
        (state_file, through): (u64, u64),
    ) -> Result<(), Error> {
        // Only for the mark: publishing may take long, and must not keep changes of the deployment
        // out.
        let _changing = self.deployments.lock(deployment).await?;
        let mut record = deployment.draft();
        // Changed meanwhile: the new target begins at its own mark.
        if let Some(known) = &mut record.parking.events
            && known.place() == events.place()
        {
            (known.state_file, known.through) = (state_file, through);
            let detail = format!("through failure {through}");
            self.deployments
                .commit(deployment, record, "failure-events-published", detail)
                .await?;
        }
        Ok(())
    }
}

/// What is kept between looks at parked events.
#[derive(Default)]
struct Round {
    /// The state and the target that it is about.
    place: (u64, String),
    outlet: Option<Outlet>,
    /// The numbers of failures behind the mark whose events the target has.
    sent: BTreeSet<u64>,
    /// The numbers of failures whose events it refuses, and why, until all others were tried.
    refused: BTreeMap<u64, NotPublished>,
}

impl Round {
    fn is_new(&self) -> bool {
        self.sent.is_empty() && self.refused.is_empty()
    }

    /// The numbers of failures that need not be tried now.
    fn tried(&self) -> BTreeSet<u64> {
        self.sent
            .iter()
            .chain(self.refused.keys())
            .copied()
            .collect()
    }

    /// Publishes the failure events of some parked events; returns whether the target took any.
    async fn publish(
        &mut self,
        outlet: &Outlet,
        failed: &[Parked],
        (origin, events): (&Origin<'_>, &FailureEvents),
    ) -> Result<bool, NotPublished> {
        let mut has_sent = false;
        for parked in failed {
            let number = number(parked);
            match outlet
                .publish(message(origin, &events.subject, parked))
                .await
            {
                Ok(_) => has_sent |= self.sent.insert(number),
                // The others may be taken all the same.
                Err(error) if error.is_refusal() => {
                    self.refused.insert(number, error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(has_sent)
    }

    /// Up to which failure, at most the last one that was looked at, the target has all.
    fn complete_until(&mut self, looked: u64) -> u64 {
        let first = self.refused.keys().next();
        let through = first.map_or(looked, |first| looked.min(first - 1));
        self.sent.retain(|number| *number > through);
        through
    }

    /// Lets what is refused be tried again; why the first one is.
    fn forget_refused(&mut self) -> Option<NotPublished> {
        std::mem::take(&mut self.refused).into_values().next()
    }
}

/// Where a failure happened.
struct Origin<'a> {
    deployment: &'a str,
    generation: u64,
    state_file: u64,
}

/// The number of the failure of a parked event.
fn number(parked: &Parked) -> u64 {
    parked.failure.as_ref().map_or(0, |failure| failure.number)
}

/// Waits until the state may have parked something for good.
async fn changed(deployment: &Deployment) {
    let runner = deployment.active();
    // Cancel-safe: it only observes.
    let _ = tokio::time::timeout(LOOK, async {
        match runner.store() {
            Some(store) => drop(store.checkpoints().changed().await),
            None => drop(runner.opened().await),
        }
    })
    .await;
}

/// Parked events whose failures have numbers after one and through another, by that number, up to a
/// portion, without what was tried.
fn failed_between(
    store: &Store,
    (after, through): (u64, u64),
    tried: &BTreeSet<u64>,
) -> Result<Vec<Parked>, Error> {
    let mut failed = Vec::new();
    for (key, parked) in store.parked_keys() {
        let number = parked.failure.map_or(0, |failure| failure.number);
        if number > after && number <= through && !tried.contains(&number) {
            failed.push((number, key));
        }
    }
    failed.sort_unstable();
    // The oldest first, so that `through` can serve as a mark.
    failed.truncate(PORTION);
    let mut events = Vec::new();
    for (_, key) in failed {
        events.extend(store.parked_events(&key, 1)?);
    }
    Ok(events)
}

/// A failure event. It continues the chain of the event that failed, so that a loop through it is found.
fn message(origin: &Origin<'_>, subject: &str, parked: &Parked) -> NewEvent {
    let name = origin.deployment;
    let Parked {
        key,
        event,
        failure,
    } = parked;
    let failure = failure.as_ref();
    let at = failure.map(|failure| failure.first_at.clone());
    let data = json!({
        "deployment": name,
        "generation": origin.generation,
        "key": key,
        "sequence": event.sequence,
        "subject": &*event.subject,
        "type": &*event.kind,
        "digest": parked.digest(),
        "class": failure.map(|failure| &failure.class),
        "error": failure.map(|failure| &failure.message),
        "attempts": failure.map(|failure| failure.attempts),
        "module": failure.map(|failure| &failure.module),
        "parked_at": at,
    });
    let data = Payload::from(data.to_string());
    // The time of the failure tells two failures of one event apart, and the subject two targets in
    // one stream.
    let id = format!(
        "parked.{name}.{}.{}.{}.{}",
        origin.state_file,
        event.sequence,
        at.as_deref().unwrap_or_default(),
        subject
    );
    NewEvent {
        headers: headers(name, (&id, &data), event),
        subject: subject.to_owned(),
        kind: Some(KIND.to_owned()),
        id: Some(id),
        time_ns: None,
        data,
    }
}

/// The headers of a failure event, as those of a message that the deployment publishes for the event.
fn headers(deployment: &str, (id, data): (&str, &Payload), event: &Event) -> Vec<(String, String)> {
    let message = effects::Outgoing {
        deployment,
        id,
        kind: KIND,
        data,
    };
    let mut headers = effects::outgoing(message, event);
    let chain = effects::extended(deployment, event).map(|chain| (effects::PATH.to_owned(), chain));
    // A chain that is as long as one may be stays so: who acts on this event is refused.
    headers.extend(chain.ok().or_else(|| effects::chain(event)));
    headers
}

/// The settings of a new deployment.
pub(super) fn first(
    exceptions: &Exceptions,
    wanted: Option<&str>,
    module: &Module,
    reads: &str,
) -> Result<Option<FailureEvents>, Error> {
    wanted.map_or(Ok(None), |wanted| {
        exceptions.failure_target(wanted, module, reads)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_event_continues_the_chain_of_the_event_that_failed() {
        let own = |path: &str| {
            let header = |name: &str, value: &str| (name.into(), value.into());
            let headers = vec![
                header(effects::PATH, path),
                header("ce-correlationid", "c1"),
            ];
            let event = Event {
                sequence: 7,
                time_ns: 1,
                subject: "in.a".into(),
                kind: "a".into(),
                headers,
                data: Payload::from("{}"),
            };
            let data = Payload::from("{}");
            let headers = super::headers("imp", ("id", &data), &event);
            headers.into_iter().collect::<BTreeMap<String, String>>()
        };
        let short = own("red");
        assert_eq!(short[effects::PATH], "red,imp");
        assert_eq!(short["ce-correlationid"], "c1");
        // As long as a chain may be: who acts on it is refused.
        let long = ["red"; effects::CHAIN_MAX].join(",");
        assert_eq!(own(&long)[effects::PATH], long);
    }
}
