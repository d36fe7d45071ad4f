//! The host's end of a backup: which files are copied, as of when, and in which order.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::wire::{Begin, Header, Sum, Tag, Writer};
use super::{Error, LeftOut};
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
use crate::deployments::{self, Chore, Deployments};
use crate::runner::Runner;
use crate::source::Sources;
use crate::state;
use crate::state::catalogue::Record;
use crate::state::tables::{Frozen, Item};

/// How long files are frozen again because the catalogue changed in between. After that the operator
/// knows better than a loop how long the change takes.
const CHANGES_MAX: Duration = Duration::from_secs(2);
/// Bytes of a module to read at a time.
const READ_BYTES: usize = 64 << 10;

/// A backup that is ready to be sent: every file is frozen.
pub struct Backup {
    deployments: Arc<Deployments>,
    header: Header,
    parts: Vec<Part>,
    /// One backup at a time.
    _turn: Chore,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Backup")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// A file to be copied.
struct Part {
    begin: Begin,
    content: Content,
}

/// What a database has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Database {
    /// A state. The note of what its readers saw is left out, because they see more in the meantime.
    State,
    /// A log, or the catalogue.
    Other,
}

enum Content {
    /// A database.
    Tables { frozen: Frozen, of: Database },
    /// An open module, which can be read to its end even if its deployment is deleted meanwhile.
    Module(File),
}

#[derive(Default)]
struct Gathered {
    parts: Vec<Part>,
    left_out: Vec<LeftOut>,
}

/// Why files could not be frozen just now.
enum Again {
    /// A deployment is being created or deleted.
    Changing(String),
    /// Its state is being opened.
    Opening(Arc<Deployment>),
    /// The catalogue changed in between.
    Changed,
    /// Trying again would not help.
    Failed(deployments::Error),
}

impl<E: Into<deployments::Error>> From<E> for Again {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Again {
    /// What keeps the files from being frozen.
    fn reason(&self) -> String {
        match self {
            Self::Changing(name) => format!("{name} is being changed"),
            Self::Opening(deployment) => {
                format!("the state of {} is being opened", deployment.name())
            }
            Self::Changed => "deployments are being changed all the time".to_owned(),
            Self::Failed(error) => error.to_string(),
        }
    }

    /// Waits until the files may be frozen. Cancel-safe: it only observes.
    async fn over(&self, deployments: &Deployments) {
        match self {
            // Both hold this lock from the change of the catalogue until the deployment is here, or
            // gone.
            Self::Changing(_) => drop(deployments.changing.lock().await),
            Self::Opening(deployment) => {
                let opened = |_: &Runner| deployment.is_opened().then_some(());
                deployment.active().until(opened).await;
            }
            // That change is over.
            Self::Changed | Self::Failed(_) => {}
        }
    }
}

impl Backup {
    /// Freezes all files of the data folder of these deployments. Blocking, and short.
    pub(crate) fn begin(
        deployments: &Arc<Deployments>,
        sources: &Sources,
        runtime: &Handle,
    ) -> Result<Self, deployments::Error> {
        // A second one would freeze the same files again, and frozen files keep the pages that they
        // show. It ends on every way out, also if the client never asks for the content.
        let Some(turn) = deployments.begin_chore("backup", "") else {
            let message = "another backup is being taken; try again when it is done".to_owned();
            return Err(deployments::Error::Conflict(message));
        };
        let give_up = tokio::time::Instant::now() + CHANGES_MAX;
        let gathered = loop {
            let again = match gather(deployments, sources) {
                Ok(gathered) => break gathered,
                Err(Again::Failed(error)) => return Err(error),
                Err(again) => again,
            };
            let over = async { tokio::time::timeout_at(give_up, again.over(deployments)).await };
            let _ = runtime.block_on(over);
            if tokio::time::Instant::now() >= give_up {
                let message = format!(
                    "{}; nothing can be copied before that is over, so try again later",
                    again.reason()
                );
                return Err(deployments::Error::Conflict(message));
            }
        };
        for LeftOut { file, reason } in &gathered.left_out {
            tracing::warn!(file, reason, "a backup lacks a file");
        }
        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: jiff::Timestamp::now().to_string(),
            files: gathered.parts.len() as u64,
            left_out: gathered.left_out,
        };
        Ok(Self {
            deployments: Arc::clone(deployments),
            header,
            parts: gathered.parts,
            _turn: turn,
        })
    }

    /// Sends everything. Blocking, for as long as it takes to read all files; `send` fails if the
    /// client has disconnected.
    pub fn send(self, send: &mut dyn FnMut(Vec<u8>) -> Result<(), Error>) -> Result<(), Error> {
        let Self {
            deployments,
            header,
            parts,
            _turn,
        } = self;
        tracing::info!(files = header.files, "a backup begins");
        let begun = std::time::Instant::now();
        let mut writer = Writer::begin(send);
        let sent = send_all(&mut writer, &header, parts, &|| deployments.is_stopping());
        match &sent {
            Ok(bytes) => tracing::info!(
                bytes,
                seconds = begun.elapsed().as_secs_f64(),
                "a backup was sent"
            ),
            Err(Error::Unwanted) => tracing::info!("the client gave up a backup"),
            Err(error) => {
                tracing::error!(%error, "a backup failed");
                let reason = match error {
                    Error::Host(reason) => reason.clone(),
                    error => error.to_string(),
                };
                // The client may have disconnected too.
                let _ = writer
                    .frame(Tag::Failed, &[reason.as_bytes()])
                    .and_then(|()| writer.flush());
            }
        }
        sent.map(drop)
    }
}

/// Freezes the catalogue, then the files that its records name, then the logs, so that no state
/// is ahead of its log. The catalogue is copied last, because a folder without one is not a
/// data folder.
fn gather(deployments: &Deployments, sources: &Sources) -> Result<Gathered, Again> {
    let catalogue = &deployments.catalogue;
    // Read before the catalogue is frozen, and compared at the end: a change between the two is
    // seen.
    let records = catalogue.deployments()?;
    let frozen = catalogue.frozen()?;
    let mut gathered = Gathered::default();
    let mut modules = BTreeSet::new();
    for record in &records {
        let deployment = deployments.get(&record.name);
        // In the catalogue and not here: its first deploy, or its deletion, is under way.
        let deployment = deployment.map_err(|_| Again::Changing(record.name.clone()))?;
        gather_states(&deployments.folder, record, &deployment, &mut gathered)?;
        let kept = record
            .generations
            .iter()
            .filter(|generation| generation.has_file());
        modules.extend(kept.map(|generation| generation.module.digest.clone()));
    }
    // Several generations may have the same module, which is copied once.
    for digest in modules {
        let file = format!("modules/{digest}.wasm");
        match File::open(deployments.folder.module(&digest)) {
            Ok(open) => {
                gathered.parts.push(Part {
                    begin: Begin {
                        file,
                        position: None,
                    },
                    content: Content::Module(open),
                });
            }
            Err(error) => {
                // States and log can be kept without it: a later deploy brings it back.
                let reason = format!("cannot read it: {error}; deploy the module again");
                gathered.left_out.push(LeftOut { file, reason });
            }
        }
    }
    for (name, source) in sources.iter() {
        // Its events are nowhere else: without it there is no backup.
        let Some(log) = source.log().transpose()? else {
            continue;
        };
        let frozen = Frozen::of(log.frozen()?);
        let begin = Begin {
            file: format!("log/{name}.redb"),
            position: Some(log.info().last_sequence),
        };
        gathered.parts.push(Part {
            begin,
            content: Content::Tables {
                frozen,
                of: Database::Other,
            },
        });
    }
    // Only now: if no record changed, the frozen catalogue names just the files frozen since.
    if catalogue.deployments()? != records {
        return Err(Again::Changed);
    }
    let begin = Begin {
        file: "catalog.redb".to_owned(),
        position: None,
    };
    gathered.parts.push(Part {
        begin,
        content: Content::Tables {
            frozen,
            of: Database::Other,
        },
    });
    Ok(gathered)
}

/// Freezes the states of a deployment: those of the active, the previous and the candidate
/// generation.
fn gather_states(
    folder: &DataDir,
    record: &Record,
    deployment: &Arc<Deployment>,
    gathered: &mut Gathered,
) -> Result<(), Again> {
    // Numbers of files, and not generations: one that inherits its state continues the file of
    // another.
    let kept = record
        .generations
        .iter()
        .filter(|generation| generation.has_file());
    let numbers: BTreeSet<u64> = kept.map(|generation| generation.state_file).collect();
    for number in numbers {
        let path = folder.state(&record.name, number);
        let file = format!("state/{}/{number}.redb", record.name);
        let store = deployment.runner(number).and_then(|runner| runner.store());
        let frozen = match store {
            Some(store) => {
                // Taken before the freeze, so a commit between the two makes it too low: it is
                // only information.
                let position = store.checkpoint().map(|checkpoint| checkpoint.position);
                store.frozen().map(|frozen| (frozen, position))
            }
            // It has not started yet, and starts in the copy as it would have here.
            None if !path.exists() => continue,
            None if !deployment.is_opened() => {
                return Err(Again::Opening(Arc::clone(deployment)));
            }
            // Nobody has it open: for example, the state of a candidate that an event stopped.
            None => frozen_aside(&path),
        };
        match frozen {
            Ok((frozen, position)) => {
                let content = Content::Tables {
                    frozen,
                    of: Database::State,
                };
                gathered.parts.push(Part {
                    begin: Begin { file, position },
                    content,
                });
            }
            Err(error) => {
                let reason = format!("{error}; a host builds it from the stream again");
                gathered.left_out.push(LeftOut { file, reason });
            }
        }
    }
    Ok(())
}

fn frozen_aside(path: &Path) -> Result<(Frozen, Option<u64>), state::Error> {
    Frozen::open(path).map(|frozen| (frozen, None))
}

/// Sends all parts; returns their size in bytes.
fn send_all(
    writer: &mut Writer<'_>,
    header: &Header,
    parts: Vec<Part>,
    is_stopping: &dyn Fn() -> bool,
) -> Result<u64, Error> {
    writer.json(Tag::Header, header)?;
    let mut bytes = 0;
    for Part { begin, content } in parts {
        // Between files: one that is begun is sent to its end.
        if is_stopping() {
            return Err(Error::Host("it is stopping".to_owned()));
        }
        writer.json(Tag::File, &begin)?;
        let mut sum = Sum::default();
        match content {
            Content::Tables { frozen, of } => {
                send_tables(writer, &mut sum, &frozen, of)?;
            }
            Content::Module(mut file) => {
                let mut octets = vec![0; READ_BYTES];
                loop {
                    let count = file.read(&mut octets).map_err(Error::io(&begin.file))?;
                    if count == 0 {
                        break;
                    }
                    sum.octets(&octets[..count]);
                    writer.frame(Tag::Octets, &[&octets[..count]])?;
                }
            }
        }
        // From what was sent and not from what was read: the client compares it with what it
        // received.
        let entry = sum.entry(begin);
        bytes += entry.bytes;
        writer.json(Tag::End, &entry)?;
    }
    writer.frame(Tag::Done, &[])?;
    writer.flush()?;
    Ok(bytes)
}

fn send_tables(
    writer: &mut Writer<'_>,
    sum: &mut Sum,
    frozen: &Frozen,
    of: Database,
) -> Result<(), Error> {
    let mut is_meta = false;
    frozen.each(&mut |item| {
        match item {
            Item::Table(name) => is_meta = of == Database::State && name == "meta",
            // A host on the copy must not answer from it as if clients had seen nothing since.
            Item::Row(key, _) if is_meta && key == state::SETTLED.as_bytes() => return Ok(()),
            Item::Row(..) => {}
        }
        sum.item(item);
        writer.item(item)
    })
}
