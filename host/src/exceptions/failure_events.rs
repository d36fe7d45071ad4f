//! Error events: an event on a subject of the operator's choice for each event that is parked, for
//! other tools.
//!
//! An error event is published at least once, and again with the same id if it is unknown whether
//! it arrived. How far the host has come is in the catalogue. Nothing waits for error events: a
//! target that is away delays only them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Exceptions;
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::Error;
use crate::effects::Grant;
use crate::event::Payload;
use crate::log::NewEvent;
use crate::module::Module;
use crate::source::Outlet;
use crate::state::catalogue::FailureEvents;
use crate::state::{Parked, Store};

/// Type of error events.
const KIND: &str = "foldstream.event-parked";
/// Most error events between two marks in the catalogue.
const PORTION: usize = 256;
/// Pause between two looks: a burst of failures makes one mark, and not hundreds.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after the target took nothing.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a change of the state, as a state may have been replaced meanwhile.
const LOOK: Duration = Duration::from_secs(5);

/// Checks where error events should go; an empty text means nowhere.
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
            "error events need one subject, such as `ops.failures@orders`: {error}"
        ))
    })?;
    // The target is one subject, so matching it against the module's patterns is exact.
    if grant.source == reads && module.manifest().subjects.matches(subject) {
        return Err(Error::Refused(format!(
            "the module itself reads {subject} of {reads}, so each error event could make another \
             one; choose another subject or source"
        )));
    }
    // 0: published from the first parked event on; events that are parked already are reported too.
    Ok(Some(FailureEvents {
        subject: subject.to_owned(),
        source: grant.source,
        state_file: 0,
        through: 0,
    }))
}

impl Exceptions {
    /// Sets where error events of a deployment go. The caller holds its lock.
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

    /// The target of error events, if its source is configured.
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

    /// Publishes error events of a deployment for as long as it has a target for them.
    pub(crate) fn publish_failures(self: &Arc<Self>, deployment: &Arc<Deployment>) {
        if deployment.with_record(|record| record.parking.events.is_none()) {
            return;
        }
        let (exceptions, deployment) = (Arc::clone(self), Arc::clone(deployment));
        let name = deployment.name().to_owned();
        self.deployments.chore("failure-events", &name, async move {
            // The outlet is kept between rounds: a publisher has a connection.
            let (mut outlet, mut pause) = (None, PAUSE);
            while let Some(events) = deployment.with_record(|record| record.parking.events.clone())
            {
                if deployment.is_gone() || exceptions.deployments.is_stopping() {
                    return;
                }
                match exceptions
                    .publish_some(&deployment, &events, &mut outlet)
                    .await
                {
                    Ok(true) => pause = PAUSE,
                    Ok(false) => {
                        pause = PAUSE;
                        changed(&deployment).await;
                    }
                    Err(error) => {
                        // After any error it is made again; the connection may be the cause.
                        outlet = None;
                        pause = (pause * 2).min(PAUSE_MAX);
                        tracing::warn!(
                            deployment = deployment.name(),
                            to = events.place(),
                            %error,
                            "error events can't be published; trying again"
                        );
                    }
                }
                // A target that was away does not announce that it is back.
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Publishes the next error events; returns whether there were any.
    async fn publish_some(
        &self,
        deployment: &Arc<Deployment>,
        events: &FailureEvents,
        outlet: &mut Option<(String, Outlet)>,
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
        let reading = store.clone();
        let failed = blocking(move || failed_between(&reading, after, newest)).await?;
        let numbers = failed.iter().filter_map(|parked| parked.failure.as_ref());
        let Some(through) = numbers.map(|failure| failure.number).max() else {
            return Ok(false);
        };
        if outlet
            .as_ref()
            .is_none_or(|(name, _)| *name != events.source)
        {
            let source = self.sources.known(&events.source)?;
            *outlet = Some((events.source.clone(), source.outlet()));
        }
        // At least once: a crash between publishing and the commit below publishes these again,
        // with the same ids.
        let generation = record.active;
        for parked in &failed {
            let (id, data) = message(deployment.name(), generation, state_file, parked);
            // Another target in the same stream must not take it for one that it knows.
            let id = format!("{id}.{}", events.subject);
            if let Some((_, outlet)) = outlet.as_ref() {
                outlet
                    .publish(NewEvent {
                        subject: events.subject.clone(),
                        kind: Some(KIND.to_owned()),
                        id: Some(id),
                        time_ns: None,
                        headers: Vec::new(),
                        data: Payload::from(data),
                    })
                    .await?;
            }
        }
        // Only for the mark: publishing may take long, and must not keep changes of the deployment
        // out.
        let _changing = self.deployments.lock(deployment).await?;
        let mut record = deployment.draft();
        // Changed meanwhile: the new target begins at its own mark.
        if let Some(known) = &mut record.parking.events
            && known.place() == events.place()
        {
            (known.state_file, known.through) = (state_file, through);
            let detail = format!("{} through failure {through}", failed.len());
            self.deployments
                .commit(deployment, record, "failure-events-published", detail)
                .await?;
        }
        Ok(true)
    }
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

/// Parked events whose failures have numbers after one and through another, by that number, up to
/// a portion.
fn failed_between(store: &Store, after: u64, through: u64) -> Result<Vec<Parked>, Error> {
    let mut failed = Vec::new();
    for (key, parked) in store.parked_keys() {
        let number = parked.failure.map_or(0, |failure| failure.number);
        if number > after && number <= through {
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

/// Id and data of an error event.
fn message(name: &str, generation: u64, state_file: u64, parked: &Parked) -> (String, String) {
    let Parked {
        key,
        event,
        failure,
    } = parked;
    let failure = failure.as_ref();
    let at = failure.map(|failure| failure.first_at.clone());
    // The time of the failure tells two failures of one event apart.
    let id = format!(
        "parked.{name}.{state_file}.{}.{}",
        event.sequence,
        at.as_deref().unwrap_or_default()
    );
    let data = json!({
        "deployment": name,
        "generation": generation,
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
    (id, data.to_string())
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
