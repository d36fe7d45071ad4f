//! A stream that removes events by itself: it has few messages, one for each subject, roll-ups or a
//! short age, and its settings are edited while it is read. Two deployments read a part of it: one
//! counts what is missing, the other one stops and is resumed, as an operator would do it. After
//! each turn every event is accounted for: it was applied, or it is known to be missing. A third
//! one, whose events are never removed, must not stop when those of others are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use foldstream::api::{Deployment, DeploymentState};
use foldstream_tests::client::Answer;
use foldstream_tests::wait;
use futures_util::StreamExt;

use crate::operator;
use crate::publisher;
use crate::removal::{Removal, STREAM, Traffic};
use crate::testimony::{applied, testify};
use crate::world::{Counts, Phase, World, admin};

/// The deployment that counts what is missing, and its source.
pub const COUNTING: &str = "counting";
/// The one that stops at it, and its source.
pub const STOPPING: &str = "stopping";
/// The module of both, which records what it applies.
pub const WITNESS: &str = "witness";
/// A deployment whose events are never removed, and its module, which records them too.
pub const BYSTANDER: &str = "bystander";

/// How long the server has to acknowledge: nobody kills it meanwhile.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(30);

/// Pause between two looks at a deployment.
const LOOK: Duration = Duration::from_millis(20);

/// How long a reader may not know of an edit of a stream's settings: it looks at them every second,
/// and the look takes its time.
const SETTINGS_KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// How long a loss may be unknown.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);

/// Messages that are looked for at once.
const READS: usize = 100;

/// What is known of the stream.
#[derive(Debug, Default)]
pub struct Books {
    removal: Removal,
    /// Whether it has never removed anything.
    is_whole: bool,
    /// The events of the witnesses, by their sequence.
    mine: BTreeMap<u64, String>,
    /// The last sequence of the stream.
    last: u64,
    /// When it was created, as the server said at that time.
    created: String,
    /// What a turn stored that edited the settings under readers that get only what they want. If
    /// one ends within a second of the edit, it never knows what was removed meanwhile.
    unknown: Vec<RangeInclusive<u64>>,
    /// When the last such edit was made.
    edited: Option<Instant>,
    /// Whether the deployments are there.
    is_open: bool,
}

/// Plays turns until the chaos is over.
pub async fn run(world: &World) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ 0x6c65_616b);
    while world.is_until(Phase::Chaos) {
        let playing = world.playing.read().await;
        let mut books = world.leaky.lock().await;
        books.begin(world, &mut random).await;
        for _ in 0..random.u8(2..6) {
            if books.turn(world, &mut random).await.is_err() {
                world.note("leaky: nothing proves that it is the same stream");
                books.is_open = false;
                break;
            }
            Counts::add(&world.counts.leaks);
            if !world.is_until(Phase::Chaos) {
                break;
            }
        }
        drop(books);
        drop(playing);
        world
            .sleep_until_after(Phase::Chaos, Duration::from_millis(random.u64(0..500)))
            .await;
    }
}

/// Checks both deployments at rest.
pub async fn check(world: &World) {
    let mut books = world.leaky.lock().await;
    if books.is_open {
        let _ = books.accounts_for_all(world, None).await;
    }
}

impl Books {
    /// Makes the stream and the deployments from scratch.
    async fn begin(&mut self, world: &World, random: &mut fastrand::Rng) {
        self.is_open = false;
        for name in [COUNTING, STOPPING] {
            operator::remove(world, name).await;
        }
        let removal = Removal::draw_first(random);
        world.note(&format!("leaky: begins with {removal:?}"));
        *self = Self {
            removal,
            is_whole: removal == Removal::Nothing,
            ..Self::default()
        };
        publisher::create_again(world, removal.config()).await;
        self.created = created(world).await;
        for name in [COUNTING, STOPPING] {
            operator::install(world, name, name, WITNESS, "").await;
        }
        self.is_open = true;
    }

    async fn turn(&mut self, world: &World, random: &mut fastrand::Rng) -> Result<(), Unproved> {
        let replaces = random.u8(..6) == 0;
        let edit = if replaces {
            Some(Removal::OnePerSubject)
        } else {
            self.removal.draw_next(random)
        };
        // Readers get only what they want until then.
        let is_hard = !self.removal.is_at_once() && edit.is_some_and(Removal::is_at_once);
        // One that is killed before its next commit has lost nothing in silence. So some turns are
        // played without kills.
        let is_still = replaces || random.u8(..6) < if is_hard { 5 } else { 1 };
        let held = if is_still {
            Some(world.hold_still().await)
        } else {
            None
        };
        // What is removed from now on is removed under readers that have everything.
        self.settle(world).await?;
        let (before, edited, began) = (self.last, self.edited, Instant::now());
        if replaces {
            self.replace_those_of_others(world, random).await;
        } else {
            // Nobody kills it while it stores: what it acknowledges is all that there is.
            let server = if is_still {
                None
            } else {
                Some(world.server.lock().await)
            };
            self.publish_and_edit(world, edit, is_hard, random).await;
            drop(server);
        }
        // The turn may have begun before the readers knew of the edit of the turn before it.
        let is_known = edited.is_none_or(|edited| began - edited > SETTINGS_KNOWN_WITHIN);
        let unknown = (is_hard || !is_known).then_some(before + 1..=self.last);
        if is_still {
            self.accounts_for_all(world, Some(before)).await?;
            self.unknown.extend(unknown);
        } else {
            self.unknown.extend(unknown);
            self.accounts_for_all(world, None).await?;
        }
        drop(held);
        Ok(())
    }

    /// Publishes, and edits the settings before it or in the middle of it.
    async fn publish_and_edit(
        &mut self,
        world: &World,
        edit: Option<Removal>,
        is_hard: bool,
        random: &mut fastrand::Rng,
    ) {
        let traffic = Traffic::draw(random, is_hard);
        let edited_at = if random.bool() {
            0
        } else {
            random.usize(..traffic.groups)
        };
        world.note(&format!("leaky: {traffic:?}, {edit:?} at {edited_at}"));
        let context = connect(world).await;
        let mut sent = Vec::new();
        for group in 0..traffic.groups {
            if let Some(removal) = edit.filter(|_| group == edited_at) {
                self.edit(&context, removal).await;
            }
            for number in 0..traffic.size {
                let is_theirs = traffic.theirs > 0 && number % traffic.theirs == 1;
                let side = if is_theirs { "theirs" } else { "mine" };
                let subject = format!("{side}.{}", random.usize(..traffic.subjects));
                let rolls_up = (self.removal == Removal::RollUps && random.u8(..30) == 0)
                    .then(|| if random.bool() { "sub" } else { "all" });
                sent.push(send(&context, subject, rolls_up, format!("m{group}-{number}")).await);
            }
            tokio::time::sleep(traffic.pause).await;
        }
        self.enter(sent).await;
    }

    /// Enters what was sent, once it is stored.
    async fn enter(&mut self, sent: Vec<Sent>) {
        for message in sent {
            let stored = message.stored.await.expect("nobody kills the server");
            self.last = self.last.max(stored.sequence);
            if message.subject.starts_with("mine.") {
                self.mine.insert(stored.sequence, message.data);
            }
        }
    }

    async fn edit(&mut self, context: &jetstream::Context, removal: Removal) {
        context
            .update_stream(removal.config())
            .await
            .expect("these settings can be edited");
        self.is_whole &= removal == Removal::Nothing;
        if removal.is_at_once() && !self.removal.is_at_once() {
            self.edited = Some(Instant::now());
        }
        self.removal = removal;
    }

    /// Messages of others replace each other in one write, after those of a deployment that reads
    /// no others, and has read all of its own: it does not stop.
    async fn replace_those_of_others(&mut self, world: &World, random: &mut fastrand::Rng) {
        let pause = Duration::from_millis([0, 4_000][random.usize(..2)]);
        world.note(&format!("leaky: others are replaced after {pause:?}"));
        let context = connect(world).await;
        self.edit(&context, Removal::OnePerSubject).await;
        operator::remove(world, BYSTANDER).await;
        // Its reader begins after the edit.
        operator::install(
            world,
            BYSTANDER,
            STOPPING,
            BYSTANDER,
            "&accept-missing=true",
        )
        .await;
        let sent = send(
            &context,
            "calm.before".to_owned(),
            None,
            "before".to_owned(),
        )
        .await;
        self.enter(vec![sent]).await;
        let before = self.bystander_reaches(world).await;
        // As in a night in which nobody writes anything.
        tokio::time::sleep(pause).await;
        let mut sent = Vec::new();
        for _ in 0..random.usize(2..1_500) {
            sent.push(send(&context, "theirs.0".to_owned(), None, String::new()).await);
        }
        self.enter(sent).await;
        self.bystander_reaches(world).await;
        let sent = send(&context, "calm.after".to_owned(), None, "after".to_owned()).await;
        self.enter(vec![sent]).await;
        let after = self.bystander_reaches(world).await;
        assert_eq!(
            after.missing_events, before.missing_events,
            "it misses events of others"
        );
        let answer = testify(world, BYSTANDER, self.last).await;
        let applied = applied(BYSTANDER, &answer.expect("it is up").expect(200).text());
        // Earlier ones are of an earlier bystander.
        let mut data = applied.values().rev().map(String::as_str);
        assert_eq!(
            (data.next(), data.next()),
            (Some("after"), Some("before")),
            "the bystander has other events"
        );
        operator::remove(world, BYSTANDER).await;
    }

    async fn bystander_reaches(&self, world: &World) -> Deployment {
        let what = format!("reach {}", self.last);
        world
            .show_when(BYSTANDER, &what, |shown| {
                assert!(
                    shown.state != DeploymentState::Failed,
                    "it stops for events of others: {shown:#?}"
                );
                shown.state == DeploymentState::Live && shown.position >= self.last
            })
            .await
    }

    /// Those of the witnesses' events after a sequence that the stream still has.
    async fn kept_after(&self, world: &World, sequence: u64) -> BTreeSet<u64> {
        let context = connect(world).await;
        let stream = context
            .get_stream_no_info(STREAM)
            .await
            .expect("a name needs no answer");
        let mine = self.mine.range(sequence + 1..);
        let sequences: Vec<u64> = mine.map(|(sequence, _)| *sequence).collect();
        let look = async |sequence| {
            let found = stream.get_raw_message(sequence).await;
            found.ok().map(|_| sequence)
        };
        futures_util::stream::iter(sequences)
            .map(look)
            .buffered(READS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// Waits until both deployments have read everything. The one that stops is resumed.
    async fn settle(&mut self, world: &World) -> Result<(), Unproved> {
        let begin = Instant::now();
        loop {
            let mut waits_for = None;
            for name in [COUNTING, STOPPING] {
                let shown = world.show(name).await;
                if shown.state == DeploymentState::Failed {
                    self.resume(world, &shown).await?;
                }
                if shown.state != DeploymentState::Live || shown.position < self.last {
                    waits_for = Some(shown);
                }
            }
            let Some(shown) = waits_for else {
                return Ok(());
            };
            assert!(
                begin.elapsed() < 2 * wait::DEADLINE,
                "waited in vain for all up to {}: {shown:#?}",
                self.last
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Accepts what is missing, as an operator would, after a look at the reason.
    async fn resume(&mut self, world: &World, shown: &Deployment) -> Result<(), Unproved> {
        let failure = shown.failure.as_ref().expect("one that failed says why");
        world.note(&format!(
            "leaky: {} at {}: {}",
            shown.name, shown.position, failure.message
        ));
        // An old server may say after a restart that an edited stream was created by the edit, and
        // everything that could prove more is gone.
        if failure.kind == "source-diverged" && self.created != created(world).await {
            return Err(Unproved);
        }
        let is_gap = matches!(&*failure.kind, "source-gap" | "source-incomplete");
        assert!(
            is_gap && shown.name == STOPPING && !self.is_whole,
            "it stops for no reason: {shown:#?}"
        );
        operator::insist(world, STOPPING, "resume?accept-missing=true").await;
        Ok(())
    }

    /// Every event was applied once and in order, or is known to be missing: within moments, as a
    /// reader looks at the settings of a stream every second. What the stream still has after a
    /// sequence is not missing.
    async fn accounts_for_all(
        &mut self,
        world: &World,
        kept_after: Option<u64>,
    ) -> Result<(), Unproved> {
        let begin = Instant::now();
        for name in [COUNTING, STOPPING] {
            loop {
                // Again, as it may have been killed, or have stopped.
                self.settle(world).await?;
                let answer = testify(world, name, self.last).await;
                let Some(answer) = answer.filter(|answer| answer.status == 200) else {
                    assert!(
                        begin.elapsed() < 2 * wait::DEADLINE,
                        "{name} never answers at {}",
                        self.last
                    );
                    continue;
                };
                // Only now: messages may expire before they are read.
                let kept = match kept_after {
                    Some(sequence) => self.kept_after(world, sequence).await,
                    None => BTreeSet::new(),
                };
                match self.verify(name, &answer, &kept) {
                    Ok(()) => break,
                    Err(wrong) => assert!(begin.elapsed() < KNOWN_WITHIN, "{wrong}"),
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// An error if some are lost that are not known to be missing yet.
    fn verify(&self, name: &str, answer: &Answer, kept: &BTreeSet<u64>) -> Result<(), String> {
        let position = answer.position();
        let missing: u64 = answer
            .header("foldstream-missing")
            .map_or(0, |count| count.parse().expect("a number"));
        let applied = applied(name, &answer.text());
        for (sequence, data) in &applied {
            assert_eq!(
                self.mine.get(sequence),
                Some(data),
                "{name} applied another event {sequence}"
            );
        }
        let lost: Vec<u64> = self
            .mine
            .range(..=position)
            .map(|(sequence, _)| *sequence)
            .filter(|sequence| !applied.contains_key(sequence))
            .collect();
        let is_known = |lost: &&u64| !self.unknown.iter().any(|range| range.contains(lost));
        let count = lost.iter().filter(is_known).count() as u64;
        assert!(
            applied.len() as u64 + missing <= position,
            "{name} at {position} has {} events, and counts {missing} as missing",
            applied.len()
        );
        assert!(
            !self.is_whole || lost.len() as u64 + missing == 0,
            "{name} at {position} misses {missing} events of a stream that removes none, and lacks \
             {lost:?}"
        );
        let left_out: Vec<&u64> = lost.iter().filter(|lost| kept.contains(lost)).collect();
        assert!(
            left_out.is_empty(),
            "{name} at {position} lacks events that the stream has: {left_out:?}"
        );
        if count <= missing {
            return Ok(());
        }
        Err(format!(
            "{name} at {position} has {} events and lacks {count}, but counts {missing} as missing: \
             {lost:?}",
            applied.len()
        ))
    }
}

/// The server says that the stream was created again, and nothing of what was read is in it.
struct Unproved;

/// When the stream was created, as the server says.
async fn created(world: &World) -> String {
    wait::until("the stream", || async {
        let stream = publisher::connect(world).await.get_stream(STREAM).await;
        Some(stream.ok()?.cached_info().created.to_string())
    })
    .await
}

/// A message on its way.
struct Sent {
    stored: PublishAckFuture,
    subject: String,
    data: String,
}

async fn send(
    context: &jetstream::Context,
    subject: String,
    rolls_up: Option<&str>,
    data: String,
) -> Sent {
    let mut headers = HeaderMap::new();
    if let Some(what) = rolls_up {
        headers.insert("Nats-Rollup", what);
    }
    let stored = context
        .publish_with_headers(subject.clone(), headers, data.clone().into())
        .await
        .expect("nobody kills the server");
    Sent {
        stored,
        subject,
        data,
    }
}

/// A connection whose requests wait for a busy server.
async fn connect(world: &World) -> jetstream::Context {
    let options = admin().request_timeout(Some(ACKNOWLEDGEMENT));
    let client = options
        .connect(world.nats_url())
        .await
        .expect("nobody kills the server");
    let mut context = jetstream::new(client);
    context.set_timeout(ACKNOWLEDGEMENT);
    context
}
