//! How `show` describes the timers of a handler.

use crate::api::{TimerLoop, Timers};
use crate::cli::support::output::{counted, grouped, span};

/// The rows of `show`.
pub(crate) fn rows(timers: &Timers) -> Vec<(&'static str, String)> {
    let mut line = if timers.pending == 0 {
        "none pending".to_owned()
    } else {
        format!("{} pending", counted(timers.pending, "timer"))
    };
    if let Some(next) = &timers.next_at {
        line.push_str(&format!(", the next at {next}"));
    }
    if timers.overdue_seconds >= 1.0 {
        line.push_str(&format!(", {} ago", span(timers.overdue_seconds)));
    }
    let mut rows = vec![("timers", line)];
    rows.extend(timers.trouble.as_ref().map(|trouble| {
        let since = timers.since.as_deref().unwrap_or_default();
        (
            "timers",
            format!("some cannot fire since {since}: {trouble}"),
        )
    }));
    rows.extend(timers.timer_loop.as_ref().map(|found| {
        let words = format!("{}, since {}", looping(found), found.since);
        ("timers", words)
    }));
    rows
}

/// What a timer loop is, and what ends it.
pub(crate) fn looping(found: &TimerLoop) -> String {
    format!(
        "a timer loop: {} timers in a row set the next for less than a second later, the last one {:?}; one of them \
         fires a second; correct the module, or end the loop with `foldstream timers drop`",
        grouped(u64::from(found.in_a_row)),
        found.timer
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_a_row_of_its_own() {
        let quiet = Timers::default();
        assert_eq!(rows(&quiet), [("timers", "none pending".to_owned())]);
        let late = Timers {
            pending: 2,
            next_at: Some("2026-11-23T10:00:00.000000000Z".to_owned()),
            overdue_seconds: 120.0,
            trouble: Some("no stream stores subject _fs.timers.ship".to_owned()),
            since: Some("2026-11-23T10:00:01Z".to_owned()),
            timer_loop: Some(TimerLoop {
                timer: "poll".to_owned(),
                in_a_row: 1_024,
                since: "2026-11-23T10:00:02Z".to_owned(),
            }),
        };
        let rows = rows(&late);
        assert!(
            rows[0]
                .1
                .starts_with("2 timers pending, the next at 2026-11-23T10:00:00"),
            "{rows:?}"
        );
        assert!(rows[0].1.ends_with("ago"), "{rows:?}");
        assert!(rows[1].1.contains("no stream stores"), "{rows:?}");
        assert!(
            rows[2].1.contains("1,024 timers in a row") && rows[2].1.ends_with("10:00:02Z"),
            "{rows:?}"
        );
    }
}
