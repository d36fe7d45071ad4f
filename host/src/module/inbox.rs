//! The inbox that a module asks for: what identifies an event, and for how long.

use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::{ComponentType, Lift};

use super::{Error, KeyRule, bindings, manifest};
use crate::event::Event;
use crate::state::catalogue::InboxSettings;
use crate::state::inbox::{IdHash, Keep};
use crate::subject;

/// The optional export that describes it.
pub(super) const INBOX: &str = "inbox";
/// Most ids that a module may ask for.
const IDS_MAX: u32 = 100_000_000;
/// Longest window.
const WINDOW_MAX: Duration = Duration::from_secs(3_660 * 86_400);

/// `event-id`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum IdRecord {
    #[component(name = "message-id")]
    MessageId,
    #[component(name = "header")]
    Header(String),
    #[component(name = "data-pointer")]
    DataPointer(String),
}

/// `inbox-settings`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct InboxRecord {
    id: IdRecord,
    #[component(name = "window-ms")]
    window_ms: u64,
    #[component(name = "ids-max")]
    ids_max: u32,
}

/// Recognises events that a producer published twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbox {
    /// Where the id of an event is; none is the id of its message.
    rule: Option<KeyRule>,
    window: Duration,
    ids_max: u32,
}

impl InboxRecord {
    pub(super) fn checked(self) -> Result<Inbox, Error> {
        let rule = match self.id {
            IdRecord::MessageId => None,
            IdRecord::Header(name) => Some(bindings::KeyRule::Header(name)),
            IdRecord::DataPointer(pointer) => Some(bindings::KeyRule::DataPointer(pointer)),
        };
        let rule = rule.map(|rule| manifest::key_rule("inbox", rule));
        let window = Duration::from_millis(self.window_ms);
        if window.is_zero() || window > WINDOW_MAX {
            return Err(Error::Manifest(format!(
                "the window of the inbox has {} ms; use 1 ms to 10 years",
                self.window_ms
            )));
        }
        if !(1..=IDS_MAX).contains(&self.ids_max) {
            return Err(Error::Manifest(format!(
                "the inbox keeps {} ids; use 1 to {IDS_MAX}",
                self.ids_max
            )));
        }
        Ok(Inbox {
            rule: rule.transpose()?,
            window,
            ids_max: self.ids_max,
        })
    }
}

impl Inbox {
    /// How long ids are kept.
    pub fn keep(&self) -> Keep {
        Keep {
            window_ns: u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX),
            ids_max: self.ids_max.into(),
        }
    }

    /// The id of an event; none if it has none. It counts with the subject and, of a CloudEvent,
    /// its source: who may publish to one subject only must not hide events of others. Firings have
    /// none: whether a timer fires depends on the timer alone.
    pub fn id_of(&self, event: &Event) -> Option<IdHash> {
        if subject::is_reserved(&event.subject) {
            return None;
        }
        let (place, source, id) = match &self.rule {
            Some(rule) => {
                let place = match rule {
                    KeyRule::Header(name) => name.as_str(),
                    KeyRule::DataPointer(pointer) => pointer.as_str(),
                    KeyRule::None | KeyRule::Subject | KeyRule::SubjectToken(_) => "",
                };
                (place, "", rule.key_of(event)?)
            }
            None => match event.header("ce-id") {
                Some(id) => {
                    let source = event.header("ce-source").unwrap_or_default();
                    ("ce-id", source, id.to_owned())
                }
                None => ("nats-msg-id", "", event.header("nats-msg-id")?.to_owned()),
            },
        };
        // As for the server: no id at all.
        if id.is_empty() {
            return None;
        }
        let mut hash = Sha256::new();
        for part in [place, &event.subject, source, &id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        hash[..16].try_into().ok()
    }

    /// For people and machines outside.
    pub(super) fn info(&self) -> InboxSettings {
        InboxSettings {
            id: match &self.rule {
                Some(KeyRule::Header(name)) => format!("header:{name}"),
                Some(KeyRule::DataPointer(pointer)) => format!("data-pointer:{pointer}"),
                Some(KeyRule::None | KeyRule::Subject | KeyRule::SubjectToken(_)) | None => {
                    "message-id".to_owned()
                }
            },
            window_ms: u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX),
            ids_max: self.ids_max.into(),
        }
    }
}

#[cfg(test)]
impl Inbox {
    /// By the ids of messages, for tests of what uses it.
    pub(crate) fn of_messages(window: Duration, ids_max: u32) -> Self {
        Self {
            rule: None,
            window,
            ids_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(subject: &str, headers: &[(&str, &str)], data: &str) -> Event {
        Event {
            sequence: 1,
            time_ns: 1,
            subject: subject.into(),
            kind: "kind".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            data: Payload::from(data),
        }
    }

    fn inbox(id: IdRecord) -> Result<Inbox, Error> {
        let record = InboxRecord {
            id,
            window_ms: 1,
            ids_max: 1,
        };
        record.checked()
    }

    #[test]
    fn id_counts_with_subject_source_and_the_place_where_it_is() {
        let messages = inbox(IdRecord::MessageId).expect("is sound");
        let headers = inbox(IdRecord::Header("x-id".to_owned())).expect("is sound");
        let data = inbox(IdRecord::DataPointer("/id".to_owned())).expect("is sound");
        let ce = |source: &str| {
            messages.id_of(&event("a", &[("ce-id", "7"), ("ce-source", source)], "{}"))
        };
        let ids = [
            messages.id_of(&event("a", &[("nats-msg-id", "7")], "{}")),
            messages.id_of(&event("b", &[("nats-msg-id", "7")], "{}")),
            ce("one"),
            ce("other"),
            headers.id_of(&event("a", &[("x-id", "7")], "{}")),
            data.id_of(&event("a", &[], r#"{"id":7}"#)),
            data.id_of(&event("a", &[], r#"{"id":8}"#)),
            data.id_of(&event("a", &[], r#"{"id":123456789012345678901}"#)),
            data.id_of(&event("a", &[], r#"{"id":123456789012345678902}"#)),
        ];
        let different: std::collections::BTreeSet<_> = ids.iter().flatten().collect();
        assert_eq!(different.len(), ids.len(), "{ids:?}");
        // Both have the CloudEvent's own id, whatever the one of the message is.
        let with_both = [("ce-id", "7"), ("ce-source", "one"), ("nats-msg-id", "x")];
        assert_eq!(messages.id_of(&event("a", &with_both, "[]")), ce("one"));
        assert_eq!(messages.id_of(&event("a", &[], "{}")), None);
        assert_eq!(
            messages.id_of(&event("a", &[("nats-msg-id", "")], "{}")),
            None
        );
        assert_eq!(headers.id_of(&event("a", &[("x-id", "")], "{}")), None);
        assert_eq!(data.id_of(&event("a", &[], r#"{"id":""}"#)), None);
        assert_eq!(data.id_of(&event("a", &[], "no JSON")), None);
    }

    #[test]
    fn senseless_inboxes_are_refused() {
        for (id, window_ms, ids_max, named) in [
            (IdRecord::Header("X-Id".to_owned()), 1, 1, "lower case"),
            (IdRecord::DataPointer("id".to_owned()), 1, 1, "JSON pointer"),
            (IdRecord::MessageId, 0, 1, "the window"),
            (IdRecord::MessageId, u64::MAX, 1, "the window"),
            (IdRecord::MessageId, 1, 0, "0 ids"),
            (IdRecord::MessageId, 1, u32::MAX, "ids"),
        ] {
            let record = InboxRecord {
                id,
                window_ms,
                ids_max,
            };
            let error = record.checked().expect_err("is senseless").to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
