//! Deployments: deploy, list, show, pause, resume, delete.

use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::actor;
use crate::api;
use crate::module::Wanted;
use crate::rollout::{DeployRequest, WantedSkips};
use crate::serve::App;
use crate::serve::extract::{self, NoParameters, Parameters, Segments};
use crate::serve::problem::Problem;

/// Largest body of a resume, in bytes: far more than the reason and the sequences that it may have.
const RESUME_BYTES_MAX: usize = 64 << 10;

/// What a deploy asks for beside the module.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeployParameters {
    /// Name of the deployment; left out, it is the module's.
    #[param(pattern = "^[a-z][a-z0-9-]{0,62}$")]
    name: Option<String>,
    /// Source to read; left out, that of the deployment there is, or the only one.
    source: Option<String>,
    /// Where a new state begins; left out, where that of the deployment there is began, or at the beginning.
    #[param(inline)]
    start: Option<api::Start>,
    /// How the state comes to be; left out, the host decides and says why.
    #[param(inline)]
    strategy: Option<api::Strategy>,
    /// When a candidate takes over; left out, as soon as it has caught up.
    #[serde(default)]
    #[param(inline, required = false)]
    promote: api::Promotion,
    /// What a comparison with the generation that serves may show, as JSON (Gate); `{"allow":[]}` allows nothing.
    gate: Option<String>,
    /// Most events a second while a candidate is built.
    #[param(minimum = 1)]
    max_rate: Option<u64>,
    /// Share of one core that a candidate may take while it is built, in percent.
    #[param(minimum = 1, maximum = 100)]
    cpu_percent: Option<u8>,
    /// Pass over events that are gone from the stream, up to its end just now; they are counted.
    #[serde(default, rename = "accept-missing")]
    #[param(rename = "accept-missing", required = false)]
    accept_missing: bool,
}

impl DeployParameters {
    fn request(self) -> Result<DeployRequest, Problem> {
        let build = build_settings(self.promote, self.gate.as_deref(), self.max_rate, self.cpu_percent)?;
        let build = api::BuildSettings { accept_missing: self.accept_missing, ..build };
        let Self { name, source, start, strategy, .. } = self;
        Ok(DeployRequest { name, source, start, strategy, build })
    }
}

/// How a candidate is to be built, checked.
pub(super) fn build_settings(
    promote: api::Promotion,
    gate: Option<&str>,
    max_rate: Option<u64>,
    cpu_percent: Option<u8>,
) -> Result<api::BuildSettings, Problem> {
    let gate = gate.map(serde_json::from_str::<api::Gate>).transpose();
    let gate =
        gate.map_err(|error| Problem::invalid(format!("gate is not as the description of Gate has it: {error}")))?;
    check_throttle(max_rate, cpu_percent)?;
    Ok(api::BuildSettings { promote, gate, max_rate, cpu_percent, accept_missing: false })
}

/// Checks how fast something may be built.
pub(super) fn check_throttle(max_rate: Option<u64>, cpu_percent: Option<u8>) -> Result<(), Problem> {
    if max_rate == Some(0) {
        return Err(Problem::invalid("max_rate 0 builds nothing; pause the candidate instead"));
    }
    match cpu_percent {
        Some(percent) if !(1..=100).contains(&percent) => {
            Err(Problem::invalid(format!("cpu_percent {percent} is refused; give 1 to 100")))
        }
        _ => Ok(()),
    }
}

/// All deployments.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", responses(
    (status = 200, description = "Ordered by name", body = api::DeploymentList),
))]
pub(super) async fn list(State(app): State<App>, _: Parameters<NoParameters>) -> Json<api::DeploymentList> {
    let mut deployments: Vec<_> = app.rollouts.deployments().iter().map(|deployment| deployment.info()).collect();
    deployments.sort_by(|one, other| one.name.cmp(&other.name));
    Json(api::DeploymentList { deployments })
}

/// Takes a module into service.
///
/// The body is the component, or a core module that uses the contract. Under a name that is in use, another module
/// makes a new generation: it inherits the state where both store the same, else it is built beside what serves, which
/// goes on until the new one has caught up.
#[utoipa::path(post, path = "/v1/deployments", tag = "deployments", params(DeployParameters),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The module"),
    responses(
        (status = 200, description = "This module runs under the name already", body = api::Deployed),
        (status = 201, description = "Created, inherited, or being built", body = api::Deployed,
            headers(("Location" = String, description = "The deployment"))),
        (status = 409, description = "It does not fit what there is now"),
        (status = 413, description = "Larger than modules.upload_bytes_max"),
        (status = 415, description = "The body is not declared as application/wasm"),
        (status = 422, description = "The module, its manifest or its source is refused, or a limit is reached"),
        (status = 507, description = "There is no room for another state"),
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
    let request = parameters.request()?;
    let limit = app.upload_bytes_max;
    let room = app.capacity.body(&parts.headers, limit).await?;
    let upload = extract::body(&parts.headers, body, limit).await?;
    if upload.is_empty() {
        return Err(Problem::invalid("the body is empty; send the .wasm file"));
    }
    // Only once the body is there: a slow client keeps nobody else from deploying.
    let place = app.capacity.deploy().await?;
    let rollouts = app.rollouts.clone();
    // Dropped with this request: while its module is being checked or compiled, the work ends when the client leaves.
    let (_waiting, wanted) = Wanted::while_waiting();
    let deployed = finish(async move {
        let deployed = rollouts.deploy(upload, request, wanted).await;
        drop((room, place));
        deployed
    })
    .await??;
    let location = format!("/v1/deployments/{}", deployed.deployment.name);
    match deployed.outcome {
        api::DeployOutcome::Unchanged => Ok(Json(deployed).into_response()),
        _ => Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(deployed)).into_response()),
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
    Ok(Json(app.rollouts.deployment(&name)?.info()))
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
    let rollouts = app.rollouts.clone();
    finish(async move { rollouts.delete(&name).await }).await??;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Which of a deployment's generations is meant.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichParameters {
    /// The candidate, instead of the generation that serves.
    #[serde(default)]
    #[param(required = false)]
    candidate: bool,
}

/// What is resumed, and how.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[into_params(parameter_in = Query)]
pub(super) struct ResumeParameters {
    /// The candidate, instead of the generation that serves.
    #[serde(default)]
    #[param(required = false)]
    candidate: bool,
    /// Pass over events that are gone from the stream, up to its end just now; they are counted.
    #[serde(default)]
    #[param(required = false)]
    accept_missing: bool,
}

/// Stops applying; the deployment keeps answering, and stays paused over restarts.
#[utoipa::path(post, path = "/v1/deployments/{name}/pause", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), WhichParameters),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is none of that name"),
        (status = 409, description = "There is no candidate"),
    ))]
pub(super) async fn pause(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(which): Parameters<WhichParameters>,
) -> Result<Json<api::Deployment>, Problem> {
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.pause(&name, which.candidate).await }).await??))
}

/// Goes on after a pause or a failure; without events that can't be folded, where the body names some.
///
/// To skip an event is a decision of the deployment: it counts for each of its states that has not passed the event, and is
/// noted in the audit log. A candidate that an event stopped goes on from the state that it had.
#[utoipa::path(post, path = "/v1/deployments/{name}/resume", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment"), ResumeParameters),
    request_body(content = Option<api::Resume>, description = "Which events to skip, and why; left out, none"),
    responses(
        (status = 200, description = "The deployment as it is now", body = api::Deployment),
        (status = 404, description = "There is none of that name"),
        (status = 409, description = "There is no candidate, the deployment did not come to a stop, or the source can't be reached to see what it lacks"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not declared as application/json"),
        (status = 422, description = "The event was folded already, is still to come, or is none of the deployment's"),
    ))]
pub(super) async fn resume(
    State(app): State<App>,
    Segments(name): Segments<String>,
    Parameters(parameters): Parameters<ResumeParameters>,
    request: Request,
) -> Result<Json<api::Deployment>, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::body(&parts.headers, body, RESUME_BYTES_MAX).await?;
    let wanted = if body.is_empty() { api::Resume::default() } else { resume_of(&parts.headers, &body)? };
    let skips = WantedSkips::of(wanted).map_err(Problem::invalid)?;
    let rollouts = app.rollouts.clone();
    let ResumeParameters { candidate, accept_missing } = parameters;
    let resumed = finish(async move {
        if accept_missing {
            rollouts.accept_missing(&name, candidate).await?;
        }
        rollouts.resume(&name, candidate, skips).await
    });
    Ok(Json(resumed.await??))
}

fn resume_of(headers: &HeaderMap, body: &[u8]) -> Result<api::Resume, Problem> {
    match extract::content_type(headers).as_deref() {
        Some("application/json") => {}
        found => return Err(extract::unsupported(found, "which events to skip as application/json")),
    }
    let invalid = |why: String| Problem::invalid(format!("the body is not as the description of Resume has it: {why}"));
    let body: serde_json::Value = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    // The reader of JSON would take an array for an object.
    if !(body.is_object() || body.is_null()) {
        return Err(invalid("it is no object".to_owned()));
    }
    let wanted: Option<api::Resume> = serde_json::from_value(body).map_err(|error| invalid(error.to_string()))?;
    Ok(wanted.unwrap_or_default())
}

/// The events that a deployment leaves out, as an operator decided.
#[utoipa::path(get, path = "/v1/deployments/{name}/skips", tag = "deployments",
    params(("name" = String, Path, description = "Name of the deployment")),
    responses(
        (status = 200, description = "By rising sequence", body = api::SkipList),
        (status = 404, description = "There is no such deployment"),
    ))]
pub(super) async fn skips(
    State(app): State<App>,
    Segments(name): Segments<String>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::SkipList>, Problem> {
    Ok(Json(app.rollouts.skips(&name)?))
}

/// Takes the decision to skip an event back.
///
/// States that have passed the event stay as they are; those that are built from scratch fold it.
#[utoipa::path(delete, path = "/v1/deployments/{name}/skips/{sequence}", tag = "deployments",
    params(
        ("name" = String, Path, description = "Name of the deployment"),
        ("sequence" = u64, Path, description = "The event"),
    ),
    responses(
        (status = 200, description = "The events that are left out now", body = api::SkipList),
        (status = 404, description = "There is no such deployment, or no such decision"),
        (status = 409, description = "The deployment did not come to a stop"),
    ))]
pub(super) async fn withdraw_skip(
    State(app): State<App>,
    Segments((name, sequence)): Segments<(String, u64)>,
    _: Parameters<NoParameters>,
) -> Result<Json<api::SkipList>, Problem> {
    let rollouts = app.rollouts.clone();
    Ok(Json(finish(async move { rollouts.withdraw_skip(&name, sequence).await }).await??))
}

/// Runs a change to its end even when its client leaves: half a deploy is nobody's wish.
pub(super) async fn finish<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
    tokio::spawn(actor::scope(actor::current(), change)).await.map_err(|error| crate::serve::lost(&error))
}
