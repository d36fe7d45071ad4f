//! The way in: while the host is being opened, probes are answered and everything else is told to come back.
//!
//! Opening a data folder may take minutes, as after an unclean stop a large file is repaired. Whoever watches the process
//! must be able to tell that from a process that hangs.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::problem::{Kind, Problem};
use super::routes::health;
use super::secrets::Secrets;
use super::{App, Error, auth, listen};
use crate::config::{self, Config};
use crate::host::Host;

/// How long a request waits for the host to be opened: mostly that takes milliseconds, and no client need know of it.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// How many requests may wait for that; those beyond are told at once to come back.
const HELD_MAX: usize = 1_024;
/// How often is looked whether it is opened.
const HOLD_PAUSE: Duration = Duration::from_millis(5);

/// Why nothing else is answered yet.
const REASON: &str = "the data folder is being opened, with its logs and modules";

/// The way in. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Entrance {
    config: Arc<Config>,
    address: SocketAddr,
    secrets: Secrets,
    shutdown: CancellationToken,
    /// All routes, once the host is there.
    routes: Arc<OnceLock<Router>>,
}

impl Entrance {
    /// The way in at a listener, still closed. Whoever has one may say that it listens: all files that the configuration
    /// names were read.
    pub fn new(listener: &TcpListener, config: Arc<Config>, shutdown: CancellationToken) -> Result<Self, Error> {
        let address = listener.local_addr()?;
        auth::check_address(&config.serve, address)?;
        let secrets = Secrets::new(&config.serve, address)?;
        Ok(Self { config, address, secrets, shutdown, routes: Arc::default() })
    }

    /// Reads tokens and certificate again, from the files that these settings name. What can't be used changes nothing,
    /// and the log says why. Blocking.
    pub fn reload(&self, config: &config::Serve) {
        self.secrets.reload(config);
    }

    /// Lets requests through to a host.
    pub fn open(&self, host: Host) {
        let app = App::new(host, &self.config, self.address, self.secrets.clone(), self.shutdown.clone());
        self.routes.get_or_init(|| super::router(app));
    }

    /// Serves until the shutdown, then lets requests that run come to their end, for some seconds.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let door =
            Door { routes: self.routes, places: Arc::new(Semaphore::new(HELD_MAX)), shutdown: self.shutdown.clone() };
        let router = Router::new().fallback(pass).with_state(door);
        let grace = listen::GRACE_MAX.min(self.config.pipeline.stop_budget);
        tokio::spawn(self.secrets.clone().follow(self.shutdown.clone()));
        listen::serve(listener, router, self.secrets.tls(), grace, self.shutdown).await
    }
}

/// What a request meets.
#[derive(Clone)]
struct Door {
    routes: Arc<OnceLock<Router>>,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
}

async fn pass(State(door): State<Door>, request: Request) -> Response {
    if let Some(routes) = door.routes.get() {
        let Ok(response) = routes.clone().oneshot(request).await;
        return response;
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/livez" if is_read => health::probe(Vec::new()),
        "/readyz" | "/startupz" if is_read => health::probe(vec![REASON.to_owned()]),
        path => {
            // A browser that is refused a watch never asks again.
            let hold_max = if is_read && path.ends_with("/changes") { None } else { Some(HOLD_MAX) };
            match door.opened(hold_max).await {
                Some(routes) => {
                    let Ok(response) = routes.oneshot(request).await;
                    response
                }
                None => Problem::new(Kind::NotReady, format!("{REASON}; try again later")).into_response(),
            }
        }
    }
}

impl Door {
    /// The routes, waited for until the host is opened; none if that takes too long. Cancel-safe: it only looks.
    async fn opened(&self, hold_max: Option<Duration>) -> Option<Router> {
        let _place = self.places.try_acquire().ok()?;
        let until = hold_max.map(|hold| Instant::now() + hold);
        loop {
            if let Some(routes) = self.routes.get() {
                return Some(routes.clone());
            }
            if self.shutdown.is_cancelled() || until.is_some_and(|until| Instant::now() >= until) {
                return None;
            }
            tokio::time::sleep(HOLD_PAUSE).await;
        }
    }
}
