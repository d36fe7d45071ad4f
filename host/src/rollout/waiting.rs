//! Messages that wait in the outbox of a handler: listed, dropped, and tried again at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Error, Rollouts};
use crate::actor::blocking;
use crate::api;
use crate::audit;
use crate::deployment::Deployment;
use crate::effects::{Lineage, Row, RowKey, key_of_row};
use crate::runner::Runner;
use crate::state::Store;

/// Most messages that one request may drop.
const DROPPED_MAX: usize = 100;
/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 500;
/// How much is read for one page, in bytes.
const PAGE_BYTES: usize = 8 << 20;

/// Nothing is sent while this exists.
struct Quiet(Arc<Runner>);

impl Quiet {
    async fn of(runner: Arc<Runner>) -> Self {
        let quiet = Self(runner);
        // Made before the wait, so that dropping it in the middle sends again.
        quiet.0.hold_effects().await;
        quiet
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.send_effects();
    }
}

impl Rollouts {
    /// A page of the messages that wait, after one of them.
    pub async fn waiting_messages(
        &self,
        name: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<api::WaitingMessages, Error> {
        let deployment = self.deployment(name)?;
        let (store, lineage) = outbox(&deployment)?;
        // A place outside this lineage belongs to another deployment or to one before it.
        let after = after.map(|after| key_of_page(after, lineage)).transpose()?;
        let (rows, has_more) =
            blocking(move || store.waiting_rows(after.as_ref(), limit, PAGE_BYTES)).await?;
        let next = rows
            .last()
            .filter(|_| has_more)
            .map(|row| page_after(row, lineage));
        Ok(api::WaitingMessages {
            messages: rows.iter().map(|row| shown(row, lineage)).collect(),
            next,
        })
    }

    /// Drops messages that wait, all or none of them.
    pub async fn drop_messages(
        &self,
        name: &str,
        wanted: api::DropMessages,
    ) -> Result<api::DroppedMessages, Error> {
        let deployment = self.deployment(name)?;
        check(&wanted)?;
        let _changing = self.lock(&deployment).await?;
        let (_, lineage) = outbox(&deployment)?;
        // What is dropped must not be on its way.
        let _quiet = Quiet::of(deployment.active()).await;
        // Read again: the state may have been opened again while the releaser stopped.
        let (store, _) = outbox(&deployment)?;
        let ids = wanted
            .ids
            .iter()
            .map(|id| place_of(id, lineage))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let found = store.clone();
        let rows = blocking(move || found.rows_at(&ids)).await?;
        // All or none: a request with one wrong id drops nothing.
        let ids: BTreeSet<String> = rows.iter().map(|row| row.place.id(lineage)).collect();
        if let Some(missing) = wanted.ids.iter().find(|id| !ids.contains(*id)) {
            return Err(Error::Missing(format!(
                "no message {missing} waits in the outbox of {name}; nothing was dropped; \
                 `foldstream outbox list {name}` shows what waits"
            )));
        }
        let dropped: Vec<api::WaitingMessage> =
            rows.iter().map(|row| shown(row, lineage)).collect();
        let named: Vec<String> = dropped
            .iter()
            .map(|message| format!("{} to {}@{}", message.id, message.subject, message.source))
            .collect();
        let audit = audit::entry(
            "drop-messages",
            name,
            format!("{}: {}", wanted.reason, named.join(", ")),
        );
        let (catalogue, writer) = (Arc::clone(&self.inner.catalogue), store.clone());
        let keys: Vec<RowKey> = rows.iter().map(Row::key).collect();
        blocking(move || {
            // Before they are gone: nothing is dropped without a record.
            catalogue.note(&audit)?;
            writer.drop_effects(keys)
        })
        .await?;
        tracing::warn!(
            deployment = name,
            count = dropped.len(),
            reason = wanted.reason,
            "messages were dropped"
        );
        Ok(api::DroppedMessages {
            dropped,
            left: store.waiting_effects().entries,
        })
    }

    /// Tries at once to send what waits.
    pub fn retry_messages(&self, name: &str) -> Result<api::Deployment, Error> {
        let deployment = self.deployment(name)?;
        // For a projection this is an error, not a retry of nothing.
        outbox(&deployment)?;
        deployment.active().try_to_send();
        Ok(deployment.info())
    }
}

fn check(wanted: &api::DropMessages) -> Result<(), Error> {
    let bytes = wanted.reason.len();
    if wanted.reason.trim().is_empty() || bytes > REASON_BYTES_MAX {
        return Err(Error::Refused(format!(
            "the reason has {bytes} bytes; give one of 1 to {REASON_BYTES_MAX}: it is recorded in \
             the audit log"
        )));
    }
    let count = wanted.ids.len();
    if !(1..=DROPPED_MAX).contains(&count) {
        return Err(Error::Refused(format!(
            "{count} messages to drop; name 1 to {DROPPED_MAX} at once"
        )));
    }
    Ok(())
}

/// The open state of a handler, and the lineage of its messages.
fn outbox(deployment: &Deployment) -> Result<(Store, Lineage), Error> {
    let name = deployment.name();
    let Some(handler) = deployment.with_record(|record| record.handler.clone()) else {
        return Err(Error::Refused(format!(
            "{name} is a projection, which publishes nothing"
        )));
    };
    let store = deployment.active().store();
    let store = store
        .ok_or_else(|| Error::Conflict(format!("the state of {name} is not open; try again")))?;
    Ok((store, handler.lineage))
}

fn shown(row: &Row, lineage: Lineage) -> api::WaitingMessage {
    let made = jiff::Timestamp::from_nanosecond(i128::from(row.made_ns));
    api::WaitingMessage {
        id: row.place.id(lineage),
        source: row.target.clone(),
        subject: row.effect.subject.clone(),
        kind: row.effect.kind.clone(),
        key: row.effect.key.clone(),
        sequence: row.place.sequence,
        made_at: made.map(|made| made.to_string()).unwrap_or_default(),
        bytes: row.effect.data.len() as u64,
    }
}

fn place_of(id: &str, lineage: Lineage) -> Result<crate::effects::Place, Error> {
    crate::effects::Place::of_id(id, lineage).ok_or_else(|| {
        Error::Refused(format!(
            "`{id}` is no id of a message of this deployment; ids begin with fs.{lineage}."
        ))
    })
}

/// Where the page after a message begins.
fn page_after(row: &Row, lineage: Lineage) -> String {
    format!("{}/{}", row.target, row.place.id(lineage))
}

fn key_of_page(after: &str, lineage: Lineage) -> Result<RowKey, Error> {
    let refused = || {
        Error::Refused(format!(
            "`{after}` is not what an earlier page returned as `next`"
        ))
    };
    // An id has no slash, so the last one ends the name of the source.
    let (target, id) = after.rsplit_once('/').ok_or_else(refused)?;
    Ok(key_of_row(target, place_of(id, lineage)?))
}
