//! The way in: while the host is being opened, probes are answered and everything else is told to come back.
//!
//! Opening a data folder may take minutes, as after an unclean stop a large file is repaired. Whoever watches the process
//! must be able to tell that from a process that hangs.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::problem::{Kind, Problem};
use super::{App, Error, Secrets, auth, health, listen};
use crate::config::Config;
use crate::supervisor::Host;

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
        let secrets = Secrets::new(&config.serve)?;
        Ok(Self { config, address, secrets, shutdown, routes: Arc::default() })
    }

    /// Lets requests through to a host.
    pub fn open(&self, host: Host) {
        let token = self.secrets.token.clone();
        let app = App::new(host, &self.config, self.address, token, self.shutdown.clone());
        self.routes.get_or_init(|| super::router(app));
    }

    /// Serves until the shutdown, then lets requests that run come to their end, for some seconds.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let router = Router::new().fallback(pass).with_state(self.routes);
        let grace = listen::GRACE_MAX.min(self.config.pipeline.stop_budget);
        listen::serve(listener, router, self.secrets.tls, grace, self.shutdown).await
    }
}

async fn pass(State(routes): State<Arc<OnceLock<Router>>>, request: Request) -> Response {
    if let Some(routes) = routes.get() {
        let Ok(response) = routes.clone().oneshot(request).await;
        return response;
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/livez" if is_read => health::probe(Vec::new()),
        "/readyz" | "/startupz" if is_read => health::probe(vec![REASON.to_owned()]),
        _ => Problem::new(Kind::NotReady, format!("{REASON}; try again later")).into_response(),
    }
}
