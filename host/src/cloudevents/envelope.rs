//! Parses CloudEvents in JSON. Source: `formats/json-format.md` of
//! <https://github.com/cloudevents/spec>.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Error, attribute, is_json};

/// Most members of an envelope; far more than any known event has.
const MEMBERS_MAX: usize = 256;

/// A valid CloudEvent in JSON.
#[derive(Debug)]
pub struct Envelope<'a> {
    attributes: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// What happened.
    pub data: Data<'a>,
}

/// The data of an envelope.
#[derive(Debug)]
pub enum Data<'a> {
    /// No data.
    None,
    /// A JSON value, as written.
    Json(&'a RawValue),
    /// A text of another media type.
    Text(Cow<'a, str>),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// The classification of a text that nobody has called a CloudEvent.
#[derive(Debug)]
pub enum Outlook<'a> {
    /// Anything else.
    Plain,
    /// A CloudEvent.
    Event(Envelope<'a>),
    /// It was meant to be a CloudEvent, but is not valid.
    Malformed(Error),
}

impl<'a> Envelope<'a> {
    /// Parses an envelope; the error names what makes it invalid.
    pub fn parse(text: &'a [u8]) -> Result<Self, Error> {
        Self::of(members(text)?)
    }

    fn of(members: Members<'a>) -> Result<Self, Error> {
        let (mut data, mut data_base64, mut attributes) =
            (None, None, Vec::with_capacity(members.0.len()));
        for (name, value) in members.0 {
            match &*name {
                "data" => data = Some(value),
                // As for attributes, null means absent.
                "data_base64" if value.get() == "null" => {}
                "data_base64" => data_base64 = Some(value),
                _ => {
                    attribute::check_name(&name)?;
                    if let Some(text) = text_of(&name, value)? {
                        attribute::check_text(&name, &text)?;
                        attributes.push((name, text));
                    }
                }
            }
        }
        let find = |wanted: &str| {
            attributes
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, text)| &**text)
        };
        attribute::check_required(find)?;
        let data = match (data, data_base64) {
            (Some(_), Some(_)) => {
                return Err(Error::member(
                    "data",
                    "and data_base64 are both present; remove one",
                ));
            }
            (Some(data), None) => data_of(data, find("datacontenttype"))?,
            (None, Some(encoded)) => Data::Bytes(decoded(encoded)?),
            (None, None) => Data::None,
        };
        Ok(Self { attributes, data })
    }

    /// The value of an attribute.
    pub fn get(&self, wanted: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, text)| &**text)
    }

    /// The value of a required attribute.
    pub fn required(&self, wanted: &str) -> &str {
        self.get(wanted).expect("an envelope without it is refused")
    }

    /// All attributes, in order, with their values as text.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.attributes
            .iter()
            .map(|(name, text)| (&**name, &**text))
    }

    /// The content type of the data, explicit or implied.
    pub fn content_type(&self) -> Option<&str> {
        // JSON without a media type is JSON by the specification (json-format, 3.1).
        let implied = matches!(self.data, Data::Json(_)).then_some("application/json");
        self.get("datacontenttype").or(implied)
    }
}

static SPECVERSION: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"specversion\""));

/// Parses a text as a CloudEvent if it has a `specversion`; none for an event in another format,
/// which has none.
pub fn parse_with_specversion(text: &[u8]) -> Option<Result<Envelope<'_>, Error>> {
    // A search first: most messages of a stream are no CloudEvents, and parsing costs more.
    SPECVERSION.find(text)?;
    match members(text) {
        // The text was somewhere else, for example within the data.
        Ok(members) if members.0.iter().all(|(name, _)| name != "specversion") => None,
        members => Some(members.and_then(Envelope::of)),
    }
}

/// Determines whether a text is a CloudEvent. For other texts, this costs one search through the
/// text.
///
/// A text is meant to be a CloudEvent if it has `specversion` and another required attribute, both
/// as strings.
pub fn recognise(text: &[u8]) -> Outlook<'_> {
    // A batch, an array, is never one event.
    let begins = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if begins != Some(&b'{') || SPECVERSION.find(text).is_none() {
        return Outlook::Plain;
    }
    // What is no JSON is not malformed here: nobody said that it is a CloudEvent.
    let Ok(members) = members(text) else {
        return Outlook::Plain;
    };
    let is_text = |wanted: &&str| {
        members
            .0
            .iter()
            .any(|(name, value)| name == wanted && value.get().starts_with('"'))
    };
    // Both as strings: other formats may use either name for something else.
    if !is_text(&"specversion")
        || attribute::REQUIRED
            .iter()
            .filter(|name| is_text(name))
            .count()
            < 2
    {
        return Outlook::Plain;
    }
    Envelope::of(members).map_or_else(Outlook::Malformed, Outlook::Event)
}

fn members(text: &[u8]) -> Result<Members<'_>, Error> {
    serde_json::from_slice(text)
        .map_err(|error| Error::Json(format!("it is not a JSON object: {error}")))
}

/// The text of an attribute; none for `null`, which means absent.
fn text_of<'a>(name: &str, value: &'a RawValue) -> Result<Option<Cow<'a, str>>, Error> {
    let raw = value.get();
    let is_core = attribute::REQUIRED.contains(&name)
        || matches!(name, "subject" | "time" | "dataschema" | "datacontenttype");
    // The first byte gives the type of a JSON value that was parsed before.
    match raw.as_bytes().first() {
        Some(b'"') => unescaped(name, value).map(Some),
        Some(b'n') => Ok(None),
        _ if is_core => Err(Error::attribute(name, "is not a string; put it in quotes")),
        Some(b't' | b'f') => Ok(Some(Cow::Borrowed(raw))),
        // The specification's integers have 32 bits.
        Some(b'-' | b'0'..=b'9') if raw.parse::<i32>().is_ok() => Ok(Some(Cow::Borrowed(raw))),
        Some(b'-' | b'0'..=b'9') => {
            let reason = "is not an integer between -2147483648 and 2147483647; write other \
                          numbers as strings";
            Err(Error::attribute(name, reason))
        }
        _ => Err(Error::attribute(
            name,
            "is not a string, an integer or a boolean; put structures into data",
        )),
    }
}

/// A JSON string, borrowed if it contains no escapes.
fn unescaped<'a>(name: &str, value: &'a RawValue) -> Result<Cow<'a, str>, Error> {
    let raw = value.get();
    let inner = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    // Names and values rarely have escapes, and are borrowed then.
    if let Some(inner) = inner
        && !inner.contains('\\')
    {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw)
        .map(Cow::Owned)
        .map_err(|error| Error::member(name, format!("is not text: {error}")))
}

fn data_of<'a>(data: &'a RawValue, content_type: Option<&str>) -> Result<Data<'a>, Error> {
    // Senders that put structured data under another media type mean its JSON text.
    if content_type.is_none_or(is_json) || !data.get().starts_with('"') {
        return Ok(Data::Json(data));
    }
    unescaped("data", data).map(Data::Text)
}

fn decoded(encoded: &RawValue) -> Result<Vec<u8>, Error> {
    let text: Cow<'_, str> = serde_json::from_str(encoded.get())
        .map_err(|_| Error::member("data_base64", "is not a string; write the bytes in base64"))?;
    let decoded = BASE64_STANDARD.decode(&*text);
    decoded.map_err(|error| {
        Error::member(
            "data_base64",
            format!("is not base64 (RFC 4648, with padding): {error}"),
        )
    })
}

/// The members of a JSON object, in order, with values as written.
#[derive(Debug)]
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(12);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let value = map.next_value()?;
            // Before it is kept: what follows compares each name with all others.
            if members.len() == MEMBERS_MAX {
                return Err(serde::de::Error::custom(format_args!(
                    "it has more than {MEMBERS_MAX} members"
                )));
            }
            // Parsers differ in which of two members they take, so a message must not mean two
            // things.
            if members.iter().any(|(other, _)| *other == name.0) {
                let name = super::clip(&name.0);
                return Err(serde::de::Error::custom(format_args!(
                    "member {name} occurs twice"
                )));
            }
            members.push((name.0, value));
        }
        Ok(Members(members))
    }
}

/// The name of a member, borrowed if possible.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn minimal() -> Value {
        json!({ "specversion": "1.0", "id": "minimal", "type": "io.example.test", "source": "https://example.io" })
    }

    fn with(name: &str, value: Value) -> String {
        let mut event = minimal();
        event[name] = value;
        event.to_string()
    }

    fn refusal(text: &str) -> String {
        Envelope::parse(text.as_bytes())
            .expect_err(text)
            .to_string()
    }

    /// The cases of the CloudEvents project's own set of tests for this format, and more of their
    /// kinds.
    #[test]
    fn invalid_events_are_refused_by_the_name_of_what_is_wrong() {
        for name in attribute::REQUIRED {
            let mut event = minimal();
            event.as_object_mut().expect("an object").remove(name);
            assert!(
                refusal(&event.to_string()).contains(&format!("attribute {name} is missing")),
                "{name}"
            );
            assert!(
                refusal(&with(name, Value::Null)).contains(&format!("attribute {name} is missing")),
                "{name}"
            );
            for wrong in [
                json!(25),
                json!(true),
                json!({ "a": "b" }),
                json!(["a"]),
                json!(""),
            ] {
                assert!(
                    refusal(&with(name, wrong)).contains(&format!("attribute {name} is")),
                    "{name}"
                );
            }
        }
        let invalid = json!({
            "specversion": ["0.9", "0.3", "1.1", "1.0.2", "2.0", "1"],
            "source": ["a\tb", "\u{fdd0}"],
            "time": [
                "lunchtime", "2018-04-05T18:31Z", "2018-04-05T18:31:00X", "2018-04-05T18:31:00+25:00",
                "2018-04-05T18:31:00+xx:00", "2018-04-05T18:31:00+05", "2018-04-05", 1_522_949_460, "",
            ],
            "datacontenttype": ["xyz", "", "text/", "/plain", "a b/c", 1],
            "dataschema": ["", "schema.json", "/schemas/1", "#x", {}],
            "subject": ["", 7, "a\nb", "\u{85}", "\u{fffe}"],
            "extension": [1.5, {}, [], 2_147_483_648_u64, -2_147_483_649_i64],
            "MyExtension": ["bad"],
            "my.extension": ["bad", 1.5],
            "my_extension": ["bad", null],
            "erweiterungü": ["bad"],
            "": ["bad"],
        });
        for (name, values) in invalid.as_object().expect("an object") {
            for value in values.as_array().expect("a list") {
                let said = refusal(&with(name, value.clone()));
                assert!(
                    said.contains(&format!("attribute {}", super::super::clip(name))),
                    "{name} {value}: {said}"
                );
            }
        }
        assert!(refusal(&with(&"x".repeat(65), json!("bad"))).contains("65 characters"));
        assert!(refusal(&with("extension", json!(1e3))).contains("integer"));
    }

    #[test]
    fn invalid_data_is_refused() {
        let both =
            with("data", json!("text")).replace('}', ",\"data_base64\":\"eyAieHl6IjogMTIzIH0=\"}");
        assert!(
            refusal(&both).contains("data and data_base64 are both present"),
            "{}",
            refusal(&both)
        );
        for wrong in [
            json!("%"),
            json!("YQ"),
            json!(7),
            json!({}),
            json!("\u{e9}"),
        ] {
            assert!(refusal(&with("data_base64", wrong)).contains("data_base64"));
        }
        for wrong in ["[]", "7", "{", "\"not an object\"", "", "null", "{} {}"] {
            assert!(refusal(wrong).contains("not a JSON object"), "{wrong}");
        }
        let twice = minimal().to_string().replace('}', ",\"id\":\"2\"}");
        assert!(refusal(&twice).contains("id occurs twice"));
        let long = with(&"x".repeat(100_000), json!(1));
        assert!(refusal(&long).len() < 400);
    }

    #[test]
    fn valid_events_are_taken_whatever_they_hold() {
        let changes: [(&str, Vec<Value>); 10] = [
            (
                "datacontenttype",
                vec![
                    Value::Null,
                    json!("text/plain"),
                    json!("TEXT/Plain; CharSet=\"utf-8\""),
                ],
            ),
            (
                "dataschema",
                vec![
                    Value::Null,
                    json!("https://example.io/schema"),
                    json!("urn:a:b"),
                    json!("a:#frag"),
                ],
            ),
            (
                "subject",
                vec![Value::Null, json!("tests"), json!("a b.>*é"), json!(" ")],
            ),
            (
                "id",
                vec![json!(" "), json!("A234-1234-1234"), json!("1/2")],
            ),
            (
                "source",
                vec![
                    json!("#fragment"),
                    json!("two words"),
                    json!("1-555-123-4567"),
                    json!("/shop/ä"),
                    json!("//authority/path"),
                ],
            ),
            (
                "type",
                vec![json!("placed"), json!("*"), json!("two words")],
            ),
            (
                "time",
                vec![
                    Value::Null,
                    json!("2018-04-05T17:31:00.000000000Z"),
                    json!("2018-04-05T16:31:00-01:00"),
                ],
            ),
            (
                "extension",
                vec![
                    Value::Null,
                    json!(10),
                    json!(-2_147_483_648_i64),
                    json!(true),
                    json!(""),
                    json!("é"),
                ],
            ),
            (
                "comexampleextension123",
                vec![json!("longer than is advised")],
            ),
            (
                "data",
                vec![
                    Value::Null,
                    json!({ "a": [1.5] }),
                    json!("text"),
                    json!(false),
                ],
            ),
        ];
        for (name, values) in changes {
            for value in values {
                let text = with(name, value);
                Envelope::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            }
        }
    }

    #[test]
    fn null_stands_for_an_attribute_that_is_absent_and_for_data_that_is_null() {
        let text =
            with("subject", Value::Null).replace('}', ",\"data\":null,\"data_base64\":null}");
        let envelope = Envelope::parse(text.as_bytes()).expect("sound");
        assert_eq!(envelope.get("subject"), None);
        assert!(matches!(envelope.data, Data::Json(value) if value.get() == "null"));
        assert_eq!(envelope.content_type(), Some("application/json"));
    }

    #[test]
    fn an_envelope_is_recognised_by_its_attributes() {
        let text = minimal().to_string();
        assert!(matches!(recognise(text.as_bytes()), Outlook::Event(_)));
        assert!(matches!(
            recognise(format!("\r\n {text}").as_bytes()),
            Outlook::Event(_)
        ));
        for malformed in [
            with("time", json!("lunchtime")),
            with("specversion", json!("0.3")),
            with("id", json!(7)),
        ] {
            assert!(
                matches!(recognise(malformed.as_bytes()), Outlook::Malformed(_)),
                "{malformed}"
            );
        }
        for plain in [
            "",
            "  ",
            "{\"specversion\"",
            "{\"specversion\":\"1.0\"}",
            "{\"specversion\":1,\"id\":\"1\",\"source\":\"/\",\"type\":\"t\"}",
            "{\"api\":{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\"}}",
            "[{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\"}]",
            "specversion",
        ] {
            assert!(
                matches!(recognise(plain.as_bytes()), Outlook::Plain),
                "{plain}"
            );
        }
    }
}
