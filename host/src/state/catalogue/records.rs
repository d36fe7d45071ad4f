//! Rows of the catalogue: a deployment with its generations, and what else is recorded of it.

use serde::{Deserialize, Serialize};

use super::build::{BuildSettings, Comparison};
use super::failure::FailureRecord;
use super::module::ModuleInfo;
use super::words::{EventChecks, GenerationStatus, OnFailure, Strategy};
use crate::effects::{Grants, Lineage};
use crate::lanes::Lanes;
use crate::position::Start;
use crate::state::Error;
use crate::state::exceptions::{Skip, Skips};
use crate::storage;

/// A deployment in the catalogue: one row, so that a cut-over is one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Number of the active generation.
    pub active: u64,
    /// Number of the next generation; numbers are never reused.
    pub next: u64,
    /// Its generations, by rising number. Files of generations that are not listed are leftovers.
    pub generations: Vec<Generation>,
    /// Raised before and after each partial rebuild: earlier reads then no longer match their
    /// position.
    #[serde(default)]
    pub repairs: u64,
    /// The skipped events, by rising sequence. They apply to every state that has not passed them.
    #[serde(default)]
    pub skips: Vec<Skip>,
    /// What happens to events that have used up their attempts.
    #[serde(default)]
    pub parking: ParkingRecord,
    /// Who owns the effects of a handler, and what it may publish; none for a projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler: Option<HandlerRecord>,
    /// In how many lanes it is folded; none is as many as the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<Lanes>,
}

/// The effects of a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerRecord {
    /// Its ids begin with this.
    pub lineage: Lineage,
    /// Number of the state file that owns them.
    pub state_file: u64,
    /// Counts changes of the owner.
    pub epoch: u64,
    /// Effects of events up to this sequence are dropped: they were there before the first deploy.
    pub effects_after: u64,
    /// The position at which the state file took over the effects of another one, which decided
    /// about all events up to there; 0 for the first owner.
    #[serde(default)]
    pub owned_after: u64,
    /// What it may publish.
    pub grants: Grants,
    /// The lineage with which it began, if it has another one by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_as: Option<Lineage>,
}

impl HandlerRecord {
    /// The lineage with which it began. What operators decide about its timers names this one: it
    /// stays the same in whatever state file and history, so each fold of the stream meets their
    /// decisions, earlier and later ones.
    pub fn first_lineage(&self) -> Lineage {
        self.begun_as.unwrap_or(self.lineage)
    }

    /// With another lineage from now on.
    #[must_use]
    pub fn continued_as(self, lineage: Lineage) -> Self {
        let first = self.first_lineage();
        Self {
            lineage,
            begun_as: Some(first).filter(|first| *first != lineage),
            ..self
        }
    }
}

/// Generations without a file that a deployment keeps as history.
const HISTORY_MAX: usize = 100;

/// What a deployment does with events that have used up their attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkingRecord {
    /// Whether they stop it.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// The generation that still has to retry what an earlier one has parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_by: Option<u64>,
    /// Where failure events go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<FailureEvents>,
}

/// Where failure events go, and how far they are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureEvents {
    /// The subject.
    pub subject: String,
    /// Name of the source.
    pub source: String,
    /// The state whose failures were published last.
    pub state_file: u64,
    /// The number of the last one of them in that state.
    pub through: u64,
}

impl FailureEvents {
    /// As an operator writes it.
    pub fn place(&self) -> String {
        format!("{}@{}", self.subject, self.source)
    }
}

impl Record {
    /// Checks that a row is consistent, because all users of it rely on that.
    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        let numbers = || self.generations.iter().map(|generation| generation.number);
        if self.name == name
            && numbers().any(|number| number == self.active)
            && numbers().all(|it| it < self.next)
        {
            return Ok(());
        }
        Err(Error::Open(storage::Error::new(format!(
            "catalogue: the row of deployment {name} is inconsistent; restore catalog.redb from a \
             backup"
        ))))
    }

    /// A generation, by number.
    pub fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.number == number)
    }

    /// A generation to change, by number.
    pub fn generation_mut(&mut self, number: u64) -> Option<&mut Generation> {
        self.generations
            .iter_mut()
            .find(|generation| generation.number == number)
    }

    /// The active generation.
    pub fn active(&self) -> &Generation {
        self.generation(self.active)
            .expect("the active generation is one of the record's")
    }

    /// The same, to change it.
    pub fn active_mut(&mut self) -> &mut Generation {
        let active = self.active;
        self.generation_mut(active)
            .expect("the active generation is one of the record's")
    }

    /// The candidate; there is at most one.
    pub fn candidate(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|generation| generation.status.is_candidate())
    }

    /// The previous generation, while it is kept.
    pub fn previous(&self) -> Option<&Generation> {
        self.last_kept(|_| true)
    }

    /// The latest previous generation that is kept and meets a condition.
    fn last_kept(&self, fits: impl Fn(&Generation) -> bool) -> Option<&Generation> {
        let kept = self
            .generations
            .iter()
            .filter(|generation| generation.status == GenerationStatus::Previous);
        kept.filter(|generation| fits(generation))
            .max_by_key(|generation| (&generation.status_since, generation.number))
    }

    /// The generation whose code would be restored if the active one failed on the state that it
    /// inherited.
    pub fn to_restore(&self) -> Option<&Generation> {
        let active = self.active();
        let shared = |generation: &Generation| generation.state_file == active.state_file;
        if active.on_probation {
            self.last_kept(shared)
        } else {
            None
        }
    }

    /// The generation whose code follows the stream in an inactive state file: the latest active
    /// one of those that share the file.
    pub fn follower(&self, state_file: u64) -> Option<&Generation> {
        self.last_kept(|generation| generation.state_file == state_file)
    }

    /// The events that a state skips which has not passed them.
    pub fn skips(&self) -> Skips {
        Skips::new(self.skips.iter().cloned())
    }

    /// The latest candidate that an event stopped, while its state is kept: without that event it
    /// can continue.
    pub fn stopped_candidate(&self) -> Option<&Generation> {
        let stopped = self
            .generations
            .iter()
            .rev()
            .find(|generation| generation.is_stopped_candidate());
        stopped.filter(|_| self.candidate().is_none())
    }

    /// Adds a generation, which must have the next number.
    pub fn add(&mut self, generation: Generation) {
        debug_assert_eq!(generation.number, self.next, "numbers only rise");
        self.next = generation.number + 1;
        self.generations.push(generation);
    }

    /// Drops the oldest history beyond the limit.
    pub fn trim(&mut self) {
        let history = self
            .generations
            .iter()
            .filter(|generation| !generation.has_file())
            .count();
        // The newest history is worth the most, and the list is in order.
        let mut surplus = history.saturating_sub(HISTORY_MAX);
        self.generations.retain(|generation| {
            let goes = surplus > 0 && !generation.has_file();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Numbers of the state files that its generations keep.
    pub fn files(&self) -> usize {
        let kept = self
            .generations
            .iter()
            .filter(|generation| generation.has_file());
        kept.map(|generation| generation.state_file)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    /// Whether a generation that is not retired uses a state file.
    pub fn uses_file(&self, state_file: u64) -> bool {
        self.generations
            .iter()
            .any(|generation| generation.has_file() && generation.state_file == state_file)
    }
}

/// One module and one state file under a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number; numbers only rise.
    pub number: u64,
    /// Its module.
    pub module: ModuleInfo,
    /// Name of the source.
    pub source: String,
    /// Where a new state begins.
    pub start: Start,
    /// Number in the name of its state file: its own, or that of the generation whose state it
    /// inherited.
    pub state_file: u64,
    /// How its state was created.
    pub strategy: Strategy,
    /// Its status.
    pub status: GenerationStatus,
    /// Why it has this status.
    pub reason: String,
    /// When it was deployed, in RFC 3339.
    pub created_at: String,
    /// When it got its status, in RFC 3339.
    pub status_since: String,
    /// Whether an operator paused it.
    pub paused: bool,
    /// Position from which it answers reads: earlier positions belonged to another generation.
    pub serves_from: u64,
    /// Whether it ever answered reads.
    pub has_served: bool,
    /// It inherited a state file and is on probation: if it fails, the previous code is restored.
    pub on_probation: bool,
    /// The event that its code could not apply, if it failed or was replaced because of that. It is
    /// never restored automatically after that event.
    #[serde(default)]
    pub failed_at: Option<u64>,
    /// The position at which it replaced code that had not begun since the host started: nobody knows
    /// whether that code can apply the next event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_unbegun_at: Option<u64>,
    /// Position from which its state has the events of all its subjects; not 0 if it inherited a
    /// state that was built from other subjects.
    #[serde(default)]
    pub subjects_from: u64,
    /// How many releases of parked events its state had when it took over.
    #[serde(default)]
    pub releases_before: u64,
    /// The options with which it was built.
    pub build: BuildSettings,
    /// The result of the last comparison with the active generation.
    pub comparison: Option<Comparison>,
    /// Events up to this sequence may be missing from the stream, as an operator accepted; 0
    /// accepts none.
    // Format 1 has no such field.
    #[serde(default)]
    pub accepts_missing_through: u64,
    /// Whether an operator accepted since it was begun that it lacks events of the active generation
    /// which are gone from the stream; see [`Self::may_lack`].
    #[serde(default)]
    pub accepts_lost: bool,
    /// How many such events it lacks, if that keeps it from taking over; otherwise 0.
    #[serde(default)]
    pub lacks_events: u64,
    /// The sequence after which its state begins, if it repeats a state that began at the first
    /// event that its stream had then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_after: Option<u64>,
    /// The failure, if it failed while it was built.
    #[serde(default)]
    pub failure: Option<FailureRecord>,
    /// The position at which it takes over from an owner of effects that is gone, as an operator
    /// accepted: it publishes for the events after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_effects_after: Option<u64>,
    /// Events after this sequence are checked against the schemas of its module; none are if absent.
    /// More than 0 if it inherited a state: a fold that is to equal that one must not refuse what it
    /// has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_events_after: Option<u64>,
}

impl Generation {
    /// Gives it another status.
    pub fn enter(&mut self, status: GenerationStatus, reason: impl Into<String>) {
        // Once true it stays: a generation that has served may be named for a rollback later.
        self.has_served |= status == GenerationStatus::Active;
        self.status = status;
        self.reason = reason.into();
        self.status_since = jiff::Timestamp::now().to_string();
    }

    /// The same module as a new generation, to be folded from the beginning of the stream.
    pub fn to_rebuild(&self, number: u64, build: BuildSettings, reason: impl Into<String>) -> Self {
        let mut rebuilt = Self {
            number,
            module: self.module.clone(),
            source: self.source.clone(),
            start: self.start,
            state_file: number,
            strategy: Strategy::Rebuild,
            status: GenerationStatus::Building,
            reason: String::new(),
            created_at: jiff::Timestamp::now().to_string(),
            status_since: String::new(),
            paused: false,
            serves_from: 0,
            has_served: false,
            on_probation: false,
            failed_at: None,
            replaced_unbegun_at: None,
            subjects_from: 0,
            releases_before: 0,
            accepts_lost: false,
            lacks_events: 0,
            build,
            comparison: None,
            // What was accepted for one fold of this stream is accepted for the next.
            accepts_missing_through: self.accepts_missing_through,
            begins_after: None,
            failure: None,
            lost_effects_after: None,
            // In a state of its own, all of them.
            checks_events_after: self.checks_events_after.map(|_| 0),
        };
        rebuilt.enter(GenerationStatus::Building, reason);
        rebuilt
    }

    /// Whether it checks events against the schemas of its module.
    pub fn event_checks(&self) -> EventChecks {
        match self.checks_events_after {
            Some(_) => EventChecks::On,
            None => EventChecks::Off,
        }
    }

    /// Whether it may take over although it lacks events of the active generation.
    pub fn may_lack(&self) -> bool {
        self.accepts_lost || self.build.accept_missing
    }

    /// Whether an event stopped it while it was built: without that event it can continue from its
    /// state.
    pub fn is_stopped_candidate(&self) -> bool {
        // Its file is its own, or that of a candidate that it continued; a generation that
        // inherited has the file of another.
        self.status == GenerationStatus::Failed
            && self.strategy != Strategy::Inherit
            && self.failed_at.is_some()
    }

    /// Whether its state file is kept for it: not for history, and not for a failed generation
    /// unless an event stopped it, because nothing reads or continues it.
    pub fn has_file(&self) -> bool {
        match self.status {
            GenerationStatus::Retired => false,
            GenerationStatus::Failed => self.is_stopped_candidate(),
            _ => true,
        }
    }
}
