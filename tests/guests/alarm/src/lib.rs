//! A handler that rings: `alarm.<key>.set` sets the timer `<key>/<name>`, and each timer that fires
//! publishes `rang.<key>.<name>` and counts in a table. What else happens is in the data.
//!
//! Events `ill-set` and `ill-cancel` are rejected, and so are timers whose names begin with `fails`;
//! the guest `alarm-fixed` handles them like others, except names that begin with `fails-always`.

use std::time::Duration;

use foldstream_sdk::prelude::*;

/// The data of an event `set`.
#[derive(Deserialize)]
struct Set {
    name: String,
    /// How long after the event it fires.
    #[serde(default)]
    after_ms: u64,
    /// When it fires instead, in nanoseconds since the Unix epoch.
    #[serde(default)]
    at_ns: Option<u64>,
    /// How many timers, with numbers behind the name.
    #[serde(default = "one")]
    count: u64,
}

fn one() -> u64 {
    1
}

/// The data of an event `cancel`.
#[derive(Deserialize)]
struct Cancel {
    name: String,
}

events! {
    /// What is asked.
    enum Asked {
        "set" => Set(Set),
        "cancel" => Cancel(Cancel),
        "ill-set" => IllSet(Set),
        "ill-cancel" => IllCancel(Cancel),
        _ => Other,
    }
}

/// The data of a message.
#[derive(Serialize)]
struct Rang<'a> {
    name: &'a str,
    at: u64,
    fired: u64,
    sequence: u64,
}

struct Alarm {
    /// How often each timer has fired.
    rang: Table<String, u64>,
    /// How many events of a key there were, and at which of them a timer of it fired last.
    events: Table<String, u64>,
    at: Table<String, u64>,
}

impl Handler for Alarm {
    fn manifest() -> Manifest<Self> {
        Manifest::new("alarm")
            .description("Rings at a time")
            .subjects(["alarm.*.*"])
            .publishes(["rang.>"])
            .timers()
            .key(KeyRule::SubjectToken(2))
    }

    fn open(state: &State) -> Self {
        Self {
            rang: state.table("rang"),
            events: state.table("events"),
            at: state.table("at"),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = event.token(2)?;
        self.events.update(key, |count| *count += 1)?;
        let asked = event.decode()?;
        let is_ill = matches!(asked, Asked::IllSet(_) | Asked::IllCancel(_));
        if is_ill && !cfg!(feature = "fixed") {
            return Err(Failure::reject("a mistake in the code"));
        }
        match asked {
            Asked::Set(set) | Asked::IllSet(set) => {
                for number in 0..set.count {
                    let name = if set.count == 1 {
                        format!("{key}/{}", set.name)
                    } else {
                        format!("{key}/{}-{number:06}", set.name)
                    };
                    let at = set.at_ns.map_or(
                        event.time() + Duration::from_millis(set.after_ms),
                        Timestamp::from_nanoseconds,
                    );
                    effects.set_timer(Timer::at(at, name));
                }
            }
            Asked::Cancel(cancel) | Asked::IllCancel(cancel) => {
                effects.cancel_timer(format!("{key}/{}", cancel.name))
            }
            Asked::Other => {}
        }
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let (key, name) = (timer.part(1), timer.part(2));
        let mut times = 0;
        self.rang.update(timer.name(), |count| {
            *count += 1;
            times = *count;
        })?;
        let seen = self.events.get(key)?.unwrap_or_default();
        self.at.put(timer.name(), seen)?;
        // Part of the name: what it does when it fires.
        if let Some(more) = name.strip_prefix("again-") {
            // Under the same name, while it fires.
            if times < more.parse().unwrap_or(0) {
                effects.set_timer(Timer::at(
                    timer.time() + Duration::from_millis(20),
                    timer.name(),
                ));
            }
        }
        if let Some(other) = name.strip_prefix("cancels-") {
            effects.cancel_timer(format!("{key}/{other}"));
        }
        let fails = if cfg!(feature = "fixed") {
            "fails-always"
        } else {
            "fails"
        };
        if name.starts_with(fails) {
            return Err(Failure::reject("it was asked to fail"));
        }
        let rang = Rang {
            name: timer.name(),
            at: timer.at().nanoseconds(),
            fired: timer.time().nanoseconds(),
            sequence: timer.sequence(),
        };
        effects.publish(Message::to(format!("rang.{key}.{name}")).json(&rang)?);
        Ok(())
    }
}

handler!(Alarm);
