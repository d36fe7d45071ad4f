//! `foldstream replay`: reproduces a failure from a bundle, without a host.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::bundle::{BUNDLE_BYTES_MAX, Bundle, Change, Ended, Failed, Replay, Step};
use crate::cli::Context;
use crate::cli::commands::deployments::deploy;
use crate::cli::support::config_args;
use crate::cli::support::exit::{Exit, Failure};
use crate::cli::support::output::{compact, counted, printable};
use crate::config::Config;
use crate::event::{Event, Payload};
use crate::memory::Memory;
use crate::{module, small_file};

/// Reproduce a failure from a bundle, without a host: apply its events one by one, and show what
/// each changes.
#[derive(Clone, Debug, clap::Args)]
#[command(before_help = "\
Examples:
  foldstream replay order-totals-333.bundle.json
  foldstream replay order-totals-333.bundle.json --module corrected.wasm
  foldstream replay order-totals-333.bundle.json --step --calls

`foldstream parked export` makes bundles. Without --module, the replay succeeds if the event fails \
as it did on the host. With it, it succeeds if the module applies all events.")]
pub(crate) struct Args {
    /// The bundle.
    bundle: PathBuf,
    /// Use this module instead of that of the bundle.
    #[arg(short, long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Wait after each event: Enter applies the next one, `q` and Enter quits.
    #[arg(long)]
    step: bool,
    /// Show the calls that the module makes.
    #[arg(long)]
    calls: bool,
}

/// An event of a replay, for people and programs.
#[derive(Debug, Serialize)]
struct Shown {
    sequence: u64,
    subject: String,
    #[serde(rename = "type")]
    kind: String,
    /// `applied`, or the kind of its failure.
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    changes: Vec<ShownChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    calls: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownChange {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<serde_json::Value>,
}

impl From<Change> for ShownChange {
    fn from(change: Change) -> Self {
        Self {
            key: change.key,
            before: change.before.as_ref().map(Payload::to_json),
            after: change.after.as_ref().map(Payload::to_json),
        }
    }
}

impl Shown {
    fn of(event: &Event, step: Step) -> Self {
        let (outcome, message) = match step.ended {
            Ended::Applied => ("applied".to_owned(), None),
            Ended::Failed { kind, message } => (kind.to_owned(), Some(message)),
        };
        Self {
            sequence: event.sequence,
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            outcome,
            message,
            changes: step.changes.into_iter().map(ShownChange::from).collect(),
            calls: step
                .calls
                .iter()
                .map(|call| serde_json::to_value(call).expect("plain data"))
                .collect(),
            unknown: step.unknown,
        }
    }

    fn lines(&self) -> String {
        let Self {
            sequence, subject, ..
        } = self;
        let subject = printable(subject);
        let mut text = match &self.message {
            None => format!("{sequence} {subject}: applied"),
            Some(message) => format!(
                "{sequence} {subject}: {}: {}",
                self.outcome,
                // It may have lines, such as a traceback.
                message
                    .lines()
                    .map(printable)
                    .collect::<Vec<_>>()
                    .join("\n")
            ),
        };
        for call in &self.calls {
            text.push_str(&format!("\n    {}", printable(&compact(call))));
        }
        for ShownChange { key, before, after } in &self.changes {
            let line = match (before, after) {
                (None, Some(after)) => format!("+ {key}  {}", compact(after)),
                (Some(before), None) => format!("- {key}  {}", compact(before)),
                (Some(before), Some(after)) => {
                    format!("~ {key}  {} -> {}", compact(before), compact(after))
                }
                (None, None) => continue,
            };
            // A module chooses its keys and words.
            let line = printable(&line);
            // What a failed event wrote was dropped.
            let dropped = if self.message.is_some() {
                "  (dropped)"
            } else {
                ""
            };
            text.push_str(&format!("\n  {line}{dropped}"));
        }
        text
    }
}

/// Runs the replay, and says whether it went as expected.
pub(crate) async fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let content = small_file::read_within(&args.bundle, BUNDLE_BYTES_MAX)
        .with_context(|| format!("cannot read {}", args.bundle.display()))?;
    let bundle = Bundle::from_bytes(&content)
        .with_context(|| format!("cannot replay {}", args.bundle.display()))?;
    let other = args
        .module
        .as_deref()
        .map(deploy::read_module)
        .transpose()?;
    // Before it is moved: it decides what counts as success.
    let has_other = other.is_some();
    let folder = config_args::temporary_folder()?;
    let checker =
        module::this_program().context("cannot find this program, which checks the module")?;
    let mut options =
        Config::default().module_options(folder.path().to_owned(), checker, &Memory::unlimited());
    options.instances_max = 2 * module::PLACES_PER_INSTANCE_MAX;
    let mut replay = Replay::begin(&bundle, other, folder.path(), options)?;
    for note in &bundle.notes {
        context.output.warning(note);
    }
    let shown = applied(&mut replay, bundle.events.len(), &args, context).await?;
    let unknown: usize = shown.iter().map(|step| step.unknown.len()).sum();
    if !args.step {
        context.output.many(&shown, &shown, |steps| {
            let lines: Vec<String> = steps.iter().map(Shown::lines).collect();
            lines.join("\n")
        })?;
    }
    // Another module is meant to apply everything; the recorded failure says nothing about it.
    let verdict = verdict(&shown, bundle.failure.as_ref().filter(|_| !has_other));
    let (is_as_expected, text) = verdict;
    // A result that rests on what is missing proves nothing, whichever it is.
    if unknown > 0 {
        let text = format!("{text}, but the bundle lacks some of what was read");
        return Err(Failure::new(Exit::Failed, text).into());
    }
    if !is_as_expected {
        return Err(Failure::new(Exit::Failed, text).into());
    }
    context.output.note(&text);
    Ok(())
}

/// Applies the events, of which there are `total`, unless the user quits before the last one.
async fn applied(
    replay: &mut Replay,
    total: usize,
    args: &Args,
    context: &Context,
) -> anyhow::Result<Vec<Shown>> {
    let mut shown = Vec::new();
    let mut keys = args.step.then(|| Keys::begin(context));
    while let Some((event, step)) = replay.step()? {
        let mut step = Shown::of(&event, step);
        if !args.calls {
            step.calls.clear();
        }
        for read in &step.unknown {
            context.output.warning(&format!(
                "event {} reads {read}, which the bundle does not have, so from here on the \
                 replay may differ from the host",
                step.sequence
            ));
        }
        // Step by step they are shown at once; otherwise all together, in the chosen format.
        if args.step {
            context.output.say(&step.lines());
        }
        shown.push(step);
        // Ctrl-C is noticed between two events.
        tokio::task::yield_now().await;
        // Behind the last one there is nothing to wait for.
        let left = total - shown.len();
        if let Some(waits) = keys.as_mut().filter(|_| left > 0) {
            match waits.next().await {
                Key::Next => {}
                // Nobody can press a key any more.
                Key::None => keys = None,
                Key::Quit => {
                    let left = counted(left as u64, "event");
                    context.output.note(&format!("quit; {left} not applied"));
                    break;
                }
            }
        }
    }
    Ok(shown)
}

/// Whether the replay went as expected, and how it went, in words.
fn verdict(shown: &[Shown], expected: Option<&Failed>) -> (bool, String) {
    let failed = shown.iter().find(|step| step.message.is_some());
    let Some(expected) = expected else {
        return match failed {
            None => {
                let events = counted(shown.len() as u64, "event");
                (true, format!("{events} applied"))
            }
            Some(step) => (
                false,
                format!(
                    "event {} fails: {}: {}",
                    step.sequence,
                    step.outcome,
                    step.message.as_deref().unwrap_or_default()
                ),
            ),
        };
    };
    let Failed {
        sequence,
        kind,
        message,
        ..
    } = expected;
    match failed {
        Some(step)
            if step.sequence == *sequence
                && step.outcome == *kind
                && step.message.as_ref() == Some(message) =>
        {
            (
                true,
                format!("reproduced: event {sequence} fails as it did on the host"),
            )
        }
        Some(step) => (
            false,
            format!(
                "not reproduced: event {} fails with {}: {}; on the host event {sequence} failed \
                 with {kind}: {message}",
                step.sequence,
                step.outcome,
                step.message.as_deref().unwrap_or_default()
            ),
        ),
        None => (
            false,
            format!(
                "not reproduced: all events were applied; on the host event {sequence} failed \
                 with {kind}: {message}"
            ),
        ),
    }
}

/// What the user wants after an event.
enum Key {
    Next,
    Quit,
    /// Standard input has ended.
    None,
}

/// The lines of standard input.
struct Keys(mpsc::Receiver<String>);

impl Keys {
    /// Reads on a thread of its own: nothing interrupts a read, and Ctrl-C must not wait for one.
    fn begin(context: &Context) -> Self {
        if std::io::stdin().is_terminal() {
            context
                .output
                .note("Enter applies the next event, q and Enter quits");
        }
        // One line ahead: the next is read once this one is taken.
        let (lines, receiver) = mpsc::channel(1);
        std::thread::spawn(move || {
            let read = std::io::stdin().lines().map_while(Result::ok);
            // The replay may be over.
            let _ = read
                .map(|line| lines.blocking_send(line))
                .find(Result::is_err);
        });
        Self(receiver)
    }

    /// Cancel-safe: a line that is not received stays.
    async fn next(&mut self) -> Key {
        match self.0.recv().await {
            None => Key::None,
            Some(line) if line.trim() == "q" => Key::Quit,
            Some(_) => Key::Next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(sequence: u64, failure: Option<(&str, &str)>) -> Shown {
        Shown {
            sequence,
            subject: "a.b".to_owned(),
            kind: "b".to_owned(),
            outcome: failure.map_or("applied", |(kind, _)| kind).to_owned(),
            message: failure.map(|(_, message)| message.to_owned()),
            changes: vec![ShownChange {
                key: "k".to_owned(),
                before: Some(1.into()),
                after: Some(2.into()),
            }],
            calls: Vec::new(),
            unknown: Vec::new(),
        }
    }

    #[test]
    fn a_replay_is_as_expected_only_if_the_same_event_fails_in_the_same_way() {
        let expected = Failed {
            sequence: 7,
            kind: "trap".to_owned(),
            class: None,
            message: "unreachable".to_owned(),
            first_at: None,
        };
        let ends = |failure, wanted| verdict(&[step(7, failure)], wanted).0;
        assert!(ends(Some(("trap", "unreachable")), Some(&expected)));
        assert!(!ends(Some(("trap", "overflow")), Some(&expected)));
        assert!(!ends(Some(("rejected", "unreachable")), Some(&expected)));
        assert!(!ends(None, Some(&expected)));
        assert!(ends(None, None));
        assert!(!ends(Some(("trap", "unreachable")), None));
    }

    #[test]
    fn changes_are_shown_as_differences() {
        assert_eq!(step(7, None).lines(), "7 a.b: applied\n  ~ k  1 -> 2");
        assert_eq!(
            step(7, Some(("trap", "unreachable"))).lines(),
            "7 a.b: trap: unreachable\n  ~ k  1 -> 2  (dropped)"
        );
    }

    #[test]
    fn what_a_module_says_cannot_take_over_the_terminal() {
        let mut hostile = step(7, Some(("rejected", "no\u{1b}]0;owned\u{7}\nline 2")));
        hostile.changes[0].key = "k\u{1b}[2J".to_owned();
        hostile.changes[0].before = Some("\u{9b}2J".into());
        hostile.calls = vec![serde_json::json!({ "get": "\u{9b}\u{202e}" })];
        let text = hostile.lines();
        let is_harmless = |c: char| !c.is_control() || c == '\n';
        assert!(
            text.chars().all(is_harmless) && !text.contains('\u{202e}'),
            "{text:?}"
        );
        assert!(
            text.contains("\nline 2"),
            "a traceback keeps its lines: {text:?}"
        );
    }
}
