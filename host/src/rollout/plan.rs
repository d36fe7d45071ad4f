//! Decides what a deploy does, and why, before anything is changed.

use crate::deployments::Impossible;
use crate::position::Start;
use crate::state::catalogue::{EventChecks, Generation, ModuleInfo, Record, Strategy};

#[derive(Clone, Debug)]
pub(super) struct Requested<'a> {
    pub module: &'a ModuleInfo,
    /// The source to read.
    pub source: &'a str,
    /// Where a new state begins.
    pub start: Start,
    /// The requested strategy; none lets the host decide.
    pub strategy: Option<Strategy>,
    /// Whether it checks events; none as the generation does that it replaces.
    pub checks: Option<EventChecks>,
    /// Whether it has a gate or is promoted by hand, which requires a state of its own.
    pub needs_own_state: bool,
    /// Whether the active state owned effects and is lost, so that no code can inherit it.
    pub is_owner_lost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing: this generation already has the module.
    Unchanged { generation: u64, reason: String },
    /// A new generation that continues the state of a candidate that an event stopped.
    Continue { generation: u64, reason: String },
    New {
        /// How its state comes to be.
        strategy: Strategy,
        reason: String,
    },
}

impl Plan {
    /// How the state of a new generation comes to be; none if it is not a new one.
    pub(super) fn new_strategy(&self) -> Option<Strategy> {
        match self {
            Self::New { strategy, .. } => Some(*strategy),
            Self::Unchanged { .. } | Self::Continue { .. } => None,
        }
    }

    /// Whether the generation whose place it takes checks events.
    pub(super) fn checks(&self, record: &Record) -> EventChecks {
        let before = match self {
            Self::Unchanged { generation, .. } | Self::Continue { generation, .. } => {
                record.generation(*generation)
            }
            Self::New { .. } => None,
        };
        before.unwrap_or(record.active()).event_checks()
    }
}

/// Decides what a deploy does.
pub(super) fn decide(record: &Record, requested: &Requested<'_>) -> Result<Plan, Impossible> {
    let source = &record.active().source;
    if source != requested.source {
        let (name, current, wanted) = (
            record.name.clone(),
            source.clone(),
            requested.source.to_owned(),
        );
        return Err(Impossible::OtherSource {
            name,
            current,
            wanted,
        });
    }
    let (current, wanted) = (record.active().module.kind, requested.module.kind);
    if current != wanted {
        let name = record.name.clone();
        return Err(Impossible::OtherKind {
            name,
            current,
            wanted,
        });
    }
    match requested.strategy {
        Some(strategy) => as_requested(record, requested, strategy),
        None => Ok(as_fits(record, requested)),
    }
}

fn as_fits(record: &Record, requested: &Requested<'_>) -> Plan {
    let active = record.active();
    let has = |generation: &&Generation| {
        generation.module.digest == requested.module.digest
            && generation.source == requested.source
            && generation.start == requested.start
            && checks_alike(generation, requested)
    };
    // The candidate is asked first: it was asked for last, and may have the module of the active
    // one.
    if let Some(candidate) = record.candidate().filter(has) {
        let reason = format!(
            "generation {} has this module, and is being built",
            candidate.number
        );
        return Plan::Unchanged {
            generation: candidate.number,
            reason,
        };
    }
    // The deploy of what is active does not abort a candidate; the reason says so.
    if has(&active) {
        let mut reason = format!(
            "generation {} has this module, and is active",
            active.number
        );
        if let Some(candidate) = record.candidate() {
            let note = "still takes over when it has caught up; `foldstream abort` discards it";
            reason.push_str(&format!("; generation {} {note}", candidate.number));
        }
        return Plan::Unchanged {
            generation: active.number,
            reason,
        };
    }
    match why_not_inherit(active, requested) {
        None => {
            let strategy = Strategy::Inherit;
            let reason = why_inherit(active, requested);
            Plan::New { strategy, reason }
        }
        Some(mut reason) => {
            // Only instead of a rebuild: to inherit is cheaper than to continue.
            if let Some(stopped) = record
                .stopped_candidate()
                .filter(|stopped| continues(stopped, requested))
            {
                let at = stopped.failed_at.unwrap_or_default();
                let reason = format!(
                    "{reason}; it has the same state version as generation {}, which stopped at \
                     event {at}, and continues there; --strategy rebuild begins from the first \
                     event",
                    stopped.number
                );
                return Plan::Continue {
                    generation: stopped.number,
                    reason,
                };
            }
            if requested.module.migrates {
                reason.push_str(
                    "; --strategy migrate would convert the entries instead of folding \
                                 all events again",
                );
            }
            Plan::New {
                strategy: Strategy::Rebuild,
                reason,
            }
        }
    }
}

/// Whether other code can continue the state of a stopped candidate.
fn continues(stopped: &Generation, requested: &Requested<'_>) -> bool {
    let (old, new) = (&stopped.module, requested.module);
    // The same code would stop at the same event, unless it checks other ones.
    (old.digest != new.digest || !checks_alike(stopped, requested))
        && old.state_version == new.state_version
        && old.subjects == new.subjects
        // Timers that are pending need code that handles them.
        && old.sets_timers <= new.sets_timers
        && (stopped.source == requested.source && stopped.start == requested.start)
}

/// Whether a generation checks events as requested.
fn checks_alike(generation: &Generation, requested: &Requested<'_>) -> bool {
    let wanted = requested.checks;
    wanted.is_none_or(|wanted| wanted == generation.event_checks())
}

fn why_inherit(active: &Generation, requested: &Requested<'_>) -> String {
    let reason = format!(
        "both modules have state version {}; --strategy rebuild builds it from scratch",
        requested.module.state_version
    );
    match requested
        .checks
        .filter(|_| !checks_alike(active, requested))
    {
        None => reason,
        Some(EventChecks::On) => format!("events are checked from here on; {reason}"),
        Some(EventChecks::Off) => format!("events are no longer checked; {reason}"),
    }
}

fn why_not_inherit(active: &Generation, requested: &Requested<'_>) -> Option<String> {
    let (old, new) = (&active.module, requested.module);
    if active.start != requested.start {
        return Some("it starts at another place in the stream".to_owned());
    }
    if old.state_version != new.state_version {
        return Some(format!(
            "state version {} instead of {}",
            new.state_version, old.state_version
        ));
    }
    if old.subjects != new.subjects {
        let subjects = (new.subjects.join(", "), old.subjects.join(", "));
        return Some(format!(
            "it reads other subjects ({} instead of {})",
            subjects.0, subjects.1
        ));
    }
    if old.sets_timers && !new.sets_timers {
        return Some("it sets no timers, so pending timers would never fire".to_owned());
    }
    if requested.is_owner_lost {
        return Some("the active state, which owned its effects, is lost".to_owned());
    }
    if requested.needs_own_state {
        return Some("a comparison or a manual promotion needs a state of its own".to_owned());
    }
    None
}

fn as_requested(
    record: &Record,
    requested: &Requested<'_>,
    strategy: Strategy,
) -> Result<Plan, Impossible> {
    let active = record.active();
    match strategy {
        // A rebuild is possible with any module, and even with the same one.
        Strategy::Rebuild => Ok(Plan::New {
            strategy,
            reason: "a rebuild was requested".to_owned(),
        }),
        // Checked in this order, so that the message names the most fundamental obstacle.
        Strategy::Inherit if requested.needs_own_state => Err(Impossible::NothingToCompare),
        Strategy::Inherit if active.module.state_version != requested.module.state_version => {
            let (current, wanted) = (active.module.state_version, requested.module.state_version);
            Err(Impossible::OtherVersion { current, wanted })
        }
        Strategy::Inherit
            if active.module.digest == requested.module.digest
                && checks_alike(active, requested) =>
        {
            Ok(Plan::Unchanged {
                generation: active.number,
                reason: format!(
                    "generation {} has this module, and is active",
                    active.number
                ),
            })
        }
        Strategy::Inherit => Ok(Plan::New {
            strategy,
            reason: reason_of("to inherit", active, requested),
        }),
        Strategy::Migrate if !requested.module.migrates => Err(Impossible::NoMigration),
        Strategy::Migrate => Ok(Plan::New {
            strategy,
            reason: reason_of("to migrate", active, requested),
        }),
    }
}

/// The reason for a requested strategy, with its drawbacks.
fn reason_of(what: &str, active: &Generation, requested: &Requested<'_>) -> String {
    let mut reason = format!("{what} was requested");
    if active.module.subjects != requested.module.subjects {
        reason.push_str("; the state lacks earlier events of the new subjects");
    }
    if active.module.sets_timers && !requested.module.sets_timers {
        reason.push_str("; the module sets no timers, so pending timers do not fire");
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::catalogue::{
        BuildSettings, ErrorPolicy, GenerationStatus, ModuleKind, ModuleLimits,
    };

    fn module(digest: &str, state_version: u32) -> ModuleInfo {
        ModuleInfo {
            digest: digest.to_owned(),
            size: 1,
            kind: ModuleKind::Projection,
            name: "totals".to_owned(),
            description: String::new(),
            subjects: vec!["orders.>".to_owned()],
            wants_headers: false,
            key_rule: "none".to_owned(),
            state_version,
            error_policy: ErrorPolicy::default(),
            limits: ModuleLimits::default(),
            queries: Vec::new(),
            imports: Vec::new(),
            migrates: false,
            publishes: Vec::new(),
            inbox: None,
            sets_timers: false,
            events: Vec::new(),
        }
    }

    fn generation(number: u64, module: ModuleInfo, status: GenerationStatus) -> Generation {
        Generation {
            number,
            module,
            source: "events".to_owned(),
            start: Start::Beginning,
            state_file: number,
            strategy: Strategy::Rebuild,
            status,
            reason: String::new(),
            created_at: String::new(),
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
            build: BuildSettings::default(),
            comparison: None,
            accepts_missing_through: 0,
            begins_after: None,
            lost_effects_after: None,
            checks_events_after: None,
            failure: None,
        }
    }

    fn record() -> Record {
        let active = generation(1, module("one", 1), GenerationStatus::Active);
        let (name, generations) = ("totals".to_owned(), vec![active]);
        Record {
            name,
            active: 1,
            next: 2,
            generations,
            repairs: 0,
            skips: Vec::new(),
            parking: Default::default(),
            handler: None,
            lanes: None,
        }
    }

    fn decided(
        record: &Record,
        module: &ModuleInfo,
        strategy: Option<Strategy>,
    ) -> Result<Plan, Impossible> {
        decide(
            record,
            &Requested {
                module,
                source: "events",
                start: Start::Beginning,
                strategy,
                checks: None,
                needs_own_state: false,
                is_owner_lost: false,
            },
        )
    }

    fn strategy(plan: &Plan) -> Option<Strategy> {
        if let Plan::New { strategy, .. } = plan {
            Some(*strategy)
        } else {
            None
        }
    }

    #[test]
    fn the_same_module_changes_nothing_wherever_it_is() {
        let mut record = record();
        let plan = decided(&record, &module("one", 1), None).expect("sound");
        assert!(matches!(plan, Plan::Unchanged { generation: 1, .. }));
        record
            .generations
            .push(generation(2, module("two", 2), GenerationStatus::Building));
        let plan = decided(&record, &module("two", 2), None).expect("sound");
        assert!(matches!(plan, Plan::Unchanged { generation: 2, .. }));
    }

    #[test]
    fn what_stores_the_same_inherits_and_anything_else_is_rebuilt() {
        let plan =
            |module: &ModuleInfo| strategy(&decided(&record(), module, None).expect("sound"));
        assert_eq!(plan(&module("two", 1)), Some(Strategy::Inherit));
        assert_eq!(plan(&module("two", 2)), Some(Strategy::Rebuild));
        let mut wider = module("two", 1);
        wider.subjects.push("payments.>".to_owned());
        assert_eq!(plan(&wider), Some(Strategy::Rebuild));
        let module = module("two", 1);
        let start = Start::Beginning;
        let requested = Requested {
            module: &module,
            source: "other",
            start,
            strategy: None,
            checks: None,
            needs_own_state: false,
            is_owner_lost: false,
        };
        assert!(
            decide(&record(), &requested)
                .expect_err("refused")
                .to_string()
                .contains("under another name")
        );
    }

    #[test]
    fn corrected_code_continues_the_candidate_that_an_event_stopped() {
        let mut record = record();
        let mut stopped = generation(2, module("two", 2), GenerationStatus::Failed);
        stopped.failed_at = Some(7);
        record.generations.push(stopped);
        let plan = decided(&record, &module("three", 2), None).expect("sound");
        assert!(
            matches!(plan, Plan::Continue { generation: 2, .. }),
            "{plan:?}"
        );
        for (module, wanted) in [
            (module("two", 2), None),
            (module("three", 3), None),
            (module("three", 2), Some(Strategy::Rebuild)),
        ] {
            let plan = decided(&record, &module, wanted).expect("sound");
            assert_eq!(strategy(&plan), Some(Strategy::Rebuild), "{module:?}");
        }
        record.generations[1].failed_at = None;
        let plan = decided(&record, &module("three", 2), None).expect("sound");
        assert_eq!(
            strategy(&plan),
            Some(Strategy::Rebuild),
            "no event stopped it"
        );
    }

    #[test]
    fn what_is_to_be_compared_or_promoted_by_hand_is_never_handed_on() {
        let decided = |module: &ModuleInfo, strategy| {
            let requested = Requested {
                module,
                source: "events",
                start: Start::Beginning,
                strategy,
                checks: None,
                needs_own_state: true,
                is_owner_lost: false,
            };
            decide(&record(), &requested)
        };
        assert_eq!(
            strategy(&decided(&module("two", 1), None).expect("sound")),
            Some(Strategy::Rebuild)
        );
        assert!(matches!(
            decided(&module("one", 1), None).expect("sound"),
            Plan::Unchanged { .. }
        ));
        let refused = decided(&module("two", 1), Some(Strategy::Inherit)).expect_err("is refused");
        assert!(
            refused.to_string().contains("cannot be compared"),
            "{refused}"
        );
    }

    #[test]
    fn handler_inherits_by_default_and_is_rebuilt_like_a_projection() {
        let handler = |digest, version| ModuleInfo {
            kind: ModuleKind::Handler,
            ..module(digest, version)
        };
        let mut record = record();
        let refused = decided(&record, &handler("two", 1), None).expect_err("is of another kind");
        assert!(
            refused
                .to_string()
                .contains("is a projection, and the module is a handler"),
            "{refused}"
        );
        record.generations[0].module = handler("one", 1);
        for (module, wanted, expected) in [
            (handler("two", 1), None, Strategy::Inherit),
            (handler("two", 2), None, Strategy::Rebuild),
            (
                handler("two", 1),
                Some(Strategy::Rebuild),
                Strategy::Rebuild,
            ),
        ] {
            let plan = decided(&record, &module, wanted).expect("sound");
            assert_eq!(strategy(&plan), Some(expected), "{module:?}");
        }
    }

    #[test]
    fn what_is_wanted_is_done_or_refused_with_a_reason() {
        let refused = |module: &ModuleInfo, strategy| {
            decided(&record(), module, Some(strategy))
                .expect_err("refused")
                .to_string()
        };
        assert!(refused(&module("two", 2), Strategy::Inherit).contains("state version 2 is not 1"));
        assert!(refused(&module("two", 2), Strategy::Migrate).contains("exports no `migrate`"));
        let rebuilt =
            decided(&record(), &module("one", 1), Some(Strategy::Rebuild)).expect("sound");
        assert_eq!(strategy(&rebuilt), Some(Strategy::Rebuild));
        let migrating = ModuleInfo {
            migrates: true,
            ..module("two", 2)
        };
        let migrated = decided(&record(), &migrating, Some(Strategy::Migrate)).expect("sound");
        assert_eq!(strategy(&migrated), Some(Strategy::Migrate));
    }
}
