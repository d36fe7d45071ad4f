//! How `show` describes the sagas of a handler.

use crate::api::{Saga, SagaGroup};
use crate::cli::support::output::{counted, grouped};

/// The rows of `show`: one per saga, and one per step at which instances wait.
pub(crate) fn rows(saga: &Saga) -> Vec<(&'static str, String)> {
    let waiting = saga.waiting.iter().map(|group| group.instances).sum();
    let ended = saga.ended.iter().filter(|(_, count)| **count > 0);
    let mut line = format!("{}: {} under way", saga.name, counted(waiting, "instance"));
    for (status, count) in ended {
        line.push_str(&format!(", {} {status}", grouped(*count)));
    }
    let ignored: u64 = saga.ignored.values().sum();
    if ignored > 0 {
        let kinds: Vec<_> = saga
            .ignored
            .iter()
            .map(|(kind, count)| format!("{} {kind}", grouped(*count)))
            .collect();
        line.push_str(&format!("; ignored: {}", kinds.join(", ")));
    }
    let mut rows = vec![("saga", line)];
    rows.extend(
        saga.waiting
            .iter()
            .map(|group| ("saga", group_line(saga, group))),
    );
    rows
}

fn group_line(saga: &Saga, group: &SagaGroup) -> String {
    let since = group
        .since
        .as_ref()
        .map(|since| format!(", the oldest since {since}"))
        .unwrap_or_default();
    format!(
        "{}: {} {} at {}{since}",
        saga.name,
        grouped(group.instances),
        group.status.name(),
        group.step
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SagaStatus;

    #[test]
    fn each_step_at_which_instances_wait_is_a_row() {
        let saga = Saga {
            name: "orders".to_owned(),
            waiting: vec![SagaGroup {
                status: SagaStatus::Running,
                step: "payment".to_owned(),
                instances: 3,
                since: Some("2026-11-23T10:00:00Z".to_owned()),
            }],
            ended: [("completed".to_owned(), 1_200)].into(),
            ignored: [("duplicate".to_owned(), 2)].into(),
        };
        assert_eq!(
            rows(&saga),
            [
                (
                    "saga",
                    "orders: 3 instances under way, 1,200 completed; ignored: 2 duplicate"
                        .to_owned()
                ),
                (
                    "saga",
                    "orders: 3 running at payment, the oldest since 2026-11-23T10:00:00Z"
                        .to_owned()
                ),
            ]
        );
    }
}
