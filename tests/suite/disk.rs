//! A disk without room: those that grow stop first, reads are answered, and everything continues
//! when there is room again. What could not be finished leaves nothing behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use foldstream::api::{DeploymentState, GenerationStatus, NewEvent};
use foldstream_tests::host::Host;
use foldstream_tests::stage::{Kind, LEDGER, Stage};
use foldstream_tests::{guests, wait};

/// What a disk gives out at once, in bytes.
const PAGE: u64 = 4_096;

/// A small disk at a folder, gone when it is dropped.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts one in the place of the data folder of a host, which then starts again with nothing
    /// in it; none if this user may not mount.
    async fn of_host(stage: &mut Stage, mebibytes: u64) -> Option<Self> {
        stage.host.kill();
        let folder = stage.host.data_dir();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&folder)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            // Where nobody looks at the output, a test that shows nothing must not pass.
            assert!(
                std::env::var_os("CI").is_none(),
                "a small disk can't be mounted; run the tests as root"
            );
            println!("skipped: this user may not mount a small disk");
            return None;
        }
        let disk = Self { folder };
        stage.host.restart().await;
        Some(disk)
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }

    /// Leaves about this many bytes free.
    fn fill_but_for(&self, bytes: u64) {
        let file = std::fs::File::create(self.ballast()).expect("there is room for an empty file");
        let mut length = free_bytes(&self.folder).saturating_sub(bytes);
        // The host may take some at the same time.
        while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).is_err()
        {
            length = free_bytes(&self.folder)
                .saturating_sub(bytes)
                .min(length.saturating_sub(PAGE));
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, as the host still runs.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn free_bytes(folder: &Path) -> u64 {
    let stat = rustix::fs::statvfs(folder).expect("it is a disk");
    stat.f_bavail * stat.f_frsize
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().collect())
        .unwrap_or_else(|_| Vec::new());
    entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

async fn waits_for_room(stage: &Stage, what: &str) {
    let shown = stage
        .client()
        .show_when(LEDGER, what, |shown| {
            shown
                .failure
                .as_ref()
                .is_some_and(|failure| failure.kind == "state")
        })
        .await;
    let failure = shown.failure.expect("it was just there");
    assert_eq!(
        (shown.state, failure.sequence),
        (DeploymentState::Retrying, None),
        "{failure:?}"
    );
    assert!(failure.message.contains("bytes free"), "{failure:?}");
}

#[tokio::test]
async fn a_full_disk_keeps_nobody_from_reading_and_is_over_when_there_is_room() {
    let mut stage =
        Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"100ms\"\n").await;
    let Some(disk) = Disk::of_host(&mut stage, 64).await else {
        return;
    };
    stage.deploy_ledger().await;
    let durable = stage.publish(500).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .show_when(LEDGER, "be durable", |shown| shown.checkpoint == durable)
        .await;
    disk.fill_but_for(0);
    let last = stage.publish(500).await;
    waits_for_room(&stage, "say that the disk is full").await;
    stage.assert_ledger_equals_model().await;
    let shown = stage.client().show(LEDGER).await;
    assert_eq!((shown.position, shown.checkpoint), (last, durable));
    // A host that starts on a full disk does the same.
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    waits_for_room(&stage, "still have no room").await;
    disk.empty();
    let live = |shown: &foldstream::api::Deployment| {
        shown.state == DeploymentState::Live && shown.checkpoint == last
    };
    let shown = stage
        .client()
        .show_when(LEDGER, "be durable and live", live)
        .await;
    assert_eq!(shown.failure, None);
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_build_waits_for_room_before_the_neighbour_lacks_any() {
    let mut stage = Stage::start(Kind::JetStream).await;
    let Some(disk) = Disk::of_host(&mut stage, 64).await else {
        return;
    };
    stage.deploy_ledger().await;
    stage.publish(2_000).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .deploy_with(LEDGER, &guests::module("ledger-next"), "&max-rate=500")
        .await;
    stage
        .client()
        .show_when(LEDGER, "build", |shown| {
            shown
                .candidate
                .as_ref()
                .is_some_and(|candidate| candidate.position > 0)
        })
        .await;
    // Enough for those that serve.
    disk.fill_but_for(2 << 20);
    let waits = |shown: &foldstream::api::Deployment| {
        let candidate = shown.candidate.as_ref();
        candidate
            .and_then(|candidate| candidate.failure.as_ref())
            .is_some_and(|failure| failure.kind == "state")
    };
    stage
        .client()
        .show_when(LEDGER, "have its candidate wait", waits)
        .await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    assert_eq!(
        stage.client().show(LEDGER).await.state,
        DeploymentState::Live
    );
    disk.empty();
    stage
        .client()
        .becomes(LEDGER, 2, GenerationStatus::Active)
        .await;
    stage.assert_ledger_equals_model().await;
}

fn fill(bytes: u64) -> NewEvent {
    NewEvent {
        subject: "mischief.a".to_owned(),
        kind: None,
        id: None,
        time: None,
        headers: std::collections::BTreeMap::new(),
        data: serde_json::json!(format!("fill {bytes}")),
    }
}

/// Whether a deployment stopped because its state has its part of the disk.
fn has_its_part(shown: &foldstream::api::Deployment) -> bool {
    shown
        .failure
        .as_ref()
        .is_some_and(|failure| failure.message.starts_with("disk: "))
}

#[tokio::test]
async fn a_module_that_fills_the_data_folder_stops_before_its_neighbour_and_the_log() {
    let limited = |bytes: &str| {
        format!("[limits]\ndisk_bytes = \"{bytes}\"\n[state]\nflush_interval = \"100ms\"\n")
    };
    let mut stage = Stage::start_with(Kind::Embedded, &limited("64MiB")).await;
    stage.deploy_ledger().await;
    // This one has no limit of its own.
    stage
        .client()
        .deploy("mischief", &guests::module("mischief-fixed"))
        .await;
    let mut filled = 0;
    while filled < 700 && !has_its_part(&stage.client().show("mischief").await) {
        // One by one, and then many in one batch; each is accepted.
        let count = if filled < 100 { 1 } else { 20 };
        stage.client().append(&vec![fill(128_000); count]).await;
        filled += count;
    }
    stage
        .client()
        .show_when("mischief", "stop", has_its_part)
        .await;
    for _ in 0..10 {
        stage.client().append(&vec![fill(128_000); 20]).await;
        let last = stage.publish(100).await;
        stage.assert_ledger_equals_model().await;
        let shown = stage
            .client()
            .show_when(LEDGER, "be durable", |shown| shown.checkpoint == last)
            .await;
        assert_eq!((shown.state, shown.failure), (DeploymentState::Live, None));
    }
    let shown = stage.client().show("mischief").await;
    let failure = shown.failure.expect("it has not become less");
    assert!(
        shown.state == DeploymentState::Retrying && failure.message.contains("limits.disk_bytes"),
        "{failure:?}"
    );
    let used = foldstream::usage::allocated(&stage.host.data_dir(), 4);
    assert!(used < 64 << 20, "{used} bytes are used");
    // With more room it continues.
    stage.host.configure(&limited("1GiB"));
    stage.host.restart().await;
    let last = stage.publish(1).await;
    stage.client().reached("mischief", last - 1).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_state_file_has_a_limit_of_its_own() {
    let limited = |bytes: &str| {
        format!("[state]\nfile_bytes_max = \"{bytes}\"\nflush_interval = \"100ms\"\n")
    };
    let mut stage = Stage::start_with(Kind::Embedded, &limited("8MiB")).await;
    stage.deploy_ledger().await;
    stage
        .client()
        .deploy("mischief", &guests::module("mischief-fixed"))
        .await;
    let mut shown = stage.client().show("mischief").await;
    for _ in 0..40 {
        let last = stage
            .client()
            .append(&vec![fill(128_000); 5])
            .await
            .last_sequence;
        let is_done =
            |shown: &foldstream::api::Deployment| shown.position >= last || has_its_part(shown);
        shown = stage
            .client()
            .show_when("mischief", "apply or stop", is_done)
            .await;
    }
    assert!(has_its_part(&shown), "25 MB are beyond its limit");
    let last = shown.head.expect("its log is open");
    let failure = shown.failure.expect("it was just there");
    assert!(
        failure.message.contains("state.file_bytes_max") && shown.position < last,
        "{failure:?}"
    );
    let file = stage.host.data_dir().join("state/mischief/1.redb");
    let bytes = foldstream::usage::allocated(&file, 0);
    assert!(bytes <= 12 << 20, "{bytes}");
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.host.configure(&limited("256MiB"));
    stage.host.restart().await;
    stage.client().reached("mischief", last).await;
}

#[tokio::test]
async fn an_embedded_log_takes_no_events_beyond_the_limit_of_the_data_folder() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(200).await;
    stage.assert_ledger_equals_model().await;
    stage.host.stop();
    let used = foldstream::usage::allocated(&stage.host.data_dir(), 4);
    stage
        .host
        .configure(&format!("[limits]\ndisk_bytes = {used}\n"));
    stage.host.restart().await;
    let body = r#"{"events":[{"subject":"orders.1.placed","data":{"order":"o-1","amount":5}}]}"#;
    let problem = stage
        .client()
        .post("/v1/events", "application/json", body)
        .await
        .problem(507, "no-room");
    assert!(
        problem.detail.contains("limits.disk_bytes"),
        "{}",
        problem.detail
    );
    stage.assert_ledger_equals_model().await;
    stage.host.stop();
    stage.host.configure("");
    stage.host.restart().await;
    stage.publish(50).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_snapshot_without_room_leaves_nothing_and_comes_when_there_is_some() {
    let config = "[state]\nflush_interval = \"100ms\"\n[rollout]\nsnapshot_events = 1\n";
    let mut stage = Stage::start(Kind::Embedded).await;
    stage.host.configure(config);
    let Some(disk) = Disk::of_host(&mut stage, 48).await else {
        return;
    };
    disk.fill_but_for(24 << 20);
    stage
        .client()
        .deploy("mischief", &guests::module("mischief"))
        .await;
    let last = stage
        .client()
        .append(&[fill(3_500_000)])
        .await
        .last_sequence;
    stage.client().reached("mischief", last).await;
    disk.empty();
    disk.fill_but_for(4 << 20);
    let begin = std::time::Instant::now();
    let folder = disk.folder.join("snapshots/mischief");
    while begin.elapsed() < std::time::Duration::from_secs(6) {
        let unfinished: Vec<_> = files(&folder)
            .into_iter()
            .filter(|name| name.ends_with(".new"))
            .collect();
        let is_old = begin.elapsed() > std::time::Duration::from_secs(5);
        assert!(
            !is_old || unfinished.is_empty(),
            "left behind: {unfinished:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    disk.empty();
    wait::until("a snapshot", || async {
        (!files(&folder).is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_host_did_not_finish_is_gone_after_the_next_start() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    stage.publish(100).await;
    stage.assert_ledger_equals_model().await;
    stage.host.kill();
    let data = stage.host.data_dir();
    std::fs::create_dir_all(data.join("snapshots/ledger")).expect("made");
    let left = [
        "snapshots/ledger/1-50-1.redb.new",
        "state/ledger/1.redb.new",
        "log/events.redb.new",
        "scratch/7.redb",
    ];
    for name in left {
        std::fs::write(data.join(name), vec![0; 1 << 20]).expect("written");
    }
    stage.host.restart().await;
    for name in left {
        assert!(!data.join(name).exists(), "{name} is still there");
    }
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn an_embedded_log_on_a_full_disk_refuses_events_and_is_read_as_before() {
    let mut stage = Stage::start(Kind::Embedded).await;
    let Some(disk) = Disk::of_host(&mut stage, 32).await else {
        return;
    };
    stage.deploy_ledger().await;
    stage.publish(300).await;
    stage.assert_ledger_equals_model().await;
    disk.fill_but_for(0);
    let body = r#"{"events":[{"subject":"orders.1.placed","data":{"order":"o-1","amount":5}}]}"#;
    let problem = stage
        .client()
        .post("/v1/events", "application/json", body)
        .await
        .problem(507, "no-room");
    assert!(problem.detail.contains("bytes free"), "{}", problem.detail);
    // A deployment that has all of it to read reads it, in memory.
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    disk.empty();
    stage.publish(50).await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn a_module_that_finds_no_room_is_declined_and_can_be_deployed_later() {
    let mut host = Host::start().await;
    host.client()
        .deploy("first", &guests::module("ledger"))
        .await;
    // As a quota would: no file of the host grows beyond this, and what the disk says of itself is
    // all well.
    host.limit_files(Some(PAGE));
    let declined = host
        .client()
        .upload(guests::module("ledger"), "?name=second")
        .await
        .problem(507, "no-room");
    assert!(declined.detail.contains("free some space"), "{declined:?}");
    host.limit_files(None);
    host.client()
        .deploy("second", &guests::module("ledger"))
        .await;
}

#[tokio::test]
async fn uploads_leave_room_to_those_that_are_deployed() {
    let config = "[limits]\ndisk_bytes = \"32MiB\"\n[sources.events]\nkind = \"embedded\"\n";
    let host = Host::start_with(config).await;
    host.client()
        .deploy("first", &guests::module("ledger"))
        .await;
    // Different modules of four megabytes each: one with more in a section that nobody reads.
    let mut declined = None;
    for number in 0..12_u8 {
        let mut module = guests::module("ledger");
        let padding = vec![number; 4 << 20];
        // A custom section: its id, its length in LEB128, a name of one letter, and the rest.
        let length = u32::try_from(padding.len() + 2).expect("it is small");
        module.push(0);
        for shift in [0, 7, 14, 21] {
            let more = if shift < 21 { 0x80 } else { 0 };
            module.push((length >> shift) as u8 & 0x7f | more);
        }
        module.extend([1, b'p']);
        module.extend(padding);
        let query = format!("?name=padded-{number}");
        let answer = host.client().upload(module, &query).await;
        if answer.status != 201 {
            declined = Some(answer.problem(507, "no-room"));
            break;
        }
    }
    let declined = declined.expect("twelve do not fit");
    assert!(
        declined.detail.contains("limits.disk_bytes"),
        "{declined:?}"
    );
    // Those that are there write on.
    host.client().append(&[fill(1)]).await;
    // The same module again needs no more room.
    host.client()
        .deploy("again", &guests::module("ledger"))
        .await;
}

#[tokio::test]
async fn a_migration_that_finds_no_room_leaves_nothing_and_can_be_repeated() {
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let last = stage.publish(3_000).await;
    stage.assert_ledger_equals_model().await;
    stage
        .client()
        .show_when(LEDGER, "be durable", |shown| shown.checkpoint == last)
        .await;
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage
        .client()
        .show_when(LEDGER, "be paused", |shown| {
            shown.state == DeploymentState::Paused
        })
        .await;
    let folder = stage.host.data_dir().join("state").join(LEDGER);
    let before = files(&folder);
    // A module fits into this, and no state does.
    stage
        .client()
        .deploy_with("other", &guests::module("ledger-next"), "&source=events")
        .await;
    stage.host.limit_files(Some(2 * PAGE));
    let answer = stage
        .client()
        .upload(
            guests::module("ledger-next"),
            &format!("?name={LEDGER}&strategy=migrate"),
        )
        .await;
    if answer.status == 200 {
        stage
            .client()
            .becomes(LEDGER, 2, GenerationStatus::Failed)
            .await;
    }
    wait::until("nothing of it to be left", || async {
        (files(&folder) == before).then_some(())
    })
    .await;
    assert_eq!(
        stage.client().show(LEDGER).await.generation,
        1,
        "the active generation keeps serving"
    );
    stage.host.limit_files(None);
    stage.client().act(LEDGER, "resume").await.expect(200);
    stage
        .client()
        .deploy_with(
            LEDGER,
            &guests::release("ledger-next", 2),
            "&strategy=migrate",
        )
        .await;
    wait::until("the migration", || async {
        let shown = stage.client().show(LEDGER).await;
        (shown.module.state_version == 2).then_some(())
    })
    .await;
    stage.assert_ledger_equals_model().await;
}

#[tokio::test]
async fn on_a_full_disk_a_deployment_can_be_deleted_to_make_room() {
    let mut stage =
        Stage::start_with(Kind::JetStream, "[state]\nflush_interval = \"100ms\"\n").await;
    let Some(disk) = Disk::of_host(&mut stage, 64).await else {
        return;
    };
    stage.deploy_ledger().await;
    stage
        .client()
        .deploy("other", &guests::module("ledger"))
        .await;
    stage.publish(2_000).await;
    stage.assert_ledger_equals_model().await;
    stage.assert_equals_model("other").await;
    disk.fill_but_for(0);
    stage.publish(500).await;
    waits_for_room(&stage, "say that the disk is full").await;
    // Other changes wait for room.
    stage
        .client()
        .act(LEDGER, "pause")
        .await
        .problem(507, "no-room");
    let delete = stage
        .client()
        .request(reqwest::Method::DELETE, "/v1/deployments/other");
    assert!(stage.client().send(delete).await.status.is_success());
    let listed = stage.client().get("/v1/deployments").await.text();
    assert!(!listed.contains("\"other\""), "{listed}");
    disk.empty();
    stage.assert_ledger_equals_model().await;
    // It is gone after a restart as well, and the reserve is there again.
    stage.client().act(LEDGER, "pause").await.expect(200);
    stage.client().act(LEDGER, "resume").await.expect(200);
    assert!(files(&stage.host.data_dir()).contains(&"catalog.reserve".to_owned()));
    stage.host.restart().await;
    stage.assert_ledger_equals_model().await;
    let listed = stage.client().get("/v1/deployments").await.text();
    assert!(!listed.contains("\"other\""), "{listed}");
}

/// Events per second, in how many parts of a second, and for how long.
const EACH: usize = 10;
const PARTS_PER_SECOND: u64 = 10;
const SECONDS: u64 = 6;
/// Most bytes that are written for each of them; the bench measures 4.1 KiB with five deployments.
const WRITTEN_MAX: u64 = 8 << 10;
/// The kind of a file system in memory, as Linux numbers it.
const TMPFS: i64 = 0x0102_1994;

#[tokio::test]
async fn small_events_of_many_keys_cost_some_kilobytes_of_writing_each() {
    let mut stage = Stage::with_ledger(Kind::JetStream).await;
    let durable = async |stage: &Stage, position: u64| {
        let is_durable = |shown: &foldstream::api::Deployment| shown.checkpoint >= position;
        stage
            .client()
            .show_when(LEDGER, "be durable", is_durable)
            .await;
    };
    let last = stage.publish(2_000).await;
    durable(&stage, last).await;
    let before = stage.host.written_bytes();
    let mut ticker = tokio::time::interval(Duration::from_secs(1) / PARTS_PER_SECOND as u32);
    let mut last = last;
    for _ in 0..SECONDS * PARTS_PER_SECOND {
        ticker.tick().await;
        last = stage.publish(EACH).await;
    }
    durable(&stage, last).await;
    let written = stage.host.written_bytes() - before;
    let each = written / (SECONDS * PARTS_PER_SECOND * EACH as u64);
    println!("{each} bytes written for each event");
    assert!(each < WRITTEN_MAX, "{each} bytes for each event");
    // Nothing is written to a file system in memory.
    let kind = rustix::fs::statfs(stage.host.data_dir())
        .expect("it is there")
        .f_type;
    assert!(written > 0 || kind == TMPFS, "it counts what is written");
}
