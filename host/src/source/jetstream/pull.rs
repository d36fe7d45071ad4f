//! The protocol of a pull consumer: requesting events in time, and reading what
//! arrives, which is events and statuses.
//!
//! We request 5,000 events or 4 MiB at a time, and again when half of that has arrived: the knee of
//! the measured curve. If many readers share the host's memory, we request less: three requests
//! stay within this reader's part of it. An event that is larger than a request is requested alone,
//! once there is memory for it; the connection that brought it is then given up, because the client
//! keeps a buffer as large as the largest message. Nothing is acknowledged, so the server sends nothing
//! twice, and each message carries a running number by which a lost one is noticed. Source: ADR-13
//! and ADR-37 of <https://github.com/nats-io/nats-architecture-and-design>.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::Stream;

use super::appetite::Appetite;
use super::backlog::Backlog;
use super::currency::Currency;
use super::cursor::Cursor;
use super::link::{Link, Trouble};
use super::message::{self, Arrived, Metadata, MetadataReader};
use super::open::{INACTIVE_THRESHOLD, Opened};
use super::rescue::{self, Rescued};
use super::trusted::Trusted;
use super::wire::{Api, RequestLimits};
use crate::cloudevents::message::Reading;
use crate::event::LARGE_MIN;
use crate::memory::read_ahead::{Large, RequestShare};
use crate::position::EventMark;
use crate::subject::SubjectSet;

/// Events and bytes in one request.
const REQUEST_EVENTS: u64 = 5_000;
pub(super) const REQUEST_BYTES: u64 = 4 << 20;
/// A request is not smaller than this, in bytes, however many readers there are. A larger event is
/// requested alone.
const REQUEST_BYTES_MIN: u64 = LARGE_MIN as u64;
/// Full requests that may be open at once. The server may therefore send 15,000 events unasked,
/// which is less than half of what the subscription can hold.
const REQUESTS_MAX: u64 = 3;
/// Sizes of requests to remember: those that may be open, and one that the server has just ended.
const REQUESTS_KNOWN: usize = 4;
/// How long a request stays open. An idle reader makes the next one after two thirds of it, so that
/// the server always has one to answer with a new event.
const EXPIRES: Duration = Duration::from_secs(30);
/// The server sends a heartbeat after this long without an event.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After this long without a heartbeat, the consumer counts as lost.
const SILENCE: Duration = Duration::from_secs(4);
/// How long to listen before believing in silence: a busy caller may have kept the client from
/// reading.
const LISTEN: Duration = Duration::from_secs(1);
/// How long ago a reader had everything if what has gone since was stored just now.
const RECENT: Duration = Duration::from_secs(2);
/// How long a request for an event of unknown size stays open. It may have been removed meanwhile,
/// and others wait for its memory.
const EXPIRES_LARGE: Duration = Duration::from_secs(5);
/// A connection is given up after a message above this size, in bytes: smaller ones leave a buffer
/// that costs less than a new connection.
pub(super) const BUFFER_KEPT: usize = 1 << 20;
/// Events examined at once per event that a batch may have, if the host skips most of them.
const SCAN_FACTOR: usize = 16;

/// Sequences missing before an event that arrived, which the stream may have lost before it sent
/// them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jump {
    /// First missing sequence.
    pub(super) from: u64,
    /// Last missing sequence.
    pub(super) to: u64,
    /// Whether the reader had everything a moment ago, so that they were stored just now.
    pub(super) is_recent: bool,
}

/// What an idle consumer claims to have examined without finding anything for us.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// The last sequence that it examined.
    pub(super) through: u64,
    /// Whether everything for us was sent the moment it was stored, so that it can't have been
    /// removed before.
    pub(super) is_live: bool,
}

/// A buffer of a client.
#[derive(Debug)]
struct Bloat {
    /// The memory of the event that made it large: that is in this buffer.
    _memory: Option<Arc<Large>>,
}

/// The limits of one request: ours, unless the consumer's are narrower.
#[derive(Clone, Copy, Debug)]
struct RequestSize {
    events: u64,
    bytes: u64,
    expires: Duration,
    heartbeat: Duration,
}

impl RequestSize {
    fn within(limits: RequestLimits) -> Self {
        let narrower = |ours: u64, limit: u64| if limit == 0 { ours } else { ours.min(limit) };
        let ours = u64::try_from(EXPIRES.as_nanos()).expect("half a minute fits");
        // A limit of the consumer may be shorter than ours.
        let expires = Duration::from_nanos(narrower(ours, limits.max_expires));
        Self {
            events: narrower(REQUEST_EVENTS, limits.max_batch),
            bytes: narrower(REQUEST_BYTES, limits.max_bytes),
            expires,
            // The server refuses a heartbeat interval longer than half of the request.
            heartbeat: HEARTBEAT.min(expires / 2),
        }
    }
}

/// A pull consumer, from our side. Dropping it deletes the consumer.
#[derive(Debug)]
pub(super) struct Pull {
    client: Client,
    api: Arc<Api>,
    consumer: String,
    next_subject: Subject,
    inbox: Subject,
    subscription: Subscriber,
    metadata: MetadataReader,
    consumer_sequence: u64,
    size: RequestSize,
    share: Option<Arc<RequestShare>>,
    /// How much this server lets through at a time.
    appetite: Appetite,
    /// The bytes of the last requests, by which we recognise one of which the server used nothing.
    asked: VecDeque<u64>,
    /// What we requested and did not get yet.
    outstanding_events: u64,
    outstanding_bytes: u64,
    asked_at: Option<Instant>,
    /// The next event is larger than a request may be.
    is_oversize: bool,
    /// The memory for it, from before it is requested until it has arrived.
    large: Option<Large>,
    /// Whether it has waited for that memory so long that the server may have removed the consumer.
    has_waited: bool,
    /// The large buffer of the connection, which is then replaced before more is requested.
    bloat: Option<Bloat>,
    heard_at: Instant,
    /// Since when we listen without hearing anything.
    listening_since: Option<Instant>,
    subjects: SubjectSet,
    must_match: bool,
    /// Whether the server leaves out all that does not match, so that something else shows that the
    /// consumer was edited.
    trusts_filter: bool,
    reading: Reading,
    is_filtered: bool,
    /// The sequence up to which messages may be missing.
    accepts_through: u64,
    /// Whether a jump of an unfiltered reader may be there by design.
    has_gaps_by_design: bool,
    /// Whether events for us may be unsent in the stream.
    backlog: Backlog,
    /// When the stream last had nothing more for the consumer.
    had_everything_at: Option<Instant>,
    /// Jumps that counted as messages for others since the settings of the stream were looked at.
    trusted: Trusted,
    /// Whether the server that holds the consumer has kept up with the stream.
    currency: Currency,
    /// Whether connections were lost here, perhaps by a message after the next one. Then nothing
    /// more is requested until the next one is returned; otherwise the connection would be lost
    /// again while a jump before it is in question.
    is_careful: bool,
    /// Messages before those of the consumer, fetched alone.
    rescued: VecDeque<Rescued>,
    /// The first jump that is in question.
    jump: Option<Jump>,
    claim: Option<Claim>,
}

/// What a reader wants of a consumer.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) subjects: SubjectSet,
    pub(super) reading: Reading,
    /// Whose memory the messages take, if that is limited.
    pub(super) share: Option<Arc<RequestShare>>,
    pub(super) appetite: Appetite,
}

impl Pull {
    /// The consumer of an opened stream.
    pub(super) fn new(opened: Opened, demand: Demand, trusted: Trusted) -> Self {
        let Demand {
            subjects,
            reading,
            share,
            appetite,
        } = demand;
        let takes_everything = subjects.takes_everything();
        // The server does not know which subjects are the host's own.
        let is_open = subjects.is_open();
        // With several patterns the server has one that covers them all, and more.
        let server_matches = opened.is_filtered && subjects.patterns().len() == 1 && !is_open;
        let mut currency = if opened.is_replicated {
            Currency::unproved()
        } else {
            Currency::alone()
        };
        if let Some(led_at) = opened.led_at {
            currency.stream_ends(led_at, opened.head, opened.position);
        }
        Self {
            client: opened.link.client().clone(),
            next_subject: opened.api.next_subject(&opened.consumer).into(),
            metadata: MetadataReader::new(&opened.api.stream, &opened.consumer),
            api: opened.api,
            consumer: opened.consumer,
            inbox: opened.inbox,
            subscription: opened.subscription,
            consumer_sequence: 0,
            size: RequestSize::within(opened.limits),
            share,
            appetite,
            asked: VecDeque::new(),
            outstanding_events: 0,
            outstanding_bytes: 0,
            asked_at: None,
            is_oversize: false,
            large: None,
            has_waited: false,
            bloat: None,
            heard_at: Instant::now(),
            listening_since: None,
            // The host matches exactly what the server lets through too much.
            must_match: is_open || (!takes_everything && !server_matches),
            trusts_filter: server_matches,
            is_filtered: opened.is_filtered,
            accepts_through: opened.accepts_through,
            has_gaps_by_design: opened.has_gaps_by_design,
            backlog: Backlog::new(opened.pending),
            had_everything_at: (opened.pending == 0).then_some(opened.looked_at),
            trusted,
            currency,
            // One lost connection is normal; a second one at the same place makes it careful.
            is_careful: opened.doubts > 1,
            rescued: opened.rescued,
            subjects,
            reading,
            jump: None,
            claim: None,
        }
    }

    /// When anything last arrived.
    pub(super) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// When to check again whether the consumer is lost.
    pub(super) fn silent_at(&self) -> Instant {
        // A first silence is not believed, so the next look comes sooner.
        self.listening_since
            .map_or(self.heard_at + SILENCE, |time| time + LISTEN)
    }

    /// Whether nothing arrived for so long that the consumer counts as lost.
    pub(super) fn is_lost(&mut self) -> bool {
        let now = Instant::now();
        if now < self.heard_at + SILENCE {
            return false;
        }
        // The caller was away for long: what has arrived meanwhile has to be read first.
        now >= *self.listening_since.get_or_insert(now) + LISTEN
    }

    /// The jump that is in question.
    pub(super) fn jump(&self) -> Option<Jump> {
        self.jump
    }

    /// The jump was answered.
    pub(super) fn clear_jump(&mut self) {
        self.jump = None;
        self.is_careful = false;
    }

    /// The jumps that counted as messages for others because of the settings of the stream, and were
    /// not confirmed since.
    pub(super) fn trusted(&self) -> &Trusted {
        &self.trusted
    }

    /// The same, to keep or to drop them.
    pub(super) fn trusted_mut(&mut self) -> &mut Trusted {
        &mut self.trusted
    }

    /// The subjects that are read.
    pub(super) fn subjects(&self) -> &SubjectSet {
        &self.subjects
    }

    /// The last claim of the consumer.
    pub(super) fn take_claim(&mut self) -> Option<Claim> {
        self.claim.take()
    }

    /// A claim was confirmed: nothing for us is unsent.
    pub(super) fn caught_up(&mut self) {
        self.backlog.caught_up(self.outstanding_events);
        self.had_everything_at = Some(Instant::now());
    }

    /// Whether the leader of the stream has to be asked again and again where the stream ends.
    pub(super) fn needs_proof(&self) -> bool {
        self.is_filtered && self.currency.needs_proof()
    }

    /// A server that led the stream at this time said later where the stream ends; a reader is at
    /// this position.
    pub(super) fn stream_ends(&mut self, led: Instant, end: u64, position: u64) {
        self.currency.stream_ends(led, end, position);
    }

    /// Whether everything for us was sent the moment it was stored.
    fn is_live(&self) -> bool {
        self.is_filtered && !self.backlog.is_behind() && self.currency.is_proved(Instant::now())
    }

    /// Whether nothing was requested yet.
    pub(super) fn is_new(&self) -> bool {
        self.asked_at.is_none()
    }

    /// Requests more if that is due. Cancel-safe: a dropped call has requested nothing.
    pub(super) async fn ask(&mut self) -> Result<(), Trouble> {
        let Some((events, bytes)) = self.due() else {
            return Ok(());
        };
        let mut expires = self.size.expires;
        if self.is_oversize {
            self.wait_for_large().await;
            expires = expires.min(EXPIRES_LARGE);
        }
        let heartbeat = self.size.heartbeat.min(expires / 2).as_nanos();
        let expires = expires.as_nanos();
        let limit = if bytes > 0 {
            format!(r#","max_bytes":{bytes}"#)
        } else {
            String::new()
        };
        let body = format!(
            r#"{{"batch":{events},"expires":{expires},"idle_heartbeat":{heartbeat}{limit}}}"#
        );
        self.client
            .publish_with_reply(
                self.next_subject.clone(),
                self.inbox.clone(),
                Bytes::from(body),
            )
            .await
            .map_err(|error| Trouble::lost(format!("cannot ask for events: {error}")))?;
        // After the send, so that a dropped call counts nothing.
        self.outstanding_events += events;
        self.outstanding_bytes += bytes;
        self.asked_at = Some(Instant::now());
        // By its bytes a request is recognised of which nothing was used.
        self.asked.push_back(bytes);
        if self.asked.len() > REQUESTS_KNOWN {
            self.asked.pop_front();
        }
        Ok(())
    }

    /// Takes the memory for an event of unknown size: as much as the server takes for one message.
    /// Cancel-safe.
    async fn wait_for_large(&mut self) {
        let (Some(share), None) = (&self.share, &self.large) else {
            return;
        };
        let bytes = self.client.server_info().max_payload as u64;
        let begun = Instant::now();
        self.large = Some(share.large(bytes).await);
        self.has_waited |= begun.elapsed() > INACTIVE_THRESHOLD / 2;
        // The wait was ours, so it says nothing about the server.
        self.heard_at = Instant::now();
        self.listening_since = None;
    }

    /// Whether the next request has to wait for the memory of a large event.
    pub(super) fn waits_for_large(&self) -> bool {
        self.is_oversize && self.large.is_none() && self.share.is_some()
    }

    /// Whether it has waited for that memory so long that the server may have removed the consumer.
    pub(super) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// Whether the connection is to be replaced before more is requested. Nothing is on its way then.
    pub(super) fn is_bloated(&self) -> bool {
        self.bloat.is_some() && self.outstanding_events == 0
    }

    /// Continues with the same consumer over another connection.
    pub(super) fn move_to(&mut self, link: &Link, inbox: Subject, subscription: Subscriber) {
        self.client = link.client().clone();
        self.api = Arc::new(Api {
            client: self.client.clone(),
            prefix: self.api.prefix.clone(),
            stream: self.api.stream.clone(),
        });
        self.inbox = inbox;
        self.subscription = subscription;
        self.bloat = None;
        self.heard_at = Instant::now();
        self.listening_since = None;
    }

    /// Whether events for us may be on their way.
    pub(super) fn expects_events(&self) -> bool {
        self.outstanding_events > 0 && self.backlog.is_behind()
    }

    /// The bytes of the next request.
    fn request_bytes(&self) -> u64 {
        let bytes = self.share.as_ref().map_or(self.size.bytes, |share| {
            part_of(self.size.bytes, share.bytes())
        });
        self.appetite.of(bytes, Instant::now())
    }

    /// How many events and bytes to request now; no bytes means no limit.
    fn due(&self) -> Option<(u64, u64)> {
        if self.bloat.is_some() {
            return None;
        }
        // Other requests end with the same answer; until then one of them could bring a second event.
        if self.is_oversize {
            return (self.outstanding_events == 0).then_some((1, 0));
        }
        // The size is unknown, so it is asked for without a limit, and alone.
        if self.is_careful {
            let is_busy =
                self.outstanding_events > 0 || !self.rescued.is_empty() || self.jump.is_some();
            return (!is_busy).then_some((1, 0));
        }
        let RequestSize {
            events, expires, ..
        } = self.size;
        let bytes = self.request_bytes();
        // More could overflow the subscription, and the client would drop messages.
        if self.outstanding_events + events > events * REQUESTS_MAX {
            return None;
        }
        // Either of the two limits may be the one that ends a request.
        let half = self.outstanding_events <= events / 2 || self.outstanding_bytes <= bytes / 2;
        let is_old = || {
            self.asked_at
                .is_none_or(|time| time.elapsed() > expires * 2 / 3)
        };
        (half || (self.outstanding_events <= events && is_old())).then_some((events, bytes))
    }

    /// Reads what has arrived until the cursor is full or nothing is left,
    /// without waiting. Pending if nothing at all had arrived.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        cursor: &mut Cursor,
    ) -> Poll<Result<(), Trouble>> {
        // With a filter of the host most messages may be for others; they must not keep the thread
        // for ever.
        let scan_max = cursor.events_max().saturating_mul(SCAN_FACTOR);
        let mut scanned = 0;
        while scanned < scan_max && !cursor.is_full() {
            if let Some(rescued) = self.rescued.pop_front() {
                self.restore(rescued, cursor);
                scanned += 1;
                continue;
            }
            match Pin::new(&mut self.subscription).poll_next(context) {
                Poll::Ready(Some(message)) => self.receive(message, cursor)?,
                Poll::Ready(None) => {
                    return Poll::Ready(Err(Trouble::lost("the connection was closed")));
                }
                Poll::Pending if scanned == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
            scanned += 1;
        }
        // Only if something was read: an empty poll proves no life.
        self.heard_at = Instant::now();
        self.listening_since = None;
        Poll::Ready(Ok(()))
    }

    fn receive(&mut self, message: Message, cursor: &mut Cursor) -> Result<(), Trouble> {
        // Only a delivered event has a reply subject; a publisher may have put anything into its
        // headers.
        let Some(reply) = &message.reply else {
            return self.status(&message, cursor);
        };
        let Some(metadata) = self.metadata.read(reply) else {
            return Err(Trouble::lost(format!(
                "an event came with the unknown reply subject {:.200}",
                reply.as_str()
            )));
        };
        // A gap here means that a message was lost on its way.
        self.consumer_sequence += 1;
        if metadata.consumer_sequence != self.consumer_sequence {
            return Err(Trouble::lost(format!(
                "delivery {} arrived instead of {}",
                metadata.consumer_sequence, self.consumer_sequence
            )));
        }
        if self.trusts_filter && !self.subjects.matches(&message.subject) {
            // What it left out meanwhile is read again by the next one.
            return Err(Trouble::lost(format!(
                "an event came with the subject {:.200}, which the filter leaves out",
                message.subject.as_str()
            )));
        }
        // Both may be off a little if an earlier request was ended; they never go below 0.
        self.outstanding_events = self.outstanding_events.saturating_sub(1);
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(message.length as u64);
        // Whatever has arrived: it is what was requested, and nothing else is.
        let is_alone = std::mem::take(&mut self.is_oversize);
        self.has_waited = false;
        let large = self.large.take().map(|mut large| {
            large.shrink_to(message.length);
            Arc::new(large)
        });
        if is_alone && message.length > BUFFER_KEPT {
            self.bloat = Some(Bloat {
                _memory: large.clone(),
            });
        }
        // Nothing up to the position is returned again.
        if !self.reach(&metadata, cursor) {
            return Ok(());
        }
        let Message {
            subject,
            headers,
            payload,
            ..
        } = message;
        let Metadata {
            stream_sequence: sequence,
            time_ns,
            ..
        } = metadata;
        if self.must_match && !self.subjects.matches(&subject) {
            if payload.len() > BUFFER_KEPT {
                // It would keep its data until a batch is returned.
                let mark = EventMark::of_message(sequence, time_ns, subject.as_bytes(), &payload);
                cursor.pass_marked(mark);
            } else {
                cursor.pass(sequence, time_ns, subject, payload);
            }
        } else {
            let arrived = Arrived {
                subject,
                headers,
                data: payload,
            };
            match message::into_event(&metadata, arrived, self.reading) {
                Some(mut event) => {
                    if let Some(large) = large {
                        event.data = event.data.mapped(|data| Large::hold(large, data));
                    }
                    cursor.push(event);
                }
                None => cursor.pass_over(sequence),
            }
        }
        Ok(())
    }

    /// Moves the cursor to a message, unless it is already past it.
    fn reach(&mut self, metadata: &Metadata, cursor: &mut Cursor) -> bool {
        let sequence = metadata.stream_sequence;
        if sequence <= cursor.through {
            return false;
        }
        if sequence > cursor.through + 1 {
            self.note_jump(cursor.through + 1, sequence - 1, metadata.pending, cursor);
        }
        // The dangerous message is past, unless a jump before it is still open.
        self.is_careful &= self.jump.is_some();
        cursor.through = sequence;
        cursor.pending = metadata.pending;
        // `pending` says how many matching ones follow, so the end is at least there.
        cursor.head = cursor.head.max(sequence.saturating_add(metadata.pending));
        self.backlog
            .arrived(metadata.pending, self.outstanding_events);
        if metadata.pending == 0 {
            self.had_everything_at = Some(Instant::now());
        }
        self.currency.reached(sequence);
        true
    }

    /// Takes a message that was fetched alone.
    fn restore(&mut self, rescued: Rescued, cursor: &mut Cursor) {
        let sequence = rescued.sequence();
        let pending = cursor.pending.saturating_sub(1);
        let metadata = Metadata {
            stream_sequence: sequence,
            consumer_sequence: 0,
            // A message that was fetched alone has no delivery number and no time of its own.
            time_ns: 0,
            pending,
        };
        if !self.reach(&metadata, cursor) {
            return;
        }
        // Skipped by an operator: the position moves, and nothing is returned.
        let Rescued::Message { stored, fault } = rescued else {
            return;
        };
        if self.must_match && !self.subjects.matches(&stored.subject) {
            return;
        }
        if let Some(fault) = &fault {
            cursor.note_fault(sequence, fault, &self.api.stream);
        }
        if rescue::is_bookkeeping(&stored) {
            cursor.pass_over(sequence);
        } else {
            cursor.push(rescue::into_event(&stored, fault.as_deref(), self.reading));
        }
    }

    /// Sequences did not arrive. If the server does not filter for the reader, it gets all existing
    /// ones, so these are gone. If it filters, they belong to others, unless events for us may have
    /// been removed before they were sent: those after it, of which `pending` wait, are already more
    /// than the server could send at once.
    fn note_jump(&mut self, from: u64, to: u64, pending: u64, cursor: &mut Cursor) {
        let is_accepted =
            !self.is_filtered && !self.has_gaps_by_design && to <= self.accepts_through;
        // One question at a time: everything behind it waits anyway.
        if self.jump.is_some() {
            return;
        }
        if is_accepted {
            cursor.miss(from..=to);
        } else if pending > 0 || !self.is_live() {
            let had_everything = self.had_everything_at;
            self.jump = Some(Jump {
                from,
                to,
                is_recent: had_everything.is_some_and(|at| at.elapsed() < RECENT),
            });
        } else {
            self.trusted.add(from, to);
        }
    }

    fn status(&mut self, message: &Message, cursor: &Cursor) -> Result<(), Trouble> {
        let code = message.status.map_or(0, |status| status.as_u16());
        let description = message.description.as_deref().unwrap_or_default();
        let headers = message.headers.as_ref();
        match (code, description) {
            (100, _) => self.heartbeat(headers, cursor),
            // 408: the request has expired. 409: the server has sent all that was asked for.
            (408, _) | (409, "Batch Completed") => {
                self.settle(headers);
                Ok(())
            }
            (409, "Message Size Exceeds MaxBytes") => {
                // A wrong guess costs one request for a single event.
                // The server returns the bytes of a request that it could not use at all.
                let untouched = number(headers, "Nats-Pending-Bytes")
                    .is_some_and(|left| self.asked.contains(&left));
                self.settle(headers);
                self.is_oversize |= untouched;
                Ok(())
            }
            // Nobody answers requests for this consumer any more.
            (503, _) => Err(Trouble::lost("the consumer is gone")),
            _ => Err(Trouble::lost(format!(
                "the server ended the consumer: {code} {description}"
            ))),
        }
    }

    /// A request ended: its remainder will not arrive.
    fn settle(&mut self, headers: Option<&HeaderMap>) {
        // Without the headers of newer servers all of it counts as ended.
        let events = number(headers, "Nats-Pending-Messages").unwrap_or(self.outstanding_events);
        let bytes = number(headers, "Nats-Pending-Bytes").unwrap_or(self.outstanding_bytes);
        self.outstanding_events = self.outstanding_events.saturating_sub(events);
        self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
        self.backlog.request_ended(self.outstanding_events);
        // The event of unknown size is gone: whatever comes now fits, or the server says so again.
        if self.large.is_some() && self.outstanding_events == 0 {
            self.is_oversize = false;
            self.large = None;
        }
    }

    /// An idle consumer says how far it has looked, and how many events it delivered.
    fn heartbeat(&mut self, headers: Option<&HeaderMap>, cursor: &Cursor) -> Result<(), Trouble> {
        let delivered = number(headers, "Nats-Last-Consumer");
        // Messages were lost on their way; another consumer begins behind what arrived.
        if delivered.is_some_and(|delivered| delivered != self.consumer_sequence) {
            return Err(Trouble::lost(format!(
                "the server delivered {} events, {} arrived",
                delivered.unwrap_or_default(),
                self.consumer_sequence
            )));
        }
        // An old server does not say it, and then claims nothing.
        let looked_through = number(headers, "Nats-Last-Stream").unwrap_or(0);
        // A server of a cluster that was cut off says it too.
        if looked_through == cursor.through && !self.currency.needs_proof() {
            self.had_everything_at = Some(Instant::now());
        }
        if self
            .backlog
            .heartbeat(looked_through, cursor.through, self.outstanding_events)
        {
            self.claim = Some(Claim {
                through: looked_through,
                is_live: self.is_live(),
            });
        }
        Ok(())
    }
}

impl Drop for Pull {
    /// The server would drop the consumer on its own after `INACTIVE_THRESHOLD`; a stream has room
    /// for a limited number.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        // A client that is reconnecting would keep the message, and the consumer is gone by then.
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return;
        }
        let client = self.client.clone();
        let subject = self.api.delete_subject(&self.consumer);
        drop(runtime.spawn(async move {
            // Optional: a failure costs nothing.
            if client.publish(subject, Bytes::new()).await.is_ok() {
                drop(client.flush().await);
            }
        }));
    }
}

/// The size of a request, of at most this many bytes, if all open ones may bring in `together`.
fn part_of(most: u64, together: u64) -> u64 {
    // At least one event of usual size must fit, or each would be asked for alone.
    most.min((together / REQUESTS_MAX).max(REQUEST_BYTES_MIN))
}

fn number(headers: Option<&HeaderMap>, name: &str) -> Option<u64> {
    headers?.get(name)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::read_ahead::ReadAhead;

    #[test]
    fn a_request_is_as_large_as_every_limit_allows() {
        let within = |max_batch, max_expires, max_bytes| {
            let size = RequestSize::within(RequestLimits {
                max_batch,
                max_expires,
                max_bytes,
            });
            (size.events, size.bytes, size.expires, size.heartbeat)
        };
        let ours = (REQUEST_EVENTS, REQUEST_BYTES, EXPIRES, HEARTBEAT);
        assert_eq!(within(0, 0, 0), ours);
        assert_eq!(within(u64::MAX, u64::MAX, u64::MAX), ours);
        let second = Duration::from_secs(1);
        assert_eq!(
            within(7, 1_000_000_000, 9),
            (7, 9, second, second / 2),
            "half of a request is the longest heartbeat"
        );
    }

    #[test]
    fn open_requests_of_all_readers_stay_within_their_memory() {
        // What a host within 256 MiB has.
        let ahead = ReadAhead::new(24 << 20);
        let readers: Vec<_> = (0..5).map(|_| ahead.reader()).collect();
        let open: u64 = readers
            .iter()
            .map(|share| REQUESTS_MAX * part_of(REQUEST_BYTES, share.bytes()))
            .sum();
        assert!(open <= 12 << 20, "{open}");
        drop(readers);
        assert_eq!(
            part_of(REQUEST_BYTES, ahead.reader().bytes()),
            REQUEST_BYTES,
            "one alone requests as much as ever"
        );
    }

    #[test]
    fn a_request_is_never_too_small_and_never_above_the_limit_of_its_consumer() {
        assert_eq!(part_of(REQUEST_BYTES, 0), REQUEST_BYTES_MIN);
        assert_eq!(part_of(1_000, 0), 1_000);
    }
}
