//! Data folders that earlier builds have written, as files of `tests/data/folders`: each is named after
//! the commit of its build, and was made with `foldstream backup`.

use std::path::Path;
use std::process::Command;

use foldstream::api::{self, DeploymentState};
use foldstream_tests::events::new_event;
use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests, wait};
use serde_json::json;

use crate::timers;

/// A host with lines of configuration on the data folder of an earlier build.
async fn host_on(archive: &str, config: &str) -> Host {
    let mut host = Host::start_with(config).await;
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

async fn live(host: &Host, name: &str) {
    let is_live = |shown: &api::Deployment| shown.state == DeploymentState::Live;
    host.client().show_when(name, "be live", is_live).await;
}

/// A projection, a handler with two pending timers, one of them overdue, and a projection with two
/// events of one key parked, at the position 341.
#[tokio::test]
async fn folder_of_build_f6d86ef_is_opened_and_continued() {
    let host = host_on("f6d86ef.tar.gz", "").await;
    let client = host.client();
    for name in ["order-totals", "alarm", "mischief"] {
        client.reached(name, 341).await;
        live(&host, name).await;
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

/// A projection in lanes with an inbox, a previous generation and a skipped event, a handler with a
/// parked firing, one with a delayed message and one in conflict, and a saga with nine instances that
/// wait for answers which never came.
#[tokio::test]
async fn folder_of_build_0c2f66e_is_opened_and_continued() {
    let sources = "[sources.events]\nkind = \"embedded\"\n[sources.shop]\nkind = \"embedded\"\n";
    let mut host = host_on("0c2f66e.tar.gz", sources).await;
    for name in ["once", "alarm", "mischief", "reactor", "order-fulfilment"] {
        live(&host, name).await;
    }
    let client = host.client();
    let count = client.entry("once", "counts/ada").await.value();
    assert_eq!(count, json!(19));

    client
        .deploy_with(
            "alarm",
            &guests::module("alarm-fixed"),
            "&strategy=inherit&retry-parked=true",
        )
        .await;
    let mut rang = timers::names(&timers::rang(client, 3).await);
    rang.sort_unstable();
    assert_eq!(rang, ["a/fails-x", "a/tea", "b/egg"]);

    let skips = cli::on(&host, &["skips", "mischief"]).expect(0).stdout;
    assert!(
        skips.contains("ticket 1") && skips.contains("48"),
        "{skips}"
    );
    cli::on(&host, &["rollback", "mischief"]).expect(0);
    live(&host, "mischief").await;

    // The other one leaves on 29 November 2026.
    let drop = "outbox drop reactor fs.19472e3dc84cded4.46.0.0 --reason checked";
    cli::on(&host, &drop.split(' ').collect::<Vec<_>>()).expect(0);
    let stored = wait::until(
        "all messages but the delayed one to be published",
        async || {
            let path = "/v1/events?source=events&subject=out.%3E";
            let page = client.get(path).await.expect(200).value();
            let events = page["events"].as_array().expect("a list").clone();
            let shown = client.show("reactor").await.outbox;
            let left = shown.expect("it is a handler").entries;
            (events.len() as u64 + left == 3 && left <= 1).then_some(events)
        },
    )
    .await;
    let mut subjects: Vec<_> = stored
        .iter()
        .map(|event| event["subject"].as_str().expect("a subject"))
        .collect();
    subjects.sort_unstable();
    subjects.retain(|subject| *subject != "out.2.42");
    assert_eq!(subjects, ["out.1.41", "out.3.first"]);

    // Each time-out passes once more, and another attempt follows, or the end.
    let path = "/v1/deployments/order-fulfilment/sagas?limit=100";
    wait::until("all time-outs to pass", async || {
        let page: api::SagaInstances = client.get(path).await.expect(200).json();
        assert_eq!(page.instances.len(), 9);
        let all = page.instances.iter();
        let have_moved = all
            .filter(|one| one.attempt != 1 || one.status != api::SagaStatus::Running)
            .count();
        (have_moved == 9).then_some(())
    })
    .await;
    for name in ["once", "alarm", "mischief", "reactor"] {
        cli::on(&host, &["verify", name]).expect(0);
    }
    host.restart().await;
    for name in ["once", "alarm", "mischief", "reactor", "order-fulfilment"] {
        live(&host, name).await;
    }
}
