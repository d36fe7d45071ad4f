//! Tables: what is read, kept, written and scanned.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use foldstream_sdk::prelude::*;
use foldstream_sdk::testing::{GivenEvent, Harness, Value as Json, event, json};

/// Does what the event says, so that each test can drive the tables by events.
struct Everything {
    words: Table<String, Vec<u64>>,
    days: Table<(String, u32), u64>,
    triples: Table<(u8, String, u8), ()>,
    total: Value<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Command {
    Push(String, u64),
    Put(String, Vec<u64>),
    Delete(String),
    /// Changes, and then writes down what a scan sees of it.
    AddAndScan(String),
    Day(String, u32, u64),
    Triple(u8, String, u8),
    /// Removes the days of a word from one up to before another, and writes down how many there
    /// were.
    Forget(String, u32, u32),
    ForgetWords(String),
    Fail(String),
    Retry(String),
}

#[derive(Deserialize)]
struct Part {
    under: Option<String>,
    starting: Option<String>,
    from: Option<u32>,
    to: Option<u32>,
    #[serde(default)]
    backwards: bool,
    after: Option<(String, u32)>,
    take: Option<usize>,
}

impl Projection for Everything {
    fn manifest() -> Manifest<Self> {
        Manifest::new("everything")
            .subjects(["do.it"])
            .query("days", "", Self::part)
            .query(
                "triples",
                "",
                |this: &Self, (first, second): (u8, String)| {
                    Ok(this
                        .triples
                        .scan()
                        .under_both(first, &second)
                        .entries()?
                        .len())
                },
            )
            .query(
                "span",
                "",
                |this: &Self, (word, from, to): (String, u32, u32)| {
                    Ok(this
                        .days
                        .scan()
                        .range_under(&word, from..to)
                        .entries()?
                        .len())
                },
            )
            .query("no-arguments", "", |_: &Self, (): ()| Ok(1))
            .query("word", "", |this: &Self, word: String| {
                Ok((this.words.contains(&word)?, this.words.get(&word)?))
            })
    }

    fn open(state: &State) -> Self {
        Self {
            words: state.table("word"),
            days: state.table("day"),
            triples: state.table("triple"),
            total: state.value("total"),
        }
    }

    fn prefetch(&self, events: &[Event<'_>]) {
        let words: Vec<String> = events
            .iter()
            .filter_map(|event| match event.json() {
                Ok(Command::Push(word, _) | Command::Delete(word)) => Some(word),
                _ => None,
            })
            .collect();
        self.words.prefetch(words.iter().map(String::as_str));
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        match event.json()? {
            Command::Push(word, number) => {
                self.words.update(&word, |numbers| numbers.push(number))?;
                self.total.update(|total| *total += number)?;
            }
            Command::Put(word, numbers) => self.words.put(&word, numbers)?,
            Command::Delete(word) => self.words.delete(&word)?,
            Command::AddAndScan(word) => {
                self.words.put(&word, vec![])?;
                self.total.put(self.words.scan().entries()?.len() as u64)?;
            }
            Command::Day(word, day, number) => self.days.put((&word, day), number)?,
            Command::Triple(first, second, third) => {
                self.triples.put((first, &second, third), ())?;
            }
            Command::Forget(word, from, to) => {
                let count = self
                    .days
                    .delete_scan(|scan| scan.range_under(&word, from..to))?;
                self.total.put(count)?;
            }
            Command::ForgetWords(beginning) => {
                let count = self
                    .words
                    .delete_scan(|scan| scan.starting_with(&beginning))?;
                self.total.put(count)?;
            }
            Command::Fail(reason) => return Err(Failure::reject(reason)),
            Command::Retry(number) => _ = number.parse::<u64>().retry()?,
        }
        Ok(())
    }
}

impl Everything {
    fn part(&self, part: Part) -> Result<Vec<(String, u32)>, QueryError> {
        let mut scan = self.days.scan();
        if let (Some(under), Some(from)) = (&part.under, part.from) {
            let to = part.to.unwrap_or(u32::MAX);
            let range: RangeInclusive<(&str, u32)> = (under, from)..=(under, to);
            scan = scan.range(range);
        } else if let Some(under) = &part.under {
            scan = scan.under(under);
        }
        if let Some(text) = &part.starting {
            scan = scan.starting_with(text);
        }
        if part.backwards {
            scan = scan.backwards();
        }
        if let Some((word, day)) = &part.after {
            scan = scan.after((word, *day));
        }
        if let Some(count) = part.take {
            scan = scan.take(count);
        }
        Ok(scan.entries()?.into_iter().map(|(key, _)| key).collect())
    }
}

fn command(command: Json) -> GivenEvent {
    event("do.it", command)
}

fn given(commands: impl IntoIterator<Item = Json>) -> Harness<Everything> {
    let mut harness = Harness::new();
    harness.given(commands.into_iter().map(command));
    harness
}

#[test]
fn writes_of_a_batch_are_stored_and_read_back_after_a_restart() {
    let mut harness = given([
        json!({"push": ["a", 1]}),
        json!({"push": ["a", 2]}),
        json!({"push": ["b/c", 3]}),
    ]);
    assert_eq!(harness.get("word/a"), Some(json!([1, 2])));
    assert_eq!(harness.get("word/b%2Fc"), Some(json!([3])));
    assert_eq!(harness.get("total"), Some(json!(6)));

    harness
        .restart()
        .given([command(json!({"push": ["a", 4]}))]);
    assert_eq!(harness.get("word/a"), Some(json!([1, 2, 4])));
    assert_eq!(
        harness.query("word", json!("a")),
        Ok(json!([true, [1, 2, 4]]))
    );
    harness.assert_same_for_any_batching();
}

#[test]
fn deleted_entries_are_gone_from_state_cache_and_scans() {
    let mut harness = given([
        json!({"push": ["a", 1]}),
        json!({"push": ["b", 1]}),
        json!({"delete": "a"}),
    ]);
    assert_eq!(
        (harness.get("word/a"), harness.get("word/b")),
        (None, Some(json!([1])))
    );
    harness.given([
        command(json!({"delete": "b"})),
        command(json!({"add-and-scan": "c"})),
    ]);
    assert_eq!(harness.get("total"), Some(json!(1)));
    assert_eq!(harness.query("word", json!("b")), Ok(json!([false, null])));
    harness.assert_same_for_any_batching();
}

#[test]
fn a_scan_sees_the_writes_of_its_own_batch() {
    let harness = given([
        json!({"push": ["a", 1]}),
        json!({"add-and-scan": "b"}),
        json!({"delete": "a"}),
    ]);
    assert_eq!(harness.get("total"), Some(json!(2)));
    harness.assert_same_for_any_batching();
}

#[test]
fn scans_are_narrowed_by_parts_ranges_direction_and_count() {
    let mut days = Vec::new();
    for word in ["a", "a-b", "b"] {
        days.extend((1..=3).map(|day| json!({"day": [word, day, 0]})));
    }
    let harness = given(days);
    let ask = |part: Json| harness.query("days", part).expect("an answer");

    assert_eq!(ask(json!({})).as_array().map(Vec::len), Some(9));
    assert_eq!(
        ask(json!({"under": "a"})),
        json!([["a", 1], ["a", 2], ["a", 3]])
    );
    assert_eq!(
        ask(json!({"under": "a", "from": 2})),
        json!([["a", 2], ["a", 3]])
    );
    assert_eq!(
        ask(json!({"under": "b", "from": 1, "to": 2, "backwards": true})),
        json!([["b", 2], ["b", 1]])
    );
    assert_eq!(
        ask(json!({"under": "b", "after": ["b", 1]})),
        json!([["b", 2], ["b", 3]])
    );
    assert_eq!(
        ask(json!({"under": "b", "after": ["b", 3], "backwards": true, "take": 1})),
        json!([["b", 2]])
    );
    assert_eq!(ask(json!({"take": 0})), json!([]));
    assert_eq!(ask(json!({"under": "c"})), json!([]));
}

#[test]
fn a_range_is_removed_with_what_its_own_batch_wrote() {
    let day = |word: &str, day: u32| json!({"day": [word, day, 0]});
    let mut harness = given([
        day("a", 1),
        day("a", 2),
        day("a", 3),
        day("ab", 2),
        json!({"forget": ["a", 1, 3]}),
    ]);
    assert_eq!(
        harness.query("days", json!({})),
        Ok(json!([["a", 3], ["ab", 2]]))
    );
    assert_eq!(harness.get("total"), Some(json!(2)));
    // What was removed can come again, in the same batch too.
    harness.given(
        [
            json!({"forget": ["a", 0, 9]}),
            day("a", 2),
            json!({"forget": ["b", 0, 9]}),
        ]
        .map(command),
    );
    assert_eq!(
        harness.query("days", json!({})),
        Ok(json!([["a", 2], ["ab", 2]]))
    );
    assert_eq!(harness.get("total"), Some(json!(0)));
    harness.assert_same_for_any_batching();
}

#[test]
fn a_range_of_many_pages_is_removed_whole() {
    // More than one page of a scan.
    let count = 2_500;
    let mut harness = Harness::<Everything>::new();
    harness.given((0..count).map(|number| command(json!({"put": [format!("old-{number}"), [1]]}))));
    harness
        .restart()
        .given([json!({"push": ["new", 1]}), json!({"push": ["old-7", 1]})].map(command));
    harness.given([command(json!({"forget-words": "old-"}))]);
    assert_eq!(harness.entries("word/").len(), 1);
    assert_eq!(harness.get("total"), Some(json!(count)));
    assert_eq!(
        harness.query("word", json!("old-7")),
        Ok(json!([false, null]))
    );
    assert_eq!(harness.query("word", json!("new")), Ok(json!([true, [1]])));
}

#[test]
fn a_search_by_beginning_finds_texts_whatever_follows() {
    let words = [
        "r",
        "re",
        "red",
        "red wagon",
        "red-hot",
        "red/blue",
        "reddish",
        "rod",
    ];
    let harness = given(words.map(|word| json!({"day": [word, 1, 0]})));
    let ask = |part: Json| harness.query("days", part).expect("an answer");

    let found = json!([
        ["red wagon", 1],
        ["red/blue", 1],
        ["red-hot", 1],
        ["red", 1],
        ["reddish", 1]
    ]);
    assert_eq!(ask(json!({"starting": "red"})), found);
    assert_eq!(ask(json!({"starting": "red/"})), json!([["red/blue", 1]]));
    assert_eq!(
        ask(json!({"starting": "redd", "backwards": true})),
        json!([["reddish", 1]])
    );
    assert_eq!(ask(json!({"starting": "red\u{10ffff}"})), json!([]));
    assert_eq!(
        ask(json!({"starting": ""})).as_array().map(Vec::len),
        Some(words.len())
    );
    assert_eq!(
        ask(json!({"under": "red", "starting": "000000000"})),
        json!([["red", 1]])
    );
    assert_eq!(ask(json!({"under": "red", "starting": "1"})), json!([]));
    // A range and a beginning: both hold.
    assert_eq!(
        ask(json!({"under": "red", "from": 1, "starting": "red"})),
        json!([["red", 1]])
    );
    assert_eq!(
        ask(json!({"under": "red", "from": 1, "starting": "rod"})),
        json!([])
    );
    assert_eq!(
        ask(json!({"under": "red", "from": 1, "starting": "\u{10ffff}"})),
        json!([])
    );
}

#[test]
fn a_range_below_a_first_part_stays_below_it() {
    let mut days = Vec::new();
    for word in ["a", "a-b", "b"] {
        days.extend((1..=3).map(|day| json!({"day": [word, day, 0]})));
    }
    let harness = given(days);
    assert_eq!(harness.query("span", json!(["a", 2, 4])), Ok(json!(2)));
    assert_eq!(harness.query("span", json!(["a", 0, 1])), Ok(json!(0)));
    assert_eq!(harness.query("span", json!(["a", 3, 1])), Ok(json!(0)));
    assert_eq!(
        harness.query("span", json!(["b", 0, u32::MAX])),
        Ok(json!(3))
    );
}

#[test]
fn long_scans_go_over_many_pages_without_loss() {
    let harness = given((0..2_500).map(|day| json!({"day": ["a", day, 0]})));
    for backwards in [false, true] {
        let mut expected: Vec<Json> = (0..2_500).map(|day| json!(["a", day])).collect();
        if backwards {
            expected.reverse();
        }
        let answer = harness.query("days", json!({"under": "a", "backwards": backwards}));
        assert_eq!(answer, Ok(Json::from(expected)));
    }
}

#[test]
fn triples_are_scanned_by_their_first_two_parts() {
    let harness = given([
        json!({"triple": [1, "a", 1]}),
        json!({"triple": [1, "a", 2]}),
        json!({"triple": [1, "ab", 1]}),
    ]);
    assert_eq!(harness.query("triples", json!([1, "a"])), Ok(json!(2)));
    assert_eq!(harness.query("triples", json!([2, "a"])), Ok(json!(0)));
}

#[test]
fn a_failing_event_keeps_the_events_before_it_and_nothing_of_its_own() {
    let mut harness = given([json!({"push": ["a", 1]})]);
    let batch = [
        json!({"push": ["a", 2]}),
        json!({"fail": "no"}),
        json!({"push": ["a", 3]}),
    ]
    .map(command);
    let refused = harness.apply(batch).expect_err("the second fails");
    assert_eq!(
        (refused.sequence, refused.failure),
        (3, Failure::reject("no"))
    );
    assert_eq!(harness.get("word/a"), Some(json!([1, 2])));

    let refused = harness
        .apply([command(json!({"retry": "x"}))])
        .expect_err("x is no number");
    assert_eq!(refused.failure.kind(), foldstream_sdk::FailureKind::Retry);
    harness.given([command(json!({"push": ["a", 4]}))]);
    assert_eq!(harness.get("word/a"), Some(json!([1, 2, 4])));
}

#[test]
fn keys_that_are_too_long_reject_their_event() {
    let long = "x".repeat(1_020);
    let mut harness = Harness::<Everything>::new();
    let refused = harness
        .apply([command(json!({"put": [long, []]}))])
        .expect_err("1,025 bytes");
    assert!(
        refused
            .to_string()
            .contains("a key has 1025 bytes; at most 1024 are allowed"),
        "{refused}"
    );
    harness.given([command(json!({"put": [&long[1..], []]}))]);
}

#[test]
fn queries_name_what_is_wrong_with_their_arguments() {
    let harness = given([]);
    assert_eq!(harness.query("no-arguments", Json::Null), Ok(json!(1)));
    assert_eq!(
        harness.query("unknown", Json::Null),
        Err(QueryError::UnknownQuery)
    );
    let Err(QueryError::InvalidArguments(message)) = harness.query("word", json!({})) else {
        panic!("not refused")
    };
    assert!(message.contains("expected a string"), "{message}");
    assert!(matches!(
        harness.query("word", Json::Null),
        Err(QueryError::InvalidArguments(_))
    ));
    assert_eq!(harness.query("days", Json::Null), Ok(json!([])));
}

/// Counts in a table per key of chance, to compare with a plain map.
#[test]
fn many_keys_in_many_batches_give_what_a_plain_map_gives() {
    let mut chance = fastrand::Rng::with_seed(7);
    let mut harness = Harness::<Everything>::new();
    let mut expected = BTreeMap::<String, Vec<u64>>::new();
    for _ in 0..60 {
        let mut batch = Vec::new();
        for _ in 0..chance.usize(1..80) {
            let word = format!("w{}", chance.u8(..40));
            if chance.u8(..8) == 0 {
                expected.remove(&word);
                batch.push(command(json!({"delete": word})));
            } else {
                let number = chance.u64(..100);
                expected.entry(word.clone()).or_default().push(number);
                batch.push(command(json!({"push": [word, number]})));
            }
        }
        harness.given(batch);
    }
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(word, numbers)| (format!("word/{word}"), json!(numbers)))
        .collect();
    assert_eq!(harness.entries("word/"), expected);
    harness.assert_same_for_any_batching();
}

/// Keeps a count outside its tables, which a projection must not.
struct Forgetful {
    table: Table<String, u64>,
    count: u64,
}

impl Projection for Forgetful {
    fn manifest() -> Manifest<Self> {
        Manifest::new("forgetful").subjects([">"])
    }

    fn open(state: &State) -> Self {
        Self {
            table: state.table("count"),
            count: 0,
        }
    }

    fn apply(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        self.count += 1;
        Ok(self.table.put(event.subject(), self.count)?)
    }
}

#[test]
#[should_panic(
    expected = "the result depends on the batches: count/a is 2 as given, and 1 in batches of 1, \
                restarted"
)]
fn state_outside_of_tables_is_found_by_the_harness() {
    let mut harness = Harness::<Forgetful>::new();
    harness.given([event("a", json!({})), event("a", json!({}))]);
    harness.assert_same_for_any_batching();
}

/// Opens tables whose names cannot be used together.
struct Twice;

impl Projection for Twice {
    fn manifest() -> Manifest<Self> {
        Manifest::new("twice").subjects([">"])
    }

    fn open(state: &State) -> Self {
        let _: (Table<String, u64>, Value<u64>) = (state.table("same"), state.value("same"));
        Self
    }

    fn apply(&mut self, _: &Event<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

#[test]
#[should_panic(expected = "two tables are named \"same\"; rename one")]
fn two_tables_of_one_name_are_refused() {
    Harness::<Twice>::new().given([event("a", json!({}))]);
}

#[test]
fn a_number_survives_being_stored_and_read() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let number = f64::from_bits(random.u64(..));
        if number.is_finite() {
            let text = serde_json::to_string(&number).expect("a finite number is JSON");
            let read: f64 = serde_json::from_str(&text).expect("was just written");
            assert_eq!(read.to_bits(), number.to_bits(), "{text}");
        }
    }
}
