//! Deployments: deploy, list, show, pause, resume, delete.

use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::extract::{self, NoParameters, Parameters, Segments};
use super::problem::Problem;
use crate::api;
use crate::supervisor::DeployRequest;

/// What a deploy asks for beside the module.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeployParameters {
    /// Name of the deployment; left out, it is the module's.
    #[param(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: Option<String>,
    /// Source to read; left out, it is the only one.
    source: Option<String>,
    /// Where a new state begins; left out, at the beginning.
    #[serde(default)]
    #[param(inline, required = false)]
    start: api::Start,
}

/// All deployments.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", responses(
    (status = 200, description = "Ordered by name", body = api::DeploymentList),
))]
pub(super) async fn list(State(app): State<App>, _: Parameters<NoParameters>) -> Json<api::DeploymentList> {
    let mut deployments: Vec<_> = app.host.deployments().iter().map(|deployment| deployment.info()).collect();
    deployments.sort_by(|one, other| one.name.cmp(&other.name));
    Json(api::DeploymentList { deployments })
}

/// Takes a module into service.
///
/// The body is the component, or a core module that uses the contract. Under a
/// name that is in use, another module makes a new generation.
#[utoipa::path(post, path = "/v1/deployments", tag = "deployments", params(DeployParameters),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The module"),
    responses(
        (status = 200, description = "This module runs under the name already", body = api::Deployed),
        (status = 201, description = "Created, or replaced", body = api::Deployed,
            headers(("Location" = String, description = "The deployment"))),
        (status = 413, description = "Larger than modules.upload_bytes_max"),
        (status = 415, description = "The body is not declared as application/wasm"),
        (status = 422, description = "The module, its manifest or its source is refused, or a limit is reached"),
    ))]
pub(super) async fn deploy(
    State(app): State<App>,
    Parameters(parameters): Parameters<DeployParameters>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match extract::content_type(&parts.headers).as_deref() {
        Some("application/wasm" | "application/octet-stream") => {}
        found => return Err(extract::unsupported(found, "the module as application/wasm")),
    }
    let limit = app.upload_bytes_max;
    let room = app.capacity.body(&parts.headers, limit).await?;
    let upload = extract::body(&parts.headers, body, limit).await?;
    if upload.is_empty() {
        return Err(Problem::invalid("the body is empty; send the .wasm file"));
    }
    let host = app.host.clone();
    let DeployParameters { name, source, start } = parameters;
    let deployed = finish(async move {
        let deployed = host.deploy(upload, DeployRequest { name, source, start }).await;
        drop(room);
        deployed
    })
    .await??;
    let location = format!("/v1/deployments/{}", deployed.deployment.name);
    match deployed.outcome {
        api::DeployOutcome::Unchanged => Ok(Json(deployed).into_response()),
        api::DeployOutcome::Created | api::DeployOutcome::Replaced => {
            Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(deployed)).into_response())
        }
    }
}

/// One deployment.
#[utoipa::path(get, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The deployment", body = api::Deployment),
        (status = 404, description = "There is none of that name"),
    ))]
pub(super) async fn show(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    Ok(Json(app.host.deployment(&name)?.info()))
}

/// Stops a deployment and removes its state.
#[utoipa::path(delete, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "There is none of that name"),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Response, Problem> {
    let host = app.host.clone();
    finish(async move { host.delete(&name).await }).await??;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Stops applying; the deployment keeps answering, and stays paused over restarts.
#[utoipa::path(post, path = "/v1/deployments/{name}/pause", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is none of that name"),
    ))]
pub(super) async fn pause(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let host = app.host.clone();
    Ok(Json(finish(async move { host.pause(&name).await }).await??))
}

/// Goes on after a pause or a failure.
#[utoipa::path(post, path = "/v1/deployments/{name}/resume", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is none of that name"),
    ))]
pub(super) async fn resume(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let host = app.host.clone();
    Ok(Json(finish(async move { host.resume(&name).await }).await??))
}

/// Runs a change to its end even when its client leaves: half a deploy is nobody's wish.
async fn finish<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
    tokio::spawn(change).await.map_err(|error| super::lost(&error))
}
