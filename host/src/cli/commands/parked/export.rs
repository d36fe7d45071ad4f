//! `foldstream parked export`

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use reqwest::Method;
use serde::Serialize;

use super::bundle_file::{self, Written};
use super::{TIMEOUT, all_keys, as_listed, class, key_word};
use crate::api::FailureClass;
use crate::bundle::{Bundle, Failed};
use crate::cli::Context;
use crate::cli::support::client::Client;
use crate::cli::support::exit::{Exit, Failure, exit_of};
use crate::cli::support::output::{Format, counted, printable, span};

/// Pause between lines that say how far a long export is.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Options of `export`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the deployment.
    name: String,
    /// The keys, as they are listed; without any, the failure that the host recorded last.
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    /// All parked keys, a file for each.
    #[arg(long, conflicts_with = "keys")]
    all: bool,
    /// With --all: only keys whose first event failed with this class.
    #[arg(long, requires = "all", conflicts_with = "keys", value_parser = class())]
    class: Option<FailureClass>,
    /// The file; default: `DEPLOYMENT-SEQUENCE.bundle.json`.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["all", "dir"])]
    file: Option<PathBuf>,
    /// The folder for the files, which is created if it does not exist; default: the current one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Where a bundle is written.
#[derive(Clone, Copy)]
enum Place<'a> {
    File(&'a Path),
    /// Under a name of its own.
    Folder(&'a Path),
}

/// A bundle that was written.
#[derive(Debug, Serialize)]
struct Exported {
    file: PathBuf,
    events: usize,
    entries: usize,
    failure: Option<Failed>,
    notes: Vec<String>,
    /// The file was there before, with the same failure and these events.
    already_there: bool,
    /// The file was there before, with the same failure and fewer events.
    replaced: bool,
}

/// A key of which no bundle was written.
#[derive(Debug, Serialize)]
struct NotExported {
    key: String,
    error: String,
}

/// What became of several keys.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    bundles: Vec<Exported>,
    failed: Vec<NotExported>,
}

pub(super) async fn run(args: Args, client: &Client, context: &Context) -> anyhow::Result<()> {
    let Args {
        name,
        keys,
        all,
        class,
        file,
        dir,
    } = args;
    let dir = dir.unwrap_or_default();
    bundle_file::sweep(file.as_deref().unwrap_or(&dir.join("bundle")));
    let mut keys: VecDeque<String> = if all {
        let listed = all_keys(client, &name, class).await?.keys;
        listed.into_iter().map(|parked| parked.key).collect()
    } else {
        keys.into_iter().map(as_listed).collect()
    };
    if all || keys.len() > 1 {
        if file.is_some() {
            let message = "--file is for one key; give --dir for the files of several";
            return Err(Failure::new(Exit::Usage, message).into());
        }
        return export_all(client, &name, keys, (&dir, context)).await;
    }
    let key = keys.pop_front();
    let place = file.as_deref().map_or(Place::Folder(&dir), Place::File);
    let exported = export(client, &name, key.as_deref(), place).await?;
    context.output.one(&exported, line_of)?;
    say_notes(&exported, context);
    let file = exported.file.display();
    context.output.note(&format!(
        "it has data of events and entries; `foldstream replay {file}` reproduces the failure"
    ));
    Ok(())
}

/// Exports keys one after the other. One that can't be exported, perhaps because a retry was faster,
/// holds no other back.
async fn export_all(
    client: &Client,
    name: &str,
    keys: VecDeque<String>,
    (dir, context): (&Path, &Context),
) -> anyhow::Result<()> {
    let (total, begun) = (keys.len(), Instant::now());
    let is_one_document = context.output.format == Format::Json;
    let (mut outcome, mut last_line) = (Outcome::default(), begun);
    let mut exit = Exit::Failed;
    for (done, key) in keys.into_iter().enumerate() {
        if last_line.elapsed() >= LINE_INTERVAL {
            last_line = Instant::now();
            let rate = done as f64 / begun.elapsed().as_secs_f64();
            let left = span((total - done) as f64 / rate);
            let line = format!("{done} of {total} keys, {rate:.1}/s, {left} left");
            context.output.note(&line);
        }
        match export(client, name, Some(&key), Place::Folder(dir)).await {
            Ok(exported) => {
                if !is_one_document {
                    context.output.one(&exported, line_of)?;
                }
                say_notes(&exported, context);
                outcome.bundles.push(exported);
            }
            Err(error) => {
                let is_away = exit_of(&error) == Exit::Unreachable;
                let error = format!("{error:#}");
                let word = key_word(&key);
                context.output.warning(&format!("`{word}`: {error}"));
                outcome.failed.push(NotExported { key, error });
                // The others would fail as well.
                if is_away {
                    exit = Exit::Unreachable;
                    break;
                }
            }
        }
    }
    if is_one_document {
        context.output.one(&outcome, |_| String::new())?;
    }
    let written = outcome.bundles.len();
    if let Some(first) = outcome.failed.first() {
        let message = format!(
            "{written} of {total} keys were exported; the first that was not is `{}`: {}",
            key_word(&first.key),
            first.error
        );
        return Err(Failure::new(exit, message).into());
    }
    context.output.note(&match written {
        0 => "no key is parked like this".to_owned(),
        _ => format!(
            "{}; they have data of events and entries; `foldstream replay FILE` reproduces a \
             failure",
            counted(written as u64, "bundle")
        ),
    });
    Ok(())
}

/// Fetches a bundle and writes it; a file that exists stays, or gets later events of its key.
async fn export(
    client: &Client,
    name: &str,
    key: Option<&str>,
    place: Place<'_>,
) -> anyhow::Result<Exported> {
    let path = ["v1", "deployments", name, "parked", "export"];
    let query: Vec<_> = key.map(|key| ("key", key)).into_iter().collect();
    let request = client.request(Method::POST, &path).query(&query);
    let response = client.stream(request.timeout(TIMEOUT)).await?;
    let body = client.body(response).await?;
    let bundle = Bundle::from_bytes(&body).context("cannot read the response of the host")?;
    let sequence = bundle.events.first().map_or(0, |event| event.sequence);
    let file = match place {
        Place::File(file) => file.to_owned(),
        Place::Folder(dir) => dir.join(format!("{name}-{sequence}.bundle.json")),
    };
    if let Place::Folder(dir) = place {
        // Only now: a name that there is not leaves no folder behind.
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let written = bundle_file::write(&file, &body, &bundle)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let (already_there, replaced) = match &written {
        Written::New => (false, false),
        Written::Replaced => (false, true),
        Written::AlreadyThere(_) => (true, false),
    };
    // Figures and notes are those of the file.
    let bundle = match written {
        Written::AlreadyThere(found) => *found,
        Written::New | Written::Replaced => bundle,
    };
    Ok(Exported {
        already_there,
        replaced,
        file,
        events: bundle.events.len(),
        entries: bundle.entries.len(),
        failure: bundle.failure,
        notes: bundle.notes,
    })
}

fn line_of(exported: &Exported) -> String {
    let failure = exported.failure.as_ref().map_or_else(
        || "no failure".to_owned(),
        |failure| format!("{}: {}", failure.kind, printable(&failure.message)),
    );
    let before = if exported.already_there {
        "already there, "
    } else if exported.replaced {
        "now with "
    } else {
        ""
    };
    let entries = match exported.entries {
        1 => "1 entry".to_owned(),
        entries => format!("{entries} entries"),
    };
    format!(
        "{}: {before}{}, {entries} of the state; {failure}",
        exported.file.display(),
        counted(exported.events as u64, "event"),
    )
}

fn say_notes(exported: &Exported, context: &Context) {
    for note in &exported.notes {
        context.output.warning(note);
    }
}
