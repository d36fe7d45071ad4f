//! Wraps every request: measures it by route, limits its time, and charges its answer.

use std::time::Instant;

use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::capacity::Transport;
use super::problem::{Kind, Problem};

/// The label of requests without a route, whose paths may be arbitrary.
const UNMATCHED: &str = "unmatched";

/// Measures and logs. A stream counts until it is open.
pub(super) async fn record(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    // Asked before the request is passed on.
    let is_http1 = request.version() < Version::HTTP_2;
    let has_body = !request.body().is_end_stream();
    let mut response = next.run(request).await;
    // A refused body may not have been read completely. The rest of it cannot be told from a next
    // request on the connection, so the client must know that there can be no next request. HTTP/2
    // separates requests itself, and has no such header.
    if is_http1 && has_body && !response.status().is_success() {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // The server keeps the time of its last answer until the clock has passed it: after a step back,
    // `doctor` would see a clock that is ahead.
    if let Some(date) = date() {
        response.headers_mut().insert(header::DATE, date);
    }
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let status = response.status();
    let duration = begun.elapsed();
    app.host
        .metrics()
        .request(route, method, status_label(status.as_u16()), duration);
    tracing::debug!(
        method,
        route,
        // The route and not the path, which may name a key or a customer.
        status = status.as_u16(),
        duration_us = duration.as_micros() as u64,
        "answered"
    );
    response
}

/// Charges the body of an answer to the host until it is sent.
pub(super) async fn charge(State(app): State<App>, request: Request, next: Next) -> Response {
    let over = if request.version() >= Version::HTTP_2 {
        Transport::Multiplexed
    } else {
        Transport::OneByOne
    };
    let response = next.run(request).await;
    app.capacity.charge(response, over).await
}

/// The time now, as RFC 9110 has it in a header.
fn date() -> Option<HeaderValue> {
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let text = printer.timestamp_to_rfc9110_string(&jiff::Timestamp::now());
    HeaderValue::try_from(text.ok()?).ok()
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn status_label(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

/// Ends a request that takes too long. A stream is past this once it is open.
pub(super) async fn time_out(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut longest = app.config.request_timeout;
    // A deploy is checked and compiled, each with a limit of its own, which together may be longer.
    if request.method() == Method::POST && request.uri().path() == "/v1/deployments" {
        longest += app.check_and_compile_time_max;
    }
    match tokio::time::timeout(longest, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!(
                "the request took longer than {longest:?} (serve.request_timeout); request less at \
                 once"
            );
            Problem::new(Kind::Timeout, detail).into_response()
        }
    }
}
