//! What the guest `errands` has to do, told by its stream alone: events of a key are done in the order
//! in which they are stored, whatever waited behind what, and a timer fires where its firing is
//! stored, if its time has come and nothing has replaced or cancelled it before.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::message::StreamMessage;
use foldstream::api::{SagaStatus, StoredEvent};
use foldstream_tests::reactor::Place;
use serde_json::{Value, json};

/// How long a payment may take, each of two times, and the pause between both, in nanoseconds.
const PAYMENT_NS: u64 = 800_000_000;
const PAUSE_NS: u64 = 300_000_000;
/// How long a delivery may take.
const DELIVERY_NS: u64 = 1_500_000_000;

/// A message of a stream or an event of a log, as an independent reader finds it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    /// Its id; empty if it has none.
    pub id: String,
    /// When it was stored, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    pub data: Value,
}

impl From<&StreamMessage> for Stored {
    fn from(message: &StreamMessage) -> Self {
        let id = message.headers.get("Nats-Msg-Id");
        let time_ns = message.time.unix_timestamp_nanos();
        Self {
            sequence: message.sequence,
            subject: message.subject.to_string(),
            id: id.map(ToString::to_string).unwrap_or_default(),
            time_ns: u64::try_from(time_ns).expect("after 1970"),
            // The host's own cursors have none that matters.
            data: serde_json::from_slice(&message.payload).unwrap_or_default(),
        }
    }
}

impl From<StoredEvent> for Stored {
    fn from(event: StoredEvent) -> Self {
        // A message of a handler has its id as that of a CloudEvent.
        let is_id = |name: &String| ["ce-id", "nats-msg-id"].contains(&&*name.to_lowercase());
        let id = event.headers.into_iter().find(|(name, _)| is_id(name));
        let time: jiff::Timestamp = event.time.parse().expect("a time");
        Self {
            sequence: event.sequence,
            subject: event.subject,
            id: id.map(|(_, id)| id).unwrap_or_default(),
            time_ns: u64::try_from(time.as_nanosecond()).expect("after 1970"),
            data: event.data,
        }
    }
}

/// A message that has to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its subject.
    pub subject: String,
    /// Its data.
    pub data: Value,
}

/// What has to be true at the end of a stream.
#[derive(Debug, Default)]
pub struct Errands {
    /// Each message at its place.
    pub messages: BTreeMap<Place, Wanted>,
    /// Timers that are pending, with their times.
    pub pending: BTreeMap<String, u64>,
    /// How many firings, duplicates and events that not every release can do there were.
    pub fired: u64,
    pub duplicates: u64,
    pub ill: u64,
    keys: BTreeMap<String, Key>,
    /// The ids that were met, each under its subject.
    known: BTreeSet<(String, String)>,
}

/// What was done for a key.
#[derive(Debug, Default)]
struct Key {
    count: u64,
    chain: u64,
    purchase: Option<Purchase>,
}

/// How far a purchase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purchase {
    /// This attempt to pay waits for its answer, or for the next attempt.
    Paying {
        attempt: u64,
        pauses: bool,
    },
    Sending,
    Completed,
    Compensated,
}

/// What a stream has at a place.
#[derive(Debug)]
struct Met<'a> {
    key: &'a str,
    sequence: u64,
    time_ns: u64,
    /// Messages that it has caused so far.
    messages: u64,
}

impl Errands {
    /// Of all events and firings of a stream.
    pub fn of(stream: &[Stored]) -> Self {
        let mut errands = Self::default();
        for Stored {
            sequence,
            subject,
            time_ns,
            data,
            id,
        } in stream
        {
            let met = |key| Met {
                key,
                sequence: *sequence,
                time_ns: *time_ns,
                messages: 0,
            };
            if subject.starts_with("_fs.") {
                let name = data["name"].as_str().expect("a firing has a name");
                let key = data["key"].as_str().expect("a firing has a key");
                errands.fire(met(key), name);
            } else if errands.known.insert((subject.clone(), id.clone())) {
                let mut tokens = subject.split('.').skip(1);
                let (key, what) = (tokens.next(), tokens.next());
                errands.handle(met(key.expect("a key")), what.expect("a verb"), data);
            } else {
                errands.duplicates += 1;
            }
        }
        errands
    }

    /// How many events and firings of each key were done, and their digest.
    pub fn done(&self) -> BTreeMap<String, (u64, u64)> {
        let done = |(key, of): (&String, &Key)| (key.clone(), (of.count, of.chain));
        self.keys.iter().map(done).collect()
    }

    /// How each purchase is.
    pub fn purchases(&self) -> BTreeMap<String, SagaStatus> {
        let purchases = self.keys.iter().filter_map(|(key, of)| {
            let status = match of.purchase? {
                Purchase::Paying { .. } | Purchase::Sending => SagaStatus::Running,
                Purchase::Completed => SagaStatus::Completed,
                Purchase::Compensated => SagaStatus::Compensated,
            };
            Some((key.clone(), status))
        });
        purchases.collect()
    }

    fn handle(&mut self, mut met: Met<'_>, what: &str, data: &Value) {
        self.report(&mut met, None);
        let name = data["name"].as_str().unwrap_or_default();
        let timer = format!("{}/{name}", met.key);
        match what {
            "set" => {
                let after_ms = data["after_ms"].as_u64().expect("a number");
                let at = met.time_ns + after_ms * 1_000_000;
                self.pending.insert(timer, at);
            }
            "cancel" => drop(self.pending.remove(&timer)),
            "ill" => self.ill += 1,
            _ => {}
        }
        let now = met.time_ns;
        match (what, self.keys[met.key].purchase) {
            ("buy", None) => self.charge(&mut met, now, 1),
            ("paid", Some(Purchase::Paying { .. })) => {
                self.publish(&mut met, "send", json!(1));
                self.wait(&met, Purchase::Sending, now + DELIVERY_NS);
            }
            // Who was asked twice may refuse the first time only.
            ("refused", Some(Purchase::Paying { attempt: 1, .. })) => self.give_up(&mut met),
            ("refused", Some(Purchase::Paying { .. })) => self.undo(&mut met),
            ("sent", Some(Purchase::Sending)) => {
                self.publish(&mut met, "bought", json!(0));
                self.end(&met, Purchase::Completed);
            }
            ("lost", Some(Purchase::Sending)) => self.undo(&mut met),
            // Too early, too late, or for the second time.
            _ => {}
        }
    }

    fn fire(&mut self, mut met: Met<'_>, name: &str) {
        let due = self.pending.get(name).copied();
        let Some(at) = due.filter(|at| *at <= met.time_ns) else {
            return;
        };
        self.pending.remove(name);
        self.fired += 1;
        self.ill += u64::from(name.ends_with("/ill"));
        self.report(&mut met, Some((name, at)));
        if name != timer_of(met.key) {
            return;
        }
        let now = met.time_ns;
        match self.keys[met.key].purchase {
            Some(Purchase::Paying {
                attempt,
                pauses: true,
            }) => self.charge(&mut met, now, attempt + 1),
            Some(Purchase::Paying { attempt: 1, .. }) => {
                let pauses = Purchase::Paying {
                    attempt: 1,
                    pauses: true,
                };
                self.wait(&met, pauses, now + PAUSE_NS);
            }
            Some(Purchase::Paying { .. } | Purchase::Sending) => self.undo(&mut met),
            _ => unreachable!("a purchase that has ended has no timer"),
        }
    }

    fn report(&mut self, met: &mut Met<'_>, timer: Option<(&str, u64)>) {
        let of = self.keys.entry(met.key.to_owned()).or_default();
        of.count += 1;
        of.chain = (of.chain.rotate_left(5) ^ met.sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut data = json!({ "of": met.sequence, "count": of.count, "chain": of.chain });
        if let Some((name, at)) = timer {
            data["timer"] = json!(name);
            data["at"] = json!(at);
        }
        let what = if timer.is_some() { "rang" } else { "event" };
        self.publish(met, what, data);
    }

    fn publish(&mut self, met: &mut Met<'_>, what: &str, data: Value) {
        let subject = format!("done.{}.{what}", met.key);
        let place = (met.sequence, met.messages);
        self.messages.insert(place, Wanted { subject, data });
        met.messages += 1;
    }

    fn charge(&mut self, met: &mut Met<'_>, now: u64, attempt: u64) {
        self.publish(met, "charge", json!(attempt));
        let pauses = false;
        self.wait(met, Purchase::Paying { attempt, pauses }, now + PAYMENT_NS);
    }

    /// Gives a purchase up for which somebody has paid, or may have.
    fn undo(&mut self, met: &mut Met<'_>) {
        self.publish(met, "refund", json!(1));
        self.give_up(met);
    }

    fn give_up(&mut self, met: &mut Met<'_>) {
        self.publish(met, "undone", json!(0));
        self.end(met, Purchase::Compensated);
    }

    fn wait(&mut self, met: &Met<'_>, purchase: Purchase, until_ns: u64) {
        self.set_purchase(met, purchase);
        self.pending.insert(timer_of(met.key), until_ns);
    }

    fn end(&mut self, met: &Met<'_>, purchase: Purchase) {
        self.set_purchase(met, purchase);
        self.pending.remove(&timer_of(met.key));
    }

    fn set_purchase(&mut self, met: &Met<'_>, purchase: Purchase) {
        let of = self.keys.entry(met.key.to_owned()).or_default();
        of.purchase = Some(purchase);
    }
}

/// The name of the timer of a purchase.
fn timer_of(key: &str) -> String {
    format!("saga/purchase/{key}")
}
