//! The HTTP server: the only interface of the host, also for our own command line.
//!
//! A request passes, from the outside in: the timer and the request log, the
//! panic handler, the time limit, the guard, the charge for its answer, and
//! then the route. Every error leaves as a `problem`. Nothing here knows how
//! state, modules or sources work: it uses them through [`Host`] and the
//! handles that it returns.

mod append_body;
mod append_cloudevents;
mod auth;
mod capacity;
mod certificate;
mod connections;
mod counted;
mod extract;
mod json;
mod listen;
mod observe;
mod openapi;
mod origin;
mod position;
mod problem;
mod routes;
mod scopes;
mod secrets;
mod sse;
mod standing;
mod startup;
mod tokens;
mod wait;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

pub use auth::check_exposure;
pub use certificate::{Validity, certificate_validity};
pub use openapi::document;
pub use startup::Entrance;

use self::problem::{Kind, Problem};
use crate::actor;
use crate::config::{self, Config};
use crate::host::Host;

/// Why the server can't start or continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address would expose the host.
    #[error(
        "refusing to serve on {address} without {missing}: anyone who reaches it could deploy \
         code; set serve.token and serve.tls_cert with serve.tls_key, listen on 127.0.0.1, or \
         allow it with --insecure (serve.insecure)"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// What is missing.
        missing: &'static str,
    },
    /// The token can't be used.
    #[error("cannot use the token: {0}")]
    Token(String),
    /// The file of tokens can't be used.
    #[error("cannot use serve.tokens_file {0}")]
    TokensFile(String),
    /// The certificate or its key can't be used.
    #[error("cannot serve TLS: {0}")]
    Tls(String),
    /// The listener failed.
    #[error("cannot serve on the address: {0}")]
    Listen(#[from] std::io::Error),
}

/// What every handler needs. Cloning shares it.
#[derive(Clone)]
struct App(Arc<Shared>);

struct Shared {
    host: Host,
    config: config::Serve,
    /// The address listened on.
    address: SocketAddr,
    /// Tokens and certificate.
    secrets: secrets::Secrets,
    /// Requests refused because of their token or scope.
    refusals: auth::Refusals,
    capacity: capacity::Capacity,
    /// Largest upload of a module, in bytes.
    upload_bytes_max: usize,
    /// Added to the time limit of an upload, because it may wait for the compiler.
    check_and_compile_time_max: std::time::Duration,
    /// Sources that are streams of a NATS server, and therefore not for `/v1/events`.
    streams: BTreeSet<String>,
    /// Whether there is no other source.
    only_streams: bool,
    /// The description of the API.
    document: Bytes,
    /// Ends the event streams.
    shutdown: CancellationToken,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Checks token and TLS settings, which a server would refuse at its start.
pub fn check_secrets(config: &config::Serve) -> Result<(), Error> {
    secrets::Secrets::new(config, config.listen).map(drop)
}

/// Serves until `shutdown`, then gives running requests some seconds to end.
///
/// The caller passes the listener, so that it knows the address even with port
/// 0.
pub async fn run(
    listener: TcpListener,
    host: Host,
    config: &Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let entrance = Entrance::new(&listener, Arc::new(config.clone()), shutdown)?;
    entrance.open(host);
    entrance.serve(listener).await
}

impl App {
    fn new(host: Host, entrance: &Entrance) -> Self {
        let config = &entrance.config;
        let streams = config.sources.iter().filter(|(_, source)| !source.is_log());
        let streams: BTreeSet<String> = streams.map(|(name, _)| name.clone()).collect();
        // Made once: it is the same for all clients.
        let document = serde_json::to_vec(&document()).expect("the description is plain data");
        Self(Arc::new(Shared {
            capacity: capacity::Capacity::new(config, host.memory().clone()),
            host,
            address: entrance.address,
            secrets: entrance.secrets.clone(),
            refusals: auth::Refusals::default(),
            upload_bytes_max: config.modules.upload_bytes_max,
            check_and_compile_time_max: config.modules.check_time_max
                + config.modules.compile_time_max,
            only_streams: !streams.is_empty() && streams.len() == config.sources.len(),
            streams,
            document: document.into(),
            config: config.serve.clone(),
            shutdown: entrance.shutdown.clone(),
        }))
    }
}

fn router(app: App) -> Router {
    let (router, _) = routes::all().split_for_parts();
    // The order is from the inside out: the last layer sees a request first.
    let router = router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(app.clone(), observe::charge))
        .layer(from_fn_with_state(app.clone(), auth::guard));
    // Before the guard: a browser asks for permission without a token, and must be able to read
    // refusals.
    let router = match origin::cors(&app.config) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(app.clone(), observe::time_out))
        .layer(CatchPanicLayer::custom(problem::from_panic))
        .layer(from_fn_with_state(app.clone(), observe::record))
        .with_state(app)
}

async fn no_route(uri: Uri) -> Problem {
    Problem::not_found(format!(
        "there is nothing at {}; /openapi.json lists all paths",
        uri.path()
    ))
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        format!(
            "{} does not support {method}; the Allow header lists what it supports",
            uri.path()
        ),
    )
}

/// Runs blocking work on its own thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| lost(&error))
}

/// Runs work that a disk may delay, where it is: the runtime gives the other tasks of this thread to
/// another one meanwhile. A point read or a short page takes less time than two changes of threads.
async fn in_place<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => Ok(tokio::task::block_in_place(work)),
        // A runtime of one thread cannot.
        _ => blocking(work).await,
    }
}

/// Completes a change even if its client disconnects, because a half-finished deploy helps no one.
async fn finish<T: Send + 'static>(
    change: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    // The actor goes along, because a spawned task has none of its own.
    tokio::spawn(actor::scope(actor::current(), change))
        .await
        .map_err(|error| lost(&error))
}

/// Our own work panicked; the panic hook has logged its message and location.
fn lost(error: &JoinError) -> Problem {
    tracing::error!(%error, "work for a request was lost");
    Problem::internal("the host failed while it processed this; its log has the details")
}

fn json_response(body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
