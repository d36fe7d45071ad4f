//! Sagas on a real host: each order ends with everything done or everything undone, whatever
//! happens to the host, and everybody sees what the others wait for.

use std::collections::{BTreeMap, BTreeSet};

use foldstream::api::{self, GenerationStatus};
use foldstream_tests::client::Client;
use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests, wait};
use serde_json::{Value, json};

const SAGA: &str = "saga-orchestrated";
pub(crate) const PARTICIPANTS: &str = "saga-participants";
/// What the saga may publish.
pub(crate) const GRANTED: [&str; 8] = [
    "payment.*.charge",
    "payment.*.refund",
    "stock.*.reserve",
    "stock.*.release",
    "shipping.*.send",
    "orders.*.fulfilled",
    "orders.*.rejected",
    "orders.*.stuck",
];
/// What the participants may publish.
const GRANTED_TO_PARTICIPANTS: [&str; 10] = [
    "payment.*.charged",
    "payment.*.declined",
    "payment.*.unavailable",
    "payment.*.refunded",
    "payment.*.refund-failed",
    "stock.*.reserved",
    "stock.*.out-of-stock",
    "stock.*.released",
    "shipping.*.sent",
    "shipping.*.refused",
];
/// Small and frequent flushes, so that kills fall before, into and behind commits.
pub(crate) const FLUSHES: &str = "[state]\nflush_interval = \"50ms\"\n";

/// The parameter that allows a handler to publish.
pub(crate) fn grants(subjects: &[&str]) -> String {
    let grants: Vec<_> = subjects
        .iter()
        .map(|subject| format!("{subject}%40events"))
        .collect();
    format!("&allow-publish={}", grants.join("%2C"))
}

async fn start(config: &str) -> Host {
    let host = Host::start_with(config).await;
    let client = host.client();
    client
        .deploy_with(SAGA, &guests::module(SAGA), &grants(&GRANTED))
        .await;
    host
}

pub(crate) async fn deploy_participants(host: &Host) {
    let module = guests::module(PARTICIPANTS);
    let parameters = format!(
        "&effects-from=beginning{}",
        grants(&GRANTED_TO_PARTICIPANTS)
    );
    host.client()
        .deploy_with(PARTICIPANTS, &module, &parameters)
        .await;
}

fn event(order: &str, what: &str, data: &Value) -> api::NewEvent {
    serde_json::from_value(json!({ "subject": format!("orders.{order}.{what}"), "data": data }))
        .expect("an event")
}

/// An order that is placed; `wrong` is what goes wrong with it.
pub(crate) fn placed(order: &str, wrong: &[(&str, &str)]) -> api::NewEvent {
    let mut data = json!({
        "cents": 4_200, "item": "lamp", "card": "valid", "address": "1 Main Street",
    });
    for (field, value) in wrong {
        data[*field] = json!(value);
    }
    event(order, "placed", &data)
}

/// An order for each of some fates, which say what goes wrong with it.
pub(crate) fn placed_with(round: usize, fates: &[&[(&str, &str)]]) -> Vec<api::NewEvent> {
    let order =
        |(fate, wrong): (usize, &&[(&str, &str)])| placed(&format!("{round}-{fate}"), wrong);
    fates.iter().enumerate().map(order).collect()
}

async fn list(client: &Client, parameters: &str) -> api::SagaInstances {
    list_of(client, SAGA, parameters).await
}

pub(crate) async fn list_of(
    client: &Client,
    deployment: &str,
    parameters: &str,
) -> api::SagaInstances {
    let path = format!("/v1/deployments/{deployment}/sagas?{parameters}");
    client.get(&path).await.expect(200).json()
}

/// Waits until this many instances have a status.
async fn have(client: &Client, status: &str, count: usize) -> Vec<api::SagaInstance> {
    wait::until(&format!("{count} instances to be {status}"), async || {
        let path = format!("/v1/deployments/{SAGA}/sagas?limit=1000&status={status}");
        let answer = client.get(&path).await;
        if !answer.status.is_success() {
            return None;
        }
        let found = answer.json::<api::SagaInstances>().instances;
        (found.len() == count).then_some(found)
    })
    .await
}

/// All events of the embedded log.
pub(crate) async fn stored(client: &Client) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = 0;
    loop {
        let path = format!("/v1/events?source=events&after={after}&limit=1000&subject=%3E");
        let page = client.get(&path).await.expect(200).value();
        all.extend(page["events"].as_array().expect("a list").iter().cloned());
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return all,
        }
    }
}

/// What was published about each order, in order, once nothing waits to be published.
pub(crate) async fn stories(client: &Client, handlers: &[&str]) -> BTreeMap<String, Vec<String>> {
    for handler in handlers {
        client
            .show_when(handler, "have published everything", |shown| {
                shown
                    .outbox
                    .as_ref()
                    .is_some_and(|outbox| outbox.entries == 0)
            })
            .await;
    }
    let mut stories: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in stored(client).await {
        let subject = event["subject"].as_str().expect("a subject");
        let parts: Vec<_> = subject.split('.').collect();
        if parts[0] == "_fs" {
            continue;
        }
        let story = stories.entry(parts[1].to_owned()).or_default();
        story.push(format!("{} {}", parts[0], parts[2]));
    }
    stories
}

#[tokio::test]
async fn killed_again_and_again_each_order_is_fulfilled_or_undone_once() {
    let mut host = start(FLUSHES).await;
    deploy_participants(&host).await;
    let fates: [&[(&str, &str)]; 6] = [
        &[],
        &[("card", "declined")],
        &[("card", "busy")],
        &[("item", "sold-out")],
        &[("address", "nowhere")],
        &[("card", "refund-later"), ("item", "sold-out")],
    ];
    let rounds = 8;
    for round in 0..rounds {
        host.client().append(&placed_with(round, &fates)).await;
        // Somewhere in the middle of what the orders cause.
        let started = wait::until("some of it to happen", async || {
            let found = list(host.client(), "status=completed&limit=1000").await;
            (found.instances.len() > round).then_some(())
        });
        started.await;
        host.kill();
        host.restart().await;
    }
    let client = host.client();
    let shown = settled(client, SAGA, (fates.len() * rounds) as u64).await;
    assert!(
        shown.ended["completed"] > 0 && shown.ended["compensated"] > 0,
        "{shown:?}"
    );
    for (order, story) in stories(client, &[SAGA, PARTICIPANTS]).await {
        assert_is_done_or_undone(&order, &story);
    }
    // The id of a message is that of its place, so none was stored twice.
    let mut ids = BTreeSet::new();
    for event in stored(client).await {
        if let Some(id) = event["headers"]["ce-id"].as_str() {
            assert!(ids.insert(id.to_owned()), "{id} is there twice: {event}");
        }
    }
    assert!(
        ids.len() > 2 * fates.len() * rounds,
        "{} messages",
        ids.len()
    );
    cli::on(&host, &["verify", SAGA, "--seed", "7"]).expect(0);
}

/// Waits until this many instances have ended. Restarts may take longer than a refund may, so
/// whatever gets stuck is resumed.
pub(crate) async fn settled(client: &Client, deployment: &str, count: u64) -> api::Saga {
    let mut resumed = BTreeSet::new();
    loop {
        let shown = wait::until("an order to end or to get stuck", async || {
            let saga = client.show(deployment).await.sagas.into_iter().next()?;
            let is_stuck = |group: &api::SagaGroup| group.status == api::SagaStatus::Stuck;
            let has_ended = saga.ended.values().sum::<u64>() == count;
            (has_ended || saga.waiting.iter().any(is_stuck)).then_some(saga)
        })
        .await;
        if shown.ended.values().sum::<u64>() == count {
            return shown;
        }
        for stuck in list_of(client, deployment, "status=stuck").await.instances {
            if resumed.insert((stuck.key.clone(), stuck.since.clone())) {
                client
                    .append(&[event(&stuck.key, "resume", &json!({}))])
                    .await;
            }
        }
    }
}

/// An order ends once: with everything done, or with everything undone, the last step first.
fn assert_is_done_or_undone(order: &str, story: &[String]) {
    let place = |what: &str| story.iter().rposition(|told| told == what);
    let ends = story
        .iter()
        .filter(|told| ["orders fulfilled", "orders rejected"].contains(&told.as_str()));
    assert_eq!(ends.count(), 1, "{order}: {story:?}");
    let undone = (place("stock released"), place("payment refunded"));
    if place("orders fulfilled").is_some() {
        assert!(place("shipping sent").is_some(), "{order}: {story:?}");
        assert_eq!(undone, (None, None), "{order}: {story:?}");
        return;
    }
    assert!(place("shipping sent").is_none(), "{order}: {story:?}");
    let is_undone = |done: &str, undone: Option<usize>| place(done).is_none() || undone.is_some();
    assert!(is_undone("stock reserved", undone.0), "{order}: {story:?}");
    assert!(is_undone("payment charged", undone.1), "{order}: {story:?}");
    if let (Some(released), Some(refunded)) = undone {
        assert!(released < refunded, "{order}: {story:?}");
    }
}

async fn metrics_show_three_that_are_stuck(client: &Client) {
    let metrics = client.get("/metrics").await.expect(200).text();
    let of = "deployment=\"saga-orchestrated\",saga=\"order-fulfilment\",status=\"stuck\"";
    for wanted in [
        format!("foldstream_saga_instances{{{of},step=\"payment\"}} 3"),
        format!("foldstream_saga_oldest_seconds{{{of}}} "),
        format!(
            "foldstream_saga_ended{{{}}} 0",
            of.replace("stuck", "completed")
        ),
    ] {
        assert!(metrics.contains(&wanted), "{wanted} is not in {metrics}");
    }
}

#[tokio::test]
async fn everybody_sees_which_orders_wait_for_what_and_since_when() {
    // Nobody answers, as there are no participants: they give up, and wait for an operator.
    let host = start("").await;
    let client = host.client();
    let orders: Vec<_> = ["1", "2", "a%b"].map(|order| placed(order, &[])).into();
    client.append(&orders).await;
    let waiting = have(client, "stuck", 3).await;
    assert!(
        waiting.is_sorted_by(|one, next| one.since <= next.since),
        "{waiting:?}"
    );
    assert!(
        waiting[0]
            .reason
            .starts_with("payment could not be undone: no answer within"),
        "{waiting:?}"
    );
    let keys: Vec<_> = waiting
        .iter()
        .map(|instance| instance.key.clone())
        .collect();
    assert_eq!(
        keys.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        ["1", "2", "a%b"].into()
    );
    let shown = client.show(SAGA).await;
    let [saga] = &shown.sagas[..] else {
        panic!("one saga: {:?}", shown.sagas)
    };
    assert_eq!(saga.name, "order-fulfilment");
    let [group] = &saga.waiting[..] else {
        panic!("one group: {saga:?}")
    };
    assert_eq!(
        (group.status, group.step.as_str(), group.instances),
        (api::SagaStatus::Stuck, "payment", 3)
    );
    assert_eq!(group.since.as_ref(), Some(&waiting[0].since));

    metrics_show_three_that_are_stuck(client).await;

    // Page by page, and narrowed.
    let mut paged = Vec::new();
    let mut after = String::new();
    loop {
        let page = list(client, &format!("step=payment&limit=1{after}")).await;
        assert!(!page.instances.is_empty(), "the last page has no next one");
        paged.extend(page.instances.into_iter().map(|instance| instance.key));
        let Some(next) = page.next else { break };
        after = format!("&after={}", next.replace('%', "%25"));
    }
    assert_eq!(paged, keys);
    for narrow in ["step=stock", "status=running", "step=pay"] {
        assert_eq!(list(client, narrow).await.instances, [], "{narrow}");
    }
    let unknown = client
        .get(&format!("/v1/deployments/{SAGA}/sagas?saga=other"))
        .await
        .problem(422, "refused");
    assert!(unknown.detail.contains("order-fulfilment"), "{unknown:?}");
    client
        .get(&format!("/v1/deployments/{SAGA}/sagas?status=waiting"))
        .await
        .problem(400, "invalid");

    client
        .get(&format!("/v1/deployments/{SAGA}/sagas?after=elsewhere"))
        .await
        .problem(422, "refused");

    let output = cli::on(&host, &["sagas", "list", SAGA, "--step", "payment"]).expect(0);
    assert_eq!(
        output.stdout.matches(" stuck ").count(),
        3,
        "{}",
        output.stdout
    );
    let lines = cli::on(
        &host,
        &["sagas", "list", SAGA, "--limit", "1", "-o", "ndjson"],
    )
    .lines();
    assert_eq!((lines.len(), &lines[0]["key"]), (1, &json!(keys[0])));
    let output = cli::on(&host, &["show", SAGA]).expect(0);
    assert!(
        output
            .stdout
            .contains("order-fulfilment: 3 stuck at payment, the oldest since"),
        "{}",
        output.stdout
    );

    client
        .deploy("order-totals", &guests::module("order-totals"))
        .await;
    client
        .get("/v1/deployments/order-totals/sagas")
        .await
        .problem(422, "refused");
}

#[tokio::test]
async fn instances_continue_under_newer_code_and_in_a_rebuilt_state() {
    let host = start(FLUSHES).await;
    deploy_participants(&host).await;
    let client = host.client();
    let orders = ["1", "2", "3"];
    client
        .append(&orders.map(|order| placed(order, &[("card", "silent")])))
        .await;
    wait::until("them to wait for payment", async || {
        let shown = client.show(SAGA).await;
        shown
            .sagas
            .first()
            .is_some_and(|saga| !saga.waiting.is_empty())
            .then_some(())
    })
    .await;
    // Newer code inherits them; a rebuild folds them again and asks nobody a second time.
    client
        .deploy_with(SAGA, &guests::release(SAGA, 2), "")
        .await;
    let answer = client.act(SAGA, "rebuild").await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let number = answer.json::<api::Deployed>().generation;
    client.becomes(SAGA, number, GenerationStatus::Active).await;
    have(client, "compensated", orders.len()).await;

    let stories = stories(client, &[SAGA, PARTICIPANTS]).await;
    for order in orders {
        let story = &stories[order];
        let count = |what: &str| story.iter().filter(|told| *told == what).count();
        assert_eq!(
            (count("payment charge"), count("orders rejected")),
            (2, 1),
            "{story:?}"
        );
    }
    cli::on(&host, &["verify", SAGA, "--seed", "7"]).expect(0);
}

#[test]
fn the_demonstration_shows_orders_of_all_fates() {
    let folder = guests::folder(SAGA);
    let modules = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = std::process::Command::new("sh");
    command
        .arg(folder.join("demo.sh"))
        .arg(foldstream_tests::foldstream())
        .arg(modules.path())
        .env("FOLDSTREAM_SERVE__ANONYMOUS", "everything");
    let output = cli::finish(&mut command, None);
    assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
    let shown = output.stdout;
    for saga in ["order-fulfilment", "checkout"] {
        let has = |wanted: &[&str]| {
            shown
                .lines()
                .any(|line| line.starts_with(saga) && wanted.iter().all(|word| line.contains(word)))
        };
        assert!(has(&["1004", "running", "payment"]), "{shown}");
        assert!(has(&["1009", "stuck", "could not be undone"]), "{shown}");
        for order in ["1001", "1003"] {
            assert!(has(&[order, "completed"]), "{order}: {shown}");
        }
        for order in ["1002", "1004", "1005", "1006", "1007", "1008", "1009"] {
            assert!(has(&[order, "compensated"]), "{order}: {shown}");
        }
    }
}

#[tokio::test]
async fn orders_from_before_the_first_deploy_get_no_commands_whatever_fires_for_them() {
    let host = Host::start_with(FLUSHES).await;
    let client = host.client();
    let old = placed("1", &[("card", "silent")]);
    client.append(&[old]).await;
    client
        .deploy_with(SAGA, &guests::module(SAGA), &grants(&GRANTED))
        .await;
    // Each timer sets the next one: for another attempt, and for the compensation.
    wait::until("timers to fire again and again", async || {
        let path = "/v1/events?source=events&limit=1000&subject=_fs.%3E";
        let page = client.get(path).await.expect(200).value();
        let firings = page["events"].as_array().expect("a list").len();
        (firings >= 3).then_some(())
    })
    .await;
    let all = stored(client).await;
    let is_command = |event: &&Value| {
        let subject = event["subject"].as_str().expect("text");
        !subject.ends_with(".placed")
    };
    assert_eq!(all.iter().find(is_command), None);
}
