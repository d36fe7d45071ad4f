//! The host answers every upload, survives it, and takes no more memory for it than it may.

use std::collections::BTreeMap;
use std::time::Instant;

use foldstream_tests::fuzz::drive::Plan;
use foldstream_tests::fuzz::smith::Smith;
use foldstream_tests::fuzz::uploads;
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, Stage};
use reqwest::Method;

/// Uploads that are drawn unless it is said how many or for how long: among them are some that took
/// too much memory of earlier releases.
const UPLOADS: u64 = 500;
/// The memory of a container of 256 MiB, of which a host takes this budget.
const TIGHT: &str = "[limits]\nmemory_bytes = \"192MiB\"\n";
const MEMORY_MAX: u64 = 256 << 20;
/// After how many uploads a long run says how far it is.
const PROGRESS: i32 = 1_000;

#[tokio::test]
async fn uploads_drawn_by_a_seed_never_end_the_host() {
    let plan = Plan::from_environment();
    let mut stage = Stage::start_with(Kind::Embedded, TIGHT).await;
    stage.deploy_ledger().await;
    // Small ones, so that more can be tried in a minute.
    let sound = ["sloppy", "tally", "mischief"].map(guests::module);
    let mut smith = Smith::start();
    let begin = Instant::now();
    let (mut counts, mut total) = (BTreeMap::new(), 0);
    for seed in plan.seeds(UPLOADS) {
        let (kind, bytes) = uploads::upload(seed, &sound, &mut smith);
        let status = try_upload(&stage, seed, kind, bytes).await;
        *counts.entry((kind, status)).or_insert(0) += 1;
        total += 1;
        if total % PROGRESS == 0 {
            eprintln!(
                "uploads: {total} in {:.0?}, at most {} MiB",
                begin.elapsed(),
                stage.host.peak_memory_bytes() >> 20
            );
        }
    }
    let last = stage.publish(100).await;
    stage.client().reached("ledger", last).await;
    assert!(!stage.host.has_ended(), "it is the same process");
    println!(
        "uploads: {total} from seed {} in {:.1?}, at most {} MiB: {counts:#?}",
        plan.first,
        begin.elapsed(),
        stage.host.peak_memory_bytes() >> 20
    );
}

/// Uploads a module, and deletes it if it was let in; the status of the answer.
async fn try_upload(stage: &Stage, seed: u64, kind: &str, bytes: Vec<u8>) -> u16 {
    let client = stage.client();
    let length = bytes.len();
    let answer = client.upload(bytes, "?name=drawn").await;
    let status = answer.status.as_u16();
    let taken = stage.host.peak_memory_bytes();
    assert!(
        matches!(status, 200 | 201 | 409 | 422) && taken < MEMORY_MAX,
        "seed {seed}, {kind}, {length} bytes, {taken} bytes of memory: {}",
        answer.text()
    );
    if status < 300 {
        let delete = client.request(Method::DELETE, "/v1/deployments/drawn");
        client.send(delete).await.expect(204);
    }
    status
}
