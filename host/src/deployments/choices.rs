//! What a request chooses.

use super::{Error, candidate_of};
use crate::state::catalogue::{Generation, Record};

/// Which generation of a deployment an operator means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationChoice {
    /// The active one.
    Active,
    /// The candidate.
    Candidate,
}

impl GenerationChoice {
    /// That generation of a deployment.
    pub(crate) fn of(self, record: &Record) -> Result<&Generation, Error> {
        match self {
            Self::Active => Ok(record.active()),
            Self::Candidate => candidate_of(record),
        }
    }
}

impl From<bool> for GenerationChoice {
    fn from(is_candidate: bool) -> Self {
        if is_candidate {
            Self::Candidate
        } else {
            Self::Active
        }
    }
}

/// Whether a request only shows what it would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It does it.
    No,
    /// It changes nothing.
    Yes,
}

impl From<bool> for DryRun {
    fn from(is_dry: bool) -> Self {
        if is_dry { Self::Yes } else { Self::No }
    }
}

/// Whether a fold may lack events that were applied before, and that its stream has lost since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingEvents {
    /// Such a fold is refused.
    #[default]
    Refuse,
    /// The request accepts the loss.
    Accept,
}

impl From<bool> for MissingEvents {
    fn from(is_accepted: bool) -> Self {
        if is_accepted {
            Self::Accept
        } else {
            Self::Refuse
        }
    }
}
