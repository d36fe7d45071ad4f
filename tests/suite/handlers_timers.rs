//! Handlers with timers whose effects change hands, killed at every step: pending timers pass to the
//! new owner with the effects. Each fires once, whether it is due before, while or after the host
//! dies, and those of later stay.

use std::collections::BTreeSet;

use foldstream::api;
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::{cli, wait};
use serde_json::json;

use crate::handlers_rollouts::{CONFIG, Way, is_recorded_at};
use crate::timers::{ALARM, LATER_MS, event, names, rang, start};

/// Timers of a round that are due one after the other.
const DUE: u64 = 250;
/// The time between them: some are due at each moment of a hand-over, and after the next start.
const APART_MS: u64 = 10;
/// Timers that are pending all the time.
const LATER: u64 = 50;

struct Stage {
    host: Host,
    /// The timers that have to ring.
    wanted: BTreeSet<String>,
}

impl Stage {
    async fn start() -> Self {
        let host = start(CONFIG).await;
        let later = json!({ "name": "later", "count": LATER, "after_ms": LATER_MS });
        host.client().append(&[event("z", "set", &later)]).await;
        Self {
            host,
            wanted: BTreeSet::new(),
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    /// Sets timers that are due in the time that follows.
    async fn set(&mut self, round: &str) {
        let events: Vec<_> = (0..DUE)
            .map(|number| {
                let (key, name) = (format!("k{}", number % 5), format!("{round}-{number:03}"));
                self.wanted.insert(format!("{key}/{name}"));
                let timer = json!({ "name": name, "after_ms": number * APART_MS });
                event(&key, "set", &timer)
            })
            .collect();
        self.client().append(&events).await;
    }

    /// Waits until only timers of later are pending; then each other one has rung once.
    async fn assert_each_rang_once(&self) -> api::Deployment {
        rang(self.client(), self.wanted.len()).await;
        let at_rest = |shown: &api::Deployment| {
            let timers = shown.timers.as_ref();
            let outbox = shown.outbox.as_ref();
            timers.is_some_and(|timers| timers.pending == LATER)
                && outbox.is_some_and(|outbox| outbox.entries == 0)
        };
        let shown = self.client().show_when(ALARM, "come to rest", at_rest);
        let shown = shown.await;
        let mut rang = names(&rang(self.client(), self.wanted.len()).await);
        rang.sort();
        let wanted: Vec<_> = self.wanted.iter().cloned().collect();
        assert_eq!(rang, wanted);
        shown
    }

    /// Asks for a rebuild or a rollback, until that is done.
    async fn hand_over(&self, way: Way) {
        let before = epoch(&self.client().show(ALARM).await);
        wait::until("a hand-over to be accepted", || async {
            let answer = self.client().act(ALARM, way.action()).await;
            let code = answer.status.as_u16();
            assert!(
                code == 409 || answer.status.is_success(),
                "{}",
                answer.text()
            );
            (code != 409).then_some(())
        })
        .await;
        self.client()
            .show_when(ALARM, "change hands", |shown| epoch(shown) == before + 1)
            .await;
    }
}

fn epoch(shown: &api::Deployment) -> u64 {
    shown.outbox.as_ref().expect("it is a handler").epoch
}

async fn killed_at(step: &str, way: Way) {
    eprintln!("{step} by {way:?}");
    let mut stage = Stage::start().await;
    stage.set("first").await;
    if way == Way::Rollback {
        stage.hand_over(Way::Rebuild).await;
    }
    let before = epoch(&stage.client().show(ALARM).await);
    stage.host.die_at(Some(step));
    stage.host.restart().await;
    stage.set("second").await;
    let client = stage.client().clone();
    let path = format!("/v1/deployments/{ALARM}/{}", way.action());
    wait::until("the host to die", || async {
        let request = client.request(reqwest::Method::POST, &path);
        match client.try_send(request).await {
            // The previous state may still be on its way to where it can take over.
            Ok(answer) if answer.status == 409 => None,
            // No answer is the answer of the dead.
            Ok(_) | Err(_) => Some(()),
        }
    })
    .await;
    stage.host.wait_for_death();
    stage.host.die_at(None);
    stage.host.restart().await;
    stage
        .client()
        .show_when(ALARM, "come to rest", |shown| shown.candidate.is_none())
        .await;
    stage.set("third").await;
    let shown = stage.assert_each_rang_once().await;
    // A rebuild is taken up again.
    let is_done = way == Way::Rebuild || is_recorded_at(step);
    assert_eq!(
        epoch(&shown),
        before + u64::from(is_done),
        "{step} by {way:?}"
    );
    // The owner can hand its timers over, while they are due, and every fold meets the same.
    stage.set("fourth").await;
    stage.hand_over(Way::Rebuild).await;
    stage.hand_over(Way::Rollback).await;
    stage.assert_each_rang_once().await;
    cli::on(&stage.host, &["verify", ALARM, "--seed", "7"]).expect(0);
}

killed_at_steps! {
    killed_at_a_step_of_a_hand_over_each_pending_timer_fires_once_1 Rebuild 0;
    killed_at_a_step_of_a_hand_over_each_pending_timer_fires_once_2 Rebuild 1;
    killed_at_a_step_of_a_hand_back_each_pending_timer_fires_once_1 Rollback 0;
    killed_at_a_step_of_a_hand_back_each_pending_timer_fires_once_2 Rollback 1;
}
