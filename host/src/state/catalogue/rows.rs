//! A row of the catalogue as text. If one of these tests fails, a field or a word of the rows has
//! changed: catalogues that exist have the text below, so it must still be read, and a release
//! before must be able to read the new text, or the format number rises.

use serde_json::{Value, json};

use super::Record;

/// A row with everything that a row can have.
fn full() -> Value {
    json!({
        "name": "orders",
        "active": 1,
        "next": 3,
        "generations": [generation(), candidate()],
        "repairs": 2,
        "skips": [{
            "sequence": 7,
            "reason": "known to be wrong",
            "at": "2026-01-01T00:00:01Z",
            "error": "rejected: no total",
            "event": {
                "subject": "orders.1.placed",
                "type": "placed",
                "time": "2026-01-01T00:00:00Z",
                "digest": "00ff",
            },
            "behind": [[9, 7]],
        }],
        "parking": {
            "on_failure": "park",
            "retry_by": 1,
            "events": {
                "subject": "ops.failures",
                "source": "events",
                "state_file": 1,
                "through": 4,
            },
        },
        "handler": {
            "lineage": "00000000000000ff",
            "state_file": 1,
            "epoch": 2,
            "effects_after": 3,
            "owned_after": 4,
            "grants": ["shipping.>@events"],
            "begun_as": "00000000000000fe",
        },
        "lanes": 4,
    })
}

/// A generation in use.
fn generation() -> Value {
    json!({
        "number": 1,
        "module": module(),
        "source": "events",
        "start": "first-available",
        "state_file": 1,
        "strategy": "migrate",
        "status": "active",
        "reason": "took over",
        "created_at": "2026-01-01T00:00:00Z",
        "status_since": "2026-01-01T00:00:02Z",
        "paused": false,
        "serves_from": 5,
        "has_served": true,
        "on_probation": true,
        "failed_at": null,
        "subjects_from": 6,
        "releases_before": 1,
        "build": { "promote": "auto" },
        "comparison": null,
        "accepts_missing_through": 8,
        "accepts_lost": true,
        "lacks_events": 0,
        "begins_after": 3,
        "failure": null,
        "lost_effects_after": 4,
        "checks_events_after": 2,
    })
}

/// A generation that failed, with a gate.
fn candidate() -> Value {
    json!({
        "number": 2,
        "module": module(),
        "source": "events",
        "start": "beginning",
        "state_file": 2,
        "strategy": "rebuild",
        "status": "failed",
        "reason": "it failed",
        "created_at": "2026-01-01T00:00:03Z",
        "status_since": "2026-01-01T00:00:04Z",
        "paused": true,
        "serves_from": 0,
        "has_served": false,
        "on_probation": false,
        "failed_at": 9,
        "subjects_from": 0,
        "releases_before": 0,
        "build": {
            "promote": "manual",
            "gate": {
                "allow": ["added"],
                "sample": 100,
                "rules": [{
                    "prefix": "order/",
                    "allow": ["removed", "changed"],
                    "ignore": ["/updated_at"],
                }],
            },
            "max_rate": 1_000,
            "cpu_percent": 50,
            "accept_missing": true,
        },
        "comparison": {
            "at": "2026-01-01T00:00:05Z",
            "against": 1,
            "position": 9,
            "compared": 10,
            "entries": 11,
            "added": 1,
            "removed": 2,
            "changed": 3,
            "refused": 4,
            "ignored": 5,
            "examples": [{
                "key": "order/1",
                "difference": "changed",
                "parts": [{ "pointer": "/total", "active": "1", "candidate": "2" }],
                "active": "{\"total\":1}",
                "candidate": "{\"total\":2}",
                "allowed": false,
            }],
            "conclusion": "4 differences",
        },
        "accepts_missing_through": 0,
        "accepts_lost": false,
        "lacks_events": 12,
        "failure": {
            "kind": "limit",
            "class": "state-limit",
            "message": "state-bytes: full",
            "sequence": 9,
            "first_at": "2026-01-01T00:00:04Z",
            "attempts": 1,
            "next_attempt_at": "2026-01-01T00:00:06Z",
            "breaker_open": true,
        },
    })
}

fn module() -> Value {
    json!({
        "digest": "ab",
        "size": 1,
        "kind": "handler",
        "name": "orders",
        "description": "Sums.",
        "subjects": ["orders.>"],
        "wants_headers": true,
        "key_rule": "subject-token:2",
        "state_version": 3,
        "error_policy": { "attempts": 5, "initial_backoff_ms": 10, "max_backoff_ms": 20 },
        "limits": {
            "memory_bytes": 1,
            "deadline_ms": 2,
            "batch_events": 3,
            "state_bytes": 4,
        },
        "queries": [{ "name": "top", "description": "The largest." }],
        "imports": ["foldstream:module/state@0.1.0"],
        "migrates": true,
        "publishes": ["shipping.>"],
        "inbox": { "id": "message-id", "window_ms": 1_000, "ids_max": 10 },
        "sets_timers": true,
    })
}

/// A row as it is written after it was read.
fn written_again(row: &Value) -> Value {
    let record: Record = serde_json::from_value(row.clone()).expect("the row is readable");
    serde_json::to_value(record).expect("a record is plain data")
}

#[test]
fn a_row_is_read_and_written_as_it_is_stored() {
    assert_eq!(written_again(&full()), full());
}

#[test]
fn words_of_rows_are_read_and_written_as_they_are_stored() {
    for (place, words) in [
        (
            "/generations/0/start",
            &["beginning", "first-available"][..],
        ),
        (
            "/generations/0/strategy",
            &["rebuild", "inherit", "migrate"],
        ),
        (
            "/generations/0/status",
            &[
                "building", "ready", "active", "previous", "retired", "failed",
            ],
        ),
        ("/generations/0/build/promote", &["auto", "manual"]),
        (
            "/generations/1/comparison/examples/0/difference",
            &["added", "removed", "changed"],
        ),
        ("/parking/on_failure", &["stop", "park"]),
        ("/lanes", &["auto"]),
    ] {
        for word in words {
            let mut row = full();
            *row.pointer_mut(place).expect("the row has it") = json!(word);
            assert_eq!(written_again(&row), row, "{place}");
        }
    }
}

#[test]
fn a_row_of_the_first_format_is_read() {
    let row = json!({
        "name": "orders",
        "active": 1,
        "next": 2,
        "generations": [{
            "number": 1,
            "module": {
                "digest": "ab",
                "size": 1,
                "kind": "projection",
                "name": "orders",
                "description": "",
                "subjects": ["orders.>"],
                "wants_headers": false,
                "key_rule": "none",
                "state_version": 1,
                "queries": [],
                "imports": [],
            },
            "source": "events",
            "start": "beginning",
            "state_file": 1,
            "strategy": "rebuild",
            "status": "active",
            "reason": "new",
            "created_at": "2026-01-01T00:00:00Z",
            "status_since": "2026-01-01T00:00:00Z",
            "paused": false,
            "serves_from": 0,
            "has_served": true,
            "on_probation": false,
            "build": {},
            "comparison": null,
        }],
    });
    let again = written_again(&row);
    // What a row lacks has the meaning that it had before there was such a field.
    assert_eq!(again.pointer("/parking/on_failure"), Some(&json!("stop")));
    assert_eq!(
        again.pointer("/generations/0/build/promote"),
        Some(&json!("auto"))
    );
    assert_eq!(again.pointer("/generations/0/failure"), Some(&Value::Null));
}
