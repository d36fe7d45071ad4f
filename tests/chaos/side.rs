//! A second stream with a deployment of its own, to which the worst is done: events are purged or
//! deleted before or after they were applied, the stream is created again or restored from an older
//! copy, a state is built without what is gone, and events trap, loop, use up the memory or fail
//! halfway. Each episode begins with an empty stream, and says what must become of the deployment.
//! The host is killed under all of them; only an event that loops gets the time that it takes to be
//! found out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use foldstream::api::{Deployment, DeploymentState, EntryPage};
use foldstream_tests::nats;
use foldstream_tests::wait;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Counts, Phase, World};
use crate::{operator, publisher};

/// The stream and its deployment.
pub const STREAM: &str = "MISCHIEF";
/// The source in the configuration.
pub const SOURCE: &str = "side";
/// The deployment, and the module.
pub const MISCHIEF: &str = "mischief";
/// The module without its mistake.
pub const FIXED: &str = "mischief-fixed";

/// What is done.
#[derive(Clone, Copy, Debug)]
enum Episode {
    /// Events are purged by subject before they were applied.
    PurgeUnapplied,
    /// One event is deleted before it was applied.
    DeleteUnapplied,
    /// Events are purged after they were applied.
    PurgeApplied,
    /// The stream is deleted and created again.
    CreateAgain,
    /// The stream is restored from an older copy.
    Restore,
    /// Events are purged after they were applied, and the state is built again without them.
    RebuildWithout,
    /// An event fails in one way or another, and is skipped.
    Poison(&'static str),
    /// Corrected code takes the place of code that can't apply an event, and stays when it fails at
    /// a later one.
    Fix,
}

const EPISODES: [Episode; 13] = [
    Episode::PurgeUnapplied,
    Episode::DeleteUnapplied,
    Episode::PurgeApplied,
    Episode::CreateAgain,
    Episode::Restore,
    Episode::RebuildWithout,
    Episode::Poison("reject me"),
    Episode::Poison("half"),
    Episode::Poison("trap"),
    Episode::Poison("grow"),
    Episode::Poison("loop"),
    Episode::Poison("\u{0}\u{1} not JSON"),
    Episode::Fix,
];

/// Plays episodes until the chaos is over.
pub async fn run(world: &World) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0x7369_6465);
    let mut events = 0;
    while world.is_until(Phase::Chaos) {
        let episode = EPISODES[random.usize(..EPISODES.len())];
        world.note(&format!("side: {episode:?}"));
        let mut side = Side {
            world,
            wanted: BTreeMap::new(),
            events,
        };
        let turn = world.playing.read().await;
        side.begin().await;
        side.play(episode, &mut random).await;
        drop(turn);
        events = side.events;
        Counts::add(&world.counts.faults);
        world.note("side: done");
        world
            .sleep_until_after(Phase::Chaos, Duration::from_millis(random.u64(0..500)))
            .await;
    }
}

struct Side<'a> {
    world: &'a World,
    /// The notes that the deployment has to have, by their sequence.
    wanted: BTreeMap<u64, String>,
    /// Events that were published in this round: each has an id of its own.
    events: u64,
}

impl Side<'_> {
    /// Makes the stream and the deployment from scratch.
    async fn begin(&mut self) {
        operator::remove(self.world, MISCHIEF).await;
        self.create().await;
        self.deploy(MISCHIEF).await;
        let first = self.note(20).await;
        assert_eq!(first, 20, "the stream was empty");
        self.is_as_wanted().await;
    }

    async fn deploy(&self, guest: &str) {
        operator::install(self.world, MISCHIEF, SOURCE, guest, "").await;
    }

    async fn create(&self) {
        let config = nats::stream_config(STREAM, "mischief.>");
        publisher::create_again(self.world, config).await;
    }

    /// Publishes one event until it is stored, whatever happens to the server; its sequence.
    async fn publish(&mut self, subject: &str, data: &str) -> u64 {
        self.events += 1;
        let id = format!("{}-{}", self.world.seed, self.events);
        wait::until("an event to be stored", || async {
            let context = publisher::connect(self.world).await;
            let message = jetstream::message::PublishMessage::build()
                .message_id(&id)
                .payload(data.to_owned().into());
            let acknowledgement = context
                .send_publish(subject.to_owned(), message)
                .await
                .ok()?;
            Some(acknowledgement.await.ok()?.sequence)
        })
        .await
    }

    /// Publishes harmless events, under two subjects in turn; the last sequence.
    async fn note(&mut self, count: usize) -> u64 {
        let mut last = 0;
        for number in 0..count {
            let text = format!("n{}", self.events);
            last = self
                .publish(
                    if number % 2 == 0 {
                        "mischief.a"
                    } else {
                        "mischief.b"
                    },
                    &format!("note {text}"),
                )
                .await;
            self.wanted.insert(last, text);
        }
        last
    }

    async fn play(&mut self, episode: Episode, random: &mut fastrand::Rng) {
        match episode {
            Episode::PurgeUnapplied | Episode::DeleteUnapplied => {
                self.lose_unapplied(episode, random).await;
            }
            Episode::PurgeApplied => {
                self.is_durable().await;
                self.purge("mischief.a").await;
                self.note(10).await;
                self.is_as_wanted().await;
            }
            Episode::CreateAgain => {
                self.is_durable().await;
                self.create().await;
                // Enough to make the stream longer than what was applied.
                for _ in 0..30 {
                    self.publish("mischief.a", "note of another history").await;
                }
                // It can be read only if it was not killed: then nobody knows what it may have
                // shown.
                self.fails("source-diverged", None).await;
            }
            Episode::Restore => self.restore().await,
            Episode::RebuildWithout => self.rebuild_without().await,
            Episode::Fix => self.fix().await,
            Episode::Poison(verb) => {
                let sequence = self.publish("mischief.a", verb).await;
                let held = if verb == "loop" {
                    // A loop is found out after several deadlines, and again after each restart.
                    Some(self.world.hold_still().await)
                } else {
                    None
                };
                self.fails("", Some(sequence)).await;
                self.note(10).await;
                self.fails("", Some(sequence)).await;
                operator::skip(self.world, MISCHIEF, sequence).await;
                drop(held);
                self.is_as_wanted().await;
            }
        }
    }

    /// Corrected code is deployed over code that stopped at an event, under kills. It has applied
    /// what the code before could not, so it is never undone, not even when it stops at a later
    /// event itself.
    async fn fix(&mut self) {
        let sequence = self.publish("mischief.a", "ill").await;
        self.fails("rejected", Some(sequence)).await;
        self.note(10).await;
        self.deploy(FIXED).await;
        self.wanted.insert(sequence, String::new());
        self.is_as_wanted().await;
        let generation = self
            .show_when("be fixed", |shown| shown.generation > 1)
            .await
            .generation;
        let poison = self.publish("mischief.a", "reject this one").await;
        self.fails("rejected", Some(poison)).await;
        self.note(10).await;
        let shown = self
            .show_when("stay as it is", |shown| {
                shown.state == DeploymentState::Failed
            })
            .await;
        assert_eq!(
            shown.generation, generation,
            "the fix is undone: {}",
            shown.reason
        );
        operator::skip(self.world, MISCHIEF, poison).await;
        self.is_as_wanted().await;
        let shown = self.show_when("be there", |_| true).await;
        assert_eq!(
            shown.generation, generation,
            "the fix is undone: {}",
            shown.reason
        );
    }

    /// The stream is an older copy of itself, and then gets events that it never had.
    async fn restore(&mut self) {
        self.is_durable().await;
        let copy = {
            let mut server = self.world.server.lock().await;
            server.stop();
            Counts::add(&self.world.counts.server_stops);
            let copy = server.back_up_stream(STREAM);
            server.restart().await;
            copy
        };
        self.note(10).await;
        self.is_durable().await;
        {
            let mut server = self.world.server.lock().await;
            server.stop();
            Counts::add(&self.world.counts.server_stops);
            server.restore_stream(STREAM, copy.path());
            server.restart().await;
        }
        self.fails("source-truncated", None).await;
        for _ in 0..30 {
            self.publish("mischief.a", "note of another history").await;
        }
        self.act("resume").await;
        self.fails("source-diverged", None).await;
    }

    /// A state is replaced by one that lacks events only when that is accepted.
    async fn rebuild_without(&mut self) {
        self.is_durable().await;
        // A server that is killed may bring back what it has purged just before.
        let _server = self.world.server.lock().await;
        self.purge("mischief.a").await;
        let answer = self
            .world
            .ask(Method::POST, &format!("/v1/deployments/{MISCHIEF}/rebuild"))
            .await;
        // Where nobody knows just now what is gone, the candidate finds out.
        let is_refused = answer.status == 422 && answer.text().contains("gone from stream");
        assert!(
            is_refused || answer.status.is_success() || matches!(answer.status.as_u16(), 409 | 503),
            "a rebuild: {}",
            answer.text()
        );
        let shown = self
            .show_when("give the candidate up", |shown| shown.candidate.is_none())
            .await;
        self.has_wanted_notes().await;

        self.act("rebuild?accept-missing=true").await;
        let generation = shown.generation;
        self.show_when("be built again", |shown| {
            shown.generation > generation && shown.candidate.is_none()
        })
        .await;
        self.wanted.retain(|sequence, _| sequence % 2 == 0);
        self.note(5).await;
        self.is_as_wanted().await;
    }

    /// Events are gone that were never applied: it stops, until that is accepted.
    async fn lose_unapplied(&mut self, episode: Episode, random: &mut fastrand::Rng) {
        self.is_durable().await;
        self.set_paused(true).await;
        let before = self.wanted.clone();
        let last = self.note(10).await;
        // A server that is killed may bring back what it has purged just before.
        let _server = self.world.server.lock().await;
        if matches!(episode, Episode::PurgeUnapplied) {
            self.purge("mischief.a").await;
            self.wanted
                .retain(|sequence, _| before.contains_key(sequence) || (last - sequence) % 2 == 0);
        } else {
            let sequence = random.u64(last - 9..=last);
            self.delete(sequence).await;
            self.wanted.remove(&sequence);
        }
        self.set_paused(false).await;
        self.fails("source-gap", None).await;
        self.shows_nothing_but(&before).await;
        self.act("resume?accept-missing=true").await;
        self.note(5).await;
        self.is_as_wanted().await;
    }

    async fn stream(&self) -> jetstream::stream::Stream {
        wait::until("the stream", || async {
            publisher::connect(self.world)
                .await
                .get_stream(STREAM)
                .await
                .ok()
        })
        .await
    }

    async fn purge(&self, subject: &str) {
        wait::until("the purge", || async {
            self.stream().await.purge().filter(subject).await.ok()
        })
        .await;
    }

    async fn delete(&self, sequence: u64) {
        // A second try finds nothing to delete if only the answer to the first one was lost.
        let begin = Instant::now();
        while begin.elapsed() < wait::DEADLINE {
            let stream = self.stream().await;
            let _ = stream.delete_message(sequence).await;
            if stream
                .get_raw_message(sequence)
                .await
                .is_err_and(|error| error.to_string().contains("no message"))
            {
                return;
            }
        }
        panic!("event {sequence} can not be deleted");
    }

    async fn act(&self, action: &str) {
        operator::insist(self.world, MISCHIEF, action).await;
    }

    async fn set_paused(&self, is_paused: bool) {
        self.act(if is_paused { "pause" } else { "resume" }).await;
        let what = if is_paused { "pause" } else { "resume" };
        self.show_when(what, |shown| {
            (shown.state == DeploymentState::Paused) == is_paused
        })
        .await;
    }

    async fn show_when(&self, what: &str, condition: impl Fn(&Deployment) -> bool) -> Deployment {
        self.world.show_when(MISCHIEF, what, condition).await
    }

    /// It stops with a failure of a kind, at an event; an empty kind is any.
    async fn fails(&self, kind: &str, sequence: Option<u64>) {
        self.show_when(&format!("fail as {kind} at {sequence:?}"), |shown| {
            let failure = shown
                .failure
                .as_ref()
                .filter(|_| shown.state == DeploymentState::Failed);
            failure.is_some_and(|failure| {
                (kind.is_empty() || failure.kind == kind)
                    && (sequence.is_none() || failure.sequence == sequence)
            })
        })
        .await;
    }

    /// Nothing that was applied is in memory only, so that it outlives its events.
    async fn is_durable(&self) {
        self.is_as_wanted().await;
        let begin = Instant::now();
        // Hosts may be killed sooner than they commit by themselves, and a pause commits at once.
        while self.world.show(MISCHIEF).await.checkpoint < self.last() {
            assert!(begin.elapsed() < wait::DEADLINE, "it never is durable");
            self.set_paused(true).await;
            self.set_paused(false).await;
            self.is_as_wanted().await;
        }
    }

    fn last(&self) -> u64 {
        self.wanted
            .last_key_value()
            .map_or(0, |(sequence, _)| *sequence)
    }

    /// It has applied what it has to, and nothing else.
    async fn is_as_wanted(&self) {
        let last = self.last();
        self.show_when(&format!("reach {last}"), |shown| shown.position >= last)
            .await;
        self.has_wanted_notes().await;
    }

    async fn has_wanted_notes(&self) {
        let path = notes(self.last());
        let page: EntryPage = self.world.ask(Method::GET, &path).await.expect(200).json();
        equal_notes(page, &self.wanted);
    }

    /// If it can be read, it has these notes. One that was killed before it stopped may have shown
    /// what it can't read any more, as far as anybody knows, and is not read until it is past that.
    async fn shows_nothing_but(&self, wanted: &BTreeMap<u64, String>) {
        let path = notes(wanted.last_key_value().map_or(0, |(sequence, _)| *sequence));
        let answer = self
            .world
            .ask_once(|client| client.request(Method::GET, &path))
            .await;
        if let Some(answer) = answer.filter(|answer| answer.status == 200) {
            equal_notes(answer.json(), wanted);
        }
    }
}

/// All notes, as soon as those up to a sequence are there.
fn notes(last: u64) -> String {
    format!(
        "/v1/deployments/{MISCHIEF}/entries?prefix=note/&limit=1000&at-least={last}&timeout=10s"
    )
}

fn equal_notes(page: EntryPage, wanted: &BTreeMap<u64, String>) {
    let found: BTreeMap<u64, Value> = page
        .entries
        .into_iter()
        .map(|entry| {
            (
                entry
                    .key
                    .trim_start_matches("note/")
                    .parse()
                    .expect("a sequence"),
                entry.value,
            )
        })
        .collect();
    let wanted: BTreeMap<u64, Value> = wanted
        .iter()
        .map(|(sequence, text)| (*sequence, json!(text)))
        .collect();
    assert_eq!(found, wanted, "the notes are not those of the events");
}
