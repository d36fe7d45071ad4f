//! `foldstream record`: makes a scenario of what a deployment has folded.

mod redact;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::api::{Deployment, EntryPage, EventPage, StoredEvent};
use crate::cli::Context;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::counted;
use crate::scenario::{Action, File, Scenario, Then};
use crate::subject::{self, SubjectSet};

use redact::Redaction;

/// Events and entries per page.
const PAGE: usize = 1_000;
/// Most entries of a scenario.
const ENTRIES_MAX: usize = 10_000;
/// The header that stores a message id.
const MESSAGE_ID: &str = "nats-msg-id";

/// Make a scenario of the events that a deployment has folded, and of the entries that it has then.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream record order-totals --limit 20 > recorded.yaml
  foldstream record order-totals --subject 'orders.ada.*' --prefix customer/ada --to ada.yaml
  foldstream record order-totals --redact /customer/email --redact /address --to recorded.yaml

The events are the first ones of the stream that the module reads. Texts at a redacted place of \
the data become `redacted-1`, `redacted-2` and so on, the same text always the same, also in \
subjects, keys and entries; numbers become 0. Look at the file before you share it: only what you \
name is redacted.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Only events whose subject matches; needs --prefix, because other entries come of others.
    #[arg(long, value_name = "PATTERN", requires = "prefix")]
    subject: Option<String>,
    /// Only entries with this prefix; may be repeated.
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// Maximum number of events.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit: u64,
    /// A place in the data of events to redact, as a JSON pointer; may be repeated.
    #[arg(long, value_name = "POINTER")]
    redact: Vec<String>,
    /// Name of the scenario; default: what it was made of.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// File to write; default: standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Writes the scenario.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut redaction = Redaction::of(&args.redact)?;
    let client = context.client()?;
    let deployment = client.deployment(&args.name).await?;
    let events = events(&args, &deployment, &client).await?;
    let Some(last) = events.last() else {
        let message = format!(
            "{} has folded no such events; look at `foldstream events read`",
            args.name
        );
        return Err(Failure::new(Exit::NotFound, message).into());
    };
    if events[0].sequence > 1 && args.subject.is_none() {
        context.output.warning(&format!(
            "the first event is {}: if earlier ones are gone, the scenario gives other entries \
             than the deployment",
            events[0].sequence
        ));
    }
    let entries = entries(&args, last.sequence, &client).await?;
    let name = args
        .scenario
        .clone()
        .unwrap_or_else(|| format!("{} up to event {}, as recorded", args.name, last.sequence));
    let count = events.len() as u64;
    let mut actions: Vec<Action> = events.into_iter().map(action).collect();
    // All at first: what is redacted in a later event may also be in the subject of an earlier one.
    for action in &mut actions {
        redaction.collect(action);
    }
    for action in &mut actions {
        redaction.apply(action);
    }
    let start = actions.first_mut().and_then(|action| action.at.take());
    let when = actions.split_off(actions.len() - 1);
    let file = File {
        scenarios: vec![Scenario {
            name,
            start,
            given: actions,
            when,
            then: Then {
                no_other_entries: args.prefix.is_empty(),
                entries: redaction.entries(entries),
                ..Then::default()
            },
            ..Scenario::default()
        }],
        ..File::default()
    };
    let text = file.to_yaml();
    match &args.to {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => context.output.raw(text.as_bytes())?,
    }
    context.output.note(&format!(
        "recorded {}; `foldstream test` plays it",
        counted(count, "event")
    ));
    Ok(())
}

/// The first events that the deployment has folded.
async fn events(
    args: &Args,
    deployment: &Deployment,
    client: &Client,
) -> anyhow::Result<Vec<StoredEvent>> {
    let unsound = |error: subject::Error| Failure::new(Exit::Usage, format!("--subject: {error}"));
    let subjects = SubjectSet::parse(&deployment.module.subjects)?;
    let wanted = args
        .subject
        .as_ref()
        .map(|pattern| SubjectSet::parse(&[pattern]))
        .transpose()
        .map_err(unsound)?;
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let parameters = [
            ("source", deployment.source.clone()),
            ("after", after.to_string()),
            ("limit", PAGE.to_string()),
        ];
        let page: EventPage = client.get(&["v1", "events"], &parameters).await?;
        for event in page.events {
            let is_folded = event.sequence <= deployment.position;
            let is_wanted = subjects.matches(&event.subject)
                && wanted
                    .as_ref()
                    .is_none_or(|wanted| wanted.matches(&event.subject));
            if !is_folded || events.len() as u64 == args.limit {
                return Ok(events);
            }
            if is_wanted {
                events.push(event);
            }
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(events),
        }
    }
}

/// The entries as of an event.
async fn entries(
    args: &Args,
    sequence: u64,
    client: &Client,
) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    let all = [String::new()];
    let prefixes = if args.prefix.is_empty() {
        &all[..]
    } else {
        &args.prefix
    };
    let mut entries = BTreeMap::new();
    for prefix in prefixes {
        let mut after = None;
        loop {
            let page = page(args, (prefix, sequence, after), client).await?;
            entries.extend(
                page.entries
                    .into_iter()
                    .map(|entry| (entry.key, entry.value)),
            );
            if entries.len() > ENTRIES_MAX {
                let message = format!(
                    "more than {ENTRIES_MAX} entries; record fewer events (--limit), or only some \
                     entries (--prefix)"
                );
                return Err(Failure::new(Exit::Refused, message).into());
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(entries)
}

async fn page(
    args: &Args,
    (prefix, sequence, after): (&str, u64, Option<String>),
    client: &Client,
) -> Result<EntryPage, Error> {
    let mut parameters = vec![
        ("prefix", prefix.to_owned()),
        ("as-of", sequence.to_string()),
        ("limit", PAGE.to_string()),
    ];
    parameters.extend(after.map(|after| ("after", after)));
    client
        .get(&["v1", "deployments", &args.name, "entries"], &parameters)
        .await
}

/// An event as a scenario writes it. The host's own headers are left out.
fn action(event: StoredEvent) -> Action {
    let StoredEvent {
        time,
        subject,
        kind,
        mut headers,
        data,
        ..
    } = event;
    let id = headers.remove(MESSAGE_ID);
    headers.retain(|name, _| !name.starts_with("nats-") && !name.starts_with("foldstream-"));
    // The type of most events is the last token of their subject.
    let kind = (subject.rsplit('.').next() != Some(&kind)).then_some(kind);
    let literal = |text: String| text.replace("${", "$${");
    Action {
        subject: Some(literal(subject)),
        kind: kind.map(literal),
        id: id.map(literal),
        at: Some(time),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name, literal(value)))
            .collect(),
        data: Some(redact::texts(data, &literal)),
        ..Action::default()
    }
}
