//! Readers of one source that share a reader once they have caught up.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use foldstream::api::SourceState;
use foldstream::event::Event;
use foldstream::position::Checkpoint;
use foldstream::source::jetstream::{JetStream, Reader};
use foldstream::source::{Error, Request, Status, initial_status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::{backup, restore};
use crate::reading::{numbers, options, request};
use crate::server::{Server, Version, numbered, on_both_versions, orders, publish, until, within};

on_both_versions! {
    readers_that_have_caught_up_have_one_consumer_and_one_connection
    readers_that_share_lose_nothing_when_the_server_is_killed
}

const ALL: &[&str] = &[">"];
const PART: &[&str] = &["orders.1.placed"];

/// What a follower has received.
#[derive(Debug, Default)]
struct Received {
    events: Vec<Event>,
    checkpoint: Option<Checkpoint>,
    error: Option<Error>,
}

/// A task that reads as a deployment does, until its reader stops.
struct Follower {
    received: watch::Receiver<Received>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Follower {
    fn begin(source: &JetStream, request: Request) -> Self {
        let (sender, status) = watch::channel(initial_status());
        let checkpoint = request.resume.clone();
        let mut reader = source.read(request, sender);
        let (received, receiver) = watch::channel(Received {
            checkpoint,
            ..Received::default()
        });
        let task = tokio::spawn(async move { while take(&mut reader, &received).await {} });
        Self {
            received: receiver,
            status,
            task,
        }
    }

    /// Waits until it has come to a sequence; the numbers of its events.
    async fn through(&mut self, sequence: u64) -> Vec<u64> {
        let has_come = |received: &Received| {
            assert!(received.error.is_none(), "{:?}", received.error);
            let checkpoint = received.checkpoint.as_ref();
            checkpoint.is_some_and(|checkpoint| checkpoint.position >= sequence)
        };
        let received = within("a follower", self.received.wait_for(has_come)).await;
        numbers(&received.expect("the follower lives").events)
    }

    /// Stops; where it was.
    async fn stop(self) -> Option<Checkpoint> {
        self.task.abort();
        drop(self.task.await);
        self.received.borrow().checkpoint.clone()
    }

    /// Waits until its reader has stopped.
    async fn error(&mut self) -> String {
        let received = self.received.wait_for(|received| received.error.is_some());
        let received = within("an error", received).await;
        let error = received
            .expect("the follower lives")
            .error
            .as_ref()
            .map(Error::kind);
        error.expect("it has one").to_owned()
    }
}

/// Takes one batch; returns whether there may be more.
async fn take(reader: &mut Reader, received: &watch::Sender<Received>) -> bool {
    let result = reader.next().await;
    received.send_modify(|received| match result {
        Ok(batch) => {
            let before = received.checkpoint.as_ref();
            assert_eq!(
                batch.after,
                before.map_or(batch.after, |before| before.position),
                "batches follow each other"
            );
            received.checkpoint =
                Some(batch.checkpoint(before, batch.events.last(), batch.through));
            received.events.extend(batch.events);
        }
        Err(error) => received.error = Some(error),
    });
    received.borrow().error.is_none()
}

async fn consumers(jetstream: &jetstream::Context) -> usize {
    let mut stream = jetstream.get_stream("ORDERS").await.expect("stream");
    let info = stream.info().await.expect("its info");
    info.state.consumer_count
}

/// Waits until the stream has this many consumers.
async fn has_consumers(jetstream: &jetstream::Context, count: usize) {
    until("as many consumers as expected", async || {
        (consumers(jetstream).await == count).then_some(())
    })
    .await;
}

/// A stream with this many orders, a source, and this many followers that have caught up and share.
async fn shared(server: &Server, count: u64, followers: usize) -> (JetStream, Vec<Follower>) {
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..count)).await;
    let source = JetStream::new(options(server)).expect("the settings are sound");
    let followers = (0..followers).map(|_| Follower::begin(&source, request(ALL)));
    let mut followers: Vec<_> = followers.collect();
    for follower in &mut followers {
        follower.through(count).await;
    }
    has_consumers(&jetstream, 1).await;
    (source, followers)
}

/// All of them have all numbers up to this one, once and in order.
async fn assert_all_have(followers: &mut [Follower], count: u64) {
    for follower in followers {
        assert_eq!(
            follower.through(count).await,
            (0..count).collect::<Vec<_>>()
        );
    }
}

async fn readers_that_have_caught_up_have_one_consumer_and_one_connection(version: Version) {
    let server = Server::start_of(version).await;
    let (_source, mut followers) = shared(&server, 3_000, 8).await;
    let jetstream = server.jetstream().await;
    for end in 3_000..3_050 {
        publish(&jetstream, numbered(end..end + 1)).await;
    }
    publish(&jetstream, numbered(3_050..9_000)).await;
    assert_all_have(&mut followers, 9_000).await;
    has_consumers(&jetstream, 1).await;
    let heard = |follower: &Follower| follower.status.borrow().heard;
    let before = heard(&followers[7]);
    until("the heartbeats to be seen by all", async || {
        let all = followers.iter().all(|follower| heard(follower) > before);
        all.then_some(())
    })
    .await;
    // The follower that moves the reader may stop at any time.
    while followers.len() > 1 {
        followers.swap_remove(0).stop().await;
        let count = numbered_so_far(&mut followers).await;
        publish(&jetstream, numbered(count..count + 10)).await;
        assert_all_have(&mut followers, count + 10).await;
        assert_eq!(consumers(&jetstream).await, 1);
    }
    followers.remove(0).stop().await;
    has_consumers(&jetstream, 0).await;
}

async fn numbered_so_far(followers: &mut [Follower]) -> u64 {
    let received = followers[0].received.borrow();
    received.events.len() as u64
}

async fn readers_that_share_lose_nothing_when_the_server_is_killed(version: Version) {
    let mut server = Server::start_of(version).await;
    let (source, mut followers) = shared(&server, 100, 4).await;
    for round in 0..3 {
        server.kill();
        for follower in &mut followers {
            let state = |status: &Status| status.state == SourceState::Reconnecting;
            let told = within("the loss to be told", follower.status.wait_for(state)).await;
            assert!(told.expect("the reader lives").reconnects > round);
        }
        server.run().await;
        let jetstream = server.jetstream().await;
        let begin = 100 + 1_000 * round;
        publish(&jetstream, numbered(begin..begin + 1_000)).await;
        assert_all_have(&mut followers, begin + 1_000).await;
        has_consumers(&jetstream, 1).await;
    }
    // One that comes later reads alone first.
    followers.push(Follower::begin(&source, request(ALL)));
    assert_all_have(&mut followers, 3_100).await;
    has_consumers(&server.jetstream().await, 1).await;
    for follower in &mut followers {
        let state = follower.status.borrow().state;
        assert_eq!(state, SourceState::Reading);
    }
}

#[tokio::test]
async fn a_reader_of_other_subjects_does_not_share() {
    let server = Server::start().await;
    let (source, mut followers) = shared(&server, 100, 2).await;
    let jetstream = server.jetstream().await;
    let mut partial: Vec<_> = (0..2)
        .map(|_| Follower::begin(&source, request(PART)))
        .collect();
    for follower in &mut partial {
        follower.through(100).await;
    }
    has_consumers(&jetstream, 2).await;
    publish(&jetstream, numbered(100..2_000)).await;
    assert_all_have(&mut followers, 2_000).await;
    let wanted = partial[0].through(2_000).await;
    assert_eq!(partial[1].through(2_000).await, wanted);
    assert!(!wanted.is_empty() && wanted.len() < 2_000);
}

#[tokio::test]
async fn a_reader_that_is_too_slow_reads_alone_and_slows_nobody() {
    let server = Server::start().await;
    let (source, mut followers) = shared(&server, 100, 2).await;
    let jetstream = server.jetstream().await;
    let (sender, _status) = watch::channel(initial_status());
    let mut slow = source.read(request(ALL), sender);
    let received = watch::Sender::new(Received::default());
    while received.borrow().events.len() < 100 {
        take(&mut slow, &received).await;
    }
    has_consumers(&jetstream, 1).await;
    // Nobody asks it for more than the ring keeps.
    publish(&jetstream, numbered(100..60_000)).await;
    assert_all_have(&mut followers, 60_000).await;
    take(&mut slow, &received).await;
    assert_eq!(consumers(&jetstream).await, 2, "it was left behind");
    within("all events", async {
        while received.borrow().events.len() < 60_000 {
            take(&mut slow, &received).await;
        }
    })
    .await;
    assert_eq!(
        numbers(&received.borrow().events),
        (0..60_000).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_gap_stops_those_only_that_have_not_read_it() {
    let server = Server::start().await;
    let (source, mut followers) = shared(&server, 100, 3).await;
    let jetstream = server.jetstream().await;
    let behind = followers.remove(0).stop().await;
    publish(&jetstream, numbered(100..200)).await;
    assert_all_have(&mut followers, 200).await;
    let stream = jetstream.get_stream("ORDERS").await.expect("stream");
    stream.purge().sequence(151).await.expect("a purge");
    publish(&jetstream, numbered(200..300)).await;
    assert_all_have(&mut followers, 300).await;
    let resumed = Request {
        resume: behind,
        ..request(ALL)
    };
    let mut refused = Follower::begin(&source, resumed.clone());
    assert_eq!(refused.error().await, "source-gap");
    // With a permission it reads alone until that is used up.
    let mut accepting = Follower::begin(
        &source,
        Request {
            accepts_missing_through: 150,
            ..resumed
        },
    );
    accepting.through(300).await;
    publish(&jetstream, numbered(300..310)).await;
    assert_eq!(accepting.through(310).await, (150..310).collect::<Vec<_>>());
    let missing = accepting
        .received
        .borrow()
        .checkpoint
        .as_ref()
        .map(|checkpoint| checkpoint.missing);
    assert_eq!(missing, Some(50));
    assert_all_have(&mut followers, 310).await;
    has_consumers(&jetstream, 1).await;
}

#[tokio::test]
async fn a_stream_that_has_lost_its_tail_stops_all_that_share_and_each_says_why() {
    let mut server = Server::start().await;
    let jetstream = server.jetstream().await;
    jetstream.create_stream(orders()).await.expect("stream");
    publish(&jetstream, numbered(0..50)).await;
    let copy = backup(&mut server).await;
    publish(&server.jetstream().await, numbered(50..100)).await;
    let source = JetStream::new(options(&server)).expect("the settings are sound");
    let mut followers: Vec<_> = (0..3)
        .map(|_| Follower::begin(&source, request(ALL)))
        .collect();
    assert_all_have(&mut followers, 100).await;
    has_consumers(&server.jetstream().await, 1).await;
    restore(&mut server, &copy).await;
    for follower in &mut followers {
        assert_eq!(follower.error().await, "source-truncated");
        assert_eq!(follower.status.borrow().state, SourceState::Stopped);
    }
    // What grows again is another history, also for a reader that joins others.
    let jetstream = server.jetstream().await;
    publish(&jetstream, numbered(1_050..1_100)).await;
    let mut others: Vec<_> = (0..2)
        .map(|_| Follower::begin(&source, request(ALL)))
        .collect();
    for other in &mut others {
        other.through(100).await;
    }
    has_consumers(&jetstream, 1).await;
    let resume = followers.remove(0).stop().await;
    let mut resumed = Follower::begin(
        &source,
        Request {
            resume,
            ..request(ALL)
        },
    );
    assert_eq!(resumed.error().await, "source-diverged");
    has_consumers(&jetstream, 1).await;
}

#[tokio::test]
async fn readers_in_any_order_and_at_any_time_receive_each_event_once() {
    let server = Server::start().await;
    let jetstream = server.jetstream().await;
    let subjects = vec!["orders.>".to_owned(), "audit.>".to_owned()];
    let config = Config {
        subjects,
        ..orders()
    };
    jetstream.create_stream(config).await.expect("stream");
    let source = Arc::new(JetStream::new(options(&server)).expect("the settings are sound"));
    let publisher = tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(7);
        let mut next = 0;
        while next < 20_000 {
            let count = random.u64(1..200);
            publish(&jetstream, numbered(next..next + count)).await;
            let noise = (0..random.u64(0..20)).map(|_| ("audit.a".to_owned(), "{}".to_owned()));
            publish(&jetstream, noise).await;
            next += count;
        }
        let mut stream = jetstream.get_stream("ORDERS").await.expect("stream");
        (
            next,
            stream.info().await.expect("its info").state.last_sequence,
        )
    });
    let readers = (0..6).map(|seed| {
        let source = Arc::clone(&source);
        tokio::spawn(async move { restless(&source, seed).await })
    });
    let readers: Vec<_> = readers.collect();
    let (count, _) = publisher.await.expect("the publisher ends");
    for reader in readers {
        let events = within("a reader", reader).await.expect("it ends");
        let found = numbers(&events);
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
        assert!(found.len() as u64 >= 20_000 && found.len() as u64 <= count);
    }
}

/// Reads 20,000 events with calls that are given up, pauses and new readers in between.
async fn restless(source: &JetStream, seed: u64) -> Vec<Event> {
    let mut random = fastrand::Rng::with_seed(seed);
    let received = watch::Sender::new(Received::default());
    while received.borrow().events.len() < 20_000 {
        let checkpoint = received.borrow().checkpoint.clone();
        let begin = Request {
            resume: checkpoint,
            ..request(&["orders.>"])
        };
        let (sender, _status) = watch::channel(initial_status());
        let mut reader = source.read(begin, sender);
        for _ in 0..random.u32(1..200) {
            if received.borrow().events.len() >= 20_000 {
                break;
            }
            if random.u8(..) < 8 {
                let pause = Duration::from_millis(random.u64(1..30));
                tokio::time::sleep(pause).await;
            }
            tokio::select! {
                biased;
                _ = take(&mut reader, &received) => {}
                () = tokio::time::sleep(Duration::from_millis(random.u64(1..100))) => {}
            }
        }
    }
    received.send_replace(Received::default()).events
}
