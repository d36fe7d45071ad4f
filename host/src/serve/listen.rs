//! The listener: TLS or plain, limits on connections and headers, and the
//! graceful end.

use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{future, io};

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::connections::{Connections, Place};
use super::counted::Counted;

/// Most concurrent connections; fewer if the process may open fewer than twice as many files.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections that the system may hold for us until they are accepted; it may have a lower limit
/// of its own.
const QUEUE: i32 = 4_096;
/// Size of request line and headers together, in bytes; the buffer may grow to twice that, and is
/// charged to the host. Keys in URLs may need 3 KiB, tokens 1 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// How long a client may take to send the head of its first request, and for the TLS handshake.
const FIRST_HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// The same for later requests, which limits how long a connection may be idle. Longer than most
/// clients keep theirs: if one side closes an idle connection just as the other side uses it, a
/// request fails.
const IDLE_TIME_MAX: Duration = Duration::from_secs(100);
/// Most concurrent requests on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often to ping an HTTP/2 connection, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a client may read nothing although data is waiting.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// How often to look whether a client takes its answers, while there are any.
const UNREAD_LOOK: Duration = Duration::from_secs(5);
/// What the system may hold for a client of what was written to it, in bytes; it doubles this for
/// its own needs.
const SEND_BUFFER: usize = 128 << 10;
/// Silence after which the system probes the other side, and how long that may stay silent.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);
/// How long running requests may continue after the shutdown, unless the whole stop has less time.
pub(super) const GRACE_MAX: Duration = Duration::from_secs(5);

/// What is served, and how.
pub(super) struct Served {
    pub(super) router: Router,
    pub(super) tls: Option<RustlsConfig>,
    pub(super) connections: Connections,
    /// How long running requests may take to end after the shutdown.
    pub(super) grace: Duration,
}

/// Serves until the shutdown.
pub(super) async fn serve(
    listener: TcpListener,
    served: Served,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Served {
        router,
        tls,
        connections,
        grace,
    } = served;
    let handle = Handle::<SocketAddr>::new();
    let stop = {
        let handle = handle.clone();
        async move {
            shutdown.cancelled().await;
            handle.graceful_shutdown(Some(grace));
            // The server below now ends on its own; this side must not end earlier.
            future::pending::<()>().await;
        }
    };
    // The standard library asks for a short queue. If it overflows, clients wait for seconds before
    // they try again.
    socket2::SockRef::from(&listener).listen(QUEUE)?;
    let mut server = axum_server::from_tcp(listener)?
        .handle(handle)
        .first_request_timeout(FIRST_HEAD_TIME_MAX)
        .accept_error_handler(
            |address, error| tracing::debug!(?address, %error, "a connection was not accepted"),
        );
    limit_heads(&mut server);
    if tls.is_none() {
        // Without TLS a client can use another version only by guessing.
        server = server.http1_only();
    }
    // Each accepted connection needs a place, before TLS and before any byte is read.
    let admission = Admission(connections);
    let app = router.into_make_service_with_connect_info::<SocketAddr>();
    match tls {
        // `stop` asks the server to end, and never ends itself.
        None => tokio::select! {
            ended = server.acceptor(admission).serve(app) => ended?,
            () = stop => {}
        },
        Some(tls) => {
            let acceptor = RustlsAcceptor::new(tls)
                .handshake_timeout(FIRST_HEAD_TIME_MAX)
                .acceptor(admission);
            tokio::select! {
                ended = server.acceptor(acceptor).serve(app) => ended?,
                () = stop => {}
            }
        }
    }
    Ok(())
}

fn limit_heads<A>(server: &mut Server<SocketAddr, A>) {
    server
        .http_builder()
        .http1()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .header_read_timeout(IDLE_TIME_MAX);
    server
        .http_builder()
        .http2()
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME_MAX);
}

/// Most connections that this process may have.
pub(super) fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // Half of them stay for files, streams and modules.
    files.map_or(CONNECTIONS_MAX, |files| {
        CONNECTIONS_MAX
            .min(usize::try_from(files / 2).unwrap_or(usize::MAX))
            .max(1)
    })
}

/// Accepts connections while there are places for them, and closes any further one.
#[derive(Clone)]
struct Admission(Connections);

impl<S> Accept<TcpStream, S> for Admission
where
    S: Send + 'static,
{
    type Stream = Seated;
    type Service = Counted<S>;
    type Future = BoxFuture<'static, io::Result<(Seated, Counted<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let connections = self.0.clone();
        Box::pin(async move {
            let stream = admit(&connections, stream).await?;
            let service = Counted::new(service, Arc::clone(&stream.place.line));
            Ok((stream, service))
        })
    }
}

async fn admit(connections: &Connections, stream: TcpStream) -> io::Result<Seated> {
    let place = connections.admit(&stream).await?;
    // Responses are small and should leave at once.
    stream.set_nodelay(true)?;
    watch_over(&stream)?;
    let stalled = Box::pin(tokio::time::sleep(WRITE_TIME_MAX));
    let look = Box::pin(tokio::time::sleep(UNREAD_LOOK));
    Ok(Seated {
        stream,
        stalled,
        is_waiting: false,
        look,
        place,
    })
}

/// Lets the system close a connection whose other side has disappeared, or acknowledges nothing,
/// and hold little of what a client does not read: that memory is charged to nobody.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    // Without a limit the system may hold megabytes for each client that does not read.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE_PAUSE),
    )?;
    // Linux: for data that the other side does not acknowledge.
    socket.set_tcp_user_timeout(Some(WRITE_TIME_MAX))
}

/// A connection that holds its place, until its client reads nothing for too long.
struct Seated {
    stream: TcpStream,
    /// When a waiting write times out.
    stalled: Pin<Box<Sleep>>,
    /// Whether a write is waiting.
    is_waiting: bool,
    /// When to look next whether the client takes its answers.
    look: Pin<Box<Sleep>>,
    place: Place,
}

impl Seated {
    /// Handles the result of a write: the timer runs while a write waits, and stops when it
    /// completes.
    fn clocked<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        // Before the checks, so that no wake-up is missed.
        self.place.line.wake(context.waker());
        // While it waits to write, the mark of an idle one is enough; a broken one ends in any
        // case.
        if self.place.line.is_broken() || written.is_pending() && self.place.line.must_end() {
            let message = "the place of a client that read nothing was needed";
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                message,
            )));
        }
        // Whatever it was: the client takes data, so the clock stops.
        if written.is_ready() {
            if self.is_waiting {
                self.is_waiting = false;
                self.place.line.has_written();
            }
            return written;
        }
        // The clock runs from the first attempt that did not fit.
        if !self.is_waiting {
            self.is_waiting = true;
            self.place.line.waits_to_write();
            self.stalled.as_mut().reset(Instant::now() + WRITE_TIME_MAX);
        }
        match self.stalled.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client read nothing of what was written to it",
            ))),
        }
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Seated {
            stream,
            place,
            look,
            ..
        } = &mut *self;
        // Before the check, so that no wake-up is missed.
        place.line.wake(context.waker());
        if place.line.must_end() {
            // Nothing read is the end of the connection for the caller.
            return Poll::Ready(Ok(()));
        }
        // Several looks may be due if the task was not polled for a while.
        while place.line.is_answering() && look.as_mut().poll(context).is_ready() {
            look.as_mut().reset(Instant::now() + UNREAD_LOOK);
            if place.line.is_overdue() {
                let message = "the client left an answer for too long";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
        }
        // Nothing is charged for data that has not arrived.
        ready!(stream.poll_read_ready(context))?;
        let space = buffer.remaining();
        let room = ready!(place.poll_room(space, context))?;
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if room == space {
            ready!(Pin::new(stream).poll_read(context, buffer))?;
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
            ready!(Pin::new(stream).poll_read(context, &mut part))?;
            let bytes = part.filled().len();
            buffer.advance(bytes);
        }
        place.has_read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.clocked(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.clocked(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;
    use crate::memory::Memory;

    /// A connection as the server has it, and its client.
    async fn connected() -> (Seated, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let memory = Memory::new(64 << 20);
        let connections = Connections::new(64, move || memory.clone());
        let (stream, _) = accepted.expect("the client connects");
        let seated = admit(&connections, stream).await.expect("there is room");
        (seated, client.expect("the listener listens"))
    }

    /// Writes until that fails, for at most this long; what failed.
    async fn write_for(seated: &mut Seated, time: Duration) -> Option<io::ErrorKind> {
        let writes = async {
            loop {
                if let Err(error) = seated.write_all(&[0; 64 << 10]).await {
                    return error.kind();
                }
            }
        };
        timeout(time, writes).await.ok()
    }

    // The clock of the runtime jumps to its next timer as soon as everybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_of_an_answer_is_given_up_after_its_time() {
        let (mut seated, mut client) = connected().await;
        let almost = WRITE_TIME_MAX - Duration::from_secs(1);
        assert_eq!(write_for(&mut seated, almost).await, None, "too early");
        // One that reads again has all of its time again.
        let mut taken = vec![0; 64 << 10];
        while timeout(Duration::from_millis(1), client.read(&mut taken))
            .await
            .is_ok()
        {}
        assert_eq!(write_for(&mut seated, almost).await, None, "too early");
        let given_up = write_for(&mut seated, WRITE_TIME_MAX).await;
        assert_eq!(given_up, Some(io::ErrorKind::TimedOut));
    }
}
