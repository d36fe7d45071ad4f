//! What a comparison found, for people and programs.

use serde::Serialize;

use super::mode::Mode;
use super::sides::{Side, Version};
use crate::api::Direction;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{counted, printable};
use crate::schemas::Schema;
use crate::schemas::compare::{Reason, Weight, reasons_of_versions};

/// All comparisons of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// None if nothing was compared.
    compatible: Option<bool>,
    /// Each event of each pair.
    pub(super) checks: Vec<Check>,
    /// Deployments that carry no schema of these events, so that nothing is known of what they read.
    unknown: Vec<String>,
    #[serde(skip)]
    on_unknown: OnUnknown,
    #[serde(skip)]
    demand: Demand,
}

/// What an event comes to if a keyword of its schemas is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnUnknown {
    /// It fails.
    Fail,
    /// It passes.
    Pass,
}

/// What is demanded of deployments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Demand {
    /// Nothing.
    #[default]
    None,
    /// Each carries a schema of one of the events.
    Schemas,
}

/// The comparison of an event.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    event: String,
    /// Where the old schemas are, or the deployment.
    old: String,
    new: String,
    verdict: Verdict,
    reasons: Vec<Failing>,
}

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Compatible,
    Incompatible,
    /// A keyword is not understood.
    Unknown,
    /// Only the old side has the event, so nothing is compared.
    OnlyOld,
    /// Only the new side has the event, so nothing is compared.
    OnlyNew,
}

/// Why a reader may refuse what a writer writes.
#[derive(Debug, Serialize)]
struct Failing {
    /// The side and version that reads.
    reader: String,
    /// The side and version that writes.
    writer: String,
    #[serde(flatten)]
    reason: Reason,
}

impl Check {
    /// A check with nothing against the event.
    fn of(event: &str, old: &Side, new: &Side, verdict: Verdict) -> Self {
        Self {
            event: event.to_owned(),
            old: old.name.clone(),
            new: new.name.clone(),
            verdict,
            reasons: Vec::new(),
        }
    }
}

impl Report {
    pub(super) fn new(on_unknown: OnUnknown) -> Self {
        Self {
            compatible: None,
            checks: Vec::new(),
            unknown: Vec::new(),
            on_unknown,
            demand: Demand::None,
        }
    }

    /// Compares two sides event by event; says whether they have an event in common.
    pub(super) fn add(&mut self, old: &Side, new: &Side, mode: Mode) -> bool {
        if old.is_file && new.is_file {
            let pairs = old.events.iter().zip(&new.events);
            for ((_, before), ((_, event), after)) in pairs {
                self.compare(event, (old, before), (new, after), mode);
            }
            return true;
        }
        let mut has_common = false;
        for (key, before) in &old.events {
            match new.events.get(key) {
                Some(after) => {
                    has_common = true;
                    self.compare(&key.1, (old, before), (new, after), mode);
                }
                None => self.push(Check::of(&key.1, old, new, Verdict::OnlyOld)),
            }
        }
        for key in new
            .events
            .keys()
            .filter(|key| !old.events.contains_key(*key))
        {
            self.push(Check::of(&key.1, old, new, Verdict::OnlyNew));
        }
        has_common
    }

    /// Compares what a deployed module reads with what the new side writes.
    pub(super) fn add_consumer(&mut self, consumer: &Side, new: &Side) {
        for event in new.written_events() {
            let key = (Direction::Reads, event.to_owned());
            if let Some(read) = consumer.events.get(&key) {
                let written = new.written(event);
                self.compare(event, (consumer, read), (new, written), Mode::Forward);
            }
        }
    }

    /// Notes deployments that could not be compared.
    pub(super) fn add_unknown(&mut self, deployments: Vec<String>, demand: Demand) {
        if demand == Demand::Schemas && !deployments.is_empty() {
            self.compatible = Some(false);
        }
        self.demand = demand;
        self.unknown = deployments;
    }

    fn compare(
        &mut self,
        event: &str,
        (old, before): (&Side, &[Version]),
        (new, after): (&Side, &[Version]),
        mode: Mode,
    ) {
        let mut failing = Vec::new();
        if mode.is_backward() {
            failing.extend(compared((new, after), (old, before)));
        }
        if mode.is_forward() {
            failing.extend(compared((old, before), (new, after)));
        }
        let is_unknown = |failing: &Failing| failing.reason.weight == Weight::Unknown;
        let verdict = if failing.is_empty() {
            Verdict::Compatible
        } else if failing.iter().all(is_unknown) {
            Verdict::Unknown
        } else {
            Verdict::Incompatible
        };
        self.push(Check {
            reasons: failing,
            ..Check::of(event, old, new, verdict)
        });
    }

    fn push(&mut self, check: Check) {
        let is_compatible = !self.is_failing(check.verdict);
        self.compatible = Some(self.compatible.unwrap_or(true) && is_compatible);
        self.checks.push(check);
    }

    fn is_failing(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Incompatible => true,
            Verdict::Unknown => self.on_unknown == OnUnknown::Fail,
            Verdict::Compatible | Verdict::OnlyOld | Verdict::OnlyNew => false,
        }
    }

    /// One line per event, and the reasons against it.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let Check {
                event, old, new, ..
            } = check;
            let mark = if self.is_failing(check.verdict) {
                "FAIL"
            } else {
                "ok  "
            };
            let note = match check.verdict {
                Verdict::OnlyOld => format!("only in {old}"),
                Verdict::OnlyNew => format!("only in {new}"),
                Verdict::Unknown => format!("{old} and {new}: not understood"),
                Verdict::Compatible | Verdict::Incompatible => format!("{old} and {new}"),
            };
            let line = format!("{mark}  {event}  ({note})");
            text.push_str(&format!("{}\n", printable(&line)));
            for failing in &check.reasons {
                let Failing {
                    reader,
                    writer,
                    reason,
                } = failing;
                let at = match reason.pointer.as_str() {
                    "" => "the event as a whole",
                    pointer => pointer,
                };
                let line = format!("{reader} may refuse what {writer} accepts, at {at}:");
                text.push_str(&format!("        {}\n", printable(&line)));
                let line = format!("{} ({})", reason.message, reason.keyword);
                text.push_str(&format!("          {}\n", printable(&line)));
            }
        }
        let mark = match self.demand {
            Demand::None => "?   ",
            Demand::Schemas => "FAIL",
        };
        for deployment in &self.unknown {
            let line = format!("{mark}  *  ({deployment}: carries no schema of these events)");
            text.push_str(&format!("{}\n", printable(&line)));
        }
        text.push_str(&format!(
            "{} compared, {} not compatible",
            counted(self.compared() as u64, "event"),
            self.failed()
        ));
        if !self.unknown.is_empty() {
            let unknown = counted(self.unknown.len() as u64, "deployment");
            text.push_str(&format!(", {unknown} not compared"));
        }
        text
    }

    fn compared(&self) -> usize {
        let none = [Verdict::OnlyOld, Verdict::OnlyNew];
        let compared = self
            .checks
            .iter()
            .filter(|check| !none.contains(&check.verdict));
        compared.count()
    }

    fn failed(&self) -> usize {
        let failed = self
            .checks
            .iter()
            .filter(|check| self.is_failing(check.verdict));
        failed.count()
    }

    /// An error if something is not compatible.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        match self.failed() as u64 {
            0 if self.demand == Demand::Schemas && !self.unknown.is_empty() => {
                let unknown = counted(self.unknown.len() as u64, "deployment");
                let message = format!("{unknown} without a schema of these events");
                Err(Failure::new(Exit::Failed, message).into())
            }
            0 if self.checks.is_empty() => {
                let message =
                    "no deployed module carries a schema of these events, so nothing is compared";
                Err(Failure::new(Exit::NotFound, message).into())
            }
            0 => Ok(()),
            failed => {
                let message = format!("{} not compatible", counted(failed, "event"));
                Err(Failure::new(Exit::Failed, message).into())
            }
        }
    }
}

/// Why the versions of a reader may refuse what those of a writer accept.
fn compared(
    (reader, reads): (&Side, &[Version]),
    (writer, writes): (&Side, &[Version]),
) -> Vec<Failing> {
    fn of(versions: &[Version]) -> Vec<(u32, &Schema)> {
        let versions = versions.iter();
        versions
            .map(|version| (version.number, &version.schema))
            .collect()
    }
    let mut failing = Vec::new();
    for (written, read, reasons) in reasons_of_versions(&of(reads), &of(writes)) {
        failing.extend(reasons.into_iter().map(|reason| Failing {
            reader: format!("{} of {}", reads[read].name, reader.name),
            writer: format!("{} of {}", writes[written].name, writer.name),
            reason,
        }));
    }
    failing
}
