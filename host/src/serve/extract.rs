//! Parses the parts of a request: path segments, query parameters, bodies. A
//! part that is not valid becomes a problem that says why.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{ExtensionRejection, QueryRejection};
use axum::extract::{Extension, FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use utoipa::IntoParams;

use super::auth::Holder;
use super::capacity::BodyRoom;
use super::problem::{Kind, Problem};
use crate::spelling::nearest;

/// Longest pause in a body. Before the first byte, the client may still wait for a go-ahead.
const BODY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Slowest body after the first such pause, in bytes per second.
const BODY_RATE_MIN: u64 = 4 << 10;

/// Longest query string, in bytes; percent-encoding triples keys of 1,024 bytes.
const QUERY_BYTES_MAX: usize = 32 << 10;

/// Query parameters. An unknown one is refused: ignoring a misspelt `at-leest` would give a stale
/// answer.
pub(super) struct Parameters<T>(pub(super) T);

/// For routes without parameters.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParameters {}

impl<S, T> FromRequestParts<S> for Parameters<T>
where
    S: Send + Sync,
    T: DeserializeOwned + IntoParams,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parameters(&parts.uri).map(Self)
    }
}

fn parameters<T: DeserializeOwned + IntoParams>(uri: &Uri) -> Result<T, Problem> {
    // Before it is parsed, which takes memory for each parameter.
    if uri
        .query()
        .is_some_and(|query| query.len() > QUERY_BYTES_MAX)
    {
        return Err(Problem::invalid(format!(
            "the query string is longer than {QUERY_BYTES_MAX} bytes; shorten it"
        )));
    }
    match Query::<T>::try_from_uri(uri) {
        Ok(Query(parameters)) => Ok(parameters),
        Err(rejection) => Err(explain::<T>(uri, &rejection)),
    }
}

fn explain<T: IntoParams>(uri: &Uri, rejection: &QueryRejection) -> Problem {
    let known: Vec<String> = T::into_params(|| None)
        .into_iter()
        .map(|parameter| parameter.name)
        .collect();
    let given = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map(|Query(pairs)| pairs)
        .unwrap_or_default();
    // The parser does not name the parameter, so it is looked for here.
    if let Some((name, _)) = given.iter().find(|(name, _)| !known.contains(name)) {
        return Problem::invalid(format!(
            "there is no query parameter {name}{}",
            suggestion(name, &known)
        ));
    }
    let text = rejection.body_text();
    Problem::invalid(
        // The text of axum begins with what a client need not know.
        text.strip_prefix("Failed to deserialize query string: ")
            .unwrap_or(&text)
            .to_owned(),
    )
}

/// The end of a message, with the name that was probably intended, or all known names.
pub(super) fn suggestion(name: &str, known: &[String]) -> String {
    match nearest(name, known.iter().map(String::as_str)) {
        None if known.is_empty() => "; this route has none".to_owned(),
        Some(candidate) => format!("; did you mean {candidate}?"),
        None => format!("; known: {}", known.join(", ")),
    }
}

/// Segments of the path, percent-decoded.
pub(super) struct Segments<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for Segments<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(Problem::invalid(rejection.body_text())),
        }
    }
}

/// Method and headers of a request, which tell whether its client has the answer already.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for Head {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self {
            method: parts.method.clone(),
            headers: parts.headers.clone(),
        })
    }
}

/// The client of an event stream.
pub(super) struct Listener {
    pub(super) holder: Holder,
    /// They say where to resume.
    pub(super) headers: HeaderMap,
}

impl<S: Send + Sync> FromRequestParts<S> for Listener {
    type Rejection = ExtensionRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ExtensionRejection> {
        let Extension(holder) = Extension::from_request_parts(parts, state).await?;
        let headers = parts.headers.clone();
        Ok(Self { holder, headers })
    }
}

/// The content type of a request: its essence in lower case, without parameters.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(
        value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

/// The content type that curl sends with a body by default.
const FORM: &str = "application/x-www-form-urlencoded";

/// The problem for a content type that a route does not accept.
pub(super) fn unsupported(found: Option<&str>, wanted: &str) -> Problem {
    let found = match found {
        None => "there is no content-type".to_owned(),
        Some(FORM) => format!(
            "content-type is {FORM}, which curl sends unless it is given -H 'content-type: …'"
        ),
        Some(found) => format!("content-type is {found}"),
    };
    Problem::new(
        Kind::UnsupportedMediaType,
        format!("{found}; send {wanted}"),
    )
}

/// Whether a body is sent as it is: compressed, it would be taken for something malformed.
fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let is_plain = |encoding: &HeaderValue| encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !is_plain(encoding) => Err(Problem::new(
            Kind::UnsupportedMediaType,
            "the body has a content-encoding; send it as it is, without compression",
        )),
        _ => Ok(()),
    }
}

/// The length that the client announces.
pub(super) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// When the next part of a body is due, if this many bytes have arrived.
fn due(begun: Instant, seen: usize) -> Instant {
    // The rate counts from the beginning, so that a slow start can be made up for.
    let at_this_rate = begun + BODY_PAUSE_MAX + Duration::from_secs(seen as u64 / BODY_RATE_MIN);
    at_this_rate.min(Instant::now() + BODY_PAUSE_MAX)
}

/// Reads a body of at most `limit` bytes, into memory that `room` takes as it arrives.
///
/// For a longer body, it reads and discards up to that much again: closing the
/// connection while the client still sends would hide the response. A body that
/// arrives too slowly is given up, so that it does not hold its memory.
pub(super) async fn body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    room: &mut BodyRoom,
) -> Result<Bytes, Problem> {
    check_encoding(headers)?;
    let announced = announced(headers).unwrap_or(0);
    // A body without a length is bounded as it arrives.
    let mut chunks = body.into_data_stream();
    let mut collected = BytesMut::new();
    if announced <= limit as u64 {
        // At once, so that it is not copied as it grows. What is not written to takes no memory.
        collected.reserve(usize::try_from(announced).unwrap_or(0));
    }
    let mut seen = 0_usize;
    let begun = Instant::now();
    loop {
        let Ok(next) = tokio::time::timeout_at(due(begun, seen), chunks.next()).await else {
            return Err(Problem::new(
                Kind::Slow,
                format!(
                    "{seen} bytes of the body arrived, and then too little for too long; send at \
                     least {BODY_RATE_MIN} bytes a second, without pauses of {BODY_PAUSE_MAX:?}"
                ),
            ));
        };
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|error| {
            Problem::invalid(format!("cannot read the body: {error}; send it again"))
        })?;
        seen = seen.saturating_add(chunk.len());
        // A client that sends far more than allowed does not read the answer anyway.
        if seen > limit.saturating_mul(2) {
            break;
        }
        if seen <= limit && announced <= limit as u64 {
            // A body of an unknown length has room for twice as much as it grows.
            let unknown = if announced == 0 { 2 } else { 1 };
            // Before it is copied.
            room.hold(seen.saturating_mul(unknown)).await?;
            collected.extend_from_slice(&chunk);
        } else {
            // It is refused at the end, and takes no memory until then.
            collected = BytesMut::new();
        }
    }
    if seen > limit || announced > limit as u64 {
        return Err(Problem::new(
            Kind::TooLarge,
            format!("the body has more than {limit} bytes, the limit of this route"),
        ));
    }
    Ok(collected.freeze())
}

#[cfg(test)]
mod tests {
    use super::super::capacity::Capacity;
    use super::*;
    use crate::config::Config;
    use crate::memory::Memory;

    #[derive(Debug, Deserialize, IntoParams)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Example {
        at_least: Option<u64>,
        prefix: Option<String>,
    }

    fn read(query: &str) -> Result<Example, Problem> {
        parameters(&format!("/x?{query}").parse().expect("an address"))
    }

    #[test]
    fn parameters_are_decoded() {
        let example = read("at-least=7&prefix=a%2Fb+c").expect("sound");
        assert_eq!(
            (example.at_least, example.prefix.as_deref()),
            (Some(7), Some("a/b c"))
        );
    }

    #[test]
    fn misspelt_parameter_is_refused_with_a_suggestion() {
        let problem = read("prefix=a&at-leest=7").expect_err("unknown");
        assert_eq!(problem.kind(), Kind::Invalid);
        assert_eq!(
            problem.detail(),
            "there is no query parameter at-leest; did you mean at-least?"
        );
        let problem = read("zzz").expect_err("unknown");
        assert_eq!(
            problem.detail(),
            "there is no query parameter zzz; known: at-least, prefix"
        );
    }

    #[test]
    fn unreadable_parameter_is_named() {
        let problem = read("at-least=soon").expect_err("no number");
        assert!(
            problem.detail().starts_with("at-least: "),
            "{}",
            problem.detail()
        );
        assert!(read("at-least=1&at-least=2").is_err(), "given twice");
    }

    #[test]
    fn content_type_is_compared_without_parameters_and_case() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            "Application/JSON; charset=utf-8".parse().expect("a value"),
        );
        assert_eq!(content_type(&headers).as_deref(), Some("application/json"));
    }

    #[tokio::test]
    async fn body_beyond_the_limit_is_refused_and_one_at_the_limit_is_not() {
        let none = HeaderMap::new();
        let mut room = Capacity::new(&Config::default(), Memory::unlimited()).body(1);
        assert_eq!(
            body(&none, Body::from("12345"), 5, &mut room)
                .await
                .expect("fits"),
            "12345"
        );
        let problem = body(&none, Body::from("123456"), 5, &mut room)
            .await
            .expect_err("too large");
        assert_eq!(problem.kind(), Kind::TooLarge);
    }

    /// Parts of a body: bytes, and the seconds before them.
    type Timed = &'static [(usize, u64)];
    const STEADY: Timed = &[(50_000, 9); 8];
    const STOPS: Timed = &[(100_000, 0), (1, 11)];
    const TRICKLES: Timed = &[(1, 3); 20];

    #[tokio::test(start_paused = true)]
    async fn body_that_stops_or_trickles_is_given_up_and_one_that_is_only_slow_is_not() {
        let capacity = Capacity::new(&Config::default(), Memory::new(64 << 20));
        let none = HeaderMap::new();
        let part = |bytes: usize, after: u64| async move {
            tokio::time::sleep(Duration::from_secs(after)).await;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![7; bytes]))
        };
        let parts = |parts: Timed| {
            Body::from_stream(
                futures_util::stream::iter(parts).then(move |(bytes, after)| part(*bytes, *after)),
            )
        };
        let read = async |parts| body(&none, parts, 1 << 20, &mut capacity.body(1)).await;
        let steady = read(parts(STEADY)).await.expect("slow, but steady");
        assert_eq!(steady.len(), 400_000);
        for slow in [STOPS, TRICKLES] {
            let problem = read(parts(slow)).await.expect_err("it is too slow");
            assert_eq!(problem.kind(), Kind::Slow, "{slow:?}");
        }
    }
}
