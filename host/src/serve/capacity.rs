//! Limits concurrency: each kind of work has a fixed number of places, and
//! bodies and answers take memory from the host's budget. A request that gets
//! neither within a moment is asked to retry.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::problem::{Kind, Problem};
use crate::config::Config;
use crate::memory::{Memory, Purpose, Reservation, Shortage};

/// How long a request waits for a place: bursts pass, overload does not pile up.
const WAIT: Duration = Duration::from_secs(1);
/// How long a deploy waits: a whole fleet may be deployed at once, and every deploy should get its
/// turn.
const DEPLOY_WAIT: Duration = Duration::from_secs(30);
/// Concurrent scans and pages of events; each is short and occupies one blocking thread.
const SCANS_MAX: usize = 64;
/// Concurrent appends; many share one commit.
const APPENDS_MAX: usize = 256;
/// Concurrent deploys, from the check of an upload to the end. Only one is compiled at a time, and
/// the others wait on separate threads; checking a module takes several times its size in memory.
const DEPLOYS_MAX: usize = 4;
/// Memory for the body of a request is taken in pieces of this size, in bytes.
const BODY_PIECE: u64 = 64 << 10;
/// Answers up to this size are not charged, in bytes: a connection has one of them at a time, and
/// is charged itself.
const SMALL_ANSWER_BYTES: usize = 16 << 10;
/// What a request takes in addition to its answer on a connection that has many of them, in bytes.
const STREAM_BYTES: usize = 4 << 10;
/// Memory for the text of an answer is taken in pieces of this size, in bytes.
const TEXT_PIECE: u64 = 64 << 10;
/// A page of events or entries takes at most one of this many parts of the memory of all requests,
/// so that a small host can answer several of them.
const PAGE_PART: u64 = 8;
/// Smallest limit of such a page, in bytes.
const PAGE_BYTES_MIN: u64 = 64 << 10;

pub(super) struct Capacity {
    watches_max: usize,
    queries: Arc<Semaphore>,
    /// Queries that one deployment may run at once: half of all, so that a module whose queries do
    /// not end leaves places to its neighbours.
    queries_each: usize,
    /// The places of deployments with queries.
    queries_of: Mutex<HashMap<String, Arc<Semaphore>>>,
    pub(super) scans: Arc<Semaphore>,
    pub(super) appends: Arc<Semaphore>,
    deploys: Arc<Semaphore>,
    pub(super) watches: Arc<Semaphore>,
    memory: Memory,
}

/// The memory of a request's body; given back when dropped.
#[derive(Debug)]
pub(super) struct BodyRoom {
    memory: Reservation,
    /// How many times the body is in memory while it is processed.
    copies: u64,
}

impl BodyRoom {
    /// Takes the missing memory for a body of this many bytes; waits a moment for it.
    pub(super) async fn hold(&mut self, bytes: usize) -> Result<(), Problem> {
        let wanted = (bytes as u64)
            .saturating_mul(self.copies)
            .next_multiple_of(BODY_PIECE);
        // The share of bodies of the budget, whatever is free just now.
        let most = self.memory.most();
        if wanted > most {
            // It would be refused for ever.
            let detail = format!(
                "the body takes {wanted} bytes of memory, and this host has at most {most} for \
                 one; raise limits.memory_bytes, or send less at once"
            );
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        grow(&mut self.memory, wanted).await
    }
}

/// Waits a moment for memory.
async fn grow(memory: &mut Reservation, bytes: u64) -> Result<(), Problem> {
    let grown = memory.grow_within(WAIT, bytes).await;
    grown.map_err(|shortage| short(&shortage))
}

/// The memory of a page that is read and then written as text, taken before it is read.
#[derive(Debug)]
pub(super) struct PageRoom {
    /// For what is read.
    memory: Reservation,
    text: Reservation,
    /// Size at which the page should end, in bytes.
    pub(super) bytes_max: usize,
}

impl PageRoom {
    /// Writes the page as JSON, into memory that is taken as the text grows. The memory that
    /// remains is that of the text.
    pub(super) fn json(mut self, page: &impl Serialize) -> Result<(Bytes, Held), Problem> {
        let mut writer = Writer {
            text: Vec::new(),
            memory: &mut self.text,
            shortage: None,
        };
        let written = serde_json::to_writer(&mut writer, page);
        let (text, shortage) = (writer.text, writer.shortage);
        if let Some(shortage) = shortage {
            return Err(short(&shortage));
        }
        written.expect("pages are plain data, and memory takes all");
        // The size of what was read is free once its text exists.
        drop(self.memory);
        Ok((text.into(), Held::of(self.text)))
    }
}

/// Text that is charged as it grows.
struct Writer<'a> {
    text: Vec<u8>,
    memory: &'a mut Reservation,
    shortage: Option<Shortage>,
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = (self.text.len() + bytes.len()) as u64;
        if length > self.memory.bytes()
            && let Err(shortage) = self.memory.grow_to(length.next_multiple_of(TEXT_PIECE))
        {
            self.shortage = Some(shortage);
            // The serialiser only passes on that it failed; the reason is kept here.
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Memory that an answer already holds; an extension of its response.
#[derive(Clone, Debug)]
pub(super) struct Held(Arc<Mutex<Option<Reservation>>>);

impl Held {
    fn of(memory: Reservation) -> Self {
        Self(Arc::new(Mutex::new(Some(memory))))
    }
}

/// How a connection carries answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// One at a time.
    OneByOne,
    /// Many may wait on it, so small ones are charged as well.
    Multiplexed,
}

/// An answer that is charged until the connection has sent it.
struct Charged {
    bytes: Bytes,
    _memory: Reservation,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Capacity {
    pub(super) fn new(config: &Config, memory: Memory) -> Self {
        // A larger number would make the semaphore panic.
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            watches_max: config.serve.watches_max.min(Semaphore::MAX_PERMITS),
            queries: places(config.serve.queries_max),
            queries_each: config
                .serve
                .queries_max
                .div_ceil(2)
                .clamp(1, Semaphore::MAX_PERMITS),
            queries_of: Mutex::default(),
            scans: places(SCANS_MAX),
            appends: places(APPENDS_MAX),
            deploys: places(DEPLOYS_MAX),
            watches: places(config.serve.watches_max),
            memory,
        }
    }

    /// Room for a body that is in memory this many times while it is processed.
    pub(super) fn body(&self, copies: u64) -> BodyRoom {
        BodyRoom {
            memory: self.memory.reservation(Purpose::Request),
            copies,
        }
    }

    /// Waits for room for a page of at most `bytes_max` bytes, of what is read and of its text.
    pub(super) async fn page(&self, bytes_max: usize) -> Result<PageRoom, Problem> {
        // A small part, because many pages are answered at a time.
        let part = (self.memory.most_for(Purpose::Request) / PAGE_PART).max(PAGE_BYTES_MIN);
        let bytes = part.min(bytes_max as u64);
        let (mut memory, mut text) = (
            self.memory.reservation(Purpose::Request),
            self.memory.reservation(Purpose::Request),
        );
        // Both before anything is read: a page that is half written can't be given back.
        grow(&mut memory, bytes).await?;
        grow(&mut text, bytes).await?;
        Ok(PageRoom {
            memory,
            text,
            bytes_max: usize::try_from(bytes).unwrap_or(bytes_max),
        })
    }

    /// Charges the body of a response until it is sent: a client may take its time. A stream
    /// charges itself.
    pub(super) async fn charge(&self, mut response: Response, over: Transport) -> Response {
        let (uncharged, more) = match over {
            Transport::OneByOne => (SMALL_ANSWER_BYTES, 0),
            Transport::Multiplexed => (0, STREAM_BYTES),
        };
        let held = response
            .extensions_mut()
            .remove::<Held>()
            .and_then(|held| held.0.lock().take());
        let length = response
            .body()
            .size_hint()
            .exact()
            .and_then(|length| usize::try_from(length).ok());
        // A body without a known length is a stream, which charges itself.
        let Some(length) = length.filter(|length| *length > uncharged) else {
            return response;
        };
        let (parts, body) = response.into_parts();
        match axum::body::to_bytes(body, length)
            .await
            .map(|answer| self.answer(answer, more, held))
        {
            Ok(Ok(answer)) => Response::from_parts(parts, Body::from(answer)),
            Ok(Err(problem)) => problem.into_response(),
            Err(error) => {
                Problem::internal(format!("the answer can't be read: {error}")).into_response()
            }
        }
    }

    fn answer(
        &self,
        answer: Bytes,
        more: usize,
        held: Option<Reservation>,
    ) -> Result<Bytes, Problem> {
        let bytes = (answer.len() + more) as u64;
        let mut memory = held.unwrap_or_else(|| self.memory.reservation(Purpose::Request));
        // Shrunk first: the page may have reserved more than its text took.
        memory.shrink_to(bytes);
        memory.grow_to(bytes).map_err(|shortage| short(&shortage))?;
        Ok(Bytes::from_owner(Charged {
            bytes: answer,
            _memory: memory,
        }))
    }

    /// Memory for what a stream holds until its client reads it.
    pub(super) fn stream(&self) -> Reservation {
        self.memory.reservation(Purpose::Watch)
    }

    /// A place for a deploy.
    pub(super) async fn deploy(&self) -> Result<OwnedSemaphorePermit, Problem> {
        acquire_many(&self.deploys, 1, "deploys", DEPLOY_WAIT).await
    }

    /// Places for a query: one of its deployment, and one of all.
    pub(super) async fn query(
        &self,
        deployment: &str,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Problem> {
        // First its own, so that queries of one deployment wait for each other, not in the line of
        // all.
        let own = acquire(
            &self.queries_of(deployment),
            &format!("queries of {deployment}"),
        )
        .await?;
        Ok((own, acquire(&self.queries, "queries").await?))
    }

    fn queries_of(&self, deployment: &str) -> Arc<Semaphore> {
        let mut known = self.queries_of.lock();
        if let Some(places) = known.get(deployment) {
            return Arc::clone(places);
        }
        // Each permit and each waiting query holds the places of its deployment.
        known.retain(|_, places| Arc::strong_count(places) > 1);
        let places = Arc::new(Semaphore::new(self.queries_each));
        known.insert(deployment.to_owned(), Arc::clone(&places));
        places
    }

    /// Current number of watches.
    pub(super) fn watches_open(&self) -> u32 {
        u32::try_from(self.watches_max - self.watches.available_permits()).unwrap_or(u32::MAX)
    }

    /// A place for a watch: granted at once or not at all, because watches stay open.
    pub(super) fn watch(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.watches
            .clone()
            .try_acquire_owned()
            .map_err(|error| match error {
                TryAcquireError::NoPermits => busy("watches"),
                TryAcquireError::Closed => unreachable!("the semaphores are never closed"),
            })
    }
}

/// A place for one piece of work.
pub(super) async fn acquire(
    places: &Arc<Semaphore>,
    what: &str,
) -> Result<OwnedSemaphorePermit, Problem> {
    acquire_many(places, 1, what, WAIT).await
}

async fn acquire_many(
    places: &Arc<Semaphore>,
    count: u32,
    what: &str,
    wait: Duration,
) -> Result<OwnedSemaphorePermit, Problem> {
    match tokio::time::timeout(wait, places.clone().acquire_many_owned(count)).await {
        Ok(permit) => Ok(permit.expect("the semaphores are never closed")),
        Err(_) => Err(busy(what)),
    }
}

fn short(shortage: &Shortage) -> Problem {
    Problem::new(Kind::Busy, format!("{shortage}; try again in a moment"))
}

fn busy(what: &str) -> Problem {
    Problem::new(
        Kind::Busy,
        format!("the host already runs as many {what} as it allows; try again in a moment"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(bytes: u64) -> Capacity {
        Capacity::new(&Config::default(), Memory::new(bytes))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_take_memory_as_they_arrive_and_give_it_back() {
        let capacity = capacity(16 << 20);
        let mut first = capacity.body(2);
        first.hold(1).await.expect("there is enough");
        assert_eq!(capacity.memory.used_for(Purpose::Request), BODY_PIECE);
        first.hold(3 << 20).await.expect("there is enough");
        assert_eq!(
            capacity.memory.used_for(Purpose::Request),
            6 << 20,
            "it is there twice"
        );
        let mut second = capacity.body(1);
        let problem = second.hold(3 << 20).await.expect_err("half is for others");
        assert!(
            problem.kind() == Kind::Busy && problem.detail().starts_with("host-memory: "),
            "{problem:?}"
        );
        drop(first);
        second.hold(3 << 20).await.expect("there is some again");
        let problem = second
            .hold(7 << 20)
            .await
            .expect_err("more than it can ever get");
        assert!(
            problem.kind() == Kind::TooLarge && problem.detail().contains("limits.memory_bytes"),
            "{problem:?}"
        );
        drop(second);
        assert_eq!(capacity.memory.used(), 0);
    }

    async fn body_of(response: Response) -> Bytes {
        axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .expect("it is in memory")
    }

    #[tokio::test]
    async fn answer_is_charged_until_it_is_sent() {
        let capacity = capacity(16 << 20);
        let small = capacity
            .charge("few".into_response(), Transport::OneByOne)
            .await;
        assert_eq!(capacity.memory.used(), 0);
        let sent = body_of(
            capacity
                .charge(vec![7; 1 << 20].into_response(), Transport::OneByOne)
                .await,
        )
        .await;
        let rest = sent.slice(1_000..);
        drop((small, sent));
        assert_eq!(
            capacity.memory.used(),
            1 << 20,
            "a part of it is still to be sent"
        );
        drop(rest);
        assert_eq!(capacity.memory.used(), 0);
        let small = capacity
            .charge("few".into_response(), Transport::Multiplexed)
            .await;
        assert_eq!(
            capacity.memory.used(),
            3 + STREAM_BYTES as u64,
            "there may be many of them"
        );
        drop(small);
        let refused = capacity
            .charge(vec![7; 9 << 20].into_response(), Transport::OneByOne)
            .await;
        assert_eq!(
            refused.status(),
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            "too much"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn page_takes_its_memory_before_it_is_read_and_keeps_that_of_its_text() {
        let capacity = capacity(64 << 20);
        let room = capacity.page(4 << 20).await.expect("there is enough");
        assert_eq!((room.bytes_max, capacity.memory.used()), (4 << 20, 8 << 20));
        let others = [capacity.page(4 << 20).await, capacity.page(4 << 20).await];
        let problem = capacity
            .page(4 << 20)
            .await
            .expect_err("large ones leave a quarter to small ones");
        assert_eq!(problem.kind(), Kind::Busy);
        assert!(
            capacity
                .charge(vec![7; 1 << 20].into_response(), Transport::OneByOne)
                .await
                .status()
                .is_success(),
            "a small one is sent"
        );
        let (text, held) = room.json(&"x".repeat(1 << 20)).expect("there is enough");
        drop(others);
        let mut response = Body::from(text).into_response();
        response.extensions_mut().insert(held);
        let sent = body_of(capacity.charge(response, Transport::OneByOne).await).await;
        assert_eq!(capacity.memory.used(), sent.len() as u64);
        let room = capacity.page(4 << 20).await.expect("there is enough");
        let problem = room
            .json(&"\u{1}".repeat(5 << 20))
            .expect_err("its text is six times as long");
        assert!(
            problem.kind() == Kind::Busy && capacity.memory.used() == sent.len() as u64,
            "{problem:?}"
        );
        drop(sent);
        assert_eq!(capacity.memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn request_beyond_the_places_is_asked_to_come_back() {
        let places = Arc::new(Semaphore::new(1));
        let first = acquire(&places, "queries").await.expect("a place");
        assert_eq!(
            acquire(&places, "queries").await.expect_err("full").kind(),
            Kind::Busy
        );
        drop(first);
        drop(acquire(&places, "queries").await.expect("a place again"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_deployment_has_half_of_the_places_for_queries() {
        let mut config = Config::default();
        config.serve.queries_max = 4;
        let capacity = Capacity::new(&config, Memory::unlimited());
        let stuck = [
            capacity.query("greedy").await.expect("a place"),
            capacity.query("greedy").await.expect("a place"),
        ];
        let refused = capacity.query("greedy").await.expect_err("it has its half");
        assert_eq!(refused.kind(), Kind::Busy);
        let neighbours = [
            capacity.query("calm").await.expect("a place"),
            capacity.query("calm").await.expect("a place"),
        ];
        drop(stuck);
        drop(capacity.query("greedy").await.expect("a place again"));
        drop(neighbours);
        drop(capacity.query("third").await.expect("a place"));
        assert_eq!(
            capacity.queries_of.lock().len(),
            1,
            "nothing is kept for deployments without queries"
        );
    }
}
