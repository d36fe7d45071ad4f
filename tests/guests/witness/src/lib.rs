//! A projection that records which events were applied, in which order, and how often: what is
//! true of a stream that loses events is then known from its state alone.
//!
//! `applied/<sequence>` has how many events were applied with it, the one before it, and its data,
//! so that an event applied twice or out of order breaks the chain.

wit_bindgen::generate!({ world: "projection", path: "../../../wit" });

use foldstream::module::state::{Direction, Selection, get, put_many, scan};
use foldstream::module::types::{ErrorPolicy, KeyRule, Limits, ModuleKind, QueryDescription};

const SUBJECTS: &str = if cfg!(feature = "calm") {
    "calm.>"
} else {
    "mine.>"
};

/// How many events were applied, and the last of them.
const HEAD: &str = "head";
const APPLIED: &str = "applied/";

struct Witness;

impl Guest for Witness {
    fn manifest() -> Manifest {
        Manifest {
            kind: ModuleKind::Projection,
            name: "witness".to_owned(),
            description: "Records which events were applied, and in which order".to_owned(),
            subjects: vec![SUBJECTS.to_owned()],
            wants_headers: false,
            key_rule: KeyRule::None,
            state_version: 1,
            error_policy: ErrorPolicy {
                attempts: None,
                initial_backoff_ms: None,
                max_backoff_ms: None,
            },
            limits: Limits {
                memory_bytes: None,
                deadline_ms: None,
                batch_events: None,
                state_bytes: None,
            },
            queries: vec![QueryDescription {
                name: "testimony".to_owned(),
                description: "A line for each event: its sequence, how many were applied with it, \
                              the one before it, and its data"
                    .to_owned(),
            }],
        }
    }

    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        let (mut count, mut last) = head();
        let mut entries = Vec::with_capacity(events.len() + 1);
        for event in &events {
            count += 1;
            let record = format!("{count} {last} {}", text(&event.data));
            last = event.sequence;
            entries.push((format!("{APPLIED}{last:012}"), Some(Payload::Text(record))));
        }
        entries.push((
            HEAD.to_owned(),
            Some(Payload::Text(format!("{count} {last}"))),
        ));
        put_many(&entries);
        Ok(())
    }

    fn query(name: String, _args: Payload) -> Result<Payload, QueryError> {
        if name != "testimony" {
            return Err(QueryError::UnknownQuery);
        }
        let (count, last) = head();
        let mut lines = format!("{count} {last}\n");
        let mut after: Option<String> = None;
        loop {
            let page = scan(
                &Selection::Prefix(APPLIED.to_owned()),
                after.as_deref(),
                Direction::Forwards,
                10_000,
            );
            for entry in &page.entries {
                let sequence = entry
                    .key
                    .trim_start_matches(APPLIED)
                    .trim_start_matches('0');
                lines.push_str(&format!("{sequence} {}\n", text(&entry.value)));
            }
            after = page.entries.into_iter().next_back().map(|entry| entry.key);
            if !page.more {
                return Ok(Payload::Text(lines));
            }
        }
    }
}

fn head() -> (u64, u64) {
    let known = get(HEAD).map(|head| text(&head)).unwrap_or_default();
    let mut numbers = known.split(' ').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn text(payload: &Payload) -> String {
    match payload {
        Payload::Text(text) => text.clone(),
        Payload::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

export!(Witness);
