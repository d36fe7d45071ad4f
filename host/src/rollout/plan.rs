//! Decides what a deploy does, and why, before anything is changed.

use crate::api::{ModuleInfo, Start, Strategy};
use crate::state::catalogue::{Generation, Record};

/// A requested deploy.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// The module.
    pub module: &'a ModuleInfo,
    /// The source to read.
    pub source: &'a str,
    /// Where a new state begins.
    pub start: Start,
    /// The requested strategy; none lets the host decide.
    pub strategy: Option<Strategy>,
    /// Whether it has a gate or is promoted by hand, which requires a state of its own.
    pub stands_beside: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: this generation already has the module.
    Unchanged {
        /// The generation.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// A new generation that continues the state of a candidate that an event stopped.
    Continue {
        /// The candidate.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// A new generation.
    New {
        /// How its state comes to be.
        strategy: Strategy,
        /// Why.
        reason: String,
    },
}

/// Decides; an error says why the request is impossible.
pub fn decide(record: &Record, wish: &Wish<'_>) -> Result<Plan, String> {
    let source = &record.active().source;
    if source != wish.source {
        return Err(format!(
            "{} reads source {source}, whose positions have nothing to do with those of {}; deploy it under another name with --name",
            record.name, wish.source
        ));
    }
    match wish.strategy {
        Some(strategy) => as_wanted(record, wish, strategy),
        None => Ok(as_fits(record, wish)),
    }
}

fn as_fits(record: &Record, wish: &Wish<'_>) -> Plan {
    let active = record.active();
    let has = |generation: &&Generation| {
        generation.module.digest == wish.module.digest
            && generation.source == wish.source
            && generation.start == wish.start
    };
    if let Some(candidate) = record.candidate().filter(has) {
        let reason = format!("generation {} has this module, and is being built", candidate.number);
        return Plan::Unchanged { generation: candidate.number, reason };
    }
    if has(&active) {
        let mut reason = format!("generation {} has this module, and is active", active.number);
        if let Some(candidate) = record.candidate() {
            let note = "still takes over when it has caught up; `foldstream abort` discards it";
            reason.push_str(&format!("; generation {} {note}", candidate.number));
        }
        return Plan::Unchanged { generation: active.number, reason };
    }
    match why_not_inherit(active, wish) {
        None => {
            let reason = format!(
                "both modules have state version {}; --strategy rebuild builds it from scratch",
                wish.module.state_version
            );
            Plan::New { strategy: Strategy::Inherit, reason }
        }
        Some(mut reason) => {
            if let Some(stopped) = record.stopped_candidate().filter(|stopped| continues(stopped, wish)) {
                let at = stopped.failed_at.unwrap_or_default();
                let reason = format!(
                    "{reason}; it has the same state version as generation {}, which stopped at event {at}, and continues there; \
                     --strategy rebuild begins from the first event",
                    stopped.number
                );
                return Plan::Continue { generation: stopped.number, reason };
            }
            if wish.module.migrates {
                reason.push_str("; --strategy migrate would convert the entries instead of folding all events again");
            }
            Plan::New { strategy: Strategy::Rebuild, reason }
        }
    }
}

/// Whether other code can continue the state of a stopped candidate.
fn continues(stopped: &Generation, wish: &Wish<'_>) -> bool {
    let (old, new) = (&stopped.module, wish.module);
    old.digest != new.digest
        && old.state_version == new.state_version
        && old.subjects == new.subjects
        && (stopped.source == wish.source && stopped.start == wish.start)
}

fn why_not_inherit(active: &Generation, wish: &Wish<'_>) -> Option<String> {
    let (old, new) = (&active.module, wish.module);
    if active.start != wish.start {
        return Some("it starts at another place in the stream".to_owned());
    }
    if old.state_version != new.state_version {
        return Some(format!("state version {} instead of {}", new.state_version, old.state_version));
    }
    if old.subjects != new.subjects {
        let subjects = (new.subjects.join(", "), old.subjects.join(", "));
        return Some(format!("it reads other subjects ({} instead of {})", subjects.0, subjects.1));
    }
    if wish.stands_beside {
        return Some("a comparison or a manual promotion needs a state of its own".to_owned());
    }
    None
}

fn as_wanted(record: &Record, wish: &Wish<'_>, strategy: Strategy) -> Result<Plan, String> {
    let active = record.active();
    match strategy {
        Strategy::Rebuild => Ok(Plan::New { strategy, reason: "a rebuild was requested".to_owned() }),
        Strategy::Inherit if wish.stands_beside => {
            Err("cannot inherit: an inherited state cannot be compared or promoted by hand; rebuild it".to_owned())
        }
        Strategy::Inherit if active.module.state_version != wish.module.state_version => Err(format!(
            "cannot inherit: state version {} is not {}; rebuild it, or give the module the same state version if both \
             store the same",
            wish.module.state_version, active.module.state_version
        )),
        Strategy::Inherit if active.module.digest == wish.module.digest => Ok(Plan::Unchanged {
            generation: active.number,
            reason: format!("generation {} has this module, and is active", active.number),
        }),
        Strategy::Inherit => Ok(Plan::New { strategy, reason: asked("to inherit", active, wish) }),
        Strategy::Migrate if !wish.module.migrates => {
            Err("cannot migrate: the module exports no `migrate`; add it (guest-sdk/rust has an example), or rebuild"
                .to_owned())
        }
        Strategy::Migrate => Ok(Plan::New { strategy, reason: asked("to migrate", active, wish) }),
    }
}

/// The reason for a requested strategy, with its drawbacks.
fn asked(what: &str, active: &Generation, wish: &Wish<'_>) -> String {
    let mut reason = format!("{what} was requested");
    if active.module.subjects != wish.module.subjects {
        reason.push_str("; the state lacks earlier events of the new subjects");
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BuildSettings, ErrorPolicy, GenerationStatus, ModuleLimits};

    fn module(digest: &str, state_version: u32) -> ModuleInfo {
        ModuleInfo {
            digest: digest.to_owned(),
            size: 1,
            kind: "projection".to_owned(),
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
            subjects_from: 0,
            build: BuildSettings::default(),
            comparison: None,
            accepts_missing_through: 0,
            failure: None,
        }
    }

    fn record() -> Record {
        let active = generation(1, module("one", 1), GenerationStatus::Active);
        let (name, generations) = ("totals".to_owned(), vec![active]);
        Record { name, active: 1, next: 2, generations, repairs: 0, skips: Vec::new() }
    }

    fn decided(record: &Record, module: &ModuleInfo, strategy: Option<Strategy>) -> Result<Plan, String> {
        decide(record, &Wish { module, source: "events", start: Start::Beginning, strategy, stands_beside: false })
    }

    fn strategy(plan: &Plan) -> Option<Strategy> {
        if let Plan::New { strategy, .. } = plan { Some(*strategy) } else { None }
    }

    #[test]
    fn the_same_module_changes_nothing_wherever_it_is() {
        let mut record = record();
        let plan = decided(&record, &module("one", 1), None).expect("sound");
        assert!(matches!(plan, Plan::Unchanged { generation: 1, .. }));
        record.generations.push(generation(2, module("two", 2), GenerationStatus::Building));
        let plan = decided(&record, &module("two", 2), None).expect("sound");
        assert!(matches!(plan, Plan::Unchanged { generation: 2, .. }));
    }

    #[test]
    fn what_stores_the_same_inherits_and_anything_else_is_rebuilt() {
        let plan = |module: &ModuleInfo| strategy(&decided(&record(), module, None).expect("sound"));
        assert_eq!(plan(&module("two", 1)), Some(Strategy::Inherit));
        assert_eq!(plan(&module("two", 2)), Some(Strategy::Rebuild));
        let mut wider = module("two", 1);
        wider.subjects.push("payments.>".to_owned());
        assert_eq!(plan(&wider), Some(Strategy::Rebuild));
        let module = module("two", 1);
        let start = Start::Beginning;
        let wish = Wish { module: &module, source: "other", start, strategy: None, stands_beside: false };
        assert!(decide(&record(), &wish).expect_err("refused").contains("under another name"));
    }

    #[test]
    fn corrected_code_continues_the_candidate_that_an_event_stopped() {
        let mut record = record();
        let mut stopped = generation(2, module("two", 2), GenerationStatus::Failed);
        stopped.failed_at = Some(7);
        record.generations.push(stopped);
        let plan = decided(&record, &module("three", 2), None).expect("sound");
        assert!(matches!(plan, Plan::Continue { generation: 2, .. }), "{plan:?}");
        for (module, wanted) in
            [(module("two", 2), None), (module("three", 3), None), (module("three", 2), Some(Strategy::Rebuild))]
        {
            let plan = decided(&record, &module, wanted).expect("sound");
            assert_eq!(strategy(&plan), Some(Strategy::Rebuild), "{module:?}");
        }
        record.generations[1].failed_at = None;
        let plan = decided(&record, &module("three", 2), None).expect("sound");
        assert_eq!(strategy(&plan), Some(Strategy::Rebuild), "no event stopped it");
    }

    #[test]
    fn what_is_to_be_compared_or_promoted_by_hand_is_never_handed_on() {
        let decided = |module: &ModuleInfo, strategy| {
            let wish = Wish { module, source: "events", start: Start::Beginning, strategy, stands_beside: true };
            decide(&record(), &wish)
        };
        assert_eq!(strategy(&decided(&module("two", 1), None).expect("sound")), Some(Strategy::Rebuild));
        assert!(matches!(decided(&module("one", 1), None).expect("sound"), Plan::Unchanged { .. }));
        let refused = decided(&module("two", 1), Some(Strategy::Inherit)).expect_err("is refused");
        assert!(refused.contains("cannot be compared"), "{refused}");
    }

    #[test]
    fn what_is_wanted_is_done_or_refused_with_a_reason() {
        let refused = |module: &ModuleInfo, strategy| decided(&record(), module, Some(strategy)).expect_err("refused");
        assert!(refused(&module("two", 2), Strategy::Inherit).contains("state version 2 is not 1"));
        assert!(refused(&module("two", 2), Strategy::Migrate).contains("exports no `migrate`"));
        let rebuilt = decided(&record(), &module("one", 1), Some(Strategy::Rebuild)).expect("sound");
        assert_eq!(strategy(&rebuilt), Some(Strategy::Rebuild));
        let migrating = ModuleInfo { migrates: true, ..module("two", 2) };
        let migrated = decided(&record(), &migrating, Some(Strategy::Migrate)).expect("sound");
        assert_eq!(strategy(&migrated), Some(Strategy::Migrate));
    }
}
