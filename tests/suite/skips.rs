//! The way past an event that can't be folded: decided once, applied by every state alike, shown,
//! and taken back.

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use foldstream::api::{self, DeploymentState, GenerationStatus, SkipState, WorkState};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::host::{Host, jetstream_source};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};

/// Name of the deployment of the guest of that name.
const NAME: &str = "mischief";
const STREAM: &str = "MISCHIEF";

/// A host with a source whose events tell the guest what to do.
struct Bed {
    host: Host,
    stream: Option<(NatsServer, jetstream::Context)>,
}

impl Bed {
    async fn start(kind: Kind) -> Self {
        Self::start_with(kind, "").await
    }

    async fn start_with(kind: Kind, config: &str) -> Self {
        if kind == Kind::Embedded {
            return Self {
                host: Host::start_with(config).await,
                stream: None,
            };
        }
        let server = NatsServer::start().await;
        let context = server.jetstream().await;
        create(&context).await;
        let host = Host::start_with(&format!(
            "{config}\n{}",
            jetstream_source(&server.url(), STREAM)
        ))
        .await;
        Self {
            host,
            stream: Some((server, context)),
        }
    }

    /// Publishes events that say what to do; returns the last sequence.
    async fn tell(&self, verbs: &[&str]) -> u64 {
        self.publish(verbs.iter().map(|verb| ("mischief.a", *verb)))
            .await
    }

    async fn publish(&self, events: impl Iterator<Item = (&str, &str)>) -> u64 {
        match &self.stream {
            Some((_, context)) => {
                let messages = events
                    .map(|(subject, data)| (subject.to_owned(), Bytes::from(data.to_owned())));
                nats::publish(context, messages.collect::<Vec<_>>()).await
            }
            None => {
                self.host
                    .client()
                    .append(&events.map(event).collect::<Vec<_>>())
                    .await
                    .last_sequence
            }
        }
    }

    async fn deploy(&self) {
        self.host.client().deploy(NAME, &guests::module(NAME)).await;
    }

    async fn notes(&self) -> String {
        let answer = self
            .host
            .client()
            .query(NAME, "notes", &serde_json::Value::Null)
            .await
            .expect(200);
        answer.text().trim_matches('"').to_owned()
    }

    async fn notes_at(&self, position: u64) -> String {
        self.host.client().reached(NAME, position).await;
        self.notes().await
    }

    async fn fails_at(&self, sequence: u64) -> api::Failure {
        let what = format!("fail at {sequence}");
        let failed_at =
            |shown: &api::Deployment| shown.failure.as_ref().and_then(|failure| failure.sequence);
        let is_so = |shown: &api::Deployment| {
            shown.state == DeploymentState::Failed && failed_at(shown) == Some(sequence)
        };
        let shown = self.host.client().show_when(NAME, &what, is_so).await;
        shown.failure.expect("it was just looked at")
    }

    async fn skips(&self) -> Vec<(u64, SkipState)> {
        let path = format!("/v1/deployments/{NAME}/skips");
        let list: api::SkipList = self.host.client().get(&path).await.expect(200).json();
        list.skips
            .iter()
            .map(|skip| (skip.sequence, skip.state))
            .collect()
    }

    /// Runs a command with words that hold no spaces.
    fn run(&self, typed: &str) -> Output {
        cli::on(&self.host, &typed.split(' ').collect::<Vec<_>>())
    }

    /// Resumes the deployment, which from now on skips an event.
    fn resume_without(&self, sequence: u64, reason: &str) -> Output {
        let sequence = sequence.to_string();
        let words = ["resume", NAME, "--skip", &sequence, "--reason", reason];
        cli::on(&self.host, &words).expect(0)
    }

    async fn as_of(&self, sequence: u64) -> String {
        let path = format!("/v1/deployments/{NAME}/queries/notes?as-of={sequence}");
        let answer = wait::until("the past to be prepared", async || {
            let answer = self.host.client().get(&path).await;
            (answer.status != 503).then_some(answer)
        });
        answer.await.expect(200).text().trim_matches('"').to_owned()
    }

    async fn verified(&self) -> api::Verification {
        let path = format!("/v1/deployments/{NAME}/verification");
        self.host
            .client()
            .act(NAME, "verification")
            .await
            .expect(200);
        wait::until("the verification to end", async || {
            let found: api::Verification = self.host.client().get(&path).await.expect(200).json();
            matches!(found.state, WorkState::Done | WorkState::Failed).then_some(found)
        })
        .await
    }
}

async fn create(context: &jetstream::Context) {
    let subjects = vec!["mischief.>".to_owned(), "other.>".to_owned()];
    let config = stream::Config {
        subjects,
        ..nats::stream_config(STREAM, "mischief.>")
    };
    nats::create_stream_with(context, config).await;
}

fn event((subject, data): (&str, &str)) -> api::NewEvent {
    api::NewEvent {
        subject: subject.to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: serde_json::json!(data),
    }
}

/// Nothing becomes durable by itself while a test looks.
const NO_FLUSH: &str = "[state]\nflush_interval = \"1h\"\n";

async fn a_decision_is_applied_by_every_state_alike(kind: Kind) {
    let mut bed = Bed::start_with(kind, NO_FLUSH).await;
    skipped_once_it_failed(&bed).await;
    skipped_after_restarts(&mut bed).await;
    skipped_by_folds_of_the_past(&bed).await;
    skipped_by_other_generations(&bed).await;
}

async fn skipped_once_it_failed(bed: &Bed) {
    bed.tell(&["note one", "reject no amount", "note three"])
        .await;
    bed.deploy().await;
    let failure = bed.fails_at(2).await;
    let command = format!("foldstream resume {NAME} --skip 2 --reason TEXT");
    assert!(failure.message.contains(&command), "{}", failure.message);
    let said = bed.resume_without(2, "no amount, ticket 7");
    assert!(said.stdout.contains("skips 2"), "{said:?}");
    assert_eq!(bed.notes_at(3).await, "one,three");
    assert_eq!(bed.skips().await, [(2, SkipState::Skipped)]);
}

async fn skipped_after_restarts(bed: &mut Bed) {
    // What was applied since the decision is in memory only.
    bed.host.kill();
    bed.host.restart().await;
    assert_eq!(bed.notes_at(3).await, "one,three");
    let last = bed.tell(&["note four"]).await;
    assert_eq!(bed.notes_at(last).await, "one,three,four");
    assert_eq!(bed.host.stop().code(), Some(0));
    bed.host.restart().await;
    let shown = bed.host.client().reached(NAME, last).await;
    let [skip] = &shown.skips[..] else {
        panic!("one skip: {:?}", shown.skips);
    };
    assert_eq!(shown.skipped, 1);
    assert_eq!(skip.reason, "no amount, ticket 7");
    assert_eq!(skip.subject.as_deref(), Some("mischief.a"));
    let error = skip.error.as_deref().expect("it failed first");
    assert!(error.contains("no amount"), "{error}");
}

async fn skipped_by_folds_of_the_past(bed: &Bed) {
    let verification = bed.verified().await;
    let message = &verification.message;
    assert_eq!(verification.equal, Some(true), "{message}");
    assert_eq!(verification.skipped, [2], "{message}");
    assert!(
        message.contains("without 1 event that was skipped: 2"),
        "{message}"
    );
    let notes = [
        (1, "one"),
        (2, "one"),
        (3, "one,three"),
        (4, "one,three,four"),
    ];
    for (sequence, notes) in notes {
        assert_eq!(bed.as_of(sequence).await, notes, "as of {sequence}");
    }
    let past = bed.run("scan mischief --as-of 3").expect(0);
    assert!(past.stderr.contains("without 1 skipped events"), "{past:?}");
    let before = bed.run("scan mischief --as-of 1").expect(0);
    assert!(!before.stderr.contains("skipped"), "{before:?}");
}

async fn skipped_by_other_generations(bed: &Bed) {
    let client = bed.host.client();
    client.act(NAME, "rebuild").await.expect(200);
    let built = client.becomes(NAME, 2, GenerationStatus::Active).await;
    assert_eq!(built.skipped, 1);
    assert_eq!(bed.notes().await, "one,three,four");
    client.act(NAME, "rollback").await.expect(200);
    assert_eq!(client.show(NAME).await.skipped, 1);
    assert_eq!(bed.notes().await, "one,three,four");

    client.deploy(NAME, &guests::release(NAME, 1)).await;
    let last = bed.tell(&["note five", "reject again", "note seven"]).await;
    bed.fails_at(6).await;
    bed.resume_without(6, "again");
    assert_eq!(bed.notes_at(last).await, "one,three,four,five,seven");
    assert_eq!(
        bed.skips().await,
        [(2, SkipState::Skipped), (6, SkipState::Skipped)]
    );
}

#[tokio::test]
async fn a_decision_is_applied_by_every_state_alike_on_jetstream() {
    a_decision_is_applied_by_every_state_alike(Kind::JetStream).await;
}

#[tokio::test]
async fn a_decision_is_applied_by_every_state_alike_on_the_embedded_log() {
    a_decision_is_applied_by_every_state_alike(Kind::Embedded).await;
}

#[tokio::test]
async fn what_is_left_out_is_shown_wherever_one_looks() {
    let bed = Bed::start(Kind::Embedded).await;
    bed.tell(&["trap", "note two"]).await;
    bed.deploy().await;
    bed.fails_at(1).await;
    cli::on(
        &bed.host,
        &["resume", NAME, "--skip", "1", "--reason", "traps"],
    )
    .expect(0);
    bed.notes_at(2).await;
    let table = bed.run("skips mischief").expect(0).stdout;
    assert!(
        table.contains("1         skipped  mischief.a  a     ") && table.contains("traps"),
        "{table}"
    );
    let shown = bed.run("show mischief").expect(0).stdout;
    assert!(shown.contains("1 event; the last is 1: traps\n"), "{shown}");
    assert_eq!(
        bed.run("list -o json").expect(0).json()["deployments"][0]["skipped"],
        1
    );
    let audit = bed.run("audit mischief").expect(0).stdout;
    assert!(audit.contains("event 1: traps (trap:"), "{audit}");
    let metrics = bed.host.client().get("/metrics").await.expect(200).text();
    assert!(
        metrics.contains("\nfoldstream_events_skipped{deployment=\"mischief\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn events_are_left_out_wherever_they_are_in_a_batch() {
    let bed = Bed::start(Kind::JetStream).await;
    let notes: Vec<String> = (1..=300).map(|number| format!("note {number}")).collect();
    let mut verbs: Vec<&str> = notes.iter().map(String::as_str).collect();
    let broken = [1, 150, 151, 300];
    for (sequence, verb) in broken.iter().zip(["trap", "reject", "retry later", "grow"]) {
        verbs[sequence - 1] = verb;
    }
    bed.tell(&verbs).await;
    bed.deploy().await;
    for sequence in broken {
        bed.fails_at(sequence as u64).await;
        cli::on(
            &bed.host,
            &[
                "resume",
                NAME,
                "--skip",
                &sequence.to_string(),
                "--reason",
                "broken",
            ],
        );
    }
    let wanted: Vec<String> = (1..=300)
        .filter(|number| !broken.contains(number))
        .map(|number| number.to_string())
        .collect();
    assert_eq!(bed.notes_at(300).await, wanted.join(","));
    let client = bed.host.client();
    client.act(NAME, "rebuild").await.expect(200);
    assert_eq!(
        client
            .becomes(NAME, 2, GenerationStatus::Active)
            .await
            .skipped,
        4
    );
    assert_eq!(bed.notes().await, wanted.join(","));
}

#[tokio::test]
async fn only_an_event_that_is_still_to_be_folded_can_be_skipped() {
    for kind in Kind::ALL {
        let bed = Bed::start(kind).await;
        bed.tell(&["note one"]).await;
        bed.publish([("other.a", "not for it")].into_iter()).await;
        bed.tell(&["reject three", "note four", "reject five"])
            .await;
        bed.deploy().await;
        bed.fails_at(3).await;
        let resume = |sequence: &str, reason: &str| {
            cli::on(
                &bed.host,
                &["resume", NAME, "--skip", sequence, "--reason", reason],
            )
        };
        for (sequence, why) in [
            ("0", "sequences begin with 1"),
            ("1", "has already passed event 1"),
            ("99", "event 99 does not exist yet"),
        ] {
            let refused = resume(sequence, "why not").expect(4);
            assert!(refused.stderr.contains(why), "{sequence}: {refused:?}");
        }
        resume("3", " ").expect(4);
        resume("3", &"x".repeat(501)).expect(4);
        bed.run("resume mischief --skip 3").expect(2);
        bed.run("resume mischief --reason why").expect(2);
        let client = bed.host.client();
        let path = format!("/v1/deployments/{NAME}/resume");
        for body in [
            r#"{"skip":[3]}"#,
            r#"{"reason":"why"}"#,
            r#"{"skip":[3],"reason":"x","more":1}"#,
            "[]",
        ] {
            client
                .post(&path, "application/json", body)
                .await
                .problem(400, "invalid");
        }
        assert_eq!(
            (bed.fails_at(3).await.kind.as_str(), bed.skips().await.len()),
            ("rejected", 0)
        );

        // A later one can be decided along with it, and the same again changes nothing.
        resume("5", "known").expect(1);
        assert_eq!(bed.skips().await, [(5, SkipState::Ahead)]);
        for _ in 0..2 {
            resume("3", "broken").expect(0);
            assert_eq!(bed.notes_at(5).await, "one,four");
        }
        let audit = bed.run("audit mischief -o ndjson").expect(0).lines();
        assert_eq!(
            audit
                .iter()
                .filter(|entry| entry["action"] == "skip")
                .count(),
            2,
            "{audit:?}"
        );
        resume("4", "too late").expect(4);
    }
}

#[tokio::test]
async fn an_event_of_a_subject_that_is_not_read_needs_no_skip() {
    let bed = Bed::start(Kind::JetStream).await;
    bed.tell(&["reject one"]).await;
    bed.publish([("other.a", "not for it")].into_iter()).await;
    bed.deploy().await;
    bed.fails_at(1).await;
    let refused = bed.run("resume mischief --skip 2 --reason why").expect(4);
    assert!(
        refused
            .stderr
            .contains("subject other.a, which mischief does not read"),
        "{refused:?}"
    );
    bed.run("resume mischief --skip 1 --reason why").expect(0);
    bed.host.client().reached(NAME, 1).await;
}

#[tokio::test]
async fn a_decision_outlasts_a_kill_before_anything_came_of_it() {
    for kind in Kind::ALL {
        let mut bed = Bed::start(kind).await;
        bed.tell(&["note one", "trap", "note three"]).await;
        bed.deploy().await;
        bed.fails_at(2).await;
        bed.host.die_at(Some("skip-recorded"));
        bed.host.restart().await;
        bed.fails_at(2).await;
        let client = bed.host.client().clone();
        let request = client.request(
            reqwest::Method::POST,
            &format!("/v1/deployments/{NAME}/resume"),
        );
        let request = request
            .header("content-type", "application/json")
            .body(r#"{"skip":[2],"reason":"traps"}"#);
        // No answer is the answer of the dead.
        let _ = client.try_send(request).await;
        bed.host.wait_for_death();
        bed.host.die_at(None);
        bed.host.restart().await;
        assert_eq!(bed.notes_at(3).await, "one,three");
        assert_eq!(bed.skips().await, [(2, SkipState::Skipped)]);
    }
}

async fn taken_back_and_rebuilt(kind: Kind, first: &str, notes: &str) {
    let bed = Bed::start(kind).await;
    bed.tell(&[first, "reject two", "note three"]).await;
    bed.deploy().await;
    if first == "reject one" {
        // The candidate will be stopped before it has folded anything.
        bed.fails_at(1).await;
        // The decision counts, and the next event stops it again.
        bed.run("resume mischief --skip 1 --reason broken")
            .expect(1);
    }
    bed.fails_at(2).await;
    bed.run("resume mischief --skip 2 --reason broken")
        .expect(0);
    assert_eq!(bed.notes_at(3).await, notes);
    bed.run("skips mischief --remove 3").expect(3);
    let left = bed.run("skips mischief --remove 2").expect(0).stdout;
    assert!(left.contains("withdrawn"), "{left}");
    bed.run("skips mischief --remove 2").expect(3);

    // The state that has passed the event stays as it is, also when it is folded again.
    let skips = bed.skips().await;
    assert_eq!(
        (bed.notes().await.as_str(), skips.last()),
        (notes, Some(&(2, SkipState::Withdrawn)))
    );
    let verification = bed.verified().await;
    assert_eq!(
        (verification.equal, verification.skipped.last()),
        (Some(true), Some(&2)),
        "{}",
        verification.message
    );
    assert_eq!(bed.as_of(3).await, notes);

    // One that is built from scratch meets the event again, and continues from there once it is
    // skipped again.
    let client = bed.host.client();
    client.act(NAME, "rebuild").await.expect(200);
    let failure = wait::until("the candidate to be stopped", async || {
        let generations = client.generations(NAME).await;
        generations
            .into_iter()
            .find(|generation| generation.number == 2)?
            .failure
    });
    let failure = failure.await;
    let command = format!("foldstream resume {NAME} --candidate --skip 2 --reason TEXT");
    assert!(
        failure.sequence == Some(2) && failure.message.contains(&command),
        "{failure:?}"
    );
    if first == "note one" {
        let refused = bed
            .run("resume mischief --candidate --skip 1 --reason why")
            .expect(4);
        assert!(
            refused.stderr.contains("has already passed event 1"),
            "{refused:?}"
        );
    }
    bed.run("resume mischief --candidate --skip 2 --reason still-broken")
        .expect(0);
    let built = client.becomes(NAME, 2, GenerationStatus::Active).await;
    let skips = bed.skips().await;
    assert_eq!(
        (built.skipped as usize, bed.notes().await.as_str()),
        (skips.len(), notes)
    );
    assert_eq!(skips.last(), Some(&(2, SkipState::Skipped)));
}

#[tokio::test]
async fn a_resume_fails_if_any_deployment_or_a_candidate_fails_again() {
    let bed = Bed::start(Kind::Embedded).await;
    bed.tell(&["note one", "reject two"]).await;
    bed.deploy().await;
    bed.fails_at(2).await;
    let all = bed.run("resume --all").expect(1);
    assert!(
        all.stdout.starts_with("DEPLOYMENT  STATE") && all.stdout.contains("mischief    failed"),
        "{all:?}"
    );
    assert!(
        all.stderr
            .contains("mischief failed at sequence 2: rejected"),
        "{all:?}"
    );
    bed.run("resume mischief --skip 2 --reason broken")
        .expect(0);
    assert_eq!(bed.notes_at(2).await, "one");
    bed.run("skips mischief --remove 2").expect(0);
    let client = bed.host.client();
    client.act(NAME, "rebuild?promote=manual").await.expect(200);
    client.becomes(NAME, 2, GenerationStatus::Failed).await;
    let again = bed.run("resume mischief --candidate").expect(1);
    assert!(
        again.stderr.contains("generation 2 of mischief") && again.stderr.contains("rejected"),
        "{again:?}"
    );
    assert_eq!(again.stdout, "");
    client.becomes(NAME, 2, GenerationStatus::Failed).await;
    let continued = bed
        .run("resume mischief --candidate --skip 2 --reason broken")
        .expect(0);
    assert!(
        continued
            .stdout
            .starts_with("mischief: generation 2 continues")
            && continued.stdout.ends_with("; skips 2\n"),
        "{continued:?}"
    );
    client.becomes(NAME, 2, GenerationStatus::Ready).await;
}

#[tokio::test]
async fn a_decision_is_taken_back_for_what_is_built_from_scratch_on_jetstream() {
    taken_back_and_rebuilt(Kind::JetStream, "note one", "one,three").await;
}

#[tokio::test]
async fn a_decision_is_taken_back_for_what_is_built_from_scratch_on_the_embedded_log() {
    taken_back_and_rebuilt(Kind::Embedded, "reject one", "three").await;
}

#[tokio::test]
async fn a_state_is_folded_again_with_an_event_that_only_its_successor_leaves_out() {
    let bed = Bed::start(Kind::Embedded).await;
    bed.tell(&["reject one", "note two", "note three"]).await;
    bed.deploy().await;
    bed.fails_at(1).await;
    bed.run("resume mischief --skip 1 --reason broken")
        .expect(0);
    assert_eq!(bed.notes_at(3).await, "two,three");
    // Without the decision the candidate stops before the event that is decided about next.
    bed.run("skips mischief --remove 1").expect(0);
    let client = bed.host.client();
    client.act(NAME, "rebuild?promote=manual").await.expect(200);
    client.becomes(NAME, 2, GenerationStatus::Failed).await;
    let typed = [
        "resume",
        NAME,
        "--candidate",
        "--skip",
        "1",
        "--skip",
        "2",
        "--reason",
        "wrong note",
    ];
    cli::on(&bed.host, &typed).expect(0);
    client.becomes(NAME, 2, GenerationStatus::Ready).await;
    assert_eq!(
        bed.skips().await,
        [(1, SkipState::Skipped), (2, SkipState::Folded)]
    );
    let verification = bed.verified().await;
    assert_eq!(
        (verification.equal, verification.skipped),
        (Some(true), vec![1]),
        "{}",
        verification.message
    );
    client.act(NAME, "promote").await.expect(200);
    assert_eq!(bed.notes().await, "three");
    assert_eq!(
        bed.skips().await,
        [(1, SkipState::Skipped), (2, SkipState::Skipped)]
    );
}

#[tokio::test]
async fn a_part_is_rebuilt_without_what_the_state_leaves_out() {
    const TALLY: &str = "tally";
    let bed = Bed::start(Kind::Embedded).await;
    let client = bed.host.client();
    client.deploy(TALLY, &guests::module(TALLY)).await;
    client.act(TALLY, "pause").await.expect(200);
    bed.publish(
        ["orders.7.placed"; 3]
            .map(|subject| (subject, "{}"))
            .into_iter(),
    )
    .await;
    // It could fold this one, so nothing but the decision keeps it out.
    bed.run("resume tally --skip 2 --reason test-order")
        .expect(0);
    client.reached(TALLY, 3).await;
    let rebuilt: api::PartialRebuild = client
        .act(TALLY, "rebuild-part?key=7")
        .await
        .expect(200)
        .json();
    assert_eq!((rebuilt.skipped, rebuilt.written), (vec![2], 0));
    assert_eq!(client.entry(TALLY, "tally/7").await.expect(200).text(), "2");
}

#[tokio::test]
async fn a_state_that_was_migrated_keeps_what_it_left_out() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    let last = stage.publish(50).await;
    cli::on(
        &stage.host,
        &["resume", LEDGER, "--skip", "20", "--reason", "test order"],
    )
    .expect(0);
    assert_eq!(stage.client().reached(LEDGER, last).await.skipped, 1);
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&strategy=migrate")
        .await;
    let migrated = stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    assert_eq!(
        (migrated.strategy, migrated.skipped),
        (api::Strategy::Migrate, 1)
    );
    stage.host.kill();
    stage.host.restart().await;
    let shown = stage.client().reached(LEDGER, last).await;
    assert_eq!(
        (shown.generation, shown.skipped, shown.skips[0].sequence),
        (2, 1, 20)
    );
}

#[tokio::test]
async fn another_event_in_the_place_of_a_skipped_one_is_folded() {
    let bed = Bed::start(Kind::JetStream).await;
    bed.tell(&["note one", "reject two"]).await;
    bed.deploy().await;
    bed.fails_at(2).await;
    bed.run("resume mischief --skip 2 --reason broken")
        .expect(0);
    bed.notes_at(2).await;
    let context = &bed.stream.as_ref().expect("it is a stream").1;
    context.delete_stream(STREAM).await.expect("it is there");
    create(context).await;
    bed.tell(&["note new-one", "note new-two", "note new-three"])
        .await;
    let client = bed.host.client();
    client.failed(NAME).await;
    bed.run("rebuild mischief --accept-missing").expect(0);
    let built = client.becomes(NAME, 2, GenerationStatus::Active).await;
    assert_eq!(
        (built.skipped, bed.notes().await.as_str()),
        (0, "new-one,new-two,new-three")
    );
}

#[tokio::test]
async fn all_that_stopped_at_an_event_are_resumed_at_once() {
    let bed = Bed::start(Kind::Embedded).await;
    bed.tell(&["note one", "trap", "note three"]).await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        bed.host.client().deploy(name, &guests::module(NAME)).await;
        bed.host.client().failed(name).await;
    }
    bed.host.client().act("e", "pause").await.expect(200);
    bed.run("resume --all --skip 9 --reason why").expect(3);
    bed.run("resume a --all").expect(2);
    bed.run("resume").expect(2);
    // A pause is meant; only failures are resumed by the dozen.
    let said = bed.run("resume --all --skip 2 --reason traps").expect(0);
    assert_eq!(said.stdout.lines().count(), 5, "{said:?}");
    assert!(
        said.stderr.contains("still paused by an operator: e"),
        "{said:?}"
    );
    bed.run("resume e --skip 2 --reason traps").expect(0);
    for name in names {
        assert_eq!(
            bed.host.client().reached(name, 3).await.skipped,
            1,
            "{name}"
        );
    }
    bed.tell(&["reject four"]).await;
    for name in names {
        bed.host.client().failed(name).await;
    }
    // They are listed, and the command fails as they do.
    assert_eq!(bed.run("resume --all").expect(1).stdout.lines().count(), 6);
}

#[tokio::test]
async fn failing_since_is_when_it_failed_first() {
    let mut bed = Bed::start(Kind::Embedded).await;
    bed.tell(&["reject one"]).await;
    bed.deploy().await;
    let first = bed.fails_at(1).await;
    for _ in 0..2 {
        bed.run("resume mischief").expect(1);
        assert_eq!(bed.fails_at(1).await.first_at, first.first_at);
    }
    for _ in 0..2 {
        bed.host.kill();
        bed.host.restart().await;
        assert_eq!(bed.fails_at(1).await.first_at, first.first_at);
    }
}

#[tokio::test]
async fn the_log_names_no_subject_of_a_customer() {
    let bed = Bed::start(Kind::Embedded).await;
    let subject = "mischief.customer-4711";
    bed.publish(
        [
            (subject, "note one"),
            (subject, "reject no"),
            (subject, "trap"),
            (subject, "note four"),
        ]
        .into_iter(),
    )
    .await;
    bed.deploy().await;
    bed.fails_at(2).await;
    bed.run("resume mischief --skip 2 --reason why").expect(0);
    bed.fails_at(3).await;
    bed.run("resume mischief --skip 3 --reason why").expect(0);
    assert_eq!(bed.notes_at(4).await, "one,four");
    bed.run("rebuild mischief").expect(0);
    bed.host
        .client()
        .becomes(NAME, 2, api::GenerationStatus::Active)
        .await;
    bed.host.prints("deployment changed").await;
    let output = bed.host.output();
    let told: Vec<_> = output
        .lines()
        .filter(|line| line.contains("4711"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn a_skipped_event_that_is_removed_from_the_stream_is_no_loss() {
    let bed = Bed::start(Kind::JetStream).await;
    bed.deploy().await;
    bed.tell(&["note one", "trap", "note two"]).await;
    bed.fails_at(2).await;
    bed.resume_without(2, "poison");
    let notes = bed.notes_at(3).await;
    let (_, context) = bed.stream.as_ref().expect("it has a server");
    let stream = context.get_stream(STREAM).await.expect("it is there");
    stream.delete_message(2).await.expect("is deleted");
    let verified = bed.verified().await;
    assert_eq!(verified.equal, Some(true), "{verified:?}");
    assert_eq!(bed.as_of(3).await, notes);
    let client = bed.host.client();
    client.act(NAME, "rebuild").await.expect(200);
    client.becomes(NAME, 2, GenerationStatus::Active).await;
    assert_eq!(bed.notes().await, notes);
    assert_eq!(client.show(NAME).await.missing_events, 0);
    // What was applied and is removed is one. The new state does not know of the skipped event any
    // more, so it counts as one that may have been applied.
    stream.delete_message(3).await.expect("is deleted");
    let why = client.act(NAME, "rebuild").await;
    let why = why.problem(422, "refused").detail;
    assert!(
        why.contains("up to 2 events that were applied are gone"),
        "{why}"
    );
}
