//! What is left in a stream whose gaps say nothing: a mirror that leaves out sequences by design.
//!
//! A state knows how many events it has passed. If the server counts fewer up to the same position,
//! the stream has lost the others. Which ones they were is unknown.

use std::time::Duration;

use super::link::{Link, Trouble};
use super::open::trouble;
use super::wire::{self, Api, ConsumerConfig, StreamInfo};
use crate::source::{Had, Missing};

/// How often the server counts again if events arrive or go meanwhile.
const TRIES: u32 = 5;
/// How long the server keeps a consumer that was made for its count. It need not be deleted, which
/// takes a permission.
const CONSUMER_KEPT: Duration = Duration::from_secs(1);
/// Pause before the second count of a stream that several servers hold: the one that counts may lag
/// behind the others.
const CONFIRM_PAUSE: Duration = Duration::from_secs(2);

/// What the stream has lost of the events that a state has passed; none if it has lost nothing, or
/// if that is unknown.
pub(super) async fn lost(
    link: &mut Link,
    api: &Api,
    info: &StreamInfo,
    had: &Had<'_>,
) -> Result<Option<Missing>, Trouble> {
    let Some((_, through)) = had.events else {
        return Ok(None);
    };
    let mut count = lacking(link, api, had).await?;
    if count > 0 && info.is_replicated() {
        tokio::time::sleep(CONFIRM_PAUSE).await;
        count = count.min(lacking(link, api, had).await?);
    }
    Ok((count > 0).then_some(Missing {
        from: had.after + 1,
        to: through,
        count: Some(count),
    }))
}

/// How many of the events that a state has passed the stream lacks, at least.
async fn lacking(link: &mut Link, api: &Api, had: &Had<'_>) -> Result<u64, Trouble> {
    let Some((events, through)) = had.events else {
        return Ok(0);
    };
    for _ in 0..TRIES {
        // The one in the middle counts all, so what arrives or goes in between is seen by the others.
        let behind = count_from(link, api, had, through + 1).await?;
        let all = count_from(link, api, had, had.after + 1).await?;
        let still_behind = count_from(link, api, had, through + 1).await?;
        let left = all.saturating_sub(behind.min(still_behind));
        // Messages that are no events may be among those that are left, so it may lack more.
        let lacking = events.saturating_sub(left);
        if lacking > 0 || behind == still_behind {
            return Ok(lacking);
        }
    }
    Ok(0)
}

/// How many messages with a subject of the state the stream has from a sequence on.
async fn count_from(
    link: &mut Link,
    api: &Api,
    had: &Had<'_>,
    sequence: u64,
) -> Result<u64, Trouble> {
    let answer = link.permitted(count(api, had, sequence)).await?;
    answer.map_err(|error| trouble(&api.stream, &error))
}

async fn count(api: &Api, had: &Had<'_>, sequence: u64) -> Result<u64, wire::Error> {
    let mut sum = 0;
    // One by one: servers take only filters that do not overlap. What two patterns match is counted
    // twice, and then only less is found to be lost.
    for pattern in had.subjects.patterns() {
        let config = ConsumerConfig {
            name: format!("foldstream-{:016x}", fastrand::u64(..)),
            deliver_policy: "by_start_sequence",
            opt_start_seq: sequence,
            ack_policy: "none",
            replay_policy: "instant",
            filter_subject: Some(pattern.as_str()),
            inactive_threshold: u64::try_from(CONSUMER_KEPT.as_nanos()).expect("seconds fit"),
            num_replicas: 1,
            mem_storage: true,
        };
        sum += match api.create_consumer(&config).await {
            // It has no subject in common with the stream.
            Err(wire::Error::Refused {
                code: wire::FILTER_NOT_SUBSET,
                ..
            }) => 0,
            made => made?.num_pending,
        };
    }
    Ok(sum)
}
