//! Watches the files of a test run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::Receiver;
use notify_debouncer_full::notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};

/// Builds and editors write a file in several steps: a run begins this long after the last one.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// Files that are watched.
pub(super) struct Watching {
    changes: Receiver<()>,
    _watcher: Debouncer<RecommendedWatcher, RecommendedCache>,
}

impl Watching {
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a Path>) -> anyhow::Result<Self> {
        let files: BTreeSet<PathBuf> = files
            .map(|file| {
                std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))
            })
            .collect::<anyhow::Result<_>>()?;
        // Folders and not files: editors replace a file by another one.
        let folders: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        // One is enough: it says that something changed, not how often.
        let (changed, changes) = crossbeam_channel::bounded(1);
        let handler = move |result: DebounceEventResult| {
            // An error of the watcher says nothing about files; the next change comes through.
            let Ok(events) = result else { return };
            let written = events.iter().filter(|event| !event.kind.is_access());
            if written
                .flat_map(|event| &event.paths)
                .any(|path| files.contains(path))
            {
                // Full: a run is due already.
                let _ = changed.try_send(());
            }
        };
        let mut watcher = new_debouncer(QUIET_TIME, None, handler).context("cannot watch files")?;
        for folder in folders {
            watcher
                .watch(&folder, RecursiveMode::NonRecursive)
                .with_context(|| format!("cannot watch {}", folder.display()))?;
        }
        Ok(Self {
            changes,
            _watcher: watcher,
        })
    }

    /// Waits for a change.
    pub(super) fn changed(&self) {
        // The sender lives in the watcher, which this keeps.
        let _ = self.changes.recv();
    }
}
