//! Positions and validators in HTTP: `at-least`, `timeout`,
//! `Foldstream-Position`, `ETag` and `If-None-Match`.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::extract::Head;
use super::json;
use super::problem::Problem;
use crate::event::Payload;
use crate::state::Snapshot;

/// The header with the position that a response reflects.
pub(super) const POSITION: &str = "foldstream-position";
/// The header with the generation that answered.
pub(super) const GENERATION: &str = "foldstream-generation";

/// The header with the number of events that the state skipped; absent if there are none.
pub(super) const SKIPPED: &str = "foldstream-skipped";
/// The header with the number of events that the state has parked; absent if there are none.
pub(super) const PARKED: &str = "foldstream-parked";

/// The header with the number of events that were gone from the stream before the state could have
/// them, and were accepted as missing; absent if there are none.
pub(super) const MISSING: &str = "foldstream-missing";

/// Default wait of a read for `at-least`.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Parses `timeout`: digits and one of `ms`, `s`, `m`; capped at `longest`.
pub(super) fn timeout(text: Option<&str>, longest: Duration) -> Result<Duration, Problem> {
    let Some(text) = text else {
        return Ok(TIMEOUT.min(longest));
    };
    let refused = || {
        Problem::invalid(format!(
            "timeout `{text}` is refused; write it like 500ms, 5s or 1m"
        ))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    // Six digits of minutes are nearly two years, so the product below cannot overflow.
    if digits == 0 || digits > 6 {
        return Err(refused());
    }
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let timeout = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        _ => return Err(refused()),
    };
    Ok(timeout.min(longest))
}

/// A response that reflects a position.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    pub(super) position: u64,
    pub(super) generation: u64,
    /// Events that the state lacks because they are parked.
    pub(super) lacks: Lacks,
}

/// How many events up to a position a state skipped, how many it has parked, and how many it never
/// had because they were gone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lacks {
    pub(super) skipped: u64,
    pub(super) parked: u64,
    pub(super) missing: u64,
}

impl Lacks {
    /// Those of a snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self {
            skipped: snapshot.exceptions_count(),
            parked: snapshot.parked_count(),
            missing: snapshot.missing_count(),
        }
    }
}

impl Answer {
    /// A payload as the response. Hashes all of it.
    pub(super) fn of(payload: Payload, position: u64, generation: u64, lacks: Lacks) -> Self {
        let (content_type, body) = (json::content_type(&payload), json::octets(payload));
        Self {
            content_type,
            body,
            position,
            generation,
            lacks,
        }
    }

    /// The response: 304 without a body if the client already has it.
    pub(super) fn respond(self, request: &Head) -> Response {
        let etag = etag(self.content_type, &self.body);
        // Only these have a representation that a client may have kept (RFC 9110, 13.1.2).
        let safe = request.method == Method::GET || request.method == Method::HEAD;
        let mut response = if safe && matches(&request.headers, &etag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let mut response = Response::new(Body::from(self.body));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static(self.content_type),
            );
            response
        };
        let headers = response.headers_mut();
        headers.insert(
            header::ETAG,
            HeaderValue::try_from(etag).expect("hexadecimal in quotes"),
        );
        // It may be kept, but has to be asked for again: the state changes at any time.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(
            HeaderName::from_static(POSITION),
            HeaderValue::from(self.position),
        );
        headers.insert(
            HeaderName::from_static(GENERATION),
            HeaderValue::from(self.generation),
        );
        let Lacks {
            skipped,
            parked,
            missing,
        } = self.lacks;
        for (name, count) in [(SKIPPED, skipped), (PARKED, parked), (MISSING, missing)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(count));
        }
        response
    }
}

/// A strong validator: it changes with any byte of the body and with its type.
fn etag(content_type: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(content_type.as_bytes());
    // A byte that no content type has, so that the two parts cannot be mixed up.
    hash.update([0]);
    hash.update(body);
    let digest = hash.finalize();
    let mut etag = String::with_capacity(34);
    etag.push('"');
    for byte in &digest[..16] {
        etag.push(char::from_digit(u32::from(byte >> 4), 16).expect("below 16"));
        etag.push(char::from_digit(u32::from(byte & 15), 16).expect("below 16"));
    }
    etag.push('"');
    etag
}

/// Whether `If-None-Match` contains this validator (RFC 9110, 13.1.2: weak comparison).
fn matches(request: &HeaderMap, etag: &str) -> bool {
    request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|candidate| {
            // `W/` marks a weak validator, which is compared like a strong one here.
            candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == etag
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &'static str) -> Answer {
        Answer {
            content_type: "text/plain",
            body: Bytes::from_static(body.as_bytes()),
            position: 7,
            generation: 2,
            lacks: Lacks::default(),
        }
    }

    fn respond(body: &'static str, if_none_match: &str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::IF_NONE_MATCH,
            HeaderValue::from_str(if_none_match).expect("a value"),
        );
        answer(body).respond(&Head {
            method: Method::GET,
            headers,
        })
    }

    #[test]
    fn timeouts_are_read_and_capped() {
        let longest = Duration::from_secs(30);
        assert_eq!(
            timeout(None, longest).expect("default"),
            Duration::from_secs(5)
        );
        assert_eq!(
            timeout(None, Duration::from_secs(1)).expect("default"),
            Duration::from_secs(1)
        );
        assert_eq!(
            timeout(Some("500ms"), longest).expect("sound"),
            Duration::from_millis(500)
        );
        assert_eq!(timeout(Some("0s"), longest).expect("sound"), Duration::ZERO);
        assert_eq!(timeout(Some("2m"), longest).expect("sound"), longest);
        for text in ["", "5", "s", "5h", "-1s", "5 s", "1.5s", "9999999s"] {
            assert!(timeout(Some(text), longest).is_err(), "{text}");
        }
    }

    #[test]
    fn etag_follows_content_and_type() {
        assert_eq!(etag("text/plain", b"a"), etag("text/plain", b"a"));
        assert_ne!(etag("text/plain", b"a"), etag("text/plain", b"b"));
        assert_ne!(etag("text/plain", b"a"), etag("application/json", b"a"));
    }

    #[test]
    fn known_validator_is_answered_without_a_body() {
        let etag = etag("text/plain", b"one");
        for if_none_match in [
            etag.clone(),
            format!("W/{etag}"),
            format!("\"x\", {etag}"),
            "*".to_owned(),
        ] {
            let response = respond("one", &if_none_match);
            assert_eq!(
                response.status(),
                StatusCode::NOT_MODIFIED,
                "{if_none_match}"
            );
            assert_eq!(response.headers()[POSITION], "7");
            assert_eq!(response.headers()[GENERATION], "2");
            assert_eq!(response.headers()[header::ETAG], etag);
        }
        assert_eq!(respond("two", &etag).status(), StatusCode::OK);
    }

    #[test]
    fn validators_do_not_spare_a_post() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        let head = Head {
            method: Method::POST,
            headers,
        };
        assert_eq!(answer("one").respond(&head).status(), StatusCode::OK);
    }
}
