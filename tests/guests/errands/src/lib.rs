//! A handler that uses everything that handlers have, for the chaos test: it reports each event of a
//! key, sets, replaces and cancels timers, reports each that fires, buys something in a saga with
//! time-outs, and leaves out events that were published twice.
//!
//! Events `ill` are rejected, and so are timers named `ill`; the guest `errands-fixed` does them like
//! others. Each report has a digest of all that was done for its key until then, and so shows its
//! order.

use std::time::Duration;

use foldstream_sdk::prelude::*;
use foldstream_sdk::saga::{Call, Compensation, RetryPolicy, Saga, Sagas, Step};

/// How long a payment may take, twice, and the pause between both.
const PAYMENT: Duration = Duration::from_millis(800);
const PAUSE: Duration = Duration::from_millis(300);
/// How long a delivery may take.
const DELIVERY: Duration = Duration::from_millis(1_500);
/// Longer than any run of the test.
const INBOX: Duration = Duration::from_secs(86_400);

/// The data of an event.
#[derive(Deserialize)]
struct Asked {
    /// Of the timer that is set or cancelled.
    #[serde(default)]
    name: String,
    /// How long after the event it fires.
    #[serde(default)]
    after_ms: u64,
}

/// What was done for a key.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Done {
    count: u64,
    chain: u64,
}

impl Done {
    /// Adds the event or firing at a place of the stream.
    fn add(&mut self, sequence: u64) {
        self.count += 1;
        self.chain = (self.chain.rotate_left(5) ^ sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The data of a report.
#[derive(Serialize)]
struct Report<'a> {
    of: u64,
    count: u64,
    chain: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
}

/// A purchase has no data of its own.
#[derive(Clone, Serialize, Deserialize)]
struct Purchase {}

fn message(call: &Call<'_, Purchase>, what: &str) -> Result<Message, Failure> {
    Message::to(format!("done.{}.{what}", call.key())).json(&call.attempt())
}

fn saga() -> Saga<Purchase> {
    let payment = Step::new("payment")
        .command(|call| message(call, "charge"))
        .succeeds_on("errand.*.paid")
        .fails_on("errand.*.refused")
        .timeout(PAYMENT)
        .retry(RetryPolicy::attempts(2).backoff(PAUSE, PAUSE))
        .compensation(Compensation::new(|call| message(call, "refund")));
    let delivery = Step::new("delivery")
        .command(|call| message(call, "send"))
        .succeeds_on("errand.*.sent")
        .fails_on("errand.*.lost")
        .timeout(DELIVERY);
    Saga::new("purchase")
        .starts_on("errand.*.buy", |_| Ok(Purchase {}))
        .step(payment)
        .step(delivery)
        .keep_ended_forever()
        .on_completed(|call| message(call, "bought"))
        .on_compensated(|call| message(call, "undone"))
        .on_stuck(|call| message(call, "stuck"))
}

struct Errands {
    done: Table<String, Done>,
    purchases: Sagas<Purchase>,
}

impl Errands {
    /// Publishes that an event or a timer of a key was done.
    fn report(
        &mut self,
        key: &str,
        sequence: u64,
        timer: Option<&Fired<'_>>,
        effects: &mut Effects,
    ) -> Result<(), Failure> {
        let done = self.done.update(key, |done| {
            done.add(sequence);
            done.clone()
        })?;
        let report = Report {
            of: sequence,
            count: done.count,
            chain: done.chain,
            timer: timer.map(Fired::name),
            at: timer.map(|timer| timer.at().nanoseconds()),
        };
        let what = if timer.is_some() { "rang" } else { "event" };
        effects.publish(Message::to(format!("done.{key}.{what}")).json(&report)?);
        Ok(())
    }
}

impl Handler for Errands {
    fn manifest() -> Manifest<Self> {
        Manifest::new("errands")
            .description("Runs errands, some of them later")
            .subjects(["errand.*.*"])
            .publishes(["done.>"])
            .timers()
            .key(KeyRule::SubjectToken(2))
            .inbox(INBOX)
            .attempts(2)
            .backoff(Duration::from_millis(10), Duration::from_millis(20))
            .state_version(if cfg!(feature = "next") { 2 } else { 1 })
    }

    fn open(state: &State) -> Self {
        Self {
            done: state.table(if cfg!(feature = "next") {
                "ran"
            } else {
                "done"
            }),
            purchases: Sagas::open(state, saga()),
        }
    }

    fn handle(&mut self, event: &Event<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = event.token(2)?;
        self.report(key, event.sequence(), None, effects)?;
        let asked: Asked = event.json()?;
        let timer = format!("{key}/{}", asked.name);
        match event.token(3)? {
            "set" => {
                let span = Duration::from_millis(asked.after_ms);
                effects.set_timer(Timer::after(event, span, timer));
            }
            "cancel" => effects.cancel_timer(timer),
            // All that was done until here is undone.
            "ill" if !cfg!(feature = "fixed") => return Err(Failure::reject("it is ill")),
            _ => {}
        }
        self.purchases.handle(event, effects)?;
        Ok(())
    }

    fn on_timer(&mut self, timer: &Fired<'_>, effects: &mut Effects) -> Result<(), Failure> {
        let key = timer.key().unwrap_or_default();
        self.report(key, timer.sequence(), Some(timer), effects)?;
        if timer.name().ends_with("/ill") && !cfg!(feature = "fixed") {
            return Err(Failure::reject("its timer is ill"));
        }
        self.purchases.on_timer(timer, effects)?;
        Ok(())
    }
}

handler!(Errands);
