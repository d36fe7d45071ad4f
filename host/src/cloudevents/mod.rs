//! CloudEvents 1.0: their definition in JSON and in headers, and the conversion to and from our own
//! events.
//!
//! Every input path uses this module, so that an event accepted by one is
//! accepted by all. The formats are those of
//! <https://github.com/cloudevents/spec>: `cloudevents/spec.md`,
//! `formats/json-format.md`, and the bindings for HTTP, NATS and Kafka.
//! `docs/cloudevents.md` has the mapping for users.
//!
//! Nothing here knows about sources, logs or the API.

mod attribute;
mod envelope;
pub(crate) mod message;
pub mod percent;
mod subject;
mod write;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use attribute::{check_name, check_required, check_text};
pub use envelope::{Data, Envelope, Outlook, parse_with_specversion, recognise};
pub use subject::{SubjectTemplate, TemplateError};
pub use write::Written;

/// Media type of one event in JSON.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";
/// Media type of a batch in JSON.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";
/// Prefix of all media types of CloudEvents.
const MEDIA_TYPE_PREFIX: &str = "application/cloudevents";
/// Prefix of an attribute's name in a header.
pub const HEADER_PREFIX: &str = "ce-";
/// Prefix of an attribute's name in a header of Kafka.
pub const KAFKA_PREFIX: &str = "ce_";

/// Attributes of our own, for data that no CloudEvents attribute represents. None of them becomes a
/// header. The subject under which the event was stored.
pub const SUBJECT_ATTRIBUTE: &str = "foldstreamsubject";
/// The time of the event in its stream.
pub const TIME_ATTRIBUTE: &str = "foldstreamtime";
/// Its other headers, as a JSON object of strings.
pub const HEADERS_ATTRIBUTE: &str = "foldstreamheaders";

/// Whether an attribute is one of Foldstream's own.
pub(crate) fn is_ours(name: &str) -> bool {
    [SUBJECT_ATTRIBUTE, TIME_ATTRIBUTE, HEADERS_ATTRIBUTE].contains(&name)
}

/// Longest message id that consists of source and id unchanged, in bytes.
const MESSAGE_ID_BYTES_MAX: usize = 512;

/// Why something is not a CloudEvent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not even an object.
    #[error("is not a CloudEvent: {0}")]
    Json(String),
    /// One of its attributes is wrong, or its data.
    #[error("is not a CloudEvent: {name} {reason}")]
    Attribute {
        /// Which one.
        name: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
}

impl Error {
    fn attribute(name: &str, reason: impl Into<String>) -> Self {
        Self::Attribute {
            name: format!("attribute {}", clip(name)),
            reason: reason.into(),
        }
    }

    fn member(name: &str, reason: impl Into<String>) -> Self {
        Self::Attribute {
            name: clip(name),
            reason: reason.into(),
        }
    }
}

/// Which messages of a stream are CloudEvents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recognition {
    /// Messages whose headers say so, and JSON with the attributes of a CloudEvent.
    #[default]
    Auto,
    /// Messages whose headers say so.
    Headers,
    /// None.
    Off,
}

/// Which CloudEvents format a content type announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One event as JSON.
    Structured,
    /// A list of events as JSON.
    Batch,
    /// A format that is not supported, such as Avro, XML or Protobuf.
    Unknown,
}

/// The format that a content type announces; none if it is not one of CloudEvents. Case and
/// parameters do not matter.
pub fn form(content_type: &str) -> Option<Form> {
    // Parameters, such as a charset, change nothing.
    let media = content_type.split(';').next().unwrap_or_default().trim();
    // By `get`, because the text may end earlier, or within a character.
    let rest = media.get(MEDIA_TYPE_PREFIX.len()..)?;
    if !media[..MEDIA_TYPE_PREFIX.len()].eq_ignore_ascii_case(MEDIA_TYPE_PREFIX) {
        return None;
    }
    match rest.to_ascii_lowercase().as_str() {
        "+json" => Some(Form::Structured),
        "-batch+json" => Some(Form::Batch),
        // `application/cloudeventsx` is another type.
        rest if rest.is_empty() || rest.starts_with(['+', '-']) => Some(Form::Unknown),
        _ => None,
    }
}

/// Whether a media type is JSON: a subtype `json`, or one with the suffix `+json`.
pub fn is_json(content_type: &str) -> bool {
    let media = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    media
        .split('/')
        .nth(1)
        .is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// The id by which a log recognises a duplicate: unique per source and id. An encoded source has no
/// spaces, so two pairs never become the same text.
pub fn message_id(source: &str, id: &str) -> String {
    let pair = format!("{} {id}", percent::encode(source));
    // Readable while it fits; servers compare whole ids, so a digest is as good.
    if pair.len() <= MESSAGE_ID_BYTES_MAX {
        return pair;
    }
    let digest = Sha256::digest(pair.as_bytes());
    digest.iter().fold("sha256 ".to_owned(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

/// At most 64 characters of a text, quoted if they are not printable.
fn clip(text: &str) -> String {
    // Characters and not bytes, so that none is split.
    let mut clipped: String = text.chars().take(64).collect();
    if clipped.len() < text.len() {
        clipped.push('…');
    }
    if clipped.is_empty()
        || clipped
            .chars()
            .any(|one| one.is_control() || one.is_whitespace())
    {
        return format!("{clipped:?}");
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_distinguished_whatever_their_case_and_parameters() {
        for (text, expected) in [
            ("application/cloudevents+json", Some(Form::Structured)),
            (
                "Application/CloudEvents+JSON ; charset=UTF-8",
                Some(Form::Structured),
            ),
            ("application/cloudevents-batch+json", Some(Form::Batch)),
            ("application/cloudevents", Some(Form::Unknown)),
            ("application/cloudevents+avro", Some(Form::Unknown)),
            ("application/cloudevents-batch+xml", Some(Form::Unknown)),
            ("application/cloudeventsx", None),
            ("application/json", None),
            ("", None),
            ("äpplication/cloudevents+json", None),
        ] {
            assert_eq!(form(text), expected, "{text}");
        }
    }

    #[test]
    fn message_ids_differ_for_each_pair_of_source_and_id() {
        assert_ne!(message_id("a b", "c"), message_id("a", "b c"));
        assert_ne!(message_id("a%20b", "c"), message_id("a b", "c"));
        assert_ne!(
            message_id(&"a".repeat(600), "1"),
            message_id(&"a".repeat(600), "2")
        );
        assert!(message_id(&"a".repeat(6_000), "1").len() < MESSAGE_ID_BYTES_MAX);
    }

    #[test]
    fn long_names_are_clipped() {
        assert!(clip(&"é".repeat(1_000)).chars().count() < 70);
        assert_eq!(
            (
                clip("a b").as_str(),
                clip("").as_str(),
                clip("abc").as_str()
            ),
            ("\"a b\"", "\"\"", "abc")
        );
    }
}
