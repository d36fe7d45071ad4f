//! How `show` and `doctor` describe the outbox of a handler.

use crate::api::{Outbox, OutboxTarget, Promise};
use crate::cli::support::output::{bytes, counted, grouped, span};

/// The rows of `show`.
pub(crate) fn rows(outbox: &Outbox) -> Vec<(&'static str, String)> {
    let mut rows = vec![("outbox", waiting(outbox))];
    if outbox.grants.is_empty() {
        rows.push((
            "may publish",
            "nothing; `foldstream deploy` with --allow-publish grants subjects".to_owned(),
        ));
    }
    rows.extend(
        outbox
            .grants
            .iter()
            .map(|grant| ("may publish", grant.clone())),
    );
    rows.extend(
        outbox
            .not_granted
            .iter()
            .map(|wanted| ("not granted", wanted.clone())),
    );
    if outbox.effects_after > 0 {
        rows.push((
            "publishes",
            format!("for events after {}", grouped(outbox.effects_after)),
        ));
    }
    if outbox.owned_after > 0 {
        let (file, position) = (outbox.state_file, grouped(outbox.owned_after));
        rows.push((
            "owner",
            format!(
                "state file {file}, since position {position} (epoch {})",
                outbox.epoch
            ),
        ));
    }
    rows.extend(outbox.targets.iter().map(|target| {
        (
            "target",
            format!("{}: {}", target.source, target_line(target)),
        )
    }));
    rows
}

fn waiting(outbox: &Outbox) -> String {
    if outbox.entries == 0 {
        return "empty".to_owned();
    }
    let full = if outbox.full {
        "; it is full, so no further events are handled"
    } else {
        ""
    };
    // Messages that have to wait do not count.
    let oldest = match outbox.oldest_seconds {
        seconds if seconds > 0.0 => format!(", the oldest for {}", span(seconds)),
        _ => String::new(),
    };
    let mut line = format!(
        "{} of {} wait{oldest}{full}",
        counted(outbox.entries, "message"),
        bytes(outbox.bytes),
    );
    if outbox.delayed > 0 {
        line.push_str(&format!(
            "; {} not before their time",
            grouped(outbox.delayed)
        ));
    }
    if outbox.conflicts > 0 {
        line.push_str(&format!(
            "; {} in conflict: `foldstream outbox list` says why, `outbox send` and `drop` decide",
            grouped(outbox.conflicts)
        ));
    }
    line
}

fn target_line(target: &OutboxTarget) -> String {
    let mut line = format!(
        "{} published since the host started",
        counted(target.released, "message")
    );
    match (target.promise, target.window_seconds) {
        (Some(Promise::Exact), _) => line.push_str(", each exactly once"),
        (Some(Promise::ReadBack), _) => {
            line.push_str(", each once: after a crash the host reads what the stream has stored");
        }
        (Some(Promise::Window), window) => {
            let window = window.map_or_else(|| "unknown".to_owned(), span);
            line.push_str(&format!(
                ", once within the window of {window} in which the stream recognises ids"
            ));
        }
        (Some(Promise::Lost), _) => line.push_str(", but the stream has lost some of them"),
        (None, _) => {}
    }
    if let Some(read) = target.reads_back {
        line.push_str(&format!(
            "; reads back what the stream has before it sends: {} of {}",
            grouped(read.passed),
            counted(read.of, "message")
        ));
    }
    if let Some(reasons) = reasons(target) {
        let since = target.since.as_deref().unwrap_or("a moment ago");
        line.push_str(&format!("; some messages wait since {since}: {reasons}"));
    }
    line
}

/// Why some messages wait; none if none does.
fn reasons(target: &OutboxTarget) -> Option<String> {
    let trouble = target.trouble.clone()?;
    // A host of an earlier release names one only.
    if target.reasons.is_empty() {
        return Some(trouble);
    }
    Some(target.reasons.join("; others: "))
}

/// What `doctor` says of the promise of a target.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Promised {
    /// It holds; how.
    Holds(String),
    /// It may not hold; why.
    MayFail(String),
}

/// Whether the promise of a target holds, for `doctor`.
pub(crate) fn judge(deployment: &str, target: &OutboxTarget) -> Promised {
    let source = &target.source;
    if let Some(reasons) = reasons(target) {
        return Promised::MayFail(format!(
            "some messages wait: {reasons}; the host tries again on its own"
        ));
    }
    match (target.promise, target.window_seconds) {
        (Some(Promise::Exact), _) => Promised::Holds(format!(
            "exact: {source} stores each message of {deployment} exactly once"
        )),
        (Some(Promise::ReadBack), _) => Promised::Holds(format!(
            "read-back: {source} stores each message of {deployment} once; a second host with a \
             copy of this data folder would send them again, unless the stream takes cursors \
             (subject _fs.cursors.> and atomic batches)"
        )),
        // Half of it is no margin for a longer outage.
        (Some(Promise::Window), Some(window)) if target.longest_wait_seconds >= window / 2.0 => {
            Promised::MayFail(format!(
                "window: {source} forgets ids after {}, and a message of {deployment} waited {} \
             for its confirmation; a message that waits longer than the window may be stored \
             twice: raise the stream's duplicate window",
                span(window),
                span(target.longest_wait_seconds)
            ))
        }
        (Some(Promise::Window), window) => Promised::Holds(format!(
            "window: {source} stores each message of {deployment} once if no outage or crash lasts \
             longer than {}",
            window.map_or_else(|| "its duplicate window".to_owned(), span)
        )),
        (Some(Promise::Lost), _) => Promised::MayFail(format!(
            "lost: the stream of {source} lacks messages of {deployment} that it had confirmed, \
             and they are not sent again; find out what it has, and publish the others by hand"
        )),
        (None, _) if target.released > 0 => Promised::Holds(format!(
            "what {deployment} has published to {source} is stored; the next message shows how \
             safe that is"
        )),
        (None, _) => Promised::Holds(format!(
            "nothing was published to {source} since the host started"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(promise: Promise) -> OutboxTarget {
        OutboxTarget {
            source: "orders".to_owned(),
            promise: Some(promise),
            window_seconds: (promise == Promise::Window).then_some(120.0),
            longest_wait_seconds: 0.2,
            released: 3,
            resent: 0,
            trouble: None,
            since: None,
            reasons: Vec::new(),
            reads_back: None,
        }
    }

    #[test]
    fn what_waits_and_how_safe_it_is_is_shown() {
        let outbox = Outbox {
            entries: 2,
            bytes: 2_048,
            conflicts: 1,
            oldest_seconds: 3.0,
            grants: vec!["a.>@orders".to_owned()],
            not_granted: vec!["b.>".to_owned()],
            targets: vec![target(Promise::Window)],
            ..Outbox::default()
        };
        let rows: Vec<String> = rows(&outbox)
            .into_iter()
            .map(|(name, line)| format!("{name}: {line}"))
            .collect();
        assert!(
            rows[0].starts_with("outbox: 2 messages of 2.0 KiB wait")
                && rows[0].contains("1 in conflict")
                && !rows[0].contains("before their time"),
            "{rows:?}"
        );
        assert_eq!(
            (rows[1].as_str(), rows[2].as_str()),
            ("may publish: a.>@orders", "not granted: b.>")
        );
        assert!(
            rows[3].contains(
                "3 messages published since the host started, once within the window of 2"
            ),
            "{rows:?}"
        );
    }

    #[test]
    fn thin_promise_is_named() {
        for promise in [Promise::Exact, Promise::Window] {
            let judged = judge("ship", &target(promise));
            assert!(matches!(judged, Promised::Holds(_)), "{judged:?}");
        }
        for (released, words) in [(0, "nothing was published"), (3, "is stored")] {
            let unknown = OutboxTarget {
                promise: None,
                released,
                ..target(Promise::Exact)
            };
            let judged = judge("ship", &unknown);
            assert!(
                matches!(&judged, Promised::Holds(found) if found.contains(words)),
                "{judged:?}"
            );
        }
        let slow = |longest_wait_seconds| OutboxTarget {
            longest_wait_seconds,
            ..target(Promise::Window)
        };
        let judged = judge("ship", &target(Promise::Lost));
        assert!(
            matches!(&judged, Promised::MayFail(words) if words.contains("by hand")),
            "{judged:?}"
        );
        let judged = judge("ship", &slow(59.0));
        assert!(matches!(judged, Promised::Holds(_)), "{judged:?}");
        // Of a window of 120 s.
        for waited in [61.0, 900.0] {
            let judged = judge("ship", &slow(waited));
            assert!(
                matches!(&judged, Promised::MayFail(words) if words.contains("may be stored twice")),
                "{judged:?}"
            );
        }
    }
}
