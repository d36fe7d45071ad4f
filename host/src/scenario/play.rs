//! Plays a scenario: its steps in order, and the actual state after each.

use std::time::Duration;

use serde_json::{Value, json};

use super::bed::{Bed, Conditions, Error, Stage};
use super::cost::{Figures, Meter};
use super::document::{Document, Mistake, path_of};
use super::expand::{Scope, Unsound};
use super::file::{Action, OnFailure, Scenario, Template, Then, TimersFire};
use super::observe::{Observation, messages};
use super::places::Place;
use crate::event::Payload;
use crate::log::{self, NewEvent};
use crate::{subject, timestamp};

/// The time of a scenario that names none.
const START: &str = "2026-01-01T00:00:00Z";
/// Most events of one scenario.
const EVENTS_MAX: usize = 1_000_000;
/// Most bytes of subjects, headers and data of the events of one scenario.
const EVENTS_BYTES_MAX: usize = 256 << 20;
/// Longest time that passes at once: about 100 years. Clocks end in 2554.
const PASS_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// A scenario whose variables are filled in.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) start_ns: u64,
    pub(super) on_failure: OnFailure,
    pub(super) timers_fire: TimersFire,
    pub(super) given: Vec<Act>,
    pub(super) steps: Vec<ScriptStep>,
    /// Size of all its events, in bytes.
    pub(super) bytes: usize,
    /// Where its events come from, in their order.
    pub(super) origins: Vec<Origin>,
    /// Whether events need not fit the schemas that the module carries.
    pub(super) invalid_events: bool,
    /// Whether events that do not fit fail.
    pub(super) check_events: bool,
    scope: Scope,
}

/// The action of a file that some events come from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// Its step, from 1; what was given counts as part of the first one.
    pub(super) step: usize,
    /// Its path in the file.
    pub(super) path: Vec<String>,
    /// How many events it made.
    pub(super) events: usize,
}

/// What happens, and what is so after it.
#[derive(Clone, Debug)]
pub(super) struct ScriptStep {
    pub(super) acts: Vec<Act>,
    pub(super) then: Then,
    /// Where `then` is in the file.
    then_path: Vec<String>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Events at one time, one after the other.
    Events(Vec<NewEvent>),
    /// Time passes until then, in nanoseconds since the Unix epoch.
    Until(u64),
    Pass(Duration),
    Fire(String),
    /// Events that the module does not read.
    Others(u32),
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
    pub(super) fn of(document: &Document, index: usize) -> Result<Self, Mistake> {
        let scenario = &document.scenarios()[index];
        let mut writer = ScriptWriter {
            document,
            scope: Scope::default()
                .with(&document.file.vars)
                .with(&scenario.vars),
            at: path_of(index, &[]),
            step: 1,
            origins: Vec::new(),
            events: 0,
            bytes: 0,
        };
        let written = writer.script(index, scenario);
        written.map_err(|unsound| document.mistake(&writer.at, &scenario.name, &unsound))
    }

    /// The place of what a difference is about.
    pub(super) fn place(
        &self,
        document: &Document,
        step: usize,
        claim: &[String],
    ) -> Option<Place> {
        let step = step
            .checked_sub(1)
            .and_then(|index| self.steps.get(index))?;
        let mut path = step.then_path.clone();
        path.extend_from_slice(claim);
        let place = document.place(&path);
        // The file may have the key with variables in it.
        let Some(key) = claim.get(1) else {
            return place;
        };
        let known = document.members(&path[..step.then_path.len() + 1]);
        let written = known.into_iter().find(|name| {
            let filled: Result<String, _> = self.scope.fill(name);
            filled.is_ok_and(|filled| filled == *key)
        });
        let Some(written) = written else {
            return place;
        };
        path[step.then_path.len() + 1] = written;
        document.place(&path)
    }
}

/// Writes the acts of a script.
struct ScriptWriter<'a> {
    document: &'a Document,
    scope: Scope,
    /// The path of what it looks at, for messages.
    at: Vec<String>,
    /// The step that it looks at, from 1.
    step: usize,
    origins: Vec<Origin>,
    events: usize,
    bytes: usize,
}

impl ScriptWriter<'_> {
    fn script(&mut self, index: usize, scenario: &Scenario) -> Result<Script, Unsound> {
        let start = scenario.start.as_deref().unwrap_or(START);
        self.at = path_of(index, &["start"]);
        let start_ns = time_ns("start", &self.scope.fill::<String>(&start.to_owned())?)?;
        let given = self.acts(&path_of(index, &["given"]), &scenario.given)?;
        // A scenario of nothing but `steps` has no first step of its own.
        let has_first = !scenario.when.is_empty()
            || scenario.then != Then::default()
            || scenario.steps.is_empty();
        let first = has_first.then(|| (path_of(index, &[]), &scenario.when, &scenario.then));
        let further = scenario.steps.iter().enumerate().map(|(number, step)| {
            let path = path_of(index, &["steps", &number.to_string()]);
            (path, &step.when, &step.then)
        });
        let mut steps = Vec::new();
        for (path, when, then) in first.into_iter().chain(further) {
            let inner = |name: &str| {
                let mut path = path.clone();
                path.push(name.to_owned());
                path
            };
            self.step = steps.len() + 1;
            let acts = self.acts(&inner("when"), when)?;
            self.at = inner("then");
            steps.push(ScriptStep {
                acts,
                then: self.scope.fill(then)?,
                then_path: self.at.clone(),
            });
        }
        Ok(Script {
            start_ns,
            on_failure: scenario.on_failure,
            timers_fire: scenario.timers_fire,
            given,
            steps,
            bytes: self.bytes,
            origins: std::mem::take(&mut self.origins),
            // The check itself says what happens to them.
            invalid_events: scenario.invalid_events || scenario.check_events,
            check_events: scenario.check_events,
            scope: self.scope.clone(),
        })
    }

    fn acts(&mut self, path: &[String], actions: &[Action]) -> Result<Vec<Act>, Unsound> {
        let mut acts = Vec::new();
        for (number, action) in actions.iter().enumerate() {
            self.at = path.to_vec();
            self.at.push(number.to_string());
            if let Some(pass) = &action.pass {
                acts.push(Act::Pass(self.pass(pass)?));
            } else if let Some(query) = &action.query {
                // Arguments are JSON, also those that are a text.
                let args = action.args.as_ref().map(|args| self.scope.fill(args));
                let args = args.transpose()?;
                let args = args.map_or_else(String::new, |args: Value| args.to_string());
                acts.push(Act::Ask(self.scope.fill(query)?, Payload::from(args)));
            } else if let Some(timer) = &action.fire {
                if let Some(at) = &action.at {
                    acts.push(Act::Until(time_ns("at", &self.scope.fill::<String>(at)?)?));
                }
                acts.push(Act::Fire(self.scope.fill(timer)?));
            } else if let Some(count) = action.others {
                self.count(count as usize, 0)?;
                acts.push(Act::Others(count));
            } else {
                self.happening(action, &mut acts)?;
            }
        }
        Ok(acts)
    }

    fn pass(&self, pass: &String) -> Result<Duration, Unsound> {
        let pass: String = self.scope.fill(pass)?;
        let wrong = |why: &str| Unsound(format!("`pass: {pass}`: {why}; write it like `15m`"));
        let time = humantime::parse_duration(&pass).map_err(|error| wrong(&error.to_string()))?;
        if time > PASS_MAX {
            return Err(wrong("is longer than 100 years"));
        }
        Ok(time)
    }

    fn count(&mut self, events: usize, bytes: usize) -> Result<(), Unsound> {
        self.events += events;
        self.bytes += bytes;
        if self.events > EVENTS_MAX {
            return Err(Unsound(format!("it has more than {EVENTS_MAX} events")));
        }
        if self.bytes > EVENTS_BYTES_MAX {
            return Err(Unsound(format!(
                "its events have more than {EVENTS_BYTES_MAX} bytes"
            )));
        }
        Ok(())
    }

    /// The acts of an event, which happens once or several times.
    fn happening(&mut self, action: &Action, acts: &mut Vec<Act>) -> Result<(), Unsound> {
        let with = action
            .with
            .iter()
            .map(|(name, value)| Ok((name.clone(), self.scope.fill(value)?)))
            .collect::<Result<Vec<_>, Unsound>>()?;
        let scope = self
            .scope
            .with(with.iter().map(|(name, value)| (name, value)));
        let times = action.times.unwrap_or(1);
        self.origins.push(Origin {
            step: self.step,
            path: self.at.clone(),
            events: times as usize,
        });
        for number in 1..=times {
            let scope = scope.with_one("i", json!(number));
            if let Some(at) = &action.at {
                acts.push(Act::Until(time_ns("at", &scope.fill::<String>(at)?)?));
            }
            let event = self.event(action, &scope)?;
            self.count(1, event.subject.len() + event.data.len())?;
            match acts.last_mut() {
                Some(Act::Events(events)) => events.push(event),
                _ => acts.push(Act::Events(vec![event])),
            }
        }
        Ok(())
    }

    fn event(&self, action: &Action, scope: &Scope) -> Result<NewEvent, Unsound> {
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
            .and_then(|name| self.document.file.events.get(name));
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
        let subject = whole.subject.unwrap_or_default();
        subject::validate(&subject).map_err(|error| Unsound(error.to_string()))?;
        if subject::is_reserved(&subject) {
            return Err(Unsound(format!(
                "subject `{subject}` belongs to the host; timers fire by `pass` or `fire`"
            )));
        }
        let event = NewEvent {
            subject,
            kind: whole.kind,
            id: whole.id,
            // Set when it happens.
            time_ns: None,
            headers: whole.headers.into_iter().collect(),
            data: payload(whole.data.unwrap_or_else(|| json!({})))?,
        };
        // Here, where its place is known: the log would refuse it in the midst of a run.
        match event.check() {
            Ok(()) => Ok(event),
            Err(log::Error::Invalid { message, .. }) => Err(Unsound(message)),
            Err(error) => Err(Unsound(error.to_string())),
        }
    }
}

fn payload(value: Value) -> Result<Payload, Unsound> {
    Payload::from_json(value).map_err(|error| Unsound(error.to_string()))
}

fn time_ns(field: &str, time: &str) -> Result<u64, Unsound> {
    timestamp::parse_ns(time).map_err(|error| Unsound(format!("`{field}: {time}` {error}")))
}

/// Plays a script under some conditions.
pub(super) fn play(
    stage: &Stage,
    script: &Script,
    conditions: Conditions,
    meter: Meter,
) -> Result<Played, Error> {
    let mut run = Run {
        bed: Bed::new(stage, conditions, script, meter)?,
        now_ns: script.start_ns,
        fires_when_due: script.timers_fire == TimersFire::WhenDue,
        happened: Vec::new(),
        numbers_events: stage.module.manifest().inbox.is_some(),
    };
    run.act(&script.given, &mut Vec::new())?;
    let mut steps = Vec::new();
    for ScriptStep { acts, .. } in &script.steps {
        // The outbox of a projection has no rows.
        let published = messages(&run.bed)?.len();
        let mut answers = Vec::new();
        run.act(acts, &mut answers)?;
        let mut seen = Observation::of(&run.bed, published, run.now_ns)?;
        seen.answers = answers;
        steps.push(seen);
    }
    let repeated = match steps.last() {
        Some(last) if conditions.repeats && last.failure.is_none() => Some(run.repeat(last)?),
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
    fires_when_due: bool,
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
                Act::Fire(timer) => self.bed.fire(timer, self.now_ns)?,
                Act::Others(count) => self.bed.happen_elsewhere(*count, self.now_ns)?,
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
        self.fire_until(self.now_ns)
    }

    /// Fires what is due up to a time, unless the scenario itself says what fires.
    fn fire_until(&mut self, before_ns: u64) -> Result<(), Error> {
        if self.fires_when_due {
            self.bed.fire_until(self.now_ns, before_ns)?;
        }
        Ok(())
    }

    /// Time never goes back.
    fn pass_until(&mut self, time_ns: u64) -> Result<(), Error> {
        let before_ns = self.now_ns;
        self.now_ns = self.now_ns.max(time_ns);
        self.fire_until(before_ns)
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
            self.fire_until(self.now_ns)?;
        }
        Observation::of(&self.bed, published, self.now_ns)
    }
}
