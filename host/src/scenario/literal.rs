//! Events and texts as a scenario writes them so that they stand for themselves.

use std::collections::BTreeMap;

use serde_json::Value;

use super::file::Action;
use crate::event::Payload;
use crate::log::NewEvent;
use crate::timestamp;

/// The header that stores a message id.
const MESSAGE_ID: &str = "nats-msg-id";
/// Headers of the stream and of the host: they are added when the event is stored again.
const ADDED: [&str; 2] = ["nats-", "foldstream-"];

/// A text that stands for itself, whatever is in it.
pub(crate) fn literal(text: String) -> String {
    text.replace("${", "$${")
}

/// All texts of a value, changed; also names of members.
pub(crate) fn texts(value: Value, change: &impl Fn(String) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(values) => values
            .into_iter()
            .map(|value| texts(value, change))
            .collect(),
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(name, value)| (change(name), texts(value, change)))
                .collect(),
        ),
        other => other,
    }
}

/// An event as a stream has it.
#[derive(Clone, Debug)]
pub(crate) struct RecordedEvent {
    /// When the stream stored it, in RFC 3339.
    pub(crate) time: String,
    pub(crate) subject: String,
    pub(crate) kind: String,
    /// Its headers by name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) data: Value,
}

impl Action {
    /// An event as it is.
    pub(crate) fn literal(event: NewEvent) -> Self {
        let NewEvent {
            subject,
            kind,
            id,
            time_ns,
            headers,
            data,
        } = event;
        Self {
            // The type of most events is the last token of their subject.
            kind: kind
                .filter(|kind| subject.rsplit('.').next() != Some(kind))
                .map(literal),
            subject: Some(literal(subject)),
            id: id.map(literal),
            at: time_ns.map(timestamp::format_ns),
            headers: headers
                .into_iter()
                .map(|(name, value)| (literal(name), literal(value)))
                .collect(),
            data: Some(texts(data.to_json(), &literal)),
            ..Self::default()
        }
    }

    /// An event of a stream.
    pub(crate) fn recorded(event: RecordedEvent) -> Self {
        let RecordedEvent {
            time,
            subject,
            kind,
            mut headers,
            data,
        } = event;
        let id = headers.remove(MESSAGE_ID);
        headers.retain(|name, _| !ADDED.iter().any(|added| name.starts_with(added)));
        Self {
            at: Some(time),
            data: Some(texts(data, &literal)),
            ..Self::literal(NewEvent {
                subject,
                kind: Some(kind),
                id,
                time_ns: None,
                headers: headers.into_iter().collect(),
                data: Payload::from(""),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::expand::Scope;
    use super::*;

    #[test]
    fn literal_texts_stand_for_themselves() {
        for text in ["${n}", "$${n}", "$$${", "a ${", "}", ""] {
            let filled: String = Scope::default()
                .fill(&literal(text.to_owned()))
                .expect("fills");
            assert_eq!(filled, text);
        }
    }
}
