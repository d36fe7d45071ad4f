//! What a saga is: its steps, their answers, and what undoes them.

use std::fmt;
use std::time::Duration;

use crate::effects::Message;
use crate::event::Event;
use crate::failure::Failure;
use crate::json;
use crate::manifest::KeyRule;
use crate::time::Timestamp;

/// Longest name of a saga or a step, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// Most steps of a saga.
const STEPS_MAX: usize = 32;
/// How long an instance is kept after its end, unless the saga says otherwise.
const KEEP_ENDED: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a message from an instance.
pub(super) type Publish<D> = Box<dyn Fn(&Call<'_, D>) -> Result<Message, Failure>>;
type Correlation = Box<dyn Fn(&Event<'_>) -> Result<String, Failure>>;
type Start<D> = Box<dyn Fn(&Event<'_>) -> Result<D, Failure>>;
type Take<D> = Box<dyn Fn(&mut D, &Event<'_>) -> Result<(), Failure>>;

/// A saga: a process of several steps, each of which can be undone.
///
/// `D` is what each instance keeps of its own, such as the order. See [`saga`](crate::saga).
pub struct Saga<D> {
    pub(super) name: &'static str,
    correlation: Correlation,
    pub(super) starts: Vec<(Pattern, Start<D>)>,
    pub(super) cancels: Vec<Pattern>,
    pub(super) resumes: Vec<Pattern>,
    pub(super) skips: Vec<Pattern>,
    pub(super) steps: Vec<Step<D>>,
    pub(super) keep_ended: Option<Duration>,
    pub(super) on_completed: Option<Publish<D>>,
    pub(super) on_compensated: Option<Publish<D>>,
    pub(super) on_stuck: Option<Publish<D>>,
}

impl<D> Saga<D> {
    /// A saga without steps. Its events are correlated by the second token of their subject unless
    /// it says otherwise.
    ///
    /// # Panics
    /// If the name is not made of 1 to 32 lower-case letters, digits and hyphens, a letter first.
    pub fn new(name: &'static str) -> Self {
        check_name(name);
        Self {
            name,
            correlation: Box::new(|event| key_by(&KeyRule::SubjectToken(2), event)),
            starts: Vec::new(),
            cancels: Vec::new(),
            resumes: Vec::new(),
            skips: Vec::new(),
            steps: Vec::new(),
            keep_ended: Some(KEEP_ENDED),
            on_completed: None,
            on_compensated: None,
            on_stuck: None,
        }
    }

    /// Finds the instance of an event by a rule, usually the manifest's: events with one key belong
    /// to one instance.
    ///
    /// # Panics
    /// If the rule is [`KeyRule::None`].
    pub fn correlate_by(self, rule: KeyRule) -> Self {
        assert!(
            rule != KeyRule::None,
            "saga {}: events need a key",
            self.name
        );
        self.correlate_with(move |event| key_by(&rule, event))
    }

    /// Finds the instance of an event: its correlation key. An error rejects the event.
    pub fn correlate_with(
        mut self,
        key: impl Fn(&Event<'_>) -> Result<String, Failure> + 'static,
    ) -> Self {
        self.correlation = Box::new(key);
        self
    }

    /// An event starts an instance, with this data, unless there is one with its key.
    pub fn starts_on(
        mut self,
        pattern: impl Into<Pattern>,
        data: impl Fn(&Event<'_>) -> Result<D, Failure> + 'static,
    ) -> Self {
        self.starts.push((pattern.into(), Box::new(data)));
        self
    }

    /// Adds a step. Steps run in the order in which they are added.
    ///
    /// # Panics
    /// If it has a name that is taken, or the saga has 32 steps, or it has a time-out or a failing
    /// answer and no answer that it is done.
    pub fn step(mut self, step: Step<D>) -> Self {
        assert!(
            self.steps.iter().all(|other| other.name != step.name),
            "saga {}: two steps are named {}; rename one",
            self.name,
            step.name
        );
        assert!(
            self.steps.len() < STEPS_MAX,
            "saga {}: it has more than {STEPS_MAX} steps",
            self.name
        );
        assert!(
            step.actions().all(Action::is_sound),
            "saga {}: step {} or its compensation has a time-out or a failing answer, and no answer \
             that it is done; add `succeeds_on`",
            self.name,
            step.name
        );
        self.steps.push(step);
        self
    }

    /// An event cancels a running instance: what was done is undone.
    pub fn cancels_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.cancels.push(pattern.into());
        self
    }

    /// An event lets a stuck instance try its step again, with all attempts.
    pub fn resumes_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.resumes.push(pattern.into());
        self
    }

    /// An event tells a stuck instance that its step was dealt with by hand, so that it continues
    /// with the next.
    pub fn skips_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.skips.push(pattern.into());
        self
    }

    /// How long an instance is kept after its end, so that events that come late are recognised.
    /// Without this it is kept for a day. An event that starts an instance of a key whose instance is
    /// gone starts a new one.
    pub fn keep_ended(mut self, span: Duration) -> Self {
        self.keep_ended = Some(span);
        self
    }

    /// Keeps all instances after their end.
    pub fn keep_ended_forever(mut self) -> Self {
        self.keep_ended = None;
        self
    }

    /// Publishes a message when an instance completes.
    pub fn on_completed(
        mut self,
        message: impl Fn(&Call<'_, D>) -> Result<Message, Failure> + 'static,
    ) -> Self {
        self.on_completed = Some(Box::new(message));
        self
    }

    /// Publishes a message when an instance has undone what it did; [`Call::reason`] says why.
    pub fn on_compensated(
        mut self,
        message: impl Fn(&Call<'_, D>) -> Result<Message, Failure> + 'static,
    ) -> Self {
        self.on_compensated = Some(Box::new(message));
        self
    }

    /// Publishes a message when an instance gets stuck; [`Call::reason`] says why.
    pub fn on_stuck(
        mut self,
        message: impl Fn(&Call<'_, D>) -> Result<Message, Failure> + 'static,
    ) -> Self {
        self.on_stuck = Some(Box::new(message));
        self
    }

    /// The subjects of all its patterns, each once.
    pub fn subjects(&self) -> Vec<String> {
        let mut subjects = Vec::new();
        for subject in self
            .patterns()
            .filter_map(|pattern| pattern.subject.as_ref())
        {
            if !subjects.contains(subject) {
                subjects.push(subject.clone());
            }
        }
        subjects
    }

    /// Whether it sets timers.
    pub fn sets_timers(&self) -> bool {
        let mut actions = self.steps.iter().flat_map(Step::actions);
        self.keep_ended.is_some() || actions.any(Action::sets_timers)
    }

    pub(super) fn find(&self, step: &str) -> Option<&Step<D>> {
        self.steps.iter().find(|known| known.name == step)
    }

    pub(super) fn concerns(&self, event: &Event<'_>) -> bool {
        self.patterns().any(|pattern| pattern.matches(event))
    }

    pub(super) fn key_of(&self, event: &Event<'_>) -> Result<String, Failure> {
        (self.correlation)(event)
    }

    fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let starts = self.starts.iter().map(|(pattern, _)| pattern);
        let answers = self.steps.iter().flat_map(Step::actions);
        starts
            .chain(&self.cancels)
            .chain(&self.resumes)
            .chain(&self.skips)
            .chain(answers.flat_map(Action::patterns))
    }
}

impl<D> fmt::Debug for Saga<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<_> = self.steps.iter().map(|step| step.name).collect();
        formatter
            .debug_struct("Saga")
            .field("name", &self.name)
            .field("steps", &steps)
            .finish_non_exhaustive()
    }
}

/// A step of a saga: a command to a participant, its answers, and what undoes it.
pub struct Step<D> {
    pub(super) name: &'static str,
    pub(super) action: Action<D>,
    pub(super) take: Option<Take<D>>,
    pub(super) is_pivot: bool,
    pub(super) compensation: Option<Compensation<D>>,
}

impl<D> Step<D> {
    /// A step. Without a command it waits for an event that others cause; without an event to wait
    /// for it is done once its command is published.
    ///
    /// # Panics
    /// If the name is not made of 1 to 32 lower-case letters, digits and hyphens, a letter first.
    pub fn new(name: &'static str) -> Self {
        check_name(name);
        Self {
            name,
            action: Action::new(RetryPolicy::none()),
            take: None,
            is_pivot: false,
            compensation: None,
        }
    }

    /// The command to the participant, made for each attempt. A participant may get several for one
    /// step, and must do the work of [`Call::id`] once.
    pub fn command(
        mut self,
        command: impl Fn(&Call<'_, D>) -> Result<Message, Failure> + 'static,
    ) -> Self {
        self.action.command = Some(Box::new(command));
        self
    }

    /// An answer that the step is done.
    pub fn succeeds_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.action.succeeds.push(pattern.into());
        self
    }

    /// An answer that the step was not done and will not be: the saga compensates.
    pub fn fails_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.action.fails.push(pattern.into());
        self
    }

    /// An answer that an attempt failed and another may succeed: the retry policy decides.
    pub fn retries_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.action.retries.push(pattern.into());
        self
    }

    /// Keeps something of the answer, such as the number of a payment.
    pub fn on_success(
        mut self,
        take: impl Fn(&mut D, &Event<'_>) -> Result<(), Failure> + 'static,
    ) -> Self {
        self.take = Some(Box::new(take));
        self
    }

    /// How long each attempt waits for its answer. An attempt that times out may have been carried
    /// out, so the step is undone if the saga gives up.
    pub fn timeout(mut self, span: Duration) -> Self {
        self.action.timeout = Some(span);
        self
    }

    /// How often the step is attempted; without this, once.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.action.retry = policy;
        self
    }

    /// Makes it the pivot, or point of no return: once it was begun, the saga can't be cancelled any
    /// more. Answers still decide: it may fail, and then what was done is undone.
    pub fn pivot(mut self) -> Self {
        self.is_pivot = true;
        self
    }

    /// What undoes the step.
    pub fn compensation(mut self, compensation: Compensation<D>) -> Self {
        self.compensation = Some(compensation);
        self
    }

    fn actions(&self) -> impl Iterator<Item = &Action<D>> {
        let undo = self.compensation.as_ref();
        std::iter::once(&self.action).chain(undo.map(|undo| &undo.action))
    }
}

impl<D> fmt::Debug for Step<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Step({})", self.name)
    }
}

/// What undoes a step: a command, and the event that confirms it.
pub struct Compensation<D> {
    pub(super) action: Action<D>,
}

impl<D> Compensation<D> {
    /// A compensation. A participant that never carried out the step, or undid it before, must
    /// confirm all the same.
    pub fn new(command: impl Fn(&Call<'_, D>) -> Result<Message, Failure> + 'static) -> Self {
        let mut action = Action::new(RetryPolicy::attempts(10));
        action.command = Some(Box::new(command));
        Self { action }
    }

    /// An answer that the step is undone. Without one, it is undone once its command is published.
    pub fn succeeds_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.action.succeeds.push(pattern.into());
        self
    }

    /// An answer that it could not be undone: the retry policy decides.
    pub fn fails_on(mut self, pattern: impl Into<Pattern>) -> Self {
        self.action.retries.push(pattern.into());
        self
    }

    /// How long each attempt waits for its answer.
    pub fn timeout(mut self, span: Duration) -> Self {
        self.action.timeout = Some(span);
        self
    }

    /// How often it is attempted before the instance is stuck; without this, 10 times.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.action.retry = policy;
        self
    }
}

impl<D> fmt::Debug for Compensation<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Compensation({:?})", self.action.retry)
    }
}

/// A command and its answers: of a step, or of its compensation.
pub(super) struct Action<D> {
    pub(super) command: Option<Publish<D>>,
    pub(super) succeeds: Vec<Pattern>,
    pub(super) fails: Vec<Pattern>,
    pub(super) retries: Vec<Pattern>,
    pub(super) timeout: Option<Duration>,
    pub(super) retry: RetryPolicy,
}

impl<D> Action<D> {
    fn new(retry: RetryPolicy) -> Self {
        Self {
            command: None,
            succeeds: Vec::new(),
            fails: Vec::new(),
            retries: Vec::new(),
            timeout: None,
            retry,
        }
    }

    /// Whether it waits for an answer.
    pub(super) fn waits(&self) -> bool {
        !self.succeeds.is_empty()
    }

    /// Whatever ends it, something says that it succeeded.
    fn is_sound(&self) -> bool {
        let can_fail = !self.fails.is_empty() || !self.retries.is_empty() || self.timeout.is_some();
        self.waits() || !can_fail && self.command.is_some()
    }

    fn sets_timers(&self) -> bool {
        self.timeout.is_some() || self.retry.attempts > 1 && !self.retries.is_empty()
    }

    fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.succeeds.iter().chain(&self.fails).chain(&self.retries)
    }
}

/// How often something is attempted, and the pauses in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub(super) attempts: u32,
    first: Duration,
    longest: Duration,
}

impl RetryPolicy {
    /// One attempt.
    pub fn none() -> Self {
        Self::attempts(1)
    }

    /// This many attempts, the first included, with pauses of 1 s that double up to 5 min.
    pub fn attempts(attempts: u32) -> Self {
        Self {
            attempts: attempts.max(1),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
        }
    }

    /// Attempts without end, with the same pauses.
    pub fn forever() -> Self {
        Self::attempts(u32::MAX)
    }

    /// The pause before the second attempt, which doubles each time, and the longest pause.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    /// The pause after an attempt, counted from 1.
    pub(super) fn pause_after(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt.saturating_sub(1).min(31));
        self.first
            .saturating_mul(factor.unwrap_or(u32::MAX))
            .min(self.longest)
    }
}

/// Which events are meant: by subject, by type, or by both.
///
/// A text is a pattern of subjects, as in [`Event::is_under`]: `payments.*.charged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    subject: Option<String>,
    kind: Option<String>,
}

impl Pattern {
    /// Events of a type, whatever their subject.
    pub fn kind(kind: impl Into<String>) -> Self {
        Self {
            subject: None,
            kind: Some(kind.into()),
        }
    }

    /// Only those of a type.
    pub fn of_kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    pub(super) fn matches(&self, event: &Event<'_>) -> bool {
        let has_subject = self.subject.as_ref();
        let has_kind = self.kind.as_ref();
        has_subject.is_none_or(|subject| event.is_under(subject))
            && has_kind.is_none_or(|kind| event.kind() == kind)
    }

    pub(super) fn any(patterns: &[Self], event: &Event<'_>) -> bool {
        patterns.iter().any(|pattern| pattern.matches(event))
    }
}

impl From<&str> for Pattern {
    fn from(subject: &str) -> Self {
        Self::from(subject.to_owned())
    }
}

impl From<String> for Pattern {
    fn from(subject: String) -> Self {
        Self {
            subject: Some(subject),
            kind: None,
        }
    }
}

/// What a command or a message of a saga is made from.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a, D> {
    pub(super) saga: &'a str,
    pub(super) key: &'a str,
    pub(super) step: &'a str,
    pub(super) started: Timestamp,
    pub(super) attempt: u32,
    pub(super) reason: &'a str,
    pub(super) time: Timestamp,
    pub(super) data: &'a D,
}

impl<'a, D> Call<'a, D> {
    /// The correlation key of the instance.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The name of the step; empty in messages about the end of a saga.
    pub fn step(&self) -> &'a str {
        self.step
    }

    /// Which attempt of this command it is, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A text that is the same for all attempts of a step and for its compensation, and different
    /// for all others, also of a later instance with the same key: participants recognise by it
    /// what they did before.
    pub fn id(&self) -> String {
        let started = self.started.nanoseconds();
        format!("{}/{}/{started}/{}", self.saga, self.key, self.step)
    }

    /// Why the saga compensates or is stuck; empty while it runs.
    pub fn reason(&self) -> &'a str {
        self.reason
    }

    /// The time of the event or timer that causes this.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// What the instance keeps.
    pub fn data(&self) -> &'a D {
        self.data
    }
}

fn check_name(name: &str) {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(
        name.len() <= NAME_BYTES_MAX
            && name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.bytes().all(plain),
        "name {name:?} of a saga or step: use 1 to {NAME_BYTES_MAX} lower-case letters, digits and \
         hyphens, a letter first"
    );
}

/// The key of an event by a rule.
fn key_by(rule: &KeyRule, event: &Event<'_>) -> Result<String, Failure> {
    let missing = |what: &str| {
        Failure::reject(format_args!(
            "event {} ({}) has no {what}, so it belongs to no saga",
            event.sequence(),
            event.subject()
        ))
    };
    match rule {
        KeyRule::None => Err(missing("key")),
        KeyRule::Subject => Ok(event.subject().to_owned()),
        KeyRule::SubjectToken(number) => Ok(event.token(*number as usize)?.to_owned()),
        KeyRule::Header(name) => event
            .header(name)
            .map(str::to_owned)
            .ok_or_else(|| missing(&format!("header {name}"))),
        KeyRule::DataPointer(pointer) => {
            let data: serde_json::Value = event.json()?;
            match data.pointer(pointer) {
                Some(serde_json::Value::String(text)) => Ok(text.clone()),
                Some(serde_json::Value::Number(number)) => Ok(json::text(number)?),
                _ => Err(missing(&format!("text or number at {pointer}"))),
            }
        }
    }
}
