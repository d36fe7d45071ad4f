//! Files that are watched, for commands that work again whenever one changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use notify_debouncer_full::notify::RecommendedWatcher;
pub(crate) use notify_debouncer_full::notify::RecursiveMode;
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use tokio::sync::Notify;

/// Builds and editors write a file in several steps: work begins this long after the last one.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// Folders whose files are watched.
#[derive(Debug)]
pub(crate) struct Watched {
    changed: Arc<Notify>,
    watcher: Debouncer<RecommendedWatcher, RecommendedCache>,
}

impl Watched {
    /// Nothing yet; `is_relevant` says which files count.
    pub(crate) fn new(
        is_relevant: impl Fn(&Path) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        // One permit is enough: it says that something changed, not how often.
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let handler = move |result: DebounceEventResult| {
            // An error of the watcher says nothing about files; the next change comes through.
            let Ok(events) = result else { return };
            // The work reads the files, so access alone would begin it again.
            let written = events.iter().filter(|event| !event.kind.is_access());
            if written
                .flat_map(|event| &event.paths)
                .any(|path| is_relevant(path))
            {
                notify.notify_one();
            }
        };
        let watcher = new_debouncer(QUIET_TIME, None, handler).context("cannot watch files")?;
        Ok(Self { changed, watcher })
    }

    /// Also watches a folder.
    pub(crate) fn add(&mut self, folder: &Path, mode: RecursiveMode) -> anyhow::Result<()> {
        self.watcher.watch(folder, mode).with_context(|| {
            format!(
                "cannot watch {}; is fs.inotify.max_user_watches too low?",
                folder.display()
            )
        })
    }

    /// Waits for a change. One since the last call counts.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
