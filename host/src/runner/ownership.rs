//! Whether a runner owns the effects of its deployment, and the releaser that sends them.

use std::sync::Arc;

use super::options::Program;
use super::worker::Worker;
use crate::effects::{Owner, Role};
use crate::outbox::{Parts, Releaser};
use crate::pipeline::Desired;
use crate::state::{Ownership, Store};

impl Worker {
    /// The role of a fold, once catalogue and state file agree on it.
    pub(super) fn checked_role(&self, program: &Program, store: &Store) -> Result<Role, String> {
        let role = program.role.clone()?;
        if let Role::Owner(owner) = &role {
            check_owner(owner, store)?;
        }
        Ok(role)
    }

    /// Starts to send effects if this runner owns them. A failed fold does not end it: what was decided is sent.
    pub(super) fn start_releaser(&self, store: &Store) -> Option<Releaser> {
        let program = self.shared.program.read().clone();
        let Ok(Role::Owner(owner)) = self.checked_role(&program, store) else { return None };
        let (grants, paused) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        let parts = Parts {
            deployment: owner.deployment.clone(),
            lineage: owner.lineage,
            store: store.clone(),
            sources: Arc::clone(&self.outlets),
            grants: Arc::new(move || match &grants.program.read().role {
                Ok(Role::Owner(owner)) => owner.grants.clone(),
                Ok(Role::Mute) | Err(_) => crate::effects::Grants::default(),
            }),
            changed: self.shared.outbox_wake.subscribe(),
            is_paused: Arc::new(move || *paused.control.borrow() == Desired::Pause),
            room: self.settings.disk.as_ref().map(|(room, _)| room.clone()),
            status: Arc::clone(&self.shared.outbox),
            metrics: self.shared.metrics.clone(),
        };
        Some(Releaser::start(parts, &self.runtime))
    }
}

/// The file must say that it belongs to this owner: with another file, effects would be lost or sent again.
fn check_owner(owner: &Owner, store: &Store) -> Result<(), String> {
    let wanted = Ownership { lineage: owner.lineage, epoch: owner.epoch };
    let name = &owner.deployment;
    match store.ownership() {
        Some(found) if found == wanted => Ok(()),
        found => Err(format!(
            "the state file of {name} does not own its effects (it has {}, the catalogue has lineage {} and epoch {}), so \
             it is another file or an older copy; nothing is handled or published; restore catalogue and state from one \
             backup, or delete {name} and deploy it again",
            found.map_or("no owner".to_owned(), |found| format!("lineage {} and epoch {}", found.lineage, found.epoch)),
            wanted.lineage,
            wanted.epoch
        )),
    }
}
