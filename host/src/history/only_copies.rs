//! Finds parked events that a stream has lost: the state that has them parked has their only copy.
//!
//! A state that replaces it would neither have applied nor parked them, and the copy would go with
//! the state. That a source counts missing events does not accept this; a request does.

use super::History;
use super::lost::Accepted;
use crate::deployment::Deployment;
use crate::deployments::{Error, MissingEvents};
use crate::source::{Had, LookError, Source};
use crate::state::Store;
use crate::state::catalogue::Generation;
use crate::subject::SubjectSet;

/// Most parked events that are looked for in a stream, one by one.
const LOOKED_FOR_MAX: usize = 1_000;

/// Parked events that a stream has lost.
pub(crate) struct OnlyCopies {
    /// How many, at most.
    pub(crate) count: u64,
    /// Whether not all of them were looked for.
    is_at_most: bool,
}

impl OnlyCopies {
    /// What they are.
    pub(crate) fn explain(&self, stream: &str) -> String {
        let at_most = if self.is_at_most { "up to " } else { "" };
        let (events, are, their) = match self.count {
            1 => ("event", "is", "its"),
            _ => ("events", "are", "their"),
        };
        format!(
            "{at_most}{} {events} that {are} parked {are} gone from stream {stream}, so the \
             active state has {their} only copy",
            self.count
        )
    }

    /// How to lose none of them.
    pub(crate) fn way_out(deployment: &str) -> String {
        format!(
            "retry or drop what is parked first (`foldstream parked list {deployment}` shows it)"
        )
    }
}

impl History {
    /// The same as [`Self::may_refold`] for a fold whose state replaces the active one. Refused as
    /// well if the stream has lost parked events of the active state, unless the request accepts
    /// it.
    pub(crate) async fn may_replace(
        &self,
        deployment: &Deployment,
        source: &str,
        accept: MissingEvents,
        advice: &str,
    ) -> Result<Accepted, Error> {
        let record = deployment.record();
        let store = deployment.active().store();
        // Positions of two sources cannot be compared.
        let known = self
            .sources
            .get(source)
            .filter(|_| record.active().source == source);
        let copies = match (known, store) {
            (Some(source), Some(store)) => {
                let copies = only_copies(source, record.active(), &store, |_| false).await;
                match copies {
                    Err(error) if accept == MissingEvents::Refuse => {
                        return Err(Error::Conflict(format!(
                            "events are parked, and whether the stream still has them is unknown: \
                             {error}; try again, or {advice}"
                        )));
                    }
                    copies => copies.unwrap_or_default(),
                }
                .map(|copies| copies.explain(&source.stream()))
            }
            _ => None,
        };
        let accepted = self.may_refold(deployment, source, accept, advice).await;
        let Some(copies) = copies else {
            return accepted;
        };
        let way_out = OnlyCopies::way_out(deployment.name());
        match accepted {
            Err(Error::Refused(why)) => Err(Error::Refused(format!("{copies}; {way_out}; {why}"))),
            Ok(_) if accept == MissingEvents::Refuse => {
                Err(Error::Refused(format!("{copies}; {way_out}, or {advice}")))
            }
            Ok(accepted) => {
                tracing::warn!(
                    deployment = deployment.name(),
                    copies,
                    "building a state without events of which the active state has the only copy"
                );
                let lacks = match accepted.lacks {
                    Some(lacks) => format!("{lacks}; of these, {copies}"),
                    None => copies,
                };
                Ok(Accepted {
                    lacks: Some(lacks),
                    ..accepted
                })
            }
            refused => refused,
        }
    }
}

/// The parked events of a state that its stream has lost, unless another state has them as
/// well; none if there are none.
pub(crate) async fn only_copies(
    source: &Source,
    generation: &Generation,
    store: &Store,
    has_copy: impl Fn(u64) -> bool,
) -> Result<Option<OnlyCopies>, LookError> {
    let parked = store.parked_sequences();
    let parked: Vec<u64> = parked.into_iter().filter(|one| !has_copy(*one)).collect();
    let (Some(first), Some(last)) = (parked.first(), parked.last()) else {
        return Ok(None);
    };
    let subjects: Vec<&str> = generation
        .module
        .subjects
        .iter()
        .map(String::as_str)
        .collect();
    if parked.len() > LOOKED_FOR_MAX
        && !source.hides_losses().await?
        && let Ok(subjects) = SubjectSet::parse(&subjects)
    {
        let all = Had {
            after: first - 1,
            through: *last,
            without: &[],
            subjects: &subjects,
            events: None,
        };
        if source.lost(&all).await?.is_none() {
            return Ok(None);
        }
    }
    let mut count = parked.len().saturating_sub(LOOKED_FOR_MAX) as u64;
    for sequence in parked.iter().take(LOOKED_FOR_MAX) {
        count += u64::from(source.event(*sequence).await?.is_err());
    }
    Ok((count > 0).then_some(OnlyCopies {
        count,
        is_at_most: parked.len() > LOOKED_FOR_MAX,
    }))
}
