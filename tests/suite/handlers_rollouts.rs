//! Handlers whose effects change hands: rebuilt, migrated, rolled back and put back while events
//! flow, with messages that cannot leave, killed at every step. An independent reader of the target
//! counts: none missing, none twice.

use std::collections::BTreeSet;
use std::time::Duration;

use foldstream::api::{self, GenerationStatus, Promise};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::proxy::Proxy;
use foldstream_tests::reactor::{
    self, Place, REACTOR, TO_STREAM, events, host_with_stream, published, stored,
};
use foldstream_tests::{cli, guests, wait};

/// Small and frequent flushes, so that kills fall before, into and behind commits; and time to
/// align on a busy machine.
pub(crate) const CONFIG: &str =
    "[state]\nflush_interval = \"50ms\"\n[rollout]\nhold_max = \"5s\"\n";

/// A host with an embedded log to read, and a stream to publish to whose window is far shorter than
/// any outage: what is sent again is stored again.
struct Stage {
    server: NatsServer,
    proxy: Proxy,
    host: Host,
    /// The messages that have to be stored.
    wanted: BTreeSet<Place>,
    last: u64,
}

impl Stage {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// Replaces the module by one with another state, which a rebuild or a migration makes.
    async fn replace_with(&self, module: &[u8], outcome: api::DeployOutcome) {
        let strategy = match outcome {
            api::DeployOutcome::Migrating => "migrate",
            _ => "rebuild",
        };
        let parameters = format!("&strategy={strategy}");
        let client = self.client();
        let deployed = client.deploy_with(REACTOR, module, &parameters).await;
        assert_eq!(deployed.outcome, outcome, "{}", deployed.reason);
        client
            .becomes(REACTOR, deployed.generation, GenerationStatus::Active)
            .await;
    }

    /// The same with more settings of rollouts.
    async fn start_with(rollout: &str) -> Self {
        let server = NatsServer::start().await;
        let config = async_nats::jetstream::stream::Config {
            duplicate_window: Duration::from_millis(200),
            ..nats::stream_config("OUT", "out.>")
        };
        nats::create_stream_with(&server.jetstream().await, config).await;
        let proxy = Proxy::start(&server.url()).await;
        let host = host_with_stream(&proxy.url(), &format!("{CONFIG}{rollout}")).await;
        host.client()
            .deploy_with(REACTOR, &guests::module(REACTOR), TO_STREAM)
            .await;
        Self {
            server,
            proxy,
            host,
            wanted: BTreeSet::new(),
            last: 0,
        }
    }

    fn client(&self) -> &Client {
        self.host.client()
    }

    /// Appends events that ask for one or three messages.
    async fn append(&mut self, count: u64, what: &str) {
        let appended = self.client().append(&events(count, what)).await;
        for sequence in appended.sequences {
            self.wanted.extend(reactor::wanted(sequence, what));
        }
        self.last = appended.last_sequence;
    }

    /// Rebuilds the state, and waits until the new one is active.
    async fn rebuild(&self) -> u64 {
        let answer = self.client().act(REACTOR, "rebuild").await;
        assert!(answer.status.is_success(), "{}", answer.text());
        let number = answer.json::<api::Deployed>().generation;
        self.client()
            .becomes(REACTOR, number, GenerationStatus::Active)
            .await;
        number
    }

    /// Rolls back, as soon as that is possible.
    async fn rollback(&self) -> api::Deployment {
        wait::until("a rollback", || async {
            let answer = self.client().act(REACTOR, "rollback").await;
            match answer.status.as_u16() {
                200 => Some(answer.json::<api::CutOver>().deployment),
                409 => None,
                other => panic!("answer {other}: {}", answer.text()),
            }
        })
        .await
    }

    /// Waits until nothing is being built any more.
    async fn settled(&self) {
        self.client()
            .show_when(REACTOR, "come to rest", |shown| shown.candidate.is_none())
            .await;
    }

    /// Waits until everything is published, and checks what the stream has.
    async fn assert_each_once(&self) -> api::Deployment {
        let shown = published(self.client(), self.last).await;
        let stored = stored(&self.server).await;
        reactor::assert_each_once(&stored, &self.wanted, &outbox(&shown).lineage);
        self.assert_one_owner(&shown).await;
        shown
    }

    /// The active generation has the state file that owns the effects.
    async fn assert_one_owner(&self, shown: &api::Deployment) {
        let generations = self.client().generations(REACTOR).await;
        let active: Vec<_> = generations
            .iter()
            .filter(|generation| generation.status == GenerationStatus::Active)
            .collect();
        let owner = shown.outbox.as_ref().expect("it is a handler").state_file;
        assert_eq!(
            (active.len(), active[0].state_file),
            (1, owner),
            "{generations:?}"
        );
    }
}

fn outbox(shown: &api::Deployment) -> api::Outbox {
    shown.outbox.clone().expect("it is a handler")
}

#[tokio::test]
async fn rebuilt_and_rolled_back_while_events_flow_each_message_is_stored_once() {
    let mut stage = Stage::start().await;
    stage.append(300, "three").await;
    let client = stage.client().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let flow = tokio::spawn(async move {
        let (mut sequences, mut stopped) = (Vec::new(), stopped);
        while stopped.try_recv().is_err() {
            sequences.extend(client.append(&events(7, "three")).await.sequences);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sequences
    });
    stage.rebuild().await;
    stage.rollback().await;
    let release = guests::release(REACTOR, 1);
    let deployed = stage
        .client()
        .deploy_with(REACTOR, &release, "&strategy=rebuild")
        .await;
    stage
        .client()
        .becomes(REACTOR, deployed.generation, GenerationStatus::Active)
        .await;
    let shown = stage.rollback().await;
    assert_eq!(
        outbox(&shown).epoch,
        5,
        "each cut-over and each rollback has another owner"
    );
    stop.send(()).expect("it runs");
    let sequences = flow.await.expect("it appends");
    stage.last = *sequences.last().expect("some were appended");
    for sequence in sequences {
        stage.wanted.extend(reactor::wanted(sequence, "three"));
    }
    let shown = stage.assert_each_once().await;
    assert_eq!(outbox(&shown).targets[0].promise, Some(Promise::ReadBack));
    assert!(outbox(&shown).owned_after > 0, "{:?}", outbox(&shown));
}

#[tokio::test]
async fn messages_that_cannot_leave_pass_to_the_new_owner_and_leave_once() {
    let mut stage = Stage::start().await;
    stage.append(10, "one").await;
    stage.assert_each_once().await;
    stage.server.kill();
    // More than is copied while applying is held.
    for _ in 0..4 {
        stage.append(200, "three").await;
    }
    stage.client().reached(REACTOR, stage.last).await;
    let before = outbox(&stage.client().show(REACTOR).await);
    assert_eq!(before.entries, 2_400, "{before:?}");
    stage.rebuild().await;
    let after = outbox(&stage.client().show(REACTOR).await);
    assert_eq!(
        (after.entries, after.bytes, after.epoch),
        (before.entries, before.bytes, 2)
    );
    assert_eq!(
        (after.lineage, after.owned_after),
        (before.lineage, stage.last)
    );
    // More come, and the outbox goes back and forth with them, also through a restart.
    stage.append(50, "one").await;
    stage.rollback().await;
    stage.host.restart().await;
    stage.append(50, "one").await;
    stage.client().reached(REACTOR, stage.last).await;
    stage.rollback().await;
    let shown = stage
        .client()
        .show_when(REACTOR, "have all that waits", |shown| {
            outbox(shown).entries == 2_500
        })
        .await;
    assert_eq!(outbox(&shown).epoch, 4);
    stage.server.restart().await;
    stage.assert_each_once().await;
}

#[tokio::test]
async fn messages_without_a_grant_pass_to_the_new_owner_and_wait_there() {
    let mut stage = Stage::start().await;
    stage.server.kill();
    stage.append(20, "three").await;
    stage.client().reached(REACTOR, stage.last).await;
    stage
        .client()
        .deploy_with(REACTOR, &guests::module(REACTOR), "&allow-publish=")
        .await;
    stage.server.restart().await;
    stage.rebuild().await;
    let shown = stage
        .client()
        .show_when(REACTOR, "hold its messages", |shown| {
            let troubles = outbox(shown)
                .targets
                .into_iter()
                .filter_map(|target| target.trouble);
            troubles
                .into_iter()
                .any(|trouble| trouble.contains("no longer publish"))
        })
        .await;
    assert_eq!((outbox(&shown).entries, outbox(&shown).epoch), (60, 2));
    assert_eq!(stored(&stage.server).await.len(), 0);
    let grant = "&allow-publish=out.%3E%40out";
    stage
        .client()
        .deploy_with(REACTOR, &guests::module(REACTOR), grant)
        .await;
    stage.assert_each_once().await;
}

#[tokio::test]
async fn messages_stored_without_an_answer_are_found_by_the_new_owner() {
    let mut stage = Stage::start().await;
    stage.append(10, "one").await;
    stage.assert_each_once().await;
    let before = stage.wanted.len();
    stage.proxy.swallow(true);
    stage.append(60, "three").await;
    wait::until("messages to be stored without an answer", || async {
        (stored(&stage.server).await.len() > before).then_some(())
    })
    .await;
    stage.rebuild().await;
    stage.proxy.break_all();
    stage.proxy.swallow(false);
    let shown = stage.assert_each_once().await;
    let target = &outbox(&shown).targets[0];
    assert!(
        target.resent > 0 && target.promise == Some(Promise::ReadBack),
        "{target:?}"
    );
}

#[tokio::test]
async fn candidate_waits_behind_an_owner_that_stopped_and_handles_the_rest_as_the_owner() {
    let mut stage = Stage::start().await;
    stage.append(100, "one").await;
    stage.append(1, "fail").await;
    stage.append(400, "three").await;
    let (stopped, failure) = stage.client().failed(REACTOR).await;
    assert_eq!((stopped.position, failure.sequence), (100, Some(101)));
    // The next version handles the event, but not as long as it is mute.
    let next = guests::module("reactor-next");
    stage
        .replace_with(&next, api::DeployOutcome::Rebuilding)
        .await;
    let shown = stage.assert_each_once().await;
    assert_eq!((outbox(&shown).owned_after, outbox(&shown).epoch), (100, 2));
    let counted: u64 = stage
        .client()
        .entries(REACTOR, "answered/")
        .await
        .iter()
        .map(|entry| {
            entry
                .value
                .to_string()
                .trim_matches('"')
                .parse::<u64>()
                .expect("a number")
        })
        .sum();
    assert_eq!(counted, 501);
    // The code before it has not passed that event, so it can't take over again.
    let refused = stage.client().act(REACTOR, "rollback").await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    stage.append(5, "one").await;
    stage.assert_each_once().await;
}

#[tokio::test]
async fn candidate_that_waits_to_be_promoted_publishes_nothing_before_that() {
    let mut stage = Stage::start().await;
    stage.append(200, "three").await;
    stage.assert_each_once().await;
    let next = guests::module("reactor-next");
    let deployed = stage
        .client()
        .deploy_with(REACTOR, &next, "&strategy=rebuild&promote=manual")
        .await;
    stage
        .client()
        .becomes(REACTOR, deployed.generation, GenerationStatus::Ready)
        .await;
    stage.append(50, "three").await;
    let shown = stage.assert_each_once().await;
    assert_eq!(outbox(&shown).epoch, 1, "it is not the owner");
    stage.client().act(REACTOR, "promote").await.expect(200);
    stage.append(50, "three").await;
    let shown = stage.assert_each_once().await;
    assert_eq!(
        (shown.generation, outbox(&shown).epoch),
        (deployed.generation, 2)
    );
}

#[tokio::test]
async fn migrated_handler_continues_with_its_messages_and_counts() {
    let mut stage = Stage::start().await;
    stage.append(100, "one").await;
    stage.server.kill();
    stage.append(100, "three").await;
    stage.client().reached(REACTOR, stage.last).await;
    let next = guests::module("reactor-next");
    stage
        .replace_with(&next, api::DeployOutcome::Migrating)
        .await;
    stage.append(10, "fail").await;
    stage.server.restart().await;
    let shown = stage.assert_each_once().await;
    assert_eq!(outbox(&shown).epoch, 2);
    let counted: u64 = stage
        .client()
        .entries(REACTOR, "answered/")
        .await
        .iter()
        .map(|entry| {
            entry
                .value
                .to_string()
                .trim_matches('"')
                .parse::<u64>()
                .expect("a number")
        })
        .sum();
    assert_eq!(counted, 210);
}

#[tokio::test]
async fn code_that_is_put_back_after_its_probation_sends_nothing_twice() {
    let mut stage = Stage::start().await;
    stage.append(20, "three").await;
    stage.assert_each_once().await;
    stage.rebuild().await;
    let deployed = stage
        .client()
        .deploy(REACTOR, &guests::module("reactor-broken"))
        .await;
    assert_eq!(
        deployed.outcome,
        api::DeployOutcome::Inherited,
        "{}",
        deployed.reason
    );
    // The new code publishes for some events, fails at the next, and gives way to the code before
    // it.
    stage.append(20, "one").await;
    stage.append(30, "three").await;
    stage
        .client()
        .becomes(REACTOR, deployed.generation, GenerationStatus::Failed)
        .await;
    let shown = stage.assert_each_once().await;
    assert_eq!(outbox(&shown).epoch, 2, "the state file is the same");
    // And hand over again.
    stage.rebuild().await;
    stage.append(20, "three").await;
    assert_eq!(outbox(&stage.assert_each_once().await).epoch, 3);
}

/// How to get to a step of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Rebuild,
    Rollback,
}

impl Way {
    /// What a client asks for.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::Rollback => "rollback",
        }
    }
}

/// Whether the catalogue names the new owner at a step.
pub(crate) fn is_recorded_at(step: &str) -> bool {
    [
        "cut-over-recorded",
        "cut-over-released",
        "hand-over-confirmed",
    ]
    .contains(&step)
}

/// Every step of a hand-over.
pub(crate) const STEPS: [&str; 7] = [
    "build-ready",
    "hand-over-copied",
    "cut-over-held",
    "hand-over-prepared",
    "cut-over-recorded",
    "cut-over-released",
    "hand-over-confirmed",
];

/// The host kills itself at a step, while some messages are stored without an answer and others are
/// not sent.
async fn killed_at(step: &str, way: Way) {
    eprintln!("{step} by {way:?}");
    let mut stage = Stage::start().await;
    stage.append(50, "three").await;
    stage.assert_each_once().await;
    if way == Way::Rollback {
        stage.rebuild().await;
        stage.append(10, "one").await;
        stage.assert_each_once().await;
    }
    let epoch = outbox(&stage.client().show(REACTOR).await).epoch;
    stage.host.die_at(Some(step));
    stage.host.restart().await;
    // Its connection is up before answers are swallowed.
    stage.append(5, "one").await;
    stage.assert_each_once().await;
    let before = stage.wanted.len();
    stage.proxy.swallow(true);
    stage.append(60, "three").await;
    wait::until("messages to be stored without an answer", || async {
        (stored(&stage.server).await.len() > before).then_some(())
    })
    .await;
    let client = stage.client().clone();
    // No answer is the answer of the dead.
    let path = format!("/v1/deployments/{REACTOR}/{}", way.action());
    let _ = client
        .try_send(client.request(reqwest::Method::POST, &path))
        .await;
    stage.host.wait_for_death();
    stage.proxy.break_all();
    stage.proxy.swallow(false);
    stage.host.die_at(None);
    stage.host.restart().await;
    stage.append(20, "three").await;
    stage.settled().await;
    let shown = stage.assert_each_once().await;
    // A rebuild is taken up again.
    let changes = u64::from(is_recorded_at(step) || way == Way::Rebuild);
    assert_eq!(outbox(&shown).epoch, epoch + changes, "{step} by {way:?}");
    // And the owner of the effects can hand them over.
    stage.rebuild().await;
    stage.append(20, "three").await;
    stage.rollback().await;
    stage.append(20, "three").await;
    assert_eq!(
        outbox(&stage.assert_each_once().await).epoch,
        epoch + changes + 2
    );
}

killed_at_steps! {
    killed_at_a_step_of_a_hand_over_there_is_one_owner_and_each_message_is_stored_once_1 Rebuild 0;
    killed_at_a_step_of_a_hand_over_there_is_one_owner_and_each_message_is_stored_once_2 Rebuild 1;
    killed_at_a_step_of_a_hand_back_there_is_one_owner_and_each_message_is_stored_once_1 Rollback 0;
    killed_at_a_step_of_a_hand_back_there_is_one_owner_and_each_message_is_stored_once_2 Rollback 1;
}

#[tokio::test]
async fn killed_at_any_moment_of_rollouts_each_message_is_stored_once() {
    let mut random = fastrand::Rng::with_seed(foldstream_tests::seed());
    let mut stage = Stage::start().await;
    stage.append(100, "three").await;
    for _ in 0..8 {
        stage.append(random.u64(1..150), "three").await;
        let client = stage.client().clone();
        let actions: Vec<_> = (0..3)
            .map(|_| if random.bool() { "rebuild" } else { "rollback" })
            .collect();
        let rollouts = tokio::spawn(async move {
            for action in actions {
                // Refused, or without an answer: whatever comes of it.
                let path = format!("/v1/deployments/{REACTOR}/{action}");
                let _ = client
                    .try_send(client.request(reqwest::Method::POST, &path))
                    .await;
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        });
        stage.append(random.u64(1..150), "three").await;
        if random.bool() {
            stage.proxy.swallow(true);
            stage.append(20, "three").await;
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..400_000))).await;
        stage.host.kill();
        rollouts.await.expect("it only asks");
        stage.proxy.break_all();
        stage.proxy.swallow(false);
        stage.host.restart().await;
    }
    stage.append(10, "three").await;
    stage.settled().await;
    stage.assert_each_once().await;
}

#[tokio::test]
async fn older_catalogue_stops_the_handler_and_publishes_nothing() {
    let mut stage = Stage::start().await;
    stage.append(20, "one").await;
    stage.assert_each_once().await;
    assert_eq!(stage.host.stop().code(), Some(0));
    let catalogue = stage.host.data_dir().join("catalog.redb");
    let copy = std::fs::read(&catalogue).expect("it is there");
    stage.host.restart().await;
    stage.rebuild().await;
    stage.append(20, "one").await;
    stage.assert_each_once().await;
    assert_eq!(stage.host.stop().code(), Some(0));
    std::fs::write(&catalogue, copy).expect("it is written");
    // Somebody accepted the loss.
    std::fs::remove_file(stage.host.data_dir().join("catalog.newest")).expect("it is there");
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(REACTOR).await;
    assert_eq!(failure.kind, "owner-mismatch", "{}", failure.message);
    // No candidate could take over what nobody is known to own.
    let refused = stage.client().act(REACTOR, "rebuild").await;
    let refused = refused.problem(409, "conflict");
    assert!(
        refused.detail.contains("does not own its effects"),
        "{}",
        refused.detail
    );
    assert_eq!(
        stored(&stage.server).await.len(),
        40,
        "nothing more is published"
    );
}

#[tokio::test]
async fn host_on_a_backup_continues_with_the_messages_that_waited() {
    let mut stage = Stage::start().await;
    stage.append(10, "one").await;
    stage.rebuild().await;
    stage.assert_each_once().await;
    stage.server.kill();
    stage.append(50, "three").await;
    stage.client().reached(REACTOR, stage.last).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("copy");
    cli::on(&stage.host, &["backup", &target.to_string_lossy()]).expect(0);
    stage.host.kill();
    std::fs::remove_dir_all(stage.host.data_dir()).expect("it is there");
    std::fs::rename(&target, stage.host.data_dir()).expect("on one disk");
    stage.host.restart().await;
    let shown = stage
        .client()
        .show_when(REACTOR, "have what waited", |shown| {
            outbox(shown).entries == 150
        })
        .await;
    assert_eq!(outbox(&shown).epoch, 2);
    stage.server.restart().await;
    stage.assert_each_once().await;
}

/// Makes the state file of the active generation unreadable while the host is stopped.
fn destroy_state(stage: &mut Stage) {
    stage.host.stop();
    let file = stage
        .host
        .data_dir()
        .join("state")
        .join(REACTOR)
        .join("1.redb");
    std::fs::write(file, [7; 4_096]).expect("it is written");
}

/// Waits until the host knows that the state of the active generation cannot be opened.
async fn is_lost(stage: &Stage) {
    stage
        .client()
        .show_when(REACTOR, "lose its state", |shown| {
            let failure = shown.failure.as_ref();
            failure.is_some_and(|failure| failure.kind == "state" && failure.attempts >= 3)
        })
        .await;
}

#[tokio::test]
async fn candidate_of_an_owner_whose_state_cannot_be_opened_fails_and_frees_its_place() {
    let mut stage = Stage::start_with("rebuilds_max = 1\n").await;
    stage.append(200, "one").await;
    stage.assert_each_once().await;
    let answer = stage.client().act(REACTOR, "rebuild?max-rate=1").await;
    let candidate = answer.json::<api::Deployed>().generation;
    destroy_state(&mut stage);
    stage.host.restart().await;
    let failed = stage
        .client()
        .becomes(REACTOR, candidate, GenerationStatus::Failed)
        .await;
    assert!(
        failed.reason.contains("--accept-lost-effects"),
        "{}",
        failed.reason
    );
    // Another deployment has its turn.
    stage
        .client()
        .deploy_with("counts", &guests::module("tally"), "&source=events")
        .await;
    let answer = stage.client().act("counts", "rebuild").await;
    let number = answer.json::<api::Deployed>().generation;
    stage
        .client()
        .becomes("counts", number, GenerationStatus::Active)
        .await;
}

#[tokio::test]
async fn lost_owner_is_replaced_and_what_its_stream_has_is_not_sent_again() {
    let mut stage = Stage::start().await;
    stage.append(100, "one").await;
    stage.assert_each_once().await;
    stage.server.kill();
    // These wait in the file that will be lost.
    stage.append(50, "three").await;
    stage.client().reached(REACTOR, stage.last).await;
    destroy_state(&mut stage);
    stage.server.restart().await;
    stage.host.restart().await;
    is_lost(&stage).await;
    let refused = stage.client().act(REACTOR, "rebuild").await;
    let refused = refused.problem(409, "conflict");
    assert!(
        refused.detail.contains("--accept-lost-effects"),
        "{}",
        refused.detail
    );
    let from = "rebuild?accept-lost-effects=true&effects-from=41";
    let answer = stage.client().act(REACTOR, from).await.expect(200);
    let deployed = answer.json::<api::Deployed>();
    assert!(deployed.reason.contains("after 40"), "{}", deployed.reason);
    stage
        .client()
        .becomes(REACTOR, deployed.generation, GenerationStatus::Active)
        .await;
    stage.append(20, "three").await;
    let shown = stage.assert_each_once().await;
    assert_eq!((outbox(&shown).owned_after, outbox(&shown).epoch), (40, 2));
    let audited = stage.client().get("/v1/audit").await.text();
    assert!(audited.contains("after 40"), "{audited}");
    // And it hands over as any other.
    stage.rebuild().await;
    stage.append(20, "one").await;
    stage.assert_each_once().await;
}

#[tokio::test]
async fn owner_that_lost_its_file_is_replaced_and_publishes_for_new_events() {
    let mut stage = Stage::start().await;
    stage.append(50, "one").await;
    stage.assert_each_once().await;
    stage.host.stop();
    let file = stage
        .host
        .data_dir()
        .join("state")
        .join(REACTOR)
        .join("1.redb");
    std::fs::remove_file(file).expect("it is there");
    stage.host.restart().await;
    let (_, failure) = stage.client().failed(REACTOR).await;
    assert_eq!(failure.kind, "owner-mismatch", "{}", failure.message);
    let answer = stage
        .client()
        .act(REACTOR, "rebuild?accept-lost-effects=true")
        .await
        .expect(200);
    let number = answer.json::<api::Deployed>().generation;
    stage
        .client()
        .becomes(REACTOR, number, GenerationStatus::Active)
        .await;
    stage.append(50, "one").await;
    let shown = stage.assert_each_once().await;
    assert_eq!((outbox(&shown).owned_after, outbox(&shown).epoch), (50, 2));
    // Of an owner whose state is sound, nothing is given up.
    let refused = stage
        .client()
        .act(REACTOR, "rebuild?accept-lost-effects=true")
        .await
        .problem(409, "conflict");
    assert!(
        refused.detail.contains("owns its effects"),
        "{}",
        refused.detail
    );
}
