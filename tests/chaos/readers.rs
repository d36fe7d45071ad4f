//! Clients that read all the time: each answer has to be the fold at its position, and no position
//! may lie before one that the same client saw already.

use std::time::Duration;

use foldstream::api::EntryPage;
use foldstream_tests::client::Answer;
use reqwest::Method;
use serde_json::json;

use crate::oracle::{Shape, difference};
use crate::publisher::CUSTOMERS;
use crate::world::{Counts, LEDGER, Phase, TALLY, World};

/// Pause of a reader that got no answer.
const AGAIN: Duration = Duration::from_millis(5);

/// The ways to read.
#[derive(Clone, Copy, Debug)]
enum Read {
    /// The entry `head`.
    Head,
    /// The same, at least at what the stream is known to have.
    HeadAtLeast,
    /// All entries, on one page.
    Page,
    /// A query over two keys that are always written together.
    Pair,
    /// A query over all customers.
    Audit,
    /// One entry of the neighbour.
    Neighbour,
}

const READS: [Read; 6] = [
    Read::Head,
    Read::HeadAtLeast,
    Read::Page,
    Read::Pair,
    Read::Audit,
    Read::Neighbour,
];

/// Reads until the round is over.
pub async fn run(world: &World, number: u64) {
    let mut random = fastrand::Rng::with_seed(world.seed ^ (number << 32));
    // What this client has seen of the ledger, and of the neighbour.
    let mut seen = [0, 0];
    while world.is_until(Phase::Rest) {
        let read = READS[random.usize(..READS.len())];
        let customer = random.u32(..CUSTOMERS).to_string();
        let Some(answer) = ask(world, read, &customer).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        match answer.status.as_u16() {
            200 => {}
            503 | 504 => {
                Counts::add(&world.counts.declined);
                continue;
            }
            // A neighbour's customer may not have ordered yet; the code that breaks, and is put
            // back, has no audit.
            404 if matches!(read, Read::Neighbour | Read::Audit) => continue,
            other => panic!(
                "reader {number}: {read:?} is answered {other}: {}",
                answer.text()
            ),
        }
        let seen = &mut seen[usize::from(matches!(read, Read::Neighbour))];
        let position = answer.position();
        assert!(
            position >= *seen,
            "reader {number} went back: {read:?} at {position} (generation {:?}) behind {seen}",
            answer.header("foldstream-generation")
        );
        *seen = position;
        world.oracle.knows(position).await;
        check(world, read, &customer, &answer);
        Counts::add(&world.counts.answers);
    }
}

async fn ask(world: &World, read: Read, customer: &str) -> Option<Answer> {
    let of = format!("/v1/deployments/{LEDGER}");
    let through = world.oracle.through();
    let (method, path) = match read {
        Read::Head => (Method::GET, format!("{of}/entries/head?timeout=1s")),
        Read::HeadAtLeast => (
            Method::GET,
            format!("{of}/entries/head?at-least={through}&timeout=1s"),
        ),
        Read::Page => (Method::GET, format!("{of}/entries?limit=1000&timeout=1s")),
        Read::Pair => (Method::POST, format!("{of}/queries/pair?timeout=1s")),
        Read::Audit => (Method::POST, format!("{of}/queries/audit?timeout=1s")),
        Read::Neighbour => (
            Method::GET,
            format!("/v1/deployments/{TALLY}/entries/tally/{customer}?timeout=1s"),
        ),
    };
    let answer = world.ask_once(|client| {
        let request = client.request(method.clone(), &path);
        if method == Method::POST {
            request
                .header("content-type", "application/json")
                .body("null")
        } else {
            request
        }
    });
    let answer = answer.await?;
    if matches!(read, Read::HeadAtLeast) && answer.status == 200 {
        assert!(
            answer.position() >= through,
            "at least {through} was asked for, {} is answered",
            answer.position()
        );
    }
    Some(answer)
}

fn check(world: &World, read: Read, customer: &str, answer: &Answer) {
    let (position, oracle) = (answer.position(), &world.oracle);
    match read {
        Read::Head | Read::HeadAtLeast => {
            let found = answer.value();
            let wanted = oracle.head(position, Shape::of(&found));
            assert_eq!(
                Some(&found),
                wanted.as_ref(),
                "head is not the fold at {position}"
            );
        }
        Read::Page => {
            let page: EntryPage = answer.json();
            let head = page
                .entries
                .iter()
                .find(|entry| entry.key == "head")
                .expect("a state has a head");
            let differs = difference(
                &oracle.entries(position, Shape::of(&head.value)),
                &page.entries,
            );
            assert!(
                differs.is_none(),
                "entries are not the fold at {position}: {}",
                differs.unwrap_or_default()
            );
        }
        Read::Pair => {
            let last = oracle.last(position);
            assert_eq!(
                answer.value(),
                json!({ "left": last, "right": last }),
                "pair is not the fold at {position}"
            );
        }
        Read::Audit => {
            let audit = answer.value();
            let wanted = oracle.head(position, Shape::of(&audit["head"]));
            assert_eq!(
                Some(&audit["head"]),
                wanted.as_ref(),
                "audit is not the fold at {position}"
            );
            assert_eq!(
                audit["count"],
                json!(oracle.count(position)),
                "audit is not the fold at {position}"
            );
        }
        Read::Neighbour => {
            let wanted = oracle.count_of(customer, position).to_string();
            assert_eq!(
                answer.text(),
                wanted,
                "the neighbour's {customer} is not the fold at {position}"
            );
        }
    }
}
