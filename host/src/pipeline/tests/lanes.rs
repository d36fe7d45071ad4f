//! Claims about a pipeline whose folds have several lanes: what fails, stops, is parked or applied
//! later is the same as with one lane.

use super::parking::{Bed, Sequences};
use super::*;

/// What a run leaves: how it ended, why it stopped, and what is durable.
type Left = (
    bool,
    Option<(String, Option<u64>)>,
    (Sequences, Sequences, u64),
);

/// Folds random events, of which some fail, and retries what is parked.
fn left_by(seed: u64, lanes: usize) -> (Left, u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let count = random.u64(50..400);
    let mut bed = Bed::with_events(count);
    bed.stage.lanes = lanes;
    bed.stage.shuffle = random.bool().then(|| random.u64(..));
    let parks = random.bool();
    bed.stage.parks.store(parks, Ordering::Relaxed);
    bed.stage.parking_limits = ParkingLimits::default();
    for _ in 0..random.u8(0..4) {
        bed.bad.lock().insert(random.u64(1..=count));
    }
    let asked = matches!(bed.fold(), Ended::Asked);
    let failure = bed.stage.progress.now().failure;
    let failure = failure.map(|failure| (failure.message, failure.sequence));
    if parks {
        // The module is corrected, and one key is applied later.
        bed.bad.lock().clear();
        let parked = bed.durable().1;
        if let Some(key) = parked.keys().next() {
            bed.retry(&[key]);
        }
    }
    bed.stage.append(count + 1..=count + 20);
    bed.fold();
    let split = bed.stage.record.figures().split;
    ((asked, failure, bed.durable()), split)
}

#[test]
fn several_lanes_stop_park_and_retry_as_one_does() {
    let mut split = 0;
    for seed in 0..25 {
        let (one, _) = left_by(seed, 1);
        let (several, more) = left_by(seed, 2 + seed as usize % 2);
        assert_eq!(one, several, "seed {seed}");
        split += more;
    }
    assert!(split > 25, "lanes were used {split} times");
}

#[test]
fn a_deadline_in_a_lane_is_one_of_the_whole_batch() {
    let left = |lanes: usize| {
        let mut stage = Stage::with_events(600);
        (stage.lanes, stage.attempts) = (lanes, 1);
        // The event takes too long wherever it is.
        let slow: Mischief = Arc::new(|event, _| {
            (event.sequence == 431).then_some(ApplyError::Deadline(Duration::from_secs(1)))
        });
        let ended = matches!(stage.run(slow), Ended::Failed);
        let failure = stage.progress.now().failure.expect("it stopped");
        let kind = (failure.kind, failure.class, failure.message);
        (ended, kind, failure.sequence, durable(&stage.state()))
    };
    assert_eq!(left(1), left(2));
    assert_eq!(left(3).2, Some(431));
}
