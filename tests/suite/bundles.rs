//! Failure bundles: made whatever the deployment does, kept as they are, and replayed step by step.

use std::fs;

use foldstream::api::DeploymentState;
use serde_json::json;

use crate::parking::{Bed, ILL, NAME};

/// An event that fills the state: the deployment stops, whatever its policy.
const FULL: (&str, &str) = ("eve", "fill 8388608");

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
