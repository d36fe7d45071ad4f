//! Deployments and their generations.

use super::each;
use crate::api;
use crate::overview;

impl From<overview::Deployment> for api::Deployment {
    fn from(value: overview::Deployment) -> Self {
        let overview::Deployment {
            name,
            generation,
            state,
            source,
            stream,
            source_status,
            position,
            checkpoint,
            head,
            lag_events,
            lag_seconds,
            missing_events,
            events_applied,
            begun,
            rate,
            remaining_seconds,
            repair_percent,
            state_bytes,
            memtable_bytes,
            pinned_bytes,
            file_bytes,
            guest_memory_bytes,
            instances,
            deployed_at,
            reason,
            failure,
            skipped,
            on_failure,
            failure_events,
            checks_events_after,
            parked,
            skips,
            outbox,
            inbox,
            lanes,
            timers,
            sagas,
            module,
            candidate,
            previous,
        } = value;
        Self {
            name,
            generation,
            state,
            source,
            stream,
            source_status: (&source_status).into(),
            position,
            checkpoint,
            head,
            lag_events,
            lag_seconds,
            missing_events,
            events_applied,
            begun,
            rate,
            remaining_seconds,
            repair_percent,
            state_bytes,
            memtable_bytes,
            pinned_bytes,
            file_bytes,
            guest_memory_bytes,
            instances,
            deployed_at,
            reason,
            failure: failure.map(Into::into),
            skipped,
            on_failure,
            failure_events: failure_events.map(Into::into),
            checks_events_after,
            parked: parked.into(),
            skips: each(skips),
            outbox: outbox.map(Into::into),
            inbox: inbox.map(Into::into),
            lanes: lanes.map(Into::into),
            timers: timers.map(Into::into),
            sagas: each(sagas),
            module: module.into(),
            candidate: candidate.map(shown),
            previous: previous.map(shown),
        }
    }
}

fn shown(generation: Box<overview::Generation>) -> Box<api::Generation> {
    Box::new((*generation).into())
}

impl From<overview::Generation> for api::Generation {
    fn from(value: overview::Generation) -> Self {
        let overview::Generation {
            number,
            status,
            reason,
            status_since,
            created_at,
            strategy,
            state_file,
            state,
            queued_behind,
            position,
            checkpoint,
            head,
            lag_events,
            progress,
            rate,
            remaining_seconds,
            source_status,
            missing_events,
            lacks_events,
            held_back,
            file_bytes,
            skipped,
            parked,
            state_bytes,
            failure,
            failed_at,
            checks_events_after,
            build,
            comparison,
            module,
        } = value;
        Self {
            number,
            status,
            reason,
            status_since,
            created_at,
            strategy,
            state_file,
            state,
            queued_behind,
            position,
            checkpoint,
            head,
            lag_events,
            progress,
            rate,
            remaining_seconds,
            source_status: source_status.as_ref().map(Into::into),
            missing_events,
            lacks_events,
            held_back,
            file_bytes,
            skipped,
            parked: parked.into(),
            state_bytes,
            failure: failure.map(Into::into),
            failed_at,
            checks_events_after,
            build: build.into(),
            comparison: comparison.map(Into::into),
            module: module.into(),
        }
    }
}

impl From<overview::FailureEvents> for api::FailureEvents {
    fn from(value: overview::FailureEvents) -> Self {
        let overview::FailureEvents { to, trouble } = value;
        Self { to, trouble }
    }
}

impl From<overview::Parked> for api::ParkedCounts {
    fn from(value: overview::Parked) -> Self {
        let overview::Parked {
            keys,
            events,
            bytes,
            since,
        } = value;
        Self {
            keys,
            events,
            bytes,
            since,
        }
    }
}

impl From<overview::Outbox> for api::Outbox {
    fn from(value: overview::Outbox) -> Self {
        let overview::Outbox {
            entries,
            bytes,
            delayed,
            conflicts,
            oldest_seconds,
            full,
            lineage,
            state_file,
            epoch,
            owned_after,
            effects_after,
            grants,
            not_granted,
            targets,
        } = value;
        Self {
            entries,
            bytes,
            delayed,
            conflicts,
            oldest_seconds,
            full,
            lineage,
            state_file,
            epoch,
            owned_after,
            effects_after,
            grants,
            not_granted,
            targets: each(targets),
        }
    }
}

impl From<overview::OutboxTarget> for api::OutboxTarget {
    fn from(value: overview::OutboxTarget) -> Self {
        let overview::OutboxTarget {
            source,
            promise,
            window_seconds,
            longest_wait_seconds,
            released,
            resent,
            trouble,
            since,
            reasons,
            reads_back,
        } = value;
        Self {
            source,
            promise,
            window_seconds,
            longest_wait_seconds,
            released,
            resent,
            trouble,
            since,
            reasons,
            reads_back: reads_back.map(|read| api::ReadBack {
                passed: read.passed,
                of: read.of,
            }),
        }
    }
}

impl From<overview::Timers> for api::Timers {
    fn from(value: overview::Timers) -> Self {
        let overview::Timers {
            pending,
            next_at,
            overdue_seconds,
            trouble,
            since,
            timer_loop,
        } = value;
        Self {
            pending,
            next_at,
            overdue_seconds,
            trouble,
            since,
            timer_loop: timer_loop.map(|found| api::TimerLoop {
                timer: found.timer,
                in_a_row: found.in_a_row,
                since: found.since,
            }),
        }
    }
}

impl From<overview::Lanes> for api::DeploymentLanes {
    fn from(value: overview::Lanes) -> Self {
        let overview::Lanes {
            count,
            split,
            collided,
            failed,
            gave_up,
            keys,
        } = value;
        Self {
            count,
            split,
            collided,
            failed,
            gave_up,
            keys,
        }
    }
}

impl From<overview::Inbox> for api::DeploymentInbox {
    fn from(value: overview::Inbox) -> Self {
        let overview::Inbox { ids, duplicates } = value;
        Self { ids, duplicates }
    }
}
