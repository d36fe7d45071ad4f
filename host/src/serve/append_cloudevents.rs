//! Turns CloudEvents into events to append, in JSON or with their attributes in headers of the
//! request. Source for the headers: `bindings/http-protocol-binding.md` of
//! <https://github.com/cloudevents/spec>, 3.1.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::extract;
use super::json;
use super::problem::Problem;
use crate::api::Times;
use crate::cloudevents::{
    self, Envelope, Error, HEADER_PREFIX, HEADERS_ATTRIBUTE, MEDIA_TYPE, SubjectTemplate,
    TIME_ATTRIBUTE, message_id, percent,
};
use crate::event::Payload;
use crate::log::NewEvent;
use crate::timestamp;

/// The sender's options for all events of a request.
#[derive(Debug, Default)]
pub(super) struct AppendOptions {
    /// The template for subjects; none uses the type.
    pub(super) template: Option<SubjectTemplate>,
    /// What to do with times that would go back.
    pub(super) times: Times,
}

/// Attributes from headers, checked, by name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attributes(BTreeMap<String, String>);

impl Attributes {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The event to append for an envelope. It is stored as written; reading the log parses it, as for
/// an event from JetStream.
pub(super) fn of_envelope(
    envelope: &Envelope<'_>,
    text: &[u8],
    options: &AppendOptions,
) -> Result<NewEvent, Error> {
    let mut headers = vec![("content-type".to_owned(), MEDIA_TYPE.to_owned())];
    if let Some(others) = envelope.get(HEADERS_ATTRIBUTE) {
        headers.extend(other_headers(others)?);
    }
    Ok(NewEvent {
        subject: SubjectTemplate::subject(options.template.as_ref(), envelope)?,
        kind: None,
        // Source and id together identify an event (CloudEvents 1.0, `id`).
        id: Some(message_id(
            envelope.required("source"),
            envelope.required("id"),
        )),
        time_ns: time_of(|name| envelope.get(name), options.times)?,
        headers,
        data: Payload::detect(Bytes::copy_from_slice(text.trim_ascii())),
    })
}

/// The event to append for a body whose attributes are in headers.
pub(super) fn of_binary(
    attributes: &Attributes,
    body: &[u8],
    options: &AppendOptions,
) -> Result<NewEvent, Error> {
    // Our own attributes say how an event was exported. They decide how it is appended, and are not
    // stored with it.
    let stored = attributes
        .0
        .iter()
        .filter(|(name, _)| !cloudevents::is_ours(name));
    let mut headers: Vec<_> = stored
        .map(|(name, value)| match name.as_str() {
            "datacontenttype" => ("content-type".to_owned(), value.clone()),
            name => (
                format!("{HEADER_PREFIX}{name}"),
                percent::encode(value).into_owned(),
            ),
        })
        .collect();
    if let Some(others) = attributes.get(HEADERS_ATTRIBUTE) {
        headers.extend(other_headers(others)?);
    }
    let get = |name: &str| attributes.get(name);
    Ok(NewEvent {
        subject: SubjectTemplate::of(options.template.as_ref(), get)?,
        kind: None,
        id: Some(message_id(
            get("source").unwrap_or_default(),
            get("id").unwrap_or_default(),
        )),
        time_ns: time_of(get, options.times)?,
        headers,
        data: Payload::detect(Bytes::copy_from_slice(body)),
    })
}

/// The attributes in the headers of a request; none if it has no such header.
pub(super) fn attributes(headers: &HeaderMap) -> Result<Option<Attributes>, Problem> {
    let mut attributes = BTreeMap::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(HEADER_PREFIX) else {
            continue;
        };
        // The name is shortened: a client may send any.
        let refused = |reason: &str| Problem::invalid(format!("header {header:.70} {reason}"));
        if name == "datacontenttype" {
            return Err(refused(
                "is not allowed over HTTP: use content-type for the type of the data",
            ));
        }
        let raw = std::str::from_utf8(value.as_bytes())
            .map_err(|_| refused("is not UTF-8; percent-encode it"))?;
        let text = percent::decode(raw)
            .ok_or_else(|| refused("is not UTF-8 once it is percent-decoded"))?;
        check(name, &text)?;
        if attributes
            .insert(name.to_owned(), text.into_owned())
            .is_some()
        {
            return Err(refused("occurs twice; send it once"));
        }
    }
    if attributes.is_empty() {
        return Ok(None);
    }
    // Over HTTP this attribute has no header of its own.
    if let Some(value) = headers.get(header::CONTENT_TYPE) {
        let text = value
            .to_str()
            .map_err(|_| Problem::invalid("header content-type is not ASCII; correct it"))?;
        check("datacontenttype", text)?;
        attributes.insert("datacontenttype".to_owned(), text.to_owned());
    }
    let found = cloudevents::check_required(|name| attributes.get(name).map(String::as_str));
    found.map_err(|error| {
        Problem::invalid(format!(
            "the request has ce- headers, so its body is the data of a CloudEvent, but it {error}"
        ))
    })?;
    Ok(Some(Attributes(attributes)))
}

fn check(name: &str, text: &str) -> Result<(), Problem> {
    let checked = cloudevents::check_name(name).and_then(|()| cloudevents::check_text(name, text));
    checked.map_err(|error| Problem::invalid(format!("the event in the headers {error}")))
}

/// Whether the client asks for a batch of CloudEvents.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut forms = accepted
        .flat_map(|value| value.split(','))
        .filter_map(cloudevents::form);
    forms.any(|form| form == cloudevents::Form::Batch)
}

/// Refuses JSON in any character set but UTF-8.
pub(super) fn check_charset(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let charset = value
        .split(';')
        .skip(1)
        .filter_map(|parameter| parameter.split_once('='))
        .find_map(|(name, value)| {
            name.trim()
                .eq_ignore_ascii_case("charset")
                .then(|| value.trim().trim_matches('"').to_ascii_lowercase())
        });
    match charset.as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(()),
        Some(other) => {
            let found = format!("of charset {other:.64}");
            Err(extract::unsupported(
                Some(&found),
                &format!("{MEDIA_TYPE} in UTF-8"),
            ))
        }
    }
}

/// The time under which to store an event: the time with which it was exported, otherwise its own.
fn time_of<'a>(get: impl Fn(&str) -> Option<&'a str>, times: Times) -> Result<Option<u64>, Error> {
    // The first counts: with it an export comes back under the times that it had.
    let said = [TIME_ATTRIBUTE, "time"]
        .into_iter()
        .find_map(|name| Some((name, get(name)?)));
    let Some((name, text)) = said.filter(|_| times != Times::Ignore) else {
        return Ok(None);
    };
    timestamp::parse_ns(text)
        .map(Some)
        .map_err(|error| Error::Attribute {
            name: format!("attribute {name}"),
            reason: format!(
                "is {text:.64}, which {error}; use times=ignore to store it with the time \
                         of the append"
            ),
        })
}

/// The headers with which an event was exported.
fn other_headers(text: &str) -> Result<Vec<(String, String)>, Error> {
    let refused = |reason: String| Error::Attribute {
        name: format!("attribute {HEADERS_ATTRIBUTE}"),
        reason,
    };
    let json::Texts(others) = serde_json::from_str(text).map_err(|error| {
        refused(format!(
            "is not a JSON object of strings in a string: {error}"
        ))
    })?;
    // These have a place of their own in an event, or are set by servers and hosts.
    let is_taken = |name: &str| {
        let name = name.to_ascii_lowercase();
        name == "content-type"
            || [HEADER_PREFIX, "nats-", "foldstream-"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    if let Some(name) = others.keys().find(|name| is_taken(name)) {
        return Err(refused(format!(
            "has a header {name:.64}, which a sender must not set; remove it"
        )));
    }
    Ok(others.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                *name,
                axum::http::HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            );
        }
        headers
    }

    const MINIMAL: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "made"),
    ];

    fn refused(more: &[(&'static str, &'static str)]) -> String {
        let mut pairs = MINIMAL.to_vec();
        pairs.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
        pairs.extend(more.iter().filter(|(_, value)| *value != "-"));
        attributes(&headers(&pairs))
            .expect_err("invalid")
            .detail()
            .to_owned()
    }

    #[test]
    fn attributes_in_headers_are_decoded_once() {
        let mut pairs = MINIMAL.to_vec();
        pairs.extend([
            ("ce-subject", "Euro%20%E2%82%AC%2520"),
            ("ce-quoted", "\"two words\""),
            ("content-type", "text/plain"),
        ]);
        let found = attributes(&headers(&pairs))
            .expect("sound")
            .expect("there are some");
        assert_eq!(found.get("subject"), Some("Euro €%20"));
        assert_eq!(found.get("quoted"), Some("two words"));
        let event = of_binary(&found, b"\xff\0", &AppendOptions::default()).expect("sound");
        assert_eq!(
            (event.subject.as_str(), event.id.as_deref()),
            ("made", Some("/s 1"))
        );
        assert!(
            event
                .headers
                .contains(&("ce-subject".to_owned(), "Euro%20%E2%82%AC%2520".to_owned()))
        );
        assert!(
            event
                .headers
                .contains(&("content-type".to_owned(), "text/plain".to_owned()))
        );
        assert_eq!(event.data.as_bytes(), b"\xff\0");
        assert!(
            attributes(&headers(&[("content-type", "text/plain")]))
                .expect("sound")
                .is_none()
        );
    }

    #[test]
    fn own_attributes_are_accepted_in_headers_as_in_json() {
        let mut pairs = MINIMAL.to_vec();
        pairs.extend([
            ("ce-foldstreamsubject", "orders.1"),
            ("ce-foldstreamheaders", "{%22x-two%22:%222%22}"),
        ]);
        let found = attributes(&headers(&pairs))
            .expect("sound")
            .expect("there are some");
        let event = of_binary(&found, b"1", &AppendOptions::default()).expect("sound");
        assert_eq!(event.subject, "orders.1");
        assert!(
            event
                .headers
                .contains(&("x-two".to_owned(), "2".to_owned())),
            "{:?}",
            event.headers
        );
        assert!(
            event
                .headers
                .iter()
                .all(|(name, _)| !name.contains("foldstream")),
            "{:?}",
            event.headers
        );
    }

    #[test]
    fn invalid_attributes_in_headers_are_named() {
        for name in ["specversion", "id", "source", "type"] {
            let header = MINIMAL
                .iter()
                .find(|(header, _)| header.ends_with(name))
                .expect("one of them")
                .0;
            assert!(refused(&[(header, "-")]).contains(&format!("attribute {name} is missing")));
            assert!(refused(&[(header, "")]).contains(&format!("attribute {name} is empty")));
        }
        for (header, value, said) in [
            ("ce-specversion", "0.3", "attribute specversion is 0.3"),
            ("ce-time", "lunchtime", "attribute time"),
            ("ce-subject", "", "attribute subject is empty"),
            ("ce-dataschema", "relative", "attribute dataschema"),
            ("ce-subject", "%C0%A0", "header ce-subject is not UTF-8"),
            ("ce-subject", "a%0Ab", "U+000A"),
            ("ce-my-extension", "x", "attribute my-extension has a name"),
            ("ce-data", "x", "attribute data is the name"),
            ("ce-", "x", "has a name"),
            (
                "ce-datacontenttype",
                "text/plain",
                "use content-type for the type of the data",
            ),
            ("content-type", "xyz", "attribute datacontenttype"),
        ] {
            assert!(
                refused(&[(header, value)]).contains(said),
                "{header}: {}",
                refused(&[(header, value)])
            );
        }
        assert!(refused(&[("ce-subject", "a"), ("ce-subject", "b")]).contains("occurs twice"));
    }

    #[test]
    fn headers_of_an_exported_event_come_back_unless_they_are_not_its_own() {
        assert_eq!(
            other_headers(r#"{"x-two":"2"}"#).expect("sound"),
            [("x-two".to_owned(), "2".to_owned())]
        );
        for wrong in [
            "",
            "[]",
            "{\"a\":1}",
            r#"{"Nats-Msg-Id":"1"}"#,
            r#"{"ce-id":"1"}"#,
            r#"{"content-type":"a/b"}"#,
        ] {
            assert!(
                other_headers(wrong)
                    .expect_err(wrong)
                    .to_string()
                    .contains(HEADERS_ATTRIBUTE)
            );
        }
    }

    #[test]
    fn an_event_from_before_all_logs_says_what_to_do() {
        let get = |name: &str| (name == "time").then_some("1945-01-01T00:00:00Z");
        assert!(
            time_of(get, Times::Raise)
                .expect_err("too early")
                .to_string()
                .contains("times=ignore")
        );
        assert_eq!(time_of(get, Times::Ignore), Ok(None));
    }
}
