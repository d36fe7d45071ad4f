//! Determines which applied events a stream has lost, and whether a fold from the beginning may do
//! without them.
//!
//! A state knows how many missing events it passed over when it was built. Any further events that
//! the stream lacks were applied, and a new fold would not have them.

use super::as_of::Moment;
use super::{Error, Rollouts};
use crate::api::{self, Start};
use crate::deployment::Deployment;
use crate::position::Checkpoint;
use crate::source::{Had, Lost, Missing};
use crate::state::Snapshot;
use crate::state::catalogue::Generation;
use crate::state::exceptions::Skips;
use crate::subject::SubjectSet;

/// Which events a new fold of a stream may do without.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    /// Events up to this sequence may be missing.
    pub(super) through: u64,
    /// A description of the applied events that it will lack, and who accepts that; none if it
    /// lacks nothing.
    pub(super) lacks: Option<String>,
    /// How many these are, at most; 0 if it lacks nothing, or if that is unknown.
    pub(super) count: u64,
    /// The sequence after which it begins, if the active state did not begin at the first event of
    /// its stream.
    pub(super) begins_after: Option<u64>,
}

/// Who accepts that events are missing: the source's settings, or the request.
fn acceptance(counts: bool) -> &'static str {
    if counts {
        "the source counts them (missing = \"count\")"
    } else {
        "as accepted"
    }
}

impl Accepted {
    /// Events up to this sequence may be missing, and none is known to be lost.
    fn nothing_lost(through: u64) -> Self {
        Self {
            through,
            ..Self::default()
        }
    }

    /// That of a fold which continues what another generation has: what was accepted once stays
    /// accepted.
    pub(super) fn kept(through: u64, kept: &Generation) -> Self {
        Self {
            begins_after: kept.begins_after,
            ..Self::nothing_lost(through.max(kept.accepts_missing_through))
        }
    }

    /// Prepares a generation for the fold.
    pub(super) fn apply(&self, generation: &mut Generation) {
        generation.accepts_missing_through = self.through;
        // One that begins elsewhere than the active state did begins where it should.
        generation.begins_after = self
            .begins_after
            .filter(|_| generation.start == Start::FirstAvailable);
    }

    /// Adds to a reason which events the new fold will lack.
    pub(super) fn explain(&self, reason: String) -> String {
        match &self.lacks {
            Some(lacks) => format!("{reason}; {lacks}"),
            None => reason,
        }
    }
}

impl Rollouts {
    /// Which events a fold from the beginning may do without, if it replaces the active generation;
    /// refused if the stream has lost applied events, or is another one, unless `accept` is set.
    /// `source` is that of the new fold.
    pub(super) async fn may_refold(
        &self,
        deployment: &Deployment,
        source: &str,
        accept: bool,
        advice: &str,
    ) -> Result<Accepted, Error> {
        let record = deployment.record();
        let active = record.active();
        // Positions of two sources cannot be compared, so it is unknown what this one lacks.
        if active.source != source {
            return self
                .accepts_from(source, accept)
                .await
                .map(Accepted::nothing_lost);
        }
        // Asked first: in another stream, counts of lost events would be meaningless.
        if let Some(other) = self.other_history(deployment).await {
            if !accept {
                return Err(Error::Refused(format!("{other}; {advice}")));
            }
            let lacks =
                "nothing that was applied before is in the stream, which is another one, as \
                 accepted"
                    .to_owned();
            tracing::warn!(
                deployment = deployment.name(),
                lacks,
                "building a state from another stream"
            );
            let through = self.end_of(source).await?;
            return Ok(Accepted {
                lacks: Some(lacks),
                ..Accepted::nothing_lost(through)
            });
        }
        let begins_after = begins_after(deployment, active);
        let Some(lost) = self.lost(deployment, active, None).await else {
            // The missing events are unknown: what was accepted for the old state may be wrong for
            // a new one.
            let through = self.accepts_from(source, accept).await?;
            return Ok(Accepted {
                begins_after,
                ..Accepted::nothing_lost(through)
            });
        };
        let through = self
            .accepts_from(source, accept)
            .await?
            .max(active.accepts_missing_through);
        let Some(LostEvents { lacks, count }) = lost else {
            // Nothing that is gone up to there was an event, or the active generation does not have
            // it either.
            let checkpoint = deployment
                .active()
                .store()
                .and_then(|store| store.published());
            // The last range that the active state passed over: a new fold may pass over that as
            // well.
            let passed = checkpoint
                .and_then(|checkpoint| checkpoint.passed_over.last().map(|(_, last)| *last));
            return Ok(Accepted {
                begins_after,
                ..Accepted::nothing_lost(through.max(passed.unwrap_or(0)))
            });
        };
        // A source that counts missing events accepts them without a request.
        let counts = self
            .inner
            .sources
            .get(source)
            .is_some_and(|source| source.on_missing().is_count());
        if accept || counts {
            let lacks = format!("{lacks}, {}", acceptance(counts && !accept));
            tracing::warn!(
                deployment = deployment.name(),
                lacks,
                "building a state without missing events"
            );
            return Ok(Accepted {
                through,
                lacks: Some(lacks),
                count,
                begins_after,
            });
        }
        Err(Error::Refused(format!(
            "{lacks}, so a fold from the beginning would lack them; {advice}"
        )))
    }

    /// Refused if the stream is not the one that the active generation was built from: a fold of
    /// another history would say nothing about this state. Passes while that is unknown.
    pub(super) async fn check_history(&self, deployment: &Deployment) -> Result<(), Error> {
        match self.other_history(deployment).await {
            Some(other) => Err(Error::Refused(format!("{}: {other}", other.kind()))),
            None => Ok(()),
        }
    }

    /// Why the stream is not the one that the active generation was built from, if that is so.
    async fn other_history(&self, deployment: &Deployment) -> Option<crate::source::Error> {
        // Each `?` means that it is unknown, which refuses nothing.
        let source = deployment.record().active().source.clone();
        let source = self.inner.sources.get(&source)?;
        let checkpoint = deployment.active().store()?.published()?;
        source.contradiction(&checkpoint).await.ok()?
    }

    /// The same for an as-of read. `begins_later` says that it need not start at the beginning:
    /// what was accepted before is then checked again.
    pub(super) async fn may_look_back(
        &self,
        deployment: &Deployment,
        moment: Moment,
        begins_later: bool,
        accept: bool,
    ) -> Result<Accepted, Error> {
        // Positions of one history mean nothing in another.
        self.check_history(deployment).await?;
        let record = deployment.record();
        let active = record.active();
        if let Moment::Sequence(sequence) = moment
            && !accept
            && matches!(
                // `Some(None)`: known to have lost nothing.
                self.lost(deployment, active, Some(sequence)).await,
                Some(None)
            )
        {
            // Nothing is gone up to the point where the fold ends; later losses do not matter.
            return Ok(Accepted {
                begins_after: begins_after(deployment, active),
                ..Accepted::nothing_lost(u64::MAX)
            });
        }
        let advice = "add accept-missing (--accept-missing) to read without them";
        match self
            .may_refold(deployment, &active.source, accept, advice)
            .await
        {
            // The loss may lie before the snapshot with which the fold starts.
            Err(Error::Refused(_)) if begins_later => Ok(Accepted::nothing_lost(0)),
            answer => answer,
        }
    }

    /// Adds to the reason of a new deployment what its stream has already lost, if that is
    /// accepted.
    pub(super) async fn explain_new(
        &self,
        name: &str,
        generation: &Generation,
        reason: String,
    ) -> String {
        let Some(source) = self.inner.sources.get(&generation.source) else {
            return reason;
        };
        let (counts, through) = (
            source.on_missing().is_count(),
            generation.accepts_missing_through,
        );
        // With `count`, everything up to the head may be gone, and the count is for the reason
        // only.
        let through = if counts {
            source.info().await.last_sequence.unwrap_or(0)
        } else {
            through
        };
        let subjects: Vec<&str> = generation
            .module
            .subjects
            .iter()
            .map(String::as_str)
            .collect();
        let Ok(subjects) = SubjectSet::parse(&subjects) else {
            return reason;
        };
        // If it begins later on purpose, what was there before is no loss.
        if through == 0 || generation.start != Start::Beginning {
            return reason;
        }
        let nothing_yet = Had {
            after: 0,
            through,
            without: &[],
            subjects: &subjects,
            events: None,
        };
        let Ok(Some(Lost {
            stream,
            missing,
            may_be_of_others,
            ..
        })) = source.lost(&nothing_yet).await
        else {
            return reason;
        };
        let gone = if may_be_of_others {
            "gone (some perhaps of other subjects)"
        } else {
            "gone"
        };
        let lacks = format!(
            "{missing} {gone} from stream {stream}, {}",
            acceptance(counts)
        );
        tracing::warn!(
            deployment = name,
            lacks,
            "building a state without missing events"
        );
        format!("{reason}; {lacks}")
    }

    /// The current last sequence of a source, if missing events up to there are accepted; 0 if not.
    pub(super) async fn accepts_from(&self, source: &str, accept: bool) -> Result<u64, Error> {
        if accept {
            self.end_of(source).await
        } else {
            Ok(0)
        }
    }

    /// The current last sequence of a source: missing events up to there are accepted.
    pub(super) async fn end_of(&self, source: &str) -> Result<u64, Error> {
        let Some(known) = self.inner.sources.get(source) else {
            return Err(self.inner.no_source(source).into());
        };
        known.info().await.last_sequence.ok_or_else(|| {
            Error::Conflict(format!(
                "source {source} can't be reached, so the end of the accepted range is unknown; \
                 try again when it can"
            ))
        })
    }

    /// The applied events of the active generation that the stream has lost: `Some(None)` if it has
    /// lost none, `None` if unknown. With a sequence, whether anything up to there is gone.
    async fn lost(
        &self,
        deployment: &Deployment,
        active: &Generation,
        up_to: Option<u64>,
    ) -> Option<Option<LostEvents>> {
        let source = self.inner.sources.get(&active.source)?;
        let store = deployment.active().store();
        let Some((checkpoint, skipped)) = store.and_then(|store| {
            let checkpoint = store.published()?;
            Some((checkpoint, store.snapshot().exceptions()))
        }) else {
            // Nothing was applied, so nothing applied can be lost.
            return Some(None);
        };
        // A state does not have what it skipped: if that is gone, nothing is lost.
        let mut without = checkpoint.passed_over.clone();
        without.extend(skipped.keys().map(|sequence| (*sequence, *sequence)));
        without.sort_unstable();
        let subjects: Vec<&str> = active.module.subjects.iter().map(String::as_str).collect();
        let subjects = SubjectSet::parse(&subjects).ok()?;
        // Events of other code with other subjects were counted as well. Of those that were skipped
        // nobody knows whether they are still there.
        let is_known = active.subjects_from == 0 && !active.module.sets_timers;
        let events = checkpoint.events.filter(|_| is_known);
        let had = Had {
            after: began_after(active, &checkpoint),
            // Losses beyond what was applied are none: the active generation does not have those
            // either.
            through: checkpoint.position.min(up_to.unwrap_or(u64::MAX)),
            without: &without,
            subjects: &subjects,
            events: events.map(|events| {
                (
                    events.saturating_sub(skipped.len() as u64),
                    checkpoint.position,
                )
            }),
        };
        let lost = source.lost(&had).await.ok()?;
        let Some(Lost {
            missing,
            stream,
            may_be_of_others,
            is_counted,
        }) = lost
        else {
            return Some(None);
        };
        // Events that were already missing when the state passed them were not lost since.
        let passed = if up_to.is_some() || is_counted {
            0
        } else {
            checkpoint.missing
        };
        // `missing.count` is what is gone now; what was gone then is in the checkpoint.
        let count = missing.count.map(|count| count.saturating_sub(passed));
        if count == Some(0) {
            return Some(None);
        }
        let lacks = describe(Missing { count, ..missing }, may_be_of_others, &stream);
        let parts = in_parts(checkpoint.missing_in_parts);
        Some(Some(LostEvents {
            lacks: format!("{lacks}{parts}"),
            count: count.unwrap_or(0),
        }))
    }
}

/// Applied events that a stream has lost.
struct LostEvents {
    /// In words.
    lacks: String,
    /// How many, at most; 0 if unknown.
    count: u64,
}

/// Says that parts of a state lack events as well; empty if none does.
fn in_parts(missing: u64) -> String {
    match missing {
        0 => String::new(),
        1 => "; keys that were rebuilt since lack up to 1 of them as well".to_owned(),
        _ => format!("; keys that were rebuilt since lack up to {missing} of them as well"),
    }
}

/// How many events a fold lacks, at least, that another state of the same events has; `decided` are
/// the events that the fold skips. The fold is at least at the position of that state. None if
/// unknown.
pub(super) fn lacking(ours: &Snapshot, theirs: &Snapshot, decided: &Skips) -> Option<u64> {
    let events = |snapshot: &Snapshot| snapshot.checkpoint().and_then(|known| known.events);
    let (had, has) = (events(ours)?, events(theirs)?);
    // What neither has: it was skipped, and is gone since.
    let skipped_there = theirs.exceptions();
    let gone = ours
        .exceptions()
        .into_keys()
        .filter(|sequence| decided.has(*sequence))
        .filter(|sequence| !skipped_there.contains_key(sequence))
        .count();
    Some(had.saturating_sub(has.saturating_add(gone as u64)))
}

/// What the stream lacks without showing it, in words.
pub(super) fn lacking_in_words(count: u64, stream: &str) -> String {
    let (events, were, are) = if count == 1 {
        ("event", "was", "is")
    } else {
        ("events", "were", "are")
    };
    format!("{count} {events} that {were} applied {are} gone from stream {stream}")
}

/// The sequence after which a fold begins that should equal the active state, if that state did not
/// begin at the first event of its stream: what the stream has lost since is then missed.
fn begins_after(deployment: &Deployment, active: &Generation) -> Option<u64> {
    let store = deployment.active().store();
    let begun = store.and_then(|store| store.published()?.begins_after);
    // A state whose file was lost has not begun yet; the record knows where it did before.
    begun
        .or(active.begins_after)
        .filter(|_| active.start == Start::FirstAvailable)
}

/// The sequence after which a state began. Format 1 did not record it; such a state may have had
/// all events.
fn began_after(active: &Generation, checkpoint: &Checkpoint) -> u64 {
    debug_assert!(matches!(
        active.start,
        Start::Beginning | Start::FirstAvailable
    ));
    checkpoint.begins_after.unwrap_or(0)
}

fn describe(missing: Missing, may_be_of_others: bool, stream: &str) -> String {
    let Missing { from, to, count } = missing;
    let events = match count {
        None => "an unknown number of events".to_owned(),
        Some(count) => {
            let at_most = if may_be_of_others { "up to " } else { "" };
            format!(
                "{at_most}{count} event{}",
                if count == 1 { "" } else { "s" }
            )
        }
    };
    let (was, is) = if count == Some(1) {
        ("was", "is")
    } else {
        ("were", "are")
    };
    let place = if from == to {
        format!("({from})")
    } else {
        format!("(between {from} and {to})")
    };
    format!("{events} that {was} applied {is} gone from stream {stream} {place}")
}

/// What a verification reports about a state that it can't compare.
pub(super) fn unequal(lacks: &str, comparison: &api::Comparison) -> String {
    format!(
        "{lacks}, so the new fold cannot be the same: {}; the active state has them, keep it",
        comparison.conclusion
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_as_exactly_as_it_is_known() {
        let described =
            |from, to, count, others| describe(Missing { from, to, count }, others, "ORDERS");
        assert_eq!(
            described(7, 7, Some(1), false),
            "1 event that was applied is gone from stream ORDERS (7)"
        );
        assert_eq!(
            described(1, 90, Some(20), false),
            "20 events that were applied are gone from stream ORDERS (between 1 and 90)"
        );
        assert_eq!(
            described(7, 7, Some(1), true),
            "up to 1 event that was applied is gone from stream ORDERS (7)"
        );
    }
}
