//! Whether a runner owns the effects of its deployment, and the releaser that sends them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::options::Program;
use super::worker::Worker;
use super::{Runner, Shared};
use crate::clock;
use crate::effects::{Grants, Owner, OwnerMismatch, Role};
use crate::firing::{self, Activity};
use crate::outbox::{Parts, Releaser};
use crate::pipeline::Desired;
use crate::progress::DeploymentState;
use crate::room::{Room, Use};
use crate::source::Source;
use crate::state::{self, Ownership, Prepared, Store};

/// Why timers wait that earlier code set.
const NO_TIMERS: &str =
    "the module sets no timers, so timers of earlier code wait; deploy code that handles them";

/// The releaser of a runner, and what it needs.
pub(super) struct Releasing {
    /// The sources that effects may go to, by name.
    pub(super) outlets: Arc<BTreeMap<String, Source>>,
    /// The disk of the state.
    pub(super) room: Option<Room>,
    pub(super) runtime: Handle,
    pub(super) slot: Mutex<Slot>,
}

/// What changes while a runner lives.
#[derive(Default)]
pub(super) struct Slot {
    /// The state, while it is open.
    store: Option<Store>,
    releaser: Option<Releaser>,
    firing: Option<firing::Task>,
    /// Nothing is sent, because another state is about to take over.
    is_held: bool,
    /// This state is about to take over, so what it is prepared for stays in its file.
    is_preparing: bool,
}

impl Shared {
    /// The state is open: sends effects if this runner owns them. A failed fold does not end that:
    /// what was decided is sent.
    pub(super) fn opened_outbox(self: &Arc<Self>, store: &Store) {
        let mut slot = self.releasing.slot.lock();
        // The lock is held until the releaser is in its slot: two would send everything twice.
        slot.store = Some(store.clone());
        self.start_releaser(&mut slot);
    }

    /// The state is about to be closed. Blocking.
    pub(super) fn close_outbox(&self) {
        // The lock is not held while the releaser stops, which may take as long as a publish.
        let releaser = {
            let mut slot = self.releasing.slot.lock();
            slot.store = None;
            slot.firing = None;
            slot.releaser.take()
        };
        if let Some(releaser) = releaser {
            releaser.stop();
        }
    }

    /// The role, with the targets among the sources of the host that are embedded logs.
    pub(super) fn with_logs(&self, role: Role) -> Role {
        let Role::Owner(owner) = role else {
            return role;
        };
        let outlets = self.releasing.outlets.iter();
        let logs = outlets.filter(|(_, source)| source.log().is_some());
        Role::Owner(Arc::new(Owner {
            logs: Arc::new(logs.map(|(name, _)| name.clone()).collect()),
            ..Owner::clone(&owner)
        }))
    }

    fn start_releaser(self: &Arc<Self>, slot: &mut Slot) {
        // Held: a hand-over begins it again at its end.
        if slot.is_held || slot.releaser.is_some() {
            return;
        }
        let Some(store) = &slot.store else { return };
        let program = self.program.read().clone();
        // Only what catalogue and file agree on may send.
        let Ok(Role::Owner(owner)) = checked_role(&program, store) else {
            return;
        };
        let (grants, publishes, paused) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        let parts = Parts {
            deployment: owner.deployment.clone(),
            lineage: owner.lineage,
            store: store.clone(),
            sources: Arc::clone(&self.releasing.outlets),
            // Read at each message, because an operator may change the grants meanwhile.
            grants: Arc::new(move || match &grants.program.read().role {
                Ok(Role::Owner(owner)) => owner.grants.clone(),
                Ok(Role::Mute) | Err(_) => Grants::default(),
            }),
            publishes: Arc::new(move || match &publishes.program.read().role {
                Ok(Role::Owner(owner)) => Arc::clone(&owner.publishes),
                Ok(Role::Mute) | Err(_) => Arc::default(),
            }),
            changed: self.outbox_wake.subscribe(),
            is_paused: Arc::new(move || *paused.control.borrow() == Desired::Pause),
            room: self.releasing.room.clone(),
            status: Arc::clone(&self.outbox),
            metrics: self.metrics.clone(),
        };
        slot.releaser = Some(Releaser::start(parts, &self.releasing.runtime));
        slot.firing = Some(self.start_firing(&owner.deployment, store));
    }
}

impl Shared {
    /// Fires timers. A firing that is stored after this ends does no harm, so nothing waits for it.
    fn start_firing(self: &Arc<Self>, deployment: &str, store: &Store) -> firing::Task {
        let (program, state) = (Arc::clone(self), Arc::clone(self));
        let parts = firing::Parts {
            deployment: deployment.to_owned(),
            store: store.clone(),
            // Asked at each firing: code and source may change without a new state.
            source: Arc::new(move || {
                let program = program.program.read();
                let module = program.module.as_ref().map_err(|_| None)?;
                if !module.manifest().sets_timers {
                    return Err(Some(NO_TIMERS));
                }
                program.source.clone().map_err(|_| None)
            }),
            activity: Arc::new(move || match state.progress.now().state {
                DeploymentState::Live => Activity::Lives,
                DeploymentState::CatchingUp => Activity::CatchesUp,
                _ => Activity::Rests,
            }),
            changed: self.outbox_wake.subscribe(),
            status: Arc::clone(&self.firing),
            metrics: self.metrics.clone(),
            clocks: clock::of_this_machine(),
        };
        firing::Task::start(parts, &self.releasing.runtime)
    }
}

impl Runner {
    /// Sends nothing from now on, until [`Runner::send_effects`]; returns once nothing is on its
    /// way. What may be on its way still, over a connection that hangs, counts as not sent.
    pub async fn hold_effects(&self) {
        // As above: not under the lock.
        let releaser = {
            let mut slot = self.shared.releasing.slot.lock();
            slot.is_held = true;
            slot.firing = None;
            slot.releaser.take()
        };
        if let Some(releaser) = releaser {
            // It joins a task, so it runs on a thread that may block.
            let stopped = tokio::task::spawn_blocking(move || releaser.stop()).await;
            if let Err(error) = stopped {
                tracing::error!(deployment = self.shared.deployment, %error, "a releaser panicked");
            }
        }
    }

    /// Whether it owns effects, as catalogue and file agree.
    pub fn owns_effects(&self) -> bool {
        let program = self.program();
        self.store()
            .is_some_and(|store| matches!(checked_role(&program, &store), Ok(Role::Owner(_))))
    }

    /// Sends effects if it owns them.
    pub fn send_effects(&self) {
        let mut slot = self.shared.releasing.slot.lock();
        slot.is_held = false;
        self.shared.start_releaser(&mut slot);
    }

    /// Tries at once to send effects that wait for another attempt.
    pub fn try_to_send(&self) {
        self.shared.wake_outbox();
    }

    /// What its file is prepared to own stays there if the file is opened again, until
    /// [`Runner::end_preparing`].
    pub fn begin_preparing(&self) {
        self.shared.releasing.slot.lock().is_preparing = true;
    }

    /// What its file is prepared to own goes if the file is opened again.
    pub fn end_preparing(&self) {
        self.shared.releasing.slot.lock().is_preparing = false;
    }

    /// Owns no effects any more: the catalogue names another owner.
    pub fn fall_silent(&self, ownership: Ownership) {
        let fall_silent = |program: &mut Program| {
            (program.role, program.ownership) = (Ok(Role::Mute), Some(ownership));
        };
        if self.has_diverged() {
            // It stays stopped: its stream is gone, and another start would fail as well.
            fall_silent(&mut self.shared.program.write());
            self.shared.wake_outbox();
        } else {
            self.change_program(fall_silent);
        }
    }

    /// Owns effects from now on, by what the catalogue says. The file of `store` is prepared for
    /// that.
    pub fn own_effects(
        &self,
        role: Result<Role, OwnerMismatch>,
        ownership: Ownership,
        store: &Store,
        prepared: Prepared,
    ) {
        {
            // Under the lock, so that the file is not opened again in between.
            let slot = self.shared.releasing.slot.lock();
            // If the file was opened again meanwhile, the state has everything from there.
            if slot.store.as_ref().is_some_and(|open| open.is_same(store)) {
                store.own(prepared);
            }
        }
        // In this order: the program names the owner before the releaser asks for it.
        self.change_program(|program| {
            (program.role, program.ownership) = (role, Some(ownership));
        });
        self.end_preparing();
        self.send_effects();
    }
}

impl Worker {
    /// Brings the file in line with the catalogue, before anything is folded or sent: a hand-over
    /// may have ended half-way.
    pub(super) fn settle_ownership(&self, store: &Store) -> Result<(), state::Error> {
        // Before the program: a preparation only ends after the program says that it owns the
        // effects.
        let is_preparing = self.shared.releasing.slot.lock().is_preparing;
        let program = self.shared.program.read().clone();
        // Without room the record is not written; it is only a note of what the catalogue decides.
        let has_room = || {
            self.shared
                .releasing
                .room
                .as_ref()
                .is_none_or(|room| room.check(Use::Write, 0).is_ok())
        };
        match &program.role {
            // A hand-over that ended between the commit of the catalogue and this file's own
            // record.
            Ok(Role::Owner(owner)) if check_owner(owner, store).is_ok() && has_room() => {
                store.confirm_ownership()
            }
            Ok(Role::Owner(_)) | Err(_) => Ok(()),
            Ok(Role::Mute) => {
                // While it is prepared on purpose, the record must stay in the file.
                if is_preparing || !store.has_effects() || check_mute(&program, store).is_err() {
                    return Ok(());
                }
                if has_room() {
                    return store.let_go();
                }
                // The record stays in the file, and means the same the next time.
                store.disown();
                Ok(())
            }
        }
    }
}

/// The role of a fold, once catalogue and state file agree on it.
pub(super) fn checked_role(program: &Program, store: &Store) -> Result<Role, OwnerMismatch> {
    let role = program.role.clone()?;
    match &role {
        Role::Owner(owner) => check_owner(owner, store)?,
        Role::Mute => check_mute(program, store)?,
    }
    Ok(role)
}

/// The file must say that it belongs to this owner: with another file, effects would be lost or
/// sent again.
fn check_owner(owner: &Owner, store: &Store) -> Result<(), OwnerMismatch> {
    let wanted = Ownership {
        lineage: owner.lineage,
        epoch: owner.epoch,
    };
    let name = &owner.deployment;
    match store.ownership() {
        Some(found) if found == wanted => Ok(()),
        found => Err(OwnerMismatch::new(format!(
            "the state file of {name} does not own its effects (it has {}, the catalogue has {}), \
             so it is another file or an older copy; nothing is handled or published; restore \
             catalogue and state from one backup, or build the state again: `foldstream rebuild {name} \
             --accept-lost-effects` (its help says for which events that publishes)",
            found.map_or("no owner".to_owned(), words),
            words(wanted)
        ))),
    }
}

/// A file that does not own the effects of its deployment may have been prepared to, or may have
/// owned them before. If it knows of a later owner than the catalogue does, the catalogue is an
/// older copy.
fn check_mute(program: &Program, store: &Store) -> Result<(), OwnerMismatch> {
    let (Some(found), Some(current)) = (store.ownership(), program.ownership) else {
        return Ok(());
    };
    // Prepared, or an owner of an earlier epoch: both are what a hand-over leaves behind.
    if store.is_prepared_to_own() || found.epoch < current.epoch {
        return Ok(());
    }
    Err(OwnerMismatch::new(format!(
        "this state file owns effects ({}), and by the catalogue another one does ({}), so the \
         catalogue is an older copy; nothing is handled; restore catalogue and states from one \
         backup",
        words(found),
        words(current)
    )))
}

fn words(owner: Ownership) -> String {
    format!("lineage {} and epoch {}", owner.lineage, owner.epoch)
}
