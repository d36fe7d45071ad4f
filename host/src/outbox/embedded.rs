//! Releasing to an embedded log: exactly once.
//!
//! The log keeps a cursor for each lineage: the place of the last effect that it stored. It moves
//! in the commit of the append. Whatever happened before (a crash, an answer that was lost, a state
//! file from a backup), effects up to the cursor are stored and those after it are not. An effect that
//! a cursor may pass without its being stored (a delayed one, one with a condition, or one of an event
//! that was parked and is retried) has a note: a cursor of its own, which exists or not.
//!
//! If the state is from a backup, an effect may have a turn that had none before, and so no note. So
//! the log is read from the mark on after a start.

use std::collections::BTreeSet;

use super::{PASSED, Sent};
use crate::effects::{Lineage, PLACE_BYTES, Place, Row};
use crate::log::{self, CursorMove, Expectation, Log, NewEvent};
use crate::subject::Pattern;

/// Most events that are looked at to find out what is stored.
const LOOKED_AT_MAX: u64 = 1_000_000;
/// Most bytes of them: a start must not read a whole disk.
const LOOKED_AT_BYTES_MAX: u64 = 1 << 30;
/// Events that are read at once for that, and about how many bytes.
const LOOK: (usize, usize) = (1_000, 4 << 20);

/// What a log has stored of a lineage between two sequences.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// The places of the effects that were found.
    pub(super) places: BTreeSet<Place>,
    /// Why there may be more of them.
    pub(super) gap: Option<Gap>,
}

/// Why not all events between two sequences were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Gap {
    #[error("there are too many of them")]
    TooMany,
    #[error("the log has removed the first of them")]
    Removed,
}

/// Finds out what a log has stored of a lineage between two sequences. Blocking.
pub(super) fn stored_between(
    log: &Log,
    lineage: Lineage,
    (after, last): (u64, u64),
) -> Result<Stored, log::Error> {
    stored_within(log, lineage, (after, last), LOOKED_AT_BYTES_MAX)
}

fn stored_within(
    log: &Log,
    lineage: Lineage,
    (mut after, last): (u64, u64),
    mut bytes_left: u64,
) -> Result<Stored, log::Error> {
    let mut stored = Stored::default();
    if last.saturating_sub(after) > LOOKED_AT_MAX {
        stored.gap = Some(Gap::TooMany);
        return Ok(stored);
    }
    while after < last {
        let (events, through) = log.read(after, None, LOOK.0, LOOK.1)?;
        // Asked after the read, which continues behind what is removed while it runs.
        let first = log.info().first_sequence;
        if first == 0 || first > after.saturating_add(1) {
            stored.gap = Some(Gap::Removed);
        }
        let ids = events.iter().filter_map(|event| event.header("ce-id"));
        let places = ids.filter_map(|id| Place::of_id(id, lineage));
        stored.places.extend(places);
        let bytes: u64 = events.iter().map(|event| event.size() as u64).sum();
        // At least one further, so that nothing keeps it here.
        after = through.max(after + 1);
        if after < last && bytes > bytes_left {
            stored.gap = Some(Gap::TooMany);
            break;
        }
        bytes_left -= bytes.min(bytes_left);
    }
    Ok(stored)
}

/// The last event whose effects the log has stored, as its cursor says.
pub(super) fn reached(log: &Log, lineage: Lineage) -> Result<u64, log::Error> {
    let cursor = log.cursor(&lineage.to_string())?;
    Ok(cursor.map_or(0, |cursor| Place::from_bytes(cursor).sequence))
}

/// Sends effects of one lineage, in the order of their places, and delayed ones, in the order of
/// their times. Blocking.
pub(super) fn send(log: &Log, lineage: Lineage, rows: Vec<Row>, delayed: Vec<Row>) -> Sent {
    let name = lineage.to_string();
    let cursor = match log.cursor(&name) {
        Ok(cursor) => cursor,
        Err(error) => return Sent::nothing(error.to_string()),
    };
    // Places rise, so one comparison shows what the log has; except of those that have a turn.
    let is_passed = |row: &Row| {
        row.turn.is_none() && cursor.is_some_and(|cursor| row.place.to_bytes() <= cursor)
    };
    let (passed, new): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_passed);
    let mut sent = Sent::default();
    if let Err(error) = confirm_passed(log, &name, passed, &mut sent) {
        sent.trouble = Some(error.to_string());
        return sent;
    }
    // The cursor as it was read: if another owner has moved it since, nothing is appended.
    append((log, &name), cursor, new, &mut sent);
    append_delayed(log, &name, delayed, &mut sent);
    sent
}

/// Sorts effects that the cursor has passed by whether they are stored.
fn confirm_passed(
    log: &Log,
    name: &str,
    passed: Vec<Row>,
    sent: &mut Sent,
) -> Result<(), log::Error> {
    for row in passed {
        if row.effect.has_condition() && log.cursor(&note_name(name, row.place))?.is_none() {
            sent.conflicts.push((row, PASSED.to_owned()));
            continue;
        }
        sent.again += 1;
        sent.confirmed.push(row);
    }
    Ok(())
}

/// The name of the note of an effect.
fn note_name(name: &str, place: Place) -> String {
    let Place {
        sequence,
        sub,
        index,
    } = place;
    format!("{name}.{sequence}.{sub}.{index}")
}

/// The note of an effect, which does not exist before the effect does.
fn note(name: &str, place: Place) -> CursorMove {
    CursorMove {
        name: note_name(name, place),
        from: None,
        to: place.to_bytes(),
    }
}

/// The number of effects from the first one on that may be stored in one commit. One with a
/// condition is stored alone.
fn portion(rows: &[Row]) -> usize {
    let plain = rows.iter().take_while(|row| !row.effect.has_condition());
    let plain = plain.count();
    plain.max(1).min(rows.len())
}

/// Stores effects in one commit, if cursors are where they are expected; they move with it. Returns
/// the last sequence of the log.
fn store(log: &Log, rows: &[Row], cursors: Vec<CursorMove>) -> Result<u64, log::Error> {
    // A source that was a stream when the effect was made.
    let expires = |row: &Row| row.effect.delivery.time_to_live_s.is_some();
    if let Some(index) = rows.iter().position(expires) {
        let message = "it has a time to live, which an embedded log can't give it".to_owned();
        return Err(log::Error::Invalid { index, message });
    }
    let condition = rows
        .first()
        .and_then(|row| row.effect.delivery.condition.as_ref());
    let last_subject_sequence = match condition {
        None => None,
        // Checked when it was made, so this is damage.
        Some(condition) => match Pattern::parse(&condition.subjects) {
            Ok(pattern) => Some((pattern, condition.sequence)),
            Err(error) => {
                let message = error.to_string();
                return Err(log::Error::Invalid { index: 0, message });
            }
        },
    };
    let events: Vec<NewEvent> = rows.iter().map(event).collect();
    let expectation = Expectation {
        cursors,
        last_subject_sequence,
        ..Expectation::default()
    };
    let appended = log.append(&events, &expectation)?;
    Ok(appended.last_sequence)
}

/// Appends effects, in few commits.
fn append(
    (log, name): (&Log, &str),
    mut from: Option<[u8; PLACE_BYTES]>,
    mut rows: Vec<Row>,
    sent: &mut Sent,
) {
    while !rows.is_empty() {
        let count = portion(&rows);
        let next = &rows[..count];
        // The cursor says nothing about those that have a turn.
        let places = next.iter().filter(|row| row.turn.is_none());
        let to = places.last().map(|row| row.place.to_bytes());
        let moved = to.map(|to| CursorMove {
            name: name.to_owned(),
            from,
            to,
        });
        let noted = next.iter().filter(|row| row.has_note());
        let notes = noted.map(|row| note(name, row.place));
        let cursors = moved.into_iter().chain(notes).collect();
        match store(log, next, cursors) {
            Ok(last) => {
                from = to.or(from);
                sent.sequence = last;
                sent.confirmed.extend(rows.drain(..count));
            }
            Err(log::Error::Invalid { index, message }) => {
                // The effects before it are sound, and those after it wait for it.
                sent.refuse(
                    &rows[index],
                    format!("the log refuses an effect: {message}"),
                );
                rows.truncate(index);
            }
            // An operator had it sent, or it was retried, and the state is from before that.
            Err(log::Error::CursorMoved(moved)) if moved != name => {
                if !confirm_noted(name, &mut rows, &moved, sent) {
                    return;
                }
            }
            Err(error @ log::Error::Conflict { .. }) => {
                // Set aside before the cursor passes it, so not in this round.
                sent.conflicts.push((rows.remove(0), error.to_string()));
                return;
            }
            Err(error) => {
                // Whether it was stored is unknown; the cursor says so at the next attempt.
                sent.trouble = Some(error.to_string());
                return;
            }
        }
    }
}

/// Confirms the effect whose note exists; false if there is none.
fn confirm_noted(name: &str, rows: &mut Vec<Row>, moved: &str, sent: &mut Sent) -> bool {
    let is_it = |row: &Row| note_name(name, row.place) == moved;
    let Some(index) = rows.iter().position(is_it) else {
        sent.trouble = Some(log::Error::CursorMoved(moved.to_owned()).to_string());
        return false;
    };
    sent.again += 1;
    sent.confirmed.push(rows.remove(index));
    true
}

/// Appends delayed effects, each with a cursor of its own, because their places are not in the order
/// in which they leave.
fn append_delayed(log: &Log, name: &str, mut rows: Vec<Row>, sent: &mut Sent) {
    while !rows.is_empty() {
        let count = portion(&rows);
        let cursors = rows[..count].iter().map(|row| note(name, row.place));
        match store(log, &rows[..count], cursors.collect()) {
            Ok(last) => {
                sent.sequence = last;
                sent.confirmed.extend(rows.drain(..count));
            }
            // One of them is stored; the others are tried again without it.
            Err(log::Error::CursorMoved(moved)) => {
                if !confirm_noted(name, &mut rows, &moved, sent) {
                    return;
                }
            }
            // They have no order, so it holds nothing back.
            Err(log::Error::Invalid { index, message }) => {
                let row = rows.remove(index);
                sent.leaves_refused = true;
                sent.refuse(&row, format!("the log refuses an effect: {message}"));
            }
            Err(error @ log::Error::Conflict { .. }) => {
                sent.conflicts.push((rows.remove(0), error.to_string()));
            }
            Err(error) => {
                sent.trouble = Some(error.to_string());
                return;
            }
        }
    }
}

/// Without an id: the cursor says what is stored, and the id of a stranger's event must not hide
/// an effect.
fn event(row: &Row) -> NewEvent {
    let effect = &row.effect;
    NewEvent {
        subject: effect.subject.clone(),
        kind: Some(effect.kind.clone()),
        id: None,
        time_ns: None,
        headers: effect.headers.clone(),
        data: effect.data.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::{Condition, Delivery, Effect};
    use crate::event::Payload;

    fn row(sequence: u64) -> Row {
        let effect = Effect {
            subject: format!("out.{sequence}"),
            kind: "out".to_owned(),
            headers: Vec::new(),
            data: Payload::from("{}"),
            key: String::new(),
            delivery: Delivery::default(),
        };
        Row {
            target: "events".to_owned(),
            place: Place {
                sequence,
                sub: 0,
                index: 0,
            },
            turn: None,
            made_ns: 0,
            effect,
        }
    }

    fn subjects(log: &Log) -> Vec<String> {
        let (events, _) = log.read(0, None, 100, usize::MAX).expect("reads");
        events
            .into_iter()
            .map(|event| event.subject.to_string())
            .collect()
    }

    #[test]
    fn effects_are_stored_once_no_matter_who_sends_them_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log.redb");
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let sent = send(&log, Lineage(1), vec![row(1), row(2)], vec![]);
        assert_eq!(
            (sent.confirmed.len(), sent.again, sent.trouble),
            (2, 0, None)
        );
        drop(log);
        // The answer was lost, and the process was started again.
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let sent = send(&log, Lineage(1), vec![row(1), row(2), row(5)], vec![]);
        assert_eq!((sent.confirmed.len(), sent.again), (3, 2));
        assert_eq!(subjects(&log), ["out.1", "out.2", "out.5"]);
        // Another deployment has its own cursor.
        assert_eq!(send(&log, Lineage(2), vec![row(1)], vec![]).again, 0);
        assert_eq!(subjects(&log).len(), 4);
    }

    #[test]
    fn look_at_what_is_stored_ends_at_a_limit_of_bytes_and_names_what_was_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log.redb");
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let with_id = |sequence: u64| {
            let mut row = row(sequence);
            let id = row.place.id(Lineage(1));
            row.effect.headers = vec![("ce-id".to_owned(), id)];
            row
        };
        // Two reads are needed.
        let rows: Vec<Row> = (1..=1_500).map(with_id).collect();
        assert_eq!(send(&log, Lineage(1), rows, vec![]).confirmed.len(), 1_500);
        assert_eq!(reached(&log, Lineage(1)).expect("reads"), 1_500);
        let found = |range, bytes| {
            let found = stored_within(&log, Lineage(1), range, bytes).expect("reads");
            (found.places.len(), found.gap)
        };
        assert_eq!(found((0, 1_500), u64::MAX), (1_500, None));
        assert_eq!(found((1_500, 1_500), 0), (0, None));
        assert_eq!(found((700, 1_500), 0), (800, None), "one read is enough");
        assert_eq!(found((0, 1_500), 10), (1_000, Some(Gap::TooMany)));
        assert_eq!(found((0, 2_000_000), 10), (0, Some(Gap::TooMany)));
        drop(log);
        let options = log::Options {
            max_bytes: Some(2_000),
            ..log::Options::default()
        };
        let log = Log::open(&path, options).expect("opens");
        log.enforce_retention(None).expect("trims");
        let first = log.info().first_sequence;
        assert!((2..=1_500).contains(&first), "{first}");
        let last = log.info().last_sequence;
        let found = stored_between(&log, Lineage(1), (0, last)).expect("reads");
        assert_eq!(found.gap, Some(Gap::Removed));
        let behind = stored_between(&log, Lineage(1), (first - 1, last)).expect("reads");
        assert_eq!((behind.gap, behind.places), (None, found.places));
    }

    #[test]
    fn effect_that_the_log_refuses_holds_back_those_after_it_and_none_before_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = log::Options {
            event_bytes_max: 100,
            ..log::Options::default()
        };
        let log = Log::open(&folder.path().join("log.redb"), options).expect("opens");
        let mut large = row(2);
        large.effect.data = Payload::from("x".repeat(200));
        let sent = send(&log, Lineage(1), vec![row(1), large, row(3)], vec![]);
        assert_eq!(sent.confirmed, [row(1)]);
        assert!(
            sent.trouble
                .is_some_and(|trouble| trouble.contains("refuses"))
        );
        assert_eq!(subjects(&log), ["out.1"]);
    }

    #[test]
    fn delayed_effects_are_stored_once_in_the_order_in_which_they_are_due() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log.redb");
        let log = Log::open(&path, log::Options::default()).expect("opens");
        // A later place has left before.
        send(&log, Lineage(1), vec![row(9)], vec![row(7), row(3)]);
        drop(log);
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let sent = send(&log, Lineage(1), vec![], vec![row(7), row(5), row(3)]);
        assert_eq!(
            (sent.confirmed.len(), sent.again, sent.trouble),
            (3, 2, None)
        );
        assert_eq!(subjects(&log), ["out.9", "out.7", "out.3", "out.5"]);
    }

    #[test]
    fn effect_whose_condition_does_not_hold_is_a_conflict_and_is_not_passed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = Log::open(&folder.path().join("log.redb"), log::Options::default());
        let log = log.expect("opens");
        let on = |number: u64, sequence: u64| {
            let mut row = row(number);
            row.effect.delivery.condition = Some(Condition {
                subjects: "out.*".to_owned(),
                sequence,
            });
            row
        };
        let rows = vec![on(1, 0), row(2), on(3, 1), row(4)];
        let sent = send(&log, Lineage(1), rows, vec![on(8, 1), row(6)]);
        let places =
            |rows: Vec<&Row>| -> Vec<u64> { rows.iter().map(|row| row.place.sequence).collect() };
        assert_eq!(places(sent.confirmed.iter().collect()), [1, 2, 6]);
        let aside = sent.conflicts.iter().map(|(row, _)| row).collect();
        assert_eq!(
            places(aside),
            [3, 8],
            "the one behind waits until it is aside"
        );
        assert_eq!(sent.trouble, None);
        assert!(
            sent.conflicts[0].1.contains("expected last sequence 1"),
            "{:?}",
            sent.conflicts
        );
        // Its answer was lost: it is stored, and its condition no longer holds.
        assert_eq!(send(&log, Lineage(1), vec![on(1, 0)], vec![]).again, 1);
        // So it is with a delayed one.
        for again in [0, 1] {
            let sent = send(&log, Lineage(1), vec![], vec![on(11, 3)]);
            assert_eq!((sent.confirmed.len(), sent.again), (1, again), "{sent:?}");
        }
        let mut brief = row(10);
        brief.effect.delivery.time_to_live_s = Some(1);
        let sent = send(&log, Lineage(1), vec![row(9), brief], vec![]);
        assert!(sent.trouble.is_some_and(|why| why.contains("time to live")));
        assert_eq!(
            subjects(&log),
            ["out.1", "out.2", "out.6", "out.11", "out.9"]
        );
    }
}
