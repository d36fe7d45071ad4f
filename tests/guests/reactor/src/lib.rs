//! A handler that answers each event `in.<key>.<what>` with messages to `out.<key>.<sequence>`, as
//! its subject asks. With the feature `broken` it rejects events that ask for three, after
//! publishing one; with `fixed` it answers those that it is asked to fail at.

wit_bindgen::generate!({ world: "handler", path: "../../../wit" });

use foldstream::module::outbox::{Delivery, ExpectedLast, Message, publish, publish_with};
use foldstream::module::state::{get, put};
use foldstream::module::timers::{Timer, set};
use foldstream::module::types::{ErrorPolicy, FailureKind, KeyRule, Limits};

struct Reactor;

impl Guest for Reactor {
    fn manifest() -> HandlerManifest {
        HandlerManifest {
            name: "reactor".to_owned(),
            description: "Answers each event with messages".to_owned(),
            subjects: vec!["in.*.*".to_owned()],
            wants_headers: false,
            key_rule: KeyRule::SubjectToken(2),
            state_version: 1,
            error_policy: ErrorPolicy {
                attempts: Some(2),
                initial_backoff_ms: Some(10),
                max_backoff_ms: Some(20),
            },
            limits: Limits {
                memory_bytes: None,
                deadline_ms: None,
                batch_events: None,
                state_bytes: None,
            },
            queries: Vec::new(),
            publishes: vec!["out.>".to_owned(), "elsewhere.>".to_owned()],
            sets_timers: false,
        }
    }

    fn handle(events: Vec<Event>) -> Result<(), Failure> {
        for (cause, event) in (0..).zip(&events) {
            let mut tokens = event.subject.split('.').skip(1);
            let (key, what) = (
                tokens.next().unwrap_or_default(),
                tokens.next().unwrap_or_default(),
            );
            count(key);
            let message = |subject: String, number: u32| Message {
                cause,
                subject,
                kind: Some("answer".to_owned()),
                headers: vec![("x-number".to_owned(), number.to_string())],
                data: Payload::Text(format!("{{\"of\":{},\"number\":{number}}}", event.sequence)),
                key: None,
            };
            match what {
                "one" => publish(&[message(format!("out.{key}.{}", event.sequence), 0)]),
                "fail" if cfg!(feature = "fixed") => {
                    publish(&[message(format!("out.{key}.{}", event.sequence), 0)]);
                }
                "three" if cfg!(feature = "broken") => {
                    publish(&[message(format!("out.{key}.{}", event.sequence), 0)]);
                    let message = "this release can't answer three times".to_owned();
                    return Err(Failure {
                        index: cause,
                        kind: FailureKind::Reject,
                        message,
                    });
                }
                "three" => {
                    publish(&[message(format!("out.{key}.{}", event.sequence), 0)]);
                    let more = [1, 2]
                        .map(|number| message(format!("out.{key}.{}", event.sequence), number));
                    publish(&more);
                }
                "large" => {
                    let data = Payload::Text("x".repeat(100_000));
                    publish(&[Message {
                        data,
                        ..message(format!("out.{key}.{}", event.sequence), 0)
                    }]);
                }
                "elsewhere" => {
                    publish(&[message(format!("elsewhere.{key}.{}", event.sequence), 0)])
                }
                "undeclared" => publish(&[message("undeclared".to_owned(), 0)]),
                "steering" => {
                    let headers = vec![("nats-Rollup".to_owned(), "all".to_owned())];
                    publish(&[Message {
                        headers,
                        ..message(format!("out.{key}.{}", event.sequence), 0)
                    }]);
                }
                "later" | "tomorrow" | "past" | "brief" | "overdue" | "first" | "alone" => {
                    publish_with(&[delivered(key, what, event, message)]);
                }
                // It does not declare that it does.
                "timer" => set(
                    cause,
                    &[Timer {
                        name: "timer".to_owned(),
                        at_ns: 0,
                        key: None,
                    }],
                ),
                "fail" => {
                    publish(&[message(format!("out.{key}.{}", event.sequence), 0)]);
                    let message = "it was asked to fail".to_owned();
                    return Err(Failure {
                        index: cause,
                        kind: FailureKind::Reject,
                        message,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn on_timer(_timers: Vec<Fired>) -> Result<(), Failure> {
        Ok(())
    }

    fn query(name: String, _args: Payload) -> Result<Payload, QueryError> {
        if name == "publish" {
            let (subject, data) = ("out.query.0".to_owned(), Payload::Text(String::new()));
            publish(&[Message {
                cause: 0,
                subject,
                kind: None,
                headers: Vec::new(),
                data,
                key: None,
            }]);
        }
        Err(QueryError::UnknownQuery)
    }
}

/// A message with what it asks of its delivery: four seconds or a day after the event, long ago, for
/// a second, both of these, or on the condition that nothing is there yet, under its own subject or a pattern.
fn delivered(
    key: &str,
    what: &str,
    event: &Event,
    message: impl Fn(String, u32) -> Message,
) -> (Message, Delivery) {
    let of_event = message(format!("out.{key}.{}", event.sequence), 0);
    let at = |not_before_ns| Delivery {
        not_before_ns: Some(not_before_ns),
        ..PLAIN
    };
    let expecting = |subject| Delivery {
        expected_last: Some(ExpectedLast {
            subject,
            sequence: 0,
        }),
        ..PLAIN
    };
    match what {
        "later" => {
            let data = format!("{{\"of\":{},\"number\":0,\"later\":true}}", event.sequence);
            let later = Message {
                data: Payload::Text(data),
                ..of_event
            };
            (later, at(event.time_ns + 4_000_000_000))
        }
        "tomorrow" => (of_event, at(event.time_ns + 86_400_000_000_000)),
        "past" => (of_event, at(1)),
        "brief" => {
            let delivery = Delivery {
                time_to_live_s: Some(1),
                ..PLAIN
            };
            (of_event, delivery)
        }
        "overdue" => {
            let delivery = Delivery {
                time_to_live_s: Some(1),
                ..at(1)
            };
            (of_event, delivery)
        }
        "first" => (message(format!("out.{key}.first"), 0), expecting(None)),
        _ => {
            let pattern = format!("out.{key}.>");
            (
                message(format!("out.{key}.alone"), 0),
                expecting(Some(pattern)),
            )
        }
    }
}

/// Nothing special.
const PLAIN: Delivery = Delivery {
    not_before_ns: None,
    time_to_live_s: None,
    expected_last: None,
};

/// How many events of a key it has handled.
fn count(key: &str) {
    let key = format!("handled/{key}");
    let before = match get(&key) {
        Some(Payload::Text(number)) => number.parse().unwrap_or(0),
        _ => 0,
    };
    put(&key, &Payload::Text((before + 1).to_string()));
}

export!(Reactor);
