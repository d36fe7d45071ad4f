//! Counts the running requests of a connection: each until its answer was passed to the connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{Request, Response, Version};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tower::Service;

use super::connections::Line;

/// A service that counts the running requests of its connection.
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
        // Counted before the request is handled, so that the connection is not chosen while it is.
        let running = Running::new(Arc::clone(&self.line));
        // With HTTP/1 the connection itself shows whether its client reads.
        let is_multiplexed = request.version() >= Version::HTTP_2;
        let response = self.service.call(request);
        Box::pin(async move {
            let response = response.await?;
            // Until it is polled, it waits for the client.
            let unread = is_multiplexed.then(|| Unread::new(&running.0, 0));
            Ok(response.map(|body| {
                Body::new(RunningBody {
                    body,
                    running,
                    is_multiplexed,
                    unread,
                })
            }))
        })
    }
}

pub(super) struct Running(Arc<Line>);

impl Running {
    pub(super) fn new(line: Arc<Line>) -> Self {
        line.begin_request();
        Self(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// The body of an answer, whose request runs until the body ends.
struct RunningBody {
    body: Body,
    running: Running,
    is_multiplexed: bool,
    /// There is while it waits for the client, and not for the host.
    unread: Option<Unread>,
}

/// A part of an answer that waits for the client.
struct Unread {
    line: Arc<Line>,
    number: u64,
}

impl Unread {
    fn new(line: &Arc<Line>, bytes: usize) -> Self {
        Self {
            line: Arc::clone(line),
            number: line.begin_unread(bytes),
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.line.end_unread(self.number);
    }
}

/// Data that waits for the client until it was sent.
struct Sent {
    data: Bytes,
    _unread: Unread,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl HttpBody for RunningBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if !self.is_multiplexed {
            return polled;
        }
        let line = Arc::clone(&self.running.0);
        // It is polled again only when the client has taken this.
        let bytes = match &polled {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        self.unread = polled.is_ready().then(|| Unread::new(&line, bytes));
        polled.map_ok(|frame| match frame.into_data() {
            Ok(data) => {
                // Also after it has left this body: the connection may hold it for long.
                let unread = Unread::new(&line, data.len());
                Frame::data(Bytes::from_owner(Sent {
                    data,
                    _unread: unread,
                }))
            }
            Err(frame) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
