//! Compares two states, entry by entry.
//!
//! Both are read in key order, page by page, so that memory use does not grow with them. A gate
//! says which differences are allowed.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::exact_json::Json;
use crate::event::Payload;
use crate::state::catalogue::{
    Comparison, ComparisonExample, Difference, DifferingPart, Gate, Rule,
};
use crate::state::{self, Key, Pages, SCAN_ENTRIES_MAX, Snapshot};

/// Differences to show.
const EXAMPLES_MAX: usize = 10;
/// Longest value or pointer in an example, in characters.
const VALUE_CHARS_MAX: usize = 200;
/// Parts of a value to show.
const PARTS_MAX: usize = 5;
/// Characters to show before the first difference of two texts.
const BEFORE_CHARS_MAX: usize = 20;
/// Most rules of a gate.
pub(crate) const RULES_MAX: usize = 100;

/// Compares all entries, or a sample of about `gate.sample`, at the position of both snapshots. A
/// sample saves comparing, not reading: which keys belong to it is known only from the keys.
/// Blocking.
pub(crate) fn compare(
    active: &Snapshot,
    candidate: &Snapshot,
    gate: &Gate,
) -> Result<Comparison, state::Error> {
    let mut found = Comparison {
        at: jiff::Timestamp::now().to_string(),
        position: candidate.position(),
        ..Comparison::default()
    };
    let threshold = match gate.sample {
        None => u64::MAX,
        Some(sample) => threshold(sample, active.entries_about()?),
    };
    // A merge of two sorted walks: the smaller of both next keys is looked at in each round.
    let (mut ours, mut theirs) = (Walk::new(active), Walk::new(candidate));
    loop {
        let key = match (ours.peek()?, theirs.peek()?) {
            (None, None) => break,
            (Some(key), None) | (None, Some(key)) => key,
            (Some(one), Some(other)) => one.min(other),
        };
        found.entries += 1;
        let pair = (ours.take(&key), theirs.take(&key));
        // With a sample that covers everything no key has to be hashed.
        if threshold == u64::MAX || hash(&key) <= threshold {
            found.compared += 1;
            judge(&key, pair, gate, &mut found);
        }
    }
    // A sample of a small state can be empty, and would prove nothing.
    if found.compared == 0 && found.entries > 0 {
        return compare(
            active,
            candidate,
            &Gate {
                sample: None,
                ..gate.clone()
            },
        );
    }
    found.examples.sort_by_key(|example| example.allowed);
    found.conclusion = conclusion(&found);
    Ok(found)
}

/// The name of the first timer that is not pending in both states at the same time; none if they
/// have the same timers. Blocking.
pub(crate) fn first_other_timer(
    one: &Snapshot,
    other: &Snapshot,
) -> Result<Option<String>, state::Error> {
    let mut after: Option<String> = None;
    loop {
        let ours = one.timers(after.as_deref(), SCAN_ENTRIES_MAX)?;
        let theirs = other.timers(after.as_deref(), SCAN_ENTRIES_MAX)?;
        // Both pages begin after the same name, so equal prefixes mean equal timers so far.
        // Pages end by size as well: both are compared as far as the shorter one.
        let count = ours.len().min(theirs.len());
        let differs = ours
            .iter()
            .zip(&theirs)
            .find(|(ours, theirs)| ours.0 != theirs.0 || !ours.1.is_as(&theirs.1));
        if let Some((ours, theirs)) = differs {
            return Ok(Some(ours.0.clone().min(theirs.0.clone())));
        }
        // One list is at its end: whatever the other one still has is a difference.
        if count == 0 {
            return Ok(ours.into_iter().chain(theirs).map(|(name, _)| name).next());
        }
        after = Some(ours[count - 1].0.clone());
    }
}

/// The largest hash of a key in a sample of about this many out of this many.
fn threshold(sample: u64, entries: u64) -> u64 {
    let part = sample as f64 / entries.max(1) as f64;
    if part >= 1.0 {
        u64::MAX
    } else {
        (part * u64::MAX as f64) as u64
    }
}

/// Spreads keys evenly, and in the same way on every machine.
fn hash(key: &str) -> u64 {
    let digest = Sha256::digest(key.as_bytes());
    u64::from_be_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
}

/// A walk over all entries in key order.
struct Walk<'a> {
    pages: Pages<'a>,
    page: std::vec::IntoIter<(Key, Payload)>,
    next: Option<(Key, Payload)>,
}

impl<'a> Walk<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            pages: snapshot.pages(SCAN_ENTRIES_MAX),
            page: Vec::new().into_iter(),
            next: None,
        }
    }

    /// The next key; none at the end.
    fn peek(&mut self) -> Result<Option<Key>, state::Error> {
        while self.next.is_none() {
            self.next = self.page.next();
            if self.next.is_some() {
                break;
            }
            let Some(page) = self.pages.next() else { break };
            self.page = page?.into_iter();
        }
        Ok(self.next.as_ref().map(|(key, _)| Key::clone(key)))
    }

    /// Takes the next entry if it has this key.
    fn take(&mut self, key: &Key) -> Option<Payload> {
        self.next
            .take_if(|(found, _)| found == key)
            .map(|(_, value)| value)
    }
}

fn judge(key: &Key, pair: (Option<Payload>, Option<Payload>), gate: &Gate, found: &mut Comparison) {
    let rule = rule_for(key, gate);
    let difference = match &pair {
        (None, Some(_)) => Difference::Added,
        (Some(_), None) => Difference::Removed,
        (Some(active), Some(candidate)) if active == candidate => return,
        (Some(active), Some(candidate)) if is_equal_but_for(active, candidate, rule) => {
            found.ignored += 1;
            return;
        }
        (Some(_), Some(_)) => Difference::Changed,
        (None, None) => return,
    };
    match difference {
        Difference::Added => found.added += 1,
        Difference::Removed => found.removed += 1,
        Difference::Changed => found.changed += 1,
    }
    let allowed = rule
        .map_or(&gate.allow, |rule| &rule.allow)
        .contains(&difference);
    found.refused += u64::from(!allowed);
    // Differences that are not allowed come first.
    let room = found.examples.len() < EXAMPLES_MAX;
    // Once the examples are full, an allowed one makes room for one that is not allowed.
    let replaceable = found
        .examples
        .iter()
        .rposition(|example| example.allowed)
        .filter(|_| !allowed);
    if !room && replaceable.is_none() {
        return;
    }
    let example = ComparisonExample {
        allowed,
        ..example(key, &pair, difference, rule)
    };
    if !room && let Some(index) = replaceable {
        found.examples.remove(index);
    }
    found.examples.push(example);
}

/// An example of a difference that is not allowed.
fn example(
    key: &Key,
    pair: &(Option<Payload>, Option<Payload>),
    difference: Difference,
    rule: Option<&Rule>,
) -> ComparisonExample {
    let text = |payload: &Option<Payload>| {
        let payload = payload.as_ref()?;
        Some(String::from_utf8_lossy(payload.as_bytes()).into_owned())
    };
    let (active, candidate) = (text(&pair.0), text(&pair.1));
    let parts = match pair {
        (Some(one), Some(other)) => differing_parts(one, other, rule),
        _ => Vec::new(),
    };
    let from = match (&active, &candidate) {
        (Some(one), Some(other)) if parts.is_empty() => before_difference(one, other),
        _ => 0,
    };
    ComparisonExample {
        key: key.to_string(),
        difference,
        parts,
        active: active.map(|text| shorten(&text, from)),
        candidate: candidate.map(|text| shorten(&text, from)),
        allowed: false,
    }
}

/// The first parts in which two JSON values differ, without those that a rule ignores.
fn differing_parts(one: &Payload, other: &Payload, rule: Option<&Rule>) -> Vec<DifferingPart> {
    let mut found = Vec::new();
    if let (Some(one), Some(other)) = (judged(one, rule), judged(other, rule)) {
        find_parts((Some(&one), Some(&other)), String::new(), &mut found);
    }
    found
}

/// Adds the parts in which two parts differ. Its depth is limited by that of a JSON text.
fn find_parts(
    pair: (Option<&Json>, Option<&Json>),
    pointer: String,
    found: &mut Vec<DifferingPart>,
) {
    if pair.0 == pair.1 || found.len() == PARTS_MAX {
        return;
    }
    match pair {
        (Some(Json::Object(one)), Some(Json::Object(other))) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                // RFC 6901; in this order, or the `~` of `~1` would be escaped again.
                let escaped = name.replace('~', "~0").replace('/', "~1");
                let pointer = format!("{pointer}/{escaped}");
                find_parts((one.get(name), other.get(name)), pointer, found);
            }
        }
        (Some(Json::List(one)), Some(Json::List(other))) => {
            for index in 0..one.len().max(other.len()) {
                let pointer = format!("{pointer}/{index}");
                find_parts((one.get(index), other.get(index)), pointer, found);
            }
        }
        (one, other) => {
            let text = |value: &Json| shorten(&value.to_string(), 0);
            found.push(DifferingPart {
                pointer: shorten(&pointer, 0),
                active: one.map(text),
                candidate: other.map(text),
            });
        }
    }
}

/// The number of characters to leave out at the begin of two texts, so that their first difference
/// is shown.
fn before_difference(one: &str, other: &str) -> usize {
    let both = one.chars().zip(other.chars());
    both.take_while(|(one, other)| one == other)
        .count()
        .saturating_sub(BEFORE_CHARS_MAX)
}

/// The rule with the longest prefix that the key has.
fn rule_for<'a>(key: &str, gate: &'a Gate) -> Option<&'a Rule> {
    gate.rules
        .iter()
        .filter(|rule| key.starts_with(&rule.prefix))
        .max_by_key(|rule| rule.prefix.len())
}

/// Whether two values differ only in parts that a rule ignores.
fn is_equal_but_for(one: &Payload, other: &Payload, rule: Option<&Rule>) -> bool {
    let Some(rule) = rule.filter(|rule| !rule.ignore.is_empty()) else {
        return false;
    };
    // A value that is no JSON has no parts to ignore, so it counts as different.
    let pair = (judged(one, Some(rule)), judged(other, Some(rule)));
    matches!(pair, (Some(one), Some(other)) if one == other)
}

/// A JSON value without the parts that a rule ignores; none if it is no JSON.
fn judged(payload: &Payload, rule: Option<&Rule>) -> Option<Json> {
    let mut value = Json::parse(payload.as_bytes())?;
    let ignored = rule.into_iter().flat_map(|rule| &rule.ignore);
    ignored.for_each(|pointer| value.remove(pointer));
    Some(value)
}

/// A text from a character on, with marks where something is left out.
fn shorten(text: &str, from: usize) -> String {
    let mut rest = text.chars().skip(from);
    let mut shown = if from > 0 { "…" } else { "" }.to_owned();
    shown.extend(rest.by_ref().take(VALUE_CHARS_MAX));
    if rest.next().is_some() {
        shown.push('…');
    }
    shown
}

fn conclusion(found: &Comparison) -> String {
    let differing = found.added + found.removed + found.changed;
    let all = found.compared == found.entries;
    let ignored = match found.ignored {
        0 => String::new(),
        ignored => format!("; {ignored} of them differ only in parts that the gate ignores"),
    };
    let text = match (differing, all) {
        (0, true) if found.ignored > 0 => {
            format!(
                "all {} entries are the same at position {}, except for parts that the gate ignores",
                found.entries, found.position
            )
        }
        (0, true) => format!(
            "all {} entries are the same at position {}",
            found.entries, found.position
        ),
        // The rule of three: if something did not happen in n independent trials, its rate is at
        // most 3/n, with 95 % confidence.
        (0, false) => format!(
            "none of {} sampled entries differs at position {}, so with 95 % confidence at most \
             {:.3} % of all {} do",
            found.compared,
            found.position,
            300.0 / found.compared.max(1) as f64,
            found.entries
        ),
        _ => format!(
            "{differing} of {} compared entries differ at position {}: {} added, {} removed, {} \
             changed; {} of them are not allowed",
            found.compared,
            found.position,
            found.added,
            found.removed,
            found.changed,
            found.refused
        ),
    };
    match (differing, all) {
        (0, _) => text + &ignored,
        _ if found.ignored > 0 => format!(
            "{text}; {} more differ only in parts that the gate ignores",
            found.ignored
        ),
        _ => text,
    }
}

/// Why a gate is not valid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidGate {
    /// It would compare nothing.
    #[error("a sample of 0 entries compares nothing; use 1 or more")]
    EmptySample,
    /// It has too many rules.
    #[error("the gate has {0} rules, {RULES_MAX} are allowed")]
    TooManyRules(usize),
    /// It ignores something that is not a JSON pointer.
    #[error("`{0}` is not a JSON pointer; write it like /updated_at")]
    NotAPointer(String),
}

/// Checks a gate.
pub fn check(gate: &Gate) -> Result<(), InvalidGate> {
    if gate.sample == Some(0) {
        return Err(InvalidGate::EmptySample);
    }
    if gate.rules.len() > RULES_MAX {
        return Err(InvalidGate::TooManyRules(gate.rules.len()));
    }
    let pointers = gate.rules.iter().flat_map(|rule| &rule.ignore);
    match pointers
        .into_iter()
        .find(|pointer| !pointer.starts_with('/'))
    {
        Some(pointer) => Err(InvalidGate::NotAPointer(pointer.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(active: &str, candidate: &str, rule: Option<&Rule>) -> ComparisonExample {
        let pair = (Some(active.into()), Some(candidate.into()));
        let key = Key::from("customer/42");
        example(&key, &pair, Difference::Changed, rule)
    }

    fn parts(active: &str, candidate: &str) -> Vec<String> {
        let shown = compared(active, candidate, None).parts.into_iter();
        let shown = shown.map(|part| {
            let [active, candidate] =
                [part.active, part.candidate].map(|text| text.unwrap_or_else(|| "-".to_owned()));
            format!("{} {active} → {candidate}", part.pointer)
        });
        shown.collect()
    }

    #[test]
    fn an_example_names_the_parts_that_differ_wherever_they_are() {
        let long = "x".repeat(500);
        let with = |delay: u64| format!(r#"{{"note":"{long}","delay_sum":{delay},"orders":1}}"#);
        assert_eq!(
            parts(&with(291_296), &with(345_522)),
            ["/delay_sum 291296 → 345522"]
        );
        assert_eq!(
            parts(
                r#"{"a":{"b/c":[1,2]},"d":1,"~":0}"#,
                r#"{"a":{"b/c":[1,3,4]},"e":[1],"~":1}"#
            ),
            [
                "/a/b~1c/1 2 → 3",
                "/a/b~1c/2 - → 4",
                "/d 1 → -",
                "/e - → [1]",
                "/~0 0 → 1"
            ]
        );
        assert_eq!(parts("1", "[1]"), [" 1 → [1]"]);
        assert_eq!(parts("[0,0,0,0,0,0,0]", "[1,1,1,1,1,1,1]").len(), PARTS_MAX);
        assert_eq!(parts(&format!("\"{long}\""), "1")[0].chars().count(), 206);
    }

    #[test]
    fn parts_that_the_gate_ignores_are_no_example() {
        let rule = Rule {
            prefix: String::new(),
            allow: Vec::new(),
            ignore: vec!["/at".to_owned()],
        };
        let example = compared(r#"{"at":1,"n":1}"#, r#"{"at":2,"n":2}"#, Some(&rule));
        let pointers: Vec<&str> = example.parts.iter().map(|part| &*part.pointer).collect();
        assert_eq!(pointers, ["/n"]);
    }

    #[test]
    fn numbers_beyond_64_bits_are_compared_digit_by_digit() {
        let [one, other] =
            [1, 2].map(|last| format!(r#"{{"at":{last},"balance":12345678901234567890{last}}}"#));
        let rule = Rule {
            prefix: String::new(),
            allow: Vec::new(),
            ignore: vec!["/at".to_owned()],
        };
        let (one, other): (Payload, Payload) = (one.as_str().into(), other.as_str().into());
        assert!(!is_equal_but_for(&one, &other, Some(&rule)));
        let parts = differing_parts(&one, &other, Some(&rule));
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].pointer, "/balance");
        assert_eq!(parts[0].active.as_deref(), Some("123456789012345678901"));
        assert_eq!(parts[0].candidate.as_deref(), Some("123456789012345678902"));
    }

    #[test]
    fn texts_are_shown_around_their_first_difference() {
        let long = "ü".repeat(500);
        let (one, other) = (format!("{long}one"), format!("{long}other"));
        let example = compared(&one, &other, None);
        let before = "ü".repeat(BEFORE_CHARS_MAX - 1);
        assert_eq!(
            (example.active, example.candidate),
            (
                Some(format!("…{before}one")),
                Some(format!("…{before}other"))
            )
        );
        // The same to a reader of JSON: what differs is the text.
        let example = compared("[1, 2]", "[1,2]", None);
        assert_eq!(example.active.as_deref(), Some("[1, 2]"));
        assert!(example.parts.is_empty());
    }
}
