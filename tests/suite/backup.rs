//! `foldstream backup` copies the data folder of a running host: a host on the copy has the fold of
//! its events and continues, whatever the first one did meanwhile. What is not whole has no name.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use foldstream::api::GenerationStatus;
use foldstream_tests::cli::{self, Output};
use foldstream_tests::guests;
use foldstream_tests::host;
use foldstream_tests::orders::Order;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use rustix::process::{Pid, Signal, kill_process};

fn backup(stage: &Stage, folder: &Path, arguments: &[&str]) -> Output {
    let folder = folder.display().to_string();
    cli::on(&stage.host, &[&["backup", &folder], arguments].concat())
}

/// A folder in which backups are made.
fn room() -> (tempfile::TempDir, PathBuf) {
    let room = tempfile::tempdir().expect("a temporary folder");
    let folder = room.path().join("monday");
    (room, folder)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("it is there").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Puts a backup in the place of the data folder, and starts the host on it.
async fn restore(stage: &mut Stage, folder: &Path) {
    stage.host.kill();
    std::fs::remove_dir_all(stage.host.data_dir()).expect("the host is down");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(folder)
        .arg(stage.host.data_dir())
        .status();
    assert!(copied.expect("cp runs").success());
    stage.host.restart().await;
}

#[tokio::test]
async fn a_host_on_a_backup_made_while_events_were_folded_has_their_fold() {
    for kind in Kind::ALL {
        let mut stage = Stage::with_ledger(kind).await;
        stage.publish(3_000).await;
        stage.assert_ledger_equals_model().await;
        let orders = stage.draw(4_000);
        let (room, folder) = room();
        let url = stage.host.url().to_owned();
        let target = folder.display().to_string();
        let taken = std::thread::spawn(move || {
            cli::finish(
                host::foldstream().args(["--url", &url, "backup", &target, "-o", "json"]),
                None,
            )
        });
        // What is appended meanwhile may be in it or not.
        let mut last = 0;
        for part in orders.chunks(500) {
            last = match kind {
                Kind::Embedded => {
                    let events: Vec<_> = part.iter().map(Order::new_event).collect();
                    stage.client().append(&events).await.last_sequence
                }
                Kind::JetStream => {
                    foldstream_tests::nats::publish(
                        stage.context(),
                        part.iter().map(Order::message),
                    )
                    .await
                }
            };
        }
        let taken = taken.join().expect("it does not panic").expect(0).json();
        let position = |wanted: &str| {
            let files = taken["files"].as_array().expect("files");
            let found = files.iter().find(|file| {
                file["file"]
                    .as_str()
                    .is_some_and(|file| file.starts_with(wanted))
            });
            found.and_then(|file| file["position"].as_u64())
        };
        let state = position("state/ledger/").unwrap_or(0);
        // What was appended after the backup is gone with an embedded log, and comes again from a
        // stream.
        let through = position("log/").unwrap_or(last);
        assert!(state <= through, "{taken}");
        let first = last + 1 - orders.len() as u64;
        for (sequence, order) in (first..=through).zip(&orders) {
            stage
                .model
                .apply(sequence, &order.subject(), order.data().as_bytes());
        }
        restore(&mut stage, &folder).await;
        stage.assert_ledger_equals_model().await;
        if kind == Kind::Embedded {
            stage.publish(100).await;
            stage.assert_ledger_equals_model().await;
        }
        assert_eq!(names(room.path()), ["monday"]);
    }
}

#[tokio::test]
async fn a_backup_holds_what_it_says_and_a_folder_that_exists_is_refused() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    let (_room, folder) = room();
    let text = backup(&stage, &folder, &[]).expect(0);
    for wanted in [
        "catalog.redb",
        "log/events.redb",
        "state/ledger/1.redb",
        "modules/",
    ] {
        assert!(text.stdout.contains(wanted), "{text:?}");
    }
    assert!(text.stderr.contains("read again and compared"), "{text:?}");
    assert!(
        !folder.join("token").exists() && !folder.join("cache").exists(),
        "{:?}",
        names(&folder)
    );
    let refused = backup(&stage, &folder, &[]).expect(4);
    assert!(refused.stderr.contains("is there already"), "{refused:?}");
    let target = folder.display().to_string();
    cli::run(&["backup", "--check", &target]).expect(0);
    let sound = cli::run(&["doctor", "-o", "ndjson", "--data", &target])
        .expect(0)
        .lines();
    assert!(
        sound.len() >= 3 && sound.iter().all(|file| file["status"] == "ok"),
        "{sound:?}"
    );
    let state = folder.join("state/ledger/1.redb");
    let mut bytes = std::fs::read(&state).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle..]
        .iter_mut()
        .step_by(61)
        .for_each(|byte| *byte ^= 0x55);
    std::fs::write(&state, bytes).expect("it can be written");
    let found = cli::run(&["backup", "--check", &target]).expect(1);
    assert!(found.stderr.contains("state/ledger/1.redb"), "{found:?}");
    assert_eq!(cli::run(&["backup", "--check", "/nonexistent"]).code, 3);
}

#[tokio::test]
async fn a_backup_that_is_interrupted_killed_or_without_room_leaves_no_folder_of_that_name() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(20_000).await;
    stage.assert_ledger_equals_model().await;
    let (room, folder) = room();
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = host::foldstream();
        command
            .args(["--url", stage.host.url(), "backup"])
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        foldstream_tests::wait::until("the backup to begin", || {
            let has_begun = !names(room.path()).is_empty();
            async move { has_begun.then_some(()) }
        })
        .await;
        let id = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("the number of a process");
        // It may be done already.
        let _ = kill_process(id, signal);
        let status = child.wait().expect("our own child");
        if status.success() {
            std::fs::remove_dir_all(&folder).expect("it is whole");
        } else {
            assert!(!folder.exists());
        }
    }
    // No file may grow beyond this.
    let target = folder.display().to_string();
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    let program = host::foldstream();
    command
        .arg("-c")
        .arg(limited)
        .arg(program.get_program())
        .args(["--url", stage.host.url(), "backup", &target]);
    let output = cli::finish(&mut command, None).expect(1);
    assert!(output.stderr.contains("os error 27"), "{output:?}");
    assert!(names(room.path()).is_empty(), "{:?}", names(room.path()));
    backup(&stage, &folder, &["-q"]).expect(0);
    assert_eq!(names(room.path()), ["monday"], "what they left is gone");
}

#[tokio::test]
async fn a_candidate_that_is_built_meanwhile_is_built_on_in_the_copy() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&max-rate=300")
        .await;
    let building = |shown: &foldstream::api::Deployment| {
        shown
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.position > 0)
    };
    stage.client().show_when(LEDGER, "build", building).await;
    let (_room, folder) = room();
    backup(&stage, &folder, &[]).expect(0);
    restore(&mut stage, &folder).await;
    cli::on(&stage.host, &["throttle", LEDGER, "--off"]).expect(0);
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.assert_equals_model(LEDGER).await;
}

#[tokio::test]
async fn a_copy_of_a_state_that_rested_does_not_answer_from_before_what_clients_saw_since() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    cli::on(&stage.host, &["pause", LEDGER]).expect(0);
    let (_room, folder) = room();
    backup(&stage, &folder, &[]).expect(0);
    cli::on(&stage.host, &["resume", LEDGER]).expect(0);
    stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    restore(&mut stage, &folder).await;
    let read = cli::on(&stage.host, &["get", LEDGER, "head"]);
    assert_ne!(
        read.code, 0,
        "it is at the position of the backup: {read:?}"
    );
    cli::on(&stage.host, &["resume", LEDGER]).expect(0);
    stage.assert_ledger_equals_model().await;
}
