//! Clients that watch: each change has to be the fold at its position, and what they put together
//! from changes has to be the whole state in the end, through restarts, resumed watches and other
//! generations.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use eventsource_stream::{Event, Eventsource};
use foldstream::api::{Change, Entry, EntryPage, PositionMark};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::Value;

use crate::oracle::{Shape, difference};
use crate::world::{Counts, LEDGER, Phase, World};

/// Pause before a host that does not take a watch is asked again.
const AGAIN: Duration = Duration::from_millis(10);

/// How long a watch may be silent before this client connects again. Hosts send heartbeats more
/// often.
const SILENCE: Duration = Duration::from_secs(12);

/// What a watcher has put together.
#[derive(Debug, Default)]
pub struct Seen {
    entries: BTreeMap<String, Value>,
    /// Everything up to here is in it.
    through: u64,
    /// The highest position that it was shown, also in part.
    shown: u64,
    /// Where it resumes.
    id: Option<String>,
    /// Whether it has to read all entries before the next change counts.
    reset_at: Option<u64>,
}

impl Seen {
    /// Takes note of a position that is shown to it.
    fn show(&mut self, position: u64, event: &Event) {
        assert!(
            position >= self.shown,
            "a watch went back: to {position} behind {}: {event:?}",
            self.shown
        );
        self.shown = position;
    }

    /// Takes note of a position up to which it has everything. After a reset it counts from there
    /// again, and what was read since then has some of it already.
    fn resume_at(&mut self, event: &Event) {
        self.through = self.through.max(position(&event.id));
        self.id = Some(event.id.clone());
    }

    /// What differs from the fold, if this has everything up to a position.
    pub fn differs(&self, world: &World, position: u64) -> Option<String> {
        if self.through < position || self.reset_at.is_some() {
            return Some(format!("it is at {} instead of {position}", self.through));
        }
        let found: Vec<Entry> = self
            .entries
            .iter()
            .map(|(key, value)| Entry {
                key: key.clone(),
                value: value.clone(),
            })
            .collect();
        let shape = self.entries.get("head").map_or(Shape::First, Shape::of);
        difference(&world.oracle.entries(self.through, shape), &found)
    }
}

/// Watches until the round is over.
pub async fn run(world: &World, seen: &Mutex<Seen>) {
    while world.is_until(Phase::Rest) {
        let id = seen.lock().expect("no holder panics").id.clone();
        if id.is_none() {
            let mut seen = seen.lock().expect("no holder panics");
            seen.reset_at = Some(seen.shown);
        }
        if read_again(world, seen).await {
            follow(world, seen, id).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads all entries if a reset asked for it; whether that is done.
async fn read_again(world: &World, seen: &Mutex<Seen>) -> bool {
    let Some(position) = seen.lock().expect("no holder panics").reset_at else {
        return true;
    };
    let path =
        format!("/v1/deployments/{LEDGER}/entries?limit=1000&at-least={position}&timeout=2s");
    let Some(answer) = world
        .ask_once(|client| client.request(Method::GET, &path))
        .await
    else {
        return false;
    };
    if answer.status != 200 {
        return false;
    }
    let page: EntryPage = answer.json();
    assert!(
        page.position >= position,
        "{} was asked for, {} is answered",
        position,
        page.position
    );
    let mut seen = seen.lock().expect("no holder panics");
    seen.entries = page
        .entries
        .into_iter()
        .map(|entry| (entry.key, entry.value))
        .collect();
    seen.through = page.position;
    seen.shown = seen.shown.max(page.position);
    // The changes behind this page, of whichever state serves now.
    seen.id.get_or_insert_with(|| page.position.to_string());
    seen.reset_at = None;
    true
}

/// Follows one watch until it ends, is silent, or says reset.
async fn follow(world: &World, seen: &Mutex<Seen>, id: Option<String>) {
    let id = id.or_else(|| seen.lock().expect("no holder panics").id.clone());
    let client = world.client();
    let mut request = client.request(Method::GET, &format!("/v1/deployments/{LEDGER}/changes"));
    if let Some(id) = id {
        request = request.header("last-event-id", id);
    }
    let Ok(response) = request.send().await else {
        return;
    };
    match response.status().as_u16() {
        200 => {}
        503 | 504 => return,
        other => panic!(
            "a watch is answered {other}: {}",
            response.text().await.unwrap_or_default()
        ),
    }
    let mut events = response.bytes_stream().eventsource();
    while world.is_until(Phase::Rest) {
        let Ok(Some(Ok(event))) = tokio::time::timeout(SILENCE, events.next()).await else {
            return;
        };
        if !take(world, seen, &event).await {
            return;
        }
    }
}

/// Takes one event of a watch; whether there is more.
async fn take(world: &World, seen: &Mutex<Seen>, event: &Event) -> bool {
    match event.event.as_str() {
        "change" => {
            let change: Change = serde_json::from_str(&event.data).expect("a change is JSON");
            world.oracle.knows(change.position).await;
            check(world, &change);
            let mut seen = seen.lock().expect("no holder panics");
            seen.show(change.position, event);
            if change.deleted {
                seen.entries.remove(&change.key);
            } else {
                seen.entries.insert(change.key, change.value);
            }
            seen.resume_at(event);
            Counts::add(&world.counts.changes);
            true
        }
        "reset" => {
            let mark: PositionMark = serde_json::from_str(&event.data).expect("a mark is JSON");
            let mut seen = seen.lock().expect("no holder panics");
            world.note(&format!(
                "a watch at {} is reset at {}",
                seen.through, mark.position
            ));
            seen.show(mark.position, event);
            seen.reset_at = Some(mark.position);
            seen.id = Some(event.id.clone());
            false
        }
        "position" => {
            seen.lock().expect("no holder panics").resume_at(event);
            true
        }
        "" | "message" => true,
        other => panic!("a watch sends {other}: {}", event.data),
    }
}

fn check(world: &World, change: &Change) {
    // Values may be of either form while one generation gives way to another.
    let fits = [Shape::First, Shape::Next].into_iter().any(|shape| {
        let wanted = world.oracle.value(&change.key, change.position, shape);
        if change.deleted {
            wanted.is_none()
        } else {
            wanted.as_ref() == Some(&change.value)
        }
    });
    assert!(fits, "a change is not the fold at its position: {change:?}");
}

/// The position in the id of an event of a watch.
fn position(id: &str) -> u64 {
    id.split('.')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("id {id} has no position"))
}
