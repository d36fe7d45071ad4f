//! The host answers every upload, and survives it.

use std::collections::BTreeMap;
use std::time::Instant;

use foldstream_tests::fuzz::drive::Plan;
use foldstream_tests::fuzz::uploads;
use foldstream_tests::guests;
use foldstream_tests::stage::{Kind, Stage};

/// Uploads that are drawn unless it is said for how long.
const UPLOADS: u64 = 150;

#[tokio::test]
async fn uploads_drawn_by_a_seed_never_end_the_host() {
    let plan = Plan::from_environment();
    let mut stage = Stage::with_ledger(Kind::Embedded).await;
    let sound = [guests::module("ledger"), guests::module("mischief")];
    let begin = Instant::now();
    let mut counts = BTreeMap::new();
    for seed in plan.seeds(UPLOADS) {
        let (kind, bytes) = uploads::upload(seed, &sound);
        let length = bytes.len();
        let answer = stage.client().upload(bytes, "?name=drawn").await;
        let status = answer.status.as_u16();
        assert!(
            matches!(status, 200 | 201 | 409 | 422),
            "seed {seed}, {kind}, {length} bytes: {}",
            answer.text()
        );
        if status < 300 {
            let delete = stage
                .client()
                .request(reqwest::Method::DELETE, "/v1/deployments/drawn");
            stage.client().send(delete).await.expect(204);
        }
        *counts.entry((kind, status)).or_insert(0) += 1;
    }
    let last = stage.publish(100).await;
    stage.client().reached("ledger", last).await;
    assert!(!stage.host.has_ended(), "it is the same process");
    let total: i32 = counts.values().sum();
    println!(
        "uploads: {total} from seed {} in {:.1?}: {counts:#?}",
        plan.first,
        begin.elapsed()
    );
}
