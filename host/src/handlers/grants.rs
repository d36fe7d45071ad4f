//! What a handler may publish, and from which event on.

use std::sync::Arc;

use super::Handlers;
use crate::deployment::Deployment;
use crate::deployments::{Error, Role, owners};
use crate::effects::{self, EffectsFrom, Grants, Lineage, overlap};
use crate::module::{Module, ModuleKind};
use crate::state::catalogue::{Generation, HandlerRecord};
use crate::subject::{Pattern, SubjectSet};

const FIRST_EPOCH: u64 = 1;

/// What a deploy says about the effects of a handler.
#[derive(Clone, Debug, Default)]
pub struct EffectsRequest {
    /// What it may publish; absent: what it may already, or nothing.
    pub grants: Option<Grants>,
    /// From which event on a new handler publishes.
    pub from: Option<EffectsFrom>,
}

impl Handlers {
    /// The first owner of a new handler; none for a projection.
    pub(crate) async fn first_owner(
        &self,
        module: &Module,
        source: &str,
        request: &EffectsRequest,
    ) -> Result<Option<HandlerRecord>, Error> {
        if module.kind() == ModuleKind::Projection {
            refuse_options(request)?;
            return Ok(None);
        }
        // Before the record exists: a deploy that is refused leaves nothing behind.
        let grants = request.grants.clone().unwrap_or_default();
        self.check_grants(&grants, &module.manifest().subjects, source)?;
        let effects_after = match request.from.unwrap_or_default() {
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
            begun_as: None,
        }))
    }

    /// The reason of a first deploy, with what the handler may publish.
    pub(crate) fn explain_first(handler: Option<&HandlerRecord>, mut reason: String) -> String {
        let grants = handler.map(|handler| handler.grants.clone());
        let difference = difference(&Grants::default(), &grants.unwrap_or_default());
        if !difference.is_empty() {
            reason.push_str(&format!("; grants: {difference}"));
        }
        reason
    }

    /// The position after which a candidate publishes in place of an owner that is gone, as an
    /// operator accepts, and what that means.
    pub(crate) async fn give_up_effects(
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
        if !owners::is_owner_gone(&record, &deployment.active()) {
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
        let given_up = if deployment.active().has_diverged() {
            let timers = match owners::timers_of_gone_stream(&deployment.active()) {
                0 => String::new(),
                pending => format!(
                    "; {} of the stream that is gone, still pending, will not fire",
                    owners::counted_timers(pending)
                ),
            };
            format!(
                "its stream was made again; it takes over once nothing of the old one waits to be \
                 published, and publishes for events of the new one after {after}{timers}"
            )
        } else {
            format!(
                "the state that owned its effects is lost, and with it what waited to be published \
                 for events up to {after}; it publishes for events after {after}, and what a \
                 stream does not recognise of that is there twice"
            )
        };
        Ok((after, given_up))
    }

    /// The end of a stream. Without it, nobody knows from where on a handler may act.
    async fn head_of(&self, source: &str) -> Result<u64, Error> {
        let info = self.sources.known(source)?.info().await;
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
    pub(crate) async fn regrant(
        &self,
        deployment: &Arc<Deployment>,
        (module, source): (&Module, &str),
        request: &EffectsRequest,
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
        if request.from.is_some() {
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
        let role = owners::role(&record, record.active(), Role::TAKES_OVER);
        self.deployments
            .commit(deployment, record, "grant", difference.clone())
            .await?;
        // After the commit, which a restart reads; the owner itself is the same.
        deployment
            .active()
            .change_program(|program| program.role = role);
        reason.push_str(&format!("; grants: {difference}"));
        Ok(reason)
    }

    /// Refuses grants with which the code of a generation would feed itself.
    pub(crate) fn check_grants_of(
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
            let target = self.sources.known(&grant.source)?;
            if is_reply(&grant.subjects) && !target.takes_replies() {
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
        let own = self.sources.get(source);
        for grant in grants.iter() {
            // A source may publish under another name into the stream that it reads.
            let target = self.sources.get(&grant.source);
            let is_own = grant.source == source
                || own
                    .zip(target)
                    .is_some_and(|(own, target)| own.has_stream_of(target));
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

fn refuse_options(request: &EffectsRequest) -> Result<(), Error> {
    let option = match (&request.grants, &request.from) {
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
