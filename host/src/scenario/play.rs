//! Plays a scenario: what is to happen, in order, and what there is after each step.

use std::time::Duration;

use serde_json::{Value, json};

use super::bed::{Bed, Conditions, Error, Stage};
use super::cost::{Figures, Meter};
use super::expand::Scope;
use super::file::{Action, File, Mistake, OnFailure, Scenario, Template, Then};
use super::observe::{Observation, messages};
use crate::event::Payload;
use crate::log::NewEvent;
use crate::{subject, timestamp};

/// The time of a scenario that names none.
const START: &str = "2026-01-01T00:00:00Z";
/// Most events of one scenario.
const EVENTS_MAX: usize = 1_000_000;

/// A scenario whose variables are filled in.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) start_ns: u64,
    pub(super) on_failure: OnFailure,
    pub(super) given: Vec<Act>,
    /// What happens in each step, and what is so after it.
    pub(super) steps: Vec<(Vec<Act>, Then)>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Events at one time, one after the other.
    Events(Vec<NewEvent>),
    /// Time passes until then, in nanoseconds since the Unix epoch.
    Until(u64),
    /// Time passes.
    Pass(Duration),
    /// A query.
    Ask(String, Payload),
}

/// What a run showed.
#[derive(Clone, Debug)]
pub(super) struct Played {
    /// After each step.
    pub(super) steps: Vec<Observation>,
    /// After events were delivered again, if they were.
    pub(super) repeated: Option<Observation>,
    pub(super) figures: Figures,
}

impl Script {
    pub(super) fn of(file: &File, scenario: &Scenario) -> Result<Self, Mistake> {
        let wrong = |message: String| Mistake::Scenario {
            scenario: scenario.name.clone(),
            message,
        };
        let scope = Scope::default().with(&file.vars).with(&scenario.vars);
        let start = scenario.start.as_deref().unwrap_or(START);
        let start_ns = timestamp::parse_ns(start)
            .map_err(|error| wrong(format!("`start: {start}` {error}")))?;
        let mut writer = ScriptWriter {
            file,
            scope,
            events: 0,
        };
        let given = writer.acts(&scenario.given).map_err(&wrong)?;
        let mut steps = Vec::new();
        // A scenario of nothing but `steps` has no first step of its own.
        let has_first = !scenario.when.is_empty()
            || scenario.then != Then::default()
            || scenario.steps.is_empty();
        let first = has_first.then_some((&scenario.when, &scenario.then));
        let further = scenario.steps.iter().map(|step| (&step.when, &step.then));
        for (when, then) in first.into_iter().chain(further) {
            let acts = writer.acts(when).map_err(&wrong)?;
            let then: Then = writer.scope.fill(then).map_err(&wrong)?;
            steps.push((acts, then));
        }
        Ok(Self {
            start_ns,
            on_failure: scenario.on_failure,
            given,
            steps,
        })
    }
}

/// Writes the acts of a script.
struct ScriptWriter<'a> {
    file: &'a File,
    scope: Scope,
    events: usize,
}

impl ScriptWriter<'_> {
    fn acts(&mut self, actions: &[Action]) -> Result<Vec<Act>, String> {
        let mut acts = Vec::new();
        for action in actions {
            if let Some(pass) = &action.pass {
                let pass: String = self.scope.fill(pass)?;
                let pass = humantime::parse_duration(&pass)
                    .map_err(|error| format!("`pass: {pass}`: {error}; write it like `15m`"))?;
                acts.push(Act::Pass(pass));
            } else if let Some(query) = &action.query {
                // Arguments are JSON, also those that are a text.
                let args = self.scope.fill(&action.args)?;
                let args = args.map_or_else(String::new, |args: Value| args.to_string());
                acts.push(Act::Ask(self.scope.fill(query)?, Payload::from(args)));
            } else {
                self.happening(action, &mut acts)?;
            }
        }
        Ok(acts)
    }

    /// The acts of an event, which happens once or several times.
    fn happening(&mut self, action: &Action, acts: &mut Vec<Act>) -> Result<(), String> {
        let with = action
            .with
            .iter()
            .map(|(name, value)| Ok((name.clone(), self.scope.fill(value)?)))
            .collect::<Result<Vec<_>, String>>()?;
        let scope = self
            .scope
            .with(with.iter().map(|(name, value)| (name, value)));
        for number in 1..=action.times.unwrap_or(1) {
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} events"));
            }
            let scope = scope.with_one("i", json!(number));
            if let Some(at) = &action.at {
                let at: String = scope.fill(at)?;
                let at_ns =
                    timestamp::parse_ns(&at).map_err(|error| format!("`at: {at}` {error}"))?;
                acts.push(Act::Until(at_ns));
            }
            let event = self.event(action, &scope)?;
            match acts.last_mut() {
                Some(Act::Events(events)) => events.push(event),
                _ => acts.push(Act::Events(vec![event])),
            }
        }
        Ok(())
    }

    fn event(&self, action: &Action, scope: &Scope) -> Result<NewEvent, String> {
        let mut whole = Template {
            subject: action.subject.clone(),
            kind: action.kind.clone(),
            id: action.id.clone(),
            headers: action.headers.clone(),
            data: action.data.clone(),
        };
        let template = action
            .event
            .as_ref()
            .and_then(|name| self.file.events.get(name));
        if let Some(template) = template.cloned() {
            whole.subject = whole.subject.or(template.subject);
            whole.kind = whole.kind.or(template.kind);
            whole.id = whole.id.or(template.id);
            whole.data = whole.data.or(template.data);
            for (name, value) in template.headers {
                whole.headers.entry(name).or_insert(value);
            }
        }
        let whole: Template = scope.fill(&whole)?;
        let subject = whole.subject.ok_or("an event has no subject")?;
        subject::validate(&subject).map_err(|error| error.to_string())?;
        if subject::is_reserved(&subject) {
            return Err(format!(
                "subject `{subject}` belongs to the host; timers fire by `pass`"
            ));
        }
        Ok(NewEvent {
            subject,
            kind: whole.kind,
            id: whole.id,
            // Set when it happens.
            time_ns: None,
            headers: whole.headers.into_iter().collect(),
            data: payload(whole.data.unwrap_or_else(|| json!({})))?,
        })
    }
}

fn payload(value: Value) -> Result<Payload, String> {
    Payload::from_json(value).map_err(|error| error.to_string())
}

/// Plays a script under some conditions; `repeats` delivers the events with ids again at the end.
pub(super) fn play(
    stage: &Stage,
    script: &Script,
    conditions: Conditions,
    meter: Meter,
    repeats: bool,
) -> Result<Played, Error> {
    let mut run = Run {
        bed: Bed::new(stage, conditions, script.on_failure, meter)?,
        now_ns: script.start_ns,
        happened: Vec::new(),
        numbers_events: stage.module.manifest().inbox.is_some(),
    };
    run.act(&script.given, &mut Vec::new())?;
    let mut steps = Vec::new();
    for (acts, _) in &script.steps {
        // The outbox of a projection has no rows.
        let published = messages(&run.bed)?.len();
        let mut answers = Vec::new();
        run.act(acts, &mut answers)?;
        let mut seen = Observation::of(&run.bed, published, run.now_ns)?;
        seen.answers = answers;
        steps.push(seen);
    }
    let repeated = match steps.last() {
        Some(last) if repeats && last.failure.is_none() => Some(run.repeat(last)?),
        _ => None,
    };
    Ok(Played {
        steps,
        repeated,
        figures: run.bed.meter.figures(),
    })
}

struct Run<'a> {
    bed: Bed<'a>,
    now_ns: u64,
    /// The events so far, if they may be repeated.
    happened: Vec<NewEvent>,
    /// Events without an id get one.
    numbers_events: bool,
}

impl Run<'_> {
    fn act(
        &mut self,
        acts: &[Act],
        answers: &mut Vec<Result<Payload, String>>,
    ) -> Result<(), Error> {
        for act in acts {
            match act {
                Act::Events(events) => self.happen(events)?,
                Act::Until(time_ns) => self.pass_until(*time_ns)?,
                Act::Pass(time) => {
                    let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                    self.pass_until(self.now_ns.saturating_add(time_ns))?;
                }
                Act::Ask(query, args) => {
                    let answer = self.bed.ask(query, args);
                    answers.push(answer.map_err(|error| error.to_string()));
                }
            }
        }
        Ok(())
    }

    fn happen(&mut self, events: &[NewEvent]) -> Result<(), Error> {
        let mut events = events.to_vec();
        for event in &mut events {
            event.time_ns = Some(self.now_ns);
            if self.numbers_events {
                let number = self.happened.len() + 1;
                event.id.get_or_insert_with(|| format!("scenario-{number}"));
                self.happened.push(event.clone());
            }
        }
        self.bed.happen(&events)?;
        // A timer that was set for now fires at once, as it would on a host.
        self.bed.fire_until(self.now_ns, self.now_ns)
    }

    /// Time never goes back.
    fn pass_until(&mut self, time_ns: u64) -> Result<(), Error> {
        let before_ns = self.now_ns;
        self.now_ns = self.now_ns.max(time_ns);
        self.bed.fire_until(self.now_ns, before_ns)
    }

    /// Delivers again what the inbox of the module still remembers.
    fn repeat(&mut self, before: &Observation) -> Result<Observation, Error> {
        let keep = self.bed.keeps_ids();
        let horizon_ns = keep.map_or(u64::MAX, |keep| {
            self.now_ns.saturating_sub(keep.window_ns.saturating_sub(1))
        });
        let mut again: Vec<NewEvent> = std::mem::take(&mut self.happened)
            .into_iter()
            .filter(|event| event.time_ns.is_some_and(|time_ns| time_ns >= horizon_ns))
            .collect();
        for event in &mut again {
            event.time_ns = Some(self.now_ns);
        }
        let published = messages(&self.bed)?.len() - before.published.len();
        if !again.is_empty() {
            self.bed.happen(&again)?;
            self.bed.fire_until(self.now_ns, self.now_ns)?;
        }
        Observation::of(&self.bed, published, self.now_ns)
    }
}
