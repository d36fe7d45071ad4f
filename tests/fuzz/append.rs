//! Events as JSON and NDJSON: accepted events can be read, exported and appended again; all others
//! are refused with a reason.

use fastrand::Rng;
use foldstream::subject::validate;
use foldstream_tests::fuzz::{change, drive, text};

use crate::log::{Log, headers};

/// What the bodies are made of.
const WORDS: &[&str] = &[
    "\"subject\":",
    "\"type\":",
    "\"id\":",
    "\"time\":",
    "\"headers\":",
    "\"data\":",
    "\"events\":",
    "null",
    "{}",
    "[]",
    "\"a.b\"",
    "\"$bytes\"",
    "\"expected_last_sequence\":0",
    "\"expected_subject\":\"a.>\"",
    "\\u0000",
    "\\ud800",
    "\n",
    "\"content-type\":\"application/cloudevents+json\"",
    "\"specversion\":\"1.0\"",
    "\"Nats-Msg-Id\":\"1\"",
    "1e999",
];

#[test]
fn appended_events_come_back_or_are_refused_with_a_reason() {
    let mut log = Log::start();
    drive::run("append", 700, |rng| case(rng, &mut log));
    log.assert_lives();
}

fn subject(rng: &mut Rng) -> String {
    match rng.u8(0..6) {
        0 => text::any(rng),
        1 => format!("{}.{}", text::any(rng), text::any(rng)),
        _ => format!("orders.{}.{}", rng.u8(0..20), text::word(rng)),
    }
}

fn event(rng: &mut Rng) -> String {
    let mut members = vec![format!(
        "\"subject\":{}",
        serde_json::to_string(&subject(rng)).expect("a text")
    )];
    if rng.u8(0..3) == 0 {
        members.push(format!("\"type\":{}", text::quoted(rng)));
    }
    if rng.u8(0..3) == 0 {
        members.push(format!("\"id\":{}", text::quoted(rng)));
    }
    if rng.u8(0..4) == 0 {
        members.push(format!(
            "\"time\":{}",
            serde_json::to_string(&text::time(rng)).expect("a text")
        ));
    }
    if rng.u8(0..3) == 0 {
        let header = |rng: &mut Rng| {
            let known = [
                "content-type",
                "ce-type",
                "ce-id",
                "event-type",
                "traceparent",
                "x",
                "Nats-Msg-Id",
                "ce_type",
            ];
            let name = if rng.bool() {
                (*rng.choice(&known).expect("some")).to_owned()
            } else {
                text::any(rng)
            };
            let value = if rng.u8(0..4) == 0 {
                "application/cloudevents+json".to_owned()
            } else {
                text::any(rng)
            };
            format!(
                "{}:{}",
                serde_json::to_string(&name).expect("text"),
                serde_json::to_string(&value).expect("text")
            )
        };
        let headers: Vec<_> = (0..rng.usize(0..5)).map(|_| header(rng)).collect();
        members.push(format!("\"headers\":{{{}}}", headers.join(",")));
    }
    if rng.u8(0..5) > 0 {
        members.push(format!("\"data\":{}", text::json(rng, 3)));
    }
    rng.shuffle(&mut members);
    format!("{{{}}}", members.join(","))
}

fn case(rng: &mut Rng, log: &mut Log) -> &'static str {
    let events: Vec<String> = (0..rng.usize(1..4)).map(|_| event(rng)).collect();
    let is_json = rng.bool();
    let mut body = if is_json {
        let more = rng.choice(&[
            "",
            "",
            ",\"expected_last_sequence\":0",
            ",\"expected_last_subject_sequence\":0",
        ]);
        format!(
            "{{\"events\":[{}]{}}}",
            events.join(","),
            more.expect("some")
        )
    } else {
        events.join(rng.choice(&["\n", "\r\n", "\n\n", " \n"]).expect("some"))
    }
    .into_bytes();
    if rng.u8(0..3) == 0 {
        body = change::changed(rng, &body, WORDS);
    }
    let kind = if is_json {
        "application/json"
    } else {
        "application/x-ndjson"
    };
    let query = *rng
        .choice(&[
            "",
            "",
            "",
            "?times=ignore",
            "?times=refuse",
            "?times=raise",
            "?subject=a.{type}",
        ])
        .expect("some");
    let Ok(appended) = log.append(query, &headers(&[("content-type", kind)]), &body) else {
        return "refused";
    };
    let sequence = *rng.choice(&appended.sequences).expect("one at least");
    let stored = log.event(sequence);
    assert_eq!(validate(&stored.subject), Ok(()), "{stored:?}");
    log.comes_back(sequence);
    "appended"
}
