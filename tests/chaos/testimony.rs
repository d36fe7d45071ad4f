//! What the witnesses of the leaky stream say: which events they applied.

use std::collections::BTreeMap;

use foldstream_tests::client::Answer;
use reqwest::Method;

use crate::world::World;

/// Asks a witness, once it has read up to a sequence; none if the host is down.
pub async fn testify(world: &World, name: &str, last: u64) -> Option<Answer> {
    let path = format!("/v1/deployments/{name}/queries/testimony?at-least={last}&timeout=5s");
    let answer = world.ask_once(|client| {
        let request = client.request(Method::POST, &path);
        request
            .header("content-type", "application/json")
            .body("null")
    });
    answer.await
}

/// What a witness has applied, by sequence: each event once, and each behind the one before it.
pub fn applied(name: &str, testimony: &str) -> BTreeMap<u64, String> {
    let number = |text: &str| -> u64 { text.parse().expect("a witness counts") };
    let mut lines = testimony.lines();
    let (count, last) = lines
        .next()
        .and_then(|head| head.split_once(' '))
        .expect("a head");
    let mut applied = BTreeMap::new();
    let mut before = 0;
    for line in lines {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let [sequence, of, after, data] = parts[..] else {
            panic!("{name} testifies {line:?}");
        };
        applied.insert(number(sequence), data.to_owned());
        assert!(
            number(of) == applied.len() as u64 && number(after) == before,
            "{name} applied {sequence} as number {of} behind {after}, not as number {} behind \
             {before}",
            applied.len()
        );
        before = number(sequence);
    }
    assert_eq!(
        (number(count), number(last)),
        (applied.len() as u64, before),
        "the head of {name} is not the end of what it applied"
    );
    applied
}
