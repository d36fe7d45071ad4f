//! Retries and drops of parked events that do not go as an operator hopes: code that hangs, code
//! that fails again, deployments that have stopped, and states that are built later.

use foldstream::api::{self, DeploymentState, NewEvent};
use foldstream_tests::cli::{self, Output};
use foldstream_tests::events::new_event;
use foldstream_tests::guests;
use foldstream_tests::host::Host;
use serde_json::json;

use crate::parking::{Bed, ILL, NAME};

async fn deploy_fixed(bed: &Bed) {
    bed.host
        .client()
        .deploy_with(NAME, &guests::module("mischief-fixed"), "&strategy=inherit")
        .await;
}

fn bundle(bed: &Bed) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bundle.json").display().to_string();
    cli::on(&bed.host, &["parked", "export", NAME, "-f", &file])
}

/// Calls take as long as one request may take in all, as with the defaults, only less than that.
#[tokio::test]
async fn code_that_hangs_at_one_event_of_a_key_applies_those_before_it_and_all_other_keys() {
    let bed = Bed::start("[modules]\ndeadline = \"5s\"\n").await;
    bed.tell(&[("ada", "note 1"), ("ada", "ill 2"), ("ada", "loop")])
        .await;
    let last = bed
        .tell(&[("ada", "note 4"), ("eve", "ill 5"), ("bob", "note 6")])
        .await;
    assert_eq!(bed.notes_at(last).await, "1,6");
    let module = guests::path("mischief-fixed").display().to_string();
    let line = format!("deploy {module} --name {NAME} --strategy inherit --retry-parked");
    bed.run(&line).expect(0);
    bed.host
        .client()
        .show_when(NAME, "apply all but the event that hangs", |shown| {
            shown.parked.events == 2
        })
        .await;
    assert_eq!(bed.notes_at(last).await, "1,2,5,6");
    let failed_with = |class: &'static str| {
        move |list: &api::ParkedList| {
            let failure = list.keys.first().and_then(|key| key.failure.as_ref());
            failure.is_some_and(|failure| failure.class == class)
        }
    };
    foldstream_tests::wait::until("the event to be tried once", async || {
        Some(bed.parked().await).filter(failed_with("deadline"))
    })
    .await;
    // It is tried once, and then nothing holds the deployment.
    let audit = foldstream_tests::wait::until("the retry to end", async || {
        let audit = bed.run("audit mischief").expect(0).stdout;
        audit.contains("parked-retry-done").then_some(audit)
    })
    .await;
    assert!(audit.contains("2 parked events left"), "{audit}");
    let again = bed.run("parked retry mischief mischief.ada").expect(1);
    assert!(again.stderr.contains("took longer than"), "{again:?}");
}

#[tokio::test]
async fn dry_run_or_an_export_leaves_a_stopped_deployment_as_it_is() {
    let bed = Bed::start("").await;
    bed.tell(&ILL).await;
    bed.tell(&[("bob", "fill 8388608")]).await;
    let (shown, _) = bed.host.client().failed(NAME).await;
    let tried = bed.run("parked retry mischief --all --dry-run").expect(1);
    assert!(tried.stderr.contains("would fail again"), "{tried:?}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ada.bundle.json");
    let line = format!("parked export mischief mischief.ada -f {}", file.display());
    bed.run(&line).expect(0);
    assert!(file.exists());
    let (after, _) = bed.host.client().failed(NAME).await;
    assert_eq!(
        (after.state, after.failure, after.position),
        (DeploymentState::Failed, shown.failure, shown.position)
    );
}

#[tokio::test]
async fn dropped_events_are_left_out_of_states_that_are_built_later_and_of_bundles() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    bundle(&bed).expect(0);
    // Named twice, which is one key, and one event.
    let dropped = bed
        .run("parked drop mischief mischief.ada mischief.ada --reason broken")
        .expect(0);
    assert!(dropped.stdout.contains("dropped 1 event;"), "{dropped:?}");
    // The next one may be sound: a command that is sent twice drops nothing more.
    let twice = bed.run("parked drop mischief mischief.ada --reason broken");
    assert!(
        twice.code != 0 && twice.stderr.contains("retry the key"),
        "{twice:?}"
    );
    assert_ne!(bundle(&bed).code, 0, "it had data of the event");
    bed.run("parked retry mischief --all").expect(0);
    let skips = bed.run("skips mischief").expect(0).stdout;
    assert!(
        skips.contains("skipped") && skips.contains("broken"),
        "{skips}"
    );
    // The same code, which still cannot apply it.
    bed.run("rebuild mischief --wait").expect(0);
    assert_eq!(bed.notes_at(last).await, "1,3,4");
    bed.run("verify mischief").expect(0);
    // An operator who has changed their mind.
    bed.run("skips mischief --remove 2").expect(0);
    let module = guests::path("mischief-fixed").display().to_string();
    let line = format!("deploy {module} --name {NAME} --strategy rebuild --wait");
    bed.run(&line).expect(0);
    assert_eq!(bed.notes_at(last).await, "1,2,3,4");
}

#[tokio::test]
async fn key_with_more_events_than_one_request_may_drop_is_dropped_whole_and_in_pieces() {
    let bed = Bed::start("").await;
    bed.tell(&[("ada", "ill 1"), ("bob", "note 2")]).await;
    let many = [("ada", "note 3"); 1_000];
    let mut last = 0;
    for _ in 0..11 {
        last = bed.tell(&many).await;
    }
    assert_eq!(bed.notes_at(last).await, "2");
    let dropped = bed
        .run("parked drop mischief mischief.ada --whole-keys --reason useless")
        .expect(0);
    assert!(
        dropped.stdout.contains("dropped 11,001 events; 1 key")
            && dropped.stderr.contains("10,000 events so far"),
        "{dropped:?}"
    );
    let skips = bed.run("skips mischief").expect(0).stdout;
    assert!(
        skips.lines().count() == 3
            && skips.contains("useless (and 9,999 later events of its key)")
            && skips.contains("useless (and 1,000 later events of its key)"),
        "{skips}"
    );
    // The same code, which still cannot apply the first one.
    bed.run("rebuild mischief --wait").expect(0);
    assert_eq!(bed.notes_at(last).await, "2");
    bed.run("verify mischief").expect(0);
    // An operator who has changed their mind about one of those that waited.
    bed.run("skips mischief --remove 4").expect(0);
    bed.run("rebuild mischief --wait").expect(0);
    assert_eq!(bed.notes_at(last).await, "2,3");
}

#[tokio::test]
async fn events_that_were_to_be_dropped_when_the_host_died_are_left_out_at_the_next_retry() {
    let mut bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    bed.host.die_at(Some("skip-recorded"));
    bed.host.restart().await;
    let drop = "parked drop mischief mischief.ada --whole-keys --reason useless";
    assert_ne!(bed.run(drop).code, 0);
    bed.host.wait_for_death();
    bed.host.die_at(None);
    bed.host.restart().await;
    bed.run("parked retry mischief --all").expect(0);
    assert_eq!(bed.notes_at(last).await, "1,3");
    let skips = bed.run("skips mischief").expect(0).stdout;
    assert!(skips.contains("useless (and 1 later event"), "{skips}");
    bed.run("verify mischief").expect(0);
}

#[tokio::test]
async fn class_that_there_is_not_is_refused_with_those_that_there_are() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    for line in [
        "parked list mischief --class nonsense",
        "parked retry mischief --all --class nonsense",
    ] {
        let refused = bed.run(line);
        assert!(
            refused.code != 0 && refused.stderr.contains("state-limit"),
            "{refused:?}"
        );
    }
    let found = bed.run("parked list mischief --class rejected").expect(0);
    assert!(found.stdout.contains("mischief.ada"), "{found:?}");
}

#[tokio::test]
async fn code_that_applied_what_was_parked_is_not_put_back_behind_it() {
    let mut bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    deploy_fixed(&bed).await;
    bed.run("parked retry mischief --all").expect(0);
    // Another kind of bad event, of another key, while the new code has hardly begun.
    let last = bed.tell(&[("eve", "reject no"), ("bob", "note 6")]).await;
    bed.host
        .client()
        .show_when(NAME, "pass or meet the event", |shown| {
            shown.position >= last || shown.failure.is_some()
        })
        .await;
    bed.host.kill();
    bed.host.restart().await;
    let shown = bed
        .host
        .client()
        .show_when(NAME, "settle", |shown| {
            shown.position >= last || shown.state == DeploymentState::Failed
        })
        .await;
    assert_eq!(shown.generation, 2, "{shown:?}");
    bed.run("verify mischief").expect(0);
    let back = bed.run("rollback mischief");
    assert!(
        back.code == 0 && format!("{back:?}").contains("had parked"),
        "{back:?}"
    );
}

#[tokio::test]
async fn deploy_that_is_refused_changes_no_policy() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let module = guests::path(NAME).display().to_string();
    let line =
        format!("deploy {module} --name {NAME} --on-failure stop --failure-events ops.*@events");
    let refused = bed.run(&line);
    assert!(
        refused.code != 0 && refused.stderr.contains("one subject"),
        "{refused:?}"
    );
    assert_eq!(bed.parked().await.on_failure, api::OnFailure::Park);
    // One that is not says what it changed, although the module is the same.
    let line =
        format!("deploy {module} --name {NAME} --failure-events ops.failed@events --retry-parked");
    let deployed = format!("{:?}", bed.run(&line).expect(0));
    for words in [
        "failure events go to ops.failed@events",
        "nothing is retried",
    ] {
        assert!(deployed.contains(words), "{deployed}");
    }
}

#[tokio::test]
async fn replay_takes_only_the_module_that_failed_or_one_that_reads_its_events() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bundle.json");
    let path = file.display().to_string();
    bed.run(&format!("parked export {NAME} mischief.ada -f {path}"))
        .expect(0);
    let other = guests::path("order-totals").display().to_string();
    let refused = bed.run(&format!("replay {path} --module {other}"));
    assert!(
        refused.code != 0 && refused.stderr.contains("does not read mischief.ada"),
        "{refused:?}"
    );
    let text = std::fs::read_to_string(&file).expect("it was just written");
    let mut bundle: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    bundle["module"] = "0".repeat(64).into();
    std::fs::write(&file, bundle.to_string()).expect("a file of ours");
    let refused = bed.run(&format!("replay {path}"));
    assert!(
        refused.code != 0 && refused.stderr.contains("not the one that the bundle names"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn handler_that_may_not_publish_stops_and_parks_nothing() {
    let host = Host::start().await;
    let client = host.client();
    let module = guests::module("reactor");
    client
        .deploy_with("reactor", &module, "&on-failure=park")
        .await;
    let event: NewEvent =
        serde_json::from_value(json!({ "subject": "in.1.one", "data": {} })).expect("an event");
    let last = client.append(&[event]).await.last_sequence;
    let (shown, failure) = client.failed("reactor").await;
    assert_eq!((shown.position, shown.parked.events), (last - 1, 0));
    assert!(failure.message.contains("--allow-publish"), "{failure:?}");
    // The grant is all that it lacks.
    client
        .deploy_with("reactor", &module, "&allow-publish=out.%3E%40events")
        .await;
    client.reached("reactor", last).await;
}

#[tokio::test]
async fn bundles_of_all_keys_or_of_a_class_are_exported_and_reproduce_their_failures() {
    let bed = Bed::start("").await;
    let last = bed
        .tell(&[("ada", "ill 1"), ("bob", "trap"), ("ada", "note 3")])
        .await;
    bed.tell(&[("eve", "ill 4"), ("joe", "note 5")]).await;
    bed.host.client().reached(NAME, last + 2).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = |folder: &str| {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    };
    let export = |folder: &str, options: &[&str]| {
        let line = ["parked", "export", NAME, "--dir", folder];
        cli::on(&bed.host, &[&line[..], options].concat())
    };

    // A folder that does not exist yet.
    let traps = folder.path().join("a/traps").display().to_string();
    let done = export(&traps, &["--all", "--class", "trap", "-o", "json"]).expect(0);
    assert_eq!(files(&traps), ["mischief-2.bundle.json"]);
    let done: serde_json::Value = done.json();
    assert_eq!(done["bundles"][0]["failure"]["class"], "trap", "{done}");
    assert_eq!(done["failed"], json!([]));
    let replayed = cli::run(&["replay", &format!("{traps}/mischief-2.bundle.json")]).expect(0);
    assert!(
        replayed.stderr.contains("reproduced: event 2"),
        "{replayed:?}"
    );

    // One that is there stays as it is, and holds no other back.
    let done = export(&traps, &["--all"]).expect(0);
    let all = ["mischief-1", "mischief-2", "mischief-4"].map(|name| format!("{name}.bundle.json"));
    assert_eq!(files(&traps), all);
    assert!(
        done.stdout.contains("mischief-1.bundle.json: 2 events")
            && done
                .stdout
                .contains("mischief-2.bundle.json: already there"),
        "{done:?}"
    );

    let some = folder.path().join("some").display().to_string();
    export(&some, &["mischief.eve", "mischief.ada"]).expect(0);
    assert_eq!(files(&some), [all[0].as_str(), all[2].as_str()]);
    let refused = export(&some, &["mischief.eve", "--class", "trap"]).expect(2);
    assert!(
        refused.stderr.contains("cannot be used with"),
        "{refused:?}"
    );
    let refused = export(&some, &["nobody", "mischief.bob"]).expect(1);
    assert!(refused.stderr.contains("`nobody`"), "{refused:?}");
    assert_eq!(files(&some), all);
}

#[tokio::test]
async fn bundle_that_is_damaged_is_a_failure_of_the_host_that_names_no_path() {
    let bed = Bed::start("").await;
    let last = bed.tell(&ILL).await;
    bed.notes_at(last).await;
    let folder = bed.host.data_dir().join("failures").join(NAME);
    let bundles = std::fs::read_dir(&folder).expect("there are bundles");
    let bundles: Vec<_> = bundles.map(|bundle| bundle.expect("an entry")).collect();
    assert_eq!(bundles.len(), 1);
    std::fs::write(bundles[0].path(), "{").expect("it is a file");
    let path = format!("/v1/deployments/{NAME}/parked/export");
    let problem = bed
        .host
        .client()
        .post(&path, "application/json", "")
        .await
        .problem(500, "internal");
    assert!(
        problem.detail.contains("newest failure bundle") && !problem.detail.contains('/'),
        "{problem:?}"
    );
    bed.host
        .prints("cannot read the newest failure bundle")
        .await;
    // That of a key is made again.
    let line = ["parked", "export", NAME, "mischief.ada", "--dir"];
    let dir = bed.host.data_dir().display().to_string();
    cli::on(&bed.host, &[&line[..], &[&dir]].concat()).expect(0);
}

#[tokio::test]
async fn what_is_parked_is_named_by_reads_by_a_skip_and_by_a_bundle_that_lacks_some() {
    let bed = Bed::start("").await;
    bed.tell(&ILL).await;
    let later = [("ada", "note 5"); 300];
    let last = bed.tell(&later).await;
    assert_eq!(bed.notes_at(last).await, "1,3");
    for read in [
        "get mischief note/00000001",
        "scan mischief",
        "query mischief notes",
    ] {
        let read = bed.run(read).expect(0);
        let words = "without 302 parked events; `foldstream parked list` shows the keys";
        assert!(read.stderr.contains(words), "{read:?}");
    }
    let refused = bed.run("resume mischief --skip 2 --reason none").expect(4);
    assert!(
        refused
            .stderr
            .contains("is parked with the key `mischief.ada`")
            && refused.stderr.contains("parked drop mischief KEY"),
        "{refused:?}"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let line = format!(
        "parked export mischief mischief.ada --dir {}",
        folder.path().display()
    );
    let exported = bed.run(&line).expect(0);
    let words = "46 later events of the key are not in it: a bundle has at most 256 events";
    assert!(exported.stderr.contains(words), "{exported:?}");
    let file = folder
        .path()
        .join("mischief-2.bundle.json")
        .display()
        .to_string();
    let replayed = cli::run(&["replay", &file]);
    assert!(replayed.stderr.contains(words), "{replayed:?}");
}

#[tokio::test]
async fn rebuild_that_waits_fails_if_the_new_generation_fails_at_the_same_event() {
    let host = Host::start().await;
    let client = host.client();
    client.deploy("alarm", &guests::module("alarm")).await;
    let name = json!({ "name": "tea" });
    let told = ["other", "ill-set"].map(|kind| new_event(&format!("alarm.a.{kind}"), name.clone()));
    client.append(&told).await;
    client.failed("alarm").await;
    // A handler takes over where the active one has stopped, and meets the event only then.
    let rebuilt = cli::on(&host, &["rebuild", "alarm", "--wait"]).expect(1);
    assert!(
        rebuilt.stderr.contains("a mistake in the code"),
        "{rebuilt:?}"
    );
}
