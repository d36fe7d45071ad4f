//! Partial rebuilds: the entries of one key, or of a prefix of keys, folded again without touching the others.
//!
//! The key's events are folded aside. Where that stands at the position of the generation that serves, what it wrote
//! takes the place of what the served state has for the key, as one step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::align::align;
use super::part::{KeyPart, Keys, Ownership};
use super::scratch::Aside;
use super::{cut_over, steps};
use crate::api;
use crate::event::Payload;
use crate::runner::Runner;
use crate::state::{self, Direction, Key, Patch, SCAN_ENTRIES_MAX, Scan, Selection, Snapshot};
use crate::supervisor::{Error, Host, audit, blocking};

/// Most entries that one partial rebuild may write or remove: they are put in place as one step, in memory.
const ENTRIES_MAX: usize = 100_000;
/// Events that may be left when the two are brought to stand together.
const NEAR_EVENTS: u64 = 2_048;

impl Host {
    /// Folds the events of some keys again, and puts the result in the place of what is there.
    pub async fn rebuild_part(&self, name: &str, keys: Keys) -> Result<api::PartialRebuild, Error> {
        let deployment = self.deployment(name)?;
        let generation = deployment.record().active().clone();
        self.check_refoldable(&generation).await?;
        let module = self.module_of(&generation).await?;
        let manifest = module.manifest();
        let refused = |why: String| Error::Refused(format!("cannot rebuild a part of {name}: {why}"));
        let part = KeyPart::new(keys.clone(), &manifest.key_rule, &manifest.subjects).map_err(refused)?;
        let (filtered_by_server, folded) = (part.is_narrower(), part.counter());
        let aside = Aside { part: Some(Arc::new(part)), ..Aside::default() };
        // It costs as much as a rebuild, and waits for its turn like one.
        let ticket = self.inner.rebuilds.enter();
        ticket.turn(|_| ()).await;
        let scratch = self.fold_aside(name, &generation, module, aside).await?;
        scratch.comes_near(NEAR_EVENTS).await?;
        // All of the state is looked through before anything is held.
        let known = self.owned_keys(&deployment.active(), &scratch.runner, &keys).await?;
        let _changing = self.lock(&deployment).await?;
        if deployment.record().active != generation.number {
            return Err(Error::Conflict(format!("another generation of {name} began to serve meanwhile; try again")));
        }
        let serving = deployment.active();
        // A reader that the server filters knows only now and then that it has passed the events of others.
        let at_most = self.inner.config.rollout.hold_max.max(super::FILTERED_HOLD_MAX);
        let aligned = align(&serving, &scratch.runner, at_most).await;
        let aligned = aligned.map_err(|missed| Error::Conflict(format!("{missed}; try again")))?;
        let (ours, theirs) = cut_over::snapshots(&aligned, &serving, &scratch.runner)?;
        let too_much = || Error::Conflict("too much changed meanwhile; try again".to_owned());
        let changed = match ours.position() {
            position if position == known.position => Vec::new(),
            _ => serving.changed_since(known.position, "").ok_or_else(too_much)?,
        };
        let chosen = keys.clone();
        let patch = blocking(move || patch(&ours, &theirs, &chosen, known.keys.into_iter().chain(changed)));
        let patch = patch.await.map_err(|error| error.into_error(name))?;
        let (written, removed) = patch.values().fold((0, 0), |(written, removed), value| match value {
            Some(_) => (written + 1, removed),
            None => (written, removed + 1),
        });
        serving.patch(patch).await.map_err(Error::Conflict)?;
        let position = aligned.position;
        drop(aligned);
        steps::reached("partial-applied");
        let detail = format!("{} at position {position}: {written} written, {removed} removed", keys.text());
        // Looks back that were made before would show what was wrong.
        self.inner.pasts.forget(name);
        let (folder, state_file) = (self.inner.folder.snapshots(name), generation.state_file);
        blocking(move || super::snapshots::remove_all_of(&folder, state_file)).await;
        let (catalogue, entry) = (Arc::clone(&self.inner.catalogue), audit("rebuild-part", name, detail));
        blocking(move || catalogue.note(&entry)).await?;
        Ok(api::PartialRebuild {
            selection: keys.text(),
            position,
            events: folded.load(std::sync::atomic::Ordering::Relaxed),
            written,
            removed,
            filtered_by_server,
        })
    }
}

impl Host {
    /// The keys of the served state that belong to the keys meant, as of now.
    async fn owned_keys(&self, serving: &Runner, aside: &Runner, keys: &Keys) -> Result<Known, Error> {
        let opening = || Error::Conflict("a state is being opened; try again".to_owned());
        let ours = serving.store().ok_or_else(opening)?.snapshot();
        let theirs = aside.store().ok_or_else(opening)?.snapshot();
        let chosen = keys.clone();
        let found = blocking(move || {
            let owned = learn(&entries(&theirs)?, &chosen)?;
            let mut keys = Vec::new();
            each(&ours, |key, _| {
                if owned.has(&key) {
                    keys.push(key);
                }
                within_limit(keys.len())
            })?;
            Ok(Known { keys, position: ours.position() })
        });
        found.await.map_err(|error: PatchError| error.into_error("it"))
    }
}

/// What was known of the served state before it was held.
struct Known {
    keys: Vec<Key>,
    position: u64,
}

/// Why there is no patch.
enum PatchError {
    State(state::Error),
    Refused(String),
}

impl PatchError {
    fn into_error(self, name: &str) -> Error {
        match self {
            Self::State(error) => Error::State(error),
            Self::Refused(why) => Error::Refused(format!("cannot rebuild a part of {name}: {why}")),
        }
    }
}

impl From<state::Error> for PatchError {
    fn from(error: state::Error) -> Self {
        Self::State(error)
    }
}

/// What is to be written and removed so that the keys' entries are those of the fold aside; `known` has every key of the
/// served state that may have to go. Blocking.
fn patch(
    serving: &Snapshot,
    aside: &Snapshot,
    keys: &Keys,
    known: impl Iterator<Item = Key>,
) -> Result<Patch, PatchError> {
    let wanted = entries(aside)?;
    let owned = learn(&wanted, keys)?;
    let mut patch = Patch::new();
    for key in known.filter(|key| owned.has(key) && !wanted.contains_key(key)) {
        if serving.get(&key)?.is_some() {
            patch.insert(key, None);
        }
    }
    for (key, value) in wanted {
        // What is the same already need not be written.
        if serving.get(&key)?.as_ref() != Some(&value) {
            patch.insert(key, Some(value));
        }
    }
    Ok(patch)
}

fn entries(aside: &Snapshot) -> Result<BTreeMap<Key, Payload>, PatchError> {
    let mut found = BTreeMap::new();
    each(aside, |key, value| {
        found.insert(key, value);
        within_limit(found.len())
    })?;
    Ok(found)
}

fn learn(entries: &BTreeMap<Key, Payload>, keys: &Keys) -> Result<Ownership, PatchError> {
    Ownership::learn(entries.keys().map(|key| &**key), keys).map_err(|entry| {
        PatchError::Refused(format!(
            "its events also change `{entry}`, of which it is not clear that it is an entry of that key alone; rebuild all \
             of it"
        ))
    })
}

fn within_limit(entries: usize) -> Result<(), PatchError> {
    if entries <= ENTRIES_MAX {
        return Ok(());
    }
    Err(PatchError::Refused(format!(
        "it would change more than {ENTRIES_MAX} entries; choose fewer keys, or rebuild all"
    )))
}

fn each(snapshot: &Snapshot, mut visit: impl FnMut(Key, Payload) -> Result<(), PatchError>) -> Result<(), PatchError> {
    let mut after = None;
    loop {
        let page = snapshot.scan(&Scan {
            selection: Selection::Prefix(String::new()),
            after,
            direction: Direction::Forwards,
            limit: SCAN_ENTRIES_MAX,
        })?;
        after = page.entries.last().map(|(key, _)| key.to_string());
        page.entries.into_iter().try_for_each(|(key, value)| visit(key, value))?;
        if !page.more {
            return Ok(());
        }
    }
}
