//! The server during start-up: while the host opens its files, it answers probes and asks all other
//! clients to retry.
//!
//! Opening a data folder may take minutes, because a large file is repaired after an unclean stop.
//! A process supervisor must be able to tell that from a process that hangs.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, SetOnce};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::Connections;
use super::listen::Served;
use super::problem::{Kind, Problem};
use super::routes::health;
use super::secrets::Secrets;
use super::{App, Error, auth, listen};
use crate::config::{self, Config};
use crate::host::Host;
use crate::memory::Memory;

/// How long a request waits for the host: it usually takes milliseconds, and clients need not
/// notice.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// How many requests may wait for that; others are asked to retry at once.
const HELD_MAX: usize = 1_024;

/// Why the server answers nothing else yet.
const REASON: &str = "the host is still opening its data folder, logs and modules";

/// The start-up server. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Entrance {
    pub(super) config: Arc<Config>,
    pub(super) address: SocketAddr,
    pub(super) secrets: Secrets,
    pub(super) shutdown: CancellationToken,
    /// All routes, once the host is ready.
    routes: Arc<SetOnce<Router>>,
    /// The memory of the host, once it is ready.
    memory: Arc<OnceLock<Memory>>,
}

impl Entrance {
    /// A server at a listener, without a host yet. Its existence means that all files that the
    /// configuration names were read.
    pub fn new(
        listener: &TcpListener,
        config: Arc<Config>,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let address = listener.local_addr()?;
        // Before anything is read, so that an unsafe setting is seen at once.
        auth::check_address(&config.serve, address)?;
        let secrets = Secrets::new(&config.serve, address)?;
        Ok(Self {
            config,
            address,
            secrets,
            shutdown,
            routes: Arc::default(),
            memory: Arc::default(),
        })
    }

    /// Reloads tokens and certificate from the files of these settings. If they can't be used, the
    /// old ones stay in use and the log says why. Blocking.
    pub fn reload(&self, config: &config::Serve) {
        self.secrets.reload(config);
    }

    /// Lets requests through to a host.
    pub fn open(&self, host: Host) {
        self.memory.get_or_init(|| host.memory().clone());
        let app = App::new(host, self);
        // The first host stays.
        let _ = self.routes.set(super::router(app));
    }

    /// Serves until the shutdown, then gives running requests some seconds to end.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let door = Door {
            routes: self.routes,
            places: Arc::new(Semaphore::new(HELD_MAX)),
            shutdown: self.shutdown.clone(),
        };
        let router = Router::new().fallback(pass).with_state(door);
        // Within the time that the whole stop may take.
        let grace = listen::GRACE_MAX.min(self.config.pipeline.stop_budget);
        tokio::spawn(self.secrets.clone().follow(self.shutdown.clone()));
        let served = Served {
            router,
            tls: self.secrets.tls(),
            connections: connections(&self.config, self.memory),
            grace,
        };
        listen::serve(listener, served, self.shutdown).await
    }
}

/// The connections, whose buffers take memory from the host; before it is ready, from a budget of
/// the same size.
fn connections(config: &Config, of_host: Arc<OnceLock<Memory>>) -> Connections {
    // Of the same size, so that a host under attack at its start is bounded as well.
    let before = Memory::new(config.shares().modules);
    Connections::new(listen::connections_max(), move || {
        of_host.get().unwrap_or(&before).clone()
    })
}

/// What a request passes: the routes once there are any, and places to wait for them until then.
#[derive(Clone)]
struct Door {
    routes: Arc<SetOnce<Router>>,
    places: Arc<Semaphore>,
    shutdown: CancellationToken,
}

async fn pass(State(door): State<Door>, request: Request) -> Response {
    // From then on this costs one look at a cell.
    if let Some(routes) = door.routes.get() {
        let Ok(response) = routes.clone().oneshot(request).await;
        return response;
    }
    // A probe with another method is answered by the routes, which say what is allowed.
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/livez" if is_read => health::probe(Vec::new()),
        "/readyz" | "/startupz" if is_read => health::probe(vec![REASON.to_owned()]),
        path => {
            // A browser never retries a watch that was refused.
            let hold_max = if is_read && path.ends_with("/changes") {
                None
            } else {
                Some(HOLD_MAX)
            };
            match door.opened(hold_max).await {
                Some(routes) => {
                    let Ok(response) = routes.oneshot(request).await;
                    response
                }
                None => Problem::new(Kind::NotReady, format!("{REASON}; try again later"))
                    .into_response(),
            }
        }
    }
}

impl Door {
    /// The routes, as soon as the host is ready; none if that takes too long. Cancel-safe: it only
    /// observes.
    async fn opened(&self, hold_max: Option<Duration>) -> Option<Router> {
        // No place: as many wait as may, and another one would only take memory.
        let _place = self.places.try_acquire().ok()?;
        let opened = async {
            match hold_max {
                Some(hold_max) => tokio::time::timeout(hold_max, self.routes.wait())
                    .await
                    .ok(),
                None => Some(self.routes.wait().await),
            }
        };
        // At a stop nobody is kept waiting.
        self.shutdown
            .run_until_cancelled(opened)
            .await
            .flatten()
            .cloned()
    }
}
