//! The part of a stream that belongs to one key, or to the keys with one prefix, according to a
//! module's key rule.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::Event;
use crate::module::{ApplyError, KeyRule};
use crate::pipeline::Fold;
use crate::runner::Part;
use crate::state::{Reads, Writer};
use crate::subject::SubjectSet;

/// Most digits of a fixed-width number that may be a key.
const DIGITS_MAX: usize = 40;

/// A selection of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One key.
    One(String),
    /// All keys that begin with this prefix.
    Prefix(String),
}

impl Keys {
    /// Whether a key is selected.
    pub(super) fn has(&self, key: &str) -> bool {
        match self {
            Self::One(wanted) => key == wanted,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }

    /// The selection in the notation for people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::One(key) => key.clone(),
            Self::Prefix(prefix) => format!("{prefix}…"),
        }
    }
}

/// Why the events of some keys can't be told from others.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPart {
    /// The module has no key rule.
    #[error(
        "its manifest declares no key rule, so the events of a key are unknown; rebuild all of it, \
         or declare one"
    )]
    NoKeyRule,
    /// The key makes no subject to read.
    #[error(transparent)]
    Subjects(#[from] crate::subject::Error),
}

/// An entry that does not belong to one key alone, or for which it is unclear which of its segments
/// is the key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` may not belong to one key alone")]
pub(super) struct SharedEntry {
    pub(super) entry: String,
}

/// Events of some keys.
#[derive(Clone, Debug)]
pub(super) struct KeyPart {
    keys: Keys,
    rule: KeyRule,
    wanted: SubjectSet,
    subjects: SubjectSet,
    /// Events of the part that were folded.
    folded: Arc<AtomicU64>,
    /// What their fold read and wrote.
    reads: Arc<Reads>,
}

impl KeyPart {
    /// The part of a module's events.
    pub(super) fn new(keys: Keys, rule: &KeyRule, wanted: &SubjectSet) -> Result<Self, NoPart> {
        // Checked here and not at the deploy: only a partial rebuild needs the rule.
        if *rule == KeyRule::None {
            return Err(NoPart::NoKeyRule);
        }
        let narrowed = narrowed(&keys, rule, wanted);
        let subjects = SubjectSet::parse(&narrowed)?;
        Ok(Self {
            keys,
            rule: rule.clone(),
            wanted: wanted.clone(),
            subjects,
            folded: Arc::default(),
            reads: Arc::default(),
        })
    }

    /// Whether the server is asked for fewer events than the module reads.
    pub(super) fn is_narrower(&self) -> bool {
        self.subjects.covering() != self.wanted.covering()
    }

    /// Counts the folded events of the part.
    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.folded)
    }

    /// What the fold of the part has read and written so far.
    pub(super) fn reads(&self) -> Arc<Reads> {
        Arc::clone(&self.reads)
    }

    fn has(&self, event: &Event) -> bool {
        self.wanted.matches(&event.subject)
            && self
                .rule
                .key_of(event)
                .is_some_and(|key| self.keys.has(&key))
    }
}

/// The patterns that cover the key's events, as narrow as possible.
fn narrowed(keys: &Keys, rule: &KeyRule, wanted: &SubjectSet) -> Vec<String> {
    let all = || {
        wanted
            .patterns()
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect()
    };
    // A prefix is no whole token, so the server cannot narrow by it.
    let Keys::One(key) = keys else { return all() };
    match rule {
        // A key with a character that no subject may have is in no subject: the module's own
        // patterns then find nothing.
        KeyRule::Subject if crate::subject::validate(key).is_ok() => vec![key.clone()],
        KeyRule::SubjectToken(number)
            // A dot would make two tokens of the key, and move all later ones.
            if crate::subject::validate(key).is_ok() && !key.contains('.') =>
        {
            // Tokens are counted from 1 in manifests.
            let index = (*number as usize).saturating_sub(1);
            wanted
                .patterns()
                .iter()
                .map(|pattern| with_token(pattern.as_str(), index, key))
                .collect()
        }
        _ => all(),
    }
}

/// A pattern with a token in place of its wildcard. `>` also covers subjects that end there, so it
/// stays.
fn with_token(pattern: &str, index: usize, token: &str) -> String {
    let mut tokens: Vec<&str> = pattern.split('.').collect();
    if tokens.get(index) == Some(&"*") {
        tokens[index] = token;
    }
    tokens.join(".")
}

impl Part for KeyPart {
    fn subjects(&self) -> SubjectSet {
        self.subjects.clone()
    }

    fn narrow(&self, fold: Box<dyn Fold>) -> Box<dyn Fold> {
        Box::new(PartFold {
            part: self.clone(),
            fold,
        })
    }

    fn needs_headers(&self) -> bool {
        matches!(self.rule, KeyRule::Header(_))
    }
}

/// A fold that sees only the part.
struct PartFold {
    part: KeyPart,
    fold: Box<dyn Fold>,
}

impl Fold for PartFold {
    fn apply(&mut self, events: &[Event], mut writer: Writer) -> (Writer, Result<(), ApplyError>) {
        let (places, own): (Vec<usize>, Vec<Event>) = events
            .iter()
            .enumerate()
            .filter(|(_, event)| self.part.has(event))
            .map(|(place, event)| (place, event.clone()))
            .unzip();
        // An empty batch would cost a guest call for nothing.
        if own.is_empty() {
            return (writer, Ok(()));
        }
        // Only reads of these events are noted; the writer may be used for others later.
        writer.note_reads(Some(Arc::clone(&self.part.reads)));
        let (mut writer, result) = self.fold.apply(&own, writer);
        writer.note_reads(None);
        if result.is_ok() {
            self.part
                .folded
                .fetch_add(own.len() as u64, Ordering::Relaxed);
        }
        // The index in the guest's own batch differs from the index in ours.
        let result = result.map_err(|error| match error {
            ApplyError::Retry { index, message } => ApplyError::Retry {
                index: places[index],
                message,
            },
            ApplyError::Rejected { index, message } => ApplyError::Rejected {
                index: places[index],
                message,
            },
            ApplyError::Invalid { index, message } => ApplyError::Invalid {
                index: places[index],
                message,
            },
            other => other,
        });
        (writer, result)
    }

    fn memory_bytes(&self) -> u64 {
        self.fold.memory_bytes()
    }

    fn wanted(&self) -> Option<tokio::sync::watch::Receiver<()>> {
        self.fold.wanted()
    }
}

/// Knows which entries of a state belong to some keys, learnt from the entries that a fold of their
/// events wrote.
///
/// The key of an entry is the table's name and further segments, joined by slashes. One of the
/// segments is the key of the events, at the same place in all entries of the table.
pub(super) struct Ownership {
    /// Place of the key's segment, by table.
    places: std::collections::BTreeMap<String, usize>,
    keys: Keys,
}

impl Ownership {
    /// Learns from the keys of entries.
    pub(super) fn learn<'a>(
        entries: impl Iterator<Item = &'a str>,
        keys: &Keys,
    ) -> Result<Self, SharedEntry> {
        let mut candidates: std::collections::BTreeMap<String, Vec<usize>> =
            std::collections::BTreeMap::new();
        for entry in entries {
            // Segment 0 is the table's name.
            let segments: Vec<&str> = entry.split('/').collect();
            let here = (1..segments.len()).filter(|place| is_key(segments[*place], keys));
            let here: Vec<usize> = here.collect();
            // What remains are the places that have the key in every entry of the table so far.
            let known = candidates
                .entry(segments[0].to_owned())
                .or_insert_with(|| here.clone());
            known.retain(|place| here.contains(place));
            if known.is_empty() {
                return Err(SharedEntry {
                    entry: entry.to_owned(),
                });
            }
        }
        let mut places = std::collections::BTreeMap::new();
        for (table, candidates) in candidates {
            // Two places that always hold the key cannot be told apart, so both could be wrong.
            match candidates[..] {
                [place] => places.insert(table, place),
                _ => {
                    return Err(SharedEntry {
                        entry: format!("{table}/…"),
                    });
                }
            };
        }
        Ok(Self {
            places,
            keys: keys.clone(),
        })
    }

    /// The tables that were written, with the place of the key's segment, counted from 1.
    pub(super) fn tables(&self) -> impl Iterator<Item = (&str, usize)> {
        self.places
            .iter()
            .map(|(table, place)| (table.as_str(), *place))
    }

    /// Whether entries of a table were written, so that it is known to whom they belong.
    pub(super) fn knows(&self, entry: &str) -> bool {
        self.places
            .contains_key(entry.split('/').next().unwrap_or_default())
    }

    /// Whether any segment of an entry after its table's name represents one of the keys.
    pub(super) fn names(&self, entry: &str) -> bool {
        entry
            .split('/')
            .skip(1)
            .any(|segment| is_key(segment, &self.keys))
    }

    /// Whether all entries that begin with a prefix belong to the keys.
    pub(super) fn has_all(&self, prefix: &str) -> bool {
        let Some((complete, _)) = prefix.rsplit_once('/') else {
            return false;
        };
        self.has(complete)
    }

    /// The prefixes of segments that represent the keys: a whole segment for one key.
    pub(super) fn beginnings(&self) -> std::collections::BTreeSet<String> {
        // The SDK escapes `%` and `/` in segments; code without the SDK may escape only the slash.
        let (Keys::One(text) | Keys::Prefix(text)) = &self.keys;
        let mut found = std::collections::BTreeSet::from([
            text.replace('/', "%2F"),
            text.replace('%', "%25").replace('/', "%2F"),
        ]);
        if let Keys::One(key) = &self.keys
            && !key.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_digit())
        {
            // A number may be written with any count of leading zeros.
            let digits = key.trim_start_matches('0');
            found.extend(
                (digits.len().max(1)..=DIGITS_MAX.max(key.len()))
                    .map(|width| format!("{digits:0>width$}")),
            );
        }
        found
    }

    /// Whether the selection is a single key.
    pub(super) fn is_of_one(&self) -> bool {
        matches!(self.keys, Keys::One(_))
    }

    /// Whether an entry belongs to the keys. Unknown for tables that their events did not change.
    pub(super) fn has(&self, entry: &str) -> bool {
        let mut segments = entry.split('/');
        let table = segments.next().unwrap_or_default();
        let segment = self
            .places
            .get(table)
            .and_then(|place| segments.nth(place - 1));
        segment.is_some_and(|segment| is_key(segment, &self.keys))
    }
}

/// Whether a segment represents a key: as it is, as the SDK escapes it, or as a fixed-width number.
fn is_key(segment: &str, keys: &Keys) -> bool {
    let plain = segment.replace("%2F", "/").replace("%25", "%");
    if keys.has(&plain) {
        return true;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match keys {
        Keys::One(key) if digits(key) && digits(segment) => {
            key.trim_start_matches('0') == segment.trim_start_matches('0')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn part(keys: Keys, rule: KeyRule, wanted: &[&str]) -> KeyPart {
        KeyPart::new(keys, &rule, &SubjectSet::parse(wanted).expect("sound")).expect("has a rule")
    }

    fn one(key: &str) -> Keys {
        Keys::One(key.to_owned())
    }

    fn subjects(part: &KeyPart) -> Vec<String> {
        part.subjects
            .patterns()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_server_is_asked_for_the_key_alone_where_a_pattern_can_say_so() {
        let token = KeyRule::SubjectToken(2);
        let narrow = part(
            one("42"),
            token.clone(),
            &["orders.*.placed", "orders.*.paid"],
        );
        assert_eq!(subjects(&narrow), ["orders.42.placed", "orders.42.paid"]);
        assert!(narrow.is_narrower());
        assert!(part(one("42"), token.clone(), &["orders.*.>"]).is_narrower());
        // A subject may end with the key, and no single pattern covers both it and longer ones.
        assert!(!part(one("42"), token.clone(), &["orders.>"]).is_narrower());
        assert!(!part(one("4.2"), token.clone(), &["orders.*.>"]).is_narrower());
        assert!(!part(Keys::Prefix("4".to_owned()), token, &["orders.*.>"]).is_narrower());
        assert_eq!(
            subjects(&part(one("orders.42"), KeyRule::Subject, &["orders.>"])),
            ["orders.42"]
        );
        assert!(!part(one("a"), KeyRule::Header("customer".into()), &["orders.>"]).is_narrower());
    }

    #[test]
    fn events_have_keys_by_each_rule() {
        let event = Event {
            sequence: 1,
            time_ns: 1,
            subject: "orders.42.placed".into(),
            kind: "placed".into(),
            headers: vec![("customer".into(), "ada".into())],
            data: Payload::from(r#"{"a":{"b":7},"n":null}"#),
        };
        let key = |rule: KeyRule| rule.key_of(&event);
        assert_eq!(key(KeyRule::Subject).as_deref(), Some("orders.42.placed"));
        assert_eq!(key(KeyRule::SubjectToken(2)).as_deref(), Some("42"));
        assert_eq!(key(KeyRule::SubjectToken(4)), None);
        assert_eq!(
            key(KeyRule::Header("customer".into())).as_deref(),
            Some("ada")
        );
        assert_eq!(
            key(KeyRule::DataPointer("/a/b".into())).as_deref(),
            Some("7")
        );
        assert_eq!(key(KeyRule::DataPointer("/n".into())), None);
        assert!(
            KeyPart::new(
                one("a"),
                &KeyRule::None,
                &SubjectSet::parse(&["a"]).expect("sound")
            )
            .is_err()
        );
    }

    #[test]
    fn all_entries_below_a_key_belong_to_it() {
        let owned = Ownership::learn(["day/42/2026", "rank/100/42"].into_iter(), &one("42"))
            .expect("all are of the key");
        assert!(
            owned.has_all("day/42/")
                && owned.has_all("day/42/2026-1")
                && owned.has_all("rank/7/42/")
        );
        assert!(
            !owned.has_all("day/")
                && !owned.has_all("day/42")
                && !owned.has_all("rank/42/")
                && !owned.has_all("")
        );
        assert!(
            owned.knows("day/7/x")
                && !owned.knows("flag/42")
                && owned.names("flag/42")
                && !owned.names("42/7")
        );
        let beginnings = owned.beginnings();
        assert!(beginnings.contains("42") && beginnings.contains("00042"));
        let slashed = Ownership::learn(["t/a%2Fb"].into_iter(), &one("a/b")).expect("escaped");
        assert_eq!(
            slashed.beginnings().into_iter().collect::<Vec<_>>(),
            ["a%2Fb"]
        );
    }

    #[test]
    fn entries_belong_to_the_key_that_is_in_their_names() {
        let written = [
            "customer/42",
            "day/42/2026-11-24",
            "rank/00000000000000000100/42",
        ];
        let owned = Ownership::learn(written.into_iter(), &one("42")).expect("all are of the key");
        assert!(owned.has("customer/42") && owned.has("rank/00000000000000000200/42"));
        assert!(
            !owned.has("note/42/x"),
            "of another table nobody knows which key it is of"
        );
        assert!(
            !owned.has("customer/43")
                && !owned.has("rank/00000000000000000042/7")
                && !owned.has("42")
        );
        let numbers =
            Ownership::learn(["customer/0000000042"].into_iter(), &one("42")).expect("a number");
        assert!(numbers.has("customer/0000000042") && !numbers.has("customer/0000000043"));
        assert_eq!(
            Ownership::learn(["customer/42", "head"].into_iter(), &one("42"))
                .err()
                .map(|shared| shared.entry)
                .as_deref(),
            Some("head")
        );
        let unclear = Ownership::learn(["kind/42/42"].into_iter(), &one("42"));
        assert_eq!(
            unclear.err().map(|shared| shared.entry).as_deref(),
            Some("kind/…"),
            "either could be the key"
        );
        let prefixed = Ownership::learn(["customer/42"].into_iter(), &Keys::Prefix("4".to_owned()))
            .expect("fits");
        assert!(prefixed.has("customer/43") && !prefixed.has("customer/53"));
    }
}
