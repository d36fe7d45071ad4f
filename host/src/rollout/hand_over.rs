//! Hand-over: in a cut-over or a rollback of a handler, its effects pass to the state file of the
//! other generation.
//!
//! The new owner's file is prepared with everything that waits, while both generations are held at
//! one position. The commit of the catalogue that changes the active generation also names the new
//! owner. Only after that the old owner's file lets go. Until the commit the old owner sends as if
//! nothing had been begun, and after it the new one does: at no moment both, and none only while
//! the hand-over runs.

use std::sync::Arc;

use super::Rollouts;
use crate::actor::blocking;
use crate::deployment::Deployment;
use crate::deployments::{Error, Role, crash_points, owners, with_headroom};
use crate::effects::{Lineage, OwnerMismatch};
use crate::pipeline::NO_LEASH;
use crate::room::Use;
use crate::runner::Runner;
use crate::state::catalogue::{Catalogue, HandlerRecord, Record};
use crate::state::{self, Agreed, Agreement, Mark, Prepared, Store};

/// Differences that are left for the time during which both generations are held.
const LEFT_MAX: usize = 1_000;
/// The same in bytes.
const LEFT_BYTES_MAX: u64 = 4 << 20;
/// How often the outbox is copied before that, if it changes a lot meanwhile.
const WALKS_MAX: usize = 3;

/// A hand-over that has begun. Dropping it before the commit of the catalogue leaves everything to
/// the old owner.
pub(super) struct HandOver {
    deployment: String,
    from: Arc<Runner>,
    to: Arc<Runner>,
    /// Whether both read the same stream, so that their positions can be compared.
    is_same_history: bool,
    /// The owner is gone, so nothing of it passes.
    is_from_gone: bool,
    /// The new owner was built from the stream, and not from what the old one had seen.
    is_candidate: bool,
    /// What the new owner did to have the timers that are pending, although events are gone.
    agreed: Agreed,
    /// Timers that were pending for a stream that is gone, and end with it.
    ended_timers: u64,
    /// The catalogue's row of the handler after it.
    next: HandlerRecord,
    /// The new owner's state, and what it is prepared for.
    prepared: Option<(Store, Prepared)>,
}

impl Drop for HandOver {
    fn drop(&mut self) {
        // Whatever happened: a runner sends only what it owns, by the catalogue and by its file.
        self.to.end_preparing();
        self.from.send_effects();
    }
}

/// Who owns effects after a hand-over, and from whom they come.
#[derive(Clone, Copy)]
pub(super) struct Heir<'a> {
    pub(super) from: &'a Arc<Runner>,
    pub(super) to: &'a Arc<Runner>,
    /// The number of the new owner's file.
    pub(super) state_file: u64,
}

/// Begins to hand effects over, if there are any: copies most of what waits, and stops sending.
/// The caller holds the deployment's lock.
pub(super) async fn begin(
    rollouts: &Rollouts,
    deployment: &Deployment,
    heir: Heir<'_>,
    continues_after: Option<u64>,
) -> Result<Option<HandOver>, Error> {
    let Heir {
        from,
        to,
        state_file,
    } = heir;
    let Some(handler) = deployment.with_record(|record| record.handler.clone()) else {
        return Ok(None);
    };
    if let Some(after) = continues_after {
        // What an owner of a history that is gone still has leaves first.
        if let Some(ours) = from.store().filter(|_| from.has_diverged()) {
            check_nothing_waits(deployment.name(), &ours)?;
        }
        return Ok(Some(succeed(deployment, handler, heir, after)));
    }
    let name = deployment.name().to_owned();
    // Both files must be open: rows are copied from one to the other.
    let (ours, theirs) = stores(&name, from, to)?;
    if ours.ownership() != Some(owners::ownership(&handler)) {
        return Err(owners::lost(&name, from));
    }
    let is_same_history = to.is_of_same_stream(from);
    // The owner may have noticed only after the candidate was recorded.
    if !is_same_history && from.has_diverged() {
        return Err(owners::of_another_history(&name));
    }
    // Places in another stream are other places: an id must not mean two effects.
    let lineage = if is_same_history {
        handler.lineage
    } else {
        Lineage(rand::random())
    };
    let effects_after = if is_same_history {
        handler.effects_after
    } else {
        0
    };
    // The next epoch marks later files: whichever has the highest one is the newest owner.
    let epoch = handler.epoch + 1;
    let next = HandlerRecord {
        state_file,
        epoch,
        effects_after,
        ..handler.continued_as(lineage)
    };
    let owner = owners::ownership(&next);
    let built = to.program().generation;
    let is_candidate = deployment.with_record(|record| {
        let built = record.generation(built);
        built.is_some_and(|built| built.status.is_candidate())
    });
    let hand_over = HandOver {
        deployment: name.clone(),
        from: Arc::clone(from),
        to: Arc::clone(to),
        is_same_history,
        is_from_gone: false,
        is_candidate,
        agreed: Agreed::default(),
        ended_timers: 0,
        next,
        prepared: None,
    };
    if !is_same_history {
        // Before anything is held: an attempt after the other would keep them from leaving.
        check_nothing_waits(&name, &ours)?;
    }
    // Until it is dropped, a reopened file keeps what it is prepared for.
    to.begin_preparing();
    let (room, waiting) = (rollouts.room.clone(), ours.waiting_effects());
    let (source, target) = (ours.clone(), theirs.clone());
    blocking(move || {
        let state::Waiting { entries, bytes, .. } = waiting;
        let what = format!("{entries} messages of {bytes} bytes wait and must be copied");
        room.check(Use::Write, with_headroom(bytes))
            .map_err(Error::no_room(what))?;
        // Most of the copying happens here, while the old owner still sends.
        Ok::<_, Error>(copy_ahead(&source, &target, owner)?)
    })
    .await
    .inspect_err(|_| to.reopen_if_failed())?;
    // From here on nothing leaves, so the outbox only grows by what is handled.
    from.hold_effects().await;
    // Again: something may have been decided during the copy.
    if !is_same_history {
        check_nothing_waits(&name, &ours)?;
    }
    crash_points::reached("hand-over-copied");
    Ok(Some(hand_over))
}

/// The hand-over of an owner that is gone: nothing passes but the right to publish, for the events
/// after a position.
fn succeed(
    deployment: &Deployment,
    handler: HandlerRecord,
    heir: Heir<'_>,
    after: u64,
) -> HandOver {
    let Heir {
        from,
        to,
        state_file,
    } = heir;
    // Also later than what another file says of itself.
    let other = from.store().and_then(|store| store.ownership());
    let epoch = handler
        .epoch
        .max(other.map_or(0, |other| other.epoch))
        .saturating_add(1);
    to.begin_preparing();
    // As in another hand-over: places in another stream are other places.
    let (lineage, effects_after) = if from.has_diverged() {
        (Lineage(rand::random()), after)
    } else {
        (handler.lineage, handler.effects_after.max(after))
    };
    HandOver {
        deployment: deployment.name().to_owned(),
        from: Arc::clone(from),
        to: Arc::clone(to),
        is_same_history: to.is_of_same_stream(from),
        is_from_gone: true,
        is_candidate: true,
        agreed: Agreed::default(),
        ended_timers: owners::timers_of_gone_stream(from),
        next: HandlerRecord {
            state_file,
            epoch,
            effects_after,
            ..handler.continued_as(lineage)
        },
        prepared: None,
    }
}

/// Refuses a hand-over to another history while messages wait: their ids would mean something else
/// there.
fn check_nothing_waits(name: &str, from: &Store) -> Result<(), Error> {
    let waiting = from.waiting_effects();
    let left = waiting.entries;
    if left == 0 {
        return Ok(());
    }
    let decided = if waiting.delayed + waiting.conflicts > 0 {
        format!(
            "; {} of them wait for a time and {} are in conflict: `foldstream outbox send` or `drop` \
             decides about them at once",
            waiting.delayed, waiting.conflicts
        )
    } else {
        String::new()
    };
    Err(Error::Conflict(format!(
        "{left} messages of {name} wait to be published, and their ids belong to the stream that is \
         gone; the candidate takes over when they are published (`foldstream show {name}` says what \
         keeps them){decided}"
    )))
}

/// Copies what waits, until little is left to copy. Most outboxes have little.
fn copy_ahead(from: &Store, to: &Store, owner: state::Ownership) -> Result<(), state::Error> {
    let waiting = from.waiting_effects();
    // What is little is copied by `prepare_to_own` alone, in one commit.
    if waiting.entries <= LEFT_MAX as u64 && waiting.bytes <= LEFT_BYTES_MAX {
        return Ok(());
    }
    // Each walk copies what changed during the one before; a busy outbox never comes to rest.
    for _ in 0..WALKS_MAX {
        let (mut after, mut changed, mut bytes) = (None, 0, 0);
        loop {
            let copied = to.copy_effects(from, owner, after.as_ref())?;
            changed += copied.changed;
            bytes += copied.bytes;
            after = copied.last;
            if after.is_none() {
                break;
            }
        }
        // Little enough for the hold. After the last walk the rest is copied in the hold, whatever
        // its size.
        if changed <= LEFT_MAX && bytes <= LEFT_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

fn stores(name: &str, from: &Runner, to: &Runner) -> Result<(Store, Store), Error> {
    match (from.store(), to.store()) {
        (Some(from), Some(to)) => Ok((from, to)),
        _ => Err(not_open(name)),
    }
}

fn not_open(name: &str) -> Error {
    Error::NotOpen(format!(
        "a state of {name} is not open, so its effects can't change hands; try again"
    ))
}

/// What a candidate that lacks events did about timers; none if nothing.
fn timers_in_words(agreed: Agreed) -> Option<String> {
    let timers = owners::counted_timers;
    let Agreed { fired, kept, ended } = agreed;
    let mut parts = Vec::new();
    if fired > 0 {
        parts.push(format!(
            "{} that had fired or were cancelled left out",
            timers(fired)
        ));
    }
    if kept > 0 {
        parts.push(format!("{} that it lacked kept", timers(kept)));
    }
    if ended > 0 {
        parts.push(format!(
            "{} that its code does not set ended",
            timers(ended)
        ));
    }
    (!parts.is_empty()).then(|| format!("; without missing events: {}", parts.join(", ")))
}

impl HandOver {
    /// Prepares the new owner's file. Both are held at a position.
    pub(super) async fn prepare(&mut self, position: u64) -> Result<(), Error> {
        if self.is_from_gone {
            return self.prepare_alone(position).await;
        }
        let (from, to) = stores(&self.deployment, &self.from, &self.to)?;
        let durable = |store: &Store| {
            store
                .checkpoint()
                .map_or(0, |checkpoint| checkpoint.position)
        };
        // Durable, not published: a crash must find both at this position.
        let positions = (durable(&from), durable(&to));
        if self.is_same_history && positions != (position, position) {
            return Err(Error::Conflict(format!(
                "the active generation of {} is at {}, and the other at {}; effects change hands \
                 at one position only, so try again",
                self.deployment, positions.0, positions.1
            )));
        }
        self.agree_on_timers((&from, &to)).await?;
        let owner = owners::ownership(&self.next);
        let target = to.clone();
        let prepared = blocking(move || target.prepare_to_own(&from, owner))
            .await
            .inspect_err(|_| self.to.reopen_if_failed())?;
        self.prepared = Some((to, prepared));
        self.next.owned_after = position;
        crash_points::reached("hand-over-prepared");
        Ok(())
    }

    /// Gives a candidate whose stream has lost events the timers that the old owner has pending. Its
    /// fold has not met firings that are gone, and would fire their timers again.
    async fn agree_on_timers(&mut self, (from, to): (&Store, &Store)) -> Result<(), Error> {
        let lacks = to.published().is_some_and(|known| known.missing > 0);
        if !(lacks && self.is_candidate && self.is_same_history)
            || from.pending_timers() + to.pending_timers() == 0
        {
            return Ok(());
        }
        // They are changed in the file, so nothing may wait for a commit.
        if !(from.is_durable() && to.is_durable()) {
            return Err(Error::Conflict(format!(
                "timers of {} change hands once everything is on disk; try again",
                self.deployment
            )));
        }
        let code = |runner: &Runner| {
            let module = runner.program().module;
            module.ok().map(|module| module.info().digest.clone())
        };
        let last = from.published().and_then(|known| known.last_event);
        let agreement = match (code(&self.from), code(&self.to)) {
            (Some(before), Some(now)) if before == now => Agreement::Whole,
            // What is due after the last event has not fired either.
            _ => Agreement::DueUntil(last.map_or(0, |event| event.time_ns)),
        };
        let (source, target) = (from.clone(), to.clone());
        self.agreed = blocking(move || target.agree_on_timers(&source, agreement))
            .await
            .inspect_err(|_| self.to.reopen_if_failed())?;
        self.log_timers();
        Ok(())
    }

    /// What became of timers, to add to a message; none if nothing.
    fn timers(&self) -> Option<String> {
        if self.ended_timers == 0 {
            return timers_in_words(self.agreed);
        }
        let timers = owners::counted_timers(self.ended_timers);
        Some(format!(
            "; {timers} of the stream that is gone ended, and will not fire"
        ))
    }

    fn log_timers(&self) {
        if let Some(words) = self.timers() {
            tracing::warn!(
                deployment = self.deployment,
                "a generation takes over{words}"
            );
        }
    }

    /// Prepares the file of the new owner without the old one. It is held at a position.
    async fn prepare_alone(&mut self, position: u64) -> Result<(), Error> {
        let to = self.to.store().ok_or_else(|| not_open(&self.deployment))?;
        let owner = owners::ownership(&self.next);
        // Nobody knows what is stored: each stream that keeps its messages is read from its
        // beginning.
        let targets = self.next.grants.iter().map(|grant| grant.source.clone());
        let marks = targets.map(|target| (target, Mark::default())).collect();
        let target = to.clone();
        let prepared = blocking(move || target.prepare_to_own_nothing(owner, marks))
            .await
            .inspect_err(|_| self.to.reopen_if_failed())?;
        self.prepared = Some((to, prepared));
        self.next.owned_after = position;
        self.log_timers();
        crash_points::reached("hand-over-prepared");
        Ok(())
    }

    /// Names the new owner in the record that is about to be committed, and says there what became of
    /// timers.
    pub(super) fn name_owner(&self, record: &mut Record) {
        record.handler = Some(self.next.clone());
        if let Some(words) = self.timers() {
            record.active_mut().reason.push_str(&words);
        }
    }

    /// Finds out what the catalogue says after its commit failed: an error if it still names the
    /// old owner.
    pub(super) async fn look_up(
        &self,
        catalogue: Arc<Catalogue>,
        error: state::Error,
    ) -> Result<(), Error> {
        let name = self.deployment.clone();
        let found = blocking(move || catalogue.deployments()).await;
        let found = found.map(|records| records.into_iter().find(|record| record.name == name));
        match found {
            // The commit was durable although it reported an error.
            Ok(Some(record)) if record.handler.as_ref() == Some(&self.next) => Ok(()),
            Ok(Some(_)) => Err(error.into()),
            Ok(None) | Err(_) => {
                // Either may be the owner, so neither is.
                let role = Err(OwnerMismatch::new(format!(
                    "the catalogue can't be read after a failed commit ({error}), so it is unknown \
                     which state owns the effects of {}; nothing is handled or published; correct \
                     that, and restart the host",
                    self.deployment
                )));
                // The role of the runner stays an error until the host starts and reads the
                // catalogue again.
                self.from.change_program(|program| program.role = role);
                Err(error.into())
            }
        }
    }

    /// Passes the effects on in memory, after the commit of the catalogue. Both are still held.
    pub(super) fn pass(&mut self, record: &Record, position: u64) {
        let (store, prepared) = self
            .prepared
            .take()
            .expect("it was prepared before the commit");
        let ownership = owners::ownership(&self.next);
        // The old owner first, so that at no moment both could make an effect.
        self.from.set_leash(position);
        self.from.fall_silent(ownership);
        if let Some(from) = self.from.store() {
            // Whatever becomes of the record in its file: a full outbox would stop it for ever.
            from.disown();
        }
        let role = owners::role(record, record.active(), Role::TAKES_OVER);
        self.to.outbox().continues(self.from.outbox());
        self.to.own_effects(role, ownership, &store, prepared);
        self.to.set_leash(NO_LEASH);
    }

    /// Records in both files what the catalogue says. What fails here is made up for when the files
    /// are opened again.
    pub(super) async fn complete(&self) {
        let (from, to) = (self.from.store(), self.to.store());
        let recorded = blocking(move || {
            // A crash between the two is settled when the files are opened again
            // (`settle_ownership`).
            let Some(to) = to else { return Ok(()) };
            to.confirm_ownership()?;
            crash_points::reached("hand-over-confirmed");
            from.map_or(Ok(()), |from| from.let_go())
        });
        if let Err(error) = recorded.await {
            tracing::warn!(
                deployment = self.deployment,
                %error,
                "a hand-over could not be recorded in a state file yet"
            );
            // A store that failed once is not used again.
            self.to.reopen_if_failed();
            self.from.reopen_if_failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::{self, Delivery, Effect, Grants, Owner, Place, Row};
    use crate::event::Payload;
    use crate::position::{Checkpoint, StreamIdentity};

    #[test]
    fn few_large_messages_are_copied_before_anything_is_held() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let owner = |epoch| state::Ownership {
            lineage: Lineage(7),
            epoch,
        };
        let one = folder.path().join("1.redb");
        state::create_owned(&one, owner(1)).expect("is created");
        let open = |path: &std::path::Path| {
            Store::open(path, state::Options::default(), |_| ()).expect("the state opens")
        };
        let ((from, mut writer), (to, _writer)) = (open(&one), open(&folder.path().join("2.redb")));
        writer.set_role(effects::Role::Owner(Arc::new(Owner {
            deployment: "test".to_owned(),
            lineage: Lineage(7),
            epoch: 1,
            effects_after: 0,
            timers_after: 0,
            grants: Grants::default(),
            publishes: Arc::default(),
            logs: Arc::default(),
        })));
        for sequence in 1..=12 {
            writer.begin();
            let effect = Effect {
                subject: "out".to_owned(),
                kind: "out".to_owned(),
                headers: Vec::new(),
                data: Payload::from("x".repeat(1 << 20)),
                key: String::new(),
                delivery: Delivery::default(),
            };
            let place = Place {
                sequence,
                sub: 0,
                index: 0,
            };
            let row = Row {
                target: "out".to_owned(),
                place,
                turn: None,
                made_ns: 1,
                effect,
            };
            writer.emit(&row).expect("within limits");
            let stream = StreamIdentity {
                name: "s".to_owned(),
                created_ns: 1,
            };
            writer.publish(Checkpoint::at(sequence, stream));
        }
        from.flush().expect("commits");
        copy_ahead(&from, &to, owner(2)).expect("copies");
        let left = to.copy_effects(&from, owner(2), None).expect("copies");
        assert_eq!((left.changed, left.last), (0, None));
    }
}
