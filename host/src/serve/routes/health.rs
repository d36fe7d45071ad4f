//! Probes, the host's own description, and the pages of metrics and API.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api;
use crate::config::Anonymous;
use crate::host::Health;
use crate::serve::extract::{NoParameters, Parameters};
use crate::serve::problem::Problem;
use crate::serve::secrets::Admission;
use crate::serve::{App, auth};

/// Paths that need no token.
pub(in crate::serve) const PROBES: [&str; 3] = ["/livez", "/readyz", "/startupz"];

pub(in crate::serve) fn probe(reasons: Vec<String>) -> Response {
    probe_with(reasons, Vec::new())
}

fn probe_with(reasons: Vec<String>, degraded: Vec<String>) -> Response {
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let probe = api::Probe {
        ok: reasons.is_empty(),
        reasons,
        degraded,
    };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(probe)).into_response()
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/livez", tag = "host", security(()), responses(
    (status = 200, description = "The process is alive", body = api::Probe),
))]
pub(super) async fn livez(_: Parameters<NoParameters>) -> Response {
    probe(Vec::new())
}

/// Whether the host can answer reads.
///
/// It stays 200 while a source is unreachable or a deployment has failed: the host still answers
/// reads, and other deployments are not affected. The body lists such problems under `degraded`;
/// use the metrics for alerts.
#[utoipa::path(get, path = "/readyz", tag = "host", security(()), responses(
    (status = 200, description = "The host can answer reads", body = api::Probe),
    (status = 503, description = "It cannot, for these reasons", body = api::Probe),
))]
pub(super) async fn readyz(
    State(app): State<App>,
    headers: HeaderMap,
    _: Parameters<NoParameters>,
) -> Response {
    // A load balancer should send nothing more, while running requests end.
    if app.shutdown.is_cancelled() {
        return probe(vec!["the host is stopping".to_owned()]);
    }
    let health = without_names(&app, &headers, app.host.health());
    let reasons = if health.ready {
        Vec::new()
    } else {
        or_unknown(health.reasons)
    };
    probe_with(reasons, health.degraded)
}

/// Whether the host has opened everything since its start.
#[utoipa::path(get, path = "/startupz", tag = "host", security(()), responses(
    (status = 200, description = "Everything is open", body = api::Probe),
    (status = 503, description = "Not yet, for these reasons", body = api::Probe),
))]
pub(super) async fn startupz(
    State(app): State<App>,
    headers: HeaderMap,
    _: Parameters<NoParameters>,
) -> Response {
    let health = without_names(&app, &headers, app.host.health());
    if health.started {
        return probe(Vec::new());
    }
    probe(or_unknown(health.reasons))
}

/// What a client may know of the health: names of deployments and sources are for those who may
/// read.
fn without_names(app: &App, headers: &HeaderMap, mut health: Health) -> Health {
    let Admission { tokens, anonymous } = app.secrets.admission();
    // Those who may read without a token may also see this.
    if anonymous != Anonymous::Nothing
        || tokens.is_some_and(|tokens| auth::is_known(&tokens, headers))
    {
        return health;
    }
    if health.opening > 0 {
        health.reasons = vec![format!("{} deployments are being opened", health.opening)];
    }
    if !health.degraded.is_empty() {
        health.degraded = vec![format!(
            "{} findings; send a token to see them",
            health.degraded.len()
        )];
    }
    health
}

/// A refusal always has a reason, so that `ok` and the status agree.
fn or_unknown(reasons: Vec<String>) -> Vec<String> {
    if reasons.is_empty() {
        vec!["not ready yet".to_owned()]
    } else {
        reasons
    }
}

/// Version, contract, start time.
#[utoipa::path(get, path = "/v1/host", tag = "host", responses(
    (status = 200, description = "The host", body = api::HostInfo),
))]
pub(super) async fn host(
    State(app): State<App>,
    _: Parameters<NoParameters>,
) -> Json<api::HostInfo> {
    Json(app.host.info().into())
}

/// All sources and their current state.
#[utoipa::path(get, path = "/v1/sources", tag = "host", responses(
    (status = 200, description = "Ordered by name", body = api::SourceList),
))]
pub(super) async fn sources(
    State(app): State<App>,
    _: Parameters<NoParameters>,
) -> Json<api::SourceList> {
    let mut sources = app.host.sources().await;
    sources.sort_by(|one, other| one.name.cmp(&other.name));
    Json(api::SourceList {
        sources: sources.into_iter().map(Into::into).collect(),
    })
}

/// The metrics, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "host", responses(
    (status = 200, description = "Text exposition format 0.0.4", body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics(
    State(app): State<App>,
    _: Parameters<NoParameters>,
) -> Result<Response, Problem> {
    let host = app.host.clone();
    host.metrics().certificate(
        app.secrets
            .validity()
            .map(|validity| validity.end.as_second()),
    );
    let page = crate::serve::blocking(move || host.metrics_page()).await?;
    Ok(with_type(
        "text/plain; version=0.0.4; charset=utf-8",
        Body::from(page),
    ))
}

/// This description, as OpenAPI 3.1.
#[utoipa::path(get, path = "/openapi.json", tag = "host", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub(super) async fn openapi(State(app): State<App>, _: Parameters<NoParameters>) -> Response {
    with_type("application/json", Body::from(app.document.clone()))
}

fn with_type(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
