//! Messages that wait in the outbox of a handler: listed, dropped, and sent at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Handlers;
use crate::actor::blocking;
use crate::audit;
use crate::clock::wall_ns;
use crate::deployment::Deployment;
use crate::deployments::Error;
use crate::effects::{Lineage, Place, Queue, Row, RowKey, key_of_turn, row_key};
use crate::overview;
use crate::runner::Runner;
use crate::state::Store;

/// Most messages that one request may name.
const NAMED_MAX: usize = 100;
/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 500;
/// How much is read for one page, in bytes.
const PAGE_BYTES: usize = 8 << 20;
/// Names the queue of conflicts in a page's end.
const CONFLICTS: &str = "conflict";

/// A message that waits in an outbox.
#[derive(Clone, Debug)]
pub struct WaitingMessage {
    /// Its row in the outbox.
    pub row: Row,
    /// Why its target refused it when it was last sent.
    pub refused: Option<String>,
    lineage: Lineage,
}

impl WaitingMessage {
    /// Its id, with which its stream recognises it.
    pub fn id(&self) -> String {
        self.row.place.id(self.lineage)
    }
}

/// Messages that wait, in the order in which they leave, source by source.
#[derive(Clone, Debug)]
pub struct WaitingMessages {
    /// One page of them.
    pub messages: Vec<WaitingMessage>,
    /// Where the next page begins; none if this is the last one.
    pub next: Option<String>,
}

/// The messages that an operator means, and why.
#[derive(Clone, Debug)]
pub struct NamedMessages {
    /// Their ids: 1 to 100.
    pub ids: Vec<String>,
    /// The reason, for the audit log: 1 to 500 bytes.
    pub reason: String,
}

impl NamedMessages {
    fn check(&self) -> Result<(), Error> {
        let bytes = self.reason.len();
        if self.reason.trim().is_empty() || bytes > REASON_BYTES_MAX {
            return Err(Error::Refused(format!(
                "the reason has {bytes} bytes; give one of 1 to {REASON_BYTES_MAX}: it is recorded \
                 in the audit log"
            )));
        }
        let count = self.ids.len();
        if !(1..=NAMED_MAX).contains(&count) {
            return Err(Error::Refused(format!(
                "{count} messages named; name 1 to {NAMED_MAX} at once"
            )));
        }
        Ok(())
    }
}

/// What becomes of the conditions of messages that are sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// They still count.
    Keep,
    /// They no longer count.
    Drop,
}

/// Messages that were dropped.
#[derive(Clone, Debug)]
pub struct DroppedMessages {
    /// The messages. They are not sent again; one that was sent without an answer may be stored all
    /// the same.
    pub dropped: Vec<WaitingMessage>,
    /// How many messages still wait.
    pub left: u64,
}

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

impl Handlers {
    /// A page of the messages that wait, after one of them.
    pub async fn waiting_messages(
        &self,
        name: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<WaitingMessages, Error> {
        let deployment = self.deployments.get(name)?;
        let (store, lineage) = outbox(&deployment)?;
        // A place outside this lineage belongs to another deployment or to one before it.
        let after = after.map(|after| key_of_page(after, lineage)).transpose()?;
        let (rows, has_more) =
            blocking(move || store.waiting_rows(after.as_ref(), limit, PAGE_BYTES)).await?;
        let next = rows
            .last()
            .filter(|_| has_more)
            .map(|row| page_after(row, lineage));
        let mut messages = messages_of(rows, lineage);
        let active = deployment.active();
        for message in &mut messages {
            let row = &message.row;
            message.refused = active.outbox().refusal(&row.target, row.place);
        }
        Ok(WaitingMessages { messages, next })
    }

    /// Drops messages that wait, all or none of them.
    pub async fn drop_messages(
        &self,
        name: &str,
        named: NamedMessages,
    ) -> Result<DroppedMessages, Error> {
        let deployment = self.deployments.get(name)?;
        named.check()?;
        let _changing = self.deployments.lock(&deployment).await?;
        let (_, lineage) = outbox(&deployment)?;
        // What is dropped must not be on its way.
        let _quiet = Quiet::of(deployment.active()).await;
        // Read again: the state may have been opened again while the releaser stopped.
        let (store, _) = outbox(&deployment)?;
        let rows = find(name, &store, &named.ids, lineage).await?;
        let keys: Vec<RowKey> = rows.iter().map(Row::key).collect();
        let dropped = messages_of(rows, lineage);
        let audit = noted("drop-messages", name, &named.reason, &dropped);
        let (catalogue, writer) = (Arc::clone(&self.deployments.catalogue), store.clone());
        blocking(move || {
            // Before they are gone: nothing is dropped without a record.
            catalogue.note(&audit)?;
            writer.drop_effects(keys)
        })
        .await?;
        let gone = dropped
            .iter()
            .map(|message| (&*message.row.target, message.row.place));
        deployment.active().outbox().forget_dropped(gone);
        tracing::warn!(
            deployment = name,
            count = dropped.len(),
            reason = named.reason,
            "messages were dropped"
        );
        Ok(DroppedMessages {
            dropped,
            left: store.waiting_effects().entries,
        })
    }

    /// Sends messages now that wait for their time or are set aside, all or none of them.
    pub async fn send_messages(
        &self,
        name: &str,
        named: NamedMessages,
        conditions: Conditions,
    ) -> Result<Vec<WaitingMessage>, Error> {
        let deployment = self.deployments.get(name)?;
        named.check()?;
        let _changing = self.deployments.lock(&deployment).await?;
        let (_, lineage) = outbox(&deployment)?;
        // A message must not be on its way under its old terms.
        let _quiet = Quiet::of(deployment.active()).await;
        let (store, _) = outbox(&deployment)?;
        let rows = find(name, &store, &named.ids, lineage).await?;
        let in_order = |row: &&Row| row.effect.delivery.queue() == Queue::Ordered;
        if let Some(row) = rows.iter().find(in_order) {
            return Err(Error::Conflict(format!(
                "message {} waits for nothing but its turn; nothing was changed; `foldstream \
                 outbox retry {name}` tries at once",
                row.place.id(lineage)
            )));
        }
        let now_ns = wall_ns();
        let changes: Vec<(RowKey, Row)> = rows
            .into_iter()
            .map(|row| (row.key(), released(row, now_ns, conditions)))
            .collect();
        let rows = changes.iter().map(|(_, row)| row.clone());
        let messages = messages_of(rows, lineage);
        let action = match conditions {
            Conditions::Keep => "send-messages",
            Conditions::Drop => "send-messages-without-condition",
        };
        let audit = noted(action, name, &named.reason, &messages);
        let catalogue = Arc::clone(&self.deployments.catalogue);
        blocking(move || {
            catalogue.note(&audit)?;
            store.replace_effects(&changes)
        })
        .await?;
        Ok(messages)
    }

    /// Tries at once to send what waits; with [`Lost::Accept`], nobody is warned any more of what
    /// streams have lost.
    pub async fn retry_messages(
        &self,
        name: &str,
        lost: Lost,
    ) -> Result<overview::Deployment, Error> {
        let deployment = self.deployments.get(name)?;
        // For a projection this is an error, not a retry of nothing.
        let (store, _) = outbox(&deployment)?;
        let active = deployment.active();
        if lost == Lost::Accept {
            let audit = audit::entry("accept-lost", name, "what its streams have lost".to_owned());
            let catalogue = Arc::clone(&self.deployments.catalogue);
            let accepted = blocking(move || {
                catalogue.note(&audit)?;
                store.accept_lost()
            });
            accepted.await.inspect_err(|_| active.reopen_if_failed())?;
            active.outbox().accept_lost();
        }
        active.try_to_send();
        Ok(deployment.info())
    }
}

/// What to do about messages that a stream has confirmed and lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Warn of them.
    Report,
    /// Accept that they are gone.
    Accept,
}

/// A row that leaves at once. It keeps its place, and has none in the order of its key.
fn released(mut row: Row, now_ns: u64, conditions: Conditions) -> Row {
    let delivery = &mut row.effect.delivery;
    delivery.not_before_ns = Some(now_ns);
    delivery.conflict = None;
    if conditions == Conditions::Drop {
        delivery.condition = None;
    }
    row
}

/// The record of what is done with messages.
fn noted(
    action: &str,
    name: &str,
    reason: &str,
    messages: &[WaitingMessage],
) -> crate::state::catalogue::Audit {
    let named: Vec<String> = messages
        .iter()
        .map(|message| {
            let row = &message.row;
            format!("{} to {}@{}", message.id(), row.effect.subject, row.target)
        })
        .collect();
    audit::entry(action, name, format!("{reason}: {}", named.join(", ")))
}

/// Messages that wait, by their ids: all of them, or an error.
async fn find(
    name: &str,
    store: &Store,
    wanted: &[String],
    lineage: Lineage,
) -> Result<Vec<Row>, Error> {
    let places = wanted
        .iter()
        .map(|id| place_of(id, lineage))
        .collect::<Result<BTreeSet<_>, _>>()?;
    let store = store.clone();
    let rows = blocking(move || store.rows_at(&places)).await?;
    // All or none: a request with one wrong id changes nothing.
    let ids: BTreeSet<String> = rows.iter().map(|row| row.place.id(lineage)).collect();
    if let Some(missing) = wanted.iter().find(|id| !ids.contains(*id)) {
        return Err(Error::Missing(format!(
            "no message {missing} waits in the outbox of {name}; nothing was dropped or sent; \
             `foldstream outbox list {name}` shows what waits"
        )));
    }
    Ok(rows)
}

fn messages_of(rows: impl IntoIterator<Item = Row>, lineage: Lineage) -> Vec<WaitingMessage> {
    let rows = rows.into_iter();
    let message = |row| WaitingMessage {
        row,
        refused: None,
        lineage,
    };
    rows.map(message).collect()
}

/// The open state of a handler, and the lineage of its messages.
fn outbox(deployment: &Deployment) -> Result<(Store, Lineage), Error> {
    let name = deployment.name();
    let Some(handler) = deployment.with_record(|record| record.handler.clone()) else {
        return Err(Error::Refused(format!(
            "{name} is a projection, which publishes nothing"
        )));
    };
    Ok((deployment.open_store()?, handler.lineage))
}

fn place_of(id: &str, lineage: Lineage) -> Result<Place, Error> {
    Place::of_id(id, lineage).ok_or_else(|| {
        Error::Refused(format!(
            "`{id}` is no id of a message of this deployment; ids begin with fs.{lineage}."
        ))
    })
}

/// Where the page after a message begins: source, queue and id. A delayed one has its time as well,
/// and one of an event that was parked its turn, in the form of an id.
fn page_after(row: &Row, lineage: Lineage) -> String {
    let id = row.place.id(lineage);
    let turn = |turn: Place| format!("{}/", turn.id(lineage));
    let queue = match row.effect.delivery.queue() {
        Queue::Ordered => row.turn.map(turn).unwrap_or_default(),
        Queue::Delayed => format!("{}/", row.effect.delivery.not_before_ns.unwrap_or(0)),
        Queue::Conflict => format!("{CONFLICTS}/"),
    };
    format!("{}/{queue}{id}", row.target)
}

fn key_of_page(after: &str, lineage: Lineage) -> Result<RowKey, Error> {
    let refused = || {
        Error::Refused(format!(
            "`{after}` is not what an earlier page returned as `next`"
        ))
    };
    // Neither names of sources nor ids have a slash.
    let words: Vec<&str> = after.split('/').collect();
    let (target, queue, time_ns, id) = match words[..] {
        [target, id] => (target, Queue::Ordered, 0, id),
        [target, CONFLICTS, id] => (target, Queue::Conflict, 0, id),
        [target, turn, id] if turn.starts_with("fs.") => {
            let (turn, place) = (place_of(turn, lineage)?, place_of(id, lineage)?);
            return Ok(key_of_turn(target, turn, place));
        }
        [target, time, id] => {
            let time_ns = time.parse().map_err(|_| refused())?;
            (target, Queue::Delayed, time_ns, id)
        }
        _ => return Err(refused()),
    };
    Ok(row_key(target, queue, time_ns, place_of(id, lineage)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::{Delivery, Effect};
    use crate::event::Payload;

    #[test]
    fn page_begins_behind_the_row_at_which_the_one_before_it_ended() {
        let lineage = Lineage(7);
        let place = |sequence, sub| Place {
            sequence,
            sub,
            index: 1,
        };
        let delayed = Delivery {
            not_before_ns: Some(9),
            ..Delivery::default()
        };
        let conflict = Delivery {
            conflict: Some("it has 4".to_owned()),
            ..Delivery::default()
        };
        let parked = (Delivery::default(), Some(place(8, 1 << 31)));
        for (delivery, turn) in [
            (Delivery::default(), None),
            parked,
            (delayed, None),
            (conflict, None),
        ] {
            let effect = Effect {
                subject: "out".to_owned(),
                kind: "out".to_owned(),
                headers: Vec::new(),
                data: Payload::from("{}"),
                key: String::new(),
                delivery,
            };
            let row = Row {
                target: "orders".to_owned(),
                place: place(3, 0),
                turn,
                made_ns: 1,
                effect,
            };
            let page = page_after(&row, lineage);
            let key = key_of_page(&page, lineage).expect("it is one");
            assert_eq!(key, row.key(), "{page}");
        }
        for other in ["", "orders", "orders/x/fs.0000000000000007.3.0.1"] {
            assert!(key_of_page(other, lineage).is_err(), "{other}");
        }
    }
}
