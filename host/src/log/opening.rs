//! Opens a log on a separate thread: a file that needs repair takes long, and keeps nobody else
//! waiting.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tracing::{error, info};

use super::{Error, Log, Options};
use crate::storage;

/// Pause before the next attempt to open a log: the obstacle, such as another process or a full
/// disk, may pass.
const AGAIN: Duration = Duration::from_secs(5);

/// A log that is open, or opening. Cloning shares it.
#[derive(Clone)]
pub struct Opening {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    slot: Mutex<Slot>,
    /// Wakes threads that wait for the slot.
    changed: Condvar,
    /// Wakes tasks that wait for the slot.
    noted: Notify,
}

enum Slot {
    /// Opening for the first time.
    Opening,
    /// It could not be opened; trying again.
    Failed(Error),
    Open(Log),
}

impl Opening {
    /// An open log.
    pub fn done(log: Log) -> Self {
        let options = log.options().clone();
        Self {
            shared: Arc::new(Shared::new(options, Slot::Open(log))),
        }
    }

    /// Starts to open or create the log at `path`. An error says that there is no thread for it.
    pub fn begin(path: PathBuf, options: Options) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(options.clone(), Slot::Opening));
        // Weak: nobody waits for a log whose host has ended.
        let slot = Arc::downgrade(&shared);
        let open = move || {
            loop {
                let outcome = Log::open(&path, options.clone());
                // Nobody wants it any more.
                let Some(shared) = slot.upgrade() else { return };
                // Open: the thread has nothing more to do.
                if shared.put(outcome, &path) {
                    return;
                }
                drop(shared);
                // The system tells nobody that the obstacle has gone.
                std::thread::sleep(AGAIN);
            }
        };
        let thread = std::thread::Builder::new()
            .name("open-log".to_owned())
            .spawn(open);
        thread.map_err(|error| {
            let text = format!("cannot start a thread: {error}; raise the limit of tasks");
            Error::Open(storage::Error::because(text, error))
        })?;
        Ok(Self { shared })
    }

    /// Its name, as it is configured.
    pub fn name(&self) -> &str {
        &self.shared.options.name
    }

    /// Waits until it is open or failed to open, but only until a deadline; an error says why it
    /// failed. Blocking.
    pub fn wait(&self, until: Instant) -> Result<(), Error> {
        let mut slot = self.shared.slot.lock();
        while matches!(*slot, Slot::Opening) {
            if self.shared.changed.wait_until(&mut slot, until).timed_out() {
                return Ok(());
            }
        }
        match &*slot {
            // Only what an operator must correct ends a start; other obstacles may pass.
            Slot::Failed(Error::Open(error)) => Err(Error::Open(error.clone())),
            _ => Ok(()),
        }
    }

    /// The log; an error says why it is not open.
    pub fn log(&self) -> Result<Log, Error> {
        match &*self.shared.slot.lock() {
            Slot::Open(log) => Ok(log.clone()),
            Slot::Opening => Err(Error::NotOpen(self.progress())),
            Slot::Failed(error) => Err(Error::NotOpen(format!(
                "{error}; the host tries again every {} s",
                AGAIN.as_secs()
            ))),
        }
    }

    /// The log, once it is open; `report` gets the reason why it is not. Cancel-safe: it only
    /// observes.
    pub async fn opened(&self, report: impl Fn(String)) -> Log {
        let mut repair = self.shared.options.repair.follow();
        loop {
            // Before the check, so that a change during it is not missed.
            let noted = self.shared.noted.notified();
            repair.mark_unchanged();
            match self.log() {
                Ok(log) => return log,
                Err(error) => report(error.to_string()),
            }
            // Both arms only observe. A repair without a sender has nothing more to report.
            tokio::select! {
                () = noted => {}
                Ok(()) = repair.changed() => {}
            }
        }
    }

    fn progress(&self) -> String {
        let name = self.name();
        match self.shared.options.repair.percent() {
            Some(percent) => format!(
                "the embedded log {name} is being repaired after an unclean stop: {percent} %; it \
                 continues on its own, try again later"
            ),
            None => format!("the embedded log {name} is still opening; try again later"),
        }
    }
}

impl Shared {
    fn new(options: Options, slot: Slot) -> Self {
        Self {
            options,
            slot: Mutex::new(slot),
            changed: Condvar::new(),
            noted: Notify::new(),
        }
    }

    /// Records the result of an attempt; returns whether it is final.
    fn put(&self, outcome: Result<Log, Error>, path: &Path) -> bool {
        let mut slot = self.slot.lock();
        // Once for a row of failures.
        let was_reported = matches!(*slot, Slot::Failed(_));
        *slot = match outcome {
            Ok(log) => {
                info!(log = self.options.name, "the embedded log is open");
                Slot::Open(log)
            }
            Err(error) => {
                if !was_reported {
                    error!(
                        log = self.options.name,
                        file = %path.display(),
                        %error,
                        "cannot open the embedded log; trying again"
                    );
                }
                Slot::Failed(error)
            }
        };
        // Both kinds of waiters: threads at the start, and tasks.
        self.changed.notify_all();
        self.noted.notify_waiters();
        matches!(*slot, Slot::Open(_))
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Opening")
            .field("log", &self.log())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, TableDefinition};

    use super::*;
    use crate::event::Payload;
    use crate::log::{Expectation, NewEvent};

    /// The file of a log with one event, as a kill leaves it, and so large that its repair takes a
    /// while.
    fn unclean(folder: &std::path::Path) -> PathBuf {
        const BALLAST: TableDefinition<'static, u64, &'static [u8]> =
            TableDefinition::new("ballast");
        let (path, copy) = (folder.join("events.redb"), folder.join("copy.redb"));
        let log = Log::open(&path, Options::default()).expect("the log opens");
        let event = NewEvent {
            subject: "orders.a".to_owned(),
            kind: None,
            id: None,
            time_ns: None,
            headers: Vec::new(),
            data: Payload::from("{}"),
        };
        log.append(&[event], &Expectation::default())
            .expect("it is appended");
        drop(log);
        let database = Database::open(&path).expect("the file opens");
        let transaction = database.begin_write().expect("begins");
        let mut ballast = transaction.open_table(BALLAST).expect("opens");
        let value = vec![7; 1 << 20];
        for number in 0..64 {
            ballast.insert(number, value.as_slice()).expect("inserts");
        }
        drop(ballast);
        transaction.commit().expect("commits");
        // While it is open the file says that it has to be repaired.
        std::fs::copy(&path, &copy).expect("the file can be copied");
        copy
    }

    #[tokio::test]
    async fn a_log_that_has_to_be_repaired_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let opening =
            Opening::begin(unclean(folder.path()), Options::default()).expect("there is a thread");
        opening.wait(Instant::now()).expect("it did not fail");
        let refused = opening.log().expect_err("it is not open yet");
        assert!(
            matches!(&refused, Error::NotOpen(why) if why.contains("try again later")),
            "{refused}"
        );
        let reported = Mutex::new(Vec::new());
        let log = opening.opened(|why| reported.lock().push(why)).await;
        assert_eq!(log.info().last_sequence, 1, "it lost nothing");
        let reported = reported.into_inner();
        assert!(
            reported
                .iter()
                .all(|why| why.contains("is being repaired") || why.contains("is still opening")),
            "{reported:?}"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_opened_says_why_and_is_tried_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("events.redb");
        std::fs::write(&path, b"no log at all").expect("the file can be written");
        let opening = Opening::begin(path.clone(), Options::default()).expect("there is a thread");
        let refused = opening
            .wait(Instant::now() + Duration::from_secs(20))
            .expect_err("it failed");
        assert!(matches!(refused, Error::Open(_)), "{refused}");
        let refused = opening.log().expect_err("it is not open");
        assert!(
            matches!(&refused, Error::NotOpen(why) if why.contains("tries again")),
            "{refused}"
        );
        let place = folder.path().display().to_string();
        assert!(!refused.to_string().contains(&place), "{refused}");
        // Nobody needs to say that it was put right.
        std::fs::remove_file(&path).expect("it is there");
        let opened = tokio::time::timeout(Duration::from_secs(60), opening.opened(|_| ())).await;
        assert_eq!(opened.expect("it is opened").info().last_sequence, 0);
    }
}
