//! `foldstream compact` makes files of a host that is down smaller and changes nothing of what is
//! in them. `foldstream doctor --data` reads all files of a host that is down: sound ones are found
//! sound, damaged ones are named with what to do, and a host that runs is left alone. A damage that
//! only a reader finds stops that reader.

use std::path::Path;

use foldstream::api::{self, DeploymentState, GenerationStatus};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::host::Host;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};
use serde_json::Value;

fn doctor(folder: &Path) -> Output {
    cli::run(&[
        "doctor",
        "-o",
        "ndjson",
        "--data",
        &folder.display().to_string(),
    ])
}

/// How each file was found, by its path within the folder.
fn statuses(output: &Output) -> Vec<(String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().expect("it is text").to_owned();
    output
        .lines()
        .iter()
        .map(|line| (text(line, "check"), text(line, "status")))
        .collect()
}

/// A host with a ledger of some thousand events, stopped.
async fn stopped() -> Stage {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    stage.host.stop();
    stage
}

/// Changes bytes all over the second half of a file, as a bad disk would.
fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).expect("the host is down");
    let middle = bytes.len() / 2;
    bytes[middle..]
        .iter_mut()
        .step_by(61)
        .for_each(|byte| *byte ^= 0x55);
    std::fs::write(file, bytes).expect("the host is down");
}

#[tokio::test]
async fn files_of_a_stopped_host_are_sound() {
    let stage = stopped().await;
    let output = doctor(&stage.host.data_dir()).expect(0);
    let wanted = ["catalog.redb", "state/ledger/1.redb", "log/events.redb"]
        .map(|file| (file.to_owned(), "ok".to_owned()));
    assert_eq!(statuses(&output), wanted, "{}", output.stdout);
}

#[tokio::test]
async fn damaged_files_are_named_with_what_to_do() {
    const BUILD: &str = "remove it to build the state again";
    for (file, advice) in [
        ("state/ledger/1.redb", BUILD),
        ("log/events.redb", "backup"),
        ("catalog.redb", "backup"),
    ] {
        let stage = stopped().await;
        damage(&stage.host.data_dir().join(file));
        let output = doctor(&stage.host.data_dir()).expect(1);
        let failed: Vec<_> = statuses(&output)
            .into_iter()
            .filter(|(_, status)| status == "fail")
            .collect();
        assert_eq!(
            failed,
            [(file.to_owned(), "fail".to_owned())],
            "{}",
            output.stdout
        );
        assert!(output.stdout.contains(advice), "{}", output.stdout);
        // That would lose what nothing else has.
        let is_state = file.starts_with("state/");
        assert_eq!(output.stdout.contains(BUILD), is_state, "{}", output.stdout);
    }
}

#[tokio::test]
async fn a_damaged_catalogue_is_never_to_be_removed() {
    let mut stage = stopped().await;
    let catalogue = stage.host.data_dir().join("catalog.redb");
    let sound = std::fs::read(&catalogue).expect("the host is down");
    let half = &sound[..sound.len() / 2];
    let zeros = vec![0; sound.len()];
    for (what, bytes) in [("cut", half), ("empty", &[]), ("zeros", &zeros[..])] {
        std::fs::write(&catalogue, bytes).expect("the host is down");
        assert!(!stage.host.try_restart().await, "{what}");
        let told = stage.host.output();
        assert!(
            told.contains("catalog.redb") && told.contains("restore"),
            "{what}: {told}"
        );
        assert!(!told.contains("build the state again"), "{what}: {told}");
    }
    std::fs::write(&catalogue, sound).expect("the host is down");
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
}

/// Makes the events of a subject unreadable in the file of a log: the length of the subject is
/// nonsense.
fn garble(log: &Path, subject: &str) {
    let mut bytes = std::fs::read(log).expect("the host is down");
    let length = u8::try_from(subject.len()).expect("a short subject");
    let wanted = [&[length][..], subject.as_bytes()].concat();
    let places = bytes
        .windows(wanted.len())
        .enumerate()
        .filter(|(_, found)| *found == wanted);
    let places: Vec<usize> = places.map(|(place, _)| place).collect();
    assert!(!places.is_empty(), "the event is in the file");
    for place in places {
        bytes[place] = 0x7f;
    }
    std::fs::write(log, bytes).expect("the host is down");
}

#[tokio::test]
async fn a_damaged_log_is_named_at_the_start_with_what_to_do() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let marked = api::NewEvent {
        subject: "orders.garbled.placed".to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: serde_json::json!("garbled"),
    };
    stage.publish(5_000).await;
    stage.client().append(&[marked]).await;
    stage.publish(1_000).await;
    stage.host.stop();
    garble(
        &stage.host.data_dir().join("log/events.redb"),
        "orders.garbled.placed",
    );
    assert!(
        !stage.host.try_restart().await,
        "events would be lost in silence"
    );
    let told = stage.host.output();
    assert!(
        told.contains("events.redb") && told.contains("is damaged") && told.contains("backup"),
        "{told}"
    );
}

/// Whether the host starts; if not, what it says.
async fn starts(stage: &mut Stage) -> Result<(), String> {
    if stage.host.try_restart().await {
        Ok(())
    } else {
        Err(stage.host.output())
    }
}

#[tokio::test]
async fn an_older_log_does_not_pass_for_the_newest_even_if_no_state_is_ahead_of_it() {
    // Nothing reads it, so only the log itself knows how far it had come.
    let mut stage = Stage::start(Kind::Embedded).await;
    let (log, aside) = (
        stage.host.data_dir().join("log/events.redb"),
        stage.host.data_dir().join("log/aside"),
    );
    stage.publish(100).await;
    stage.host.stop();
    std::fs::copy(&log, &aside).expect("the host is down");
    stage.host.restart().await;
    stage.publish(100).await;
    stage.host.stop();
    std::fs::copy(&aside, &log).expect("the host is down");
    let told = starts(&mut stage).await.expect_err("100 events are lost");
    assert!(
        told.contains("ends at event 100, but had come to 200") && told.contains("events.newest"),
        "{told}"
    );
    // An operator may accept that.
    std::fs::remove_file(log.with_extension("newest")).expect("it is named in the error");
    starts(&mut stage).await.expect("it was accepted");
    let event = r#"{"subject":"orders.7.placed","data":{"order":"o-1","amount":100}}"#;
    let appended = stage
        .client()
        .post("/v1/events", "application/x-ndjson", event)
        .await
        .expect(200);
    assert_eq!(appended.value()["last_sequence"], 101);
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_made_again_in_silence() {
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.publish(100).await;
    // Even after a crash, if that is not at once.
    let note = stage.host.data_dir().join("log/events.newest");
    wait::until("the note", || async {
        std::fs::read_to_string(&note)
            .is_ok_and(|text| text.trim().ends_with("100"))
            .then_some(())
    })
    .await;
    stage.host.kill();
    std::fs::remove_file(stage.host.data_dir().join("log/events.redb")).expect("the host is down");
    let told = starts(&mut stage).await.expect_err("100 events are lost");
    assert!(
        told.contains("ends at event 0, but had come to 100"),
        "{told}"
    );
}

#[tokio::test]
async fn an_older_catalogue_does_not_pass_for_the_newest_and_no_state_is_removed_for_it() {
    let mut stage = stopped().await;
    let (catalogue, aside) = (
        stage.host.data_dir().join("catalog.redb"),
        stage.host.data_dir().join("aside"),
    );
    std::fs::copy(&catalogue, &aside).expect("the host is down");
    stage.host.restart().await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "")
        .await;
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.assert_ledger_equals_model().await;
    stage.host.stop();
    let newest = std::fs::read(&catalogue).expect("the host is down");
    std::fs::copy(&aside, &catalogue).expect("the host is down");
    let told = starts(&mut stage).await.expect_err("generation 2 is lost");
    assert!(
        told.contains("catalog.redb ends at change") && told.contains("catalog.newest"),
        "{told}"
    );
    // Nothing was done to what the older one does not name.
    std::fs::write(&catalogue, newest).expect("the host is down");
    starts(&mut stage).await.expect("the newest copy is back");
    assert_eq!(stage.client().show(LEDGER).await.generation, 2);
    stage.assert_ledger_equals_model().await;
    // If the older one is all that is left, an operator may accept it.
    stage.host.stop();
    std::fs::copy(&aside, &catalogue).expect("the host is down");
    std::fs::remove_file(catalogue.with_extension("newest")).expect("it is named in the error");
    starts(&mut stage).await.expect("it was accepted");
    stage.assert_ledger_equals_model().await;
    assert_eq!(stage.client().show(LEDGER).await.generation, 1);
}

#[tokio::test]
async fn a_damaged_log_leaves_the_sources_next_to_it_alone() {
    let config = "[sources.one]\nkind = \"embedded\"\n[sources.two]\nkind = \"embedded\"\n";
    let mut host = Host::start_with(config).await;
    let event = r#"{"subject":"orders.7.placed","data":{"order":"o-1","amount":100}}"#;
    for source in ["one", "two"] {
        let events = format!("/v1/events?source={source}");
        host.client()
            .post(&events, "application/x-ndjson", event)
            .await
            .expect(200);
        host.client()
            .deploy_with(
                source,
                &guests::module("ledger"),
                &format!("&source={source}"),
            )
            .await;
        host.client().reached(source, 1).await;
    }
    host.stop();
    std::fs::write(host.data_dir().join("log/two.redb"), b"no log at all")
        .expect("the host is down");
    assert!(host.try_restart().await, "{}", host.output());
    host.client()
        .post("/v1/events?source=one", "application/x-ndjson", event)
        .await
        .expect(200);
    host.client().reached("one", 2).await;
    let refused = host
        .client()
        .post("/v1/events?source=two", "application/x-ndjson", event)
        .await;
    let detail = refused.problem(503, "not-ready").detail;
    assert!(
        detail.contains("two.redb") && detail.contains("tries again"),
        "{detail}"
    );
    let shown = host.client().show("two").await;
    assert_eq!(
        (shown.state, shown.position),
        (DeploymentState::Disconnected, 1),
        "{shown:?}"
    );
    host.client().entry("two", "head").await.expect(200);
    let output = cli::on(&host, &["doctor"]).expect(1);
    assert!(output.stdout.contains("two.redb"), "{output:?}");
}

#[tokio::test]
async fn a_state_that_cannot_be_opened_is_replaced_by_a_rebuild() {
    for length in [20_000, 0] {
        let mut stage = stopped().await;
        let file = stage.host.data_dir().join("state/ledger/1.redb");
        let mut bytes = std::fs::read(&file).expect("the host is down");
        bytes.truncate(length);
        bytes.resize(length.max(70_000), 0);
        std::fs::write(&file, bytes).expect("the host is down");
        stage.host.restart().await;
        let shown = stage
            .client()
            .show_when(LEDGER, "fail", |shown| shown.failure.is_some())
            .await;
        assert!(shown.state != DeploymentState::Live, "{shown:?}");
        stage.client().act(LEDGER, "rebuild").await.expect(200);
        stage
            .client()
            .becomes(LEDGER, 2, GenerationStatus::Active)
            .await;
        stage.assert_ledger_equals_model().await;
        stage.publish(10).await;
        stage.assert_ledger_equals_model().await;
        let before = stage.client().generations(LEDGER).await.remove(0);
        assert_eq!(before.status, GenerationStatus::Retired, "{before:?}");
    }
}

/// Damages the stored value of an entry, wherever it is in the file: the octet before its text says
/// what it is.
fn damage_value(file: &Path, text: &str) {
    let mut bytes = std::fs::read(file).expect("the host is down");
    let places: Vec<usize> = bytes
        .windows(text.len())
        .enumerate()
        .filter(|(_, found)| *found == text.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "the value is in the file: {text}");
    places.into_iter().for_each(|at| bytes[at - 1] = 0x7f);
    std::fs::write(file, bytes).expect("the host is down");
}

#[tokio::test]
async fn a_value_that_is_found_damaged_stops_the_deployment_and_a_rebuild_heals_it() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    let stored = stage
        .client()
        .entry(LEDGER, "customer/7")
        .await
        .expect(200)
        .text();
    assert_eq!(stage.host.stop().code(), Some(0));
    damage_value(&stage.host.data_dir().join("state/ledger/1.redb"), &stored);
    stage.host.restart().await;

    // Nobody notices before somebody reads it.
    let client = stage.client().clone();
    client.entry(LEDGER, "customer/8").await.expect(200);
    let refused = client.entry(LEDGER, "customer/7").await;
    assert!(
        refused.status == 500 && refused.text().contains("damaged"),
        "{}: {}",
        refused.status,
        refused.text()
    );
    let states = std::cell::RefCell::new(Vec::new());
    while stage
        .model
        .customer("7")
        .is_some_and(|(_, _, last)| last <= 3_000)
    {
        stage.publish(20).await;
    }
    let failed = client
        .show_when(LEDGER, "stop", |shown| {
            states.borrow_mut().push(shown.state);
            shown.state == DeploymentState::Failed
        })
        .await;
    let states = states.into_inner();
    assert!(
        states.contains(&DeploymentState::Retrying),
        "it is opened again before: {states:?}"
    );
    let failure = failed.failure.expect("it says why");
    assert_eq!(failure.kind, "state", "{failure:?}");
    assert!(
        failure.message.contains("damaged") && failure.message.contains("rebuild"),
        "{failure:?}"
    );
    client.entry(LEDGER, "customer/8").await.expect(200);
    client.act(LEDGER, "resume").await.expect(200);
    assert_eq!(
        client.failed(LEDGER).await.1.kind,
        "state",
        "it is no better"
    );

    client.act(LEDGER, "rebuild").await.expect(200);
    client.becomes(LEDGER, 2, GenerationStatus::Active).await;
    stage.assert_ledger_equals_model().await;
    stage.publish(10).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_running_host_is_said_to_use_its_folder() {
    let stage = Stage::with_ledger(Kind::Embedded).await;
    let output = doctor(&stage.host.data_dir()).expect(1);
    assert!(
        output.stderr.contains("is in use; stop the host"),
        "{output:?}"
    );
    let nothing = tempfile::tempdir().expect("a temporary folder can be made");
    let output = doctor(nothing.path()).expect(3);
    assert!(output.stderr.contains("not a data folder"), "{output:?}");
    assert_eq!(
        std::fs::read_dir(nothing.path())
            .expect("it is there")
            .count(),
        0,
        "nothing is made"
    );
}

#[tokio::test]
async fn compacted_files_are_smaller_and_hold_the_same() {
    let mut stage = stopped().await;
    let folder = stage.host.data_dir().display().to_string();
    let output = cli::run(&["compact", "-o", "ndjson", "--data", &folder]).expect(0);
    let bytes = |key: &str| {
        output
            .lines()
            .iter()
            .map(|line| line[key].as_u64().expect("a number"))
            .sum::<u64>()
    };
    assert!(
        bytes("after_bytes") < bytes("before_bytes"),
        "{}",
        output.stdout
    );
    assert!(
        output.stdout.contains("state/ledger/1.redb") && output.stdout.contains("log/events.redb"),
        "{output:?}"
    );
    assert!(output.stderr.contains(" left of "), "{output:?}");
    let found = statuses(&doctor(&stage.host.data_dir()).expect(0));
    assert!(found.iter().all(|(_, status)| status == "ok"), "{found:?}");
    stage.host.restart().await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    let output = cli::run(&["compact", "--data", &folder]).expect(1);
    assert!(
        output.stderr.contains("is in use; stop the host"),
        "{output:?}"
    );
}
