//! What the handler of `errands.rs` is asked to do, drawn by the seed: timers that are set, replaced
//! and cancelled, purchases whose answers come late, twice or never, and events that some code can't
//! handle. Some of all that is published twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foldstream_tests::wait;
use reqwest::Method;
use serde_json::{Value, json};

use crate::errands::{LOG, handler};
use crate::world::{Phase, World};
use crate::{handlers, publisher};

/// Keys of errands that are no purchases.
const KEYS: u32 = 12;
/// Time between two turns.
const INTERVAL: Duration = Duration::from_millis(50);
/// Turns of a tide: in the first part of it some events are ill, in the other one none are, so that
/// code with the mistake passes its probation.
const TIDE: u64 = 200;
const FLOOD: u64 = 60;
/// Later than any round lasts.
const FAR_MS: u64 = 3_600_000;

/// What a buyer is answered, and how many turns after the purchase.
const ANSWERS: [&[(&str, u64)]; 8] = [
    &[("paid", 2), ("sent", 6)],
    &[("paid", 0), ("sent", 0)],
    &[("paid", 3), ("lost", 9)],
    &[("paid", 4)],
    &[("refused", 3)],
    &[("paid", 28), ("sent", 35)],
    &[("sent", 1), ("paid", 12), ("paid", 15), ("sent", 70)],
    &[],
];

/// An event to publish.
#[derive(Clone, Debug)]
struct Told {
    id: String,
    subject: String,
    data: Value,
}

/// What is published, by the seed.
struct Feed {
    random: fastrand::Rng,
    /// Of the events so far, of the purchases among them, and of the turn.
    number: u64,
    orders: u64,
    turn: u64,
    /// What comes in later turns.
    later: BTreeMap<u64, Vec<Told>>,
}

impl Feed {
    /// The events of the next turn.
    fn next(&mut self) -> Vec<Told> {
        self.turn += 1;
        let mut told = self.later.remove(&self.turn).unwrap_or_default();
        for _ in 0..self.random.u32(1..=3) {
            told.push(self.draw());
        }
        // Some come a second time, soon or late.
        for twice in told.clone() {
            if self.random.u8(..8) == 0 {
                let turn = self.turn + self.random.u64(3..80);
                self.later.entry(turn).or_default().push(twice);
            }
        }
        told
    }

    fn draw(&mut self) -> Told {
        let key = self.random.u32(..KEYS).to_string();
        let mut timer = ["tea", "wine"][self.random.usize(..2)];
        if self.turn % TIDE < FLOOD && self.random.u8(..8) == 0 {
            match self.random.u8(..3) {
                0 => timer = "ill",
                1 => return self.tell(&key, "ill", json!({})),
                // A purchase that is under way, or was.
                _ => {
                    let order = self.orders.saturating_sub(self.random.u64(..10));
                    return self.tell(&format!("order-{order}"), "ill", json!({}));
                }
            }
        }
        match self.random.u8(..10) {
            0..4 => {
                let far = timer != "ill" && self.random.u8(..10) == 0;
                let after = if far {
                    FAR_MS
                } else {
                    self.random.u64(0..5_000)
                };
                self.tell(&key, "set", json!({ "name": timer, "after_ms": after }))
            }
            4 => self.tell(&key, "cancel", json!({ "name": timer })),
            5..7 => self.buy(),
            _ => self.tell(&key, "do", json!({})),
        }
    }

    fn buy(&mut self) -> Told {
        self.orders += 1;
        let order = format!("order-{}", self.orders);
        let bought = self.tell(&order, "buy", json!({}));
        for (what, after) in ANSWERS[self.random.usize(..ANSWERS.len())] {
            let answer = self.tell(&order, what, json!({}));
            let turn = self.turn + 1 + after;
            self.later.entry(turn).or_default().push(answer);
        }
        bought
    }

    fn tell(&mut self, key: &str, what: &str, data: Value) -> Told {
        self.number += 1;
        Told {
            id: self.number.to_string(),
            subject: format!("errand.{key}.{what}"),
            data,
        }
    }
}

/// Publishes events until the round is at rest.
pub async fn run(world: &World) {
    let mut feed = Feed {
        random: fastrand::Rng::with_seed(world.seed ^ 0x6572_7261),
        number: 0,
        orders: 0,
        turn: 0,
        later: BTreeMap::new(),
    };
    if handler(world.seed).source == LOG {
        return feed_log(world, feed).await;
    }
    let mut connection = publisher::connect(world).await;
    while world.is_until(Phase::Calm) {
        let turn = world.publishing.lock().await;
        for told in feed.next() {
            // Again and again: the handler leaves out what is stored twice.
            let data = told.data.to_string();
            while handlers::store(&connection, &told.subject, &told.id, &data)
                .await
                .is_none()
            {
                connection = publisher::connect(world).await;
            }
        }
        drop(turn);
        world.sleep_until_after(Phase::Calm, INTERVAL).await;
    }
}

/// Appends events to the log until the chaos is over.
async fn feed_log(world: &World, mut feed: Feed) {
    loop {
        // The round does not end in the middle of a turn, nor does this wait for one that is long.
        let turn = world.playing.read().await;
        if !world.is_until(Phase::Chaos) {
            return;
        }
        for told in feed.next() {
            append(world, &told).await;
        }
        drop(turn);
        world.sleep_until_after(Phase::Chaos, INTERVAL).await;
    }
}

/// Appends an event again and again, until a host says that it is stored: the handler leaves out
/// what is stored twice.
async fn append(world: &World, told: &Told) {
    let Told { id, subject, data } = told;
    let event = json!({ "id": id, "subject": subject, "data": data });
    let body = json!({ "events": [event] }).to_string();
    let begin = Instant::now();
    loop {
        let answer = world.ask_once(|client| {
            let request = client
                .request(Method::POST, &format!("/v1/events?source={LOG}"))
                .header("content-type", "application/json");
            request.body(body.clone())
        });
        let answer = answer.await;
        if answer
            .as_ref()
            .is_some_and(|answer| answer.status.is_success())
        {
            return;
        }
        assert!(
            begin.elapsed() < wait::DEADLINE,
            "{told:?} can not be stored: {:?}",
            answer.map(|answer| answer.text())
        );
        tokio::time::sleep(INTERVAL).await;
    }
}
