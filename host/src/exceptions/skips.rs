//! Decisions to skip events: making, withdrawing and listing them.
//!
//! A decision is one commit of the catalogue, made while all runners of the deployment are held
//! with everything durable. Each of their states has therefore either passed the event, and does
//! not change, or has not, and will skip it. A crash at any point finds one or the other.

use std::sync::Arc;
use std::time::Duration;

use super::Exceptions;
use crate::deployment::Deployment;
use crate::deployments::{Error, GenerationChoice, crash_points};
use crate::event::Event;
use crate::failure::Failure;
use crate::overview;
use crate::pipeline::Ceiling;
use crate::runner::Runner;
use crate::source::{self, Source};
use crate::state::catalogue::{Generation, Record};
use crate::state::exceptions::{BEHIND_MAX, REASON_BYTES_MAX, SKIPS_MAX, Skip};
use crate::state::{self, ParkedKey};
use crate::subject::SubjectSet;

/// Most events that one request may skip.
const REQUEST_MAX: usize = 100;
/// How long the runners of a deployment may take to stop: a guest call ends first.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// Events to skip, and why.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    sequences: Vec<u64>,
    reason: String,
}

/// Why a request to skip events is not valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidSkips {
    /// A reason for nothing.
    #[error("a reason without an event to skip; add skip")]
    NoEvent,
    /// Skipping needs a reason.
    #[error(
        "add a reason for skipping the events: it is recorded, and shown to everyone who asks why \
         the state lacks them"
    )]
    NoReason,
    /// The reason has too many bytes.
    #[error("the reason has {0} bytes, {REASON_BYTES_MAX} are allowed; shorten it")]
    LongReason(usize),
    /// Too many events.
    #[error("{0} events to skip at once, {REQUEST_MAX} are allowed; send several requests")]
    TooMany(usize),
}

impl Wanted {
    /// Checks the sequences and the reason of a request, which may contain none.
    pub(crate) fn of(
        mut sequences: Vec<u64>,
        given: Option<&str>,
    ) -> Result<Option<Self>, InvalidSkips> {
        let reason = given.unwrap_or_default().trim().to_owned();
        match (sequences.len(), reason.len()) {
            (0, _) if given.is_none() => Ok(None),
            (0, _) => Err(InvalidSkips::NoEvent),
            (_, 0) => Err(InvalidSkips::NoReason),
            (_, bytes) if bytes > REASON_BYTES_MAX => Err(InvalidSkips::LongReason(bytes)),
            (count, _) if count > REQUEST_MAX => Err(InvalidSkips::TooMany(count)),
            _ => {
                // Each event is decided once, and the list is in the order of the record.
                sequences.sort_unstable();
                sequences.dedup();
                Ok(Some(Self { sequences, reason }))
            }
        }
    }
}

/// Runners that are held. Dropping it releases them.
pub(super) struct Held(Vec<Arc<Runner>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(|runner| {
            runner.set_ceiling(Ceiling::None);
        });
    }
}

/// The generation that has yet to pass an event.
struct Target {
    generation: Generation,
    /// There is none while a candidate that an event stopped does not run.
    runner: Option<Arc<Runner>>,
    failure: Option<Failure>,
}

impl Target {
    fn new(deployment: &Deployment, generation: &Generation) -> Self {
        let runner = deployment
            .runner(generation.state_file)
            .filter(|_| generation.failure.is_none());
        let failure = runner.as_ref().map_or_else(
            || generation.failure.clone().map(Failure::from),
            |runner| runner.now().failure,
        );
        Self {
            generation: generation.clone(),
            runner,
            failure,
        }
    }

    /// The last sequence that its state has passed.
    fn position(&self) -> u64 {
        let stopped_before = || {
            self.failure
                .as_ref()
                .and_then(|failure| failure.sequence)
                .map_or(0, |at| at - 1)
        };
        self.runner
            .as_ref()
            .map_or_else(stopped_before, |runner| runner.position())
    }

    /// The key with which an event is parked, if it is.
    fn parked_key(&self, sequence: u64) -> Option<String> {
        let store = self.runner.as_ref()?.store()?;
        let keys = store.parked_keys();
        let mut keys = keys.into_iter();
        let has = |(_, key): &(String, ParkedKey)| key.sequences().any(|one| one == sequence);
        Some(keys.find(has)?.0)
    }

    /// The failure of an event, if it is the one that fails.
    fn failure_at(&self, sequence: u64) -> Option<&Failure> {
        self.failure
            .as_ref()
            .filter(|failure| failure.sequence == Some(sequence))
    }

    /// The event, if it is the one that fails.
    fn failing_event(&self, sequence: u64) -> Option<Event> {
        self.runner
            .as_ref()?
            .failing_event()
            .filter(|event| event.sequence == sequence)
    }
}

/// How long recording the failure of a candidate may take.
const NOTED_MAX: Duration = Duration::from_secs(5);

/// Waits until the failure of a candidate that has just stopped is recorded. Recorded after a
/// resume, it would end the candidate.
pub(crate) async fn failure_noted(deployment: &Deployment) {
    let noted = deployment.until(|record| {
        let runner = record
            .candidate()
            .and_then(|candidate| deployment.runner(candidate.state_file));
        (!runner.is_some_and(|runner| runner.now().has_stopped())).then_some(())
    });
    // It only observes.
    let _ = tokio::time::timeout(NOTED_MAX, noted).await;
}

impl Exceptions {
    /// Decides that events are skipped from now on. Events that are already skipped stay so. The
    /// caller holds the deployment's lock.
    pub(crate) async fn decide(
        &self,
        deployment: &Arc<Deployment>,
        choice: GenerationChoice,
        wanted: &Wanted,
    ) -> Result<(), Error> {
        let record = deployment.record();
        // A stopped candidate is no candidate by status any more.
        let generation = match (choice, record.stopped_candidate()) {
            (GenerationChoice::Candidate, Some(stopped)) => stopped,
            _ => choice.of(&record)?,
        };
        let target = Target::new(deployment, generation);
        let known = record.skips();
        let mut decided = Vec::new();
        // If it fails there in spite of a decision, the decision was about another event, or about
        // the same event parsed differently.
        let is_open =
            |sequence: &u64| !known.has(*sequence) || target.failure_at(*sequence).is_some();
        // All are checked before anything is held: an event may have to be read from the stream.
        for sequence in wanted.sequences.iter().copied().filter(is_open) {
            decided.push(
                self.decision(deployment.name(), &target, sequence, &wanted.reason)
                    .await?,
            );
        }
        if decided.is_empty() {
            return Ok(());
        }
        // From here on no state of the deployment passes an event.
        let _held = hold(deployment).await?;
        for skip in &decided {
            check_ahead(deployment.name(), &target, skip.sequence)?;
        }
        self.record_decisions(deployment, decided).await
    }

    /// Records decisions in the place of earlier ones about the same events. The runners are held.
    pub(crate) async fn record_decisions(
        &self,
        deployment: &Arc<Deployment>,
        decided: Vec<Skip>,
    ) -> Result<(), Error> {
        let mut record = deployment.draft();
        record
            .skips
            .retain(|known| decided.iter().all(|skip| skip.sequence != known.sequence));
        check_room(deployment.name(), &record.skips, &decided)?;
        let detail = decided.iter().map(detail).collect::<Vec<_>>().join("; ");
        record.skips.extend(decided);
        record.skips.sort_by_key(|skip| skip.sequence);
        let skips = record.skips();
        self.deployments
            .commit(deployment, record, "skip", detail.clone())
            .await?;
        crash_points::reached("skip-recorded");
        tracing::warn!(
            deployment = deployment.name(),
            detail,
            "events will be skipped"
        );
        deployment
            .runners()
            .iter()
            .for_each(|runner| runner.leave_out(skips.clone()));
        Ok(())
    }

    /// The decision about one event, once it has been checked.
    async fn decision(
        &self,
        name: &str,
        target: &Target,
        sequence: u64,
        reason: &str,
    ) -> Result<Skip, Error> {
        check_ahead(name, target, sequence)?;
        let failure = target.failure_at(sequence);
        let error = failure.map(|failure| format!("{}: {}", failure.kind, failure.message));
        // An event that cannot be read has no digest, so its sequence has to do.
        if failure.is_some_and(Failure::is_of_unreadable_event) {
            return Ok(Skip::new(sequence, reason, error, None));
        }
        // The failing event is still in memory; the stream need not be asked.
        if let Some(event) = target.failing_event(sequence) {
            return Ok(Skip::new(sequence, reason, error, Some(&event)));
        }
        let event = self.look_up(name, target, sequence).await?;
        Ok(Skip::new(sequence, reason, error, Some(&event)))
    }

    /// The event of the stream, which must be one that the generation reads.
    async fn look_up(&self, name: &str, target: &Target, sequence: u64) -> Result<Event, Error> {
        let module = &target.generation.module;
        let source = self.sources.known(&target.generation.source)?;
        let unknown = |why: source::LookError| {
            Error::NotOpen(format!("cannot read event {sequence}: {why}; try again"))
        };
        let found = Source::event(source, sequence).await.map_err(unknown)?;
        let event = match found {
            Ok(event) => event,
            Err(head) if sequence > head => {
                return Err(Error::Refused(format!(
                    "event {sequence} does not exist yet: the stream of {name} ends at {head}; \
                     only existing events can be skipped"
                )));
            }
            Err(_) => {
                return Err(Error::Refused(format!(
                    "the stream of {name} no longer has event {sequence}, so there is nothing to \
                     skip"
                )));
            }
        };
        // An event of another subject is never applied, so a skip of it would never be carried out.
        let wants = SubjectSet::parse(&module.subjects)
            .is_ok_and(|subjects| subjects.matches(&event.subject));
        if !wants {
            return Err(Error::Refused(format!(
                "event {sequence} has subject {}, which {name} does not read, so there is nothing \
                 to skip",
                event.subject
            )));
        }
        Ok(event)
    }

    /// Withdraws a decision, and returns those that are left. States that have passed the event do
    /// not change.
    pub async fn withdraw_skip(
        &self,
        name: &str,
        sequence: u64,
    ) -> Result<Vec<overview::Skip>, Error> {
        let deployment = self.deployments.get(name)?;
        let _changing = self.deployments.lock(&deployment).await?;
        let is_decided = |record: &Record| record.skips.iter().any(|skip| skip.has(sequence));
        // Before the hold, so that a wrong request holds nobody.
        if !is_decided(&deployment.record()) {
            return Err(Error::Missing(format!(
                "{name} has no decision to skip event {sequence}; `foldstream skips {name}` lists \
                 its decisions"
            )));
        }
        // As with a decision: each state has either passed the event or will apply it.
        let _held = hold(&deployment).await?;
        let mut record = deployment.draft();
        record.skips.retain(|skip| skip.sequence != sequence);
        for skip in &mut record.skips {
            if skip.behind.has(sequence) {
                skip.behind = skip.behind.without(sequence);
            }
        }
        let skips = record.skips();
        self.deployments
            .commit(
                &deployment,
                record,
                "skip-withdrawn",
                format!("event {sequence}"),
            )
            .await?;
        deployment
            .runners()
            .iter()
            .for_each(|runner| runner.leave_out(skips.clone()));
        Ok(deployment.skips())
    }
}

/// A decision as text for the audit log.
fn detail(skip: &Skip) -> String {
    let failed = skip
        .error
        .as_ref()
        .map(|error| format!(" ({error})"))
        .unwrap_or_default();
    let behind = match skip.behind.len() {
        0 => String::new(),
        count => format!(" with {count} later of its key"),
    };
    format!("event {}{behind}: {}{failed}", skip.sequence, skip.reason)
}

/// Refuses more decisions than a deployment may have.
fn check_room(name: &str, known: &[Skip], decided: &[Skip]) -> Result<(), Error> {
    let behind = |skips: &[Skip]| skips.iter().map(|skip| skip.behind.len()).sum::<usize>();
    let (count, later) = (known.len() + decided.len(), behind(known) + behind(decided));
    let message = if count > SKIPS_MAX {
        format!(
            "{name} has {} decisions to skip events, and {SKIPS_MAX} are allowed",
            known.len()
        )
    } else if later > BEHIND_MAX {
        format!(
            "{name} would leave out {later} events that waited behind others, and {BEHIND_MAX} are \
             allowed"
        )
    } else {
        return Ok(());
    };
    Err(state::Error::Limit {
        limit: "skips",
        message: format!(
            "{message}; correct the module instead, or withdraw decisions with `foldstream skips \
             {name} --remove`"
        ),
    }
    .into())
}

fn check_ahead(name: &str, target: &Target, sequence: u64) -> Result<(), Error> {
    let position = target.position();
    if sequence > position {
        return Ok(());
    }
    if sequence == 0 {
        return Err(Error::Refused(
            "there is no event 0: sequences begin with 1".to_owned(),
        ));
    }
    if let Some(key) = target.parked_key(sequence) {
        return Err(Error::Refused(format!(
            "event {sequence} is parked with the key `{key}`, and nothing waits for it but later \
             events of that key; `foldstream parked drop {name} KEY --reason TEXT` leaves the first \
             event of a key out"
        )));
    }
    let number = target.generation.number;
    Err(Error::Refused(format!(
        "generation {number} of {name} has already passed event {sequence}: it is at {position}; a \
         skip removes nothing from a state"
    )))
}

/// Holds all runners of a deployment, with everything durable.
pub(crate) async fn hold(deployment: &Deployment) -> Result<Held, Error> {
    // Made before the wait: if it fails, its drop lifts the ceilings.
    let held = Held(deployment.runners());
    let changes: Vec<u64> = held
        .0
        .iter()
        .map(|runner| runner.set_ceiling(Ceiling::Position(0)))
        .collect();
    // One after the other costs no time: all stop at once, and the last one counts.
    let stand = async {
        for (runner, change) in held.0.iter().zip(changes) {
            runner.held_at(change).await;
        }
    };
    let busy = |_| {
        // Nothing that is not durable may be held.
        let is_of_disk = |failure: &Failure| failure.is_of_state();
        let mut failures = held.0.iter().filter_map(|runner| runner.now().failure);
        let failure = failures.find(is_of_disk);
        let why = match failure {
            Some(failure) => format!("{}: {}", failure.kind, failure.message),
            None => "its module is still applying a batch, or a state is still opening".to_owned(),
        };
        Error::NotOpen(format!(
            "{} did not stop within {} s: {why}; try again",
            deployment.name(),
            HOLD_MAX.as_secs()
        ))
    };
    tokio::time::timeout(HOLD_MAX, stand).await.map_err(busy)?;
    Ok(held)
}
