//! The data folder: whose it is, what is removed in it, and who may read it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use foldstream_tests::host::{Host, refused};
use foldstream_tests::{cli, guests};

/// Writes files, with their folders.
fn fill(folder: &Path, files: &[&str]) {
    for file in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().expect("it has a folder"))
            .expect("our folder can be written");
        fs::write(path, "mine").expect("our folder can be written");
    }
}

/// Those of the files that are still what they were.
fn kept<'a>(folder: &Path, files: &[&'a str]) -> Vec<&'a str> {
    let is_kept =
        |file: &&&str| fs::read_to_string(folder.join(file)).is_ok_and(|text| text == "mine");
    files.iter().filter(is_kept).copied().collect()
}

#[test]
fn a_folder_with_other_files_is_refused_and_left_as_it_is() {
    for file in [
        "modules/a.wasm",
        "state/orders/1.redb",
        "scratch/notes.txt",
        "README.md",
        ".hidden",
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fill(folder.path(), &[file]);
        let (code, output) = refused(&format!("data_dir = {:?}\n", folder.path()), &[]);
        assert!(
            code == 1 && output.contains("no catalog.redb") && output.contains("--data"),
            "{file}: {output}"
        );
        assert_eq!(kept(folder.path(), &[file]), [file]);
        assert_eq!(
            fs::read_dir(folder.path()).expect("there").count(),
            1,
            "{file}: something was added"
        );
    }
}

#[tokio::test]
async fn what_a_first_start_left_that_was_killed_is_no_hindrance() {
    let mut host = Host::start().await;
    host.kill();
    fs::remove_dir_all(host.data_dir()).expect("our folder can be removed");
    fs::create_dir_all(host.data_dir().join("state")).expect("our folder can be written");
    fs::create_dir_all(host.data_dir().join("lost+found")).expect("our folder can be written");
    fs::write(host.data_dir().join("catalog.redb.new"), "half").expect("our folder can be written");
    host.restart().await;
}

#[tokio::test]
async fn a_start_removes_only_files_with_names_that_a_host_gives() {
    let mut host = Host::start().await;
    host.kill();
    let foreign = [
        "modules/mine.wasm",
        "modules/notes.txt",
        "state/orders/backup.redb",
        "state/orders/1.redb.bak",
        "state/Not A Name/1.redb",
        "scratch/mine.txt",
        "snapshots/orders/1-2.redb",
        "log/notes.new",
    ];
    let digest = "ab".repeat(32);
    let module = format!("modules/{digest}.wasm");
    let ours = [
        module.as_str(),
        "state/gone/1.redb",
        "state/gone/2.redb.new",
        "scratch/7.redb",
        "snapshots/gone/1-2-3.redb",
    ];
    fill(&host.data_dir(), &foreign);
    fill(&host.data_dir(), &ours);
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    fill(elsewhere.path(), &["1.redb"]);
    std::os::unix::fs::symlink(elsewhere.path(), host.data_dir().join("state/linked"))
        .expect("a link can be made");

    host.restart().await;

    assert_eq!(kept(&host.data_dir(), &foreign), foreign);
    assert_eq!(kept(&host.data_dir(), &ours), [""; 0]);
    assert_eq!(
        kept(elsewhere.path(), &["1.redb"]),
        ["1.redb"],
        "a link leads out of the folder"
    );
}

/// Everything in a folder that users other than its owner may use.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push((path.clone(), mode));
        }
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("it is there")
                    .map(|entry| entry.expect("readable").path()),
            );
        }
    }
    found
}

#[tokio::test]
async fn only_the_user_of_a_host_may_read_what_it_keeps() {
    let mut host = Host::start_with("[rollout]\nsnapshot_events = 1\n").await;
    host.client()
        .deploy("totals", &foldstream_tests::guests::module("order-totals"))
        .await;
    assert_eq!(host.stop().code(), Some(0));
    assert!(host.data_dir().join("state/totals").is_dir());
    assert_eq!(open_to_others(&host.data_dir()), []);
}

#[test]
fn secrets_and_folders_that_are_open_to_others_are_warned_of() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (token, data) = (folder.path().join("token"), folder.path().join("data"));
    fs::write(&token, "0123456789abcdef").expect("written");
    fs::create_dir(&data).expect("made");
    let config = format!("data_dir = {data:?}\n[serve]\ntoken_file = {token:?}\n");
    fs::write(folder.path().join("foldstream.toml"), config).expect("written");
    let set = |token_mode: u32, data_mode: u32| {
        fs::set_permissions(&token, fs::Permissions::from_mode(token_mode)).expect("ours");
        fs::set_permissions(&data, fs::Permissions::from_mode(data_mode)).expect("ours");
    };
    let keys = |arguments: &[&str]| -> Vec<String> {
        let findings = cli::run_in(folder.path(), arguments).expect(0).json();
        let findings = findings.as_array().expect("a list").clone();
        findings
            .iter()
            .map(|finding| format!("{} {}", finding["key"], finding["message"]))
            .collect()
    };
    set(0o644, 0o755);
    let found = keys(&["config", "check", "-o", "json"]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("data_dir") && found[0].contains("chmod"),
        "{found:?}"
    );
    assert!(
        found[1].contains("serve.token_file") && found[1].contains("chmod"),
        "{found:?}"
    );
    let doctor = cli::run_in(folder.path(), &["doctor"]);
    assert!(
        doctor.stdout.contains("serve.token_file") && doctor.stdout.contains("chmod"),
        "{doctor:?}"
    );
    set(0o640, 0o750);
    assert_eq!(
        keys(&["config", "check", "-o", "json"]),
        [""; 0],
        "a group may be meant"
    );
}

#[tokio::test]
async fn nothing_is_taken_that_the_next_start_would_not_find() {
    let mut host = Host::start().await;
    let body = r#"{"events":[{"subject":"orders.1.placed","data":{"order":"o-1","amount":5}}]}"#;
    let append = async |host: &Host| {
        host.client()
            .post("/v1/events", "application/json", body)
            .await
    };
    append(&host).await.expect(200);
    let ledger = guests::module("ledger");
    host.client().deploy("ledger", &ledger).await;
    host.client().reached("ledger", 1).await;

    // The files are open, so that they would take what is written to them.
    let (folder, aside) = (host.data_dir(), host.data_dir().with_extension("moved"));
    fs::rename(&folder, &aside).expect("our folder can be moved");

    let refused = append(&host).await.problem(503, "not-ready");
    assert!(
        refused.detail.contains("was moved, removed or replaced"),
        "{}",
        refused.detail
    );
    let probe = host.client().get("/readyz").await.expect(200).value();
    assert!(
        probe["degraded"][0]
            .as_str()
            .is_some_and(|finding| finding.contains("catalog.redb was moved")),
        "{probe}"
    );
    let doctor = cli::on(&host, &["doctor"]).stdout;
    assert!(
        doctor.contains("FAIL") && doctor.contains("catalog.redb was moved"),
        "{doctor}"
    );
    let refused = host
        .client()
        .upload(ledger.clone(), "?name=second")
        .await
        .problem(503, "not-ready");
    assert!(
        refused.detail.contains("was moved, removed or replaced"),
        "{}",
        refused.detail
    );
    let refused = host
        .client()
        .post("/v1/deployments/ledger/pause", "application/json", "")
        .await;
    refused.problem(503, "not-ready");
    host.client().entry("ledger", "head").await.expect(200);

    fs::rename(&aside, &folder).expect("our folder can be moved back");
    append(&host).await.expect(200);
    host.client().deploy("second", &ledger).await;
    host.kill();
    host.restart().await;
    host.client().reached("ledger", 2).await;
    host.client().reached("second", 2).await;
    let page = host.client().get("/v1/events").await.expect(200).value();
    assert_eq!(page["events"].as_array().map(Vec::len), Some(2), "{page}");
}

#[tokio::test]
async fn no_client_gets_the_path_of_the_data_folder() {
    let mut host = Host::start().await;
    let body = r#"{"events":[{"subject":"orders.1.placed","data":{"order":"o-1","amount":5}}]}"#;
    let events = "/v1/events";
    host.client()
        .post(events, "application/json", body)
        .await
        .expect(200);
    host.client()
        .deploy("ledger", &guests::module("ledger"))
        .await;
    host.client().reached("ledger", 1).await;
    host.stop();
    let (folder, aside) = (host.data_dir(), host.data_dir().with_extension("moved"));
    fs::write(folder.join("state/ledger/1.redb"), b"no state").expect("the host is down");
    host.restart().await;
    let is_failing = |shown: &foldstream::api::Deployment| shown.failure.is_some();
    host.client().show_when("ledger", "fail", is_failing).await;
    let shown = cli::on(&host, &["show", "ledger", "-o", "json"]).stdout;
    assert!(shown.contains("state/ledger/1.redb: "), "{shown}");
    let read = host.client().entry("ledger", "head").await.text();
    fs::rename(&folder, &aside).expect("our folder can be moved");
    let client = host.client();
    let refused = client.post(events, "application/json", body).await;
    let paused = client.act("ledger", "pause").await;
    let ready = client.get("/readyz").await.text();
    let info = client.get("/v1/host").await.text();
    assert!(info.contains("catalog.redb was moved"), "{info}");

    let place = folder.display().to_string();
    for text in [shown, read, refused.text(), paused.text(), ready, info] {
        assert!(!text.contains(&place), "{text}");
    }
    assert!(
        host.output()
            .contains(&folder.join("state/ledger/1.redb").display().to_string()),
        "the log has it"
    );
    fs::rename(&aside, &folder).expect("our folder can be moved back");
}
