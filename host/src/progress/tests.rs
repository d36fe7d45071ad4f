//! Claims about what a deployment shows while it runs.

use super::*;

fn lag(progress: &Progress) -> (u64, u64) {
    let now = progress.now();
    (now.head, now.pending)
}

fn batch(sequences: std::ops::RangeInclusive<u64>, head: u64) -> Batch {
    let event = |sequence| Event {
        sequence,
        time_ns: sequence * 10,
        subject: "a".into(),
        kind: "a".into(),
        headers: Vec::new(),
        data: crate::event::Payload::from("{}"),
    };
    let (events, through): (Vec<Event>, u64) =
        (sequences.clone().map(event).collect(), *sequences.end());
    let stream = Arc::new(crate::position::StreamIdentity {
        name: "S".to_owned(),
        created_ns: 1,
    });
    let (after, pending) = (sequences.start() - 1, head - through);
    Batch {
        events,
        after,
        through,
        head,
        pending,
        stream,
        last_seen: None,
        missing: Vec::new(),
        overlooked: 0,
        passed_over: Vec::new(),
        left_out: Vec::new(),
    }
}

#[test]
fn lag_grows_with_the_stream_while_nothing_is_read() {
    let progress = Progress::new(None, 0);
    progress.note_stream(1, 10, 4);
    assert_eq!(
        lag(&progress),
        (10, 6),
        "nothing is known but where the stream ends"
    );
    assert!(progress.asks_for_age(), "and not how old those events are");
    progress.note_stream(1, 15, 4);
    assert_eq!(lag(&progress), (15, 11), "each of the new ones may match");
    progress.note_stream(1, 12, 4);
    assert_eq!(lag(&progress), (15, 11), "an older look says nothing new");
    progress.note_oldest(7);
    assert_eq!(progress.now().oldest_ns, Some(7));
}

#[test]
fn an_earlier_end_of_the_stream_is_doubtful_until_it_lasts() {
    let progress = Progress::new(None, 0);
    progress.set_state(DeploymentState::Paused);
    progress.note_stream(1, 7, 0);
    progress.note_stream(1, 0, 0);
    assert!(progress.now().head_is_doubtful, "a leader may lag");
    assert_eq!(lag(&progress), (7, 7));
    progress.note_stream(1, 7, 0);
    assert!(!progress.now().head_is_doubtful, "it did");
    progress.note_stream(1, 2, 0);
    progress.inner.lock().head_seen_at -= EARLIER_HEAD_BELIEVED_AFTER;
    progress.note_stream(1, 2, 0);
    assert!(!progress.now().head_is_doubtful);
    assert_eq!(lag(&progress), (2, 2));
    progress.note_stream(3, 2, 0);
    assert_eq!(lag(&progress), (2, 0), "purged events do not wait");
}

#[test]
fn a_reader_that_begins_later_knows_where_the_stream_ends() {
    let progress = Progress::new(Some(0), 0);
    progress.note_stream(1, 7, 0);
    let run = progress.begin_reading();
    progress.note_read(run, &batch(1..=1, 1), BatchTurn::First);
    assert_eq!(lag(&progress), (1, 1), "it was made again");
    progress.note_stream(1, 9, 0);
    progress.note_read(run, &batch(2..=2, 2), BatchTurn::Later);
    assert_eq!(lag(&progress), (9, 9), "a later look knows more");
}

#[test]
fn lag_counts_what_was_read_and_not_applied_and_is_as_old_as_the_first_of_it() {
    let progress = Progress::new(Some(0), 0);
    let (one, other) = (batch(1..=4, 6), batch(5..=6, 9));
    let run = progress.begin_reading();
    progress.note_read(run, &one, BatchTurn::First);
    progress.note_read(run, &other, BatchTurn::Later);
    assert_eq!(
        (lag(&progress), progress.now().oldest_ns),
        ((9, 9), Some(10))
    );
    progress.note_applied(&one.events[..1]);
    assert_eq!(
        (lag(&progress), progress.now().oldest_ns),
        ((9, 8), Some(10)),
        "the next one is at least as young"
    );
    progress.note_applied(&one.events[1..]);
    assert_eq!(
        (lag(&progress), progress.now().oldest_ns),
        ((9, 5), Some(50))
    );
    progress.note_reading_ended();
    progress.note_read(run, &other, BatchTurn::Later);
    assert_eq!(
        (lag(&progress), progress.now().oldest_ns),
        ((9, 5), Some(50)),
        "what was read is still to be applied"
    );
}

#[test]
fn state_that_failed_is_retrying_until_something_is_durable_again() {
    let progress = Progress::new(Some(0), 0);
    assert_eq!(progress.note_state_failed("state: no space left"), 1);
    progress.note_started(1);
    assert_eq!(progress.note_state_failed("no space left"), 2);
    progress.note_started(1);
    progress.note_finished(&batch(1..=1, 1));
    let now = progress.now();
    let failure = now.failure.expect("it lasts");
    assert_eq!(
        (now.state, failure.attempts, failure.message.as_str()),
        (DeploymentState::Retrying, 2, "no space left")
    );
    progress.note_durable();
    assert_eq!(
        (progress.now().state, progress.now().failure),
        (DeploymentState::Live, None)
    );
}

#[test]
fn what_may_have_been_shown_ends_where_the_stream_did_when_it_was_first_reached() {
    let progress = Progress::new(None, 3);
    assert_eq!(progress.answers_from(), None);
    progress.note_stream(1, 2, 4);
    assert_eq!(
        progress.answers_from(),
        None,
        "another stream ends before the state"
    );
    progress.note_stream(1, 9, 4);
    progress.note_stream(1, 12, 4);
    assert_eq!(progress.answers_from(), Some(9));
    progress.note_nothing_shown();
    assert_eq!(progress.answers_from(), Some(3));
    progress.note_shown(7);
    assert_eq!(progress.answers_from(), Some(7));
}

#[test]
fn nothing_is_live_before_the_module_that_was_asked_for_last_has_begun() {
    let progress = Progress::new(Some(0), 0);
    let stream = Arc::new(crate::position::StreamIdentity {
        name: "S".to_owned(),
        created_ns: 1,
    });
    let nothing = |pending| Batch {
        events: Vec::new(),
        after: 5,
        through: 5,
        head: 9,
        pending,
        stream: Arc::clone(&stream),
        last_seen: None,
        missing: Vec::new(),
        overlooked: 0,
        passed_over: Vec::new(),
        left_out: Vec::new(),
    };
    progress.note_started(1);
    progress.note_finished(&nothing(2));
    assert_eq!(
        (progress.now().state, progress.now().begun),
        (DeploymentState::CatchingUp, false)
    );
    progress.note_finished(&nothing(0));
    assert_eq!(
        (progress.now().state, progress.now().begun),
        (DeploymentState::Live, true)
    );
    progress.note_awaited_start();
    progress.note_finished(&nothing(0));
    assert_eq!(
        (progress.now().state, progress.now().begun),
        (DeploymentState::CatchingUp, false)
    );
    progress.note_started(2);
    progress.note_finished(&nothing(0));
    assert_eq!(
        (progress.now().state, progress.now().begun),
        (DeploymentState::Live, true)
    );
}

#[test]
fn a_state_that_was_closed_in_good_order_answers_from_where_it_is() {
    let progress = Progress::new(None, 0);
    progress.note_opened(None, SeenBeyond::Unknown);
    assert_eq!(progress.answers_from(), None);
    progress.note_opened(None, SeenBeyond::Nothing);
    assert_eq!(progress.answers_from(), Some(0));
}

#[test]
fn who_takes_over_answers_from_no_earlier_than_the_one_before() {
    let knowing = Progress::new(None, 2);
    knowing.note_stream(1, 9, 0);
    let successor = Progress::new(Some(0), 0);
    successor.note_predecessor(&knowing.now(), 5);
    assert_eq!(successor.answers_from(), Some(9));
    // One before that never reached the stream may have shown anything up to where the stream ends.
    let unknowing = Progress::new(None, 2).now();
    let successor = Progress::new(Some(0), 0);
    successor.note_stream(1, 8, 0);
    successor.note_predecessor(&unknowing, 5);
    assert_eq!(successor.answers_from(), Some(8));
    let successor = Progress::new(Some(0), 0);
    successor.note_predecessor(&unknowing, 5);
    assert_eq!(successor.answers_from(), None);
    successor.note_stream(1, 4, 0);
    assert_eq!(
        successor.answers_from(),
        Some(5),
        "what it took over at was shown"
    );
}

#[tokio::test]
async fn a_milestone_wakes_those_who_wait_and_a_batch_that_only_raises_figures_does_not() {
    use futures_util::FutureExt as _;

    let progress = Progress::new(Some(0), 0);
    let run = progress.begin_reading();
    progress.note_started(1);
    progress.note_read(run, &batch(1..=4, 9), BatchTurn::First);
    progress.note_applied(&batch(1..=4, 9).events[..1]);
    let mut milestone = std::pin::pin!(progress.milestone());
    progress.note_applied(&batch(1..=4, 9).events[1..]);
    progress.set_memory(7);
    assert!(
        milestone.as_mut().now_or_never().is_none(),
        "it only got further"
    );
    progress.note_stopped("trap", "it divided by zero", Some(5));
    assert!(milestone.now_or_never().is_some(), "it failed");
    let milestone = progress.milestone();
    progress.note_started(1);
    assert!(
        milestone.now_or_never().is_some(),
        "a change before the first poll counts"
    );
}

#[test]
fn paused_deployment_names_no_next_attempt_and_no_open_breaker() {
    let progress = Progress::new(Some(0), 0);
    let cause = Cause {
        kind: "retry",
        class: None,
        message: "not yet",
        sequence: Some(7),
    };
    let next = NextAttempt {
        pause: Duration::from_secs(60),
        breaker_open: true,
    };
    progress.note_retry(&cause, 12, next);
    assert!(
        progress
            .now()
            .failure
            .is_some_and(|failure| failure.breaker_open)
    );
    progress.set_state(DeploymentState::Paused);
    let failure = progress.now().failure.expect("it failed before the pause");
    assert_eq!(
        (
            failure.next_attempt_at,
            failure.breaker_open,
            failure.attempts
        ),
        (None, false, 12)
    );
}
