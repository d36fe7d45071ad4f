//! Server-sent events: one task writes chunks, and the connection reads them.
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
//!
//! A stream holds at most two chunks and one event in memory, whatever its
//! client does, and charges them to the host. A client that reads nothing for a
//! while loses its stream. If it reads again soon after, an `end` says why.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::standing::Standing;
use crate::api::EndMark;
use crate::memory::Reservation;
use crate::metrics::WatchGuard;

/// Size at which a chunk is passed to the connection, in bytes.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// Most chunks of a stream in memory: one is being written, one waits, one is passed over.
const CHUNKS_IN_MEMORY: usize = 3;
/// How often an idle stream sends its position, so that both sides notice a dead connection.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a browser waits before it reconnects.
const RETRY: Duration = Duration::from_secs(1);
/// How long a client may read nothing before its stream ends. Its connection stays open a little
/// longer, so that a client that reads again still gets the reason.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Reasons of the end of a stream: its client reads nothing, or the host has no memory for what it
/// sends.
const STALLED: &str = "stalled";
const SHORT: &str = "host-memory";
/// Its token was withdrawn, or no longer covers it. The next request says which.
const NOT_ALLOWED: &str = "not-allowed";

/// The stream is over: the client left, stalled, or may no longer read it, or the host stops.
#[derive(Debug)]
pub(super) struct Ended;

/// What an open stream occupies.
pub(super) struct Seat {
    /// Its place among the watches.
    pub(super) permit: OwnedSemaphorePermit,
    /// Its count in the metrics.
    pub(super) gauge: WatchGuard,
    /// The memory of what its client has not read yet.
    pub(super) memory: Reservation,
    /// What lets its client in.
    pub(super) standing: Standing,
}

/// The writing end of a stream.
pub(super) struct Sender {
    chunks: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    shutdown: CancellationToken,
    gauge: WatchGuard,
    standing: Standing,
    /// Shared with the body, which may still hold chunks when this has ended.
    tail: Arc<Mutex<Rest>>,
    /// Lengths of the last chunks that were passed over, which may still be in memory.
    handed: [usize; CHUNKS_IN_MEMORY],
    /// Bytes of what waits to be written.
    held: usize,
}

/// What remains of a stream while its connection does.
struct Rest {
    _permit: OwnedSemaphorePermit,
    memory: Reservation,
    /// The last chunk: the reason of the end.
    last: Option<Bytes>,
}

/// Opens a stream. Return the response at once.
pub(super) fn open(seat: Seat, shutdown: CancellationToken) -> (Sender, Response) {
    // One chunk waits while the connection writes another; more chunks would only be older news.
    let (chunks, receiver) = mpsc::channel(1);
    let Seat {
        permit,
        gauge,
        memory,
        standing,
    } = seat;
    // The place and the memory are free when sender and body have both ended.
    let tail = Arc::new(Mutex::new(Rest {
        _permit: permit,
        memory,
        last: None,
    }));
    let rest = Arc::clone(&tail);
    // After the last chunk, the reason of an end, if there is one.
    let end = stream::once(async move { rest.lock().last.take() }).filter_map(std::future::ready);
    let body = Body::from_stream(
        ReceiverStream::new(receiver)
            .chain(end)
            .map(Ok::<_, Infallible>),
    );
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies such as nginx would otherwise buffer events.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    // The first line of a stream, before any event.
    let buffer = format!("retry: {}\n\n", RETRY.as_millis()).into_bytes();
    (
        Sender {
            chunks,
            buffer,
            shutdown,
            gauge,
            standing,
            tail,
            handed: [0; CHUNKS_IN_MEMORY],
            held: 0,
        },
        response,
    )
}

impl Sender {
    /// Puts an event into the buffer.
    pub(super) fn event(&mut self, name: &str, id: impl Display, data: &impl Serialize) {
        write_event(&mut self.buffer, name, id, data);
    }

    /// Puts a comment into the buffer, which shows both sides that the connection is alive.
    pub(super) fn comment(&mut self, text: &str) {
        write!(self.buffer, ": {text}\n\n").expect("memory takes all");
    }

    /// Puts finished events into the buffer.
    pub(super) fn extend(&mut self, events: &[u8]) {
        self.buffer.extend_from_slice(events);
    }

    /// Whether to flush the buffer before adding more.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= CHUNK_BYTES
    }

    /// Passes the buffer to the connection; waits while that is busy.
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        // The oldest length falls out: that chunk was passed on.
        self.handed.rotate_right(1);
        self.handed[0] = chunk.len();
        // Before it is sent: what is not charged must not be held.
        self.charge()?;
        tokio::select! {
            biased;
            // What was taken from the buffer is lost with the stream; its client resumes from the
            // last id that it received.
            () = self.shutdown.cancelled() => Err(Ended),
            _ = self.standing.lapsed() => Err(self.end(NOT_ALLOWED)),
            sent = tokio::time::timeout(STALL_MAX, self.chunks.send(chunk)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(Ended),
                Err(_) => Err(self.end(STALLED)),
            },
        }
    }

    /// Charges this many bytes that wait to be written, in place of the number before.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Ended> {
        self.held = bytes;
        self.charge()
    }

    /// Ends the stream for a reason that its client should know. It resumes from the last id that
    /// it received.
    fn end(&self, reason: &'static str) -> Ended {
        tracing::debug!(reason, "a stream ended");
        self.gauge.ended(reason);
        let mut last = Vec::new();
        let data = serde_json::to_string(&EndMark {
            reason: reason.to_owned(),
        })
        .expect("plain data");
        write!(last, "event: end\ndata: {data}\n\n").expect("memory takes all");
        // Read by the body once the channel is closed.
        self.tail.lock().last = Some(last.into());
        Ended
    }

    /// Charges everything that may be in memory. A stream for which there is no memory ends.
    fn charge(&mut self) -> Result<(), Ended> {
        let wanted = (self.handed.iter().sum::<usize>() + self.held) as u64;
        let charged = {
            let memory = &mut self.tail.lock().memory;
            // Shrunk first, so that a smaller chunk never fails for lack of memory.
            memory.shrink_to(wanted);
            memory.grow_to(wanted)
        };
        charged.map_err(|shortage| {
            tracing::debug!(%shortage, "there is no memory for a stream");
            self.end(SHORT)
        })
    }

    /// Returns when the client has disconnected or may no longer read this, or the host stops.
    pub(super) async fn ended(&self) -> Ended {
        tokio::select! {
            () = self.shutdown.cancelled() => Ended,
            _ = self.standing.lapsed() => self.end(NOT_ALLOWED),
            () = self.chunks.closed() => Ended,
        }
    }
}

/// Writes one event. Line breaks in JSON text can only be white space between tokens, and become
/// spaces.
pub(super) fn write_event(
    buffer: &mut Vec<u8>,
    name: &str,
    id: impl Display,
    data: &impl Serialize,
) {
    write!(buffer, "event: {name}\nid: {id}\ndata: ").expect("memory takes all");
    let begin = buffer.len();
    serde_json::to_writer(&mut *buffer, data).expect("plain data");
    for byte in &mut buffer[begin..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    buffer.extend_from_slice(b"\n\n");
}

/// The id of an event: a position, and the state to which it belongs if there may be several. As
/// text: `<position>.<state in hexadecimal>`, or the position alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) position: u64,
    /// Identifies the state among others of the same name.
    pub(super) state: Option<u64>,
}

impl From<u64> for Mark {
    fn from(position: u64) -> Self {
        Self {
            position,
            state: None,
        }
    }
}

impl Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            Some(state) => write!(formatter, "{}.{state:016x}", self.position),
            None => write!(formatter, "{}", self.position),
        }
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        // Without a dot it is the position of a log or a stream.
        let Some((position, state)) = text.split_once('.') else {
            return text.parse::<u64>().ok().map(Self::from);
        };
        // The number parser would accept a sign as well.
        let is_hexadecimal =
            state.len() == 16 && state.bytes().all(|byte| byte.is_ascii_hexdigit());
        let state = u64::from_str_radix(state, 16)
            .ok()
            .filter(|_| is_hexadecimal)?;
        Some(Self {
            position: position.parse().ok()?,
            state: Some(state),
        })
    }
}

/// Where a client wants to continue. The id of the last event that it received
/// takes precedence over the `after` of its first request, which a browser
/// repeats unchanged.
pub(super) fn resume(headers: &HeaderMap, after: Option<u64>) -> Result<Option<Mark>, Problem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(after.map(Mark::from));
    };
    let id = value.to_str().ok().and_then(Mark::parse);
    id.map(Some).ok_or_else(|| {
        Problem::invalid("Last-Event-ID is not a position; send the id of an earlier event")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn pretty_json_stays_on_one_line() {
        let mut buffer = Vec::new();
        let data = RawValue::from_string("{\n  \"a\": \"x\\ny\"\r\n}".to_owned()).expect("JSON");
        write_event(&mut buffer, "change", 7, &data);
        let text = String::from_utf8(buffer).expect("text");
        assert_eq!(
            text,
            "event: change\nid: 7\ndata: {   \"a\": \"x\\ny\"  }\n\n"
        );
    }

    #[test]
    fn last_event_id_wins_over_after() {
        let mut headers = HeaderMap::new();
        assert_eq!(
            resume(&headers, Some(3)).expect("sound"),
            Some(Mark::from(3))
        );
        headers.insert("last-event-id", HeaderValue::from_static("9"));
        assert_eq!(
            resume(&headers, Some(3)).expect("sound"),
            Some(Mark::from(9))
        );
        let mark = Mark {
            position: 9,
            state: Some(0xab),
        };
        headers.insert(
            "last-event-id",
            HeaderValue::try_from(mark.to_string()).expect("text"),
        );
        assert_eq!(resume(&headers, Some(3)).expect("sound"), Some(mark));
        for wrong in [
            "x",
            "9.",
            ".ab",
            "9.xy",
            "9.+1",
            "9.0123456789abcdef0",
            "9.1.1",
        ] {
            headers.insert("last-event-id", HeaderValue::from_static(wrong));
            assert!(resume(&headers, None).is_err(), "{wrong}");
        }
    }
}
