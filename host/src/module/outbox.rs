//! `foldstream:module/outbox`: what a handler publishes.
//!
//! A message is checked here, and becomes an effect with its place. The state's writer keeps it
//! with the writes of the batch if the fold owns its effects.

use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

use super::Checking;
use super::bindings::{DeliveryRecord, ExpectedLast, Message};
use super::causes::{Causes, NoPlace};
use super::sandbox::{Access, Host, Refusal};
use crate::effects::{self, Condition, Delivery, Effect, Owner, Returns, Row};
use crate::event::{Event, Payload};
use crate::state::Writer;
use crate::subject::Pattern;

/// Most messages in one host call.
const MESSAGES_PER_CALL_MAX: usize = 65_536;

type Caller<'a> = StoreContextMut<'a, Host>;

pub(super) fn add_to(interface: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    interface.func_wrap("publish", publish)?;
    interface.func_wrap("publish-with", publish_with)
}

/// `publish`.
fn publish(caller: Caller<'_>, (messages,): (Vec<Message>,)) -> wasmtime::Result<()> {
    let count = messages.len();
    let messages = messages.into_iter();
    emit(
        caller,
        count,
        messages.map(|message| (message, Delivery::default())),
    )
}

/// `publish-with`.
fn publish_with(
    caller: Caller<'_>,
    (messages,): (Vec<(Message, DeliveryRecord)>,),
) -> wasmtime::Result<()> {
    let count = messages.len();
    let messages = messages.into_iter().map(|(message, record)| {
        let delivery = delivery(record, &message.subject);
        (message, delivery)
    });
    emit(caller, count, messages)
}

/// What a message asks of its delivery; `subject` is its own.
fn delivery(record: DeliveryRecord, subject: &str) -> Delivery {
    let DeliveryRecord {
        not_before_ns,
        time_to_live_s,
        expected_last,
    } = record;
    let condition = expected_last.map(
        |ExpectedLast {
             subject: of,
             sequence,
         }| Condition {
            subjects: of.unwrap_or_else(|| subject.to_owned()),
            sequence,
        },
    );
    Delivery {
        not_before_ns,
        time_to_live_s,
        condition,
        conflict: None,
    }
}

fn emit(
    mut caller: Caller<'_>,
    count: usize,
    messages: impl Iterator<Item = (Message, Delivery)>,
) -> wasmtime::Result<()> {
    // Counted once for all its messages; how many each event may cause is limited below.
    let host = caller.data_mut();
    host.count_call()?;
    if count > MESSAGES_PER_CALL_MAX {
        let message = format!(
            "{count} messages in one call; publish at most {MESSAGES_PER_CALL_MAX} at once"
        );
        return Err(Refusal::Limit {
            limit: "messages-per-call",
            message,
        }
        .into());
    }
    let (Access::Apply(writer), Some(handling)) = (&mut host.access, &mut host.handling) else {
        return Err(Refusal::NO_OUTBOX.into());
    };
    for message in messages {
        let row = row(message, handling, writer)?;
        if let Some(row) = row {
            writer.emit(&row).map_err(Refusal::from)?;
        }
    }
    Ok(())
}

/// What a call of `handle` or `on-timer` needs for its messages and timers.
#[derive(Debug)]
pub(super) struct Handling {
    pub(super) causes: Causes,
    /// The subjects that the manifest declares.
    pub(super) publishes: std::sync::Arc<[Pattern]>,
    /// Whether the manifest says that it sets timers.
    pub(super) sets_timers: bool,
    /// What is checked of messages.
    pub(super) checks: Option<Checking>,
}

fn refused(limit: &'static str, message: String) -> Refusal {
    Refusal::Limit { limit, message }
}

/// Checks a message against the limits of all messages, and against the manifest.
fn check(
    draft: effects::Draft<'_>,
    delivery: &Delivery,
    publishes: &[Pattern],
) -> Result<(), Refusal> {
    let subject = draft.subject;
    effects::check(draft)
        .and_then(|()| effects::check_delivery(delivery, subject))
        .map_err(|refusal| refused(refusal.limit, refusal.message))?;
    if !publishes.iter().any(|pattern| pattern.matches(subject)) {
        let message = format!(
            "it publishes to {subject}, which its manifest does not declare; add it to `publishes`"
        );
        return Err(refused("publishes", message));
    }
    Ok(())
}

/// The row of a message; none if the fold does not own its effects, or had none of the event yet.
fn row(
    (message, delivery): (Message, Delivery),
    Handling {
        causes,
        publishes,
        checks,
        ..
    }: &mut Handling,
    writer: &mut Writer,
) -> Result<Option<Row>, Refusal> {
    let Message {
        cause,
        subject,
        kind,
        mut headers,
        data,
        key,
    } = message;
    let data = Payload::from(data);
    // Checked before the role: a candidate, whose effects nobody publishes, must fail on the same.
    let draft = effects::Draft {
        subject: &subject,
        kind: kind.as_deref(),
        key: key.as_deref(),
        headers: &headers,
        data: &data,
    };
    check(draft, &delivery, publishes)?;
    // The module's own key first, otherwise that of the cause: effects of one key stay in order.
    let key = key.or_else(|| causes.key_of(cause)).unwrap_or_default();
    // The place is counted also if nothing is published, so that it is the same for every fold.
    let (place, event) = causes.next(cause).map_err(|none| match none {
        NoPlace::NoEvent { count } => refused(
            "cause",
            format!(
                "a message names event {cause} of a call with {count} events, counted from 0, \
                     as its cause"
            ),
        ),
        NoPlace::TooMany { sequence } => refused(
            "effects-per-event",
            format!(
                "event {sequence} causes more than {} messages; publish fewer",
                effects::EFFECTS_PER_EVENT_MAX
            ),
        ),
    })?;
    let event = event.clone();
    let kind = kind.unwrap_or_else(|| subject.rsplit('.').next().unwrap_or_default().to_owned());
    // Before the role as well: all folds of a stream fail at the same events.
    if let Some(checks) = checks {
        checks.check_message(place.sequence, (&subject, &kind), &data)?;
    }
    if effects::is_reply(&subject) && !effects::answers(&event, &subject) {
        let message = format!(
            "it replies to {subject}, which is not the inbox that event {} names",
            place.sequence
        );
        return Err(refused("outbox-subject", message));
    }
    // What was set before the first deploy is as old as the event that set it.
    let set_by = causes.timer_set_by();
    // Only the owner's batch keeps effects, and none of events from before the first deploy.
    let owner = writer.role().owner().filter(|owner| {
        place.sequence > owner.effects_after && set_by.is_none_or(|set| set > owner.timers_after)
    });
    let Some(owner) = owner.cloned() else {
        return Ok(None);
    };
    let Some(target) = target(&owner, &subject, &delivery)? else {
        return Ok(None);
    };
    let path = path(&owner.deployment, &event, writer.returns_mut())?;
    let outgoing = effects::Outgoing {
        deployment: &owner.deployment,
        id: &place.id(owner.lineage),
        kind: &kind,
        data: &data,
    };
    headers.extend(effects::outgoing(outgoing, &event));
    headers.push((effects::PATH.to_owned(), path));
    let effect = Effect {
        subject,
        kind,
        headers,
        data,
        key,
        delivery,
    };
    Ok(Some(Row {
        target: target.to_owned(),
        place,
        turn: writer.turn_of(place),
        made_ns: now_ns(),
        effect,
    }))
}

/// The chain of a message that an event causes, unless the chain is a loop.
fn path(deployment: &str, cause: &Event, returns: &mut Returns) -> Result<String, Refusal> {
    let advice = "correct one of them, or its grants, and leave this event out";
    let sequence = cause.sequence;
    returns.note(deployment, cause).map_err(|turn| {
        let most = effects::RETURNS_MAX;
        let message = format!(
            "more than {most} events of the same origin as event {sequence} came back within a \
             minute, with the loop {turn}; {advice}"
        );
        refused("loop", message)
    })?;
    effects::extended(deployment, cause).map_err(|turn| {
        let most = effects::CHAIN_MAX;
        let message = format!(
            "a chain of more than {most} handlers caused event {sequence}, with the loop {turn}; \
             {advice}"
        );
        refused("loop", message)
    })
}

/// The source to which a message goes; none if it is a reply that nobody granted.
fn target<'a>(
    owner: &'a Owner,
    subject: &str,
    delivery: &Delivery,
) -> Result<Option<&'a str>, Refusal> {
    match owner.grants.source_of(subject) {
        Some(target) if delivery.time_to_live_s.is_some() && owner.logs.contains(target) => {
            let message = format!(
                "a message to {subject} has a time to live, and {target} is an embedded log, which \
                 keeps its events by age and size alone; leave it out, or grant the subject for a \
                 source of kind `jetstream`"
            );
            Err(refused("time-to-live", message))
        }
        Some(target) => Ok(Some(target)),
        // The publisher of the event chooses to ask for a reply, and must not stop the handler.
        None if effects::is_reply(subject) => Ok(None),
        None => {
            let deployment = &owner.deployment;
            let message = format!(
                "{deployment} may not publish to {subject}; allow it with `foldstream deploy … \
                 --allow-publish '{subject}@SOURCE'`, then `foldstream resume {deployment}`, or \
                 `foldstream parked retry {deployment} --all` if the event is parked"
            );
            Err(refused("grant", message))
        }
    }
}

/// When an effect was made, for the age of what waits; nothing else depends on it.
fn now_ns() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}
