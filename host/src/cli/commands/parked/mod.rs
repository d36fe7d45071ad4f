//! `foldstream parked`: events that were set aside because they failed, and what waits behind them.

mod bundle_file;
mod export;

use std::time::Duration;

use anyhow::Context as _;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::api::{
    FailureClass, ParkedChange, ParkedEvents, ParkedFailure, ParkedKey, ParkedList, ParkedOutcome,
    ParkedSelection,
};
use crate::cli::Context;
use crate::cli::support::client::Client;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{bytes, compact, counted, printable, table};

/// Longest wait for the response: the host applies events for a few seconds, and a batch may have
/// to end first.
const TIMEOUT: Duration = Duration::from_secs(75);

/// List, retry, drop or export events that failed and were parked, with later events of their keys.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(before_help = "\
Examples:
  foldstream deploy order-totals.wasm --on-failure park
  foldstream parked list order-totals
  foldstream parked show order-totals ada
  foldstream parked retry order-totals ada
  foldstream parked retry order-totals --all --class rejected
  foldstream parked drop order-totals ada --reason 'test data, ticket 4711'
  foldstream parked export order-totals ada")]
pub(crate) enum Command {
    /// List the keys with parked events.
    #[command(before_help = "\
Examples:
  foldstream parked list order-totals
  foldstream parked list order-totals --class trap -o json | jq '.keys[].key'")]
    List(ListArgs),
    /// Show the parked events of a key, with the error of the first.
    #[command(before_help = "\
Examples:
  foldstream parked show order-totals ada
  foldstream parked show order-totals ada -o ndjson")]
    Show(ShowArgs),
    /// Apply parked events, key by key and in order. What fails again stays parked. A deployment that
    /// has stopped is resumed.
    #[command(before_help = "\
Examples:
  foldstream parked retry order-totals ada bob
  foldstream parked retry order-totals --all --dry-run           # what would happen
  foldstream parked retry order-totals --all --class rejected    # with a corrected module")]
    Retry(RetryArgs),
    /// Leave out the first parked event of each key for good, or all of them with --whole-keys.
    #[command(before_help = "\
Examples:
  foldstream parked drop order-totals ada --reason 'test data, ticket 4711'
  foldstream parked drop order-totals ada --whole-keys --reason 'no such customer, ticket 4711'

Later events of the key stay parked until `foldstream parked retry`.")]
    Drop(DropArgs),
    /// Write failure bundles, which `foldstream replay` reproduces without the host.
    #[command(before_help = "\
Examples:
  foldstream parked export order-totals                    # the failure that was recorded last
  foldstream parked export order-totals ada -f ada.json    # a parked key, tried once more
  foldstream parked export order-totals --all --class trap --dir bundles")]
    Export(export::Args),
}

/// Options of `list`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Name of the deployment.
    name: String,
    /// Only keys whose first event failed with this class.
    #[arg(long, value_parser = class())]
    class: Option<FailureClass>,
}

/// Options of `show`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Name of the deployment.
    name: String,
    /// The key, as it is listed.
    key: String,
}

/// Options of `retry`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RetryArgs {
    /// Name of the deployment.
    name: String,
    #[command(flatten)]
    which: Which,
    /// Change nothing, and show what would happen.
    #[arg(long)]
    dry_run: bool,
}

/// Options of `drop`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DropArgs {
    /// Name of the deployment.
    name: String,
    #[command(flatten)]
    which: Which,
    /// The reason, for the audit log and for everyone who asks later.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Drop all events of the keys, and not only the first of each.
    #[arg(long)]
    whole_keys: bool,
    /// Change nothing, and show what would happen.
    #[arg(long)]
    dry_run: bool,
}

/// Which keys are meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// The keys, as they are listed.
    #[arg(required_unless_present = "all", value_name = "KEY")]
    keys: Vec<String>,
    /// All keys.
    #[arg(long, conflicts_with = "keys")]
    all: bool,
    /// With --all: only keys whose first event failed with this class.
    #[arg(long, requires = "all", conflicts_with = "keys", value_parser = class())]
    class: Option<FailureClass>,
}

fn class() -> impl TypedValueParser<Value = FailureClass> {
    PossibleValuesParser::new(FailureClass::ALL.map(FailureClass::name))
        .try_map(|name| FailureClass::named(&name).ok_or("there is no such class"))
}

impl Which {
    fn selection(self) -> ParkedSelection {
        let Self { keys, all, class } = self;
        ParkedSelection {
            keys: keys.into_iter().map(as_listed).collect(),
            all,
            class,
            ..ParkedSelection::default()
        }
    }
}

/// Sends the request and prints the outcome.
pub(crate) async fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        Command::List(ListArgs { name, class }) => {
            let list = all_keys(&client, &name, class).await?;
            context.output.many(&list.keys, &list, keys)?;
            context.output.note(&summary(&list, class));
        }
        Command::Show(ShowArgs { name, key }) => {
            let path = ["v1", "deployments", &name, "parked", "events"];
            let key = as_listed(key);
            let events: ParkedEvents = client.get(&path, &[("key", key)]).await?;
            context
                .output
                .many(&events.events, &events, |_| shown(&events))?;
        }
        Command::Retry(RetryArgs {
            name,
            which,
            dry_run,
        }) => {
            let selection = ParkedSelection {
                dry_run,
                ..which.selection()
            };
            // Printed in any case: what was applied before a key failed again stays applied.
            let outcome = act_on_all(&client, (&name, "retry"), &selection, context).await?;
            context
                .output
                .one(&outcome, |outcome| line_of("applied", outcome))?;
            if outcome.resumed {
                let note = format!("{name} had stopped; the retry resumed it");
                context.output.note(&note);
            }
            if let Some(first) = outcome.failed.first() {
                let failed = counted(outcome.failed.len() as u64, "key");
                let verb = if dry_run { "would fail" } else { "failed" };
                let message = format!(
                    "{failed} {verb} again, the first `{}`: {}; what fails stays parked",
                    first.key, first.error
                );
                return Err(Failure::new(Exit::Failed, message).into());
            }
            if let Some(unfinished) = &outcome.unfinished {
                let message = format!("not all keys were tried: {unfinished}");
                return Err(Failure::new(Exit::Failed, message).into());
            }
        }
        Command::Drop(DropArgs {
            name,
            which,
            reason,
            whole_keys,
            dry_run,
        }) => {
            let selection = ParkedSelection {
                reason: Some(reason),
                whole_keys,
                dry_run,
                ..which.selection()
            };
            let outcome = act_on_all(&client, (&name, "drop"), &selection, context).await?;
            context
                .output
                .one(&outcome, |outcome| line_of("dropped", outcome))?;
            if let Some(unfinished) = &outcome.unfinished {
                let message = format!("not all events were dropped: {unfinished}");
                return Err(Failure::new(Exit::Failed, message).into());
            }
            if outcome.left.events > 0 && !dry_run {
                context
                    .output
                    .note("later events of these keys stay parked until `foldstream parked retry`");
            }
        }
        Command::Export(args) => export::run(args, &client, context).await?,
    }
    Ok(())
}

/// All parked keys, page by page.
async fn all_keys(
    client: &Client,
    name: &str,
    class: Option<FailureClass>,
) -> anyhow::Result<ParkedList> {
    let path = ["v1", "deployments", name, "parked"];
    let class = class.map(|class| ("class", class.name().to_owned()));
    let mut query: Vec<_> = class.into_iter().collect();
    let mut list: ParkedList = client.get(&path, &query).await?;
    while let Some(after) = list.next.take() {
        query.retain(|(name, _)| *name != "after");
        query.push(("after", after));
        let page: ParkedList = client.get(&path, &query).await?;
        list.keys.extend(page.keys);
        list.next = page.next;
        // As of the same moment as the last keys.
        list.counts = page.counts;
    }
    Ok(list)
}

/// Sends requests until one has got to everything, or to nothing: the deployment applies other
/// events in between.
async fn act_on_all(
    client: &Client,
    (name, verb): (&str, &str),
    selection: &ParkedSelection,
    context: &Context,
) -> anyhow::Result<ParkedOutcome> {
    let mut done = act(client, name, verb, selection).await?;
    while done.unfinished.is_some() && !done.dry_run {
        let rest = rest_of(client, name, selection, &done).await?;
        if rest.keys.is_empty() {
            done.unfinished = None;
            break;
        }
        let (events, left) = (
            counted(done.events, "event"),
            counted(done.left.events, "event"),
        );
        context
            .output
            .note(&format!("{events} so far, {left} parked; continuing"));
        let next = act(client, name, verb, &rest).await?;
        let got_on = next.events > 0 || next.keys > 0 || !next.failed.is_empty();
        done = ParkedOutcome {
            events: done.events + next.events,
            keys: done.keys + next.keys,
            failed: [done.failed, next.failed].concat(),
            resumed: done.resumed || next.resumed,
            ..next
        };
        // Another request would get no further, as the deployment is busy or stopped.
        if !got_on {
            break;
        }
    }
    Ok(done)
}

/// What is left of a selection: its keys that are parked and have not failed again.
async fn rest_of(
    client: &Client,
    name: &str,
    selection: &ParkedSelection,
    done: &ParkedOutcome,
) -> anyhow::Result<ParkedSelection> {
    let parked = all_keys(client, name, selection.class).await?.keys;
    let is_meant = |key: &String| selection.all || selection.keys.contains(key);
    let has_failed = |key: &String| done.failed.iter().any(|failed| failed.key == *key);
    // Only the first event of each key is dropped, and the next one has not been tried.
    let only_first = selection.reason.is_some() && !selection.whole_keys;
    let keys = parked
        .into_iter()
        .filter(|parked| !only_first || parked.failure.is_some())
        .map(|parked| parked.key)
        .filter(|key| is_meant(key) && !has_failed(key))
        .take(KEYS_MAX)
        .collect();
    Ok(ParkedSelection {
        keys,
        all: false,
        class: None,
        ..selection.clone()
    })
}

async fn act(
    client: &Client,
    name: &str,
    verb: &str,
    selection: &ParkedSelection,
) -> anyhow::Result<ParkedOutcome> {
    let path = ["v1", "deployments", name, "parked", verb];
    let body = serde_json::to_vec(selection).context("cannot write the request as JSON")?;
    Ok(client
        .post(&path, &[], ("application/json", body.into()), TIMEOUT)
        .await?)
}

/// Most keys that one request may name.
const KEYS_MAX: usize = 1_000;

/// How the empty key is shown, under which events without a key are parked.
const NO_KEY: &str = "(no key)";

/// An empty key is shown as what it means.
fn key_word(key: &str) -> String {
    if key.is_empty() { NO_KEY } else { key }.to_owned()
}

/// The key that is meant by one as it is listed.
fn as_listed(key: String) -> String {
    if key == NO_KEY { String::new() } else { key }
}

fn keys(keys: &[ParkedKey]) -> String {
    let rows = keys.iter().map(|parked| {
        let failure = parked.failure.as_ref();
        let class = failure.map_or("-", |failure| &failure.class).to_owned();
        let message = failure.map_or_else(
            || "waits for a retry".to_owned(),
            |failure| failure.message.clone(),
        );
        let since = failure.map_or("-", |failure| &failure.first_at);
        let first = parked.first_sequence.to_string();
        vec![
            key_word(&parked.key),
            parked.events.to_string(),
            first,
            class,
            second(since),
            message,
        ]
    });
    table(&["KEY", "EVENTS", "FIRST", "CLASS", "SINCE", "ERROR"], rows)
}

/// A time without fractions of a second.
fn second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

fn shown(events: &ParkedEvents) -> String {
    let mut text = String::new();
    if let Some(ParkedFailure {
        kind,
        message,
        attempts,
        module,
        reads,
        ..
    }) = events
        .events
        .first()
        .and_then(|event| event.failure.as_ref())
    {
        let digest = module.get(..12).unwrap_or(module);
        let attempts = counted(u64::from(*attempts), "attempt");
        let message = printable(message);
        text = format!("{kind}: {message}\n{attempts}, the last with module {digest}\n\n");
        if !reads.is_empty() {
            let rows = reads.iter().map(|read| {
                let value = read.value.clone();
                vec![
                    read.key.clone(),
                    value.unwrap_or_else(|| "(absent)".to_owned()),
                ]
            });
            text.push_str(&table(&["READ", "VALUE"], rows));
            text.push_str("\n\n");
        }
    }
    let rows = events.events.iter().map(|event| {
        let (time, data) = (second(&event.time), compact(&event.data));
        vec![
            event.sequence.to_string(),
            time,
            event.subject.clone(),
            event.kind.clone(),
            data,
        ]
    });
    text.push_str(&table(
        &["SEQUENCE", "TIME", "SUBJECT", "TYPE", "DATA"],
        rows,
    ));
    if events.total > events.events.len() as u64 {
        text.push_str(&format!(
            "\nand {} more",
            events.total - events.events.len() as u64
        ));
    }
    text
}

/// How much the listed keys have parked.
fn summary(list: &ParkedList, class: Option<FailureClass>) -> String {
    // Not the count of the host: more may be parked by the time of the last page, and it counts
    // all classes.
    let sum = |figure: fn(&ParkedKey) -> u64| list.keys.iter().map(figure).sum::<u64>();
    let of_class = class.map_or_else(String::new, |class| {
        format!(" whose first event failed as {}", class.name())
    });
    match list.keys.len() as u64 {
        0 if class.is_some() => format!("no key is parked{of_class}"),
        0 => "nothing is parked".to_owned(),
        keys => format!(
            "{} of {}{of_class}, {}",
            counted(sum(|parked| parked.events), "event"),
            counted(keys, "key"),
            bytes(sum(|parked| parked.bytes))
        ),
    }
}

fn line_of(verb: &str, outcome: &ParkedOutcome) -> String {
    let mut text = format!(
        "{verb} {}; {} no longer parked; {} of {} left",
        counted(outcome.events, "event"),
        counted(outcome.keys, "key"),
        counted(outcome.left.events, "event"),
        counted(outcome.left.keys, "key")
    );
    if outcome.dry_run {
        text = format!(
            "would have {verb} {}; {} would no longer be parked",
            counted(outcome.events, "event"),
            counted(outcome.keys, "key")
        );
        if outcome.messages > 0 {
            text.push_str(&format!(
                "; {} would be published",
                counted(outcome.messages, "message")
            ));
        }
    }
    if let Some(unfinished) = &outcome.unfinished {
        text.push_str(&format!("; not finished: {unfinished}"));
    }
    for change in &outcome.changes {
        text.push_str(&changed(change));
    }
    if outcome.more_changes > 0 {
        text.push_str(&format!("\nand {} more", outcome.more_changes));
    }
    text
}

/// An entry that would change, as a line.
fn changed(change: &ParkedChange) -> String {
    let key = &change.key;
    match (&change.before, &change.after) {
        (None, Some(after)) => format!("\n+ {key}  {}", compact(after)),
        (Some(before), None) => format!("\n- {key}  {}", compact(before)),
        (Some(before), Some(after)) => {
            format!("\n~ {key}  {} -> {}", compact(before), compact(after))
        }
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_keys_are_rows() {
        let failure = ParkedFailure {
            kind: "rejected".to_owned(),
            class: "rejected".to_owned(),
            message: "no amount".to_owned(),
            attempts: 1,
            module: "ab".to_owned(),
            first_at: "2026-11-26T10:00:00.123456789Z".to_owned(),
            last_at: "2026-11-26T10:00:00.123456789Z".to_owned(),
            reads: Vec::new(),
            reads_are_cut: false,
        };
        let ada = ParkedKey {
            key: "ada".to_owned(),
            events: 2,
            bytes: 9,
            first_sequence: 7,
            failure: Some(failure),
        };
        let none = ParkedKey {
            key: String::new(),
            events: 1,
            failure: None,
            ..ada.clone()
        };
        let mut list = ParkedList {
            on_failure: crate::api::OnFailure::Park,
            failure_events: None,
            // As the host counted before the first page.
            counts: crate::api::ParkedCounts::default(),
            keys: vec![ada.clone(), none.clone()],
            next: None,
        };
        assert_eq!(summary(&list, None), "3 events of 2 keys, 18 B");
        let trap = Some(FailureClass::Trap);
        list.keys.truncate(1);
        assert_eq!(
            summary(&list, trap),
            "2 events of 1 key whose first event failed as trap, 9 B"
        );
        list.keys.clear();
        assert_eq!(
            summary(&list, trap),
            "no key is parked whose first event failed as trap"
        );
        assert_eq!(
            keys(&[ada, none]),
            "\
KEY       EVENTS  FIRST  CLASS     SINCE                 ERROR
ada       2       7      rejected  2026-11-26T10:00:00Z  no amount
(no key)  1       7      -         -                     waits for a retry"
        );
    }
}
