//! A handler that does for each event `in.<key>.<what>` what its subject asks. The same is written
//! in other languages, in `guest-sdk`, and must publish, set and store the same.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use serde::Serialize;

/// Later than any test lasts.
const TOMORROW: Duration = Duration::from_secs(86_400);

/// The data of a message.
#[derive(Serialize)]
struct Answer<'a> {
    of: u64,
    number: u32,
    text: &'a str,
}

/// The data of the message of a timer.
#[derive(Serialize)]
struct Rang<'a> {
    name: &'a str,
    part: &'a str,
    key: Option<&'a str>,
    is_due: bool,
}

struct Answers {
    /// How many events of a key it has handled, and timers.
    handled: Table<String, u64>,
}

impl Handler for Answers {
    fn manifest() -> Manifest<Self> {
        Manifest::new("answers")
            .description("Answers each event as its subject asks")
            .subjects(["in.*.*"])
            .publishes(["out.>"])
            .replies()
            .timers()
            .key(KeyRule::SubjectToken(2))
            .attempts(2)
            .backoff(Duration::from_millis(10), Duration::from_millis(20))
            .inbox(Duration::from_secs(3_600))
            .inbox_limit(1_000)
            .query(
                "handled",
                "How many events of a key it has handled",
                |answers: &Self, key: String| {
                    answers.handled.get(&key)?.ok_or(QueryError::NotFound)
                },
            )
    }

    fn open(state: &State) -> Self {
        Self {
            handled: state.table("handled"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = event.token(2)?;
        self.handled.update(key, |count| *count += 1)?;
        let of = event.sequence();
        let answer = |number: u32, text: &str| {
            Message::to(format!("out.{key}.{of}"))
                .kind("answer")
                .header("x-number", number.to_string())
                .json(&Answer { of, number, text })
        };
        match event.token(3)? {
            "three" => {
                for number in 0..3 {
                    effects.publish(answer(number, "\u{0}ë\u{1f980}\"\\/")?);
                }
            }
            "plain" => effects.publish(Message::to(format!("out.{key}.plain"))),
            "text" => effects.publish(Message::to(format!("out.{key}.text")).text("no JSON")),
            "bytes" => {
                effects.publish(Message::to(format!("out.{key}.bytes")).bytes([0, 255, 128]))
            }
            "keyed" => effects.publish(answer(0, "")?.key("another/ë")),
            "later" => effects.publish(answer(0, "later")?.not_before(event.time() + TOMORROW)),
            "past" => {
                effects.publish(answer(0, "past")?.not_before(Timestamp::from_nanoseconds(1_000)))
            }
            "brief" => {
                effects.publish(answer(0, "brief")?.time_to_live(Duration::from_secs(3_600)))
            }
            "first" => effects.publish(Message::to(format!("out.{key}.first")).expected_last(0)),
            "alone" => effects.publish(
                Message::to(format!("out.{key}.alone")).expected_last_of(format!("out.{key}.>"), 0),
            ),
            "elsewhere" => effects.publish(Message::to("elsewhere")),
            "timer" => {
                effects.set_timer(Timer::at(
                    Timestamp::from_nanoseconds(0),
                    format!("now/{key}"),
                ));
                effects.set_timer(Timer::after(event, TOMORROW, format!("later/{key}")));
            }
            "keyed-timer" => {
                let timer = Timer::at(event.time(), format!("keyed/{key}"));
                effects.set_timer(timer.key("another/ë"));
            }
            "replace" => {
                let later = || Timer::after(event, TOMORROW, format!("replaced/{key}"));
                effects.set_timer(later());
                effects.cancel_timer(format!("replaced/{key}"));
                effects.set_timer(later().key("last"));
            }
            "cancel" => effects.cancel_timer(format!("later/{key}")),
            "reply" => effects.reply(event, &of)?,
            "fail" => {
                effects.publish(answer(0, "lost")?);
                effects.cancel_timer(format!("later/{key}"));
                return Err(Failure::reject("it was asked to fail"));
            }
            // Half of a character, which this language does not have.
            "half" => {
                foldstream_sdk::info!("half a\u{fffd}");
                return Err(Failure::reject("a half: a\u{fffd}"));
            }
            "retry" => return Err(Failure::retry("not yet")),
            _ => {}
        }
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        self.handled.update("timers", |count| *count += 1)?;
        let rang = Rang {
            name: timer.name(),
            part: timer.part(2),
            key: timer.key(),
            is_due: timer.time() >= timer.at(),
        };
        let subject = format!("out.{}.rang", timer.part(2));
        effects.publish(Message::to(subject).json(&rang)?);
        Ok(())
    }
}

handler!(Answers);
