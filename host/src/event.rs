//! Events and payloads: passed between all layers, and changed by none.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use bytestring::ByteString;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// The only member of a JSON object that represents bytes.
const BYTES_MEMBER: &str = "$bytes";

/// Whether an event should carry its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// With headers.
    Wanted,
    /// Without headers.
    Left,
}

/// Size from which an event is large, in bytes: no request of a reader is for less.
pub(crate) const LARGE_MIN: usize = 256 << 10;

/// A value that is either text or raw bytes; both carry the same octets.
///
/// Cloning shares the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Valid UTF-8; JSON by convention.
    Text(ByteString),
    /// Any octets.
    Bytes(Bytes),
}

impl Payload {
    /// Text if the octets are valid UTF-8, bytes otherwise.
    pub fn detect(data: Bytes) -> Self {
        match ByteString::try_from(data.clone()) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Bytes(data),
        }
    }

    /// The octets of either kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(_) => None,
        }
    }

    /// The payload as JSON for people and for the API: text that is JSON as that value, other text
    /// as a string, bytes as `{"$bytes": "<base64>"}`.
    ///
    /// Loses white space, the order of members, and digits beyond 64-bit numbers; a JSON text that
    /// is a string can no longer be told from plain text.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()))
            }
            Self::Bytes(bytes) => Value::Object(
                [(BYTES_MEMBER.to_owned(), Value::String(BASE64.encode(bytes)))]
                    .into_iter()
                    .collect(),
            ),
        }
    }

    /// [`Payload::to_json`] with all digits, and members in their order: of JSON text only the white
    /// space between its parts is left out.
    pub fn to_raw(&self) -> Box<RawValue> {
        let shown = match self {
            Self::Text(text) => match json(text) {
                Some(raw) => RawValue::from_string(without_space(raw.get())),
                None => serde_json::value::to_raw_value(&**text),
            },
            Self::Bytes(_) => serde_json::value::to_raw_value(&self.to_json()),
        };
        shown.expect("texts are representable as JSON")
    }

    /// Whether what represents it in JSON is this payload again, byte for byte. A JSON text is
    /// not if it is a string, which represents plain text; if it represents bytes; or if it has
    /// white space around it, or a line break, which JSON on one line cannot have.
    pub fn is_shown_exactly(&self) -> bool {
        let Self::Text(text) = self else { return true };
        let Some(raw) = json(text) else { return true };
        let has_space = raw.get().len() != text.len() || text.contains(['\n', '\r']);
        if has_space || text.starts_with('"') {
            return false;
        }
        // Parsing costs more than the search, and nearly no text has the member.
        let is_bytes = text.starts_with('{') && is_member_likely(text) && represents_bytes(text);
        !is_bytes
    }

    /// The payload that a JSON value represents: a string is its text, `{"$bytes": "<base64>"}` is
    /// bytes, anything else, including `null`, is its compact JSON text.
    pub fn from_json(value: Value) -> Result<Self, PayloadError> {
        // A value that is any other object, also with this member and others, is its JSON text.
        match value {
            Value::String(text) => Ok(Self::from(text)),
            Value::Object(members) if members.len() == 1 && members.contains_key(BYTES_MEMBER) => {
                let encoded = members[BYTES_MEMBER].as_str().ok_or(PayloadError)?;
                BASE64
                    .decode(encoded)
                    .map(|bytes| Self::Bytes(Bytes::from(bytes)))
                    .map_err(|_| PayloadError)
            }
            other => Ok(Self::from(other.to_string())),
        }
    }

    /// The same payload in other memory: `keep` returns the same octets.
    pub(crate) fn mapped(self, keep: impl FnOnce(Bytes) -> Bytes) -> Self {
        match self {
            Self::Text(text) => Self::detect(keep(text.into_bytes())),
            Self::Bytes(bytes) => Self::Bytes(keep(bytes)),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a JSON text may have the member that represents bytes: by its name, or by a name with
/// escapes.
fn is_member_likely(text: &str) -> bool {
    text.contains(BYTES_MEMBER) || text.contains('\\')
}

/// Whether a JSON object has this one member only.
fn represents_bytes(text: &str) -> bool {
    serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text)
        .is_ok_and(|members| members.len() == 1 && members.contains_key(BYTES_MEMBER))
}

/// `{"$bytes": …}` does not hold base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the value of `$bytes` is not base64 (RFC 4648, with padding); encode the bytes, or rename the \
     member"
)]
pub struct PayloadError;

/// Deepest JSON text that is copied as JSON: the surrounding document adds some levels, and many
/// parsers accept no more than 128.
const DEPTH_MAX: usize = 120;

/// A text as a JSON value, if every JSON parser accepts it: it is not nested too deep, its strings
/// have no unpaired surrogates, and its numbers fit a double. Any other text would make the
/// document that contains it unreadable.
pub fn json(text: &str) -> Option<&RawValue> {
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    let Looks {
        depth,
        is_suspicious,
    } = Looks::of(text);
    // Parsing costs more than the one pass, and nearly no text needs it.
    let is_readable = || serde_json::from_str::<Value>(text).is_ok();
    (depth <= DEPTH_MAX && (!is_suspicious || is_readable())).then_some(raw)
}

/// A JSON text without white space between its parts.
pub fn without_space(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let (mut in_string, mut is_escaped) = (false, false);
    for character in json.chars() {
        if in_string || !character.is_ascii_whitespace() {
            text.push(character);
        }
        in_string ^= character == '"' && !is_escaped;
        is_escaped = in_string && !is_escaped && character == '\\';
    }
    text
}

/// What one pass over the bytes of a JSON text finds.
struct Looks {
    /// The nesting depth of lists and objects.
    depth: usize,
    /// It has an escape or a number that some parsers may reject; only parsing it shows that.
    is_suspicious: bool,
}

impl Looks {
    fn of(text: &str) -> Self {
        let (mut depth, mut looks) = (
            0_usize,
            Self {
                depth: 0,
                is_suspicious: false,
            },
        );
        let (mut in_string, mut is_escaped, mut digits, mut before) = (false, false, 0, b' ');
        for byte in text.bytes() {
            // Counted across bytes, because a number has no mark at its begin.
            digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
            match byte {
                _ if is_escaped => {
                    is_escaped = false;
                    // The grammar allows half of a surrogate pair, which is no character.
                    looks.is_suspicious |= byte == b'u';
                }
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => {
                    depth += 1;
                    looks.depth = looks.depth.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                // The exponent of a number follows a digit.
                b'e' | b'E' => looks.is_suspicious |= before.is_ascii_digit(),
                // A double has up to 309 digits before the point.
                _ => looks.is_suspicious |= digits > 300,
            }
            before = byte;
        }
        looks
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        Self::Text(ByteString::from(text))
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self::Text(ByteString::from(text))
    }
}

/// One header: a lower-case name and its value.
pub type Header = (ByteString, ByteString);

/// An immutable fact. Cloning shares the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Sequence in its stream, counted from 1.
    pub sequence: u64,
    /// When the stream stored it, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The subject under which it was published.
    pub subject: ByteString,
    /// Its type: the CloudEvents `type`, otherwise the `Event-Type` header,
    /// otherwise the last token of the subject.
    pub kind: ByteString,
    /// Headers by lower-case name, sorted by name.
    pub headers: Vec<Header>,
    /// What happened.
    pub data: Payload,
}

impl Event {
    /// The value of a header, by lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| &**value)
    }

    /// Approximate size in memory, in bytes, for the limits of queues and batches.
    pub fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum();
        // A rough figure for the fields and their allocations.
        64 + self.subject.len() + self.kind.len() + headers + self.data.len()
    }

    /// Whether it is so large that it may have been read alone, and that nobody keeps it for later.
    pub(crate) fn is_large(&self) -> bool {
        self.size() >= LARGE_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn payloads_travel_as_json_and_come_back() {
        for (payload, value) in [
            (
                Payload::from(r#"{"a":[1,2.5,null]}"#),
                json!({"a": [1, 2.5, null]}),
            ),
            (Payload::from("42"), json!(42)),
            (Payload::from("not json"), json!("not json")),
            (
                Payload::from("{\"$bytes\":1,\"b\":2}"),
                json!({"$bytes": 1, "b": 2}),
            ),
            (
                Payload::Bytes(Bytes::from_static(b"\xff\0")),
                json!({"$bytes": "/wA="}),
            ),
        ] {
            assert_eq!(payload.to_json(), value);
            assert_eq!(Payload::from_json(value), Ok(payload));
        }
    }

    #[test]
    fn what_cannot_be_shown_exactly_is_reported() {
        for (text, is_exact) in [
            ("hello", true),
            ("1", true),
            ("null", true),
            ("", true),
            ("\t", true),
            ("{broken", true),
            (" broken\n", true),
            (r#"{"z": 1.50, "a":"x\n"}"#, true),
            (r#"{"$bytes":"AA==","more":1}"#, true),
            (r#"{"a":{"$bytes":"AA=="}}"#, true),
            ("\"hello\"", false),
            ("\"\"", false),
            ("\"{\\\"$bytes\\\":1}\"", false),
            (r#"{"$bytes":"AAEC"}"#, false),
            (r#"{ "$bytes" : "zz" }"#, false),
            (r#"{"\u0024bytes":"AAEC"}"#, false),
            (r#"{"$bytes":1,"$bytes":2}"#, false),
            (" {\"a\": 1}", false),
            ("[]\n", false),
            ("{\n  \"a\": 1\n}", false),
        ] {
            let payload = Payload::from(text);
            assert_eq!(payload.is_shown_exactly(), is_exact, "{text}");
            let again = serde_json::from_str(payload.to_raw().get()).expect("JSON");
            if is_exact && !text.contains("1.50") {
                let again = Payload::from_json(again).expect("sound");
                assert_eq!(again, payload, "{text}");
            } else if !text.contains("1.50") {
                assert_ne!(Payload::from_json(again).as_ref(), Ok(&payload), "{text}");
            }
        }
        assert!(Payload::Bytes(Bytes::from_static(b"\xff")).is_shown_exactly());
    }

    #[test]
    fn raw_json_keeps_digits_and_order() {
        let text = r#"{"z":1.10,"a":12345678901234567890123,"a":1}"#;
        assert_eq!(Payload::from(text).to_raw().get(), text);
        let spaced = " {\"a \\\" b\\\\\" :\n[1 , \" \"]\t}\r\n";
        let packed = "{\"a \\\" b\\\\\":[1,\" \"]}";
        assert_eq!(Payload::from(spaced).to_raw().get(), packed);
        assert_eq!(Payload::from("a\"b").to_raw().get(), r#""a\"b""#);
        let bytes = Payload::Bytes(Bytes::from_static(b"\xff\0"));
        assert_eq!(bytes.to_raw().get(), r#"{"$bytes":"/wA="}"#);
    }

    #[test]
    fn null_and_empty_text_stay_apart() {
        assert_eq!(Payload::from_json(Value::Null), Ok(Payload::from("null")));
        assert_eq!(Payload::from_json(json!("")), Ok(Payload::from("")));
        assert_eq!(Payload::from("").to_json(), json!(""));
    }

    #[test]
    fn json_that_some_parsers_reject_is_text() {
        let long = "9".repeat(400);
        for text in [
            r#"{"a":"\ud800"}"#,
            r#"["\uDC00\ud83d"]"#,
            "1e999",
            "[-1E+400]",
            long.as_str(),
        ] {
            assert!(
                serde_json::from_str::<&RawValue>(text).is_ok(),
                "{text} is JSON by its grammar"
            );
            assert!(json(text).is_none(), "{text}");
            assert_eq!(
                Payload::from(text).to_json(),
                Value::String(text.to_owned())
            );
        }
        for text in [
            r#"{"a":"\ud83d\ude00 \u00e9"}"#,
            "1e30",
            "true",
            r#"{"e":[1.5e-3,"\\ud800"]}"#,
            "123456789012345678901234567890",
        ] {
            assert_eq!(json(text).map(RawValue::get), Some(text));
        }
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(json(&nested(DEPTH_MAX)).is_some() && json(&nested(DEPTH_MAX + 1)).is_none());
    }

    #[test]
    fn bytes_that_are_not_base64_are_refused() {
        for value in [
            json!({"$bytes": "?"}),
            json!({"$bytes": 7}),
            json!({"$bytes": "/w"}),
        ] {
            assert_eq!(Payload::from_json(value), Err(PayloadError));
        }
    }
}
