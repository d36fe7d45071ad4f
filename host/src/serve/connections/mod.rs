//! The connections of the server: how many there are, the memory of their buffers, and which ones
//! are closed if there are too many.
//!
//! A connection without a running request never keeps out another one: if places or memory are used
//! up, those that have been without a request for longest are closed. A head that is not complete
//! is no request yet. What a connection holds is free once its buffers are, not when it is chosen
//! to be closed: until then, new connections wait, and so do those whose buffers must grow. This
//! bounds the memory however late a busy machine gets to the closing ones.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::descriptors;
use crate::memory::{Memory, Purpose, Reservation};

/// Memory of a connection with buffers of the usual size, in bytes.
pub(super) const CONNECTION_BYTES: usize = 16 << 10;
/// The part of it that is its read buffer.
const BUFFER_BYTES: usize = 8 << 10;
/// No buffer becomes larger than this, whatever arrives without a request, such as pings for days.
const HEAD_BYTES_MAX: usize = 128 << 10;
/// One address may hold this share of the connections, and at least this many, so that no single
/// address takes every place.
const PEER_SHARE: usize = 8;
const PEER_CONNECTIONS_MIN: usize = 32;
/// How many connections to close at a time: one of this many places, so that the search for them
/// costs little, and at least two, so that their number falls.
const CLOSED_SHARE: usize = 64;
const CLOSED_MIN: usize = 2;
/// New connections that wait for a place: one for this many places, and at most this many. Each
/// takes one descriptor and about a kilobyte that nobody is charged for.
const WAITING_SHARE: usize = 2;
const WAITING_MAX: usize = 1_024;
/// How long one waits for its place.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// A connection that waits for this long to write to its client may be closed if there are no idle
/// ones.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// How long a client may leave a part of an answer unread, and how many bytes it has to take per
/// second. These are for HTTP/2, whose answers are streams that a client may hold up one by one
/// while the connection itself looks healthy.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(30);
const UNREAD_BYTES_PER_SECOND: u64 = 4 << 10;
/// How long a new connection has for its first request before it counts as one that has none.
const NEW_FOR: Duration = Duration::from_secs(1);
/// Marks a connection without a request that was chosen to be closed, in its count of requests.
const CHOSEN: u32 = 1 << 31;

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

/// Locked before the memory of a connection, never after it.
#[derive(Default)]
struct Table {
    /// Those that may be chosen to be closed.
    open: HashMap<u64, Arc<Line>>,
    /// Those that were chosen and have not ended yet, with the bytes that they held when they were.
    closing: HashMap<u64, (Arc<Line>, u64)>,
    closing_bytes: u64,
    /// Those that wait until a closing one has ended, in the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    waiting_bytes: u64,
    waiting_places: usize,
    /// The open ones of each address.
    peers: HashMap<IpAddr, usize>,
    next: u64,
}

struct Waiting {
    wanted: Wanted,
    waker: Waker,
}

/// What one waits for.
#[derive(Clone, Copy)]
struct Wanted {
    /// A place, and not only memory.
    is_place: bool,
    bytes: u64,
}

pub(super) struct Line {
    connections: Connections,
    number: u64,
    peer: IpAddr,
    /// Running requests, and [`CHOSEN`]. This one number decides who closes an idle connection:
    /// either `choose` changes it from 0 before a request begins, or the request comes first.
    requests: AtomicU32,
    /// Since when there is none, in milliseconds. Relaxed, as the next two: a reader that
    /// mixes two moments closes a connection a little sooner or later.
    idle_since: AtomicU64,
    /// Requests so far.
    served: AtomicU32,
    /// Since when it waits to write, in milliseconds; 0 if it does not.
    writing_since: AtomicU64,
    /// What clients have been given of answers and not taken yet, on connections with many requests
    /// at a time.
    unread: Mutex<BTreeMap<u64, Unread>>,
    /// Whether it was chosen to be closed in spite of running requests.
    is_broken: AtomicBool,
    memory: Mutex<Reservation>,
    waker: AtomicWaker,
}

/// A part of an answer that waits for its client, in milliseconds.
struct Unread {
    since: u64,
    until: u64,
}

/// A place held by a connection; dropping it releases it.
pub(super) struct Place {
    pub(super) line: Arc<Line>,
    /// Bytes that arrived since the last request, and how many requests there had been then.
    head: usize,
    served: u32,
    /// Bytes that are charged.
    charged: usize,
    turn: PlaceInQueue,
}

/// A place in the queue of those that wait; dropping it leaves the queue.
struct PlaceInQueue {
    connections: Connections,
    /// Kept while it waits, so that it does not fall behind if there was too little for it.
    number: Option<u64>,
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
        Self(Arc::new(Shared {
            max,
            max_of_peer,
            memory,
            begun,
            table: Mutex::default(),
        }))
    }

    /// A place for a connection, if need be that of an idle one, once that has ended.
    pub(super) async fn admit(&self, stream: &TcpStream) -> io::Result<Place> {
        let full = |message| io::Error::new(io::ErrorKind::ConnectionRefused, message);
        // The last descriptors are for files of the host; a connection takes one only if another
        // one ends.
        if descriptors::is_among_the_last(stream.as_raw_fd()) && !self.makes_room() {
            return Err(full("there are too many open files"));
        }
        // An IPv4 client on an IPv6 socket counts as the same address.
        let peer = stream.peer_addr()?.ip().to_canonical();
        let mut turn = PlaceInQueue::new(self.clone());
        // A client that gives up meanwhile drops this, and leaves the queue.
        let admitted = tokio::time::timeout(
            WAIT_MAX,
            poll_fn(|context| self.poll_admit(peer, &mut turn, context)),
        );
        admitted
            .await
            .map_err(|_| full("no connection ended in time to make room"))?
            .map_err(full)
    }

    /// Whether any connections are about to end, or can be made to.
    fn makes_room(&self) -> bool {
        let mut table = self.0.table.lock();
        self.close_some(&mut table, Among::All, |_| false) || !table.closing.is_empty()
    }

    fn poll_admit(
        &self,
        peer: IpAddr,
        turn: &mut PlaceInQueue,
        context: &Context<'_>,
    ) -> Poll<Result<Place, &'static str>> {
        // Taken in each round, because the budget is another one before the host is ready.
        let mut memory = (self.0.memory)().reservation(Purpose::Connection);
        let mut table = self.0.table.lock();
        // Out of the queue while it looks, or it would wait for itself.
        table.remove_waiting(turn);
        let of_peer = table.peers.get(&peer).copied().unwrap_or(0);
        // A local proxy speaks for many.
        let is_full = of_peer >= self.0.max_of_peer && !peer.is_loopback();
        if is_full && !self.close_some(&mut table, Among::Peer(peer), |_| false) {
            drop(table);
            turn.end();
            return Poll::Ready(Err("there are too many connections from this address"));
        }
        // Those that are closing still hold their places.
        let has_place = table.open.len() + table.closing.len() < self.0.max;
        if has_place && memory.try_grow_to(CONNECTION_BYTES as u64) {
            let line = self.open(&mut table, peer, memory);
            drop(table);
            // After the table: leaving the queue locks it again.
            turn.end();
            // The connection waits later for memory, and then needs a turn of its own.
            let turn = PlaceInQueue::new(self.clone());
            return Poll::Ready(Ok(Place {
                line,
                head: 0,
                served: 0,
                charged: CONNECTION_BYTES,
                turn,
            }));
        }
        let queue_max = (self.0.max / WAITING_SHARE).clamp(1, WAITING_MAX);
        let wanted = Wanted {
            is_place: true,
            bytes: CONNECTION_BYTES as u64,
        };
        // One that waits already keeps its place, however long the queue is.
        let may_wait = turn.number.is_some() || table.waiting_places < queue_max;
        if may_wait && self.wait(&mut table, turn, wanted, context) {
            return Poll::Pending;
        }
        drop(table);
        turn.end();
        let reason = if has_place {
            "there is no memory for more connections"
        } else {
            "there are too many connections"
        };
        Poll::Ready(Err(reason))
    }

    fn open(&self, table: &mut Table, peer: IpAddr, memory: Reservation) -> Arc<Line> {
        table.next += 1;
        let line = Arc::new(Line {
            connections: self.clone(),
            number: table.next,
            peer,
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            served: AtomicU32::new(0),
            writing_since: AtomicU64::new(0),
            unread: Mutex::default(),
            is_broken: AtomicBool::new(false),
            memory: Mutex::new(memory),
            waker: AtomicWaker::new(),
        });
        // A new one counts as idle from now on, but see `NEW_FOR`.
        line.idle_since.store(line.now(), Ordering::Relaxed);
        table.insert(Arc::clone(&line));
        line
    }

    /// Joins the queue, and closes others until enough of them end. Returns false, and leaves the
    /// queue, if none will.
    fn wait(
        &self,
        table: &mut Table,
        turn: &mut PlaceInQueue,
        wanted: Wanted,
        context: &Context<'_>,
    ) -> bool {
        // The same number in each round: the queue is in this order.
        let number = *turn.number.get_or_insert_with(|| {
            table.next += 1;
            table.next
        });
        table.insert_waiting(
            number,
            Waiting {
                wanted,
                waker: context.waker().clone(),
            },
        );
        let is_place_short =
            wanted.is_place && table.open.len() + table.closing.len() >= self.0.max;
        // One closing connection for each that waits is enough.
        if is_place_short && table.closing.len() < table.waiting_places {
            self.close_some(table, Among::All, |_| false);
        }
        // What the closing ones hold has to cover what all that wait want.
        let is_enough = |table: &Table| table.closing_bytes >= table.waiting_bytes;
        while !is_enough(table) {
            // Large buffers first: fewer connections have to end for them.
            if !self.close_some(table, Among::Grown, is_enough)
                && !self.close_some(table, Among::All, is_enough)
            {
                break;
            }
        }
        // The last one to end wakes the first that waits.
        // Nobody is closing, so nobody would wake this one.
        if table.closing.is_empty() {
            table.remove_waiting(turn);
            return false;
        }
        true
    }

    /// Closes those that have been idle for longest; if none is, those whose clients have read
    /// nothing for longest; one after the other until it is enough, or there are many of them.
    /// Returns whether there were any.
    fn close_some(
        &self,
        table: &mut Table,
        among: Among,
        is_enough: impl Fn(&Table) -> bool,
    ) -> bool {
        let is_among = |line: &&Arc<Line>| match among {
            Among::All => true,
            Among::Peer(peer) => line.peer == peer,
            Among::Grown => line.memory.lock().bytes() > CONNECTION_BYTES as u64,
        };
        // At least two, so that their number falls although new ones come.
        let count = (self.0.max / CLOSED_SHARE).max(CLOSED_MIN);
        let lines = || table.open.values().filter(is_among);
        let mut found: Vec<((bool, u64), u64)> = lines()
            .filter_map(|line| Some((line.idle()?, line.number)))
            .collect();
        // Nobody is idle: then those whose clients take nothing.
        if found.is_empty() {
            found = lines()
                .filter_map(|line| Some(((true, line.stalled()?), line.number)))
                .collect();
        }
        if found.len() > count {
            // Only the oldest have to be found; sorting all of them would cost too much under the
            // lock.
            found.select_nth_unstable(count);
            found.truncate(count);
        }
        found.sort_unstable();
        let mut has_closed = false;
        for (_, number) in found {
            // A request may have begun just now.
            if table.open.get(&number).is_some_and(|line| line.choose()) {
                table.close(number);
                has_closed = true;
            }
            if has_closed && is_enough(table) {
                break;
            }
        }
        has_closed
    }

    /// Takes back that a connection is to be closed, as a request begins.
    fn keep(&self, line: &Line) {
        // The bit may be gone already, if another request was first.
        let next = {
            let mut table = self.0.table.lock();
            let was_chosen = line.requests.fetch_and(!CHOSEN, Ordering::AcqRel) & CHOSEN != 0;
            let Some(line) = was_chosen.then(|| table.end_closing(line.number)).flatten() else {
                return;
            };
            // Open again, with the place that it still has.
            table.insert(line);
            table.next_waiting()
        };
        // What it waited for does not end after all.
        wake(next);
    }
}

impl Table {
    fn insert(&mut self, line: Arc<Line>) {
        *self.peers.entry(line.peer).or_default() += 1;
        self.open.insert(line.number, line);
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Line>> {
        let line = self.open.remove(&number)?;
        // An address without connections must not stay in the map.
        if let Some(count) = self.peers.get_mut(&line.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&line.peer);
            }
        }
        Some(line)
    }

    /// Lets a connection that was chosen end at its next step, which is now.
    fn close(&mut self, number: u64) {
        let Some(line) = self.remove(number) else {
            return;
        };
        // As of now: the line may grow no more, and this is what its end frees.
        let bytes = line.memory.lock().bytes();
        self.closing_bytes += bytes;
        // Its task finds the mark, and ends the connection.
        line.waker.wake();
        self.closing.insert(number, (line, bytes));
    }

    fn end_closing(&mut self, number: u64) -> Option<Arc<Line>> {
        let (line, bytes) = self.closing.remove(&number)?;
        self.closing_bytes -= bytes;
        Some(line)
    }

    fn insert_waiting(&mut self, number: u64, waiting: Waiting) {
        self.waiting_bytes += waiting.wanted.bytes;
        self.waiting_places += usize::from(waiting.wanted.is_place);
        self.waiting.insert(number, waiting);
    }

    fn remove_waiting(&mut self, turn: &PlaceInQueue) {
        if let Some(waiting) = turn.number.and_then(|number| self.waiting.remove(&number)) {
            self.left(&waiting);
        }
    }

    /// Takes the first one from the queue; it joins again if there is too little for it.
    fn next_waiting(&mut self) -> Option<Waker> {
        let (_, waiting) = self.waiting.pop_first()?;
        self.left(&waiting);
        Some(waiting.waker)
    }

    fn left(&mut self, waiting: &Waiting) {
        // The sums are kept, so that nobody has to walk through the queue under the lock.
        self.waiting_bytes -= waiting.wanted.bytes;
        self.waiting_places -= usize::from(waiting.wanted.is_place);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl PlaceInQueue {
    fn new(connections: Connections) -> Self {
        Self {
            connections,
            number: None,
        }
    }

    /// Leaves the queue, and lets the next one look whether there is enough for it: it may have
    /// been this one's turn.
    fn end(&mut self) {
        // Never joined, or has left.
        if self.number.is_none() {
            return;
        }
        let next = {
            let mut table = self.connections.0.table.lock();
            table.remove_waiting(self);
            table.next_waiting()
        };
        self.number = None;
        wake(next);
    }
}

impl Drop for PlaceInQueue {
    fn drop(&mut self) {
        self.end();
    }
}

impl Line {
    /// Milliseconds since the start of the server, and never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.connections.0.begun.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }

    /// Since when it has been idle, if it is; in the order in which to close connections. First
    /// come those that never completed a request: one that did is more likely to be used again.
    fn idle(&self) -> Option<(bool, u64)> {
        let is_writing =
            self.writing_since.load(Ordering::Relaxed) > 0 || !self.unread.lock().is_empty();
        let is_idle = self.requests.load(Ordering::Acquire) == 0 && !is_writing;
        let since = self.idle_since.load(Ordering::Relaxed);
        // A new connection gets a moment before it counts as one that never completed a request.
        let is_new = self.now().saturating_sub(since) < NEW_FOR.as_millis() as u64;
        is_idle.then(|| (is_new || self.served.load(Ordering::Relaxed) > 0, since))
    }

    /// Since when it has waited to write, or for its client to take an answer, if that is long ago.
    fn stalled(&self) -> Option<u64> {
        let unread = self
            .unread
            .lock()
            .first_key_value()
            .map_or(0, |(_, unread)| unread.since);
        let writing = self.writing_since.load(Ordering::Relaxed);
        let since = if writing > 0 { writing } else { unread };
        let is_stalled =
            since > 0 && self.now().saturating_sub(since) >= STALLED_AFTER.as_millis() as u64;
        is_stalled.then_some(since)
    }

    /// Marks it as one to be closed; returns false if it is neither idle nor stalled any more.
    fn choose(&self) -> bool {
        // From 0 only: a request that has begun wins.
        if self
            .requests
            .compare_exchange(0, CHOSEN, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            return true;
        }
        // A stalled one has a request, so the count cannot mark it.
        let is_stalled = self.stalled().is_some();
        if is_stalled {
            // Before it is woken, so that its task finds this.
            self.is_broken.store(true, Ordering::Release);
        }
        is_stalled
    }

    pub(super) fn begin_request(&self) {
        let before = self.requests.fetch_add(1, Ordering::AcqRel);
        self.served.fetch_add(1, Ordering::Relaxed);
        // It was chosen in the same moment; the request comes first.
        if before & CHOSEN != 0 {
            self.connections.keep(self);
        }
    }

    pub(super) fn end_request(&self) {
        // In this order: once there is no request, the time counts.
        self.idle_since.store(self.now(), Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::AcqRel);
    }

    /// Notes that this many bytes of an answer wait for the client; a number to end that with.
    pub(super) fn begin_unread(&self, bytes: usize) -> u64 {
        let since = self.now();
        // A fixed time, and more for larger parts: a slow client is no stalled one.
        let until = since
            + UNREAD_TIME_MAX.as_millis() as u64
            + bytes as u64 * 1_000 / UNREAD_BYTES_PER_SECOND;
        let mut unread = self.unread.lock();
        let number = unread.last_key_value().map_or(0, |(number, _)| number + 1);
        unread.insert(number, Unread { since, until });
        number
    }

    pub(super) fn end_unread(&self, number: u64) {
        self.unread.lock().remove(&number);
    }

    /// Whether it has to look now and then whether its client still takes its answers.
    pub(super) fn is_answering(&self) -> bool {
        self.has_requests() || !self.unread.lock().is_empty()
    }

    /// Whether its client has had enough time for a part of an answer, and did not take it.
    pub(super) fn is_overdue(&self) -> bool {
        let now = self.now();
        self.unread.lock().values().any(|unread| unread.until < now)
    }

    fn has_requests(&self) -> bool {
        self.requests.load(Ordering::Acquire) & !CHOSEN != 0
    }

    /// Whether the connection ends now.
    pub(super) fn must_end(&self) -> bool {
        self.requests.load(Ordering::Acquire) == CHOSEN || self.is_broken()
    }

    /// Whether the connection ends in spite of running requests.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// The task to wake if the connection is closed.
    pub(super) fn wake(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Notes that its client took data, so that nothing waits to be written.
    pub(super) fn has_written(&self) {
        self.writing_since.store(0, Ordering::Relaxed);
    }

    /// Notes that it waits to write.
    pub(super) fn waits_to_write(&self) {
        // The first moment counts: further attempts to write keep it.
        if self.writing_since.load(Ordering::Relaxed) == 0 {
            self.writing_since.store(self.now(), Ordering::Relaxed);
        }
    }
}

impl Place {
    /// How many bytes may be read into a buffer with this much space, of which the memory is
    /// charged first: 0 if the connection ends. It waits until there is memory, and fails if there
    /// will be none.
    pub(super) fn poll_room(
        &mut self,
        space: usize,
        context: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.forget_head();
        let wanted = (CONNECTION_BYTES + self.head + space).saturating_sub(BUFFER_BYTES);
        // The memory that was charged for the connection covers this.
        if wanted <= self.charged {
            self.turn.end();
            return Poll::Ready(Ok(space));
        }
        let connections = &self.line.connections;
        // What others release from now on, they release under this lock.
        let mut table = connections.0.table.lock();
        table.remove_waiting(&self.turn);
        // The buffer may keep its size for as long as the connection lives.
        let has_grown = self.line.memory.lock().try_grow_to(wanted as u64);
        // A body is passed on as it arrives, so a part of the buffer does for it.
        let rest = (self.charged - CONNECTION_BYTES + BUFFER_BYTES)
            .saturating_sub(self.head)
            .min(space);
        let more = Wanted {
            is_place: false,
            bytes: (wanted - self.charged) as u64,
        };
        let waits =
            !has_grown && rest == 0 && connections.wait(&mut table, &mut self.turn, more, context);
        // Before anything is decided: waking others takes the lock again.
        drop(table);
        // To make room, it may have chosen itself.
        let must_end = self.line.must_end();
        if waits && !must_end {
            return Poll::Pending;
        }
        // It does not wait any more, whatever comes of it.
        self.turn.end();
        if has_grown {
            self.charged = wanted;
            return Poll::Ready(Ok(space));
        }
        // With 0 bytes the reader takes it for the end of the connection.
        if rest > 0 || must_end {
            return Poll::Ready(Ok(rest));
        }
        let message = "there is no memory for a head of this size";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, message)))
    }

    /// Counts bytes that arrived.
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.forget_head();
        // Bytes of a running request are its body, which is charged elsewhere.
        if !self.line.has_requests() {
            self.head = (self.head + bytes).min(HEAD_BYTES_MAX);
        }
    }

    /// What arrived before a request belongs to it.
    fn forget_head(&mut self) {
        let served = self.line.served.load(Ordering::Relaxed);
        if served != self.served {
            (self.served, self.head) = (served, 0);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.memory.lock().shrink_to(0);
        // In this order: the memory is free when the next one looks for it.
        let next = {
            let mut table = self.line.connections.0.table.lock();
            table.remove(self.line.number);
            table.end_closing(self.line.number);
            table.next_waiting()
        };
        wake(next);
    }
}

#[cfg(test)]
mod tests;
