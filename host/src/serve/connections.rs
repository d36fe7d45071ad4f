//! The connections of the server: how many there are, the memory of their buffers, and which ones are closed if there
//! are too many.
//!
//! A connection without a running request never keeps out another one: if places or memory are used up, those that have
//! been without a request for longest are closed. A head that is not complete is no request yet.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tower::Service;

use crate::descriptors;
use crate::memory::{Memory, Purpose, Reservation};

/// Memory of a connection with buffers of the usual size, in bytes.
pub(super) const CONNECTION_BYTES: usize = 16 << 10;
/// The part of it that is its read buffer.
const BUFFER_BYTES: usize = 8 << 10;
/// One address may hold this share of the connections, and at least this many, so that no single address takes every
/// place.
const PEER_SHARE: usize = 8;
const PEER_CONNECTIONS_MIN: usize = 32;
/// How many connections to close at a time: one of this many places, so that the search for them costs little, and at
/// least two, so that their number falls.
const CLOSED_SHARE: usize = 64;
const CLOSED_MIN: usize = 2;
/// A connection that waits for this long to write to its client may be closed if there are no idle ones.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// How long a new connection has for its first request before it counts as one that has none.
const NEW_FOR: Duration = Duration::from_secs(1);

/// All connections of a server. Cloning shares them.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    max: usize,
    max_of_peer: usize,
    /// Where the memory for buffers comes from.
    memory: Box<dyn Fn() -> Memory + Send + Sync>,
    begun: Instant,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Line>>,
    peers: HashMap<IpAddr, usize>,
    next: u64,
}

/// One connection.
pub(super) struct Line {
    number: u64,
    peer: IpAddr,
    begun: Instant,
    /// Running requests.
    requests: AtomicU32,
    /// Since when there is none, in milliseconds.
    idle_since: AtomicU64,
    /// Whether it had a request.
    has_served: AtomicBool,
    /// Since when it waits to write, in milliseconds; 0 if it does not.
    writing_since: AtomicU64,
    is_closing: AtomicBool,
    memory: Mutex<Reservation>,
    waker: AtomicWaker,
}

/// A place held by a connection; dropping it releases it.
pub(super) struct Place {
    connections: Connections,
    pub(super) line: Arc<Line>,
    /// Bytes that arrived since the last request.
    head: usize,
    /// Bytes that are charged.
    charged: usize,
}

/// Which connections to close.
#[derive(Clone, Copy)]
enum Among {
    All,
    Peer(IpAddr),
    /// Those with more than the usual memory.
    Grown,
}

impl Connections {
    /// At most `max` connections, whose buffers take memory from there.
    pub(super) fn new(max: usize, memory: impl Fn() -> Memory + Send + Sync + 'static) -> Self {
        Self::since(Instant::now(), max, Box::new(memory))
    }

    fn since(begun: Instant, max: usize, memory: Box<dyn Fn() -> Memory + Send + Sync>) -> Self {
        let max_of_peer = (max / PEER_SHARE).max(PEER_CONNECTIONS_MIN);
        Self(Arc::new(Shared { max, max_of_peer, memory, begun, table: Mutex::default() }))
    }

    /// A place for a connection, if need be that of an idle one.
    pub(super) fn admit(&self, stream: &TcpStream) -> io::Result<Place> {
        let full = |message| io::Error::new(io::ErrorKind::ConnectionRefused, message);
        if descriptors::is_among_the_last(stream.as_raw_fd()) && !self.close_some(Among::All) {
            return Err(full("there are too many open files"));
        }
        let peer = stream.peer_addr()?.ip().to_canonical();
        self.admit_from(peer).map_err(full)
    }

    fn admit_from(&self, peer: IpAddr) -> Result<Place, &'static str> {
        let (open, of_peer) = {
            let table = self.0.table.lock();
            (table.open.len(), table.peers.get(&peer).copied().unwrap_or(0))
        };
        // A local proxy speaks for many.
        if of_peer >= self.0.max_of_peer && !peer.is_loopback() && !self.close_some(Among::Peer(peer)) {
            return Err("there are too many connections from this address");
        }
        if open >= self.0.max && !self.close_some(Among::All) {
            return Err("there are too many connections");
        }
        let mut memory = (self.0.memory)().reservation(Purpose::Connection);
        while !memory.try_grow_to(CONNECTION_BYTES as u64) {
            if !self.close_some(Among::Grown) && !self.close_some(Among::All) {
                return Err("there is no memory for more connections");
            }
        }
        let mut table = self.0.table.lock();
        table.next += 1;
        let line = Arc::new(Line {
            number: table.next,
            peer,
            begun: self.0.begun,
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            has_served: AtomicBool::new(false),
            writing_since: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            memory: Mutex::new(memory),
            waker: AtomicWaker::new(),
        });
        line.idle_since.store(line.now(), Ordering::Relaxed);
        table.open.insert(line.number, Arc::clone(&line));
        *table.peers.entry(peer).or_default() += 1;
        Ok(Place { connections: self.clone(), line, head: 0, charged: CONNECTION_BYTES })
    }

    /// Closes those that have been idle for longest; if none is, those whose clients have read nothing for longest.
    /// Returns whether there were any. Their places and their memory are free at once.
    fn close_some(&self, among: Among) -> bool {
        let mut table = self.0.table.lock();
        let is_meant = |line: &&Arc<Line>| match among {
            Among::All => true,
            Among::Peer(peer) => line.peer == peer,
            Among::Grown => line.memory.lock().bytes() > CONNECTION_BYTES as u64,
        };
        let count = (self.0.max / CLOSED_SHARE).max(CLOSED_MIN);
        let meant = || table.open.values().filter(is_meant);
        let mut found: Vec<((bool, u64), u64)> = meant().filter_map(|line| Some((line.idle()?, line.number))).collect();
        if found.is_empty() {
            found = meant().filter_map(|line| Some(((true, line.stalled()?), line.number))).collect();
        }
        if found.len() > count {
            found.select_nth_unstable(count);
            found.truncate(count);
        }
        for (_, number) in &found {
            if let Some(line) = table.remove(*number) {
                line.close();
            }
        }
        !found.is_empty()
    }
}

impl Table {
    fn remove(&mut self, number: u64) -> Option<Arc<Line>> {
        let line = self.open.remove(&number)?;
        if let Some(count) = self.peers.get_mut(&line.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&line.peer);
            }
        }
        Some(line)
    }
}

impl Line {
    /// Milliseconds since the start of the server, and never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Since when it has been idle, if it is; in the order in which to close connections. First come those that never
    /// completed a request: one that did is more likely to be used again.
    fn idle(&self) -> Option<(bool, u64)> {
        let is_idle = self.requests.load(Ordering::Acquire) == 0 && self.writing_since.load(Ordering::Relaxed) == 0;
        let since = self.idle_since.load(Ordering::Relaxed);
        let is_new = self.now().saturating_sub(since) < NEW_FOR.as_millis() as u64;
        is_idle.then(|| (is_new || self.has_served.load(Ordering::Relaxed), since))
    }

    /// Since when it has waited to write, if that is long ago.
    fn stalled(&self) -> Option<u64> {
        let since = self.writing_since.load(Ordering::Relaxed);
        let is_stalled = since > 0 && self.now().saturating_sub(since) >= STALLED_AFTER.as_millis() as u64;
        is_stalled.then_some(since)
    }

    /// Lets the connection end at its next step, which is now.
    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.memory.lock().shrink_to(0);
        self.waker.wake();
    }

    /// Whether reading ends the connection: a request that began just before it was chosen is still answered.
    pub(super) fn must_end(&self) -> bool {
        self.is_closing() && self.requests.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// The task to wake if the connection is closed.
    pub(super) fn wake(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether it waits to write.
    pub(super) fn waits_to_write(&self, waits: bool) {
        if !waits {
            self.writing_since.store(0, Ordering::Relaxed);
        } else if self.writing_since.load(Ordering::Relaxed) == 0 {
            self.writing_since.store(self.now(), Ordering::Relaxed);
        }
    }
}

impl Place {
    /// Counts bytes that arrived, with the space that the read buffer still had. Returns false if there is no memory for
    /// a buffer of this size, and the connection has no request that would be lost.
    pub(super) fn has_read(&mut self, bytes: usize, space: usize) -> bool {
        let is_idle = self.line.requests.load(Ordering::Acquire) == 0;
        self.head = if is_idle { self.head + bytes } else { 0 };
        let wanted = CONNECTION_BYTES + (self.head + space).saturating_sub(BUFFER_BYTES);
        if wanted <= self.charged {
            return true;
        }
        // The buffer may keep its size for as long as the connection lives.
        while !self.line.memory.lock().try_grow_to(wanted as u64) {
            let others = self.connections.close_some(Among::Grown) || self.connections.close_some(Among::All);
            if !others || self.line.is_closing() {
                return !is_idle;
            }
        }
        self.charged = wanted;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.0.table.lock().remove(self.line.number);
        self.line.memory.lock().shrink_to(0);
    }
}

/// A service that counts the running requests of its connection: each until its answer was passed to the connection.
#[derive(Clone)]
pub(super) struct Counted<S> {
    service: S,
    line: Arc<Line>,
}

impl<S> Counted<S> {
    pub(super) fn new(service: S, line: Arc<Line>) -> Self {
        Self { service, line }
    }
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let running = Running::new(Arc::clone(&self.line));
        let response = self.service.call(request);
        Box::pin(async move {
            let response = response.await?;
            Ok(response.map(|body| Body::new(RunningBody { body, _running: running })))
        })
    }
}

/// A running request.
struct Running(Arc<Line>);

impl Running {
    fn new(line: Arc<Line>) -> Self {
        line.requests.fetch_add(1, Ordering::AcqRel);
        line.has_served.store(true, Ordering::Relaxed);
        Self(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
        if self.0.is_closing() {
            self.0.waker.wake();
        }
    }
}

/// The body of an answer, whose request runs until the body ends.
struct RunningBody {
    body: Body,
    _running: Running,
}

impl HttpBody for RunningBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn connections(max: usize, bytes: u64) -> (Connections, Memory) {
        let memory = Memory::new(bytes);
        let shared = memory.clone();
        (Connections::new(max, move || shared.clone()), memory)
    }

    #[test]
    fn one_that_is_idle_for_longest_makes_room_and_one_with_a_request_does_not() {
        let (connections, memory) = connections(4, 64 << 20);
        let mut places: Vec<Place> = (0..4).map(|_| connections.admit_from(MACHINE).expect("a place")).collect();
        let request = Running::new(Arc::clone(&places[0].line));
        for (number, place) in places.iter().enumerate() {
            place.line.idle_since.store(number as u64 + 1, Ordering::Relaxed);
        }
        places.push(connections.admit_from(MACHINE).expect("two make room"));
        let closing = |places: &[Place]| places.iter().map(|place| place.line.must_end()).collect::<Vec<_>>();
        assert_eq!(closing(&places), [false, true, true, false, false]);
        let requests: Vec<Running> = places[3..].iter().map(|place| Running::new(Arc::clone(&place.line))).collect();
        places.push(connections.admit_from(MACHINE).expect("one place is free"));
        let last = Running::new(Arc::clone(&places[5].line));
        assert!(connections.admit_from(MACHINE).is_err(), "all have a request");
        drop((request, requests, last, places));
        assert_eq!((memory.used(), connections.0.table.lock().open.len()), (0, 0));
        assert!(connections.0.table.lock().peers.is_empty());
    }

    #[test]
    fn address_with_many_connections_makes_room_for_itself() {
        let (connections, _memory) = connections(256, 64 << 20);
        let peer = IpAddr::from([192, 0, 2, 1]);
        let other = connections.admit_from(IpAddr::from([192, 0, 2, 2])).expect("a place");
        let places: Vec<Place> = (0..33).map(|_| connections.admit_from(peer).expect("a place")).collect();
        assert!(places[0].line.must_end() && !places[32].line.must_end() && !other.line.must_end());
        let busy: Vec<Running> = places.iter().map(|place| Running::new(Arc::clone(&place.line))).collect();
        let admit = || connections.admit_from(peer).map(|place| (Running::new(Arc::clone(&place.line)), place));
        let more: Vec<_> = (0..8).map(|_| admit()).collect();
        assert!(more.iter().any(Result::is_err), "they are all busy");
        assert!(connections.admit_from(MACHINE).is_ok(), "others are let in");
        drop((more, busy));
    }

    #[test]
    fn unfinished_heads_have_a_limit_together_and_the_oldest_ones_are_closed() {
        let (connections, memory) = connections(1_000, 16 << 20);
        let small = connections.admit_from(MACHINE).expect("a place");
        small.line.idle_since.store(1_000, Ordering::Relaxed);
        let mut places: Vec<Place> = (0..200).map(|_| connections.admit_from(MACHINE).expect("a place")).collect();
        for (number, place) in places.iter_mut().enumerate() {
            place.line.idle_since.store(number as u64 + 1, Ordering::Relaxed);
            assert!(place.has_read(60_000, 5_000), "a head that has just arrived");
        }
        assert!(memory.used_for(Purpose::Connection) <= 4 << 20, "{}", memory.used());
        assert!(places[0].line.must_end() && !places[199].line.must_end() && !small.line.must_end());
        drop((small, places));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn client_that_reads_nothing_makes_room_if_nobody_is_idle() {
        let begun = Instant::now().checked_sub(Duration::from_secs(60)).expect("the machine runs for longer");
        let connections = Connections::since(begun, 1, Box::new(Memory::unlimited));
        let place = connections.admit_from(MACHINE).expect("a place");
        let request = Running::new(Arc::clone(&place.line));
        place.line.waits_to_write(true);
        assert!(connections.admit_from(MACHINE).is_err(), "it may be slow");
        place.line.writing_since.store(1, Ordering::Relaxed);
        let other = connections.admit_from(MACHINE).expect("it was slow for long");
        assert!(place.line.is_closing() && !place.line.must_end() && !other.line.is_closing());
        drop(request);
    }
}
