//! What a candidate lacks of the active generation, which a cut-over checks.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Rollouts;
use crate::deployments::Error;
use crate::history::{OnlyCopies, lacking, lacking_in_words, only_copies};
use crate::runner::Runner;
use crate::state::Store;
use crate::state::catalogue::{Generation, Record};

/// Parked events of the active state that a candidate has applied or parked as well, for sure.
pub(super) type Kept = BTreeSet<u64>;

/// A candidate that is checked before it takes over.
pub(super) struct Checked<'a> {
    pub(super) rollouts: &'a Rollouts,
    pub(super) record: &'a Record,
    pub(super) next: &'a Generation,
    pub(super) active: &'a Arc<Runner>,
    pub(super) candidate: &'a Arc<Runner>,
}

impl Checked<'_> {
    /// Refuses a candidate that lacks events of the active generation because the stream has lost
    /// them without showing it, unless that is accepted; then they are counted. Both are held.
    pub(super) async fn check_lacking(&self) -> Result<(), Error> {
        let (record, next) = (self.record, self.next);
        let active = record.active();
        let is_comparable = next.source == active.source
            && next.start == active.start
            && active.subjects_from == 0
            && self.candidate.applies_same_events(self.active);
        let (Some(ours), Some(theirs)) = self.stores() else {
            return Ok(());
        };
        let (ours, theirs) = (ours.snapshot(), theirs.snapshot());
        let lacking = lacking(&ours, &theirs, &record.skips());
        let (Some(lacking @ 1..), Some(source)) = (
            lacking.filter(|_| is_comparable),
            self.rollouts.sources.get(&active.source),
        ) else {
            return Ok(());
        };
        let lacks = lacking_in_words(lacking, &source.stream());
        if !next.may_lack() && !source.on_missing().is_count() {
            return Err(Error::Lacking {
                events: lacking,
                message: format!(
                    "{lacks}, and generation {} lacks them; accept that with `foldstream resume \
                     {name} --candidate --accept-missing`, or keep the existing state with \
                     `foldstream abort {name}`",
                    next.number,
                    name = record.name
                ),
            });
        }
        tracing::warn!(
            deployment = record.name,
            generation = next.number,
            lacks,
            "a generation takes over without missing events, as accepted"
        );
        let missing = ours.checkpoint().map_or(0, |known| known.missing);
        self.candidate.note_missing(missing + lacking).await?;
        Ok(())
    }

    /// Looks before the hold for parked events of which the active state may have the only copy,
    /// because each look is an answer of the source, and may take long; none if there is no reason
    /// to look.
    pub(super) async fn kept_before_hold(&self) -> Result<Option<Kept>, Error> {
        let (Some(ours), Some(theirs)) = self.stores() else {
            return Ok(None);
        };
        if !self.may_lack_parked(&ours, &theirs) {
            return Ok(None);
        }
        let passed = theirs.position();
        let parked = ours.parked_sequences();
        self.check_copies((&ours, &theirs), &Kept::new()).await?;
        // What the stream still had when the candidate had passed it, the candidate has met.
        let kept = parked.into_iter().filter(|one| *one <= passed);
        Ok(Some(kept.collect()))
    }

    /// Refuses a candidate that lacks parked events of the active state because the stream has lost
    /// them since it was requested, unless that is accepted: the state before has their only copy.
    /// Both are held, so only those are looked for that were not `kept` before.
    pub(super) async fn check_only_copies(&self, kept: Option<Kept>) -> Result<(), Error> {
        let (Some(ours), Some(theirs)) = self.stores() else {
            return Ok(());
        };
        if !self.may_lack_parked(&ours, &theirs) {
            return Ok(());
        }
        let Some(kept) = kept else {
            return Err(Error::NotOpen(
                "the stream has lost events a moment ago, and whether parked ones are among them \
                 is unknown; try again"
                    .to_owned(),
            ));
        };
        self.check_copies((&ours, &theirs), &kept).await
    }

    /// The states of the active generation and of the candidate, if they are open.
    fn stores(&self) -> (Option<Store>, Option<Store>) {
        (self.active.store(), self.candidate.store())
    }

    /// Whether the candidate may lack parked events of the active state, and must not.
    fn may_lack_parked(&self, ours: &Store, theirs: &Store) -> bool {
        let missing = |store: &Store| store.published().map_or(0, |known| known.missing);
        // One that has met no more gaps has applied them while the stream had them.
        !self.next.may_lack()
            && self.next.source == self.record.active().source
            && missing(theirs) > missing(ours)
            && ours.parked_counts().keys > 0
    }

    /// Refuses the candidate if the active state has the only copy of parked events.
    async fn check_copies(
        &self,
        (ours, theirs): (&Store, &Store),
        kept: &Kept,
    ) -> Result<(), Error> {
        let active = self.record.active();
        let Some(source) = self.rollouts.sources.get(&active.source) else {
            return Ok(());
        };
        let parked_there = theirs.parked_sequences();
        let has_copy = |one| kept.contains(&one) || parked_there.contains(&one);
        let copies = only_copies(source, active, ours, has_copy).await;
        let copies = copies.map_err(|error| {
            Error::Conflict(format!(
                "events are parked, and whether the stream still has them is unknown: {error}"
            ))
        })?;
        let Some(copies) = copies else {
            return Ok(());
        };
        Err(Error::Lacking {
            events: copies.count,
            message: format!(
                "{}; {}, and rebuild again, or accept that generation {} lacks them with \
                 `foldstream resume {name} --candidate --accept-missing`",
                copies.explain(&source.stream()),
                OnlyCopies::way_out(&self.record.name),
                self.next.number,
                name = self.record.name
            ),
        })
    }
}
