//! The client of the HTTP API. Commands reach a host only through it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::exit_code::Exit;
use super::output::{Output, printable};
use crate::api::{Deployment, Problem};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a response beyond the wait that the caller asked for: more than the host's own
/// limit for a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest time for the upload and compilation of a module.
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// How long, and how often, to retry while a host is not ready yet.
const READY_MAX: Duration = Duration::from_secs(10);
const READY_PAUSE: Duration = Duration::from_millis(100);
/// Largest answer to read, in bytes: more than a page of events and more than any value. Streams and
/// exports have no limit.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Largest problem to read, in bytes.
const PROBLEM_BYTES_MAX: usize = 1 << 20;
/// Largest text to show of an error that does not come from a host, in bytes.
const FOREIGN_ERROR_BYTES_MAX: usize = 300;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No host listens at the address.
    #[error(
        "cannot reach a host at {url}: {message}; start one with `foldstream serve` or `foldstream \
         dev`, or choose another with --url"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// The cause.
        message: String,
        /// Whether the address is known to be free: the connection was refused. Otherwise something
        /// may listen there that this client cannot talk to.
        is_refused: bool,
    },
    /// The host did not answer in time.
    #[error("{url} did not answer within {seconds} s; try again, or check the host's log")]
    TimedOut {
        /// The address.
        url: String,
        /// How long the client waited.
        seconds: u64,
    },
    /// The host answered with a problem.
    #[error("{}{}", detail(.0), position(.0))]
    Problem(Problem),
    /// Something that is not a host answered.
    #[error("{url} is not a foldstream host ({message}); check --url")]
    Foreign {
        /// The address.
        url: String,
        /// What was received.
        message: String,
    },
    /// The connection broke in the middle of a response.
    #[error("the response of {url} was cut off: {message}; try again")]
    Broken {
        /// The address.
        url: String,
        /// The cause.
        message: String,
    },
    /// The client cannot be set up with these options.
    #[error("{0}")]
    Setup(String),
}

/// What the host says. Its further lines are indented, and what could take over a terminal is
/// escaped: it may quote a module, or come from anybody.
fn detail(problem: &Problem) -> String {
    let lines: Vec<String> = problem.detail.lines().map(printable).collect();
    lines.join("\n  ")
}

fn position(problem: &Problem) -> String {
    match problem.position {
        Some(position) if !problem.detail.contains(&position.to_string()) => {
            format!(" (position {position})")
        }
        _ => String::new(),
    }
}

impl Error {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::TimedOut { .. } => Exit::TimedOut,
            // Something answered: this is not about reaching it.
            Self::Foreign { .. } | Self::Broken { .. } => Exit::Failed,
            Self::Setup(_) => Exit::Usage,
            Self::Problem(problem) => match problem.kind.as_str() {
                "not-found" => Exit::NotFound,
                "behind" | "timeout" | "slow" => Exit::TimedOut,
                "not-ready" | "busy" | "stopping" => Exit::Unreachable,
                "internal" => Exit::Failed,
                _ => Exit::Refused,
            },
        }
    }

    /// Whether the host said that it is not ready yet.
    fn is_not_ready(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.kind == "not-ready")
    }

    /// Whether the host may have done what was asked, though no answer came.
    pub fn leaves_open(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::TimedOut { .. })
    }

    /// Whether a retry in a moment may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::TimedOut { .. } => true,
            Self::Problem(problem) => {
                matches!(problem.kind.as_str(), "not-ready" | "busy" | "stopping")
            }
            Self::Foreign { .. } | Self::Setup(_) => false,
        }
    }
}

/// How to reach a host.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its address.
    pub url: String,
    /// The token to send.
    pub token: Option<String>,
}

/// A client of one host.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    /// The same for messages: without a password.
    shown: String,
    token: Option<HeaderValue>,
    output: Output,
}

impl Client {
    /// Creates a client. It connects on the first request.
    pub fn new(connection: &Connection, ca: Option<&Path>, output: Output) -> Result<Self, Error> {
        let url = &connection.url;
        let base = Url::parse(url).map_err(|error| {
            Error::Setup(format!(
                "--url `{url}` is not an address ({error}); write http://HOST:PORT"
            ))
        })?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(Error::Setup(format!(
                "--url `{url}` is not a web address; write http://HOST:PORT"
            )));
        }
        let token = connection.token.as_deref().map(bearer).transpose()?;
        // A provider may be installed already, which works just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("foldstream/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = ca {
            builder = builder.tls_certs_only(certificates(ca)?);
        } else if base.scheme() == "http" {
            // Without TLS it does not matter whether the machine has root certificates.
            builder = builder.tls_certs_only([]);
        }
        if is_this_machine(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            Error::Setup(format!(
                "cannot set up TLS: {}; give a file with --ca",
                causes(&error)
            ))
        })?;
        let shown = without_password(&base).trim_end_matches('/').to_owned();
        Ok(Self {
            http,
            base,
            shown,
            token,
            output,
        })
    }

    /// The address of the host, for messages.
    pub fn url(&self) -> &str {
        &self.shown
    }

    /// Starts a request to a path. Each segment may contain any text.
    pub fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        // A path in the address stays: the host may be behind a proxy that adds one.
        let before = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{before}{}", path(segments)));
        if segments
            .iter()
            .any(|segment| matches!(*segment, "." | ".."))
        {
            // Never sent, but seen by `answer_once`: this cannot fail itself.
            url.set_fragment(Some(NOT_ADDRESSED));
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        }
    }

    /// Sends a request and returns any response that is not an error.
    pub async fn send(
        &self,
        request: RequestBuilder,
        timeout: Duration,
    ) -> Result<Response, Error> {
        self.answer(request.timeout(timeout), Some(timeout)).await
    }

    /// Sends a request with an endless response.
    pub async fn stream(&self, request: RequestBuilder) -> Result<Response, Error> {
        self.answer(request, None).await
    }

    /// Sends a request, and repeats it for a while if the host says that it is not ready yet: such
    /// a host has done nothing.
    async fn answer(
        &self,
        mut request: RequestBuilder,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        // At most as long as the caller would wait anyway.
        let until = Instant::now() + timeout.unwrap_or(READY_MAX).min(READY_MAX);
        loop {
            // None for a body that can be read only once: such a request is not repeated.
            let again = request.try_clone();
            let (error, again) = match (self.answer_once(request, timeout).await, again) {
                (Err(error), Some(again)) if error.is_not_ready() && Instant::now() < until => {
                    (error, again)
                }
                (answer, _) => return answer,
            };
            self.output.detail(&error.to_string());
            // A host that is starting has no way to call back.
            tokio::time::sleep(READY_PAUSE).await;
            request = again;
        }
    }

    async fn answer_once(
        &self,
        request: RequestBuilder,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let begun = Instant::now();
        let request = request
            .build()
            .map_err(|error| Error::Setup(causes(&error)))?;
        let (method, url) = (request.method().clone(), request.url().clone());
        if url.fragment() == Some(NOT_ADDRESSED) {
            return Err(Error::Setup(
                "`.` and `..` cannot be names or keys in an address, in which they mean folders; \
                 `foldstream scan` shows entries with such keys"
                    .to_owned(),
            ));
        }
        let response = self
            .http
            .execute(request)
            .await
            .map_err(|error| self.failed(&error, timeout))?;
        let status = response.status();
        self.output.detail(&format!(
            "{method} {url}: {status} after {} ms",
            begun.elapsed().as_millis()
        ));
        if status.is_success() {
            self.warn_of_lacks(&url, &response);
            return Ok(response);
        }
        Err(self.problem(status, response).await)
    }

    /// Says once what an as-of read lacks, and any read without parked events; what else current state
    /// lacks, `show` says.
    fn warn_of_lacks(&self, url: &Url, response: &Response) {
        static HAS_WARNED: AtomicBool = AtomicBool::new(false);
        let is_past = url.query_pairs().any(|(name, _)| name == "as-of");
        let count = |name| response.headers().get(name)?.to_str().ok();
        let skipped = count("foldstream-skipped")
            .map(|count| format!("without {count} skipped events; `foldstream skips` lists them"));
        let missing = count("foldstream-missing")
            .map(|count| format!("without {count} events that were gone from the stream"));
        let parked = count("foldstream-parked").map(|count| {
            let events = if count == "1" { "event" } else { "events" };
            format!("without {count} parked {events}; `foldstream parked list` shows the keys")
        });
        let of_past = skipped.into_iter().chain(missing).filter(|_| is_past);
        let notes: Vec<String> = of_past.chain(parked).collect();
        // Relaxed: it only decides which of several responses is the one that says so.
        if !notes.is_empty() && !HAS_WARNED.swap(true, Ordering::Relaxed) {
            notes.iter().for_each(|note| self.output.note(note));
        }
    }

    fn failed(&self, error: &reqwest::Error, timeout: Option<Duration>) -> Error {
        let url = self.url().to_owned();
        // First, because a connection that takes too long is also a timeout.
        if error.is_connect() {
            return Error::Unreachable {
                url,
                message: causes(error),
                is_refused: is_refused(error),
            };
        }
        match timeout {
            Some(timeout) if error.is_timeout() => Error::TimedOut {
                url,
                seconds: timeout.as_secs(),
            },
            _ => Error::Broken {
                url,
                message: causes(error),
            },
        }
    }

    async fn problem(&self, status: StatusCode, response: Response) -> Error {
        let body = match self.read_within(response, PROBLEM_BYTES_MAX).await {
            Ok(body) => body,
            Err(endless @ Error::Foreign { .. }) => return endless,
            // Its status says enough.
            Err(_) => Bytes::new(),
        };
        // Whatever is in between (a proxy, another program) may answer with a page of its own.
        if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
            return Error::Problem(problem);
        }
        let shown = &body[..body.len().min(FOREIGN_ERROR_BYTES_MAX)];
        let text = printable(String::from_utf8_lossy(shown).trim());
        Error::Foreign {
            url: self.url().to_owned(),
            message: format!("{status} {text}").trim_end().to_owned(),
        }
    }

    /// The body of an answer.
    pub async fn body(&self, response: Response) -> Result<Bytes, Error> {
        self.read_within(response, ANSWER_BYTES_MAX).await
    }

    /// The same, of at most this many bytes: whatever is at the address may never end it.
    async fn read_within(&self, mut response: Response, bytes_max: usize) -> Result<Bytes, Error> {
        let mut body = BytesMut::new();
        loop {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|error| self.failed(&error, Some(ANSWER_TIMEOUT)))?;
            let Some(chunk) = chunk else {
                return Ok(body.freeze());
            };
            if body.len() + chunk.len() > bytes_max {
                return Err(Error::Foreign {
                    url: self.url().to_owned(),
                    message: format!("its answer has more than {bytes_max} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Foreign {
            url: self.url().to_owned(),
            message: format!("this version cannot read its response: {error}"),
        })
    }

    /// Gets a JSON document.
    pub async fn get<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        let request = self.request(Method::GET, segments).query(query);
        let response = self.send(request, ANSWER_TIMEOUT).await?;
        self.json(response).await
    }

    /// Posts a body of a given type and returns a JSON document.
    pub async fn post<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
        content: (&'static str, Bytes),
        timeout: Duration,
    ) -> Result<T, Error> {
        let request = self
            .request(Method::POST, segments)
            .query(query)
            .header(CONTENT_TYPE, content.0)
            .body(content.1);
        let response = self.send(request, timeout).await?;
        self.json(response).await
    }

    /// Sends a request and returns a JSON document.
    pub async fn answer_of<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, Error> {
        let response = self.send(request, ANSWER_TIMEOUT).await?;
        self.json(response).await
    }

    /// Posts without a body.
    pub async fn act<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        let request = self.request(Method::POST, segments).query(query);
        let response = self.send(request, ANSWER_TIMEOUT).await?;
        self.json(response).await
    }

    /// A value as it is stored, or as a query answers it.
    pub async fn value(&self, request: RequestBuilder) -> Result<Value, Error> {
        let response = self.send(request, ANSWER_TIMEOUT).await?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let media_type = header("content-type").unwrap_or_default();
        let position = header("foldstream-position").and_then(|position| position.parse().ok());
        let body = self.body(response).await?;
        Ok(Value {
            media_type,
            position,
            body,
        })
    }

    /// By how many seconds the host's clock is ahead of the local one; none if the host does not
    /// say.
    pub async fn clock_skew(&self) -> Result<Option<i64>, Error> {
        let response = self
            .send(self.request(Method::GET, &["v1", "host"]), ANSWER_TIMEOUT)
            .await?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let date = response
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok());
        let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let ours = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Ok(theirs.map(|theirs| theirs.timestamp().as_second() - ours))
    }

    /// The current state of a deployment.
    pub async fn deployment(&self, name: &str) -> Result<Deployment, Error> {
        self.get(&["v1", "deployments", name], &[]).await
    }
}

/// A value with its type.
#[derive(Clone, Debug)]
pub struct Value {
    /// Media type.
    pub media_type: String,
    /// The position that it reflects.
    pub position: Option<u64>,
    /// The octets.
    pub body: Bytes,
}

impl Value {
    /// Whether it is JSON text.
    pub fn is_json(&self) -> bool {
        self.media_type.starts_with("application/json")
    }
}

/// Whether no proxy could lead there.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = host
        .parse::<std::net::IpAddr>()
        .map(|address| address.to_canonical());
    address.map_or_else(
        |_| host == "localhost" || host.ends_with(".localhost"),
        |address| address.is_loopback(),
    )
}

fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        // Any address that has a password may have another.
        let _ = url.set_password(Some("…"));
    }
    url.to_string().replace("%E2%80%A6", "…")
}

fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Error::Setup(
            "the token has characters that a header cannot carry; use printable ASCII".to_owned(),
        )
    })?;
    // So that a debug output of a request does not show it.
    value.set_sensitive(true);
    Ok(value)
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let shown = path.display();
    let pem = crate::small_file::read_text(path)
        .map_err(|error| Error::Setup(format!("cannot read --ca {shown}: {error}")))?
        .into_bytes();
    let unusable = |why: String| {
        Error::Setup(format!(
            "--ca {shown} {why}; give a PEM file with certificates"
        ))
    };
    let found = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|error| unusable(format!("cannot be used: {error}")))?;
    if found.is_empty() {
        return Err(unusable("contains no certificate".to_owned()));
    }
    Ok(found)
}

/// Whether nobody listens at the address.
fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && error.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The innermost cause, which is the most specific one.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Marks an address from which its parser has removed `.` or `..`, and which so names something
/// else.
const NOT_ADDRESSED: &str = "not-addressed";

/// The characters that need no encoding in a segment of a path (RFC 3986, section 2.3).
const UNRESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The path with these segments, of which each may contain any text. The parser of addresses would
/// drop tabs and line ends.
fn path(segments: &[&str]) -> String {
    let encoded = |segment: &&str| format!("/{}", utf8_percent_encode(segment, &UNRESERVED));
    segments.iter().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("an address")
    }

    #[test]
    fn no_proxy_is_asked_for_this_machine() {
        for here in [
            "http://127.0.0.1:7575",
            "http://127.8.9.1",
            "http://[::1]:1",
            "https://localhost",
            "http://LOCALHOST",
        ] {
            assert!(is_this_machine(&url(here)), "{here}");
        }
        for elsewhere in [
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_this_machine(&url(elsewhere)), "{elsewhere}");
        }
    }

    #[test]
    fn segments_of_a_path_keep_every_character() {
        let segments = ["v1", "a\tb\r\n", "ü/?#%", "a-b._~"];
        let wanted = "/v1/a%09b%0D%0A/%C3%BC%2F%3F%23%25/a-b._~";
        assert_eq!(path(&segments), wanted);
        let mut address = url("http://host:1/");
        address.set_path(&path(&segments));
        assert_eq!(address.path(), wanted);
    }

    #[test]
    fn messages_name_the_address_without_its_password() {
        assert_eq!(
            without_password(&url("http://ada:secret@host:1/")),
            "http://ada:…@host:1/"
        );
        assert_eq!(without_password(&url("http://host:1/")), "http://host:1/");
    }
}
