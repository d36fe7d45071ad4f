//! Data folders that earlier builds have written, as files of `tests/data/folders`: each is named after
//! the commit of its build, and was made with `foldstream backup`.

use std::path::Path;
use std::process::Command;

use foldstream::api::{self, DeploymentState};
use foldstream_tests::events::new_event;
use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests};
use serde_json::json;

use crate::timers;

/// A host on the data folder of an earlier build.
async fn host_on(archive: &str) -> Host {
    let mut host = Host::start().await;
    assert!(host.stop().success());
    let folder = host.data_dir();
    std::fs::remove_dir_all(&folder).expect("it is stopped");
    std::fs::create_dir(&folder).expect("a new folder");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/folders/{archive}"));
    let unpacked = Command::new("tar")
        .args([Path::new("-xzf"), &archive, Path::new("-C"), &folder])
        .status();
    assert!(unpacked.expect("tar is there").success(), "{archive:?}");
    host.restart().await;
    host
}

/// A projection, a handler with two pending timers, one of them overdue, and a projection with two
/// events of one key parked, at the position 341.
#[tokio::test]
async fn folder_of_build_f6d86ef_is_opened_and_continued() {
    let host = host_on("f6d86ef.tar.gz").await;
    let client = host.client();
    for name in ["order-totals", "alarm", "mischief"] {
        client.reached(name, 341).await;
        client
            .show_when(name, "be live", |shown| {
                shown.state == DeploymentState::Live
            })
            .await;
    }
    assert_eq!(
        client.entry("order-totals", "customer/ada").await.value(),
        json!({ "orders": 39, "total_cents": 214_000, "paid_cents": 214_000, "shipped": 34 })
    );
    // It was overdue.
    let rang = timers::rang(client, 2).await;
    assert_eq!(timers::names(&rang), ["a/tea", "b/soon"]);
    assert_eq!(timers::pending(client, 1).await.pending, 1);

    let parked: api::ParkedList = client
        .get("/v1/deployments/mischief/parked")
        .await
        .expect(200)
        .json();
    assert_eq!((parked.counts.events, parked.counts.keys), (2, 1));
    client
        .deploy_with(
            "mischief",
            &guests::module("mischief-fixed"),
            "&strategy=inherit&retry-parked=true",
        )
        .await;
    client
        .show_when("mischief", "retry what was parked", |shown| {
            shown.parked.events == 0
        })
        .await;
    let notes = client.query("mischief", "notes", &json!(null)).await;
    assert_eq!(notes.expect(200).text(), "1,2,3,4");

    let order = json!({ "order": "new", "total_cents": 1, "currency": "EUR" });
    let last = client
        .append(&[
            new_event("orders.ada.placed", order),
            new_event("mischief.bob", json!("note 5")),
            new_event("alarm.c.set", json!({ "name": "egg" })),
        ])
        .await
        .last_sequence;
    client.reached("order-totals", last).await;
    assert_eq!(timers::rang(client, 3).await.len(), 3);
    for name in ["order-totals", "alarm", "mischief"] {
        cli::on(&host, &["verify", name]).expect(0);
    }
}
