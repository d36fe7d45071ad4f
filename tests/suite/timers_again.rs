//! Timers that are set again to the time that they had.

use serde_json::json;

use crate::timers::{event, names, pending, rang, start};

#[tokio::test]
async fn timer_that_is_set_again_for_the_same_past_time_fires_at_once_each_time() {
    let mut host = start("").await;
    // Each one waited twice as long as the one before, and the twelfth for minutes.
    for count in 1..=12 {
        let past = json!({ "name": "deadline", "at_ns": 1_000 });
        host.client().append(&[event("a", "set", &past)]).await;
        let rang = rang(host.client(), count).await;
        assert_eq!(names(&rang), vec!["a/deadline"; count]);
        // Nor does what was published before a crash count as a firing of it.
        if count == 6 {
            host.kill();
            host.restart().await;
        }
    }
    pending(host.client(), 0).await;
}
