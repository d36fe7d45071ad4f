//! Releasing to an embedded log: exactly once.
//!
//! The log keeps a cursor for each lineage: the place of the last effect that it stored. It moves
//! in the commit of the append. Whatever happened before (a crash, an answer that was lost, a state
//! file from a backup), effects up to the cursor are stored and those after it are not.

use super::Sent;
use crate::effects::{Lineage, PLACE_BYTES, Row};
use crate::log::{self, CursorMove, Expectation, Log, NewEvent};

/// Sends effects of one lineage, in the order of their places. Blocking.
pub(super) fn send(log: &Log, lineage: Lineage, rows: Vec<Row>) -> Sent {
    let name = lineage.to_string();
    let cursor = match log.cursor(&name) {
        Ok(cursor) => cursor,
        Err(error) => return Sent::nothing(error.to_string()),
    };
    // Places rise, so one comparison shows what the log has.
    let is_stored = |row: &Row| cursor.is_some_and(|cursor| row.place.to_bytes() <= cursor);
    let (mut confirmed, mut new): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_stored);
    let again = confirmed.len() as u64;
    // The cursor as it was read: if another owner has moved it since, nothing is appended.
    let trouble = append(log, &name, cursor, &mut new);
    confirmed.append(&mut new);
    Sent {
        confirmed,
        again,
        trouble,
        ..Sent::default()
    }
}

/// Appends effects in one commit, and leaves those in `rows` that are stored.
fn append(
    log: &Log,
    name: &str,
    from: Option<[u8; PLACE_BYTES]>,
    rows: &mut Vec<Row>,
) -> Option<String> {
    let mut refused = None;
    loop {
        let Some(last) = rows.last() else {
            return refused;
        };
        let cursor = CursorMove {
            name: name.to_owned(),
            from,
            to: last.place.to_bytes(),
        };
        // Written again in each round, as the last one may have been cut off.
        let events: Vec<NewEvent> = rows.iter().map(event).collect();
        match log.append(
            &events,
            &Expectation {
                cursor: Some(cursor),
                ..Expectation::default()
            },
        ) {
            Ok(_) => return refused,
            Err(log::Error::Invalid { index, message }) => {
                // The effects before it are sound, and those after it wait for it.
                rows.truncate(index);
                refused = Some(format!("the log refuses an effect: {message}"));
            }
            Err(error) => {
                // Whether it was stored is unknown; the cursor says so at the next attempt.
                rows.clear();
                return Some(error.to_string());
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
    use crate::effects::{Effect, Place};
    use crate::event::Payload;

    fn row(sequence: u64) -> Row {
        let effect = Effect {
            subject: format!("out.{sequence}"),
            kind: "out".to_owned(),
            headers: Vec::new(),
            data: Payload::from("{}"),
            key: String::new(),
        };
        Row {
            target: "events".to_owned(),
            place: Place {
                sequence,
                sub: 0,
                index: 0,
            },
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
    fn effects_are_stored_once_whoever_sends_them_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("log.redb");
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let sent = send(&log, Lineage(1), vec![row(1), row(2)]);
        assert_eq!(
            (sent.confirmed.len(), sent.again, sent.trouble),
            (2, 0, None)
        );
        drop(log);
        // The answer was lost, and the process was started again.
        let log = Log::open(&path, log::Options::default()).expect("opens");
        let sent = send(&log, Lineage(1), vec![row(1), row(2), row(5)]);
        assert_eq!((sent.confirmed.len(), sent.again), (3, 2));
        assert_eq!(subjects(&log), ["out.1", "out.2", "out.5"]);
        // Another deployment has its own cursor.
        assert_eq!(send(&log, Lineage(2), vec![row(1)]).again, 0);
        assert_eq!(subjects(&log).len(), 4);
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
        let sent = send(&log, Lineage(1), vec![row(1), large, row(3)]);
        assert_eq!(sent.confirmed, [row(1)]);
        assert!(
            sent.trouble
                .is_some_and(|trouble| trouble.contains("refuses"))
        );
        assert_eq!(subjects(&log), ["out.1"]);
    }
}
