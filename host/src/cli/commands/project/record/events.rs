//! The events of a record: those that the module has read, as the actions of a scenario.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Args;
use crate::api::{Deployment, EventPage, SkipList, SkipState, StoredEvent};
use crate::cli::Context;
use crate::cli::support::client::Client;
use crate::cli::support::exit::{Exit, Failure};
use crate::event::Payload;
use crate::scenario::{Action, RecordedEvent};
use crate::subject::{self, SubjectSet};
use crate::timers::{self, Firing, What};

/// Events per page.
const PAGE: usize = 1_000;
/// Most sequences that no recorded event has: a scenario counts up to this many other events.
const OTHERS_MAX: u64 = 100_000;

#[derive(Debug)]
pub(super) struct Recorded {
    /// Never empty.
    pub(super) actions: Vec<Action>,
    /// How many events there are among them.
    pub(super) events: u64,
    /// The sequence of the last one.
    pub(super) last: u64,
}

/// What becomes of an event of the stream.
enum Role {
    /// The module does not read it, or skips it.
    Other,
    /// The module folds it.
    Event,
    /// The firing of this timer.
    Firing(String),
    /// An operator decided about a timer: no scenario can say this.
    Decision,
}

fn recorded_event(event: StoredEvent) -> RecordedEvent {
    let StoredEvent {
        sequence: _,
        time,
        subject,
        kind,
        headers,
        data,
    } = event;
    let data = readable(data);
    RecordedEvent {
        time,
        subject,
        kind,
        headers,
        data,
    }
}

/// Data as a scenario has them: JSON without its white space. Only what a scenario would mean as
/// something else, such as JSON text that is a string, stays as bytes.
fn readable(exact: Value) -> Value {
    let Ok(Payload::Bytes(bytes)) = Payload::from_json(exact.clone()) else {
        return exact;
    };
    let text = Payload::detect(bytes).to_json().to_string();
    let packed = Payload::from(text);
    if packed.is_shown_exactly() {
        packed.to_json()
    } else {
        exact
    }
}

/// The first events that the deployment has folded.
pub(super) async fn record(
    args: &Args,
    deployment: &Deployment,
    client: &Client,
    context: &Context,
) -> anyhow::Result<Recorded> {
    let reader = Reader::of(args, deployment, client).await?;
    let mut recorded = Vec::new();
    let mut after = 0;
    'pages: loop {
        let parameters = [
            ("source", deployment.source.clone()),
            ("after", after.to_string()),
            ("limit", PAGE.to_string()),
            // Texts within base64 could not be redacted.
            ("exact", args.redact.is_empty().to_string()),
        ];
        let page: EventPage = client.get(&["v1", "events"], &parameters).await?;
        for event in page.events {
            let is_folded = event.sequence <= deployment.position;
            if !is_folded || recorded.len() as u64 == args.limit {
                break 'pages;
            }
            match reader.role(&event) {
                Role::Other => {}
                Role::Decision => {
                    context.output.warning(&format!(
                        "the record ends before event {}, by which an operator fired or dropped a \
                         timer",
                        event.sequence
                    ));
                    break 'pages;
                }
                Role::Event => {
                    recorded.push((event.sequence, Action::recorded(recorded_event(event))));
                }
                Role::Firing(timer) => {
                    let fired = Action {
                        fire: Some(crate::scenario::literal(timer)),
                        at: Some(event.time),
                        ..Action::default()
                    };
                    recorded.push((event.sequence, fired));
                }
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    finish(args, recorded, context)
}

/// Warns about what a scenario does not show, and counts the sequences between.
fn finish(
    args: &Args,
    recorded: Vec<(u64, Action)>,
    context: &Context,
) -> anyhow::Result<Recorded> {
    let Some(last) = recorded.last().map(|(sequence, _)| *sequence) else {
        let message = format!(
            "{} has folded no such events; look at `foldstream events read`",
            args.name
        );
        return Err(Failure::new(Exit::NotFound, message).into());
    };
    let times = recorded.windows(2).any(|pair| pair[1].1.at < pair[0].1.at);
    if times {
        context.output.warning(
            "the times of the stream go back, and those of a scenario do not: entries that show \
             such a time will differ",
        );
    }
    let events = recorded.len() as u64;
    let counts = last - events <= OTHERS_MAX;
    if !counts {
        context.output.warning(&format!(
            "most of the {last} events up to the last one are not in the scenario, so that its \
             sequences begin at 1: entries that show a sequence will differ",
        ));
    }
    let (mut actions, mut before) = (Vec::new(), 0);
    for (sequence, action) in recorded {
        let between = u32::try_from(sequence - before - 1).unwrap_or(u32::MAX);
        // In front of the first event, the time of the scenario is its own.
        if counts && between > 0 {
            actions.push(Action {
                others: Some(between),
                ..Action::default()
            });
        }
        before = sequence;
        actions.push(action);
    }
    Ok(Recorded {
        actions,
        events,
        last,
    })
}

/// Knows what a deployment reads.
struct Reader {
    subjects: SubjectSet,
    /// Those that the user wants.
    wanted: Option<SubjectSet>,
    /// The subject of its firings.
    firings: String,
    /// Sequences of events that a new fold leaves out.
    skipped: BTreeSet<u64>,
}

impl Reader {
    async fn of(args: &Args, deployment: &Deployment, client: &Client) -> anyhow::Result<Self> {
        let unsound =
            |error: subject::Error| Failure::new(Exit::Usage, format!("--subject: {error}"));
        let wanted = args
            .subject
            .as_ref()
            .map(|pattern| SubjectSet::parse(&[pattern]))
            .transpose()
            .map_err(unsound)?;
        let path = ["v1", "deployments", &args.name, "skips"];
        let skips: SkipList = client.get(&path, &[]).await?;
        let is_left_out = |state: SkipState| state != SkipState::Withdrawn;
        Ok(Self {
            subjects: SubjectSet::parse(&deployment.module.subjects)?,
            wanted,
            firings: timers::subject(&args.name),
            skipped: skips
                .skips
                .into_iter()
                .filter(|skip| is_left_out(skip.state))
                .map(|skip| skip.sequence)
                .collect(),
        })
    }

    fn role(&self, event: &StoredEvent) -> Role {
        if self.skipped.contains(&event.sequence) {
            return Role::Other;
        }
        if event.subject == self.firings {
            let data = event.data.to_string();
            return match Firing::parse(&event.subject, data.as_bytes()) {
                Some(firing) if firing.what == What::Due => Role::Firing(firing.name),
                Some(_) => Role::Decision,
                // Nonsense does nothing.
                None => Role::Other,
            };
        }
        let is_wanted = |wanted: &SubjectSet| wanted.matches(&event.subject);
        if self.subjects.matches(&event.subject) && self.wanted.as_ref().is_none_or(is_wanted) {
            Role::Event
        } else {
            Role::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_scenario_would_mean_as_something_else_stays_as_bytes() {
        let base64 = |text: &str| {
            let bytes = bytes::Bytes::copy_from_slice(text.as_bytes());
            Payload::Bytes(bytes).to_json()
        };
        for text in [
            "\"hello\"",
            " \"1\"",
            r#"{"$bytes":"AAEC"}"#,
            "{\"$bytes\" : 1}",
        ] {
            assert_eq!(readable(base64(text)), base64(text), "{text}");
        }
        assert_eq!(readable(base64(" {\"a\": 1}\n")), json!({ "a": 1 }));
        assert_eq!(readable(base64("[]\n")), json!([]));
        for shown in [
            json!("hello"),
            json!({ "a": 1 }),
            json!(null),
            json!({ "$bytes": "/wA=" }),
        ] {
            assert_eq!(readable(shown.clone()), shown);
        }
    }
}
