//! Who owns the effects of a handler.
//!
//! A handler's effects belong to one state file, that of its active generation; a cut-over passes
//! them to another (`rollout/hand_over.rs`). Every other fold (candidate, previous generation, side
//! fold) is mute.

use std::sync::Arc;

use super::{Error, Role};
use crate::data_dir::DataDir;
use crate::effects::{self, Owner, OwnerMismatch};
use crate::module::ModuleKind;
use crate::runner::Runner;
use crate::state::catalogue::{Generation, HandlerRecord, Record};
use crate::state::{self, Ownership};
use crate::storage;
use crate::subject::Pattern;

/// Whether the effects of a fold are sent. Only the catalogue makes an owner.
pub(crate) fn role(
    record: &Record,
    generation: &Generation,
    role: Role,
) -> Result<effects::Role, OwnerMismatch> {
    // Only the active generation may send; followers and candidates are mute until a cut-over.
    let serves = matches!(role, Role::Serve { .. });
    if generation.module.kind != ModuleKind::Handler || !serves {
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
        publishes: generation.module.publishes.clone().into(),
        // The runner knows them.
        logs: Arc::default(),
    })))
}

/// The owner that a row of the catalogue names.
pub(crate) fn ownership(handler: &HandlerRecord) -> Ownership {
    Ownership {
        lineage: handler.lineage,
        epoch: handler.epoch,
    }
}

/// Creates the state file of a new handler with its owner, before the catalogue names it: a file
/// that is created later, because this one was lost, has no owner and is refused.
pub(crate) fn create_file(folder: &DataDir, record: &Record) -> Result<(), Error> {
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

/// Refuses what needs the owner of the effects of a handler if its state is lost: nobody knows what
/// waits in it, and what was sent.
pub(crate) fn check_owner(record: &Record, active: &Runner) -> Result<(), Error> {
    if is_owner_lost(record, active) {
        return Err(lost(&record.name, active));
    }
    Ok(())
}

/// Refuses to replace an owner whose state is lost by a candidate that does not accept the loss.
pub(crate) fn refuse_lost(
    record: &Record,
    active: &Runner,
    candidate: &Generation,
) -> Result<(), Error> {
    match accepted_after(candidate) {
        Some(_) => Ok(()),
        None => check_owner(record, active),
    }
}

/// Why nobody can take over from an owner whose state is lost.
pub(crate) fn lost(name: &str, active: &Runner) -> Error {
    let accept = format!("`foldstream rebuild {name} --accept-lost-effects`");
    Error::Conflict(if active.store().is_some() {
        format!(
            "the state file of {name} does not own its effects, because it was lost, or it or the \
             catalogue is an older copy, so nobody knows which messages waited and which were \
             sent; restore catalogue and states from one backup, or accept the loss with {accept}"
        )
    } else {
        format!(
            "the state of {name}, which owns its effects, cannot be opened, so the messages that \
             wait in it are unknown; restore it from a backup, or accept their loss with {accept}"
        )
    })
}

/// Why nobody can take over from an owner whose stream was made again, unless an operator says for
/// which events.
pub(crate) fn of_another_history(name: &str) -> Error {
    Error::Conflict(format!(
        "the stream of {name} was deleted and created again; say for which of its events {name} \
         publishes with `foldstream rebuild {name} --accept-missing --accept-lost-effects \
         --effects-from beginning`, or with `now` or a sequence"
    ))
}

/// Whether the active generation does not own the effects, because its file cannot be opened, or is
/// another one than the catalogue says; or owns those of a history that is gone.
pub(crate) fn is_owner_gone(record: &Record, runner: &Runner) -> bool {
    record.handler.is_some() && (runner.has_diverged() || is_owner_lost(record, runner))
}

/// Whether the state that owns the effects of a handler cannot be opened, or the file in its place
/// is another one than the catalogue says.
pub(crate) fn is_owner_lost(record: &Record, runner: &Runner) -> bool {
    let Some(handler) = &record.handler else {
        return false;
    };
    // An open file with another owner is, for example, an older copy that was restored, or one
    // that was created because the file was gone.
    let is_other = |store: state::Store| store.ownership() != Some(ownership(handler));
    runner.is_lost() || runner.store().is_some_and(is_other)
}

/// How many timers are pending in a state whose stream was made again. They were set by events that
/// are gone, and no other state has them.
pub(crate) fn timers_of_gone_stream(runner: &Runner) -> u64 {
    let store = runner.store().filter(|_| runner.has_diverged());
    store.map_or(0, |store| store.pending_timers())
}

/// This many timers, in words.
pub(crate) fn counted_timers(count: u64) -> String {
    match count {
        1 => "1 timer".to_owned(),
        count => format!("{count} timers"),
    }
}

/// The position after which a candidate continues the effects of an owner that is gone; none if it
/// is not, or if that was not accepted.
pub(crate) fn continues_after(
    record: &Record,
    active: &Runner,
    candidate: &Generation,
) -> Option<u64> {
    accepted_after(candidate).filter(|_| is_owner_gone(record, active))
}

/// The position after which a candidate may continue the effects of an owner that is gone. What was
/// accepted for the candidate concerns no later loss: not one before a rollback to it.
fn accepted_after(candidate: &Generation) -> Option<u64> {
    candidate
        .lost_effects_after
        .filter(|_| candidate.status.is_candidate())
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
pub(crate) fn not_granted_warning(record: &Record, generation: u64) -> Option<String> {
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
