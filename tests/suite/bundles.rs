//! Failure bundles: made whatever the deployment does, kept as they are, and replayed step by step.

use std::fs;
use std::path::Path;
use std::time::Duration;

use foldstream::api::DeploymentState;
use foldstream_tests::host;
use foldstream_tests::process::Process;
use foldstream_tests::{cli, guests, wait};
use rustix::process::Signal;
use serde_json::json;

use crate::parking::{Bed, ILL, NAME};

/// An event that fills the state: the deployment stops, whatever its policy.
const FULL: (&str, &str) = ("eve", "fill 8388608");

/// A bundle of the key `ada`, made by a host that is gone.
async fn bundle(folder: &Path) -> String {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let file = folder.join("ada.json").display().to_string();
    let line = format!("parked export mischief mischief.ada -f {file}");
    bed.run(&line).expect(0);
    file
}

/// Replays a bundle step by step with the corrected module, with this on standard input.
fn stepped(file: &str, input: &str) -> cli::Output {
    let fixed = guests::path("mischief-fixed").display().to_string();
    let arguments = ["replay", file, "--step", "--module", &fixed];
    cli::finish(host::foldstream().args(arguments), Some(input))
}

#[tokio::test]
async fn a_replay_waits_after_each_event_shows_its_changes_and_can_be_quit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = bundle(folder.path()).await;
    let first = "2 mischief.ada: applied\n  + note/00000002  2";
    let second = "4 mischief.ada: applied\n  + note/00000004  4";
    // Enter; and the end of the input, behind which nobody can press a key.
    for input in ["\n", ""] {
        let output = stepped(&file, input).expect(0);
        let (before, after) = output.stderr.split_once(first).expect("the first step");
        assert!(!before.contains("applied"), "{output:?}");
        assert!(after.contains(second), "{output:?}");
        assert!(after.contains("2 events applied"), "{output:?}");
    }
    let output = stepped(&file, "q\n").expect(0);
    assert!(output.stderr.contains(first), "{output:?}");
    assert!(!output.stderr.contains(second), "{output:?}");
    assert!(
        output.stderr.contains("quit; 1 event not applied"),
        "{output:?}"
    );
}

#[tokio::test]
async fn a_replay_that_waits_ends_at_an_interrupt_and_leaves_no_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = bundle(folder.path()).await;
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let mut command = host::foldstream();
    command.env("TMPDIR", temporary.path());
    command.args(["replay", &file, "--step"]);
    let mut replay = Process::start_waiting_for_input("foldstream replay", &mut command);
    wait::until("the first step", || async {
        replay.printed("2 mischief.ada: rejected")
    })
    .await;
    assert!(!replay.output().contains("4 mischief.ada"), "it waits");
    replay.signal(Signal::INT);
    let status = replay.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(130), "{}", replay.output());
    let left = fs::read_dir(temporary.path()).expect("is there").count();
    assert_eq!(left, 0, "it removes its temporary files");
}

#[tokio::test]
async fn a_parked_key_is_exported_and_tried_out_while_its_deployment_rests() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    bed.tell(&[FULL]).await;
    let stopped = bed.host.client().failed(NAME).await.1;
    assert_eq!(stopped.sequence, Some(5), "{stopped:?}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bundles = folder.path().display();
    let export = format!("parked export mischief mischief.ada --dir {bundles}");
    let exported = bed.run(&export).expect(0).stdout;
    assert!(
        exported.contains("2 events") && exported.contains("a mistake in the code"),
        "{exported}"
    );
    let tried = bed.run("parked retry mischief --all --dry-run").expect(1);
    assert!(tried.stderr.contains("1 key would fail again"), "{tried:?}");
    // Nothing of this resumes it.
    let (shown, still) = bed.host.client().failed(NAME).await;
    assert_eq!(
        (still.sequence, still.first_at),
        (Some(5), stopped.first_at)
    );
    assert_eq!(shown.parked.events, 2, "{shown:?}");
    // A retry does, and says so.
    let retried = bed.run("parked retry mischief --all").expect(1);
    assert!(
        retried
            .stderr
            .contains("mischief had stopped; the retry resumed it"),
        "{retried:?}"
    );
    bed.host.client().failed(NAME).await;
    bed.run("pause mischief").expect(0);
    fs::remove_file(folder.path().join("mischief-2.bundle.json")).expect("was written");
    bed.run(&export).expect(0);
    bed.run("parked retry mischief --all --dry-run").expect(1);
    let refused = bed.run("parked retry mischief --all").expect(4);
    assert!(refused.stderr.contains("paused"), "{refused:?}");
    let paused = bed.host.client().show(NAME).await;
    assert_eq!(paused.state, DeploymentState::Paused);
}

#[tokio::test]
async fn an_export_into_the_same_folder_keeps_what_is_there() {
    let bed = Bed::start("").await;
    let last = bed
        .tell(&[ILL.as_slice(), &[("bob", "ill 5")]].concat())
        .await;
    bed.notes_at(last).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let export = format!(
        "parked export mischief --all --dir {}",
        folder.path().display()
    );
    // What a process that was killed leaves behind.
    let left = folder.path().join(".foldstream-export-0Ab1Cd");
    fs::write(&left, "{").expect("is written");
    let first = bed.run(&export).expect(0);
    assert!(!first.stdout.contains("already there"), "{first:?}");
    assert!(!left.exists(), "a leftover goes with the next export");
    let ada = folder.path().join("mischief-2.bundle.json");
    let bytes = fs::read(&ada).expect("was written");
    let again = bed.run(&export).expect(0);
    assert_eq!(
        again.stdout.matches("already there, ").count(),
        2,
        "{again:?}"
    );
    assert_eq!(fs::read(&ada).expect("is there"), bytes);
    let shown = bed.run(&format!("{export} -o json")).expect(0).json();
    assert_eq!(shown["bundles"][0]["already_there"], json!(true), "{shown}");
    // Later events of a key wait behind those that are there.
    bed.tell(&[("ada", "note 6"), ("ada", "note 7")]).await;
    bed.notes_at(7).await;
    let more = bed.run(&export).expect(0).stdout;
    assert!(
        more.contains("mischief-2.bundle.json: now with 4 events")
            && more.contains("mischief-5.bundle.json: already there, 1 event"),
        "{more}"
    );
    bed.tell(&[("bob", "note 8")]).await;
    bed.notes_at(8).await;
    let shown = bed.run(&format!("{export} -o json")).expect(0).json();
    let (ada_again, bob) = (&shown["bundles"][0], &shown["bundles"][1]);
    assert_eq!(
        (&ada_again["already_there"], &ada_again["events"]),
        (&json!(true), &json!(4))
    );
    assert_eq!(
        (&bob["replaced"], &bob["events"]),
        (&json!(true), &json!(2))
    );
    // Another file under that name.
    for other in [
        "mine",
        &fs::read_to_string(folder.path().join("mischief-5.bundle.json")).expect("is there"),
    ] {
        fs::write(&ada, other).expect("is written");
        let refused = bed.run(&export).expect(1);
        assert!(
            refused.stderr.contains("1 of 2 keys were exported"),
            "{refused:?}"
        );
        assert_eq!(fs::read_to_string(&ada).expect("is there"), other);
    }
    let names = fs::read_dir(folder.path()).expect("is there").count();
    assert_eq!(names, 2, "nothing else stays");
}

#[tokio::test]
async fn failing_since_outlasts_a_restart_behind_many_parked_keys() {
    let mut bed = Bed::start("").await;
    let keys: Vec<String> = (1..=11).map(|key| format!("key-{key}")).collect();
    // Between events that are applied, or the module would seem to be at fault.
    let events = keys.iter().flat_map(|key| {
        [
            ("bob", "note 1"),
            ("bob", "note 2"),
            (key.as_str(), "ill 3"),
        ]
    });
    let last = bed.tell(&events.collect::<Vec<_>>()).await;
    bed.notes_at(last).await;
    bed.tell(&[FULL]).await;
    let (_, stopped) = bed.host.client().failed(NAME).await;
    assert_eq!(stopped.sequence, Some(last + 1), "{stopped:?}");
    for _ in 0..2 {
        bed.host.kill();
        bed.host.restart().await;
        let (_, again) = bed.host.client().failed(NAME).await;
        assert_eq!(again.first_at, stopped.first_at);
    }
}
