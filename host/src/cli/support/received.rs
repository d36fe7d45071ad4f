//! Entries and events as the host sends them, with values unparsed, so that numbers keep all their
//! digits, and objects the order of their members. Only white space between parts is left out: a
//! line break would split a line of output.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::json;

/// [`crate::api::Entry`], with its value as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    #[serde(deserialize_with = "on_one_line")]
    pub(crate) value: Box<RawValue>,
}

/// [`crate::api::EntryPage`], with values as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntryPage {
    pub(crate) entries: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
    pub(crate) position: u64,
    #[serde(default)]
    pub(crate) generation: u64,
}

/// [`crate::api::Change`], with its value as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) key: String,
    #[serde(deserialize_with = "on_one_line")]
    pub(crate) value: Box<RawValue>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deleted: bool,
    pub(crate) position: u64,
}

/// [`crate::api::StoredEvent`], with its data as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredEvent {
    pub(crate) sequence: u64,
    pub(crate) time: String,
    pub(crate) subject: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(deserialize_with = "on_one_line")]
    pub(crate) data: Box<RawValue>,
}

/// [`crate::api::EventPage`], with data as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventPage {
    pub(crate) events: Vec<StoredEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
    pub(crate) last_sequence: u64,
}

fn on_one_line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<RawValue>, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    RawValue::from_string(json::one_line(raw.get())).map_err(serde::de::Error::custom)
}

/// JSON of a test.
#[cfg(test)]
pub(crate) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_digits_on_one_line() {
        let text = "{\"key\":\"a\",\"value\":{\"z\": 1.10,\n\"a\":12345678901234567890123}}";
        let entry: Entry = serde_json::from_str(text).expect("an entry");
        assert_eq!(
            serde_json::to_string(&entry).expect("plain data"),
            r#"{"key":"a","value":{"z":1.10,"a":12345678901234567890123}}"#
        );
    }
}
