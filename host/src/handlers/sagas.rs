//! The sagas of a deployment, for people.

use super::Handlers;
use crate::actor::blocking;
use crate::deployments::Error;
use crate::sagas::{self, Listed, Wanted};

impl Handlers {
    /// A page of the instances of a handler's sagas, and the position that they reflect.
    pub async fn saga_instances(
        &self,
        name: &str,
        wanted: Wanted,
        after: Option<String>,
        limit: usize,
    ) -> Result<(u64, Listed), Error> {
        let deployment = self.deployments.get(name)?;
        if deployment.with_record(|record| record.handler.is_none()) {
            return Err(Error::Refused(format!(
                "{name} is a projection, which runs no sagas"
            )));
        }
        let store = deployment.open_store()?;
        let listed = blocking(move || {
            let snapshot = store.snapshot();
            // A misspelt name would look like a saga without instances.
            if let Some(saga) = &wanted.saga
                && let Some(known) = sagas::known_without(&snapshot, saga)?
            {
                return Ok(Err(known));
            }
            let listed = sagas::list(&snapshot, &wanted, after.as_deref(), limit)?;
            let listed = listed.map(|listed| (snapshot.position(), listed));
            Ok::<_, crate::state::Error>(Ok(listed))
        });
        let listed = listed.await?.map_err(|known| {
            Error::Refused(format!(
                "no saga of that name has had an instance in {name}; known sagas: {}",
                known.join(", ")
            ))
        })?;
        listed.ok_or_else(|| {
            Error::Refused(
                "`after` is not from an earlier page of this list; pass what the page before returned \
                 as `next`, with the same filters"
                    .to_owned(),
            )
        })
    }
}
