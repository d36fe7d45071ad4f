//! The state of the configured sources: whether they can be reached, and which deployments can't
//! read them. Lasting trouble is logged once per source, however many deployments read it, and once
//! more when it is over. The end of trouble with the state of a deployment is logged as well.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::Reachable;
use crate::source::{Info, Source, SourceState, Status};

/// How long trouble lasts before it is logged: the loss of a consumer or the change of a leader
/// passes sooner.
const LASTS: Duration = Duration::from_secs(3);
/// How long an answer of a source counts as current.
const HEARD_FOR: Duration = Duration::from_secs(6);
/// How often a source that nobody reads is checked.
const UNUSED_INTERVAL: Duration = Duration::from_secs(10);
/// Most deployments named in a log line.
const NAMES_MAX: usize = 5;

/// The source of one deployment.
#[derive(Clone, Debug)]
pub(super) struct ReaderStatus {
    pub deployment: String,
    /// The state of the source, as it sees it.
    pub status: Status,
}

/// The state of all sources. No task holds two of its locks at a time.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    sources: Mutex<BTreeMap<String, Contact>>,
    /// Deployments whose state can't be read or written, and since when.
    failing: Mutex<BTreeMap<String, Instant>>,
    /// What was wrong with the host itself at the last look.
    faults: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Contact {
    is_reachable: Option<bool>,
    asked_at: Option<Instant>,
    /// Its last answer to a check, if it could not be reached.
    refusal: Option<(SourceState, String)>,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    state: SourceState,
    logged: Option<SourceState>,
}

impl Contacts {
    /// Records the answer of a source to a check.
    pub(super) fn asked(&self, info: &Info) {
        let mut sources = self.sources.lock();
        let contact = sources.entry(info.name.clone()).or_default();
        contact.is_reachable = Some(info.reachable);
        contact.asked_at = Some(Instant::now());
        let state = info.state.unwrap_or(SourceState::Reconnecting);
        contact.refusal =
            (!info.reachable).then(|| (state, info.message.clone().unwrap_or_default()));
    }

    /// Whether nobody reads a source and it is time to check it.
    pub(super) fn is_due(&self, source: &str) -> bool {
        let asked_at = self
            .sources
            .lock()
            .get(source)
            .and_then(|contact| contact.asked_at);
        // Never asked is due: its state is shown from the start.
        asked_at.is_none_or(|at| at.elapsed() >= UNUSED_INTERVAL)
    }

    /// Records how its deployments see a source, and logs trouble that lasts or is over.
    pub(super) fn seen(&self, name: &str, source: &Source, readers: &[ReaderStatus]) {
        let mut sources = self.sources.lock();
        let contact = sources.entry(name.to_owned()).or_default();
        // A reader that hears the source proves more than a check, which may be older.
        if readers
            .iter()
            .any(|reader| reader.status.is_heard_within(HEARD_FOR))
        {
            contact.is_reachable = Some(true);
            contact.refusal = None;
        }
        let troubled: Vec<&ReaderStatus> = readers
            .iter()
            .filter(|reader| reader.status.is_trouble())
            .collect();
        let found = match troubled.first() {
            Some(reader) => Some((
                reader.status.state,
                reader.status.message.clone().unwrap_or_default(),
            )),
            // Those who read it know best; the answer to a check counts only while nobody does.
            None if readers.is_empty() => contact.refusal.clone(),
            None => None,
        };
        let Some((state, reason)) = found else {
            // Only the end of trouble that was logged is worth a line.
            if let Some(Trouble {
                since,
                logged: Some(_),
                ..
            }) = contact.trouble.take()
            {
                let (stream, servers, lasted) =
                    (source.stream(), source.place(), since.elapsed().as_secs());
                tracing::info!(
                    source = name,
                    stream,
                    servers,
                    lasted_seconds = lasted,
                    "the source can be read again"
                );
            }
            return;
        };
        // In these two states it is the server that says no, so it can be reached.
        if state != SourceState::StreamMissing && state != SourceState::Unauthorized {
            contact.is_reachable = Some(false);
        }
        let trouble = contact.trouble.get_or_insert(Trouble {
            since: Instant::now(),
            state,
            logged: None,
        });
        // The beginning stays: trouble that changes its kind is one trouble, and lasts.
        trouble.state = state;
        if trouble.since.elapsed() >= LASTS
            && trouble
                .logged
                .is_none_or(|logged| is_another(logged, state))
        {
            trouble.logged = Some(state);
            let (stream, servers, deployments) =
                (source.stream(), source.place(), names(&troubled));
            tracing::warn!(
                source = name,
                stream,
                servers,
                state = state.name(),
                reason,
                deployments,
                "the source can't be read; its deployments answer reads from what they have, and \
                 continue on their own"
            );
        }
    }

    /// Records that the state of a deployment fails. Its runner has logged the failure.
    pub(super) fn state_fails(&self, deployment: &str) {
        let mut failing = self.failing.lock();
        failing
            .entry(deployment.to_owned())
            .or_insert_with(Instant::now);
    }

    /// Records that the state of a deployment does not fail, and logs that if it did before.
    pub(super) fn state_works(&self, deployment: &str) {
        let since = self.failing.lock().remove(deployment);
        if let Some(since) = since {
            let lasted_seconds = since.elapsed().as_secs();
            tracing::info!(deployment, lasted_seconds, "the state can be written again");
        }
    }

    /// Takes note of what is wrong with the host itself, and logs what is news.
    pub(super) fn folder_seen(&self, folder: &Path, faults: &[String]) {
        let mut known = self.faults.lock();
        // Logged when it changes, not at every look, as the folder may be gone for hours.
        if *known == faults {
            return;
        }
        for fault in faults {
            let folder = folder.display();
            tracing::error!(%folder, fault, "the data folder is not where it was");
        }
        if faults.is_empty() {
            tracing::info!("the data folder is in its place again");
        }
        *known = faults.to_vec();
    }

    /// Messages about sources that can't be read at the moment, without details: for clients
    /// without a token.
    pub(super) fn degraded(&self) -> Vec<String> {
        let sources = self.sources.lock();
        let troubled = sources
            .iter()
            .filter_map(|(name, contact)| Some((name, contact.trouble.as_ref()?.state)));
        troubled
            .map(|(name, state)| format!("source {name} can't be read: {}", state.name()))
            .collect()
    }

    /// Whether a source could be reached at the last check or answer.
    pub(super) fn reachable(&self, name: &str, source: &Source) -> Reachable {
        let is_reachable = self
            .sources
            .lock()
            .get(name)
            .and_then(|contact| contact.is_reachable);
        Reachable {
            source: name.to_owned(),
            stream: source.stream(),
            is_reachable,
        }
    }
}

/// Whether the kind of trouble changed. Attempts to connect alternate between two states.
fn is_another(logged: SourceState, state: SourceState) -> bool {
    let tries = |state| matches!(state, SourceState::Connecting | SourceState::Reconnecting);
    logged != state && !(tries(logged) && tries(state))
}

fn names(troubled: &[&ReaderStatus]) -> String {
    let mut names: Vec<&str> = troubled
        .iter()
        .map(|reader| reader.deployment.as_str())
        .collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    match (names.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} others", names.join(", ")),
    }
}
