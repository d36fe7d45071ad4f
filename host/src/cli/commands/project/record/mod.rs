//! `foldstream record`: makes a scenario of what a deployment has folded.

mod events;
mod redact;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::api::{Deployment, EntryPage, ModuleSchemas, OnFailure, ParkedList};
use crate::cli::Context;
use crate::cli::support::client::{Client, Error};
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{Format, counted};
use crate::scenario::{self, Document, File, Mistake, Scenario, Then, TimersFire};
use crate::schemas::{Checks, EventSchema};

use redact::Redaction;

/// Entries per page.
const PAGE: usize = 1_000;
/// Most entries of a scenario, and most parked keys.
const ENTRIES_MAX: usize = 10_000;
/// Longest file of scenarios that `foldstream test` reads, in bytes.
const FILE_BYTES_MAX: usize = 8 << 20;

/// Make a scenario from the first events that a deployment has folded, and its entries after them.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream record order-totals --limit 20 > recorded.yaml
  foldstream record order-totals --subject 'orders.ada.*' --prefix customer/ada --to ada.yaml
  foldstream record order-totals --redact /customer/email --to recorded.yaml

The events are the first ones of the stream that the module reads, with the firings of its timers; \
events that were skipped are left out. Texts at a redacted place of the data become `redacted-1`, \
`redacted-2` and so on. The same text always becomes the same, also in subjects, keys and entries. \
Numbers become 0. Look at the file before you share it: only what you name is redacted.")]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// Only events whose subject matches; needs --prefix, because others create other entries.
    #[arg(long, value_name = "PATTERN", requires = "prefix")]
    subject: Option<String>,
    /// Only entries with this prefix; may be repeated.
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// Maximum number of events.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit: u64,
    /// A place in the data of events to redact, as a JSON pointer; `*` in it is every item or
    /// member. May be repeated.
    #[arg(long, value_name = "POINTER")]
    redact: Vec<String>,
    /// Name of the scenario; default: what it was made of.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// File to create; default: standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut redaction = Redaction::of(&args.redact)?;
    let client = context.client()?;
    let deployment = client.deployment(&args.name).await?;
    let recorded = events::record(&args, &deployment, &client, context).await?;
    let entries = entries(&args, recorded.last, &client).await?;
    let parked = parked(&args, &deployment, recorded.last, &client).await?;
    if deployment.on_failure == OnFailure::Park && recorded.last < deployment.position {
        context.output.note(
            "keys that were parked then, and were retried or dropped since, are not in the recording",
        );
    }
    let mut actions = recorded.actions;
    // All at first: what is redacted in a later event may also be in the subject of an earlier one.
    for action in &mut actions {
        redaction.collect(action);
    }
    for pointer in redaction.unused() {
        context.output.warning(&format!(
            "no recorded event has anything at {pointer}, so nothing is redacted there"
        ));
    }
    for action in &mut actions {
        redaction.apply(action);
    }
    // Other events before the first one happen at its time, too.
    let start = actions.iter_mut().find_map(|action| action.at.take());
    let when = actions.split_off(actions.len().saturating_sub(1));
    let name = args
        .scenario
        .clone()
        .unwrap_or_else(|| format!("{} up to event {}, as recorded", args.name, recorded.last));
    let mut file = File {
        scenarios: vec![Scenario {
            name,
            start,
            on_failure: match deployment.on_failure {
                OnFailure::Stop => scenario::OnFailure::Stop,
                OnFailure::Park => scenario::OnFailure::Park,
            },
            check_events: deployment.checks_events_after.is_some(),
            timers_fire: match deployment.timers {
                Some(_) => TimersFire::ByAction,
                None => TimersFire::WhenDue,
            },
            given: actions,
            when,
            then: Then {
                no_other_entries: args.prefix.is_empty(),
                entries: redaction.entries(entries),
                parked: (!parked.is_empty()).then(|| redaction.keys(parked)),
                ..Then::default()
            },
            ..Scenario::default()
        }],
        ..File::default()
    };
    allow_invalid_events(&mut file, &deployment, &client, context).await?;
    write(&args, &file, context)?;
    context.output.note(&format!(
        "recorded {}; `foldstream test` plays it",
        counted(recorded.events, "event")
    ));
    Ok(())
}

/// Lets the scenario have events that do not fit the schemas of the module: a stream may have some,
/// and a redacted one may become one.
async fn allow_invalid_events(
    file: &mut File,
    deployment: &Deployment,
    client: &Client,
    context: &Context,
) -> anyhow::Result<()> {
    if deployment.module.events.is_empty() {
        return Ok(());
    }
    let path = ["v1", "deployments", &deployment.name, "schemas"];
    let carried: ModuleSchemas = client.get(&path, &[]).await?;
    let carried: Vec<EventSchema> = carried.schemas.into_iter().map(Into::into).collect();
    let checks = Checks::new(&carried)?;
    let document = Document::of(file.clone()).map_err(unfit)?;
    if scenario::has_invalid_events(&checks, &document).map_err(unfit)? {
        let scenarios = file.scenarios.iter_mut();
        scenarios.for_each(|scenario| scenario.invalid_events = true);
        context.output.note(
            "some events do not fit the schemas of the module, which the scenario allows with \
             `invalid_events: true`",
        );
    }
    Ok(())
}

/// No scenario can have what was recorded.
fn unfit(mistake: Mistake) -> Failure {
    let message = format!("a scenario cannot have these events: {mistake}");
    Failure::new(Exit::Refused, message)
}

/// Writes the file, if `foldstream test` can read it.
fn write(args: &Args, file: &File, context: &Context) -> anyhow::Result<()> {
    let text = file.to_yaml();
    let refused = |message: String| Failure::new(Exit::Refused, message);
    if text.len() > FILE_BYTES_MAX {
        return Err(refused(format!(
            "the scenario has {} bytes, and {FILE_BYTES_MAX} are allowed; record fewer events \
             (--limit), or only some entries (--prefix)",
            text.len()
        ))
        .into());
    }
    Document::read(&text).map_err(unfit)?;
    match &args.to {
        Some(path) => create(path, &text),
        None if context.output.format == Format::Table => {
            Ok(context.output.raw(text.as_bytes())?)
        }
        // JSON is YAML, too.
        None => Ok(context.output.one(file, File::to_yaml)?),
    }
}

/// Creates a file. One that exists is kept: its user may have changed it.
fn create(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = path.display();
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    match created {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .inspect_err(|_| {
                // Created a moment ago: a cut file would only be in the way of the next attempt.
                let _ = std::fs::remove_file(path);
            })
            .with_context(|| format!("cannot write {shown}")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let message =
                format!("{shown} exists already; choose another name, or remove it first");
            Err(Failure::new(Exit::Refused, message).into())
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {shown}")),
    }
}

/// The keys that were parked when an event had been folded.
async fn parked(
    args: &Args,
    deployment: &Deployment,
    sequence: u64,
    client: &Client,
) -> anyhow::Result<Vec<String>> {
    if deployment.parked.keys > ENTRIES_MAX as u64 {
        let message = format!("more than {ENTRIES_MAX} keys are parked; retry or drop them first");
        return Err(Failure::new(Exit::Refused, message).into());
    }
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let parameters: Vec<_> = after.map(|after| ("after", after)).into_iter().collect();
        let path = ["v1", "deployments", &args.name, "parked"];
        let page: ParkedList = client.get(&path, &parameters).await?;
        let then = page.keys.into_iter();
        keys.extend(
            then.filter(|key| key.first_sequence <= sequence)
                .map(|key| key.key),
        );
        after = page.next;
        if after.is_none() {
            return Ok(keys);
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
