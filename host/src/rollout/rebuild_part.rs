//! Partial rebuilds: folds the entries of one key, or of a prefix of keys, again without touching
//! the others.
//!
//! A side fold folds the key's events. When it is at the position of the active generation,
//! its entries replace the entries of the key in the active state, in one step. This is refused if
//! the fold depended on what other events wrote, because the side fold does not have that.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Rollouts;
use super::belongings::{self, Ahead};
use super::key_part::{KeyPart, Keys, NoPart, Ownership};
use crate::actor::blocking;
use crate::deployment::{Deployment, parked_counts};
use crate::deployments::{Error, FILTERED_HOLD_MAX, MissingEvents, align, crash_points};
use crate::event::Payload;
use crate::history::{Accepted, SideFold, SideFoldOptions, lacking, lacking_in_words};
use crate::overview;
use crate::runner::Runner;
use crate::state::catalogue::Generation;
use crate::state::exceptions::{Past, Skips};
use crate::state::{self, Key, Noted, Patch, Reads, SCAN_ENTRIES_MAX, Snapshot};

/// Most entries that one partial rebuild may write or remove: they are replaced in one step, in
/// memory.
const ENTRIES_MAX: usize = 100_000;
/// Events that may remain when the two are aligned.
const NEAR_EVENTS: u64 = 2_048;

/// The entries that a partial rebuild replaced.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The key, or prefix of keys, whose events were folded again.
    pub selection: String,
    /// The position at which the entries were replaced.
    pub position: u64,
    /// Entries that were written.
    pub written: u64,
    /// Entries that were removed.
    pub removed: u64,
    /// Entries that name the key in tables that its events did not write, at most ten of them. They
    /// were not changed, because it is not clear to which key they belong.
    pub left: Vec<String>,
    /// Sequences that were skipped, because the active state skipped them.
    pub skipped: Vec<u64>,
    /// What the active state has parked: all of it of other keys.
    pub parked: overview::Parked,
}

/// The result of a partial rebuild.
#[derive(Clone, Debug)]
pub struct PartialRebuild {
    /// What it replaced.
    pub replaced: Replacement,
    /// Events that were folded.
    pub events: u64,
    /// Whether the server sent only events of that key.
    pub filtered_by_server: bool,
    /// Events that were applied and are gone from the stream; none if there are none.
    pub lacks: Option<String>,
    /// Events that were gone from the stream before the active state could have them, and were
    /// accepted as missing: of this key or of others.
    pub missing_events: u64,
}

impl Rollouts {
    /// Folds the events of some keys again, and replaces their entries with the result.
    ///
    /// If the stream has lost events that were applied, this is refused unless `missing` accepts
    /// that.
    pub async fn rebuild_part(
        &self,
        name: &str,
        keys: Keys,
        missing: MissingEvents,
    ) -> Result<PartialRebuild, Error> {
        let deployment = self.deployments.get(name)?;
        // Before the fold, which may take hours; parked events are looked for again under the hold.
        self.history.check_history(&deployment).await?;
        refuse_parked(&deployment, &keys)?;
        let mut generation = deployment.record().active().clone();
        let advice = "accept the loss with --accept-missing, or keep the existing state";
        let accepted = self
            .history
            .may_refold(&deployment, &generation.source, missing, advice)
            .await?;
        accepted.apply(&mut generation);
        let module = self.runners.module_of(&generation).await?;
        let manifest = module.manifest();
        // Timers fire by name, and nothing says to which key they belong.
        if manifest.sets_timers {
            return Err(Error::Refused(format!(
                "cannot rebuild a part of {name}: it sets timers, and what they do has no key; rebuild all of it"
            )));
        }
        let refused =
            |why: NoPart| Error::Refused(format!("cannot rebuild a part of {name}: {why}"));
        let part =
            KeyPart::new(keys.clone(), &manifest.key_rule, &manifest.subjects).map_err(refused)?;
        let (filtered_by_server, folded, reads) =
            (part.is_narrower(), part.counter(), part.reads());
        // What was parked and applied later is folded at its own place: the order of a key is the
        // same.
        let skips = deployment.skips_as_folded()?.with_past(Past::default());
        let options = SideFoldOptions {
            part: Some(Arc::new(part)),
            skips: skips.clone(),
            ..SideFoldOptions::default()
        };
        // It costs as much as a rebuild, and waits for its turn like one.
        let ticket = self.rebuilds.enter();
        ticket.turn(|_| ()).await;
        let fold = self
            .history
            .start_side_fold(&deployment.record(), &generation, module, options)
            .await?;
        // Near the end first, so that the hold is short.
        fold.unless_stuck(fold.comes_near(NEAR_EVENTS)).await?;
        // Slow work is done before anything is held.
        let ahead = look_ahead(&deployment.active(), &reads, &keys, name).await?;
        let replaced = put_in_place(
            self,
            &deployment,
            &fold,
            Chosen {
                generation: generation.clone(),
                keys,
                reads,
                ahead,
                accepted: accepted.clone(),
                accepts: missing == MissingEvents::Accept,
                is_narrower: filtered_by_server,
                skips,
            },
        )
        .await?;
        let store = deployment.active().store();
        let missing_events = store.map_or(0, |store| store.snapshot().missing_count());
        // Past states that were built before would show the old entries.
        self.history
            .forget_all_of(name, generation.state_file)
            .await;
        Ok(PartialRebuild {
            replaced,
            events: folded.load(std::sync::atomic::Ordering::Relaxed),
            filtered_by_server,
            lacks: accepted.lacks,
            missing_events,
        })
    }
}

/// Holds both states at one position, and replaces entries of one with those of the other.
async fn put_in_place(
    rollouts: &Rollouts,
    deployment: &Arc<Deployment>,
    fold: &SideFold,
    chosen: Chosen,
) -> Result<Replacement, Error> {
    let name = deployment.name();
    let _changing = rollouts.deployments.lock(deployment).await?;
    // The fold has the module of that generation.
    if deployment.record().active != chosen.generation.number {
        return Err(Error::Conflict(format!(
            "another generation of {name} became active during the rebuild; try again"
        )));
    }
    let serving = deployment.active();
    // If the server filters for a reader, the reader learns only now and then that it has
    // passed the events of others.
    let at_most = rollouts.config.rollout.hold_max.max(FILTERED_HOLD_MAX);
    let aligned = align(&serving, &fold.runner, at_most).await;
    let aligned = aligned.map_err(|missed| Error::Conflict(format!("{missed}; try again")))?;
    // Again, now that nothing moves.
    refuse_parked(deployment, &chosen.keys)?;
    let parked = parked_counts(serving.store().as_ref());
    let (ours, theirs) = aligned.snapshots(&serving, &fold.runner)?;
    let missing = lacking_in_part(rollouts, (&ours, &theirs), &chosen)?;
    let skipped = theirs.exceptions().into_keys().collect();
    let changed = match ours.position() {
        position if position == chosen.ahead.position => Some(Vec::new()),
        // None if more changed than is remembered: everything is then examined again, during
        // the hold.
        _ => ours.changed_since(chosen.ahead.position, ""),
    };
    let selection = chosen.keys.text();
    let made = blocking(move || make_patch(&ours, &theirs, &chosen, changed));
    let (patch, left) = made.await.map_err(|error| error.into_error(name))?;
    let (written, removed) = patch
        .values()
        .fold((0, 0), |(written, removed), value| match value {
            Some(_) => (written + 1, removed),
            None => (written, removed + 1),
        });
    let position = aligned.position;
    let detail =
        format!("{selection} at position {position}: {written} written, {removed} removed");
    if !patch.is_empty() {
        // Before and after: a reader in between may have read the old entries.
        rollouts
            .deployments
            .note_repair(deployment, "rebuild-part-begun", detail.clone())
            .await?;
        serving.patch(patch, missing).await?;
    }
    drop(aligned);
    crash_points::reached("partial-applied");
    rollouts
        .deployments
        .note_repair(deployment, "rebuild-part", detail)
        .await?;
    Ok(Replacement {
        selection,
        position,
        written,
        removed,
        left,
        skipped,
        parked,
    })
}

/// How many events, at most, the new entries lack that the active state has; refused if nobody
/// accepts that.
fn lacking_in_part(
    rollouts: &Rollouts,
    (ours, theirs): (&Snapshot, &Snapshot),
    chosen: &Chosen,
) -> Result<u64, Error> {
    let missing = |snapshot: &Snapshot| snapshot.checkpoint().map_or(0, |known| known.missing);
    // What the stream shows to be missing, before the fold and in it.
    let shown = missing(theirs)
        .saturating_sub(missing(ours))
        .max(chosen.accepted.count);
    // A fold of fewer events than the active state has cannot be compared.
    let by_count = lacking(ours, theirs, &chosen.skips)
        .filter(|_| !chosen.is_narrower && chosen.generation.subjects_from == 0)
        .unwrap_or(0);
    let source = rollouts.sources.get(&chosen.generation.source);
    let counts = source.is_some_and(|source| source.on_missing().is_count());
    if by_count > 0 && !chosen.accepts && !counts {
        let stream = source.map(|source| source.stream()).unwrap_or_default();
        return Err(Error::Refused(format!(
            "{}, so a fold from the beginning would lack them; accept the loss with \
             --accept-missing, or keep the existing state",
            lacking_in_words(by_count, &stream)
        )));
    }
    Ok(shown.max(by_count))
}

struct Chosen {
    /// The active one, whose module the side fold has.
    generation: Generation,
    keys: Keys,
    /// What the side fold read and wrote.
    reads: Arc<Reads>,
    ahead: Ahead,
    /// Which events it may lack.
    accepted: Accepted,
    /// Whether the request accepts that it lacks events.
    accepts: bool,
    /// Whether it has read fewer events than the active state.
    is_narrower: bool,
    /// Which events it has skipped.
    skips: Skips,
}

/// Examines the large tables of the active state for entries of the keys.
async fn look_ahead(
    serving: &Runner,
    reads: &Arc<Reads>,
    keys: &Keys,
    name: &str,
) -> Result<Ahead, Error> {
    let opening = || Error::NotOpen("a state is still opening; try again".to_owned());
    let ours = serving.store().ok_or_else(opening)?.snapshot();
    // From this call on, changes are remembered until the next call, when both states are held.
    ours.changed_since(ours.position(), "");
    let (noted, keys) = (reads.noted(), keys.clone());
    let found = blocking(move || {
        let owned = learn(&noted, &keys)?;
        let ahead = belongings::look_ahead(&ours, &owned, &mut |count| count <= ENTRIES_MAX)?;
        within_limit(ahead.keys.len())?;
        Ok(ahead)
    });
    found
        .await
        .map_err(|error: PatchError| error.into_error(name))
}

/// Why there is no replacement.
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

/// What to write and remove so that the keys' entries equal those of the side fold, and which
/// entries stay because nobody knows to which key they belong. `changed` has the keys that changed
/// since the examination, if known. Blocking.
fn make_patch(
    serving: &Snapshot,
    rebuilt: &Snapshot,
    chosen: &Chosen,
    changed: Option<Vec<Key>>,
) -> Result<(Patch, Vec<String>), PatchError> {
    let noted = chosen.reads.noted();
    let owned = learn(&noted, &chosen.keys)?;
    // Before the entries are compared: a fold that read what it could not see is worth nothing.
    let foreign = belongings::foreign(&noted, &owned, serving)?;
    if !foreign.is_empty() {
        return Err(PatchError::Refused(format!(
            "its events also read {}, which other events may have written, and which do not exist \
             when its events are folded alone; rebuild all of it",
            foreign.join(", ")
        )));
    }
    let wanted = entries(rebuilt)?;
    let known = changed.map(|changed| (&chosen.ahead, changed));
    let known = belongings::find(serving, &owned, known, &mut |count| count <= ENTRIES_MAX)?;
    within_limit(known.len())?;
    let mut patch = Patch::new();
    // What the fold did not write again is gone.
    for key in known.into_iter().filter(|key| !wanted.contains_key(key)) {
        if serving.get(&key)?.is_some() {
            patch.insert(key, None);
        }
    }
    for (key, value) in wanted {
        // Equal entries need not be written.
        if serving.get(&key)?.as_ref() != Some(&value) {
            patch.insert(key, Some(value));
        }
    }
    Ok((patch, belongings::unclear(serving, &owned)?))
}

fn learn(noted: &Noted, keys: &Keys) -> Result<Ownership, PatchError> {
    // What was not noted may belong to others, so nothing could be said about it.
    if noted.is_cut {
        return Err(PatchError::Refused(
            "its events read or write too many entries; rebuild all of it".to_owned(),
        ));
    }
    Ownership::learn(noted.written.iter().map(|key| &**key), keys).map_err(|shared| {
        PatchError::Refused(format!(
            "its events also change `{}`, which may not belong to that key alone; rebuild all \
             of it",
            shared.entry
        ))
    })
}

fn entries(rebuilt: &Snapshot) -> Result<BTreeMap<Key, Payload>, PatchError> {
    let mut found = BTreeMap::new();
    for page in rebuilt.pages(SCAN_ENTRIES_MAX) {
        found.extend(page?);
        within_limit(found.len())?;
    }
    Ok(found)
}

fn within_limit(entries: usize) -> Result<(), PatchError> {
    if entries <= ENTRIES_MAX {
        return Ok(());
    }
    Err(PatchError::Refused(format!(
        "it would change more than {ENTRIES_MAX} entries; choose fewer keys, or rebuild everything"
    )))
}

/// Refuses to fold keys from scratch of which events are parked.
fn refuse_parked(deployment: &Deployment, keys: &Keys) -> Result<(), Error> {
    let store = deployment.active().store();
    // A state that is not open is asked again under the hold.
    let parked = store.map(|store| store.parked_keys()).unwrap_or_default();
    match parked.keys().find(|key| keys.has(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Refused(format!(
            "cannot rebuild `{key}`: events of it are parked; `foldstream parked retry {0}` \
             applies them, `foldstream \
             parked drop {0}` leaves them out, and a rebuild of all of {0} gives a state without \
             parked events",
            deployment.name()
        ))),
    }
}
