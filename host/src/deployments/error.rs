//! Why a change of deployments was refused, or failed.

use super::compare::InvalidGate;
use crate::room::Shortage;
use crate::runner::{LoadError, RepairError};
use crate::state::catalogue::ModuleKind;
use crate::{data_dir, log, module, names, source, state};

/// Why the host refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No deployment of that name.
    #[error("there is no deployment {0}; `foldstream list` shows all")]
    NotFound(String),
    /// Something else does not exist.
    #[error("{0}")]
    Missing(String),
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] names::Invalid),
    /// Several sources to choose from, or a source that is not of the right kind.
    #[error("{0}")]
    Source(String),
    /// No source of that name.
    #[error(transparent)]
    UnknownSource(#[from] source::Unknown),
    /// A gate is not valid.
    #[error(transparent)]
    Gate(#[from] InvalidGate),
    /// A deploy is impossible as it was requested.
    #[error(transparent)]
    Plan(#[from] Impossible),
    /// A module of the data folder can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A state could not be changed by other means than folding.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// The module was refused.
    #[error(transparent)]
    Module(#[from] module::Error),
    /// A state file or the catalogue failed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The embedded log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The data folder is unusable or full.
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    /// Too many deployments.
    #[error("this host allows {0} deployments; delete some, or raise limits.deployments")]
    TooMany(usize),
    /// What the request needs is not there yet, such as a state that is open; the reason says what to
    /// wait for.
    #[error("{0}")]
    NotOpen(String),
    /// The request conflicts with the current state.
    #[error("{0}")]
    Conflict(String),
    /// The request contradicts itself or the module.
    #[error("{0}")]
    Refused(String),
    /// A candidate lacks events that the active generation has.
    #[error("{message}")]
    Lacking {
        /// How many.
        events: u64,
        /// What it lacks, and what to do.
        message: String,
    },
    /// A file that is no state can't be read or written.
    #[error("{what}: {source}")]
    Files {
        /// What can't be done.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// There is no room on disk.
    #[error("{what}: {shortage}")]
    NoRoom {
        /// What can't be done.
        what: String,
        /// What is short.
        #[source]
        shortage: Shortage,
    },
    /// The host is stopping.
    #[error("the host is stopping")]
    Stopping,
}

/// Why a requested deploy is impossible.
#[derive(Debug, thiserror::Error)]
pub enum Impossible {
    /// Another source has other positions.
    #[error(
        "{name} reads source {current}, whose positions have nothing to do with those of {wanted}; \
         deploy it under another name with --name"
    )]
    OtherSource {
        /// The deployment.
        name: String,
        /// The source that it reads.
        current: String,
        /// The requested source.
        wanted: String,
    },
    /// To inherit leaves no state to compare with.
    #[error(
        "cannot inherit: an inherited state cannot be compared or promoted by hand; rebuild it"
    )]
    NothingToCompare,
    /// To inherit a state with another version.
    #[error(
        "cannot inherit: state version {wanted} is not {current}; rebuild it, or give the module \
         the same state version if both store the same"
    )]
    OtherVersion {
        /// The version of the active generation.
        current: u32,
        /// The version of the module.
        wanted: u32,
    },
    /// A projection cannot become a handler, nor the other way around.
    #[error(
        "{name} is a {}, and the module is a {}; deploy it under another name with --name",
        current.name(),
        wanted.name()
    )]
    OtherKind {
        /// The deployment.
        name: String,
        /// What it is.
        current: ModuleKind,
        /// What the module is.
        wanted: ModuleKind,
    },
    /// To migrate without code for it.
    #[error(
        "cannot migrate: the module exports no `migrate`; add it (guest-sdk/rust has an example), \
         or rebuild"
    )]
    NoMigration,
}

impl Error {
    /// There is no room on disk for something; `what` says for what.
    pub(crate) fn no_room(what: impl Into<String>) -> impl FnOnce(Shortage) -> Self {
        let what = what.into();
        move |shortage| Self::NoRoom { what, shortage }
    }

    /// Whether another host uses the data folder.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::State(state::Error::InUse(_)))
    }
}

impl From<source::NotPublished> for Error {
    fn from(error: source::NotPublished) -> Self {
        use source::NotPublished;
        match error {
            NotPublished::Log(error) => Self::Log(error),
            refused if refused.is_refusal() => Self::Refused(refused.to_string()),
            // It may be published when somebody tries again.
            passing @ (NotPublished::Away(_)
            | NotPublished::Stream(_)
            | NotPublished::Interrupted(_)) => Self::NotOpen(passing.to_string()),
        }
    }
}

impl From<source::NotChosen> for Error {
    fn from(error: source::NotChosen) -> Self {
        match error {
            source::NotChosen::Unknown(unknown) => Self::UnknownSource(unknown),
            several @ source::NotChosen::Several(_) => Self::Source(several.to_string()),
        }
    }
}
