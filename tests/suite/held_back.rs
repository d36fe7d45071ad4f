//! Candidates that are ready and may not take over: everybody who looks learns why. Owners whose
//! state is lost: what cannot work is refused before anything changes.

use std::path::PathBuf;
use std::process::Stdio;

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::host::{self, Host};
use foldstream_tests::nats::{self, NatsServer};
use foldstream_tests::reactor::{REACTOR, TO_LOG, event, events, published};
use foldstream_tests::{cli, guests, wait};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::timers::{ALARM, LATER_MS, alarms, ask, pending};

const FIXED: &str = "reactor-fixed";
/// The lines of a command that begins to wait.
type Lines = tokio::io::Lines<BufReader<tokio::process::ChildStderr>>;

/// Waits until the candidate is held back for a reason that contains a text.
async fn held_back(client: &Client, name: &str, why: &str) -> (api::Generation, String) {
    let shown = client
        .show_when(name, "hold its candidate back", |shown| {
            let candidate = shown.candidate.as_ref();
            let reason = candidate.and_then(|candidate| candidate.held_back.as_ref());
            reason.is_some_and(|reason| reason.contains(why))
        })
        .await;
    let candidate = *shown.candidate.expect("it was just there");
    let reason = candidate.held_back.clone().expect("it was just there");
    (candidate, reason)
}

/// Begins a command that waits, with what it prints about that.
fn begin(host: &Host, arguments: &[&str]) -> (tokio::process::Child, Lines) {
    let mut command = host::foldstream();
    command
        .args(["--url", host.url()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    (child, lines)
}

/// The next line that contains a text.
async fn line(lines: &mut Lines, text: &str) -> String {
    let next = async {
        while let Some(line) = lines.next_line().await.expect("it is text") {
            if line.contains(text) {
                return line;
            }
        }
        panic!("it ended without {text}");
    };
    let line = tokio::time::timeout(wait::DEADLINE, next).await;
    line.unwrap_or_else(|_| panic!("it says nothing of {text}"))
}

#[tokio::test]
async fn candidate_behind_parked_events_says_so_wherever_it_is_shown_until_they_are_dropped() {
    let host = Host::start().await;
    let client = host.client();
    let parks = format!("{TO_LOG}&on-failure=park");
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), &parks)
        .await;
    let asked = [&events(7, "one")[..], &[event(1, "fail"), event(1, "one")]].concat();
    client.append(&asked).await;
    client
        .show_when(REACTOR, "park", |shown| shown.parked.events == 2)
        .await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let module = folder.path().join("fixed.wasm");
    std::fs::write(&module, guests::module(FIXED)).expect("it is written");
    let module = module.to_string_lossy();
    let words = [
        "deploy",
        &module,
        "--name",
        REACTOR,
        "--strategy",
        "rebuild",
    ];
    let (mut deploy, mut lines) = begin(&host, &[&words[..], &["--wait"]].concat());

    let (candidate, reason) = held_back(client, REACTOR, "has 2 parked events").await;
    assert!(reason.contains("--retry-parked"), "{reason}");
    assert_eq!(candidate.status, GenerationStatus::Ready);
    let said = format!("does not take over yet: {reason}");
    let noted = line(&mut lines, "does not take over").await;
    assert!(noted.ends_with(&said), "{noted}");
    host.prints("a candidate does not take over yet").await;
    // In the words of those who promote it.
    let refused = client.act(REACTOR, "promote").await;
    assert_eq!(refused.problem(409, "conflict").detail, reason);
    let generations = client.generations(REACTOR).await;
    assert_eq!(generations[1].held_back.as_ref(), Some(&reason));
    let rebuilds: api::RebuildList = client.get("/v1/rebuilds").await.expect(200).json();
    assert_eq!(rebuilds.rebuilds[0].waits_for, reason);
    for command in [&["show", REACTOR][..], &["generations", REACTOR]] {
        let shown = cli::on(&host, command).expect(0).stdout;
        assert!(shown.contains(&said), "{shown}");
    }
    let shown = cli::on(&host, &["rebuilds"]).expect(0).stdout;
    assert!(shown.contains(&reason), "{shown}");
    let found = cli::on(&host, &["doctor"]).stdout;
    assert!(found.contains("candidate of reactor"), "{found}");
    assert!(found.contains(&said), "{found}");

    let drop = ["parked", "drop", REACTOR, "1", "--whole-keys"];
    cli::on(&host, &[&drop[..], &["--reason", "a test"]].concat()).expect(0);
    let active = client
        .becomes(REACTOR, candidate.number, GenerationStatus::Active)
        .await;
    assert_eq!(active.held_back, None);
    let ended = tokio::time::timeout(wait::DEADLINE, deploy.wait()).await;
    assert!(ended.expect("in time").expect("it ran").success());
    while let Some(line) = lines.next_line().await.expect("it is text") {
        assert!(!line.contains("parked events"), "said again: {line}");
    }
    let log = host.output();
    let is_said = |line: &&str| line.contains("does not take over") && line.contains("2 parked");
    assert_eq!(log.lines().filter(is_said).count(), 1, "{log}");
}

#[tokio::test]
async fn candidate_of_a_paused_deployment_says_what_it_waits_for() {
    let host = Host::start().await;
    let client = host.client();
    client
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = client.append(&events(7, "one")).await;
    published(client, appended.last_sequence).await;
    client.act(REACTOR, "pause").await.expect(200);
    client.act(REACTOR, "rebuild").await.expect(200);
    let (candidate, reason) = held_back(client, REACTOR, "is paused").await;
    assert!(reason.contains("foldstream resume reactor"), "{reason}");
    client.act(REACTOR, "resume").await.expect(200);
    client
        .becomes(REACTOR, candidate.number, GenerationStatus::Active)
        .await;
}

/// What happened to a state file while its host was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Gone,
    Garbage,
}

fn state_file(host: &Host, number: u64) -> PathBuf {
    let file = format!("{number}.redb");
    host.data_dir().join("state").join(REACTOR).join(file)
}

/// A host whose handler has lost its state after 20 events, and knows it.
async fn lost(loss: Loss) -> Host {
    let mut host = Host::start_with("[state]\nflush_interval = \"50ms\"\n").await;
    host.client()
        .deploy_with(REACTOR, &guests::module(REACTOR), TO_LOG)
        .await;
    let appended = host.client().append(&events(20, "one")).await;
    published(host.client(), appended.last_sequence).await;
    host.stop();
    let file = state_file(&host, 1);
    match loss {
        Loss::Gone => std::fs::remove_file(&file).expect("it is there"),
        Loss::Garbage => std::fs::write(&file, [7; 4_096]).expect("it is written"),
    }
    host.restart().await;
    host.client()
        .show_when(REACTOR, "lose its state", |shown| {
            shown.failure.as_ref().is_some_and(|failure| {
                failure.kind == "owner-mismatch"
                    || (failure.kind == "state" && failure.attempts >= 3)
            })
        })
        .await;
    host
}

#[tokio::test]
async fn handler_that_lost_its_state_refuses_at_once_what_only_an_accepted_loss_makes_possible() {
    for loss in [Loss::Gone, Loss::Garbage] {
        let host = lost(loss).await;
        let client = host.client();
        let deploy = async |module: &str, parameters: &str| {
            let query = format!("?name={REACTOR}&on-failure=park{parameters}");
            client.upload(guests::module(module).to_vec(), &query).await
        };
        let refused = [
            client.act(REACTOR, "rebuild").await,
            deploy(FIXED, "&strategy=rebuild").await,
            deploy(FIXED, "&strategy=inherit").await,
            deploy("reactor-next", "").await,
            client.act(REACTOR, "verification").await,
        ];
        for answer in &refused {
            let detail = answer.problem(409, "conflict").detail;
            assert!(
                detail.contains("foldstream rebuild reactor --accept-lost-effects"),
                "{loss:?}: {detail}"
            );
        }
        let deleted = cli::on(&host, &["delete", REACTOR, "-y"]).expect(4);
        assert!(deleted.stderr.contains("--drop-effects"), "{deleted:?}");
        // Nothing has changed.
        assert_eq!(client.generations(REACTOR).await.len(), 1);
        let shown = client.show(REACTOR).await;
        assert_eq!(shown.on_failure, api::OnFailure::Stop);

        let path = "rebuild?accept-lost-effects=true&effects-from=500";
        let accepted = client.act(REACTOR, path).await.expect(200);
        let accepted: api::Deployed = accepted.json();
        let warnings = accepted.warnings.join("\n");
        assert!(
            warnings.contains("for events from 500 on, and the stream ends at"),
            "{warnings}"
        );
        client
            .becomes(REACTOR, accepted.generation, GenerationStatus::Active)
            .await;
        cli::on(&host, &["verify", REACTOR]).expect(0);
        cli::on(&host, &["delete", REACTOR, "-y"]).expect(0);
    }
}

#[tokio::test]
async fn accepted_loss_of_a_candidate_passes_to_the_code_that_corrects_it() {
    let mut host = Host::start().await;
    host.client()
        .deploy_with(REACTOR, &guests::module("reactor-broken"), TO_LOG)
        .await;
    host.client().append(&events(5, "one")).await;
    host.client().append(&[event(1, "three")]).await;
    host.client().failed(REACTOR).await;
    host.stop();
    std::fs::remove_file(state_file(&host, 1)).expect("it is there");
    host.restart().await;
    let client = host.client();
    client.failed(REACTOR).await;
    let answer = client
        .act(REACTOR, "rebuild?accept-lost-effects=true")
        .await;
    let rebuilt = answer.expect(200).json::<api::Deployed>().generation;
    client
        .becomes(REACTOR, rebuilt, GenerationStatus::Failed)
        .await;
    let corrected = client
        .deploy_with(REACTOR, &guests::module(REACTOR), "")
        .await;
    assert!(corrected.reason.contains("is lost"), "{}", corrected.reason);
    client
        .becomes(REACTOR, corrected.generation, GenerationStatus::Active)
        .await;
}

#[tokio::test]
async fn accepted_loss_concerns_no_later_loss() {
    let mut host = lost(Loss::Gone).await;
    for rebuild in ["rebuild?accept-lost-effects=true", "rebuild"] {
        let client = host.client();
        let answer = client.act(REACTOR, rebuild).await.expect(200);
        let number = answer.json::<api::Deployed>().generation;
        client
            .becomes(REACTOR, number, GenerationStatus::Active)
            .await;
    }
    host.stop();
    std::fs::remove_file(state_file(&host, 3)).expect("it is there");
    host.restart().await;
    let (_, failure) = host.client().failed(REACTOR).await;
    assert_eq!(failure.kind, "owner-mismatch", "{}", failure.message);
    // Generation 2 took over from a lost owner, as was accepted then.
    let refused = host.client().act(REACTOR, "rollback").await;
    let refused = refused.problem(409, "conflict");
    assert!(
        refused.detail.contains("--accept-lost-effects"),
        "{}",
        refused.detail
    );
}

#[tokio::test]
async fn deletion_that_gives_up_unknown_messages_is_recorded() {
    let host = lost(Loss::Gone).await;
    cli::on(&host, &["delete", REACTOR, "-y", "--drop-effects"]).expect(0);
    let audit = host.client().get("/v1/audit").await.text();
    assert!(audit.contains("may not have been published"), "{audit}");
}

#[tokio::test]
async fn handler_that_is_to_publish_from_after_the_next_event_on_is_warned_of() {
    let host = Host::start().await;
    let client = host.client();
    let last = client.append(&events(5, "one")).await.last_sequence;
    for (from, is_silent) in [(last + 1, false), (last + 2, true)] {
        let name = format!("from-{from}");
        let parameters = format!("{TO_LOG}&effects-from={from}");
        let deployed = client
            .deploy_with(&name, &guests::module(REACTOR), &parameters)
            .await;
        let warned = format!("from {from} on, and the stream ends at {last}");
        let warnings = deployed.warnings.join("\n");
        assert_eq!(warnings.contains(&warned), is_silent, "{warnings}");
    }
}

#[tokio::test]
async fn timers_of_a_stream_that_is_gone_are_counted_when_they_end() {
    let server = NatsServer::start().await;
    let jetstream = server.jetstream().await;
    nats::create_stream_with(&jetstream, alarms()).await;
    let host = Host::start_on(&server, "ALARMS").await;
    let client = host.client();
    let grant = "&allow-publish=rang.%3E%40orders";
    client
        .deploy_with(ALARM, &guests::module(ALARM), grant)
        .await;
    for name in ["one", "two"] {
        ask(&jetstream, name, LATER_MS).await;
    }
    pending(client, 2).await;
    jetstream.delete_stream("ALARMS").await.expect("is deleted");
    nats::create_stream_with(&jetstream, alarms()).await;
    for name in ["three", "four", "five"] {
        ask(&jetstream, name, LATER_MS).await;
    }
    let (_, failure) = client.failed(ALARM).await;
    assert_eq!(failure.kind, "source-diverged", "{}", failure.message);

    let rebuild = "rebuild?accept-missing=true&accept-lost-effects=true&effects-from=beginning";
    let answer = client
        .act(ALARM, &format!("{rebuild}&promote=manual"))
        .await;
    let deployed = answer.expect(200).json::<api::Deployed>();
    let announced = "2 timers of the stream that is gone, still pending, will not fire";
    assert!(deployed.reason.contains(announced), "{}", deployed.reason);
    let ready = client
        .becomes(ALARM, deployed.generation, GenerationStatus::Ready)
        .await;
    // It folds nothing before it owns the effects, and does not claim to have.
    assert_eq!(ready.position, 0);
    assert!(ready.progress.is_none_or(|part| part == 0.0), "{ready:?}");
    assert!(
        ready
            .reason
            .contains("folded up to 0, from where it publishes"),
        "{}",
        ready.reason
    );
    client.act(ALARM, "promote").await.expect(200);
    let active = client
        .becomes(ALARM, deployed.generation, GenerationStatus::Active)
        .await;
    let ended = "2 timers of the stream that is gone ended";
    assert!(active.reason.contains(ended), "{}", active.reason);
    host.prints(ended).await;
    pending(client, 3).await;
}
