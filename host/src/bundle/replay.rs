//! Replays a bundle: applies its events one by one to a state that has what was recorded.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Bundle, BundleError};
use crate::effects::{Grants, Lineage, Owner, Role};
use crate::event::{Event, Payload};
use crate::module::{self, Engine, Identity, Instance, Module};
use crate::position::{Checkpoint, StreamIdentity};
use crate::state::{self, Call, Key, Ownership, Store, Trace, Traced, Writer};
use crate::timers;

/// The owner of the effects of a replay. They go nowhere.
const OWNERSHIP: Ownership = Ownership {
    lineage: Lineage(0),
    epoch: 1,
};

/// Why nothing can be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// The file is no bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// There is no module.
    #[error("the bundle has no module, because the host no longer had it; give one with --module")]
    NoModule,
    /// It is another module than the one that failed.
    #[error(
        "the module in the bundle is not the one that the bundle names ({0}), so it may do \
         something else; give one with --module"
    )]
    OtherModule(String),
    /// The module reads no such events.
    #[error(
        "the module does not read {0}, so no host would hand it this event; give a module of {1} \
         with --module"
    )]
    NotRead(String, String),
    /// The module can't be used.
    #[error(transparent)]
    Module(#[from] module::Error),
    /// The temporary state failed.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// How an event ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Applied,
    Failed {
        /// As in the failure of a deployment.
        kind: &'static str,
        message: String,
    },
}

/// An entry before and after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: String,
    /// Its value before; none if it did not exist.
    pub before: Option<Payload>,
    /// Its value after; none if it was removed.
    pub after: Option<Payload>,
}

/// What an event did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub ended: Ended,
    /// The entries that it changed, or would have changed before it failed.
    pub changes: Vec<Change>,
    pub calls: Vec<Call>,
    /// What it read that the bundle does not have: from here on, the replay may differ from the
    /// host.
    pub unknown: Vec<String>,
}

/// A replay that has begun.
pub(crate) struct Replay {
    _engine: Engine,
    module: Arc<Module>,
    identity: Identity,
    /// As the host checked them.
    checks_events_after: Option<u64>,
    instance: Option<Instance>,
    store: Store,
    writer: Option<Writer>,
    recorded: Traced,
    /// Keys that the replay itself has written.
    written: BTreeSet<Key>,
    /// Timers that the replay itself has set or removed.
    changed_timers: BTreeSet<String>,
    events: std::vec::IntoIter<Event>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Replay")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Replay {
    /// Prepares a replay in an empty folder, with the module of the bundle or another one.
    pub(crate) fn begin(
        bundle: &Bundle,
        module: Option<Bytes>,
        folder: &Path,
        options: module::Options,
    ) -> Result<Self, ReplayError> {
        let component = match module {
            Some(module) => module,
            None => {
                let component = bundle.component()?.ok_or(ReplayError::NoModule)?;
                if crate::module::digest(&component) != bundle.module {
                    return Err(ReplayError::OtherModule(bundle.module.clone()));
                }
                component
            }
        };
        let engine = Engine::new(options)?;
        let accepted = engine.accept(component)?;
        let module = engine.load(&accepted)?.module;
        let recorded = bundle.traced()?;
        let (store, writer) = state_of(bundle, &recorded, folder)?;
        let events: Result<Vec<Event>, BundleError> =
            bundle.events.iter().map(super::EventRow::event).collect();
        let events = events?;
        let manifest = module.manifest();
        // The host adds the firings of its own timers to what a module reads.
        let firings = manifest
            .sets_timers
            .then(|| timers::subject(&bundle.deployment));
        let is_read = |event: &Event| {
            firings.as_deref() == Some(&*event.subject) || manifest.subjects.matches(&event.subject)
        };
        if let Some(event) = events.iter().find(|event| !is_read(event)) {
            return Err(ReplayError::NotRead(
                event.subject.to_string(),
                bundle.deployment.clone(),
            ));
        }
        Ok(Self {
            _engine: engine,
            module,
            identity: Identity {
                deployment: bundle.deployment.clone(),
                generation: bundle.generation,
            },
            checks_events_after: bundle.checks_events_after,
            instance: None,
            store,
            writer: Some(writer),
            recorded,
            written: BTreeSet::new(),
            changed_timers: BTreeSet::new(),
            events: events.into_iter(),
        })
    }

    /// Applies the next event; none if there is none. An event that fails changes nothing, and the
    /// next one is applied by another instance.
    pub(crate) fn step(&mut self) -> Result<Option<(Event, Step)>, ReplayError> {
        let Some(event) = self.events.next() else {
            return Ok(None);
        };
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                let checks = self.module.checks_after(self.checks_events_after)?;
                self.module.instantiate(&self.identity)?.checking(checks)
            }
        };
        let mut writer = self.writer.take().expect("it comes back from every call");
        let trace = Arc::new(Trace::default());
        writer.trace(Some(Arc::clone(&trace)));
        writer.begin();
        let (mut writer, result) = instance.apply(std::slice::from_ref(&event), writer);
        writer.trace(None);
        // Before it is discarded: a failure shows what would have changed.
        let changed: Vec<Change> = writer
            .changes()?
            .into_iter()
            .map(|(key, before, after)| Change {
                key: key.to_string(),
                before,
                after,
            })
            .filter(|change| change.before != change.after)
            .collect();
        let mut traced = trace.traced();
        let unknown = self.unknown(&traced);
        let ended = match result {
            Ok(()) => {
                // One that failed is dropped: its memory is of no use any more.
                self.instance = Some(instance);
                self.written
                    .extend(changed.iter().map(|change| Key::from(change.key.as_str())));
                self.changed_timers.append(&mut traced.changed_timers);
                let checkpoint = self.store.published();
                let mut checkpoint = checkpoint.unwrap_or_else(|| beginning(0));
                checkpoint.position = checkpoint.position.max(event.sequence);
                // Nothing is committed: the temporary state is gone with the replay.
                writer.publish(checkpoint);
                Ended::Applied
            }
            Err(error) => {
                writer.discard();
                Ended::Failed {
                    kind: error.kind(),
                    message: error.to_string(),
                }
            }
        };
        self.writer = Some(writer);
        let step = Step {
            ended,
            changes: changed,
            calls: traced.calls,
            unknown,
        };
        Ok(Some((event, step)))
    }

    /// What an event read that was neither recorded nor written by the replay.
    fn unknown(&self, traced: &Traced) -> Vec<String> {
        let keys = traced
            .entries
            .keys()
            .filter(|key| !self.written.contains(*key) && !self.recorded.knows(key))
            .map(|key| format!("the entry `{key}`"));
        let scans = traced
            .scans
            .iter()
            .filter(|scan| !self.recorded.knows_scan(scan))
            .map(|scan| match &scan.prefix {
                Some(prefix) => format!("all entries that begin with `{prefix}`"),
                None => "all entries of a range".to_owned(),
            });
        let timers = traced
            .timers
            .keys()
            .filter(|name| {
                let is_recorded = self.recorded.timers.contains_key(*name);
                !is_recorded && !self.changed_timers.contains(*name)
            })
            .map(|name| format!("the timer `{name}`"));
        keys.chain(scans).chain(timers).collect()
    }
}

fn beginning(position: u64) -> Checkpoint {
    let stream = StreamIdentity {
        name: "replay".to_owned(),
        created_ns: 0,
    };
    Checkpoint::at(position, stream)
}

/// A state with the recorded entries.
fn state_of(
    bundle: &Bundle,
    recorded: &Traced,
    folder: &Path,
) -> Result<(Store, Writer), ReplayError> {
    let path = folder.join("replay.redb");
    // Owned from the start: the state must be able to take effects, also those that go nowhere.
    state::create_owned(&path, OWNERSHIP)?;
    let (store, mut writer) = Store::open(&path, state::Options::default(), |_| ())?;
    writer.begin();
    for (key, value) in &recorded.entries {
        if let Some(value) = value {
            writer.put(key, Some(value.clone()))?;
        }
    }
    for (name, timer) in &recorded.timers {
        if let Some(timer) = timer {
            writer.set_timer(name, timer)?;
        }
    }
    // At the recorded position: whatever depends on it must be as it was.
    writer.publish(beginning(bundle.position));
    if let Some(grants) = &bundle.grants {
        let grants = Grants::parse(grants);
        let grants = grants.map_err(|error| BundleError::Damaged(error.to_string()))?;
        writer.set_role(Role::Owner(Arc::new(Owner {
            deployment: bundle.deployment.clone(),
            lineage: OWNERSHIP.lineage,
            epoch: OWNERSHIP.epoch,
            effects_after: 0,
            timers_after: 0,
            // With the grants of then, so that a refused subject is refused again.
            grants,
            publishes: Arc::default(),
            logs: Arc::new(bundle.logs.clone()),
        })));
    }
    Ok((store, writer))
}
