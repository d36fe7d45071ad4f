//! Parked events: which keys wait, and retrying or dropping them.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::deployments::change;
use crate::api;
use crate::exceptions::ParkedAction;
use crate::serve::App;
use crate::serve::extract::{self, NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;

/// Largest body, in bytes: a thousand keys of the largest size that is not a digest.
const BODY_BYTES_MAX: usize = 2 << 20;

/// Which keys to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only keys whose first event failed with this class, such as `rejected`.
    class: Option<api::FailureClass>,
    /// What the page before returned as `next`.
    after: Option<String>,
}

/// Which key to show.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct KeyParameters {
    /// The key, as it is listed.
    key: String,
}

/// What to export.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ExportParameters {
    /// A parked key. Without one, the failure that the host recorded last.
    key: Option<String>,
}

/// The keys with parked events.
#[utoipa::path(get, path = "/v1/deployments/{name}/parked", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), ListParameters),
    responses(
        (status = 200, description = "At most 1,000 keys, in order", body = api::ParkedList),
        (status = 404, description = "There is no such deployment"),
        (status = 503, description = "Its state is not open yet"),
    ))]
pub(super) async fn list(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<api::ParkedList>, Problem> {
    let exceptions = app.host.exceptions();
    let listed = exceptions.parked(&name, parameters.class, parameters.after.as_deref())?;
    Ok(Json(listed.into()))
}

/// The parked events of a key.
#[utoipa::path(get, path = "/v1/deployments/{name}/parked/events", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), KeyParameters),
    responses(
        (status = 200, description = "The first of them, in order", body = api::ParkedEvents),
        (status = 404, description = "There is no such deployment, or no such key"),
        (status = 503, description = "Its state is not open yet"),
    ))]
pub(super) async fn events(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<KeyParameters>,
) -> Result<Json<api::ParkedEvents>, Problem> {
    let KeyParameters { key } = parameters;
    let (total, events) = app.host.exceptions().parked_events(&name, &key).await?;
    Ok(Json(api::ParkedEvents {
        key,
        total,
        events: events.iter().map(Into::into).collect(),
    }))
}

/// Applies parked events, key by key and in order.
///
/// If an event fails again, it and the later ones of its key stay parked; those before it are
/// applied. One request takes a few seconds at most; `unfinished` says that another one is needed.
#[utoipa::path(post, path = "/v1/deployments/{name}/parked/retry", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    request_body = api::ParkedSelection,
    responses(
        (status = 200, description = "What was applied, and what failed again", body = api::ParkedOutcome),
        (status = 404, description = "There is no such deployment, or no such key"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 409, description = "The deployment is paused"),
        (status = 503, description = "The deployment did not stop in time"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "The selection contradicts itself"),
    ))]
pub(super) async fn retry(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
    request: Request,
) -> Result<Json<api::ParkedOutcome>, Problem> {
    act(&app, name, ParkedAction::Retry, request).await
}

/// Leaves out parked events for good: the first of each key, or all.
///
/// The state records them like skipped events. Later events of the key stay parked until the key is
/// retried.
#[utoipa::path(post, path = "/v1/deployments/{name}/parked/drop", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    request_body = api::ParkedSelection,
    responses(
        (status = 200, description = "What was dropped", body = api::ParkedOutcome),
        (status = 404, description = "There is no such deployment, or no such key"),
        (status = 408, description = "The body arrived too slowly"),
        (status = 503, description = "The deployment did not stop in time"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "The reason is missing, or the selection contradicts itself"),
    ))]
pub(super) async fn drop_events(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
    request: Request,
) -> Result<Json<api::ParkedOutcome>, Problem> {
    act(&app, name, ParkedAction::Drop, request).await
}

/// A failure bundle: module, events, the entries that they read, and the calls that they made.
///
/// With a key, its events are tried once more for the record, and nothing is kept of that. Without
/// one, the bundle is the last one that the host wrote when a module failed for the first time.
/// `foldstream replay` reproduces the failure. A bundle has data of events and entries, so each
/// export is in the audit log.
#[utoipa::path(post, path = "/v1/deployments/{name}/parked/export", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), ExportParameters),
    responses(
        (status = 200, description = "The bundle", body = serde_json::Value),
        (status = 404, description = "There is no such deployment, no such key, or no recorded failure"),
        (status = 409, description = "The deployment is paused"),
        (status = 503, description = "The deployment did not stop in time"),
    ))]
pub(super) async fn export(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ExportParameters>,
) -> Result<Response, Problem> {
    let bundle = app
        .host
        .exceptions()
        .failure_bundle(&name, parameters.key.as_deref())
        .await?;
    let mut response = Response::new(Body::from(bundle));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    // It has data of events.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn act(
    app: &App,
    name: String,
    action: ParkedAction,
    request: Request,
) -> Result<Json<api::ParkedOutcome>, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::body(
        &parts.headers,
        body,
        BODY_BYTES_MAX,
        &mut app.capacity.body(1),
    )
    .await?;
    let selection = selection_of(&parts.headers, &body)?;
    let dry_run = selection.dry_run.into();
    // The host continues if the client leaves: see `change`.
    change(app, |host| async move {
        host.exceptions()
            .change_parked(&name, action, selection.into(), dry_run)
            .await
    })
    .await
}

fn selection_of(headers: &HeaderMap, body: &[u8]) -> Result<api::ParkedSelection, Problem> {
    match extract::content_type(headers).as_deref() {
        Some("application/json") => {}
        found => {
            return Err(extract::unsupported(
                found,
                "which keys are meant as application/json",
            ));
        }
    }
    let invalid = |why: String| {
        Problem::invalid(format!(
            "the body does not match the schema ParkedSelection: {why}"
        ))
    };
    let body: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    // The JSON parser would accept an array for an object.
    if !body.is_object() {
        return Err(invalid("it is not an object".to_owned()));
    }
    serde_json::from_value(body).map_err(|error| invalid(error.to_string()))
}
