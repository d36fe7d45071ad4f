//! Handlers: who owns the effects of a deployment, and what it may publish.
//!
//! A handler's effects belong to one state file, that of its active generation; a cut-over passes
//! them to another (`hand_over.rs`). Every other fold (candidate, previous generation, scratch,
//! partial rebuild) is mute.

use std::sync::Arc;

use super::{DeployRequest, Error, Role, Rollouts};
use crate::api::EffectsFrom;
use crate::data_dir::DataDir;
use crate::deployment::Deployment;
use crate::effects::{self, Grants, Lineage, Owner, OwnerMismatch, overlap};
use crate::module::{Kind, Module};
use crate::runner::Runner;
use crate::source::Source;
use crate::state::catalogue::{Generation, HandlerRecord, Record};
use crate::state::{self, Ownership};
use crate::storage;
use crate::subject::{Pattern, SubjectSet};

const FIRST_EPOCH: u64 = 1;

/// Whether the effects of a fold are sent. Only the catalogue makes an owner.
pub(super) fn role(
    record: &Record,
    generation: &Generation,
    role: Role,
) -> Result<effects::Role, OwnerMismatch> {
    // Only the active generation may send; followers and candidates are mute until a cut-over.
    let serves = matches!(role, Role::Serve { .. });
    if generation.module.kind != Kind::Handler.name() || !serves {
        return Ok(effects::Role::Mute);
    }
    let name = &record.name;
    // Without a row nobody knows what was sent, so nothing may be.
    let Some(handler) = &record.handler else {
        return Err(OwnerMismatch::new(format!(
            "the catalogue does not say who owns the effects of {name}; restore catalog.redb from \
             a backup, or delete {name} and deploy it again"
        )));
    };
    if handler.state_file != generation.state_file {
        return Err(OwnerMismatch::new(format!(
            "state file {} owns the effects of {name}, and file {} is active; restore catalog.redb \
             from a backup",
            handler.state_file, generation.state_file
        )));
    }
    Ok(effects::Role::Owner(Arc::new(Owner {
        deployment: name.clone(),
        lineage: handler.lineage,
        epoch: handler.epoch,
        // Effects of earlier events were the former owner's.
        effects_after: handler.effects_after.max(handler.owned_after),
        // Timers that were set before a hand-over pass on, so only the time before the first deploy
        // counts.
        timers_after: handler.effects_after,
        grants: handler.grants.clone(),
        // The runner knows them.
        logs: Arc::default(),
    })))
}

/// The owner that a row of the catalogue names.
pub(super) fn ownership(handler: &HandlerRecord) -> Ownership {
    Ownership {
        lineage: handler.lineage,
        epoch: handler.epoch,
    }
}

/// Creates the state file of a new handler with its owner, before the catalogue names it: a file
/// that is created later, because this one was lost, has no owner and is refused.
pub(super) fn create_file(folder: &DataDir, record: &Record) -> Result<(), Error> {
    let Some(handler) = record
        .handler
        .as_ref()
        .filter(|_| record.next == 2 && record.generations.len() == 1)
    else {
        return Ok(());
    };
    let path = folder.state(&record.name, handler.state_file);
    // Of a deploy that ended before it was recorded.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(state::Error::Storage(storage::Error::of_file(&path, error)).into());
    }
    Ok(state::create_owned(&path, ownership(handler))?)
}

/// Refuses to replace an owner whose state cannot be opened: what waits in it would be lost, and
/// nobody knows what was sent.
pub(super) fn refuse_lost(record: &Record, candidate: &Generation) -> Result<(), Error> {
    if record.handler.is_none() || candidate.lost_effects_after.is_some() {
        return Ok(());
    }
    Err(lost(&record.name))
}

/// Why nobody can take over from an owner whose state cannot be opened.
pub(super) fn lost(name: &str) -> Error {
    Error::Conflict(format!(
        "the state of {name}, which owns its effects, cannot be opened, so nobody knows which \
         messages wait in it; restore it from a backup, or accept their loss with `foldstream \
         rebuild {name} --accept-lost-effects`"
    ))
}

/// Whether the active generation does not own the effects, because its file cannot be opened, or is
/// another one than the catalogue says.
fn is_owner_gone(record: &Record, runner: &Runner) -> bool {
    let Some(handler) = &record.handler else {
        return false;
    };
    // An open file with another owner is, for example, an older copy that was restored.
    let is_other = |store: state::Store| store.ownership() != Some(ownership(handler));
    runner.is_lost() || runner.store().is_some_and(is_other)
}

/// The position after which a candidate continues the effects of an owner that is gone; none if it
/// is not, or if that was not accepted.
pub(super) fn continues_after(
    record: &Record,
    active: &Runner,
    candidate: &Generation,
) -> Option<u64> {
    candidate
        .lost_effects_after
        .filter(|_| is_owner_gone(record, active))
}

/// What a module wants to publish and may not.
pub(crate) fn not_granted(record: &Record) -> Vec<String> {
    let Some(handler) = &record.handler else {
        return Vec::new();
    };
    let is_covered =
        |wanted: &&String| Pattern::parse(wanted).is_ok_and(|wanted| handler.grants.cover(&wanted));
    record
        .active()
        .module
        .publishes
        .iter()
        // Without a grant it does not reply, and does not stop.
        .filter(|wanted| !is_covered(wanted) && !effects::is_reply(wanted))
        .cloned()
        .collect()
}

/// A warning about that, after a deploy.
pub(super) fn not_granted_warning(record: &Record, generation: u64) -> Option<String> {
    let missing = if record.active == generation {
        not_granted(record)
    } else {
        Vec::new()
    };
    if missing.is_empty() {
        return None;
    }
    Some(format!(
        "{} wants to publish to {}, which no grant covers, and stops at the first such message; \
         allow it with --allow-publish 'SUBJECTS@SOURCE'",
        record.name,
        missing.join(", ")
    ))
}

impl Rollouts {
    /// The first owner of a new handler; none for a projection.
    pub(super) async fn first_owner(
        &self,
        module: &Module,
        source: &str,
        request: &DeployRequest,
    ) -> Result<Option<HandlerRecord>, Error> {
        if module.kind() == Kind::Projection {
            refuse_options(request)?;
            return Ok(None);
        }
        // Before the record exists: a deploy that is refused leaves nothing behind.
        let grants = request.grants.clone().unwrap_or_default();
        self.check_grants(&grants, &module.manifest().subjects, source)?;
        let effects_after = match request.effects_from.unwrap_or_default() {
            EffectsFrom::Beginning => 0,
            // The sequence itself is the first that is handled.
            EffectsFrom::Sequence(sequence) => sequence.saturating_sub(1),
            EffectsFrom::Now => self.head_of(source).await?,
        };
        // Random, so that a deployment that is deleted and created again does not repeat old ids.
        let lineage = Lineage(rand::random());
        Ok(Some(HandlerRecord {
            lineage,
            state_file: 1,
            epoch: FIRST_EPOCH,
            effects_after,
            owned_after: 0,
            grants,
        }))
    }

    /// The position after which a candidate publishes in place of an owner that is gone, as an
    /// operator accepts, and what that means.
    pub(super) async fn give_up_effects(
        &self,
        deployment: &Deployment,
        from: EffectsFrom,
    ) -> Result<(u64, String), Error> {
        let record = deployment.record();
        let name = &record.name;
        if record.handler.is_none() {
            return Err(Error::Refused(format!(
                "--accept-lost-effects is for handlers, and {name} is a projection, which \
                 publishes nothing"
            )));
        }
        if !is_owner_gone(&record, &deployment.active()) {
            return Err(Error::Conflict(format!(
                "the state of {name} owns its effects, or it is not known yet that it does not, so \
                 there is no loss to accept; rebuild it without --accept-lost-effects"
            )));
        }
        let after = match from {
            EffectsFrom::Beginning => 0,
            EffectsFrom::Sequence(sequence) => sequence.saturating_sub(1),
            EffectsFrom::Now => self.head_of(&record.active().source).await?,
        };
        // The operator has to know both ends of the gap.
        let given_up = format!(
            "the state that owned its effects is lost, and with it what waited to be published for \
             events up to {after}; it publishes for events after {after}, and what a stream does \
             not recognise of that is there twice"
        );
        Ok((after, given_up))
    }

    /// The end of a stream. Without it, nobody knows from where on a handler may act.
    async fn head_of(&self, source: &str) -> Result<u64, Error> {
        let info = match self.inner.sources.get(source) {
            Some(known) => known.info().await,
            None => return Err(self.inner.no_source(source).into()),
        };
        info.last_sequence.ok_or_else(|| {
            let why = info
                .message
                .unwrap_or_else(|| "it does not answer".to_owned());
            Error::Source(format!(
                "source {source} can't be reached ({why}), so the end of its stream is unknown, \
                 after which the handler would begin to publish; try again, or give --effects-from \
                 beginning or a sequence"
            ))
        })
    }

    /// Replaces the grants of a handler, if the deploy has some, for a module that reads from a
    /// source. Returns the reason with the difference. The caller holds the deployment's lock.
    pub(super) async fn regrant(
        &self,
        deployment: &Arc<Deployment>,
        (module, source): (&Module, &str),
        request: &DeployRequest,
        mut reason: String,
    ) -> Result<String, Error> {
        let mut record = deployment.draft();
        // The active code and the candidate may both publish with the new grants.
        let others: Vec<Generation> = std::iter::once(record.active())
            .chain(record.candidate())
            .cloned()
            .collect();
        let Some(handler) = &mut record.handler else {
            refuse_options(request)?;
            return Ok(reason);
        };
        // It would change the past: which earlier events were handled is decided.
        if request.effects_from.is_some() {
            return Err(Error::Refused(format!(
                "{} exists and publishes for events after {}; --effects-from is for a new \
                 deployment",
                deployment.name(),
                handler.effects_after
            )));
        }
        let grants = request
            .grants
            .clone()
            .unwrap_or_else(|| handler.grants.clone());
        // Also without a change of grants: the module may read other subjects than the one before
        // it.
        self.check_grants(&grants, &module.manifest().subjects, source)?;
        if grants == handler.grants {
            return Ok(reason);
        }
        // The code that is there has them at once, and keeps them until the module takes over.
        for other in &others {
            self.check_grants_of(&grants, other)?;
        }
        let difference = difference(&handler.grants, &grants);
        handler.grants = grants;
        let role = role(&record, record.active(), Role::TAKES_OVER);
        self.commit(deployment, record, "grant", difference.clone())
            .await?;
        // After the commit, which a restart reads; the owner itself is the same.
        deployment
            .active()
            .change_program(|program| program.role = role);
        reason.push_str(&format!("; grants: {difference}"));
        Ok(reason)
    }

    /// Refuses grants with which the code of a generation would feed itself.
    pub(super) fn check_grants_of(
        &self,
        grants: &Grants,
        generation: &Generation,
    ) -> Result<(), Error> {
        // Subjects of a stored module were checked when it was deployed.
        let Ok(subjects) = SubjectSet::parse(&generation.module.subjects) else {
            return Ok(());
        };
        match self.feeds_itself(grants, &subjects, &generation.source) {
            Some(why) => Err(Error::Refused(format!(
                "generation {}: {why}",
                generation.number
            ))),
            None => Ok(()),
        }
    }

    /// Refuses grants for sources that do not exist, and those with which a handler that reads
    /// these subjects would feed itself.
    fn check_grants(
        &self,
        grants: &Grants,
        subjects: &SubjectSet,
        source: &str,
    ) -> Result<(), Error> {
        for grant in grants.iter() {
            if !self.inner.sources.contains_key(&grant.source) {
                return Err(self.inner.no_source(&grant.source).into());
            }
            let target = self.inner.sources.get(&grant.source);
            if is_reply(&grant.subjects) && matches!(target, Some(Source::Embedded(_))) {
                return Err(Error::Refused(format!(
                    "grant `{grant}` is for replies, which leave over NATS, and {} is an embedded \
                     log; name a source of kind `jetstream`",
                    grant.source
                )));
            }
        }
        match self.feeds_itself(grants, subjects, source) {
            Some(why) => Err(Error::Refused(why)),
            None => Ok(()),
        }
    }

    /// Says so if a handler that reads these subjects could publish to them.
    fn feeds_itself(&self, grants: &Grants, subjects: &SubjectSet, source: &str) -> Option<String> {
        let own = self.inner.sources.get(source);
        for grant in grants.iter() {
            // A source may publish under another name into the stream that it reads.
            let target = self.inner.sources.get(&grant.source);
            let is_own = grant.source == source
                || own
                    .zip(target)
                    .is_some_and(|(own, target)| is_same(own, target));
            let read = subjects.patterns().iter().find(|pattern| {
                // No stream stores replies.
                is_own && !is_reply(&grant.subjects) && overlap(pattern, &grant.subjects)
            });
            if let Some(read) = read {
                return Some(format!(
                    "grant `{grant}` would let it publish to {read}, which it reads itself, so it \
                     could cause events without end; narrow the grant, or publish to another \
                     stream"
                ));
            }
        }
        None
    }
}

fn is_reply(subjects: &Pattern) -> bool {
    effects::is_reply(subjects.as_str())
}

/// Whether two sources have the same stream.
fn is_same(one: &Source, other: &Source) -> bool {
    match (one, other) {
        (Source::JetStream(one), Source::JetStream(other)) => one.stream() == other.stream(),
        (Source::Embedded(_), _) | (_, Source::Embedded(_)) => false,
    }
}

fn refuse_options(request: &DeployRequest) -> Result<(), Error> {
    let option = match (&request.grants, &request.effects_from) {
        (None, None) => return Ok(()),
        (Some(_), _) => "--allow-publish",
        (None, Some(_)) => "--effects-from",
    };
    Err(Error::Refused(format!(
        "{option} is for handlers, and the module is a projection, which publishes nothing"
    )))
}

/// What changes, in words.
fn difference(before: &Grants, after: &Grants) -> String {
    let (before, after) = (before.texts(), after.texts());
    let only = |these: &[String], those: &[String], mark: char| -> Vec<String> {
        these
            .iter()
            .filter(|grant| !those.contains(grant))
            .map(|grant| format!("{mark}{grant}"))
            .collect()
    };
    [only(&after, &before, '+'), only(&before, &after, '-')]
        .concat()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_of_grants_is_reported() {
        let before = Grants::parse(&["a.>@one", "b@one"]).expect("sound");
        let after = Grants::parse(&["b@one", "c@two"]).expect("sound");
        assert_eq!(difference(&before, &after), "+c@two, -a.>@one");
    }
}
