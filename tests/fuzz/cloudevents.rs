//! CloudEvents: every way in accepts the same ones, and turns them into the same event.

use fastrand::Rng;
use foldstream::api::StoredEvent;
use foldstream::cloudevents::{Recognition, percent};
use foldstream::entry::{self, Reading};
use foldstream::event;
use foldstream_tests::fuzz::{change, drive, text};

use crate::log::{Headers, Log, headers};

/// What envelopes are made of.
const WORDS: &[&str] = &[
    "\"specversion\":\"1.0\"",
    "\"id\":\"1\"",
    "\"source\":\"/s\"",
    "\"type\":\"t\"",
    "\"time\":\"2018-04-05T17:31:00Z\"",
    "\"data\":",
    "\"data_base64\":\"AP8=\"",
    "\"datacontenttype\":\"text/plain\"",
    "\"subject\":null",
    "null",
    "true",
    "-1",
    "2147483648",
    "{}",
    "[]",
    "\\u0000",
    "\\ud800",
    "\"foldstreamsubject\":\"a.b\"",
    "\"foldstreamheaders\":\"{}\"",
    "\"foldstreamtime\":\"1970-01-01T00:00:00Z\"",
    "\"traceparent\":\"00-1-2-00\"",
    "\"dataschema\":\"a:b\"",
    "\u{fdd0}",
];

const MEDIA_TYPES: &[&str] = &[
    "application/json",
    "text/plain",
    "TEXT/Plain; charset=\"utf-8\"",
    "application/x+json",
    "image/png",
    "x/y",
    "xyz",
    "",
];

#[test]
fn each_way_in_accepts_the_same_cloudevents() {
    let mut log = Log::start();
    drive::run("cloudevents", 500, |rng| match rng.u8(0..8) {
        0..=3 => json(rng, &mut log),
        4 | 5 => binary(rng, &mut log),
        _ => message(rng),
    });
    log.assert_lives();
}

/// The attributes of an event as text; most are valid.
fn attributes(rng: &mut Rng) -> Vec<(String, String)> {
    let mut pairs = vec![
        (
            "specversion".to_owned(),
            (*rng
                .choice(&["1.0", "1.0", "1.0", "1.0", "1.0", "0.3", ""])
                .expect("some"))
            .to_owned(),
        ),
        ("id".to_owned(), text::any(rng)),
        ("source".to_owned(), text::any(rng)),
        ("type".to_owned(), text::any(rng)),
    ];
    let mut more = |name: &str, value: String| pairs.push((name.to_owned(), value));
    if rng.u8(0..3) == 0 {
        more("subject", text::any(rng));
    }
    if rng.u8(0..3) == 0 {
        more("time", text::time(rng));
    }
    if rng.u8(0..4) == 0 {
        more("traceparent", text::any(rng));
    }
    if rng.u8(0..4) == 0 {
        more(&text::word(rng), text::any(rng));
    }
    if rng.u8(0..8) == 0 {
        more("foldstreamsubject", text::any(rng));
    }
    if rng.u8(0..16) == 0 {
        more(&text::any(rng), text::any(rng));
    }
    if rng.u8(0..12) == 0 {
        pairs.remove(rng.usize(..pairs.len()));
    }
    pairs
}

fn envelope(rng: &mut Rng) -> String {
    let quote = |text: &str| serde_json::to_string(text).expect("a text");
    let pairs = attributes(rng);
    let mut members: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{}:{}", quote(name), quote(value)))
        .collect();
    if rng.u8(0..3) == 0 {
        members.push(format!(
            "\"datacontenttype\":{}",
            quote(rng.choice(MEDIA_TYPES).expect("some"))
        ));
    }
    match rng.u8(0..6) {
        0 => {}
        1 => {
            let bytes = rng.choice(&["AP8=", "YQ==", "", "YQ", "?"]).expect("some");
            members.push(format!("\"data_base64\":\"{bytes}\""));
        }
        _ => members.push(format!("\"data\":{}", text::json(rng, 3))),
    }
    rng.shuffle(&mut members);
    format!("{{{}}}", members.join(","))
}

/// One text, on each of the three ways that take JSON, and as a message of a stream.
fn json(rng: &mut Rng, log: &mut Log) -> &'static str {
    let mut text = envelope(rng);
    if rng.u8(0..3) == 0 {
        text = change::changed_text(rng, &text, WORDS);
    }
    let query = *rng
        .choice(&[
            "",
            "",
            "?times=ignore",
            "?subject=shop.%7Bid%7D.%7Btype:tokens%7D",
        ])
        .expect("some");
    let mut send = |kind: &str, body: &str| {
        log.append(query, &headers(&[("content-type", kind)]), body.as_bytes())
    };
    let first = send("application/cloudevents+json", &text);
    let batch = send("application/cloudevents-batch+json", &format!("[{text}]"));
    // Behind an end of line there is another event; what has no specversion is an event of our own
    // form.
    if !text.contains('\n') && text.contains("\"specversion\"") {
        let line = send("application/x-ndjson", &text);
        assert_eq!(line.is_ok(), first.is_ok(), "a line, and by itself: {text}");
        if let (Ok(line), Ok(first)) = (&line, &first) {
            assert_eq!(line.sequences, first.sequences, "{text}");
        }
    }
    match (first, batch) {
        (Ok(first), Ok(batch)) => {
            assert_eq!(
                first.sequences, batch.sequences,
                "in a batch, and by itself: {text}"
            );
            let stored = log.event(first.sequences[0]);
            assert_same(&stored, &text);
            log.comes_back(first.sequences[0]);
            "event"
        }
        (Err(_), Err(_)) => "refused",
        // A list is closed where the text of an event ends early.
        (Err(_), Ok(batch)) if batch.sequences.len() != 1 => "list",
        (first, batch) => panic!("by itself {first:?}, in a batch {batch:?}: {text}"),
    }
}

/// What a log has of a structured event is what a stream with the same message has.
fn assert_same(stored: &StoredEvent, text: &str) {
    let kind = [("content-type", "application/cloudevents+json")];
    let event = entry::message(
        "any.subject",
        &kind,
        text.as_bytes(),
        Reading {
            recognition: Recognition::Auto,
            headers: event::Headers::Wanted,
        },
    );
    let streamed = StoredEvent::from(&event);
    assert_eq!(
        (&streamed.kind, &streamed.data),
        (&stored.kind, &stored.data),
        "{text}"
    );
    let own = |name: &&String| name.as_str() != "nats-msg-id";
    let names = |event: &StoredEvent| {
        event
            .headers
            .keys()
            .filter(own)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(
        names(&streamed)
            .iter()
            .all(|name| stored.headers.contains_key(name)),
        "{streamed:?} {stored:?}"
    );
}

fn binary(rng: &mut Rng, log: &mut Log) -> &'static str {
    let mut sent = Headers::new();
    for (name, value) in attributes(rng) {
        let value = match rng.u8(0..6) {
            0 => change::changed(
                rng,
                percent::encode(&value).as_bytes(),
                &["%", "%c3", "%A9", "%ff", "\"", "\\"],
            ),
            1 => value.into_bytes(),
            2 => format!("\"{}\"", percent::encode(&value)).into_bytes(),
            _ => percent::encode(&value).into_owned().into_bytes(),
        };
        sent.push((format!("ce-{name}"), value));
    }
    if rng.bool() {
        sent.push((
            "content-type".to_owned(),
            rng.choice(MEDIA_TYPES).expect("some").as_bytes().to_vec(),
        ));
    }
    // What would end a header is not sent: it would be another request.
    let is_name = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    sent.retain(|(name, value)| {
        is_name(name) && !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
    });
    let data = text::json(rng, 2);
    let body = change::changed(rng, data.as_bytes(), WORDS);
    let Ok(appended) = log.append("", &sent, &body) else {
        return "binary, refused";
    };
    log.comes_back(appended.sequences[0]);
    "binary event"
}

/// A message of a stream becomes an event whatever it is; its type and data do not depend on the
/// headers being wanted.
fn message(rng: &mut Rng) -> &'static str {
    let prefix = *rng.choice(&["ce-", "ce_", "ce-"]).expect("some");
    let mut pairs: Vec<(String, String)> = attributes(rng)
        .into_iter()
        .map(|(name, value)| {
            (
                format!("{prefix}{name}"),
                if rng.bool() {
                    value
                } else {
                    percent::encode(&value).into()
                },
            )
        })
        .collect();
    let kind = rng.choice(&[
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "application/json",
        "",
    ]);
    pairs.push(("content-type".to_owned(), (*kind.expect("some")).to_owned()));
    if rng.bool() {
        pairs.retain(|(name, _)| name == "content-type");
    }
    rng.shuffle(&mut pairs);
    let text = if rng.bool() {
        envelope(rng)
    } else {
        text::json(rng, 3)
    };
    let data = if rng.bool() {
        text.into_bytes()
    } else {
        change::changed(rng, text.as_bytes(), WORDS)
    };
    let pairs: Vec<(&str, &str)> = pairs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let recognition = *rng
        .choice(&[Recognition::Auto, Recognition::Headers, Recognition::Off])
        .expect("some");
    let read = |headers| {
        let reading = Reading {
            recognition,
            headers,
        };
        entry::message("orders.1.placed", &pairs, &data, reading)
    };
    let (with, without) = (read(event::Headers::Wanted), read(event::Headers::Left));
    assert_eq!(
        (&with.kind, &with.data),
        (&without.kind, &without.data),
        "{pairs:?} {:?}",
        String::from_utf8_lossy(&data)
    );
    assert!(
        with.headers.is_sorted_by(|one, other| one.0 <= other.0) && without.headers.is_empty(),
        "{with:?}"
    );
    if with.header("foldstream-cloudevent-error").is_some() {
        "malformed message"
    } else {
        "message"
    }
}
