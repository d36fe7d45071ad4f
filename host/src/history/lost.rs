//! Determines which applied events a stream has lost, and whether a fold from the beginning may do
//! without them.
//!
//! A state knows how many missing events it passed over when it was built. Any further events that
//! the stream lacks were applied, and a new fold would not have them.

use super::History;
use super::as_of::Moment;
use crate::deployment::Deployment;
use crate::deployments::{Error, MissingEvents};
use crate::position::{Checkpoint, Start};
use crate::source::{Had, LookError, Lost, Missing, Source, Whose};
use crate::state::Snapshot;
use crate::state::catalogue::Generation;
use crate::state::exceptions::Skips;
use crate::subject::SubjectSet;

/// Most skipped events that are looked for in a stream, one by one.
const SKIPPED_MAX: usize = 100;
/// How to read a past state without lost events.
const ADVICE: &str = "add accept-missing (--accept-missing) to read without them";

/// Which events a new fold of a stream may do without.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accepted {
    /// Events up to this sequence may be missing.
    pub(crate) through: u64,
    /// A description of the applied events that it will lack, and who accepts that; none if it
    /// lacks nothing.
    pub(crate) lacks: Option<String>,
    /// How many these are, at most; 0 if it lacks nothing, or if that is unknown.
    pub(crate) count: u64,
    /// How many events it lacks, at most, without noticing it, because the gaps of its stream say
    /// nothing; 0 if it counts them itself.
    pub(crate) unseen: u64,
    /// Why it is unknown what the stream has lost, if it is: a fold whose stream does not show its
    /// gaps may lack events.
    pub(crate) unknown: Option<String>,
    /// The sequence after which it begins, if the active state did not begin at the first event of
    /// its stream.
    pub(crate) begins_after: Option<u64>,
}

/// Who accepts that events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptedBy {
    /// The settings of the source.
    Source,
    /// A request.
    Request,
}

impl AcceptedBy {
    fn in_words(self) -> &'static str {
        match self {
            Self::Source => "the source counts them (missing = \"count\")",
            Self::Request => "as accepted",
        }
    }
}

/// Where the fold of an as-of read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// With the first event.
    Start,
    /// With a snapshot of the state.
    Snapshot,
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
    pub(crate) fn kept(through: u64, kept: &Generation) -> Self {
        Self {
            begins_after: kept.begins_after,
            ..Self::nothing_lost(through.max(kept.accepts_missing_through))
        }
    }

    /// Prepares a generation for the fold.
    pub(crate) fn apply(&self, generation: &mut Generation) {
        generation.accepts_missing_through = self.through;
        // One that begins elsewhere than the active state did begins where it should.
        generation.begins_after = self
            .begins_after
            .filter(|_| generation.start == Start::FirstAvailable);
    }

    /// Adds to a reason which events the new fold will lack.
    pub(crate) fn explain(&self, reason: String) -> String {
        match &self.lacks {
            Some(lacks) => format!("{reason}; {lacks}"),
            None => reason,
        }
    }
}

impl History {
    /// Which events a fold from the beginning may do without, if it replaces the active generation;
    /// refused if the stream has lost applied events, or is another one, unless that is accepted.
    /// `source` is that of the new fold.
    pub(crate) async fn may_refold(
        &self,
        deployment: &Deployment,
        source: &str,
        accept: MissingEvents,
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
            if accept == MissingEvents::Refuse {
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
        let lost = self.lost(deployment, active, None).await.ok();
        self.weigh(deployment, lost, accept, advice).await
    }

    /// The same for what is known of the events that the stream of the active generation has lost:
    /// `Some(None)` if it has lost none, `None` if unknown.
    async fn weigh(
        &self,
        deployment: &Deployment,
        lost: Option<Option<LostEvents>>,
        accept: MissingEvents,
        advice: &str,
    ) -> Result<Accepted, Error> {
        let record = deployment.record();
        let active = record.active();
        let source = active.source.as_str();
        let begins_after = begins_after(deployment, active);
        let Some(lost) = lost else {
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
        let Some(LostEvents {
            lacks,
            count,
            unseen,
            ..
        }) = lost
        else {
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
            .sources
            .get(source)
            .is_some_and(|source| source.on_missing().is_count());
        let is_accepted = accept == MissingEvents::Accept;
        if is_accepted || counts {
            let by = if is_accepted {
                AcceptedBy::Request
            } else {
                AcceptedBy::Source
            };
            let lacks = format!("{lacks}, {}", by.in_words());
            tracing::warn!(
                deployment = deployment.name(),
                lacks,
                "building a state without missing events"
            );
            return Ok(Accepted {
                through,
                lacks: Some(lacks),
                count,
                unseen,
                unknown: None,
                begins_after,
            });
        }
        Err(Error::Refused(format!(
            "{lacks}, so a fold from the beginning would lack them; {advice}"
        )))
    }

    /// Refused if the stream is not the one that the active generation was built from: a fold of
    /// another history would say nothing about this state. Passes while that is unknown.
    pub(crate) async fn check_history(&self, deployment: &Deployment) -> Result<(), Error> {
        match self.other_history(deployment).await {
            Some(other) => Err(Error::Refused(format!("{}: {other}", other.kind()))),
            None => Ok(()),
        }
    }

    /// Why the stream is not the one that the active generation was built from, if that is so.
    async fn other_history(&self, deployment: &Deployment) -> Option<crate::source::Error> {
        // Each `?` means that it is unknown, which refuses nothing.
        let source = deployment.record().active().source.clone();
        let source = self.sources.get(&source)?;
        let checkpoint = deployment.active().store()?.published()?;
        source.contradiction(&checkpoint).await.ok()?
    }

    /// The same for an as-of read. If it begins with a snapshot, what was accepted before is checked
    /// again, if the stream shows its gaps.
    pub(crate) async fn may_look_back(
        &self,
        deployment: &Deployment,
        moment: Moment,
        origin: Origin,
        accept: MissingEvents,
    ) -> Result<Accepted, Error> {
        // Positions of one history mean nothing in another.
        self.check_history(deployment).await?;
        let looked = self.look_back(deployment, moment, origin, accept);
        match looked.await {
            Ok(accepted) => Ok(accepted),
            Err(NoLook::Refused(error)) => Err(error),
            Err(NoLook::Unknown(Unknown(why))) => {
                let accepted = self.weigh(deployment, None, accept, ADVICE).await?;
                Ok(Accepted {
                    unknown: why.map(|why| why.to_string()),
                    ..accepted
                })
            }
        }
    }

    async fn look_back(
        &self,
        deployment: &Deployment,
        moment: Moment,
        origin: Origin,
        accept: MissingEvents,
    ) -> Result<Accepted, NoLook> {
        let record = deployment.record();
        let active = record.active();
        let up_to = match moment {
            Moment::Sequence(sequence) if accept == MissingEvents::Refuse => Some(sequence),
            _ => None,
        };
        let mut lost = self.lost(deployment, active, up_to).await?;
        // Nothing is gone up to the point where the fold ends; later losses do not matter.
        if up_to.is_some() && lost.is_none() {
            return Ok(Accepted {
                begins_after: begins_after(deployment, active),
                unseen: self.unseen(deployment, active).await?,
                ..Accepted::nothing_lost(u64::MAX)
            });
        }
        // A count says nothing about places, so it is the same for all of the range.
        let is_counted = |lost: &Option<LostEvents>| lost.iter().any(|lost| lost.is_counted);
        if up_to.is_some() && !is_counted(&lost) {
            lost = self.lost(deployment, active, None).await?;
        }
        let (has_lost, is_counted) = (lost.is_some(), is_counted(&lost));
        match self.weigh(deployment, Some(lost), accept, ADVICE).await {
            // The loss may lie before the snapshot with which the fold starts, and the reader
            // notices it if it lies after that.
            Err(Error::Refused(_)) if origin == Origin::Snapshot && !is_counted => {
                Ok(Accepted::nothing_lost(0))
            }
            Ok(accepted) if !has_lost => Ok(Accepted {
                unseen: self.unseen(deployment, active).await?,
                ..accepted
            }),
            answer => Ok(answer?),
        }
    }

    /// How many events the active state lacks without a gap in its stream that would show it; 0 if
    /// a new fold counts them itself.
    async fn unseen(&self, deployment: &Deployment, active: &Generation) -> Result<u64, Unknown> {
        let store = deployment.active().store();
        let checkpoint = store.and_then(|store| store.published());
        let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.missing > 0) else {
            return Ok(0);
        };
        let (Some(source), Some(subjects)) =
            (self.sources.get(&active.source), subjects_of(active))
        else {
            return Ok(0);
        };
        // Only a stream whose gaps say nothing is counted, and none has this many events.
        let beyond = Had {
            after: 0,
            through: 0,
            without: &[],
            subjects: &subjects,
            events: Some((u64::MAX, checkpoint.position)),
        };
        let lost = source.lost(&beyond).await.map_err(Unknown::because)?;
        let is_counted = lost.is_some_and(|lost| lost.is_counted);
        Ok(if is_counted { checkpoint.missing } else { 0 })
    }

    /// Adds to the reason of a new deployment what its stream has already lost, if that is
    /// accepted.
    pub(crate) async fn explain_new(
        &self,
        name: &str,
        generation: &Generation,
        reason: String,
    ) -> String {
        let Some(source) = self.sources.get(&generation.source) else {
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
        let Some(subjects) = subjects_of(generation) else {
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
            whose,
            ..
        })) = source.lost(&nothing_yet).await
        else {
            return reason;
        };
        let gone = match whose {
            Whose::Own => "gone",
            Whose::PerhapsOthers => "gone (some perhaps of other subjects)",
        };
        let by = if counts {
            AcceptedBy::Source
        } else {
            AcceptedBy::Request
        };
        let lacks = format!("{missing} {gone} from stream {stream}, {}", by.in_words());
        tracing::warn!(
            deployment = name,
            lacks,
            "building a state without missing events"
        );
        format!("{reason}; {lacks}")
    }

    /// The current last sequence of a source, if missing events up to there are accepted; 0 if not.
    pub(crate) async fn accepts_from(
        &self,
        source: &str,
        accept: MissingEvents,
    ) -> Result<u64, Error> {
        match accept {
            MissingEvents::Accept => self.end_of(source).await,
            MissingEvents::Refuse => Ok(0),
        }
    }

    /// The current last sequence of a source: missing events up to there are accepted.
    pub(crate) async fn end_of(&self, source: &str) -> Result<u64, Error> {
        self.sources.known(source)?.info().await.last_sequence.ok_or_else(|| {
            Error::NotOpen(format!(
                "source {source} can't be reached, so the end of the accepted range is unknown; \
                 try again when it can"
            ))
        })
    }

    /// The applied events of the active generation that the stream has lost; none if it has lost
    /// none. With a sequence, whether anything up to there is gone.
    async fn lost(
        &self,
        deployment: &Deployment,
        active: &Generation,
        up_to: Option<u64>,
    ) -> Result<Option<LostEvents>, Unknown> {
        let source = self.sources.get(&active.source);
        let source = source.ok_or(Unknown(None))?;
        let store = deployment.active().store();
        let Some((checkpoint, skipped)) = store.and_then(|store| {
            let checkpoint = store.published()?;
            Some((checkpoint, store.snapshot().exceptions()))
        }) else {
            // Nothing was applied, so nothing applied can be lost.
            return Ok(None);
        };
        // A state does not have what it skipped: if that is gone, nothing is lost.
        let mut without = checkpoint.passed_over.clone();
        without.extend(skipped.keys().map(|sequence| (*sequence, *sequence)));
        without.sort_unstable();
        let subjects = subjects_of(active).ok_or(Unknown(None))?;
        // Events of other code with other subjects were counted as well.
        let is_known = active.subjects_from == 0 && !active.module.sets_timers;
        let events = checkpoint.events.filter(|_| is_known);
        let had = Had {
            after: began_after(active, &checkpoint),
            // Losses beyond what was applied are none: the active generation does not have those
            // either.
            through: checkpoint.position.min(up_to.unwrap_or(u64::MAX)),
            without: &without,
            subjects: &subjects,
            events: events.map(|events| (events, checkpoint.position)),
        };
        let lost = source.lost(&had).await.map_err(Unknown::because)?;
        let Some(Lost {
            missing,
            stream,
            whose,
            is_counted,
        }) = lost
        else {
            return Ok(None);
        };
        // Events that were already missing when the state passed them were not lost since.
        let passed = match missing.count {
            // The count has all events that the state passed, also those that it does not have.
            Some(count) if is_counted => {
                let skipped: Vec<u64> = skipped.keys().copied().collect();
                gone_of(source, &skipped, count).await?
            }
            _ if up_to.is_some() || is_counted => 0,
            _ => checkpoint.missing,
        };
        // `missing.count` is what is gone now; what was gone then is in the checkpoint.
        let count = missing.count.map(|count| count.saturating_sub(passed));
        if count == Some(0) {
            return Ok(None);
        }
        // Skipped events that were not looked for may be among them.
        let bound = if whose == Whose::PerhapsOthers || (is_counted && skipped.len() > SKIPPED_MAX)
        {
            Bound::AtMost
        } else {
            Bound::Exact
        };
        let lacks = describe(Missing { count, ..missing }, bound, &stream);
        let parts = in_parts(checkpoint.missing_in_parts);
        let count = count.unwrap_or(0);
        Ok(Some(LostEvents {
            lacks: format!("{lacks}{parts}"),
            count,
            unseen: if is_counted {
                checkpoint.missing.saturating_add(count)
            } else {
                0
            },
            is_counted,
        }))
    }
}

/// Applied events that a stream has lost.
struct LostEvents {
    /// In words.
    lacks: String,
    /// How many, at most; 0 if unknown.
    count: u64,
    /// How many events a new fold lacks without noticing it; see [`Accepted::unseen`].
    unseen: u64,
    /// Whether they were counted, because the gaps of the stream say nothing.
    is_counted: bool,
}

/// It is unknown what a stream has lost; why, if there is a stream to look at.
struct Unknown(Option<LookError>);

impl Unknown {
    fn because(error: LookError) -> Self {
        Self(Some(error))
    }
}

/// Why there is no answer to what an as-of read may lack.
enum NoLook {
    Refused(Error),
    Unknown(Unknown),
}

impl From<Error> for NoLook {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Unknown> for NoLook {
    fn from(unknown: Unknown) -> Self {
        Self::Unknown(unknown)
    }
}

/// The subjects that a generation reads.
fn subjects_of(generation: &Generation) -> Option<SubjectSet> {
    let subjects = &generation.module.subjects;
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    SubjectSet::parse(&subjects).ok()
}

/// How many of some skipped events a stream no longer has, up to a number. Beyond the first
/// [`SKIPPED_MAX`], all count as still there.
async fn gone_of(source: &Source, skipped: &[u64], at_most: u64) -> Result<u64, Unknown> {
    let mut gone = 0;
    for sequence in skipped.iter().take(SKIPPED_MAX) {
        if gone == at_most {
            break;
        }
        let found = source.event(*sequence).await.map_err(Unknown::because)?;
        gone += u64::from(found.is_err());
    }
    Ok(gone)
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
pub(crate) fn lacking(ours: &Snapshot, theirs: &Snapshot, decided: &Skips) -> Option<u64> {
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
pub(crate) fn lacking_in_words(count: u64, stream: &str) -> String {
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

/// What a count says.
#[derive(Clone, Copy)]
enum Bound {
    Exact,
    /// Some may be no events of the state.
    AtMost,
}

fn describe(missing: Missing, bound: Bound, stream: &str) -> String {
    let Missing { from, to, count } = missing;
    let events = match count {
        None => "an unknown number of events".to_owned(),
        Some(count) => {
            let at_most = match bound {
                Bound::Exact => "",
                Bound::AtMost => "up to ",
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_reported_as_exactly_as_it_is_known() {
        let described =
            |from, to, count, bound| describe(Missing { from, to, count }, bound, "ORDERS");
        assert_eq!(
            described(7, 7, Some(1), Bound::Exact),
            "1 event that was applied is gone from stream ORDERS (7)"
        );
        assert_eq!(
            described(1, 90, Some(20), Bound::Exact),
            "20 events that were applied are gone from stream ORDERS (between 1 and 90)"
        );
        assert_eq!(
            described(7, 7, Some(1), Bound::AtMost),
            "up to 1 event that was applied is gone from stream ORDERS (7)"
        );
    }
}
