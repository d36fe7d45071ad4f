//! Each example, built and run as its README says, gives what its events add up to when counted in
//! plain Rust.

use std::collections::{BTreeMap, BTreeSet};

use foldstream_tests::host::Host;
use foldstream_tests::{cli, guests};
use serde_json::{Value, json};

/// An event of an example.
struct Sample {
    subject: Vec<String>,
    time: String,
    data: Value,
}

/// The sample events of an example.
fn samples(example: &str) -> Vec<Sample> {
    let text = std::fs::read_to_string(guests::folder(example).join("events.ndjson"))
        .expect("each example has events");
    let parse = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("each line is an event");
        let text = |name: &str| event[name].as_str().expect("it has one").to_owned();
        Sample {
            subject: text("subject").split('.').map(str::to_owned).collect(),
            time: text("time"),
            data: event["data"].clone(),
        }
    };
    text.lines().map(parse).collect()
}

/// A host on which an example has folded its events, in batches of this many.
async fn run(example: &str, batch_events: usize) -> Host {
    let host = Host::start_with(&format!("[pipeline]\nbatch_events = {batch_events}\n")).await;
    let events = std::fs::read(guests::folder(example).join("events.ndjson"))
        .expect("each example has events");
    let appended = host
        .client()
        .post("/v1/events", "application/x-ndjson", events)
        .await
        .expect(200);
    let last = appended.json::<foldstream::api::Appended>().last_sequence;
    host.client()
        .deploy(example, &guests::module(example))
        .await;
    host.client().reached(example, last).await;
    host
}

async fn ask(host: &Host, example: &str, query: &str, args: Value) -> Value {
    host.client()
        .query(example, query, &args)
        .await
        .expect(200)
        .value()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

#[tokio::test]
async fn each_example_has_the_same_state_whatever_its_batches() {
    for example in ["starter", "order-totals", "auctions"] {
        let (one, many) = (run(example, 1).await, run(example, 10_000).await);
        let state = one.client().entries(example, "").await;
        assert!(!state.is_empty(), "{example}");
        assert_eq!(state, many.client().entries(example, "").await, "{example}");
    }
}

#[tokio::test]
async fn each_example_keeps_its_state_over_a_restart_and_is_never_applied_again() {
    for example in ["starter", "order-totals", "auctions"] {
        let mut host = run(example, 100).await;
        let before = host.client().entries(example, "").await;
        assert_eq!(host.stop().code(), Some(0));
        host.restart().await;
        let shown = host.client().reached(example, 1).await;
        assert_eq!(shown.events_applied, 0, "{example}");
        assert_eq!(
            host.client().entries(example, "").await,
            before,
            "{example}"
        );
    }
}

#[tokio::test]
async fn starter_counts_visits() {
    let mut visits: BTreeMap<String, u64> = BTreeMap::new();
    for sample in samples("starter") {
        *visits.entry(sample.subject[1].clone()).or_default() += 1;
    }
    let host = run("starter", 100).await;
    for (page, count) in visits {
        assert_eq!(
            ask(&host, "starter", "visits", json!(page)).await,
            json!(count)
        );
    }
}

/// What a customer's orders add up to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Totals {
    orders: u64,
    total_cents: u64,
    paid_cents: u64,
    shipped: u64,
}

impl Totals {
    fn json(&self) -> Value {
        let Self {
            orders,
            total_cents,
            paid_cents,
            shipped,
        } = self;
        json!({ "orders": orders, "total_cents": total_cents, "paid_cents": paid_cents, "shipped": shipped })
    }
}

type PerCustomer = BTreeMap<String, Totals>;
type PerDay = BTreeMap<(String, String), Totals>;

/// The totals per customer, and per customer and day.
fn order_totals() -> (PerCustomer, PerDay) {
    let (mut orders, mut customers, mut days) =
        (BTreeMap::new(), PerCustomer::new(), PerDay::new());
    for sample in samples("order-totals") {
        let (customer, order) = (
            sample.subject[1].clone(),
            sample.data["order"]
                .as_str()
                .expect("it has one")
                .to_owned(),
        );
        let kind = sample.subject[2].as_str();
        if kind == "placed" {
            let placed = (
                sample.time[..10].to_owned(),
                number(&sample.data["total_cents"]),
            );
            orders.insert((customer.clone(), order.clone()), placed);
        }
        let Some((day, cents)) = orders.get(&(customer.clone(), order.clone())).cloned() else {
            continue;
        };
        let rows = [
            customers.entry(customer.clone()).or_default(),
            days.entry((customer.clone(), day)).or_default(),
        ];
        for row in rows {
            match kind {
                "placed" => {
                    (row.orders, row.total_cents) = (row.orders + 1, row.total_cents + cents);
                }
                "paid" => row.paid_cents += cents,
                "shipped" => row.shipped += 1,
                "cancelled" => {
                    (row.orders, row.total_cents) = (row.orders - 1, row.total_cents - cents);
                }
                "returned" => row.total_cents -= number(&sample.data["refund_cents"]),
                other => panic!("an event of type {other} that is not counted here"),
            }
        }
        if kind == "cancelled" {
            orders.remove(&(customer, order));
        }
    }
    (customers, days)
}

#[tokio::test]
async fn order_totals_adds_up_orders_per_customer_and_day() {
    let (customers, days) = order_totals();
    let host = run("order-totals", 100).await;
    for (customer, totals) in &customers {
        assert_eq!(
            ask(
                &host,
                "order-totals",
                "customer",
                json!({ "customer": customer })
            )
            .await,
            totals.json(),
            "{customer}"
        );
        let wanted: Vec<Value> = days
            .iter()
            .filter(|((of, _), _)| of == customer)
            .map(|((_, day), totals)| json!([day, totals.json()]))
            .collect();
        let args = json!({ "customer": customer, "from": "2026-01-01", "to": "2026-12-31" });
        assert_eq!(
            ask(&host, "order-totals", "days", args).await,
            json!(wanted),
            "{customer}"
        );
    }
    let mut ranking: Vec<(u64, &String)> = customers
        .iter()
        .map(|(name, totals)| (totals.total_cents, name))
        .collect();
    ranking.sort_unstable_by(|a, b| b.cmp(a));
    let wanted: Vec<Value> = ranking
        .iter()
        .take(3)
        .map(|(total, customer)| json!({ "customer": customer, "total_cents": total }))
        .collect();
    assert_eq!(
        ask(
            &host,
            "order-totals",
            "top-customers",
            json!({ "limit": 3 })
        )
        .await,
        json!(wanted)
    );
    let unknown = host
        .client()
        .query("order-totals", "customer", &json!({ "customer": "nobody" }))
        .await;
    unknown.problem(404, "not-found");
    host.client()
        .query("order-totals", "customer", &json!({ "costumer": "ada" }))
        .await
        .problem(400, "invalid");
    // Arguments that it cannot read: its own description, and how to quote.
    let told = cli::on(&host, &["query", "order-totals", "customer", "ada"]).expect(4);
    for words in ["`customer` is described as: ", "quote them twice"] {
        assert!(told.stderr.contains(words), "{told:?}");
    }
}

/// An auction with its bids.
struct Auction {
    category: u64,
    seller: u64,
    reserve: u64,
    expires: String,
    highest: Option<u64>,
}

/// The auctions, each with its highest bid, and the time of the last event. The samples write all
/// times in one form, so that text compares as time does.
fn auctions() -> (BTreeMap<String, Auction>, String) {
    let (mut auctions, mut now) = (BTreeMap::<String, Auction>::new(), String::new());
    for sample in samples("auctions") {
        let (id, data) = (sample.subject[1].clone(), &sample.data);
        now.clone_from(&sample.time);
        match sample.subject[2].as_str() {
            "auction" => {
                let auction = Auction {
                    category: number(&data["category"]),
                    seller: number(&data["seller"]),
                    reserve: data["reserve_cents"].as_u64().unwrap_or(0),
                    expires: data["expires"].as_str().expect("it has one").to_owned(),
                    highest: None,
                };
                auctions.insert(id, auction);
            }
            "bid" => {
                if let Some(auction) = auctions
                    .get_mut(&id)
                    .filter(|auction| auction.expires > sample.time)
                {
                    auction.highest = auction.highest.max(Some(number(&data["price_cents"])));
                }
            }
            _ => {}
        }
    }
    (auctions, now)
}

#[tokio::test]
async fn auctions_find_highest_bids_average_prices_and_sellers_totals() {
    let (auctions, now) = auctions();
    let host = run("auctions", 100).await;
    for (id, auction) in &auctions {
        let args = json!({ "auction": id.parse::<u64>().expect("a number") });
        let answer = host.client().query("auctions", "highest-bid", &args).await;
        match auction.highest {
            Some(price) => assert_eq!(
                answer.expect(200).value()["price_cents"],
                json!(price),
                "{id}"
            ),
            None => assert!(
                answer.status == 404 || answer.value()["price_cents"].is_null(),
                "{id}: {}",
                answer.text()
            ),
        }
    }
    let ended: Vec<&Auction> = auctions
        .values()
        .filter(|auction| auction.expires <= now)
        .collect();
    let sold = |auction: &&&Auction| {
        auction
            .highest
            .is_some_and(|price| price >= auction.reserve)
    };
    assert!(
        !ended.is_empty() && ended.iter().any(|auction| sold(&auction)),
        "the samples show something"
    );

    for category in ended
        .iter()
        .filter(sold)
        .map(|auction| auction.category)
        .collect::<BTreeSet<_>>()
    {
        let prices: Vec<u64> = ended
            .iter()
            .filter(sold)
            .filter(|a| a.category == category)
            .filter_map(|a| a.highest)
            .collect();
        let answer = ask(
            &host,
            "auctions",
            "average-price",
            json!({ "category": category }),
        )
        .await;
        let average = prices.iter().sum::<u64>() / prices.len() as u64;
        assert_eq!(
            answer,
            json!([{ "category": category, "sold": prices.len(), "average_cents": average }])
        );
    }
    for seller in ended
        .iter()
        .map(|auction| auction.seller)
        .collect::<BTreeSet<_>>()
    {
        let of = || ended.iter().filter(|auction| auction.seller == seller);
        let total: u64 = of()
            .filter(sold)
            .filter_map(|auction| auction.highest)
            .sum();
        let answer = ask(&host, "auctions", "seller", json!({ "seller": seller })).await;
        let found = [&answer["ended"], &answer["sold"], &answer["total_cents"]].map(number);
        assert_eq!(
            found,
            [of().count() as u64, of().filter(sold).count() as u64, total],
            "{seller}: {answer}"
        );
    }
}

/// The last cells of the table of unhappy paths in the README of an example.
fn paths(example: &str) -> BTreeSet<String> {
    let readme = guests::folder(example).join("README.md");
    let readme = std::fs::read_to_string(readme).expect("each example has a README");
    let (_, section) = readme
        .split_once("## Unhappy paths")
        .expect("a section about unhappy paths");
    let table = section.lines().skip_while(|line| !line.starts_with("|---"));
    let rows = table.skip(1).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.split('|').nth(2))
        .map(|cell| cell.trim().to_owned())
        .filter(|cell| !cell.is_empty())
        .collect()
}

/// The names of the scenarios in the files of some modules.
fn scenarios(modules: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for module in modules {
        let file = guests::folder(module).join("scenarios.yaml");
        let text = std::fs::read_to_string(file).expect("each module has scenarios");
        let found = text
            .lines()
            .filter_map(|line| line.strip_prefix("  - name: "));
        names.extend(found.map(str::to_owned));
    }
    names
}

#[test]
fn each_unhappy_path_in_the_readme_of_a_saga_has_its_scenario() {
    let examples: [(&str, &[&str]); 2] = [
        ("saga-orchestrated", &["saga-orchestrated"]),
        (
            "saga-choreographed",
            &[
                "saga-choreographed/checkout",
                "saga-choreographed/stock",
                "saga-choreographed/shipping",
            ],
        ),
    ];
    for (example, modules) in examples {
        assert_eq!(paths(example), scenarios(modules), "{example}");
    }
}
