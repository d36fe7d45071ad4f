//! What lets a request in, for as long as it is answered: its token may be withdrawn meanwhile.
//!
//! Each reload of the tokens is checked against every read, stream and wait that is open. A reload
//! that changes nothing for a request, and a new certificate, end nothing.

use std::sync::Arc;

use tokio::sync::watch;

use super::auth::Reason;
use super::problem::{Kind, Problem};
use super::scopes::Demand;
use super::secrets::Admission;
use super::tokens::{Grant, NotCovered, Refusal};
use crate::config::Anonymous;
use crate::scope::Scope;

/// Why a request is not answered: for the metrics, and for its client.
pub(super) type Refused = (Reason, Problem);

/// What lets a request in. Cloning shares it.
#[derive(Clone)]
pub(super) struct Standing {
    admissions: watch::Receiver<Admission>,
    basis: Arc<Basis>,
}

/// What was checked when the request came.
pub(super) enum Basis {
    /// A token, and what it has to cover, each with the deployments that the request names. Empty
    /// for a path without a route.
    Token(Arc<Grant>, Vec<(Demand, Vec<String>)>),
    /// No token, and what the route requires; none for a path without a route.
    Anonymous(Option<Demand>),
}

impl Standing {
    /// Of a request that was let in. The receiver may have seen what it was checked against.
    pub(super) fn new(admissions: watch::Receiver<Admission>, basis: Basis) -> Self {
        Self {
            admissions,
            basis: Arc::new(basis),
        }
    }

    /// What the token is for, if the request has one.
    pub(super) fn grant(&self) -> Option<&Grant> {
        match &*self.basis {
            Basis::Token(grant, _) => Some(grant),
            Basis::Anonymous(_) => None,
        }
    }

    /// Whether the request changes nothing.
    pub(super) fn is_read(&self) -> bool {
        let demand = match &*self.basis {
            Basis::Token(_, demands) => demands.first().map(|(demand, _)| demand),
            Basis::Anonymous(demand) => demand.as_ref(),
        };
        demand.is_some_and(|demand| demand.scope == Some(Scope::Read))
    }

    /// Whether the request would still be let in.
    pub(super) fn check(&self) -> Result<(), Refused> {
        self.basis.check(&self.admissions.borrow())
    }

    /// Returns when the request would no longer be let in.
    pub(super) async fn lapsed(&self) -> Refused {
        let mut admissions = self.admissions.clone();
        let mut refused = None;
        // Looks at the present one first, so that no reload is missed.
        let lapsed = admissions.wait_for(|admission| {
            refused = self.basis.check(admission).err();
            refused.is_some()
        });
        // Without a server that reloads, nothing is withdrawn.
        let has_ended = lapsed.await.is_err();
        match refused {
            Some(refused) if !has_ended => refused,
            _ => std::future::pending().await,
        }
    }
}

impl Basis {
    fn check(&self, admission: &Admission) -> Result<(), Refused> {
        match self {
            Self::Token(earlier, demands) => {
                let tokens = admission.tokens.as_ref();
                let grant = tokens
                    .ok_or(Refusal::Unknown)
                    .and_then(|tokens| tokens.renewed(earlier))
                    .map_err(unknown)?;
                covers(grant, demands).map_err(not_covered)
            }
            Self::Anonymous(demand) => check_anonymous(admission.anonymous, *demand),
        }
    }
}

/// Whether a token covers all that a request requires.
pub(super) fn covers(grant: &Grant, demands: &[(Demand, Vec<String>)]) -> Result<(), NotCovered> {
    demands
        .iter()
        .try_for_each(|(demand, names)| grant.covers(*demand, names))
}

/// Whether a request without a token may do what its route does. A path without a route does
/// nothing.
pub(super) fn check_anonymous(anonymous: Anonymous, demand: Option<Demand>) -> Result<(), Refused> {
    let is_read = || demand.is_none_or(|demand| demand.scope == Some(Scope::Read));
    let detail = match anonymous {
        Anonymous::Everything => return Ok(()),
        Anonymous::Read if is_read() => return Ok(()),
        Anonymous::Read => {
            "without a token this host only answers reads: send one as `Authorization: Bearer \
             <token>` (FOLDSTREAM_TOKEN or --token on the command line); if none is configured it \
             is in the file `token` of the host's data folder"
        }
        Anonymous::Nothing => {
            "send a token of the host as `Authorization: Bearer <token>` (FOLDSTREAM_TOKEN or \
             --token on the command line); a host without configured tokens has its own in the \
             file `token` of its data folder"
        }
    };
    let problem = Problem::new(Kind::Unauthorized, detail);
    Err((Reason::TokenMissing, problem))
}

/// The refusal of a token that lets nobody in.
pub(super) fn unknown(refusal: Refusal) -> Refused {
    let problem = Problem::new(Kind::Unauthorized, refusal.to_string());
    (Reason::TokenWrong, problem)
}

/// The refusal of a token that does not cover a request.
pub(super) fn not_covered(lack: NotCovered) -> Refused {
    let problem = Problem::new(Kind::NotAllowed, lack.to_string());
    (Reason::NotAllowed, problem)
}
