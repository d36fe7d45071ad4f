//! Failure bundles: one file with a module, the event that it could not apply, the entries that it
//! read and the calls that it made, so that anyone can reproduce the failure without the host.
//!
//! A bundle is a JSON document. Everything that a fold can see is in it, or the replay says what is
//! missing; it never makes up an answer.

mod keeper;
mod replay;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Payload};
use crate::state::{Call, Key, Scanned, Traced};
use crate::timers::Timer;

pub(crate) use keeper::{Fate, Keeper};
pub(crate) use replay::{Change, Ended, Replay, Step};

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// Largest bundle that is read, in bytes.
pub(crate) const BUNDLE_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of the events of a bundle.
pub(crate) const EVENTS_BYTES_MAX: usize = 8 << 20;

/// A failure with everything that it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// 1.
    pub format: u32,
    /// When it was made, in RFC 3339.
    pub made_at: String,
    /// The version of the host.
    pub made_by: String,
    /// Name of the deployment.
    pub deployment: String,
    /// Number of its generation.
    pub generation: u64,
    /// Events after this sequence were checked against the schemas of the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_events_after: Option<u64>,
    /// The position of the state before the first event.
    pub position: u64,
    /// What happened; none if the events were recorded without a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failed>,
    /// The events, in order. The first one failed.
    pub events: Vec<EventRow>,
    /// The entries that were read, as they were before the first event.
    pub entries: Vec<EntryRow>,
    /// What was scanned.
    #[serde(default)]
    pub scans: Vec<Scanned>,
    /// The timers that were looked up, as they were before the first event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerRow>,
    /// The calls of the module, in order.
    #[serde(default)]
    pub calls: Vec<Call>,
    /// There was more to record than there is room for.
    #[serde(default)]
    pub is_cut: bool,
    /// What the deployment may publish; only of a handler that owns its effects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<String>>,
    /// Targets that are embedded logs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub logs: BTreeSet<String>,
    /// For people: what to know about this bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// SHA-256 of the module.
    pub module: String,
    /// The module, in base64; absent if the host no longer has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
}

/// The failure of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The sequence of the event.
    pub sequence: u64,
    /// As in the failure of a deployment.
    pub kind: String,
    /// The class, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// What happened.
    pub message: String,
    /// When the event first failed, in RFC 3339, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_at: Option<String>,
}

/// An event of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    pub sequence: u64,
    /// When the stream stored it, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    pub subject: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    pub data: Octets,
}

/// An entry of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRow {
    pub key: String,
    /// Its value; null if there was no entry.
    pub value: Option<Octets>,
}

/// A timer of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerRow {
    pub name: String,
    /// What was pending under that name; null if nothing was.
    pub timer: Option<Timer>,
}

/// A payload, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Octets {
    Text(String),
    /// Bytes, in base64.
    Base64(String),
}

impl From<&Payload> for Octets {
    fn from(payload: &Payload) -> Self {
        match payload {
            Payload::Text(text) => Self::Text(text.to_string()),
            Payload::Bytes(bytes) => Self::Base64(BASE64.encode(bytes)),
        }
    }
}

impl Octets {
    fn payload(&self) -> Result<Payload, BundleError> {
        match self {
            Self::Text(text) => Ok(Payload::from(text.clone())),
            Self::Base64(text) => decoded(text).map(Payload::Bytes),
        }
    }
}

fn decoded(text: &str) -> Result<Bytes, BundleError> {
    let bytes = BASE64.decode(text);
    bytes
        .map(Bytes::from)
        .map_err(|error| BundleError::Damaged(format!("it has invalid base64: {error}")))
}

impl From<&Event> for EventRow {
    fn from(event: &Event) -> Self {
        let headers = event.headers.iter();
        Self {
            sequence: event.sequence,
            time_ns: event.time_ns,
            subject: event.subject.to_string(),
            kind: event.kind.to_string(),
            headers: headers
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            data: Octets::from(&event.data),
        }
    }
}

impl EventRow {
    fn event(&self) -> Result<Event, BundleError> {
        let headers = self.headers.iter().cloned();
        Ok(Event {
            sequence: self.sequence,
            time_ns: self.time_ns,
            subject: self.subject.clone().into(),
            kind: self.kind.clone().into(),
            headers: headers
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            data: self.data.payload()?,
        })
    }
}

/// Why a file is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It can't be read.
    #[error("it is no failure bundle: {0}")]
    Damaged(String),
    /// A later release wrote it.
    #[error(
        "it has format {0}, and this build reads format {known}; use the foldstream that wrote \
         it, or a newer one",
        known = FORMAT
    )]
    Newer(u32),
}

/// Who recorded what, for a new bundle.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// Name of the deployment.
    pub deployment: &'a str,
    /// Number of its generation.
    pub generation: u64,
    /// Events after this sequence are checked against the schemas of the module.
    pub checks_events_after: Option<u64>,
    /// The position of the state.
    pub position: u64,
    /// SHA-256 of the module.
    pub module: &'a str,
    /// What the deployment may publish, if it is a handler that owns its effects.
    pub grants: Option<Vec<String>>,
    /// Targets that are embedded logs.
    pub logs: BTreeSet<String>,
}

impl Bundle {
    /// A bundle without its module.
    pub fn new(
        origin: Origin<'_>,
        failure: Option<Failed>,
        events: &[Event],
        traced: &Traced,
    ) -> Self {
        let entry = |(key, value): (&Key, &Option<Payload>)| EntryRow {
            key: key.to_string(),
            value: value.as_ref().map(Octets::from),
        };
        let timer = |(name, timer): (&String, &Option<Timer>)| TimerRow {
            name: name.clone(),
            timer: timer.clone(),
        };
        let (mut bytes, mut kept) = (0, Vec::new());
        // Always the first event, the one that failed, however large it is.
        for event in events {
            bytes += event.size();
            if bytes > EVENTS_BYTES_MAX && !kept.is_empty() {
                break;
            }
            kept.push(EventRow::from(event));
        }
        let is_cut = traced.is_cut || kept.len() < events.len();
        let mut notes = Vec::new();
        if traced.is_cut {
            notes.push(
                "more was read or called than there is room for, so a replay may lack some of it"
                    .to_owned(),
            );
        }
        Self {
            format: FORMAT,
            made_at: jiff::Timestamp::now().to_string(),
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            deployment: origin.deployment.to_owned(),
            generation: origin.generation,
            checks_events_after: origin.checks_events_after,
            position: origin.position,
            failure,
            events: kept,
            entries: traced.entries.iter().map(entry).collect(),
            scans: traced.scans.clone(),
            timers: traced.timers.iter().map(timer).collect(),
            calls: traced.calls.clone(),
            is_cut,
            grants: origin.grants,
            logs: origin.logs,
            notes,
            module: origin.module.to_owned(),
            component: None,
        }
    }

    /// Adds the module.
    pub fn with_component(mut self, component: &[u8]) -> Self {
        self.component = Some(BASE64.encode(component));
        self
    }

    /// The module, if the bundle has it.
    pub fn component(&self) -> Result<Option<Bytes>, BundleError> {
        self.component.as_deref().map(decoded).transpose()
    }

    /// As the content of a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a bundle is plain data")
    }

    /// Reads the content of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BundleError> {
        // The format first, because another one may have other fields.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| BundleError::Damaged(error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(BundleError::Newer(format));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// What it recorded of the state.
    fn traced(&self) -> Result<Traced, BundleError> {
        let mut entries = BTreeMap::new();
        for row in &self.entries {
            let value = row.value.as_ref().map(Octets::payload).transpose()?;
            entries.insert(Key::from(row.key.as_str()), value);
        }
        let timers = self.timers.iter().cloned();
        let timers = timers.map(|row| (row.name, row.timer)).collect();
        Ok(Traced::new(entries, self.scans.clone(), timers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_read_as_it_was_written() {
        let event = Event {
            sequence: 7,
            time_ns: 1,
            subject: "a.b".into(),
            kind: "b".into(),
            headers: vec![("trace".into(), "1".into())],
            data: Payload::Bytes(Bytes::from_static(&[0xff, 0])),
        };
        let mut traced = Traced::default();
        traced.entries.insert(Key::from("absent"), None);
        traced
            .entries
            .insert(Key::from("there"), Some(Payload::from("{}")));
        let timer = Timer {
            at_ns: 5,
            ..Timer::default()
        };
        traced.timers.insert("tea".to_owned(), Some(timer));
        traced.timers.insert("gone".to_owned(), None);
        let origin = Origin {
            deployment: "totals",
            generation: 3,
            checks_events_after: Some(4),
            position: 6,
            module: "ab",
            grants: None,
            logs: BTreeSet::new(),
        };
        let failure = Failed {
            sequence: 7,
            kind: "trap".to_owned(),
            class: Some("trap".to_owned()),
            message: "unreachable".to_owned(),
            first_at: Some("2026-01-01T00:00:00Z".to_owned()),
        };
        let bundle = Bundle::new(origin, Some(failure), std::slice::from_ref(&event), &traced)
            .with_component(b"\0asm");
        let read = Bundle::from_bytes(&bundle.to_bytes()).expect("the same");
        assert_eq!(read, bundle);
        assert_eq!(read.events[0].event().expect("sound"), event);
        assert_eq!(read.traced().expect("sound").entries, traced.entries);
        assert_eq!(read.traced().expect("sound").timers, traced.timers);
        assert_eq!(
            read.component().expect("sound").as_deref(),
            Some(&b"\0asm"[..])
        );
    }

    #[test]
    fn what_is_no_bundle_is_refused_with_its_reason() {
        for (text, wanted) in [
            ("", "no failure bundle"),
            ("{}", "missing field `format`"),
            (r#"{"format":1}"#, "missing field"),
            (r#"{"format":2,"anything":1}"#, "format 2"),
        ] {
            let error = Bundle::from_bytes(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
