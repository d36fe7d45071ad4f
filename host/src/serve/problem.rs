//! Problems: the common form of every HTTP error (RFC 9457).
//!
//! Internal failures are logged here, once; the client gets a name that never
//! changes, a status, and what to do next.

use std::any::Any;
use std::fmt::Display;
use std::io::ErrorKind;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::position::POSITION;
use crate::{
    api, data_dir, deployments, history, host, log, module, runner, state, storage, subject,
};

/// Seconds after which a client may retry if the host was busy or not ready.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Longest detail, in bytes: it may quote what a client sent, which may be as long as a body.
const DETAIL_BYTES_MAX: usize = 4 << 10;

/// A detail of limited length. Its end says what to do, so the end is kept.
fn clipped(detail: String) -> String {
    if detail.len() <= DETAIL_BYTES_MAX {
        return detail;
    }
    let half = DETAIL_BYTES_MAX / 2;
    // At boundaries of characters, so that nothing of the text is cut in two.
    let (begin, end) = (
        detail.floor_char_boundary(half),
        detail.ceil_char_boundary(detail.len() - half),
    );
    format!(
        "{} … {} bytes … {}",
        &detail[..begin],
        end - begin,
        &detail[end..]
    )
}

/// All kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NotFound,
    Invalid,
    TooLarge,
    Conflict,
    Refused,
    Limit,
    NoRoom,
    QueryFailed,
    Unauthorized,
    Forbidden,
    NotAllowed,
    MethodNotAllowed,
    UnsupportedMediaType,
    Behind,
    Timeout,
    Slow,
    NotReady,
    Busy,
    Stopping,
    Internal,
}

impl Kind {
    /// Name, status, and title.
    fn describe(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "Not found"),
            Self::Invalid => (
                "invalid",
                StatusCode::BAD_REQUEST,
                "The request is not valid",
            ),
            Self::TooLarge => (
                "too-large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "The body is too large",
            ),
            Self::Conflict => (
                "conflict",
                StatusCode::CONFLICT,
                "Conflicts with the current state",
            ),
            Self::Refused => ("refused", StatusCode::UNPROCESSABLE_ENTITY, "Refused"),
            Self::Limit => (
                "limit",
                StatusCode::UNPROCESSABLE_ENTITY,
                "A limit was reached",
            ),
            Self::NoRoom => (
                "no-room",
                StatusCode::INSUFFICIENT_STORAGE,
                "There is no room on disk",
            ),
            Self::QueryFailed => (
                "query-failed",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The module failed to answer",
            ),
            Self::Unauthorized => (
                "unauthorized",
                StatusCode::UNAUTHORIZED,
                "A token is required",
            ),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "Origin not allowed"),
            Self::NotAllowed => (
                "not-allowed",
                StatusCode::FORBIDDEN,
                "The token does not allow it",
            ),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                StatusCode::METHOD_NOT_ALLOWED,
                "The path does not support this method",
            ),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported content type",
            ),
            Self::Behind => (
                "behind",
                StatusCode::GATEWAY_TIMEOUT,
                "The position was not reached in time",
            ),
            Self::Timeout => (
                "timeout",
                StatusCode::GATEWAY_TIMEOUT,
                "The request took too long",
            ),
            Self::Slow => (
                "slow",
                StatusCode::REQUEST_TIMEOUT,
                "The body arrived too slowly",
            ),
            Self::NotReady => (
                "not-ready",
                StatusCode::SERVICE_UNAVAILABLE,
                "Not ready yet",
            ),
            Self::Busy => (
                "busy",
                StatusCode::SERVICE_UNAVAILABLE,
                "The host is at capacity",
            ),
            Self::Stopping => (
                "stopping",
                StatusCode::SERVICE_UNAVAILABLE,
                "The host is stopping",
            ),
            Self::Internal => (
                "internal",
                StatusCode::INTERNAL_SERVER_ERROR,
                "The host failed",
            ),
        }
    }
}

/// A problem to return to the client.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    /// What the client gets.
    detail: String,
    /// What the log gets; without it, the detail. It may name files and what the system said of
    /// them.
    internal: Option<String>,
    position: Option<u64>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: clipped(detail.into()),
            internal: None,
            position: None,
        }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, detail)
    }

    pub(super) fn stopping() -> Self {
        Self::new(Kind::Stopping, "the host is stopping; try again")
    }

    /// A failure of the host. The client gets a text without secrets and without paths of the host.
    pub(super) fn internal(detail: impl Into<String>) -> Self {
        Self::new(Kind::Internal, detail)
    }

    /// A failure of the host: what failed, for the client, and why, for the log.
    fn failed(what: &str, why: &dyn Display) -> Self {
        let detail = format!("{what}; the log of the host has the details");
        Self {
            internal: Some(why.to_string()),
            ..Self::new(Kind::Internal, detail)
        }
    }

    /// A disk, quota or limit that is exhausted: what has no more room, for the client, and why,
    /// for the log.
    fn no_room(what: &str, why: &dyn Display) -> Self {
        let detail = format!(
            "{what} has no more room: the disk is full, or a limit of the system is reached; \
             free some space on the host and try again"
        );
        Self {
            internal: Some(why.to_string()),
            ..Self::new(Kind::NoRoom, detail)
        }
    }

    /// A file that can't be read or written: which, for the client, and why, for the log.
    fn of_storage(what: &str, cause: &storage::Error, why: &dyn Display) -> Self {
        match cause.kind() {
            storage::ErrorKind::OutOfRoom => Self::no_room(what, why),
            // The first failure was reported as what it was, such as a full disk.
            storage::ErrorKind::FailedBefore => Self::new(
                Kind::NotReady,
                format!("{what} failed a moment ago and is being reopened; try again"),
            ),
            storage::ErrorKind::Other => {
                Self::failed(&format!("{what} can't be read or written"), why)
            }
        }
    }

    /// The position of the deployment.
    pub(super) fn at(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    #[cfg(test)]
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (name, status, title) = self.kind.describe();
        let internal = self.internal.as_ref();
        // An error that an operator must see, once, where it becomes an answer.
        if self.kind == Kind::Internal {
            tracing::error!(
                detail = internal.unwrap_or(&self.detail),
                "a request failed inside the host"
            );
        } else if let Some(detail) = internal {
            tracing::warn!(detail, "a request could not be done");
        }
        let problem = api::Problem {
            kind: name.to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            position: self.position,
        };
        let body = serde_json::to_vec(&problem).expect("a problem is plain data");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        // The same request may succeed in a moment.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(position) = self.position {
            headers.insert(
                HeaderName::from_static(POSITION),
                HeaderValue::from(position),
            );
        }
        match self.kind {
            Kind::Busy | Kind::NotReady | Kind::Stopping => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            Kind::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// The problem for a panic of a handler. The panic hook has logged its message and location.
pub(super) fn from_panic(_panic: Box<dyn Any + Send>) -> Response {
    Problem::internal("the host failed while it processed the request; its log has the details")
        .into_response()
}

impl From<host::Error> for Problem {
    fn from(error: host::Error) -> Self {
        use host::Error;
        let kind = match error {
            Error::NotFound(_) | Error::Missing(_) => Kind::NotFound,
            Error::Name(_) | Error::Source(_) | Error::UnknownSource(_) => Kind::Invalid,
            Error::Module(error) => return error.into(),
            Error::State(error) => return error.into(),
            Error::Log(error) => return error.into(),
            Error::DataDir(error @ data_dir::Error::Unusable { .. }) => {
                return Self::failed("the data folder can't be used", &error);
            }
            Error::DataDir(error @ data_dir::Error::NoRoom { .. }) => {
                return Self::no_room("the data folder", &error);
            }
            Error::Files { what, ref source } => {
                return match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                        Self::no_room("the data folder", &error)
                    }
                    _ => Self::failed(what, &error),
                };
            }
            Error::TooMany(_) => Kind::Limit,
            Error::NotOpen(_) => Kind::NotReady,
            Error::Load(ref load) if load.is_passing => Kind::NotReady,
            Error::Repair(
                runner::RepairError::State(error) | runner::RepairError::Limit(error),
            ) => {
                return error.into();
            }
            Error::Repair(runner::RepairError::Late(_) | runner::RepairError::Closed) => {
                Kind::NotReady
            }
            Error::Conflict(_) | Error::Load(_) => Kind::Conflict,
            Error::Refused(_) | Error::Lacking { .. } | Error::Gate(_) | Error::Plan(_) => {
                Kind::Refused
            }
            Error::NoRoom { .. } => Kind::NoRoom,
            Error::Stopping => Kind::Stopping,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<module::Error> for Problem {
    fn from(error: module::Error) -> Self {
        use module::Error;
        let kind = match error {
            Error::Refused(_) | Error::Manifest(_) | Error::Check(_) | Error::Compile(_) => {
                Kind::Refused
            }
            Error::Engine { .. } => {
                return Self::failed("the engine that runs modules failed", &error);
            }
            Error::Busy(_) | Error::Short(_) => Kind::Busy,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<state::Error> for Problem {
    fn from(error: state::Error) -> Self {
        let kind = match error {
            state::Error::Limit { .. } => Kind::Limit,
            state::Error::Refused(_) => Kind::Refused,
            state::Error::Busy(_) => Kind::Busy,
            state::Error::Late => Kind::Timeout,
            state::Error::Full(_) => Kind::NoRoom,
            // Its file may come back, so it is no failure of this request.
            state::Error::Displaced(_) => Kind::NotReady,
            state::Error::Open(_) | state::Error::InUse(_) => {
                return Self::failed("a file of the host can't be opened", &error);
            }
            state::Error::Damaged(_) => {
                return Self::failed("a file of the host is damaged", &error);
            }
            state::Error::Storage(ref cause) => {
                return Self::of_storage("a file of the host", cause, &error);
            }
        };
        Self::new(kind, error.to_string())
    }
}

impl From<log::Error> for Problem {
    fn from(error: log::Error) -> Self {
        let kind = match error {
            log::Error::Conflict { .. } | log::Error::CursorMoved(_) | log::Error::Time { .. } => {
                Kind::Conflict
            }
            log::Error::Invalid { .. } => Kind::Invalid,
            log::Error::Full(_) => Kind::NoRoom,
            log::Error::NotOpen(_) | log::Error::Displaced(_) => Kind::NotReady,
            log::Error::Open(_) => return Self::failed("the embedded log can't be opened", &error),
            log::Error::Storage(ref cause) => {
                return Self::of_storage("the embedded log", cause, &error);
            }
        };
        Self::new(kind, error.to_string())
    }
}

impl From<deployments::ViewError> for Problem {
    fn from(error: deployments::ViewError) -> Self {
        match error {
            deployments::ViewError::Host(error) => error.into(),
            deployments::ViewError::Read(error) => error.into(),
        }
    }
}

impl From<history::AsOfError> for Problem {
    fn from(error: history::AsOfError) -> Self {
        match error {
            history::AsOfError::Host(error) => error.into(),
            history::AsOfError::Read(error) => error.into(),
            busy @ history::AsOfError::Busy(_) => Self::new(Kind::Busy, busy.to_string()),
            history::AsOfError::Preparing(preparing) => {
                let position = preparing.position;
                Self::new(Kind::NotReady, preparing.to_string()).at(position)
            }
        }
    }
}

impl From<runner::ReadError> for Problem {
    fn from(error: runner::ReadError) -> Self {
        match error {
            runner::ReadError::NotReady(reason) => Self::new(Kind::NotReady, reason),
            // The next request learns which of both it is.
            gone @ runner::ReadError::Gone(_) => Self::new(Kind::NotReady, gone.to_string()),
            runner::ReadError::Behind(behind) => Self::new(
                Kind::Behind,
                format!("{behind}; retry, or wait longer with timeout"),
            )
            .at(behind.position),
        }
    }
}

impl From<subject::Error> for Problem {
    fn from(error: subject::Error) -> Self {
        Self::invalid(error.to_string())
    }
}

/// The failure of a query, with the names of the existing queries.
pub(super) fn from_query(error: &module::QueryError, name: &str, known: &[String]) -> Problem {
    use module::QueryError;
    let detail = error.to_string();
    match error {
        QueryError::UnknownQuery => Problem::not_found(format!(
            "there is no query {name}{}",
            super::extract::suggestion(name, known)
        )),
        QueryError::InvalidArguments(_) => Problem::invalid(detail),
        QueryError::NotFound => Problem::not_found(format!("query {name}: {detail}")),
        QueryError::Failed(_) => {
            Problem::new(Kind::QueryFailed, format!("query {name} failed: {detail}"))
        }
        QueryError::Deadline(_) => Problem::new(Kind::Timeout, detail),
        QueryError::NotReady(_) => Problem::new(Kind::NotReady, detail),
        QueryError::Busy | QueryError::Short(_) => Problem::new(Kind::Busy, detail),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::Router;
    use axum::body::to_bytes;
    use axum::routing::get;
    use rustix::io::Errno;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;
    use crate::atomic_file;

    async fn body(response: Response) -> api::Problem {
        let bytes = to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("in memory");
        serde_json::from_slice(&bytes).expect("a problem")
    }

    #[tokio::test]
    async fn problem_carries_what_a_client_needs_to_continue() {
        let behind = runner::ReadError::from(runner::Behind {
            wanted: 9,
            position: 7,
        });
        let response = Problem::from(behind).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[POSITION]),
            (504, &HeaderValue::from(7))
        );
        let problem = body(response).await;
        assert_eq!(
            (problem.kind.as_str(), problem.status, problem.position),
            ("behind", 504, Some(7))
        );
        let busy = Problem::new(Kind::Busy, "later").into_response();
        assert_eq!(busy.headers()[header::RETRY_AFTER], "1");
    }

    #[tokio::test]
    async fn panic_of_a_handler_is_a_problem_that_tells_no_secrets() {
        async fn panics() {
            panic!("secret");
        }
        let router = Router::new()
            .route("/", get(panics))
            .layer(CatchPanicLayer::custom(from_panic));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        // Another test may have been first; one provider is as good as the other.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let answer = client
            .get(format!("http://{address}/"))
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status().as_u16(), 500);
        let text = answer.text().await.expect("a body");
        assert!(
            text.contains("\"internal\"") && !text.contains("secret"),
            "{text}"
        );
        server.abort();
    }

    fn engine(message: &str) -> module::Error {
        module::Error::Engine {
            message: message.to_owned(),
            source: None,
        }
    }

    #[tokio::test]
    async fn failure_of_a_file_tells_the_client_what_failed_and_no_path() {
        let path = "/srv/data/state/totals/1.redb";
        let of_file = |error: Errno| storage::Error::of_file(path.as_ref(), io::Error::from(error));
        let (failed, full) = (|| of_file(Errno::IO), || of_file(Errno::NOSPC));
        let folder = || "/srv/data".to_owned();
        let unusable = data_dir::Error::Unusable {
            folder: folder(),
            message: "make it writable".to_owned(),
        };
        let problems = [
            (500, Problem::from(host::Error::from(unusable))),
            (
                507,
                Problem::from(host::Error::from(data_dir::Error::NoRoom {
                    folder: folder(),
                    error: full().to_string(),
                })),
            ),
            (
                500,
                Problem::from(host::Error::from(state::Error::Open(failed()))),
            ),
            (
                500,
                Problem::from(host::Error::from(state::Error::InUse(failed()))),
            ),
            (500, Problem::from(state::Error::Damaged(failed()))),
            (500, Problem::from(state::Error::Storage(failed()))),
            (507, Problem::from(state::Error::Storage(full()))),
            (500, Problem::from(log::Error::Open(failed()))),
            (500, Problem::from(log::Error::Storage(failed()))),
            (507, Problem::from(log::Error::Storage(full()))),
            (500, Problem::from(engine(&failed().to_string()))),
        ];
        let again = || storage::Error::failed_before("an earlier commit failed");
        for problem in [
            Problem::from(state::Error::Storage(again())),
            Problem::from(log::Error::Storage(again())),
        ] {
            assert_eq!(problem.into_response().status(), 503, "it is reopened soon");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = atomic_file::Held::of(folder.path()).expect("it is there");
        let place = folder.path().parent().expect("a folder").to_owned();
        drop(folder);
        let displaced = || held.check().expect_err("it is gone");
        for problem in [
            Problem::from(state::Error::Displaced(displaced())),
            Problem::from(log::Error::Displaced(displaced())),
        ] {
            let answer = body(problem.into_response()).await;
            let text = &answer.detail;
            assert_eq!(answer.status, 503, "{text}");
            assert!(!text.contains(&format!("{}/", place.display())), "{text}");
        }
        for (status, problem) in problems {
            let internal = problem.internal.clone().expect("the log has the details");
            assert!(
                internal.contains("/srv/data") || internal.contains("state/totals/1.redb"),
                "{internal}"
            );
            let answer = body(problem.into_response()).await;
            let (text, next) = (
                &answer.detail,
                if status == 500 {
                    "log of the host"
                } else {
                    "free some space"
                },
            );
            assert_eq!(answer.status, status, "{text}");
            assert!(
                !text.contains("/srv") && !text.contains("os error") && text.contains(next),
                "{text}"
            );
        }
    }

    #[test]
    fn a_detail_is_clipped_however_long_the_request_was() {
        let problem = Problem::invalid("ü".repeat(1 << 20));
        assert!(
            problem.detail.len() < 16 << 10,
            "{} bytes",
            problem.detail.len()
        );
        assert!(problem.detail.starts_with("üü"));
    }

    #[test]
    fn each_failure_of_the_host_has_its_status() {
        let kind = |error: host::Error| Problem::from(error).kind();
        assert_eq!(kind(host::Error::NotFound("a".to_owned())), Kind::NotFound);
        assert_eq!(
            kind(host::Error::from(
                crate::names::check("A").expect_err("a capital")
            )),
            Kind::Invalid
        );
        assert_eq!(
            kind(module::Error::Refused("no".to_owned()).into()),
            Kind::Refused
        );
        assert_eq!(kind(engine("no").into()), Kind::Internal);
        assert_eq!(
            kind(
                log::Error::Conflict {
                    expected: 1,
                    found: 2
                }
                .into()
            ),
            Kind::Conflict
        );
        assert_eq!(
            kind(log::Error::NotOpen("it is being repaired".to_owned()).into()),
            Kind::NotReady
        );
        assert_eq!(kind(host::Error::TooMany(1)), Kind::Limit);
        assert_eq!(kind(host::Error::Stopping), Kind::Stopping);
    }
}
